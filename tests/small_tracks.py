"""Clips of four tokens, and tracks over them that move as a test says."""

from __future__ import annotations

import torch

from mme_hf.motion_clip_mme import MotionClip
from mme_hf.trajectories_mme import Trajectories, grid_points


def tracks_from(
    displacements: torch.Tensor, is_visible: torch.Tensor | None = None, size: tuple[int, int] = (16, 32)
) -> Trajectories:
    """Return tracks of the 8 px grid with given displacements (S, L, P, 2), seen everywhere unless told otherwise."""
    start = grid_points(*size).expand(displacements.shape[0], 1, -1, -1)
    points = torch.cat([start, start + displacements.cumsum(1)], dim=1)
    visible = torch.ones(points.shape[:-1], dtype=torch.bool) if is_visible is None else is_visible
    return Trajectories(points, visible, size)


def clip_of(num_frames: int = 4, size: tuple[int, int] = (16, 32), tubelet_size: int = 2) -> MotionClip:
    """Return a black clip in tokens of 16 px."""
    return MotionClip(torch.zeros(num_frames, 3, *size), patch_size=16, tubelet_size=tubelet_size)
