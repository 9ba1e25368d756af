"""What every motion target is given, and how cells and points of a frame become the values of a token."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from .point_tracking_mme import constant_on
from .trajectories_mme import Trajectories

TokenRule = Literal["all", "any"]
PointValidity = Literal["every_position", "read_positions"]
_CHOICES = {"token_rule": ("all", "any"), "validity": ("every_position", "read_positions")}


@dataclass
class MotionClip:
    """The input frames of a clip (or a batch), as the model sees them, and the raw frames they were taken from.

    Attributes:
        pixel_values: Normalised frames, shape (..., T, C, H, W).
        patch_size: Side of a token in pixels.
        tubelet_size: Frames of a token.
        raw_frames: Frames that tracks run over, cropped and resized but not normalised, uint8 in [0, 255],
            shape (..., R, C, H, W); None where no target reads them.
        input_frames: Which of `raw_frames` the input frames are.
        start_frames: Which of `raw_frames` tracks start at, one per tubelet.
        channel_scales: Of each channel, what one grey level of a raw frame is worth in `pixel_values`.
    """

    pixel_values: torch.Tensor
    patch_size: int
    tubelet_size: int
    raw_frames: torch.Tensor | None = None
    input_frames: Sequence[int] = ()
    start_frames: Sequence[int] = ()
    channel_scales: Sequence[float] = ()

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tubelets, rows and columns of tokens."""
        num_frames, _, height, width = self.pixel_values.shape[-4:]
        return num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def raw_frames_at(self, target_name: str, indices: Sequence[int]) -> torch.Tensor:
        """Return raw frames in a given order, uint8 (..., len(indices), C, H, W).

        Raises:
            ValueError: If the clip holds none.
        """
        if self.raw_frames is None or not len(indices):
            raise ValueError(
                f"{target_name} is made from raw frames, and the clip has none. Give MotionClip raw_frames, "
                "input_frames, start_frames and channel_scales, as MMEVideoProcessor does."
            )
        return self.raw_frames.index_select(-4, constant_on(self.raw_frames.device, indices))

    def seen_frames(self, target_name: str) -> torch.Tensor:
        """Return the second frame of each tubelet (the only one where there is one), uint8 (..., S, C, H, W)."""
        return self.raw_frames_at(target_name, self.input_frames[min(1, self.tubelet_size - 1) :: self.tubelet_size])


class TargetConfig(Protocol):
    """What a target may ask to know its size: a processor, or anything with these four numbers."""

    num_channels: int
    patch_size: int
    tubelet_size: int
    trajectory_num_steps: int


def check_head(name: str, activation: str, weight: float, visible_weight: float = 0.0) -> None:
    """Raise ValueError unless a head can end in `activation` and losses be given these weights."""
    if activation not in ("linear", "sigmoid", "tanh"):
        raise ValueError(f"{name}: activation ({activation!r}) must be 'linear', 'sigmoid' or 'tanh'.")
    for option, value in (("weight", weight), ("visible_weight", visible_weight)):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
            raise ValueError(f"{name}: {option} ({value!r}) must be a finite number of at least 0.")


def check_choice(name: str, option: str, value: str, allowed: Sequence[str] | None = None) -> None:
    """Raise ValueError unless the value of an option is one of those allowed."""
    allowed = _CHOICES[option] if allowed is None else allowed
    if value not in allowed:
        raise ValueError(f"{name}: {option} ({value!r}) must be one of {list(allowed)}.")


def check_num_bins(name: str, num_bins: int) -> None:
    """Raise ValueError unless a histogram can have that many bins."""
    if isinstance(num_bins, bool) or not isinstance(num_bins, int) or num_bins < 2:
        raise ValueError(f"{name}: num_bins ({num_bins!r}) must be a whole number of at least 2, such as 9.")


def cells_per_side(patch_size: int, cell_size_px: int) -> int:
    """Return how many cells lie along a side of a token.

    Raises:
        ValueError: If they do not fill it.
    """
    if cell_size_px < 1 or patch_size % cell_size_px:
        raise ValueError(
            f"patch_size ({patch_size}) does not divide by cell_size_px ({cell_size_px}). "
            "Choose a cell_size_px that divides patch_size."
        )
    return patch_size // cell_size_px


def tokens_from_cells(cells: torch.Tensor, side: int) -> torch.Tensor:
    """Return the values of each token's cells side by side, shape (..., N, values * side * side).

    Args:
        cells: Values of every cell of a frame, shape (..., tubelets, values, rows, columns).
        side: Cells along a side of a token.
    """
    cells = cells.unflatten(-1, (-1, side)).unflatten(-3, (-1, side))
    lead = cells.ndim - 6
    order = (*range(lead), lead, lead + 2, lead + 4, lead + 1, lead + 3, lead + 5)  # T' R C values row column
    return cells.permute(order).flatten(-3).flatten(-4, -2)


def point_grid(clip: MotionClip, trajectories: Trajectories, cell_size_px: int) -> tuple[int, int]:
    """Return rows and columns of a clip's points.

    Raises:
        ValueError: If the tracks do not start at every tubelet or lie on another grid.
    """
    num_frames, _, height, width = clip.pixel_values.shape[-4:]
    grid = (height // cell_size_px, width // cell_size_px)
    expected = (num_frames // clip.tubelet_size, grid[0] * grid[1])
    starts_and_points = (trajectories.points_xy.shape[-4], trajectories.points_xy.shape[-2])
    if starts_and_points != expected or tuple(trajectories.frame_size) != (height, width):
        raise ValueError(
            f"trajectories have {starts_and_points[0]} starts of {starts_and_points[1]} points in frames of "
            f"{tuple(trajectories.frame_size)}; the clip needs {expected[0]} starts (one per tubelet) of "
            f"{expected[1]} points ({grid[0]} x {grid[1]} cells of {cell_size_px} px) in {(height, width)}."
        )
    return grid


def valid_points(trajectories: Trajectories, validity: PointValidity) -> torch.Tensor:
    """Return which points are seen at all positions that `validity` names, bool (..., S, P)."""
    visible = trajectories.is_visible
    return (visible if validity == "every_position" else visible[..., :-1, :]).all(dim=-2)


def tokens_that_count(valid: torch.Tensor, grid: tuple[int, int], side: int, token_rule: TokenRule) -> torch.Tensor:
    """Return which tokens count, bool (..., N), given which points (..., S, P) are valid."""
    points = tokens_from_cells(valid.unflatten(-1, grid).unsqueeze(-3), side)  # (..., N, points)
    return points.all(-1) if token_rule == "all" else points.any(-1)
