"""Figures on a model card: for its reader as a table, for the Hub as a model-index."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from huggingface_hub import EvalResult

from .configuration_mme import MMEConfig
from .model_card_facts import ConversionFacts, TrainingFacts, dataset_of, public_value
from .published_models import PublishedModel, published_models, published_source
from .wording import counted

VIDEO_CLASSIFICATION = {"task_type": "video-classification", "task_name": "Video Classification"}
# The Hub has no task of its own for features of videos.
FEATURE_EXTRACTION = {"task_type": "feature-extraction", "task_name": "Feature Extraction"}
# Figures of an evaluation, in the order of the card.
_FIGURES = {
    "top1": "top-1 accuracy",
    "top5": "top-5 accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "ece": "expected calibration error",
    "most_frequent_class": "top-1 of always guessing the most frequent class",
}


@dataclass(frozen=True)
class ResultSection:
    """One section of figures on a card.

    Attributes:
        title: Heading.
        text: What was measured, and how far it can be trusted.
        header: Of its table.
        rows: Of its table, as text.
        figures: The same for the Hub's model-index.
    """

    title: str
    text: str
    header: Sequence[str] = ()
    rows: Sequence[Sequence[str]] = ()
    figures: Sequence[EvalResult] = ()


def result_sections(
    config: MMEConfig,
    facts: TrainingFacts | ConversionFacts,
    published: PublishedModel | None,
    results: Mapping[str, Any] | None,
    evaluation: Mapping[str, Any] | None,
) -> list[ResultSection]:
    """Return the figures of a checkpoint, or the words that there are none.

    Args:
        config: Of the model.
        facts: How the weights came to be.
        published: What is known of an authors' checkpoint; None for others.
        results: As in `eval_results.json` of a run; None if nothing was measured.
        evaluation: As `examples/evaluate.py` writes it, which stands in place of `results`; None for none.

    Raises:
        ValueError: If figures are missing, or the evaluation is of other classes than the model's.
    """
    sections = []
    if evaluation is None and results is not None and "per_class" in results:
        results, evaluation = None, results  # evaluate.py was told to write into the model's folder
    if evaluation is not None:
        if not facts.is_classifier:
            raise ValueError("the evaluation is of a classifier, the model is none.")
        sections.append(_evaluation_section(config, evaluation))
    if published is not None:
        is_judged = published.top1_percent is not None
        sections.append(_published_section(published) if is_judged else _descendants_section(published))
    return sections or [_section_of_the_run(facts, results)]


def _check_has(contents: Mapping[str, Any], what: str, *names: str) -> None:
    """Raise ValueError if figures lack some of what a section is made of."""
    if missing := [name for name in names if name not in contents]:
        raise ValueError(f"{what} lacks {', '.join(map(repr, missing))}; has it been written by another script?")


def _section_of_the_run(facts: TrainingFacts | ConversionFacts, results: Mapping[str, Any] | None) -> ResultSection:
    title = "Validation" if facts.is_classifier else "Held-out clips"
    if results is None:
        what = "videos that it was not trained on" if facts.is_classifier else "held-out clips"
        return ResultSection(title, f"Nothing was measured on {what}, so nothing is claimed.")
    return _validation_section(title, results) if facts.is_classifier else _explained_section(title, results)


def _explained_section(title: str, results: Mapping[str, Any]) -> ResultSection:
    _check_has(results, "the result", "dataset", "explained_share")
    shares = results["explained_share"]
    data = dataset_of(results["dataset"])
    figures = [
        EvalResult(
            **FEATURE_EXTRACTION,
            **data,
            metric_type="explained_share",
            metric_name=f"explained share of {name}",
            metric_value=share,
        )
        for name, share in shares.items()
    ]
    text = (
        "Explained share of each target: 1 - squared error / squared error of always predicting the training mean, "
        "over masked tokens that count. 0 is no better than the mean, negative is worse."
    )
    rows = [(name, f"{share:.3f}") for name, share in shares.items()]
    return ResultSection(title, text, ("target", "explained share"), rows, figures)


def _validation_section(title: str, results: Mapping[str, Any]) -> ResultSection:
    _check_has(results, "the result", "top1", "top5", "num_videos", "views", "dataset")
    videos = f"{public_value(results['dataset'])}, {counted(results['num_videos'], 'video')}"
    text = (
        f"On {videos}, {results['views']} views (in time x in space) of each, scores averaged. "
        "The model is the best of those that were judged during training, by these same videos: on others it may do "
        "worse."
    )
    figures = [_accuracy(results[name], _FIGURES[name], dataset_of(results["dataset"])) for name in ("top1", "top5")]
    row = (f"{results['top1']:.3f}", f"{results['top5']:.3f}")
    return ResultSection(title, text, ("top-1", "top-5"), [row], figures)


def _evaluation_section(config: MMEConfig, report: Mapping[str, Any]) -> ResultSection:
    needed = ("per_class", "eval_results", "dataset", "num_videos", "views")
    _check_has(report, "the evaluation", *needed)
    judged = [row["label"] for row in report["per_class"]]
    own = [config.id2label[number] for number in range(config.num_labels)]
    if judged != own:
        raise ValueError(
            f"the evaluation is of {len(judged)} classes, such as {judged[:3]}, the model has {len(own)}, such as "
            f"{own[:3]}. Give the evaluation of this model."
        )
    split = f", split {report['split']}" if report.get("split") else ""
    text = (
        f"By `examples/evaluate.py` on {public_value(report['dataset'])}{split}, "
        f"{counted(report['num_videos'], 'video')}, {report['views']} views (in time x in space) of each, scores "
        "averaged."
    )
    rows = [(words, f"{report[name]:.3f}") for name, words in _FIGURES.items() if name in report]
    if report.get("top1_by_seed"):
        by_seed = ", ".join(f"{value:.3f}" for value in report["top1_by_seed"])
        text += f" Figures are means over {len(report['top1_by_seed'])} seeds of training; top-1 of each: {by_seed}."
    if report.get("top1_interval"):
        low, high = report["top1_interval"]
        rows.insert(1, ("95 % interval of top-1 (Wilson, over videos)", f"{low:.3f} to {high:.3f}"))
    orders = {name: found for name, found in report.get("motion_sensitivity", {}).items() if name != "forwards"}
    rows += [(f"top-1, frames {order}", f"{found['top1']:.3f}") for order, found in orders.items()]
    figures = [EvalResult(**entry) for entry in report["eval_results"]]
    return ResultSection("Evaluation", text, ("figure", "value"), rows, figures)


def _published_section(published: PublishedModel) -> ResultSection:
    source = published_source()
    text = (
        f"Published by the authors, not measured with this package: [{source['name']}]({source['url']}). "
        f"{published.views} views (in time x in space) of each video, scores averaged."
    )
    if published.note:
        text += f" {published.note}"
    figure = _accuracy(
        round(published.top1_percent / 100, 4),
        f"top-1 accuracy, {published.views} views",
        dataset_of(published.data),
        source_name=source["name"],
        source_url=source["url"],
    )
    rows = [(published.data, f"{published.top1_percent:.1f} %")]
    return ResultSection("Published result", text, ("data set", "top-1"), rows, [figure])


def _descendants_section(published: PublishedModel) -> ResultSection:
    """Return what the authors' classifiers score that started from this pre-training; they are other checkpoints."""
    source = published_source()
    text = (
        f"Of classifiers that the authors fine-tuned from it, not measured with this package: "
        f"[{source['name']}]({source['url']})."
    )
    children = [model for model in published_models().values() if model.base == published.name]
    for note in dict.fromkeys(model.note for model in children if model.note):
        text += f" {' and '.join(model.data for model in children if model.note == note)}: {note}"
    rows = [(model.data, model.views, f"{model.top1_percent:.1f} %") for model in children]
    return ResultSection("Published results", text, ("fine-tuned on", "views", "top-1"), rows)


def _accuracy(value: float, words: str, data: Mapping[str, str], **source: str) -> EvalResult:
    return EvalResult(
        **VIDEO_CLASSIFICATION, **data, **source, metric_type="accuracy", metric_name=words, metric_value=value
    )
