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


def split_by_class(
    labels: torch.Tensor, groups: torch.Tensor | None, fraction: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return numbers of videos to fit to, and to choose by: of each class that share, one at least, at most half.

    Args:
        labels: Class of each video.
        groups: Groups that are not torn apart, unless no class could be chosen by otherwise; None for single videos.
        fraction: The share. Of groups the first that reach it are taken, in random order.
        generator: Of the order.

    Raises:
        ValueError: If no class has two videos.
    """
    counts = labels.bincount()
    wanted = (fraction * counts).round().clamp_min(1)
    taken = torch.zeros_like(counts)
    is_validation = torch.zeros(len(labels), dtype=torch.bool)
    groups = torch.arange(len(labels)) if groups is None else groups
    names = groups.unique()
    for group in names[torch.randperm(len(names), generator=generator)]:
        its = labels[groups == group].bincount(minlength=len(counts))
        is_needed = bool((taken < wanted)[its > 0].any())
        if is_needed and bool((2 * (taken + its) <= counts)[its > 0].all()):
            taken += its
            is_validation |= groups == group
    if is_validation.any():
        return (~is_validation).nonzero()[:, 0], is_validation.nonzero()[:, 0]
    if len(names) < len(labels):
        return split_by_class(labels, None, fraction, generator)
    raise ValueError("no class has two training videos: one to fit to and one to choose by.")
