"""How good a classifier's scores are: the figures that every script reports."""

from __future__ import annotations

from math import sqrt

import numpy as np
import torch

from ..metrics import load_metric

NUM_CALIBRATION_BINS = 15
# Of the normal distribution: 95 % of it lie within so many standard deviations.
_DEVIATIONS_95 = 1.959964


def classification_metrics(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """Return `top1`, `top5`, `mean_class_accuracy` and `ece` of a classifier, each in [0, 1].

    `mean_class_accuracy` is over the classes that occur; `ece` is the expected calibration error over 15 bins of the
    best score, equally wide. Of equal scores the first counts. `top5` is 1 where there are no more than five classes.

    Args:
        scores: Chances of the classes, shape (videos, classes).
        labels: Right class of each video, shape (videos,).

    Raises:
        ValueError: If there is no video, shapes do not fit, a label is no class, or a score is not finite.
    """
    data = _checked(scores, labels)
    top_k, of_classes = load_metric("top_k_accuracy"), load_metric("mean_class_accuracy")
    calibration = load_metric("calibration_error").compute(**data, num_bins=NUM_CALIBRATION_BINS)
    return {
        "top1": top_k.compute(**data, k=1)["top_k_accuracy"],
        "top5": top_k.compute(**data, k=5)["top_k_accuracy"],
        "mean_class_accuracy": of_classes.compute(**data)["mean_class_accuracy"],
        "ece": calibration["expected_calibration_error"],
    }


def confusion_counts(scores: torch.Tensor, labels: torch.Tensor) -> np.ndarray:
    """Return how many videos of each class are taken for each class, int64, shape (classes, classes): [right, guessed].

    Args:
        scores: Chances of the classes, shape (videos, classes).
        labels: Right class of each video, shape (videos,).

    Raises:
        ValueError: As `classification_metrics`.
    """
    return load_metric("confusion_matrix").compute(**_checked(scores, labels))["confusion_matrix"]


def wilson_interval(share: float, num_trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a share that was found in `num_trials` independent trials.

    Args:
        share: In [0, 1].
        num_trials: At least 1.

    Source: Wilson, Probable Inference, the Law of Succession, and Statistical Inference, 1927.
    """
    weight = _DEVIATIONS_95**2 / num_trials
    middle = (share + weight / 2) / (1 + weight)
    reach = sqrt(share * (1 - share) * weight + weight**2 / 4) / (1 + weight)
    return max(0.0, middle - reach), min(1.0, middle + reach)


def _checked(scores: torch.Tensor, labels: torch.Tensor) -> dict[str, np.ndarray]:
    """Return what a metric is given."""
    if scores.ndim != 2 or labels.shape != scores.shape[:1] or not scores.numel():
        raise ValueError(
            f"scores {tuple(scores.shape)} and labels {tuple(labels.shape)} must be (videos, classes) and (videos,), "
            "of at least one video."
        )
    num_classes = scores.shape[1]
    if not ((labels >= 0) & (labels < num_classes)).all():
        wrong = next(label for label in labels.tolist() if not 0 <= label < num_classes)
        raise ValueError(f"a label ({wrong}) is outside [0, {num_classes}), the classes that are scored.")
    if not scores.isfinite().all():
        raise ValueError("scores are not all finite: the model's weights or its inputs are not.")
    return {"predictions": scores.float().cpu().numpy(), "references": labels.cpu().numpy()}
