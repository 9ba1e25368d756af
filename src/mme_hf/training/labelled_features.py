"""Features of labelled videos, and which of them a probe is fitted to and chosen by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class LabelledFeatures:
    """Features of labelled videos.

    Attributes:
        values: Shape (V, K, D), or (V, K, N, D) for an attentive probe.
        labels: Class of each video, int64, shape (V,).
        groups: Number of the group each video is of, int64, shape (V,); None where there are none.
    """

    values: torch.Tensor
    labels: torch.Tensor
    groups: torch.Tensor | None = None

    def __getitem__(self, videos: torch.Tensor) -> LabelledFeatures:
        """Return some of the videos, by number."""
        groups = None if self.groups is None else self.groups[videos]
        return LabelledFeatures(self.values[videos], self.labels[videos], groups)


def draw_shots(labels: torch.Tensor, shots: int, generator: torch.Generator, names: Mapping[int, str]) -> torch.Tensor:
    """Return the numbers of `shots` videos of each class, drawn without replacement, ascending.

    Args:
        labels: Class of each video.
        shots: Videos to draw of each.
        generator: To draw by.
        names: Of the classes, for the message.

    Raises:
        ValueError: If a class has fewer.
    """
    drawn = []
    for label in labels.unique().tolist():
        videos = (labels == label).nonzero()[:, 0]
        if len(videos) < shots:
            raise ValueError(
                f"shots ({shots}) is more than the {len(videos)} training videos of {names[label]!r}. Draw fewer."
            )
        drawn.append(videos[torch.randperm(len(videos), generator=generator)[:shots]])
    return torch.cat(drawn).sort().values


def folds_by_class(
    labels: torch.Tensor, groups: torch.Tensor | None, num_folds: int, generator: torch.Generator
) -> torch.Tensor:
    """Return the number of the fold that each video is of, each fold with a like share of every class.

    Groups are placed one after the other, large ones first and those of one size in random order, each in the fold that
    has least of its classes.

    Args:
        labels: Class of each video, shape (V,).
        groups: Groups that are not torn apart, unless most classes are in one alone; None for single videos.
        num_folds: How many; some stay empty where there are fewer groups.
        generator: Of the order.

    Raises:
        ValueError: If no class has two videos.
    """
    if groups is None or not groups_can_be_left_out(labels, groups):
        groups = torch.arange(len(labels))
    of_group, counts = _videos_by_group_and_class(labels, groups)
    if not (counts.sum(0) > 1).any():
        raise ValueError("no class has two training videos: one to fit to and one to choose by.")
    order = torch.randperm(len(counts), generator=generator)
    order = order[counts[order].sum(1).argsort(descending=True, stable=True)]
    shares = counts / counts.sum(0).clamp_min(1)
    placed = torch.zeros(num_folds, counts.shape[1], dtype=torch.float64)
    fold_of = torch.empty(len(counts), dtype=torch.int64)
    for group in order.tolist():
        overlap, size = placed @ shares[group], placed.sum(1)
        fold_of[group] = min(range(num_folds), key=lambda fold: (overlap[fold].item(), size[fold].item()))
        placed[fold_of[group]] += shares[group]
    return fold_of[of_group]


def groups_can_be_left_out(labels: torch.Tensor, groups: torch.Tensor) -> bool:
    """Return whether at least half of the classes with several videos have them in several groups."""
    _, counts = _videos_by_group_and_class(labels, groups)
    is_divided, has_several = (counts > 0).sum(0) > 1, counts.sum(0) > 1
    return bool(2 * is_divided.sum() >= has_several.sum())


def _videos_by_group_and_class(labels: torch.Tensor, groups: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which of the groups each video is of (V,), and how many videos of each class a group has (groups, C)."""
    names, of_group = groups.unique(return_inverse=True)
    counts = torch.zeros(len(names), int(labels.max()) + 1, dtype=torch.float64)
    counts.index_put_((of_group, labels), torch.ones((), dtype=torch.float64), accumulate=True)
    return of_group, counts
