"""The authors' checkpoints: what they are and what they are said to score. All figures stand in one JSON file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, Literal

from .configuration_mme import MMEConfig
from .motion_targets_mme import REFERENCE_MOTION
from .presets import preset_config
from .video_processing_mme import MMEVideoProcessor

_FILE = Path(__file__).with_name("published_models.json")
# What tells one published checkpoint from another, of what can be read off its tensors.
_TELLING_FIELDS = ("hidden_size", "num_hidden_layers", "num_labels", "image_size", "num_frames")


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """One of the authors' checkpoints. All are ViT-B, of 16 frames of 224 x 224 pixels.

    Attributes:
        name: As `published_models()` lists it.
        task: What it was trained for.
        data: What it was trained on, in words.
        num_epochs: Of that training.
        recipe: File in `examples/configs` that repeats it.
        pretraining_data: What a classifier was pre-trained on before.
        num_pretraining_epochs: Of that pre-training.
        base: Name of the published pre-training that it started from; None where there is none.
        num_labels: Classes of a classifier.
        processor_options: Of MMEVideoProcessor, where the published input is not its default.
        views: With which it was judged, in time x in space.
        top1_percent: Its published top-1 accuracy.
        note: What the source of that figure leaves open.
    """

    name: str
    task: Literal["pretraining", "classification"]
    data: str
    num_epochs: int
    recipe: str
    pretraining_data: str | None = None
    num_pretraining_epochs: int | None = None
    base: str | None = None
    num_labels: int | None = None
    processor_options: Mapping[str, Any] = field(default_factory=dict)
    views: str | None = None
    top1_percent: float | None = None
    note: str | None = None

    def config(self) -> MMEConfig:
        """Return its configuration; a classifier's classes have no names."""
        if self.task == "classification":
            return preset_config("base", num_labels=self.num_labels)
        return preset_config("base", motion_targets=self.processor().motion_target_config())

    def processor(self) -> MMEVideoProcessor:
        """Return the processor that makes its inputs, and for pre-training its targets."""
        motion = REFERENCE_MOTION if self.task == "pretraining" else {}
        return MMEVideoProcessor(**{**motion, **self.processor_options})

    def check_fits(self, config: MMEConfig, *, task: str) -> None:
        """Raise ValueError if a checkpoint of this configuration and task cannot be this one; says why."""
        if task != self.task:
            raise ValueError(f"published ({self.name!r}) has the task {self.task}, the checkpoint {task}.")
        own, is_classifier = self.config(), task == "classification"
        fields = _TELLING_FIELDS if is_classifier else [name for name in _TELLING_FIELDS if name != "num_labels"]
        for name in fields:
            if getattr(own, name) != getattr(config, name):
                found = getattr(config, name)
                raise ValueError(f"published ({self.name!r}) has {name} {getattr(own, name)}, the checkpoint {found}.")


@cache
def published_models() -> dict[str, PublishedModel]:
    """Return the authors' checkpoints by name."""
    return {name: PublishedModel(name=name, **values) for name, values in _contents()["models"].items()}


def published_model(name: str) -> PublishedModel:
    """Return one of the authors' checkpoints.

    Raises:
        ValueError: If there is none of that name; names those there are.
    """
    if name not in published_models():
        raise ValueError(f"published ({name!r}) is unknown. Known: {', '.join(published_models())}.")
    return published_models()[name]


def published_source() -> dict[str, str]:
    """Return where the figures are from: `name` and `url`."""
    return _contents()["source"]


def published_license() -> dict[str, str]:
    """Return the licence of these checkpoints: `id`, as the Hub names it, and `text`, in plain words."""
    return _contents()["license"]


@cache
def _contents() -> dict[str, Any]:
    return json.loads(_FILE.read_text(encoding="utf-8"))
