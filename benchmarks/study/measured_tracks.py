"""The motion targets themselves as features, without the places of tokens: what motion alone says of actions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from action_sets import ActionSet, read_lines
from handmade import labelled
from objectives import FRAME_STRIDE
from transformers import BatchFeature

from mme_hf import MMEConfig, MMEVideoProcessor, open_video
from mme_hf.data.augmentation import center_crop_box
from mme_hf.data.labelled_clips import crop_corners
from mme_hf.training.labelled_features import LabelledFeatures
from mme_hf.training.probes import run_probe
from mme_hf.video.sampling import evenly_spaced_starts

PROBES = ("linear", "attentive")


def judge_tracks(actions: ActionSet, num_views: int, num_crops: int, config: MMEConfig) -> dict[str, Any]:
    """Return what probes of the measured motion of all tokens are right about, by the protocol of all probes.

    A token's displacements, as `position` labels them (those of lost tracks too), go through one layer of random
    weights, rectified: the mean over tokens would otherwise lose all but the mean motion.

    Args:
        actions: The set.
        num_views: Clips of a video, evenly spaced in time.
        num_crops: Of each of these, along the longer side.
        config: Sizes of clips and features.

    Raises:
        VideoReadError: If a video cannot be read.
    """
    batches = {part: measured_clips(getattr(actions, part), num_views, num_crops, config) for part in ("train", "test")}
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


def measured_clips(manifest: Path, num_views: int, num_crops: int, config: MMEConfig) -> Iterator[BatchFeature]:
    """Yield the clips of one video after the other: `pixel_values`, `labels` of `position`, and their `target_mask`.

    Args:
        manifest: Of the videos.
        num_views: Clips of a video, evenly spaced in time.
        num_crops: Of each of these, evenly spaced along the longer side.
        config: Sizes of clips.

    Raises:
        VideoReadError: If a video cannot be read.
    """
    height, width = config.frame_size
    processor = MMEVideoProcessor(
        crop_size={"height": height, "width": width},
        num_frames=config.num_frames,
        frame_stride=FRAME_STRIDE,
        motion_targets=["position"],
    )
    for line in read_lines(manifest):
        with open_video(line["path"]) as video:
            frames = video.frames_at(range(video.num_frames))
        window = min(len(frames), processor.raw_window_for(len(frames)))
        _, _, box_width, box_height = center_crop_box(*frames.shape[-2:], width / height)
        corners = crop_corners(tuple(frames.shape[-2:]), (box_height, box_width), num_crops)
        views = [
            (frames[start : start + window], (left, top, box_width, box_height))
            for start in evenly_spaced_starts(len(frames), window, num_views)
            for top, left in corners
        ]
        clips, boxes = zip(*views, strict=True)
        yield processor(list(clips), crop_box=list(boxes), return_targets=True, return_tensors="pt")
