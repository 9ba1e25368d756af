"""Do tracks agree with the frames they were made from? Asked of the pixels, without another tracker's opinion."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F

from ..trajectories_mme import Trajectories, is_inside
from .patches import read_patches, square_offsets

# What is done to displacements, (x, y) rows of a matrix, before asking whether they fit the frames better.
ALTERATIONS: Mapping[str, tuple[tuple[float, float], tuple[float, float]]] = {
    "as they are": ((1.0, 0.0), (0.0, 1.0)),
    "x 0.5": ((0.5, 0.0), (0.0, 0.5)),
    "x 0.75": ((0.75, 0.0), (0.0, 0.75)),
    "x 0.88": ((0.875, 0.0), (0.0, 0.875)),
    "x 1.14": ((8 / 7, 0.0), (0.0, 8 / 7)),
    "x 1.33": ((4 / 3, 0.0), (0.0, 4 / 3)),
    "x 2": ((2.0, 0.0), (0.0, 2.0)),
    "at 0": ((0.0, 0.0), (0.0, 0.0)),
    "mirrored": ((-1.0, 0.0), (0.0, 1.0)),
    "with x and y exchanged": ((0.0, 1.0), (1.0, 0.0)),
}
# Pixels to the right and down by which tracks may belong elsewhere: a crop rounded down to cells of 8 px is off by 4 on
# average.
OFFSETS_PX = tuple((x, y) for y in (0.0, -4.0, 4.0) for x in (0.0, -4.0, 4.0))
# Points that say something: textured, and moving by more than an altered track could hide.
MIN_CONTRAST = 6.0
MIN_MOTION_PX = 0.7
# A quarter of the displacement is then at most 1 px, which a patch of 8 px still answers to in proportion.
MAX_MOTION_PX = 12.0
# A patch moves when shifting it explains at least half of its change, by at least so many pixels.
MIN_EXPLAINED_CHANGE = 0.5
MIN_SHIFT_PX = 0.15
PATCH_SIDE = 8


@torch.no_grad()
def alteration_residuals(
    tracks: Trajectories, frames: torch.Tensor, start_frames: Sequence[int]
) -> tuple[dict[str, float], int]:
    """Return how badly each of `ALTERATIONS` fits the frames, summed over points that move, and how many these are.

    Args:
        tracks: Tracks of one clip, shape of points_xy (S, L + 1, P, 2).
        frames: uint8 RGB, shape (T, 3, H, W).
        start_frames: The frame that each of the S starts is in.

    Returns:
        Name -> sum over points of the mean absolute difference, in grey values, of the 8 px patch around the start
        and the one where the altered track leads, both without their means; and the number of points.
    """
    grey = frames.float().mean(-3)
    sums, count = dict.fromkeys(ALTERATIONS, 0.0), 0
    for index, start in enumerate(start_frames):
        origin = tracks.points_xy[index, 0]
        first = _patches(grey[start], origin)
        is_textured = first.abs().mean(-1) > MIN_CONTRAST
        # The farthest step that is short enough says most: alterations differ most there.
        way = tracks.points_xy[index] - origin  # (L + 1, P, 2)
        length = way.norm(dim=-1)
        is_usable = tracks.is_visible[index] & (length > MIN_MOTION_PX) & (length < MAX_MOTION_PX) & is_textured
        step = (is_usable * torch.arange(1, len(way) + 1, device=way.device)[:, None]).amax(0) - 1  # -1: none
        for number in range(1, len(way)):
            chosen = step == number
            if not chosen.any():
                continue
            motion, before = way[number, chosen], first[chosen]
            places = {name: origin[chosen] + motion @ motion.new_tensor(rows).T for name, rows in ALTERATIONS.items()}
            inside = torch.stack([is_inside(place, tracks.frame_size) for place in places.values()]).all(0)
            count += int(inside.sum())
            for name, place in places.items():
                after = _patches(grey[start + number], place[inside])
                sums[name] += float((after - before[inside]).abs().mean(-1).sum())
    return sums, count


@torch.no_grad()
def offset_residuals(
    tracks: Trajectories, frames: torch.Tensor, start_frames: Sequence[int]
) -> dict[tuple[float, float], float]:
    """Return how badly displacements fit the frames when taken for those of points `OFFSETS_PX` from their own.

    Args:
        tracks: Tracks of one clip, shape of points_xy (S, L + 1, P, 2).
        frames: uint8 RGB, shape (T, 3, H, W).
        start_frames: The frame that each of the S starts is in.

    Returns:
        Offset -> sum over points, of the mean absolute difference, in grey values, of the 8 px patch there in the frame
        of the start and the one where the displacement of the whole track leads, both without their means.
    """
    grey = frames.float().mean(-3)
    sums = dict.fromkeys(OFFSETS_PX, 0.0)
    offsets = tracks.points_xy.new_tensor(OFFSETS_PX)[:, None]
    for index, start in enumerate(start_frames):
        first, last = tracks.points_xy[index, 0] + offsets, tracks.points_xy[index, -1] + offsets  # (offsets, P, 2)
        is_inside_all = (is_inside(first, tracks.frame_size) & is_inside(last, tracks.frame_size)).all(0)
        usable = tracks.is_visible[index].all(0) & is_inside_all
        for offset, before, after in zip(OFFSETS_PX, first[:, usable], last[:, usable], strict=True):
            change = _patches(grey[start + tracks.num_steps], after) - _patches(grey[start], before)
            sums[offset] += float(change.abs().mean(-1).sum())
    return sums


@torch.no_grad()
def moving_patches(
    tracks: Trajectories, frames: torch.Tensor, start_frames: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return where the frames move, whatever the tracks say, and where that can be told, both bool (S, P).

    A patch moves when one small shift, fitted to it by least squares, explains most of its change from the start frame
    to the next: noise and a change of brightness cannot be explained like that.

    Args:
        tracks: Only their starts are used.
        frames: uint8 RGB, shape (T, 3, H, W).
        start_frames: The frame that each of the S starts is in.
    """
    moving, known = [], []
    for index, start in enumerate(start_frames):
        # Smoothed, so that a shift of a pixel or two is still small beside the structure.
        pair = F.avg_pool2d(frames[start : start + 2].float().mean(-3)[:, None], 3, stride=1, padding=1)[:, 0]
        before, after = (_patches(image, tracks.points_xy[index, 0], centred=False) for image in pair)
        change = (after - before).unflatten(-1, (PATCH_SIDE, PATCH_SIDE))[:, 1:-1, 1:-1].flatten(-2)
        change = change - change.mean(-1, keepdim=True)
        image = ((after + before) / 2).unflatten(-1, (PATCH_SIDE, PATCH_SIDE))
        slopes = torch.stack([image[:, 1:-1, 2:] - image[:, 1:-1, :-2], image[:, 2:, 1:-1] - image[:, :-2, 1:-1]], -1)
        slopes = slopes.flatten(1, 2) / 2  # (P, K, 2)
        slopes = slopes - slopes.mean(1, keepdim=True)
        normal = slopes.mT @ slopes + 1e-3 * torch.eye(2, device=slopes.device)
        moment = slopes.mT @ -change[..., None]
        shift = torch.linalg.solve(normal, moment)
        explained = (moment * shift).sum((-2, -1)) / change.square().sum(-1).clamp(min=1e-6)
        known.append(slopes.square().sum(-1).mean(-1).sqrt() > MIN_CONTRAST / 4)
        moving.append(known[-1] & (explained > MIN_EXPLAINED_CHANGE) & (shift.norm(dim=(-2, -1)) > MIN_SHIFT_PX))
    return torch.stack(moving), torch.stack(known)


def _patches(grey: torch.Tensor, points_xy: torch.Tensor, *, centred: bool = True) -> torch.Tensor:
    """Return 8 x 8 samples of a frame (H, W), 1 px apart, around points (P, 2), shape (P, 64)."""
    offsets = square_offsets(PATCH_SIDE, 1.0, grey.device)
    patches = read_patches(grey[None], points_xy[None], offsets, tuple(grey.shape))[0]
    return patches - patches.mean(-1, keepdim=True) if centred else patches
