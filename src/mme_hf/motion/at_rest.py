"""Points that stay where they are: a tracker for frames that are there for their shape alone."""

from collections.abc import Sequence

import torch

from ..trajectories_mme import Trajectories, is_inside


def track_at_rest(
    frames: torch.Tensor, points_xy: torch.Tensor, *, start_frames: Sequence[int] = (0,), num_steps: int
) -> Trajectories:
    """Return tracks without motion, see `Tracker`. It looks at no frame and needs no library, so it cannot fail."""
    frame_size = tuple(frames.shape[-2:])
    shape = (*frames.shape[:-4], len(start_frames), num_steps + 1, *points_xy.shape)
    positions = points_xy.expand(shape)
    return Trajectories(positions, is_inside(positions, frame_size), frame_size)
