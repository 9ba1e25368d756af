"""The motion targets themselves as features: what a model that predicted them without error would have to offer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from action_sets import ActionSet, read_lines
from objectives import FRAME_STRIDE

from mme_hf import MMEVideoProcessor, preset_config
from mme_hf.data import ClipSampling, build_clip_loader
from mme_hf.data.records import load_manifest_records
from mme_hf.training.labelled_features import LabelledFeatures
from mme_hf.training.probes import run_probe

PROBES = ("linear", "attentive")
_PRESET = "tiny"


def judge_tracks(actions: ActionSet, num_views: int) -> dict[str, Any]:
    """Return what probes of the measured motion of all tokens are right about, by the protocol of all probes.

    A token's displacements, as `position` labels them, go through one layer of random weights, rectified: the mean over
    tokens would otherwise lose all but the mean motion.

    Args:
        actions: The set.
        num_views: Clips of a video, evenly spaced in time.
    """
    config = preset_config(_PRESET)
    generator = torch.Generator().manual_seed(0)
    values_of = {part: _labels(getattr(actions, part), num_views) for part in ("train", "test")}
    size = values_of["train"].shape[-1]
    weight = torch.randn(size, config.hidden_size, generator=generator) / size**0.5
    bias = 0.5 * torch.randn(config.hidden_size, generator=generator)
    lines = {part: read_lines(getattr(actions, part)) for part in values_of}
    classes, groups = (sorted({line[name] for line in lines["train"]}) for name in ("label", "group"))
    tokens = {}
    for part, values in values_of.items():
        labels = torch.tensor([classes.index(line["label"]) for line in lines[part]])
        numbers = torch.tensor([groups.index(line["group"]) for line in lines[part]]) if part == "train" else None
        tokens[part] = LabelledFeatures(torch.relu(values @ weight + bias), labels, numbers)
    config.num_labels = len(classes)
    results = {}
    for name in PROBES:
        features = tokens
        if name == "linear":
            features = {
                part: LabelledFeatures(own.values.mean(2), own.labels, own.groups) for part, own in tokens.items()
            }
        results[name] = vars(run_probe(name, features["train"], features["test"], config, seed=0))
    return {"set": actions.name, "tracks": results}


def _labels(manifest: Path, num_views: int) -> torch.Tensor:
    """Return the labels of `position` of every video's clips, shape (videos, clips, tokens, values)."""
    config = preset_config(_PRESET)
    processor = MMEVideoProcessor(
        size={"shortest_edge": config.image_size},
        crop_size={"height": config.image_size, "width": config.image_size},
        num_frames=config.num_frames,
        frame_stride=FRAME_STRIDE,
        motion_targets=["position"],
    )
    loader = build_clip_loader(
        load_manifest_records(manifest),
        processor,
        batch_size=num_views,
        sampling=ClipSampling(samples_per_video=num_views, is_random=False),
        num_workers=2,
        shuffle=False,
        num_epochs=1,
    )
    batches = list(loader)
    bad_videos = [bad for batch in batches for bad in batch["bad_videos"]]
    if bad_videos:
        raise ValueError(f"{manifest} names videos that cannot be read: {bad_videos}")
    return torch.stack([batch["inputs"]["labels"] for batch in batches])
