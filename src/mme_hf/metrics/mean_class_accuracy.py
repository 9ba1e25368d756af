"""Accuracy of each class, averaged over the classes that occur."""

import datasets
import evaluate
import numpy as np


class MeanClassAccuracy(evaluate.Metric):
    """`compute(predictions=scores, references=classes)` returns `{"mean_class_accuracy": mean}`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Mean over classes of the share of their examples that are recognised: balanced accuracy.",
            citation="",
            inputs_description="predictions: scores of all classes; references: class numbers.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        labels = np.asarray(references)
        is_right = np.asarray(predictions).argmax(1) == labels
        return {
            "mean_class_accuracy": float(np.mean([is_right[labels == label].mean() for label in np.unique(labels)]))
        }
