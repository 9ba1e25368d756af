"""Model cards: what a checkpoint is, how it came to be and what it scored, all read from files beside its weights.

    python -m mme_hf.model_card outputs/finetune                                          # renders its README.md anew
    python -m mme_hf.model_card outputs/finetune --evaluation outputs/finetune/evaluation/eval_results.json

The second puts what `examples/evaluate.py` found on the card, in place of the results of training. With `--repository`
the card says under which name on the Hub the model is loaded.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import ModelCard, ModelCardData
from huggingface_hub.errors import StrictDataclassError

from .configuration_mme import MMEConfig
from .model_card_facts import (
    FACTS_FILE,
    ConversionFacts,
    TrainingFacts,
    current_versions,
    in_words,
    load_facts,
    local_name,
    public_command,
    public_settings,
    public_value,
    save_facts,
    training_facts,
)
from .model_card_results import FEATURE_EXTRACTION, VIDEO_CLASSIFICATION, ResultSection, result_sections
from .published_models import PublishedModel, published_license, published_model
from .video_processing_mme import MMEVideoProcessor
from .wording import counted

TEMPLATE = Path(__file__).with_name("model_card_template.md")
RESULTS_FILE = "eval_results.json"
_MAX_CLASSES_SHOWN = 50
_METHOD = "[Masked Motion Encoding](https://arxiv.org/abs/2210.06096)"
_DATA_TERMS = "Data sets have terms of their own, and so may what is trained on them: read those of {data}."


def write_model_card(
    folder: str | Path, facts: TrainingFacts | ConversionFacts, results: Mapping[str, Any] | None = None
) -> Path:
    """Write `README.md`, and beside it the facts and results that it is rendered from; return its path.

    Args:
        folder: Where model and processor are saved.
        facts: How the weights came to be.
        results: What was measured: `top1`, `top5`, `num_videos`, `views` and `dataset` of a classifier, or `dataset`
            and `explained_share` by target. None, if nothing was, removes an earlier file.
    """
    save_facts(folder, facts)
    path = Path(folder) / RESULTS_FILE
    if results is None:
        path.unlink(missing_ok=True)
    else:
        path.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    return render_model_card(folder)


def render_model_card(
    folder: str | Path, *, evaluation: Mapping[str, Any] | None = None, repository: str | None = None
) -> Path:
    """Write a folder's `README.md` from the other files in it, and return its path.

    Args:
        folder: With `config.json`, `video_preprocessor_config.json`, `model_card.json`, and `eval_results.json` if
            anything was measured.
        evaluation: What `examples/evaluate.py` found, to be shown instead of the results in the folder.
        repository: Name under which the checkpoint is loaded from now on; None to leave it as it is.

    Raises:
        ValueError: If a file is missing or broken, or the evaluation is of other classes than the model's.
    """
    facts = load_facts(folder)
    # Without the first, transformers would take the second for the model's configuration.
    for name in ("config.json", "video_preprocessor_config.json"):
        if not (Path(folder) / name).is_file():
            raise ValueError(f"{folder} has no {name}. Name the folder of a model and its processor.")
    if repository is not None:
        facts = dataclasses.replace(facts, repository=repository)
    path = Path(folder) / RESULTS_FILE
    card = model_card(
        config=MMEConfig.from_pretrained(folder),
        processor=MMEVideoProcessor.from_pretrained(folder),
        facts=facts,
        results=_read_json(path) if path.is_file() else None,
        evaluation=evaluation,
        has_remote_code=(Path(folder) / "modeling_mme.py").is_file(),
    )
    if repository is not None:
        save_facts(folder, facts)
    card.save(Path(folder) / "README.md")
    return Path(folder) / "README.md"


def model_card(
    *,
    config: MMEConfig,
    processor: MMEVideoProcessor,
    facts: TrainingFacts | ConversionFacts,
    results: Mapping[str, Any] | None = None,
    evaluation: Mapping[str, Any] | None = None,
    more_sections: Sequence[ResultSection] = (),
    has_remote_code: bool = False,
) -> ModelCard:
    """Return the card of a checkpoint, with the Hub's metadata on top and its figures in them as a model-index.

    Args:
        config: Of the model.
        processor: That makes its inputs.
        facts: How the weights came to be.
        results: As in `eval_results.json` of a run; None if nothing was measured.
        evaluation: As `examples/evaluate.py` writes it, shown instead of `results`; None for none.
        more_sections: Further figures, below these.
        has_remote_code: Whether the code that opens it lies beside it.

    Raises:
        ValueError: If the evaluation is of other classes than the model's.
    """
    published = _published(facts)
    sections = [*result_sections(config, facts, published, results, evaluation), *more_sections]
    card = ModelCard.from_template(
        _metadata(facts, published, sections),
        template_path=str(TEMPLATE),
        is_classifier=facts.is_classifier,
        repository=facts.repository,
        has_remote_code=has_remote_code,
        data=_data_text(config, processor, facts, published),
        classes=_classes_text(config) if facts.is_classifier else None,
        results=sections,
        license_text=_license_text(facts, published),
        **_origin(facts, published),
    )
    card.text = card.text.rstrip("\n") + "\n"
    return card


def _published(facts: TrainingFacts | ConversionFacts) -> PublishedModel | None:
    name = facts.published if isinstance(facts, ConversionFacts) else None
    return None if name is None else published_model(name)


def _metadata(
    facts: TrainingFacts | ConversionFacts, published: PublishedModel | None, sections: Sequence[ResultSection]
) -> ModelCardData:
    figures = [figure for section in sections for figure in section.figures if math.isfinite(figure.metric_value)]
    options: dict[str, Any] = {}
    if figures:
        options = {"model_name": Path(facts.repository).name or "mme", "eval_results": figures}
    if any(figure.metric_type == "accuracy" for figure in figures):
        options["metrics"] = ["accuracy"]
    if isinstance(facts, TrainingFacts):
        options |= {"license": facts.license, "datasets": [facts.dataset] if facts.dataset else None}
        if facts.base_model:
            options |= {"base_model": facts.base_model, "base_model_relation": "finetune"}
    else:
        options["license"] = published_license()["id"] if published else "unknown"
    task = VIDEO_CLASSIFICATION if facts.is_classifier else FEATURE_EXTRACTION
    return ModelCardData(
        library_name="transformers",
        pipeline_tag=task["task_type"],
        tags=["video", "masked-motion-encoding", "mme_hf"],
        **options,
    )


def _origin(facts: TrainingFacts | ConversionFacts, published: PublishedModel | None) -> dict[str, Any]:
    """Return title and summary of a card, and what its last section says of how the weights came to be."""
    if isinstance(facts, TrainingFacts):
        return {
            "title": f"Masked Motion Encoding, {_past(facts.task)} on {facts.data_name}",
            "summary": _summary(facts),
            "origin_title": "Run",
            "origin": facts.in_words(),
            "command": facts.command,
            "settings": _settings_rows(facts.settings),
        }
    left_out = f"; {counted(facts.left_out, 'tensor')} of it left out" if facts.left_out else ""
    versions = f", with {in_words(facts.versions)}" if facts.versions else ""
    origin = f"From `{facts.source}`, layout {facts.layout}{left_out}{versions}."
    if published is not None:
        origin += f"\n`examples/configs/{published.recipe}` is the recipe of its training in this package."
    name = f"{_past(published.task)} on {published.data}" if published else f"converted from {facts.source}"
    return {
        "title": f"Masked Motion Encoding, {name}",
        "summary": _summary(facts),
        "origin_title": "Conversion",
        "origin": origin,
        "command": facts.command,
        "settings": [],
    }


def _past(task: str) -> str:
    return "pre-trained" if task == "pretraining" else "fine-tuned"


def _summary(facts: TrainingFacts | ConversionFacts) -> str:
    start = ""
    if isinstance(facts, TrainingFacts):
        start = "random weights" if facts.start is None else f"the weights of `{facts.start}`"
    if facts.is_classifier:
        begun = f" Its training started from {start}." if start else ""
        return f"A video transformer ({_METHOD}) that tells classes of videos apart.{begun}"
    if facts.task == "encoder":
        return f"The encoder of a video transformer, for the model family of {_METHOD}."
    begun = f" Training started from {start}." if start else ""
    return (
        "A video transformer that was shown a part of the patches of a sparsely sampled clip and trained to predict "
        f"how the points in the hidden rest move, and what shape is around them ({_METHOD}). No labels were used."
        f"{begun}"
    )


def _data_text(
    config: MMEConfig,
    processor: MMEVideoProcessor,
    facts: TrainingFacts | ConversionFacts,
    published: PublishedModel | None,
) -> str:
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    strides = f"{processor.frame_stride} raw frames apart"
    sampling = strides if processor.frame_sampling == "dense" else "one of each of equal parts of the video"
    text = f"Clips of {processor.num_frames} frames, {sampling}, {height} x {width} pixels"
    if facts.task == "pretraining":
        targets = ", ".join(_target_text(name, target) for name, target in config.motion_targets.items())
        text += f"; {processor.mask_ratio:.0%} of the patches hidden; targets {targets}, from points followed over "
        text += f"{processor.trajectory_num_steps} raw frames"
        whose = "here by" if published else "by"
        text += f", {whose} the tracker `{processor.tracker}`"
        text += ", in training by the authors' own" if published else ""
    return f"{_data_words(facts, published)} {text}."


def _target_text(name: str, target: Mapping[str, Any]) -> str:
    of_all = ", those of visible patches too" if target.get("visible_weight") else ""
    return f"`{name}` ({target['size']} values{of_all})"


def _data_words(facts: TrainingFacts | ConversionFacts, published: PublishedModel | None) -> str:
    if isinstance(facts, TrainingFacts):
        videos = "a stream of videos" if facts.num_videos is None else counted(facts.num_videos, "video")
        return f"{facts.data_name}: {videos}."
    if published is None:
        return "What it was trained on is not known here."
    words = f"{published.data}, {published.num_epochs} epochs of training by the authors."
    if published.pretraining_data is not None:
        words += f" Pre-trained before on {published.pretraining_data}, {published.num_pretraining_epochs} epochs."
    return words


def _classes_text(config: MMEConfig) -> str:
    names = [config.id2label[number] for number in sorted(config.id2label)]
    if names == [f"LABEL_{number}" for number in range(len(names))]:
        return f"{len(names)}, whose names the checkpoint does not hold"
    return ", ".join(names[:_MAX_CLASSES_SHOWN]) + (", ..." if len(names) > _MAX_CLASSES_SHOWN else "")


def _license_text(facts: TrainingFacts | ConversionFacts, published: PublishedModel | None) -> str:
    if isinstance(facts, TrainingFacts):
        terms = _DATA_TERMS.format(data=facts.data_name)
        if facts.license is None:
            return (
                f"The weights that training started from, `{facts.start}`, decide under which licence these may be "
                f"used; it is not known here. {terms}"
            )
        return f"`{facts.license}`. {terms}"
    if published is None:
        return "That of the converted checkpoint, which the file does not tell: ask its authors."
    data = " and ".join(dict.fromkeys(filter(None, (published.data, published.pretraining_data))))
    return f"{published_license()['text']} {_DATA_TERMS.format(data=data)}"


def _settings_rows(settings: Mapping[str, Any]) -> list[tuple[str, str]]:
    # A bar would end the cell, a line break the table.
    rows = ((name, str(value)) for name, value in settings.items() if value not in (None, {}))
    return [(name, " ".join(value.replace("|", "\\|").split())) for name, value in rows]


def _read_json(path: Path) -> dict[str, Any]:
    try:
        contents = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{path} holds no JSON object.")
    return contents


def main(argv: Sequence[str] | None = None) -> None:
    """Render the card of a folder anew; a mistake ends it with one line."""
    parser = argparse.ArgumentParser(
        prog="python -m mme_hf.model_card",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("folder", help="Of a run or a conversion.")
    parser.add_argument("--evaluation", metavar="FILE", help="eval_results.json that examples/evaluate.py wrote.")
    parser.add_argument("--repository", metavar="NAME", help="Name on the Hub, where it is to be loaded from there.")
    args = parser.parse_args(argv)
    try:
        evaluation = _read_json(Path(args.evaluation)) if args.evaluation else None
        print(f"wrote {render_model_card(args.folder, evaluation=evaluation, repository=args.repository)}")
    except (ValueError, OSError, StrictDataclassError) as error:
        sys.exit(f"model_card: error: {' '.join(str(error).split())}")


__all__ = [
    "FACTS_FILE",
    "ConversionFacts",
    "TrainingFacts",
    "current_versions",
    "load_facts",
    "local_name",
    "main",
    "model_card",
    "public_command",
    "public_settings",
    "public_value",
    "render_model_card",
    "training_facts",
    "write_model_card",
]

if __name__ == "__main__":
    main()
