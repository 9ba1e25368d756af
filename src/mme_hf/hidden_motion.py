"""The motion in the holes of a masked clip: as it is, and as a model predicts it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch

from .drawing import length_factor
from .motion_clip_mme import cells_per_side, tokens_from_cells
from .motion_targets_mme import build_targets
from .trajectories_mme import grid_points

if TYPE_CHECKING:
    from .modeling_mme import MMEForPreTraining
    from .video_processing_mme import MMEVideoProcessor

# Grey of what a model does not see.
HOLE = 128


@dataclass(frozen=True)
class HiddenMotion:
    """What a model is asked of one clip, and what it answers: the tracks of points in the holes of its mask.

    Attributes:
        frames: Input frames as they were, uint8, shape (frames, H, W, 3).
        is_hidden: Where the model sees nothing, bool, shape (tubelets, H, W).
        target_xy: Where the points of hidden tokens that count go, in pixels, shape (steps + 1, points, 2).
        predicted_xy: Where the model says they go, in the same order.
        tubelets: Tubelet that each of the points belongs to, shape (points,).
        factor: Times that these tracks must be drawn longer than they are to be seen.
    """

    frames: np.ndarray = field(repr=False)
    is_hidden: np.ndarray = field(repr=False)
    target_xy: np.ndarray = field(repr=False)
    predicted_xy: np.ndarray = field(repr=False)
    tubelets: np.ndarray = field(repr=False)
    factor: int

    @property
    def num_steps(self) -> int:
        """Raw frames that a track runs over."""
        return len(self.target_xy) - 1

    @property
    def explained_share(self) -> float:
        """One less the squared error of all displacements over their squares; 0 for predicting rest, NaN for no motion.

        In pixels, of this clip alone: not the explained share of a run, which is of labels and against a mean.
        """
        target, predicted = np.diff(self.target_xy, axis=0), np.diff(self.predicted_xy, axis=0)
        motion = float(np.square(target).sum())
        return 1 - float(np.square(predicted - target).sum()) / motion if motion else float("nan")

    def frame(self, tubelet: int) -> np.ndarray:
        """Return the first frame of a tubelet, uint8 (H, W, 3)."""
        return self.frames[tubelet * len(self.frames) // len(self.is_hidden)]

    def seen_frame(self, index: int) -> np.ndarray:
        """Return an input frame as the model sees it, uint8 (H, W, 3): grey in the holes."""
        hidden = self.is_hidden[index * len(self.is_hidden) // len(self.frames)]
        return np.where(hidden[..., None], np.uint8(HOLE), self.frames[index])

    def tracks_of(self, points_xy: np.ndarray, tubelet: int) -> tuple[np.ndarray, np.ndarray]:
        """Return those of the tracks that belong to a tubelet, (L + 1, points, 2), and that all of each is drawn."""
        here = points_xy[:, self.tubelets == tubelet]
        return here, np.ones(here.shape[:2], bool)


@torch.no_grad()
def hidden_motion(
    model: MMEForPreTraining, processor: MMEVideoProcessor, inputs: Mapping[str, torch.Tensor]
) -> HiddenMotion:
    """Return the motion in the holes of a clip, as it is and as a model predicts it.

    Args:
        model: Makes the prediction.
        processor: Made `inputs`; knows how to turn labels into pixels.
        inputs: Batch with `pixel_values`, `masked_indices`, `bool_masked_pos`, `labels` and `target_mask`; the first
            clip is taken.

    Raises:
        ValueError: If `position` is not among the model's targets.
    """
    names = list(model.config.motion_targets)
    check_has_position(names)
    clip = {name: tensor[:1].to(model.device) for name, tensor in inputs.items() if isinstance(tensor, torch.Tensor)}
    was_training = model.training
    predictions = model.eval().split_targets(model(**clip).logits)["position"]
    model.train(was_training)
    indices = clip["masked_indices"]
    labels = clip["labels"].gather(1, indices[..., None].expand(-1, -1, clip["labels"].shape[-1]))
    counts = clip["target_mask"].gather(1, indices[..., None].expand(-1, -1, len(names)))[0, :, names.index("position")]
    frames = visible_frames(clip["pixel_values"][0].cpu(), processor)
    (target_xy, tubelets), (predicted_xy, _) = (
        _token_tracks(values[0][counts].float().cpu(), indices[0][counts].cpu(), processor, frames.shape[1:3])
        for values in (model.split_targets(labels)["position"], predictions)
    )
    way = np.linalg.norm(target_xy[-1] - target_xy[0], axis=-1)
    factor = length_factor(way, processor.cell_size_px, len(target_xy) - 1)
    is_hidden = _hidden_pixels(clip["bool_masked_pos"][0].cpu().numpy(), frames.shape, processor)
    return HiddenMotion(frames, is_hidden, target_xy, predicted_xy, tubelets, factor)


def check_has_position(names: Sequence[str]) -> None:
    """Raise ValueError if `position` is not among the names of targets: there is no motion to draw without it."""
    if "position" not in names:
        raise ValueError(f"motion_targets ({list(names)}) has no 'position', so there is no motion to draw.")


def visible_frames(pixel_values: torch.Tensor, processor: MMEVideoProcessor) -> np.ndarray:
    """Return what a processor made of frames, (T, C, H, W), as they were, uint8 (T, H, W, C)."""
    if processor.do_normalize:
        mean, std = (torch.tensor(value).view(-1, 1, 1) for value in (processor.image_mean, processor.image_std))
        pixel_values = pixel_values * std + mean
    levels = pixel_values / processor.rescale_factor if processor.do_rescale else pixel_values
    return levels.round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()


def _token_tracks(
    values: torch.Tensor, indices: torch.Tensor, processor: MMEVideoProcessor, frame_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (L + 1, tokens * points, 2) of tokens' points, and the tubelet each belongs to."""
    options = {**processor.motion_targets["position"]}
    target = build_targets({"position": options}, cell_size_px=processor.cell_size_px)["position"]
    motion = target.displacements(values, processor.trajectory_num_steps, frame_size)  # (tokens, L, points, 2)
    cell = target.cell_size_px
    grid = grid_points(*frame_size, cell, processor.point_layout).T.unflatten(
        -1, (frame_size[0] // cell, frame_size[1] // cell)
    )
    side = cells_per_side(processor.patch_size, cell)
    homes = tokens_from_cells(grid[None], side).unflatten(-1, (2, -1)).mT  # (tokens of a frame, points, 2)
    tubelets = (indices // len(homes)).repeat_interleave(motion.shape[2])
    first = homes[indices % len(homes)][:, None]
    points = torch.cat([first, first + motion.cumsum(1)], dim=1)  # (tokens, L + 1, points, 2)
    return points.movedim(1, 0).flatten(1, 2).numpy(), tubelets.numpy()


def _hidden_pixels(mask: np.ndarray, shape: Sequence[int], processor: MMEVideoProcessor) -> np.ndarray:
    """Return which pixels of each tubelet are hidden, bool (tubelets, H, W), by a mask of tokens."""
    num_frames, height, width = shape[:3]
    patch = processor.patch_size
    grid = (num_frames // processor.tubelet_size, height // patch, width // patch)
    return mask.reshape(grid).repeat(patch, 1).repeat(patch, 2)
