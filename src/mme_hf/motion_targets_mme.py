"""What the model has to predict: frames and trajectories in, one vector per token out.

A target is one class and one line in `MOTION_TARGETS`. It knows nothing of the model, of videos or of trackers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import torch
import torch.nn.functional as F

from .trajectories_mme import Trajectories, check_options

# Pixels that one pass of the histogram works on: 3 planes of 224 x 224. Its handful of buffers stays in the cache.
_PIXELS_PER_PASS = 3 * 224 * 224


@dataclass
class MotionClip:
    """The input frames of a clip (or a batch), as the model sees them.

    Attributes:
        pixel_values: Normalised frames, shape (..., T, C, H, W).
        patch_size: Side of a token in pixels.
        tubelet_size: Frames of a token.
    """

    pixel_values: torch.Tensor
    patch_size: int
    tubelet_size: int


class TargetConfig(Protocol):
    """What a target may ask to know its size: a processor, or anything with these four numbers."""

    num_channels: int
    patch_size: int
    tubelet_size: int
    trajectory_num_steps: int


class MotionTarget(Protocol):
    """One thing to predict for every token.

    Attributes:
        name: Key in `MOTION_TARGETS`.
        activation: Head activation that can express the values: "linear", "sigmoid" or "tanh".
        weight: Default weight of its mean squared error in the loss.
        needs_trajectories: Whether the call reads its second argument; where no target does, nothing is tracked.
    """

    name: ClassVar[str]
    needs_trajectories: ClassVar[bool]
    activation: str
    weight: float

    def size(self, config: TargetConfig) -> int:
        """Return the number of values per token."""

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values, float32 (..., N, size), and which tokens count, bool (..., N)."""


@torch.no_grad()
def histogram_of_gradients(video: torch.Tensor, num_bins: int = 9, cell_size_px: int = 8) -> torch.Tensor:
    """Return a histogram of unsigned gradient orientations for every cell and channel, not block-normalised.

    The magnitude of each pixel's Sobel gradient is shared linearly between the two bins nearest to its orientation
    (bin k sits at k * pi / num_bins, wrapping round) and averaged over the cell.

    Args:
        video: Frames, any floating or integer dtype, shape (..., T, C, H, W).
        num_bins: Orientation bins over half a turn.
        cell_size_px: Side of a cell in pixels; height and width are multiples of it.

    Returns:
        Float32 histograms, channel-major (channel * num_bins + bin),
        shape (..., T, C * num_bins, H / cell_size_px, W / cell_size_px).

    Raises:
        ValueError: If the frames do not divide into cells.

    Source: Masked Motion Encoding, shape target. Differs in being exact: the published code biases its filters at
        random and loses the votes of gradients that point exactly along a bin.
    """
    if video.ndim < 4:
        raise ValueError(f"video has shape {tuple(video.shape)}; it must be (..., frames, channels, height, width).")
    height, width = video.shape[-2:]
    if cell_size_px < 1 or num_bins < 2 or height % cell_size_px or width % cell_size_px:
        raise ValueError(
            f"frames of {height}x{width} do not divide into cells of cell_size_px ({cell_size_px}), or num_bins "
            f"({num_bins}) is below 2. Choose a cell_size_px that divides height and width."
        )
    planes = video.reshape(-1, height, width)
    # Cache-sized pieces pay off on the CPU only; an accelerator wants everything in one launch.
    planes_per_pass = max(1, _PIXELS_PER_PASS // (height * width)) if video.device.type == "cpu" else len(planes)
    pieces = [_vote(piece.float(), num_bins, cell_size_px) for piece in planes.split(max(1, planes_per_pass))]
    histograms = torch.cat(pieces)  # (..., bins, H / cell, W / cell)
    return histograms.reshape(*video.shape[:-3], video.shape[-3] * num_bins, *histograms.shape[-2:])


def _vote(planes: torch.Tensor, num_bins: int, cell_size_px: int) -> torch.Tensor:
    """Return histograms (planes, bins, H / cell, W / cell) of float32 planes (planes, H, W)."""
    gradient_x, gradient_y = _sobel(planes)
    magnitude = (gradient_x * gradient_x).addcmul_(gradient_y, gradient_y).sqrt_()
    # Turning every gradient to the upper half plane makes the phase unsigned; sign(0) = 0 sends both ends to bin 0.
    phase = torch.atan2(gradient_y.abs(), gradient_x.mul_(gradient_y.sign())).mul_(num_bins / math.pi)

    # The triangular share of bin k is clamp(phase - k + 1, 0, 1) - clamp(phase - k, 0, 1): ramps summed over cells and
    # differences taken on the small pooled arrays replace indices and scatters.
    sums = [_sum_rows(magnitude, cell_size_px)]
    ramp = torch.empty_like(phase)
    for position in range(num_bins):
        torch.sub(phase, position, out=ramp).clamp_(0, 1).mul_(magnitude)
        sums.append(_sum_rows(ramp, cell_size_px))
    ramps = torch.stack(sums, dim=1).unflatten(-1, (-1, cell_size_px)).sum(-1)  # (planes, bins + 1, rows, columns)
    shares = -ramps.diff(dim=1)
    shares[:, 0] += ramps[:, -1]  # beyond the last bin comes the first again
    return shares.clamp_(min=0).mul_(1 / cell_size_px**2)


def _sobel(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    padded = F.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = (padded[:, :-2] + padded[:, 2:]).add_(padded[:, 1:-1], alpha=2)
    columns = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    return rows[..., :-2] - rows[..., 2:], columns[:, :-2] - columns[:, 2:]


def _sum_rows(planes: torch.Tensor, cell_size_px: int) -> torch.Tensor:
    return planes.unflatten(-2, (-1, cell_size_px)).sum(-2)


def _check_activation(name: str, activation: str) -> None:
    if activation not in ("linear", "sigmoid", "tanh"):
        raise ValueError(f"{name}: activation ({activation!r}) must be 'linear', 'sigmoid' or 'tanh'.")


def _tokens_from_cells(cells: torch.Tensor, cells_per_side: int) -> torch.Tensor:
    """Return per-token vectors (..., N, values * side * side) from cells (..., T', values, rows, columns)."""
    cells = cells.unflatten(-1, (-1, cells_per_side)).unflatten(-3, (-1, cells_per_side))
    lead = cells.ndim - 6
    order = (*range(lead), lead, lead + 2, lead + 4, lead + 1, lead + 3, lead + 5)  # T' R C values row column
    return cells.permute(order).flatten(-3).flatten(-4, -2)


def _cells_per_side(patch_size: int, cell_size_px: int) -> int:
    if cell_size_px < 1 or patch_size % cell_size_px:
        raise ValueError(
            f"patch_size ({patch_size}) does not divide by cell_size_px ({cell_size_px}). "
            "Choose a cell_size_px that divides patch_size."
        )
    return patch_size // cell_size_px


@dataclass(frozen=True)
class ShapeTarget:
    """Histogram of gradients of the second frame of each tubelet.

    Index of a value: ((channel * bins + bin) * 2 + cell row) * 2 + cell column.

    Attributes:
        num_bins: Orientation bins.
        cell_size_px: Side of a histogram cell in pixels.
        activation: Head activation. Values reach 5 on real clips, so "linear"; the published code uses "sigmoid".
        weight: Default weight in the loss: for a predictor of the mean, shape then costs as much as position (error
            per value 0.03 and 0.6 on 46 real clips at 224 px, 0.05 and 0.5 at 112 px).

    Source: Masked Motion Encoding, section 3, z^s, as published: at the token itself, not along the track.
    """

    name: ClassVar[str] = "shape"
    needs_trajectories: ClassVar[bool] = False
    num_bins: int = 9
    cell_size_px: int = 8
    activation: str = "linear"
    weight: float = 15.0

    def __post_init__(self):
        _check_activation(self.name, self.activation)

    def size(self, config: TargetConfig) -> int:
        """Return channels * bins * cells per token."""
        return config.num_channels * self.num_bins * _cells_per_side(config.patch_size, self.cell_size_px) ** 2

    def __call__(self, clip: MotionClip, trajectories: Trajectories | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return histograms per token, float32 (..., N, size), and True for every token, bool (..., N)."""
        frames = clip.pixel_values[..., min(1, clip.tubelet_size - 1) :: clip.tubelet_size, :, :, :]
        histograms = histogram_of_gradients(frames, self.num_bins, self.cell_size_px)
        values = _tokens_from_cells(histograms, _cells_per_side(clip.patch_size, self.cell_size_px))
        return values, torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)


@dataclass(frozen=True)
class PositionTarget:
    """Displacements along the tracks of a token's points.

    Index of a value: ((component * L + step) * 2 + point row) * 2 + point column, component 0 being x.
    Displacements are in pixels per raw frame, limited to +-max_displacement_px and divided by scale_px.

    Attributes:
        scale_px: Displacement that becomes 1; None for 1/112 of the frame's shorter side (2 px at 224, 1 px at 112),
            so that labels do not depend on the resolution and those of moving tokens are of order 1.
        max_displacement_px: Limit of a displacement before scaling, pixels per raw frame.
        normalization: "fixed" is the division alone. "patch_std" then takes off the mean of the token's points for
            each component and step and divides by their unbiased standard deviation + 1e-6; it erases translation.
        token_rule: A token counts when "all" its points are valid, or "any" of them.
        validity: A point is valid when seen at "every_position" of its track, or at those that flow was read at
            ("read_positions": the arrival after the last step is not checked).
        activation: Head activation.
        weight: Default weight in the loss.

    Source: Masked Motion Encoding, section 3, z^p. The published numerics are in `REFERENCE_MOTION`.
    """

    name: ClassVar[str] = "position"
    needs_trajectories: ClassVar[bool] = True
    cell_size_px: int = 8
    scale_px: float | None = None
    max_displacement_px: float = 20.0
    normalization: Literal["fixed", "patch_std"] = "fixed"
    token_rule: Literal["all", "any"] = "all"
    validity: Literal["every_position", "read_positions"] = "every_position"
    activation: str = "linear"
    weight: float = 1.0

    def __post_init__(self):
        _check_activation(self.name, self.activation)
        if (self.scale_px is not None and self.scale_px <= 0) or self.max_displacement_px <= 0:
            raise ValueError(
                f"position: scale_px ({self.scale_px}) and max_displacement_px ({self.max_displacement_px}) must be "
                "above 0."
            )
        choices = {
            "normalization": ("fixed", "patch_std"),
            "token_rule": ("all", "any"),
            "validity": ("every_position", "read_positions"),
        }
        for field, allowed in choices.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"position: {field} ({getattr(self, field)!r}) must be one of {list(allowed)}.")

    def size(self, config: TargetConfig) -> int:
        """Return 2 components * steps * points per token.

        Raises:
            ValueError: With "patch_std" and one point per token, which has no standard deviation.
        """
        if self.normalization == "patch_std" and config.patch_size == self.cell_size_px:
            raise ValueError(
                f"position: normalization 'patch_std' needs more than one point per token: cell_size_px "
                f"({self.cell_size_px}) must be below patch_size ({config.patch_size})."
            )
        return 2 * config.trajectory_num_steps * _cells_per_side(config.patch_size, self.cell_size_px) ** 2

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return displacements per token, float32 (..., N, size), and which tokens count, bool (..., N).

        Args:
            clip: Input frames; only their token sizes are used.
            trajectories: One start per tubelet, one point per cell, row by row.

        Raises:
            ValueError: If the tracks do not start at every tubelet or lie on another grid.
        """
        grid = self._check(clip, trajectories)
        side = _cells_per_side(clip.patch_size, self.cell_size_px)
        limit = self.max_displacement_px
        scale = self.scale_in(trajectories.frame_size)
        motion = trajectories.displacements.float().clamp(-limit, limit) / scale  # (..., S, L, P, 2)
        cells = motion.movedim(-1, -3).flatten(-3, -2).unflatten(-1, grid)  # (..., S, 2 * L, rows, columns)
        values = _tokens_from_cells(cells, side)
        if self.normalization == "patch_std":
            points = values.unflatten(-1, (-1, side * side))
            centred = points - points.mean(-1, keepdim=True)
            values = (centred / (points.std(-1, keepdim=True) + 1e-6)).flatten(-2)

        visible = trajectories.is_visible
        valid = (visible if self.validity == "every_position" else visible[..., :-1, :]).all(dim=-2)  # (..., S, P)
        points_valid = _tokens_from_cells(valid.unflatten(-1, grid).unsqueeze(-3), side)  # (..., N, points)
        return values, points_valid.all(-1) if self.token_rule == "all" else points_valid.any(-1)

    def displacements(self, values: torch.Tensor, num_steps: int, frame_size: tuple[int, int]) -> torch.Tensor:
        """Return the displacements that values of this target stand for: the inverse of the call.

        Args:
            values: Labels or predictions, shape (..., size).
            num_steps: Steps of the tracks.
            frame_size: Height and width of the frames in pixels.

        Returns:
            Pixels per raw frame, shape (..., num_steps, points of a token, 2).

        Raises:
            ValueError: With "patch_std", which keeps no pixels.
        """
        if self.normalization == "patch_std":
            raise ValueError("position: normalization 'patch_std' cannot be turned back into pixels.")
        return (values * self.scale_in(frame_size)).unflatten(-1, (2, num_steps, -1)).movedim(-3, -1)

    def scale_in(self, frame_size: tuple[int, int]) -> float:
        """Return the displacement in pixels that becomes 1 in frames of (height, width)."""
        return min(frame_size) / 112 if self.scale_px is None else self.scale_px

    def _check(self, clip: MotionClip, trajectories: Trajectories) -> tuple[int, int]:
        num_frames, _, height, width = clip.pixel_values.shape[-4:]
        grid = (height // self.cell_size_px, width // self.cell_size_px)
        expected = (num_frames // clip.tubelet_size, grid[0] * grid[1])
        starts_and_points = (trajectories.points_xy.shape[-4], trajectories.points_xy.shape[-2])
        if starts_and_points != expected or tuple(trajectories.frame_size) != (height, width):
            raise ValueError(
                f"trajectories have {starts_and_points[0]} starts of {starts_and_points[1]} points in frames of "
                f"{tuple(trajectories.frame_size)}; the clip needs {expected[0]} starts (one per tubelet) of "
                f"{expected[1]} points ({grid[0]} x {grid[1]} cells of {self.cell_size_px} px) in {(height, width)}."
            )
        return grid


MOTION_TARGETS: dict[str, type] = {target.name: target for target in (ShapeTarget, PositionTarget)}

# Processor options that give the behaviour of the published code; "fixed" normalization gives its "none" variant.
REFERENCE_MOTION: Mapping[str, Any] = MappingProxyType(
    {
        "point_layout": "reference",
        "tracker_options": {"flow_precision": "whole_pixel", "interpolation": "nearest", "border": "clamp"},
        "motion_targets": {
            "shape": {"activation": "sigmoid", "weight": 54.0},
            "position": {
                "scale_px": 20.0,
                "normalization": "patch_std",
                "token_rule": "any",
                "validity": "read_positions",
                "activation": "tanh",
                "weight": 16.0,
            },
        },
    }
)


def build_targets(options: Mapping[str, Mapping[str, Any]], **defaults: Any) -> dict[str, MotionTarget]:
    """Return target objects by name, in the order of `options`.

    Args:
        options: Target name -> its options, for example `{"shape": {}, "position": {"weight": 2.0}}`.
        defaults: Values for options that a target has and `options` does not set, for example `cell_size_px=8`.

    Raises:
        ValueError: If a target is unknown or has no such option.
    """
    targets = {}
    for name, own in options.items():
        if name not in MOTION_TARGETS:
            raise ValueError(f"motion target ({name!r}) is unknown. Choose among {sorted(MOTION_TARGETS)}.")
        builder = MOTION_TARGETS[name]
        check_options(f"motion target {name!r}", builder, own)
        fields = getattr(builder, "__dataclass_fields__", {})
        targets[name] = builder(**{**{key: value for key, value in defaults.items() if key in fields}, **own})
    return targets
