"""The motion targets themselves as features: what a model that predicted them without error would have to offer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from action_sets import ActionSet
from handmade import labelled
from objectives import FRAME_STRIDE
from transformers import BatchFeature

from mme_hf import MMEConfig, MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader
from mme_hf.data.records import load_manifest_records
from mme_hf.training.labelled_features import LabelledFeatures
from mme_hf.training.probes import run_probe

PROBES = ("linear", "attentive")


def judge_tracks(actions: ActionSet, num_views: int, config: MMEConfig) -> dict[str, Any]:
    """Return what probes of the measured motion of all tokens are right about, by the protocol of all probes.

    A token's displacements, as `position` labels them (those of lost tracks too), go through one layer of random
    weights, rectified: the mean over tokens would otherwise lose all but the mean motion.

    Args:
        actions: The set.
        num_views: Clips of a video, evenly spaced in time.
        config: Sizes of clips and features.

    Raises:
        ValueError: If a video cannot be read.
    """
    batches = {part: measured_clips(getattr(actions, part), num_views, config) for part in ("train", "test")}
    values = {part: torch.stack([clips["labels"] for clips in own]) for part, own in batches.items()}
    size = values["train"].shape[-1]
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(size, config.hidden_size, generator=generator) / size**0.5
    bias = 0.5 * torch.randn(config.hidden_size, generator=generator)
    tokens = {part: torch.relu(own @ weight + bias) for part, own in values.items()}
    *features, classes = labelled(actions, tokens)
    config.num_labels = len(classes)
    results = {}
    for name in PROBES:
        if name == "linear":
            train, test = (LabelledFeatures(own.values.mean(2), own.labels, own.groups) for own in features)
        else:
            train, test = features
        results[name] = vars(run_probe(name, train, test, config, seed=0))
    return {"set": actions.name, "tracks": results}


def measured_clips(manifest: Path, num_views: int, config: MMEConfig) -> Iterator[BatchFeature]:
    """Yield the clips of one video after the other: `pixel_values`, `labels` of `position`, and their `target_mask`.

    Args:
        manifest: Of the videos.
        num_views: Clips of a video, evenly spaced in time.
        config: Sizes of clips.
    """
    height, width = config.frame_size
    processor = MMEVideoProcessor(
        size={"shortest_edge": min(height, width)},
        crop_size={"height": height, "width": width},
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
    yield from (batch["inputs"] for batch in loader if batch["sources"])
