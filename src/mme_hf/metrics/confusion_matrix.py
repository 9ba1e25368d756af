"""How many examples of each class are taken for each other."""

import datasets
import evaluate
import numpy as np


class ConfusionMatrix(evaluate.Metric):
    """`compute(predictions=scores, references=classes)` returns `{"confusion_matrix": counts}`."""

    def _info(self):
        return evaluate.MetricInfo(
            description="Number of examples of each class (row) with the best score for each class (column).",
            citation="",
            inputs_description="predictions: scores of all classes; references: class numbers.",
            features=datasets.Features(
                {"predictions": datasets.Sequence(datasets.Value("float32")), "references": datasets.Value("int64")}
            ),
        )

    def _compute(self, predictions, references):
        scores = np.asarray(predictions)
        counts = np.zeros((scores.shape[1], scores.shape[1]), np.int64)
        np.add.at(counts, (np.asarray(references), scores.argmax(1)), 1)
        return {"confusion_matrix": counts}
