"""Shape: histograms of gradients of a token, and of the windows that follow its points."""

from dataclasses import dataclass
from typing import ClassVar

import torch

from .hog_mme import histogram_around_points, histogram_of_gradients
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
from .point_tracking_mme import constant_on
from .trajectories_mme import Trajectories


@dataclass(frozen=True)
class ShapeTarget:
    """Histogram of gradients of the second frame of each tubelet.

    Index of a value: ((channel * bins + bin) * 2 + cell row) * 2 + cell column. The votes are exact in every mode: the
    published code's differ only by its random bias and by votes lost where a phase lies exactly on a bin.

    Attributes:
        num_bins: Orientation bins.
        cell_size_px: Side of a histogram cell in pixels.
        activation: Head activation. Values reach 5 on real clips, so "linear"; the published code uses "sigmoid".
        weight: Default weight in the loss: for a predictor of the mean, shape then costs much less than position
            (benchmarks/results/compare_targets.md), which is the harder one to learn.
        visible_weight: How much its error at visible tokens, which the published method has not, counts beside that at
            masked ones.

    Source: Masked Motion Encoding, section 3, z^s, as published: at the token itself, not along the track.
    """

    name: ClassVar[str] = "shape"
    needs_trajectories: ClassVar[bool] = False
    num_bins: int = 9
    cell_size_px: int = 8
    activation: str = "linear"
    weight: float = 3.0
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        check_num_bins(self.name, self.num_bins)

    def size(self, config: TargetConfig) -> int:
        """Return channels * bins * cells per token."""
        return config.num_channels * self.num_bins * cells_per_side(config.patch_size, self.cell_size_px) ** 2

    def __call__(self, clip: MotionClip, trajectories: Trajectories | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return histograms per token, float32 (..., N, size), and True for every token, bool (..., N)."""
        frames = clip.pixel_values[..., min(1, clip.tubelet_size - 1) :: clip.tubelet_size, :, :, :]
        histograms = histogram_of_gradients(frames, self.num_bins, self.cell_size_px)
        values = tokens_from_cells(histograms, cells_per_side(clip.patch_size, self.cell_size_px))
        return values, torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)


@dataclass(frozen=True)
class ShapeAlongTrackTarget:
    """Histograms of gradients around a token's points, at every position of their tracks.

    Index of a value: (((channel * bins + bin) * (L + 1) + position) * 2 + point row) * 2 + point column, position 0
    being the tubelet's first frame. The window is of one cell, centred at the point wherever it is between pixels.
    Histograms are those of the raw frames in the units of `pixel_values`: their scale is that of `shape`.

    All L + 1 positions are in it, the first as well as the arrival: change is change from somewhere, and the arrival is
    where most has changed.

    Attributes:
        num_bins: Orientation bins.
        cell_size_px: Side of the window, and of the cell that each point stands for, in pixels.
        token_rule: A token counts when "all" its points are valid, or "any" of them.
        validity: A point is valid when seen at "every_position" of its track, or at all but the last
            ("read_positions").
        activation: Head activation. Values leave (0, 1) as those of `shape` do, so "linear".
        weight: Default weight in the loss, that of `shape`.
        visible_weight: How much its error at visible tokens, which the published method has not, counts beside that at
            masked ones.

    Source: Masked Motion Encoding, equation 3, z^s. The published code's variant reads the wrong place and is not used.
    """

    name: ClassVar[str] = "shape_along_track"
    needs_trajectories: ClassVar[bool] = True
    reads_frames_along_tracks: ClassVar[bool] = True
    num_bins: int = 9
    cell_size_px: int = 8
    token_rule: TokenRule = "all"
    validity: PointValidity = "every_position"
    activation: str = "linear"
    weight: float = 3.0
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        check_num_bins(self.name, self.num_bins)
        check_choice(self.name, "token_rule", self.token_rule)
        check_choice(self.name, "validity", self.validity)

    def size(self, config: TargetConfig) -> int:
        """Return channels * bins * positions * points per token."""
        num_positions = config.trajectory_num_steps + 1
        points = cells_per_side(config.patch_size, self.cell_size_px) ** 2
        return config.num_channels * self.num_bins * num_positions * points

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return histograms per token, float32 (..., N, size), and which tokens count, bool (..., N).

        Raises:
            ValueError: If the clip has no raw frames, or the tracks lie on another grid.
        """
        grid = point_grid(clip, trajectories, self.cell_size_px)
        side = cells_per_side(clip.patch_size, self.cell_size_px)
        num_positions = trajectories.num_steps + 1
        tracked = [start + step for start in clip.start_frames for step in range(num_positions)]
        frames = clip.raw_frames_at(self.name, tracked)  # (..., S * positions, C, H, W)
        points_xy = trajectories.points_xy.flatten(-4, -3)  # (..., S * positions, P, 2)
        histograms = histogram_around_points(frames, points_xy, self.num_bins, self.cell_size_px)
        scales = constant_on(histograms.device, clip.channel_scales)[:, None]
        histograms = histograms.unflatten(-1, (-1, self.num_bins)) * scales  # (..., S * positions, P, C, bins)
        cells = histograms.flatten(-2).unflatten(-3, (-1, num_positions))
        cells = cells.movedim(-1, -3).flatten(-3, -2).unflatten(-1, grid)  # (..., S, values, rows, columns)
        counts = tokens_that_count(valid_points(trajectories, self.validity), grid, side, self.token_rule)
        return tokens_from_cells(cells, side), counts
