"""Share of examples whose class is among the k best scores."""

import datasets
import evaluate
import numpy as np


class TopKAccuracy(evaluate.Metric):
    """`compute(predictions=scores, references=classes, k=5)` returns `{"top_k_accuracy": share}`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Share of examples whose class is among the k best scores; of equal scores the first counts.",
            citation="",
            inputs_description="predictions: scores of all classes; references: class numbers; k: how many best.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references, k=1):
        scores, labels = np.asarray(predictions), np.asarray(references)
        own = scores[np.arange(len(labels)), labels][:, None]
        is_before = (scores > own) | ((scores == own) & (np.arange(scores.shape[1]) < labels[:, None]))
        return {"top_k_accuracy": float((is_before.sum(1) < k).mean())}
