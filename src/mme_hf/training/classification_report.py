"""What a classifier's scores of a data set come to: figures for files and model cards, tables for people."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..model_card_facts import dataset_of
from ..wording import percent
from .metrics import NUM_CALIBRATION_BINS, classification_metrics, confusion_counts, wilson_interval
from .prediction import VideoPredictions

# Of more classes a table shows those that are recognised worst.
MAX_CLASS_ROWS = 30
_HUB_METRICS = {
    "top1": ("accuracy", "top-1 accuracy"),
    "top5": ("accuracy", "top-5 accuracy"),
    "mean_class_accuracy": ("balanced_accuracy", "mean class accuracy"),
    "ece": ("expected_calibration_error", f"expected calibration error, {NUM_CALIBRATION_BINS} bins"),
}


def classification_report(predictions: VideoPredictions, label_names: Sequence[str]) -> dict[str, Any]:
    """Return `classification_metrics` and what is beside them in a report, ready for JSON.

    `top1_interval` is Wilson's 95 % interval over videos; `most_frequent_class` the share of videos that is right by
    always guessing that class; `per_class` has for each class `label`, `num_videos`, `accuracy` (None without videos),
    `num_guessed`, how many videos were taken for it, and `mistaken_for`, [label, videos] of the most frequent mistake.

    Args:
        predictions: Of labelled videos.
        label_names: Class names in label order.
    """
    metrics = classification_metrics(predictions.scores, predictions.labels)
    counts = confusion_counts(predictions.scores, predictions.labels)
    num_videos = len(predictions.labels)
    return {
        **metrics,
        "top1_interval": list(wilson_interval(metrics["top1"], num_videos)),
        "most_frequent_class": int(counts.sum(1).max()) / num_videos,
        "num_videos": num_videos,
        "num_classes": len(label_names),
        "per_class": [_class_row(counts, number, label_names) for number in range(len(label_names))],
    }


def _class_row(counts: np.ndarray, number: int, label_names: Sequence[str]) -> dict[str, Any]:
    num_videos, num_right = int(counts[number].sum()), int(counts[number, number])
    mistakes = counts[number].copy()
    mistakes[number] = 0
    worst = int(mistakes.argmax())
    return {
        "label": label_names[number],
        "num_videos": num_videos,
        "accuracy": num_right / num_videos if num_videos else None,
        "num_guessed": int(counts[:, number].sum()),
        "mistaken_for": [label_names[worst], int(mistakes[worst])] if mistakes[worst] else None,
    }


def hub_results(report: Mapping[str, Any], *, dataset: str, split: str | None) -> list[dict[str, Any]]:
    """Return the arguments of `huggingface_hub.EvalResult` for each figure, which a card's model-index is made of.

    Args:
        report: With the figures, and `views`.
        dataset: Name of the data set.
        split: Of it; None if it has none.
    """
    return [
        {
            "task_type": "video-classification",
            "task_name": "Video Classification",
            **dataset_of(dataset),
            "dataset_split": split,
            "metric_type": kind,
            "metric_name": f"{name}, {report['views']} views",
            "metric_value": report[figure],
        }
        for figure, (kind, name) in _HUB_METRICS.items()
    ]


def write_predictions(path: str | Path, predictions: VideoPredictions, label_names: Sequence[str]) -> None:
    """Write a CSV file with `video`, `label`, `prediction` and `score`, that of the prediction, of each video."""
    best = predictions.scores.max(1)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["video", "label", "prediction", "score"])
        rows = zip(
            predictions.sources, predictions.labels.tolist(), best.indices.tolist(), best.values.tolist(), strict=True
        )
        writer.writerows(
            [source, label_names[label], label_names[guess], f"{score:.6f}"] for source, label, guess, score in rows
        )


def figures_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of a report's figures."""
    low, high = report["top1_interval"]
    rows = [
        ("top-1", percent(report["top1"]), f"95 % interval {percent(low)} to {percent(high)} (Wilson, over videos)"),
        ("top-5", percent(report["top5"]), "of five classes or fewer" if report["num_classes"] <= 5 else ""),
        ("mean class accuracy", percent(report["mean_class_accuracy"]), ""),
        ("calibration error", percent(report["ece"]), f"{NUM_CALIBRATION_BINS} bins; 0 is as sure as right"),
        ("most frequent class", percent(report["most_frequent_class"]), "right by always guessing it"),
    ]
    return [f"  {name:<20} {value:>7}   {note}".rstrip() for name, value, note in rows]


def class_table(report: Mapping[str, Any]) -> list[str]:
    """Return the lines of a table of classes, worst first if there are too many to show."""
    rows = [row for row in report["per_class"] if row["num_videos"]]
    title = []
    if len(rows) > MAX_CLASS_ROWS:
        title = [f"  the {MAX_CLASS_ROWS} of {len(rows)} classes that are recognised worst; all are in the JSON"]
        rows = sorted(rows, key=lambda row: row["accuracy"])[:MAX_CLASS_ROWS]
    width = max(len("class"), *(len(row["label"]) for row in rows))
    lines = [*title, f"  {'class':<{width}}  videos    right  guessed  most often mistaken for"]
    for row in rows:
        mistake = "{} ({})".format(*row["mistaken_for"]) if row["mistaken_for"] else "-"
        figures = f"{row['num_videos']:>6}  {percent(row['accuracy']):>7}  {row['num_guessed']:>7}"
        lines.append(f"  {row['label']:<{width}}  {figures}  {mistake}")
    return lines
