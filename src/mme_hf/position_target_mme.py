"""Position change: how the points of a token move, over the whole track, over its first step alone, or which way."""

import math
from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import torch

from .motion_clip_mme import (
    MotionClip,
    PointValidity,
    TargetConfig,
    TokenRule,
    cells_per_side,
    check_choice,
    check_head,
    check_num_bins,
    point_grid,
    tokens_from_cells,
    tokens_that_count,
    valid_points,
)
from .trajectories_mme import Trajectories

NORMALIZATIONS = ("arcsinh", "fixed", "patch_std", "trajectory_length", "robust_clip")
_KEEP_PIXELS = ("fixed", "arcsinh")
# Of the default scale: most points of real clips move by less than that a frame, and are to count.
ARCSINH_SHARE = 0.2
# Of the displacements of a clip's valid points: high, as most of a clip may stand still, and with a tenth above it, so
# that a few wild tracks do not decide.
CLIP_QUANTILE = 0.9
# Share of scale_px that counts as a step of a point at rest.
STILL_STEP = 0.1


@dataclass(frozen=True)
class PositionTarget:
    """Displacements along the tracks of a token's points.

    Index of a value: ((component * L + step) * 2 + point row) * 2 + point column, component 0 being x.
    Displacements are in pixels per raw frame, limited to +-max_displacement_px and then normalised.

    Attributes:
        cell_size_px: One point per cell of this side.
        scale_px: Displacement that becomes 1, or 0.88 by "arcsinh". None for 1/112 of the frame's shorter side (2 px at
            224, 1 px at 112), so that labels do not depend on the resolution and those of moving tokens are of order
            1; by "arcsinh" for a fifth of that (0.4 px at 224, 0.2 px at 112).
        max_displacement_px: Limit of a displacement before scaling, pixels per raw frame.
        normalization: "arcsinh" is the inverse hyperbolic sine after the division by scale_px: what is slower than the
            scale stays in proportion, and of what is faster the order of magnitude counts, so that a few fast tracks
            do not decide a squared error. "fixed" is that division alone. "patch_std" (published), after it, takes
            off the mean of the token's points for each component and step and divides by their unbiased standard
            deviation + 1e-6; it erases translation. "trajectory_length" divides a point's displacements by the sum of
            their lengths, as Dense Trajectories do: direction without speed. "robust_clip" divides by the 0.9 quantile
            of the lengths of all displacements of the clip's valid points. Neither of the last two divides by less
            than still_step_px a step, so that points at rest give 0 and not amplified noise.
        still_step_px: That floor; None for a tenth of the scale (0.2 px at 224, 0.1 px at 112).
        token_rule: A token counts when "all" its points are valid, or "any" of them.
        validity: A point is valid when seen at "every_position" of its track, or at those that flow was read at
            ("read_positions": the arrival after the last step is not checked).
        activation: Head activation. "linear" under every normalisation but "trajectory_length", whose values stay
            within +-1, is the only one that can express the labels (benchmarks/results/compare_targets.md).
        weight: Default weight in the loss.
        visible_weight: How much its error at visible tokens, which the published method has not, counts beside that at
            masked ones.

    Source: Masked Motion Encoding, section 3, z^p. The published numerics are in `REFERENCE_MOTION`.
        "trajectory_length": Wang and Schmid, Action Recognition with Improved Trajectories; floor and "arcsinh"
        are ours.
    """

    name: ClassVar[str] = "position"
    needs_trajectories: ClassVar[bool] = True
    cell_size_px: int = 8
    scale_px: float | None = None
    max_displacement_px: float = 20.0
    normalization: Literal["arcsinh", "fixed", "patch_std", "trajectory_length", "robust_clip"] = "arcsinh"
    still_step_px: float | None = None
    token_rule: TokenRule = "all"
    validity: PointValidity = "every_position"
    activation: str = "linear"
    weight: float = 1.0
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        _check_pixels(self.name, self, ("scale_px", "max_displacement_px", "still_step_px"))
        check_choice(self.name, "normalization", self.normalization, NORMALIZATIONS)
        check_choice(self.name, "token_rule", self.token_rule)
        check_choice(self.name, "validity", self.validity)

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
        return 2 * config.trajectory_num_steps * cells_per_side(config.patch_size, self.cell_size_px) ** 2

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return displacements per token, float32 (..., N, size), and which tokens count, bool (..., N).

        Args:
            clip: Input frames; only their token sizes are used.
            trajectories: One start per tubelet, one point per cell, row by row.

        Raises:
            ValueError: If the tracks do not start at every tubelet or lie on another grid.
        """
        grid = point_grid(clip, trajectories, self.cell_size_px)
        side = cells_per_side(clip.patch_size, self.cell_size_px)
        valid = valid_points(trajectories, self.validity)  # (..., S, P)
        limit = self.max_displacement_px
        motion = trajectories.displacements.float().clamp(-limit, limit)  # (..., S, L, P, 2)
        motion = motion / self._divisor(motion, valid, trajectories.frame_size)
        if self.normalization == "arcsinh":
            motion = motion.asinh()
        cells = motion.movedim(-1, -3).flatten(-3, -2).unflatten(-1, grid)  # (..., S, 2 * L, rows, columns)
        values = tokens_from_cells(cells, side)
        if self.normalization == "patch_std":
            points = values.unflatten(-1, (-1, side * side))
            centred = points - points.mean(-1, keepdim=True)
            values = (centred / (points.std(-1, keepdim=True) + 1e-6)).flatten(-2)
        return values, tokens_that_count(valid, grid, side, self.token_rule)

    def displacements(self, values: torch.Tensor, num_steps: int, frame_size: tuple[int, int]) -> torch.Tensor:
        """Return the displacements that values of this target stand for: the inverse of the call.

        Args:
            values: Labels or predictions, shape (..., size).
            num_steps: Steps of the tracks.
            frame_size: Height and width of the frames in pixels.

        Returns:
            Pixels per raw frame, within +-max_displacement_px, shape (..., num_steps, points of a token, 2).

        Raises:
            ValueError: With another normalisation than "fixed" and "arcsinh", which keep no pixels.
        """
        if not self.keeps_pixels:
            raise ValueError(f"position: normalization {self.normalization!r} cannot be turned back into pixels.")
        if self.normalization == "arcsinh":
            values = values.sinh()
        # As labels are limited; sinh of what a head may say is without bounds.
        limit = self.max_displacement_px
        motion = (values * self.scale_in(frame_size)).clamp(-limit, limit)
        return motion.unflatten(-1, (2, num_steps, -1)).movedim(-3, -1)

    @property
    def keeps_pixels(self) -> bool:
        """Whether `displacements` can turn values back into pixels."""
        return self.normalization in _KEEP_PIXELS

    def scale_in(self, frame_size: tuple[int, int]) -> float:
        """Return what displacements are divided by, in pixels, in frames of (height, width)."""
        return _scale_px(self.scale_px, frame_size, ARCSINH_SHARE if self.normalization == "arcsinh" else 1.0)

    def _divisor(self, motion: torch.Tensor, valid: torch.Tensor, frame_size: tuple[int, int]) -> float | torch.Tensor:
        """Return what displacements (..., S, L, P, 2) are divided by, in pixels, broadcastable to them."""
        scale = self.scale_in(frame_size)
        if self.normalization in ("fixed", "arcsinh", "patch_std"):
            return scale
        floor = self.still_step_px or scale * STILL_STEP
        lengths = motion.norm(dim=-1)  # (..., S, L, P)
        if self.normalization == "trajectory_length":
            return lengths.sum(-2, keepdim=True).clamp(min=floor * lengths.shape[-2])[..., None]
        typical = _quantile(lengths.flatten(-3), valid[..., None, :].expand(lengths.shape).flatten(-3), CLIP_QUANTILE)
        return typical.clamp(min=floor)[..., None, None, None, None]


@dataclass(frozen=True)
class FlowTarget:
    """Optical flow at a token's points: their displacement from the tubelet's first frame to the next raw frame.

    Index of a value: (component * 2 + point row) * 2 + point column, component 0 being x. It is the first step of
    `position` as "fixed" gives it: what a single flow step can teach, to compare long tracks with.

    Attributes:
        cell_size_px: One point per cell of this side.
        scale_px: Displacement that becomes 1; None for 1/112 of the frame's shorter side.
        max_displacement_px: Limit of a displacement before scaling.
        token_rule: A token counts when "all" its points are valid, or "any" of them.
        validity: A point is valid when seen in both frames ("every_position"), or in the first ("read_positions").
        activation: Head activation.
        weight: Default weight in the loss.
        visible_weight: How much its error at visible tokens, which the published method has not, counts beside that at
            masked ones.

    Source: The flow target of Masked Motion Encoding's ablation, read at the points instead of at every pixel.
    """

    name: ClassVar[str] = "flow"
    needs_trajectories: ClassVar[bool] = True
    cell_size_px: int = 8
    scale_px: float | None = None
    max_displacement_px: float = 20.0
    token_rule: TokenRule = "all"
    validity: PointValidity = "every_position"
    activation: str = "linear"
    weight: float = 1.0
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        _check_pixels(self.name, self, ("scale_px", "max_displacement_px"))
        check_choice(self.name, "token_rule", self.token_rule)
        check_choice(self.name, "validity", self.validity)

    def size(self, config: TargetConfig) -> int:
        """Return 2 components * points per token."""
        return 2 * cells_per_side(config.patch_size, self.cell_size_px) ** 2

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return flow per token, float32 (..., N, size), and which tokens count, bool (..., N).

        Raises:
            ValueError: If the tracks do not start at every tubelet or lie on another grid.
        """
        first_step = replace(
            trajectories,
            points_xy=trajectories.points_xy[..., :2, :, :],
            is_visible=trajectories.is_visible[..., :2, :],
            camera_motion_found=None,  # of all steps; not asked for below
        )
        grid = point_grid(clip, first_step, self.cell_size_px)
        side = cells_per_side(clip.patch_size, self.cell_size_px)
        limit, scale = self.max_displacement_px, _scale_px(self.scale_px, trajectories.frame_size)
        flow = first_step.displacements.float().clamp(-limit, limit)[..., 0, :, :] / scale  # (..., S, P, 2)
        values = tokens_from_cells(flow.movedim(-1, -2).unflatten(-1, grid), side)
        return values, tokens_that_count(valid_points(first_step, self.validity), grid, side, self.token_rule)


@dataclass(frozen=True)
class FlowHistogramTarget:
    """Histogram of the directions in which a token's points move, over all steps of their tracks.

    Index of a value: direction k of num_bins is k / num_bins of a turn from the right towards the bottom; the last
    value is the share of displacements that are shorter than scale_px. Every displacement votes for the two directions
    that it lies between, in proportion to its nearness, by the inverse hyperbolic sine of its length in units of
    scale_px; votes are averaged over steps and over the points that are valid. Unlike signed displacements, opposite
    motions do not cancel where values are averaged: over a token, over a clip, or by a network that is unsure.

    Attributes:
        num_bins: Directions.
        cell_size_px: One point per cell of this side.
        scale_px: Unit of displacements in pixels per raw frame; None for a fifth of 1/112 of the frame's shorter side
            (0.4 px at 224, 0.2 px at 112), as "arcsinh" of `position` has it.
        max_displacement_px: Limit of a displacement's length before scaling, pixels per raw frame.
        token_rule: A token counts when "all" its points are valid, or "any" of them.
        validity: A point is valid when seen at "every_position" of its track, or at all but the last
            ("read_positions").
        activation: Head activation. Votes have no upper bound, so "linear".
        weight: Default weight in the loss.
        visible_weight: How much its error at visible tokens counts beside that at masked ones.

    Source: Laptev et al., Learning realistic human actions from movies (HOF); soft votes as in histograms of gradients.
    """

    name: ClassVar[str] = "flow_histogram"
    needs_trajectories: ClassVar[bool] = True
    num_bins: int = 8
    cell_size_px: int = 8
    scale_px: float | None = None
    max_displacement_px: float = 20.0
    token_rule: TokenRule = "all"
    validity: PointValidity = "every_position"
    activation: str = "linear"
    weight: float = 3.0
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        check_num_bins(self.name, self.num_bins)
        _check_pixels(self.name, self, ("scale_px", "max_displacement_px"))
        check_choice(self.name, "token_rule", self.token_rule)
        check_choice(self.name, "validity", self.validity)

    def size(self, config: TargetConfig) -> int:
        """Return directions + 1."""
        return self.num_bins + 1

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return histograms per token, float32 (..., N, size), and which tokens count, bool (..., N).

        Raises:
            ValueError: If the tracks do not start at every tubelet or lie on another grid.
        """
        grid = point_grid(clip, trajectories, self.cell_size_px)
        side = cells_per_side(clip.patch_size, self.cell_size_px)
        scale = _scale_px(self.scale_px, trajectories.frame_size, ARCSINH_SHARE)
        valid = valid_points(trajectories, self.validity)  # (..., S, P)
        # Of a lost point nothing is voted: it may be anywhere.
        motion = trajectories.displacements.float().where(valid[..., None, :, None], 0.0)  # (..., S, L, P, 2)
        votes = self._votes(motion / scale, self.max_displacement_px / scale).mean(-3) * valid[..., None]
        values, voters = (
            tokens_from_cells(cells.movedim(-1, -2).unflatten(-1, grid), side).unflatten(-1, (-1, side * side)).sum(-1)
            for cells in (votes, valid[..., None].float())
        )
        return values / voters.clamp(min=1.0), tokens_that_count(valid, grid, side, self.token_rule)

    def _votes(self, motion: torch.Tensor, limit: float) -> torch.Tensor:
        """Return what displacements (..., 2) in units of the scale vote for, shape (..., num_bins + 1)."""
        x, y = motion.unbind(-1)
        length = motion.norm(dim=-1).clamp(max=limit)
        places = torch.atan2(y, x) / (2 * math.pi) * self.num_bins  # in bins, of either sign
        below = places.floor()
        nearness, votes = places - below, length.asinh()
        first = below.long() % self.num_bins
        histogram = motion.new_zeros(*length.shape, self.num_bins + 1)
        for bins, share in ((first, 1 - nearness), ((first + 1) % self.num_bins, nearness)):
            histogram.scatter_add_(-1, bins[..., None], (votes * share)[..., None])
        histogram[..., -1] = (length < 1).float()
        return histogram


def _scale_px(scale_px: float | None, frame_size: tuple[int, int], share: float = 1.0) -> float:
    """Return the scale that is given, or by default a share of 1/112 of the frame's shorter side."""
    return share * min(frame_size) / 112 if scale_px is None else scale_px


def _check_pixels(
    name: str, target: PositionTarget | FlowTarget | FlowHistogramTarget, options: tuple[str, ...]
) -> None:
    for option in options:
        value = getattr(target, option)
        if value is not None and (not isinstance(value, int | float) or not value > 0):
            raise ValueError(f"{name}: {option} ({value!r}) must be a number above 0.")


def _quantile(values: torch.Tensor, counts: torch.Tensor, share: float) -> torch.Tensor:
    """Return the quantile of those values (..., V) that count, rounded down to one of them; 0 where none counts."""
    ordered = values.masked_fill(~counts, torch.inf).sort(dim=-1).values
    number = counts.sum(-1, keepdim=True)
    place = ((number - 1).clamp(min=0) * share).long()
    return torch.where(number > 0, ordered.gather(-1, place), 0.0)[..., 0]
