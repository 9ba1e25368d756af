"""Small classifiers with random weights, and scripts as modules, for starting Python takes seconds."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from mme_hf import MMEConfig, MMEForVideoClassification, MMEVideoProcessor


def save_small_classifier(folder: Path, label_names: Sequence[str]) -> Path:
    """Save a classifier of 4 frames 2 apart of 32 px, with weights large enough for its guesses to differ."""
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    MMEVideoProcessor(num_frames=4, frame_stride=2, **size).save_pretrained(folder)
    names = dict(enumerate(label_names))
    torch.manual_seed(0)
    config = MMEConfig(
        image_size=32,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        initializer_range=0.5,
        id2label=names,
        label2id={name: number for number, name in names.items()},
    )
    MMEForVideoClassification(config).save_pretrained(folder)
    return folder


def load_script(path: Path) -> ModuleType:
    """Return an example as a module; its `main` is not run."""
    spec = importlib.util.spec_from_file_location(f"{path.stem}_script", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for it
    spec.loader.exec_module(module)
    return module
