"""Features made by hand, judged as the learned ones are: histograms of gradients (HOG) and of optical flow (HOF)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from action_sets import ActionSet, numbered, read_lines

from mme_hf import MMEConfig, histogram_of_gradients, open_video
from mme_hf.motion import DISFlow
from mme_hf.training.labelled_features import LabelledFeatures
from mme_hf.training.probes import run_probe

HANDMADE = ("hog", "hof", "hog_hof")
NUM_HANDMADE_SEEDS = 3
# Parts of a video in time, rows and columns that flow is gathered in.
_FLOW_PARTS = (4, 3, 3)
_HOG_PARTS = (4, 4)
_NUM_BINS = 8
_SLOW_PX = 0.4  # what moves less has a bin of its own


def judge_handmade(actions: ActionSet) -> dict[str, Any]:
    """Return what linear probes of each kind of features are right about, by the protocol of all probes."""
    parts = {part: _features(getattr(actions, part)) for part in ("train", "test")}
    results = {}
    for name in HANDMADE:
        values = {
            part: torch.cat([found[kind] for kind in name.split("_")], dim=1)[:, None] for part, found in parts.items()
        }
        train, test, classes = labelled(actions, values)
        config = MMEConfig(hidden_size=train.values.shape[-1], num_attention_heads=1, num_labels=len(classes))
        found = [run_probe("linear", train, test, config, seed=seed) for seed in range(NUM_HANDMADE_SEEDS)]
        results[name] = [vars(result) for result in found]
    return {"set": actions.name, "handmade": results}


def labelled(
    actions: ActionSet, values: Mapping[str, torch.Tensor]
) -> tuple[LabelledFeatures, LabelledFeatures, list[str]]:
    """Return features of the training and of the test videos, and the names of the classes.

    Args:
        actions: The set.
        values: Of "train" and "test": a row for each line of the manifest.

    Raises:
        ValueError: If there are more or fewer.
    """
    lines = {part: read_lines(getattr(actions, part)) for part in values}
    for part, own in lines.items():
        if len(own) != len(values[part]):
            raise ValueError(f"{actions.name}: {len(values[part])} of the {len(own)} {part} videos could be read.")
    classes = sorted({line["label"] for line in lines["train"]})
    labels = {part: torch.tensor([classes.index(line["label"]) for line in own]) for part, own in lines.items()}
    # In the order in which examples/probe.py numbers them: a seed then makes the same folds of all features.
    numbers = torch.tensor(numbered(line["group"] for line in lines["train"]))
    train = LabelledFeatures(values["train"], labels["train"], numbers)
    return train, LabelledFeatures(values["test"], labels["test"]), classes


def _features(manifest: Path) -> dict[str, torch.Tensor]:
    hog, hof = [], []
    for line in read_lines(manifest):  # one video at a time: their frames together are gigabytes
        with open_video(line["path"]) as video:
            frames = video.frames_at(range(video.num_frames))
        hog.append(_root(hog_of(frames)))
        hof.append(_root(hof_of(frames)))
    return {"hog": torch.stack(hog), "hof": torch.stack(hof)}


def hog_of(frames: torch.Tensor) -> torch.Tensor:
    """Return the histogram of gradients of the middle frame of a video (T, 3, H, W), in parts of the frame."""
    middle = frames[len(frames) // 2][None].float() / 255
    height, width = (side - side % 8 for side in middle.shape[-2:])
    cells = histogram_of_gradients(middle[..., :height, :width], num_bins=9, cell_size_px=8)[0]
    colours = cells.unflatten(0, (3, 9)).sum(0)[None]  # (1, 9, rows, columns)
    return torch.nn.functional.adaptive_avg_pool2d(colours, _HOG_PARTS).flatten()


def hof_of(frames: torch.Tensor) -> torch.Tensor:
    """Return the histogram of flow directions of a video (T, 3, H, W), in parts of its time and frame."""
    pairs = [(first, first + 1) for first in range(len(frames) - 1)]
    flow = torch.cat([DISFlow()(frames, pairs[start : start + 32]) for start in range(0, len(pairs), 32)])
    votes = direction_votes(flow.movedim(1, -1)).movedim(-1, 0)
    return torch.nn.functional.adaptive_avg_pool3d(votes[None], _FLOW_PARTS).flatten()


def direction_votes(displacements: torch.Tensor) -> torch.Tensor:
    """Return what displacements (..., 2) in pixels a frame add to a histogram of directions, shape (..., 9).

    A displacement votes for its direction by its length; a slow one for the last bin, by 1.
    """
    speed = displacements.norm(dim=-1)
    x, y = displacements.unbind(-1)
    bins = (torch.atan2(y, x) / (2 * torch.pi) % 1 * _NUM_BINS).long().clamp_max(_NUM_BINS - 1)
    votes = torch.zeros(*speed.shape, _NUM_BINS + 1).scatter_(-1, bins[..., None], speed[..., None])
    is_slow = speed < _SLOW_PX
    votes *= ~is_slow[..., None]
    votes[..., -1] = is_slow.float()
    return votes


def _root(histogram: torch.Tensor) -> torch.Tensor:
    # Hellinger's: large counts decide less.
    return (histogram / histogram.sum().clamp_min(1e-12)).sqrt()
