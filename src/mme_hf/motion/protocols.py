"""What a tracker and an optical flow promise."""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch

from ..trajectories_mme import Trajectories


class Tracker(Protocol):
    """Follows points over raw frames. Picklable, without state between calls; its repr shows name and options.

    Attributes:
        name: Key in `TRACKERS`.
        options: What `build_tracker(name, **options)` needs to make an equal tracker.
    """

    name: str
    options: Mapping[str, Any]

    def __call__(
        self, frames: torch.Tensor, points_xy: torch.Tensor, *, start_frames: Sequence[int] = (0,), num_steps: int
    ) -> Trajectories:
        """Return the tracks of all points from every start frame.

        Args:
            frames: Raw frames, uint8 RGB, shape (..., T, 3, H, W).
            points_xy: Points to follow, in pixels, shape (P, 2).
            start_frames: Frames that tracks start at, S of them.
            num_steps: Displacements per track, L.

        Returns:
            Positions of shape (..., S, L + 1, P, 2), and where they are visible. Visible points have finite positions,
            and once lost a point stays lost. Positions of lost points may be anything, nan too. Where a target
            reads lost points at all (the published token_rule "any" and validity "read_positions"), nan is rest.
        """


class OpticalFlow(Protocol):
    """Dense motion between two frames of a clip.

    May also have `works_on_cpu`, True where frames of another device are copied to the CPU, and `prepare()`, which
    loads weights and raises ImportError or RuntimeError if they, or a library, are missing.

    Attributes:
        name: Key in `TRACKERS`.
    """

    name: str

    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return the flow from the first to the second frame of every pair.

        Args:
            frames: uint8 RGB, shape (..., T, 3, H, W).
            pairs: Indices of frames.

        Returns:
            Flow in pixels, x then y, float32, shape (..., len(pairs), 2, H, W).
        """
