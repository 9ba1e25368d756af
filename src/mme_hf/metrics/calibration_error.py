"""How far a classifier's confidence is from its accuracy."""

import datasets
import evaluate
import numpy as np


class CalibrationError(evaluate.Metric):
    """`compute(predictions=scores, references=classes)` returns `{"expected_calibration_error": error}`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Expected calibration error: |accuracy - mean confidence| of equally wide bins of confidence "
            "(the best score), each weighted by its share of the examples. A bin holds its upper edge.",
            citation="Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 3.",
            inputs_description="predictions: scores of all classes in [0, 1]; references: class numbers; num_bins.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, num_bins=15):
        scores, labels = np.asarray(predictions, np.float64), np.asarray(references)
        confidence, is_right = scores.max(1), scores.argmax(1) == labels
        bins = np.clip(np.ceil(confidence * num_bins) - 1, 0, num_bins - 1).astype(int)
        # Share x |accuracy - confidence| of a bin is |sum of (right - confidence)| / examples.
        gaps = np.bincount(bins, weights=is_right - confidence, minlength=num_bins)
        return {"expected_calibration_error": float(np.abs(gaps).sum() / len(labels))}
