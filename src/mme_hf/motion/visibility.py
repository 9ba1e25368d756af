"""Is a tracked point still the same point? What is around it must look as it did where its track began."""

from collections.abc import Sequence

import torch

from ..point_tracking_mme import constant_on
from ..trajectories_mme import Trajectories, is_inside
from .patches import read_patches, square_offsets

# A patch is 4 x 4 samples of the frame at half size: 8 px wide, and half as noisy.
SAMPLES_PER_SIDE = 4
SAMPLE_SPACING_PX = 2.0
# A point is lost when its patch differs from the first one by more than this share of that patch's own contrast. On
# scenes with known occlusion these find 6 to 9 of 10 hidden points and lose 2 to 5 of 1000 visible ones, whether the
# frames are clean, noisy, blurred or compressed (benchmarks/bench_motion.py).
MAX_DIFFERENCE = 0.6
# Added to the contrast, grey values: noise of a smooth surface is not a difference.
CONTRAST_FLOOR = 5.0
# A scene has been cut, or moved beyond what the tracker can follow, when this share of the points is lost.
MAX_LOST_SHARE = 0.5


@torch.no_grad()
def hide_lost_points(
    tracks: Trajectories, frames: torch.Tensor, start_frames: Sequence[int], *, max_difference: float = MAX_DIFFERENCE
) -> Trajectories:
    """Return the tracks with points marked invisible from where they no longer look as they did at their start.

    Both patches are compared without their means, so that a scene may grow brighter. Points that are hidden by
    something, or have slipped off what they followed, are lost; after a cut, where more than half of all points
    differ, all are.

    Args:
        tracks: Tracks over `frames`, shape of points_xy (..., S, L + 1, P, 2).
        frames: uint8 RGB, shape (..., T, 3, H, W).
        start_frames: The frame that each of the S starts is in.
        max_difference: Mean absolute difference that is allowed, as a share of the first patch's mean absolute
            deviation (plus 5 grey values).
    """
    seen = [start + step for start in start_frames for step in range(tracks.num_steps + 1)]
    used = sorted(set(seen))
    place = constant_on(frames.device, [used.index(frame) for frame in seen])
    grey = _half_size_grey(frames.index_select(-4, constant_on(frames.device, used)))  # (..., U, H / 2, W / 2)
    grey = grey.index_select(-3, place).flatten(0, -3)  # (n, H / 2, W / 2), n = ... S (L + 1)
    offsets = square_offsets(SAMPLES_PER_SIDE, SAMPLE_SPACING_PX, frames.device)
    patches = read_patches(grey, tracks.points_xy.flatten(0, -3), offsets, tracks.frame_size)  # (n, P, K)
    patches = patches.unflatten(0, tracks.points_xy.shape[:-2])  # (..., S, L + 1, P, K)
    patches = patches - patches.mean(-1, keepdim=True)
    first = patches[..., :1, :, :]
    difference = (patches - first).abs().mean(-1)
    is_lost = difference > max_difference * (first.abs().mean(-1) + CONTRAST_FLOOR)  # (..., S, L + 1, P)

    inside = is_inside(tracks.points_xy, tracks.frame_size)
    share = (is_lost & inside).sum(-1, keepdim=True) / inside.sum(-1, keepdim=True).clamp(min=1)
    is_lost = is_lost | (share > MAX_LOST_SHARE)
    return tracks.hide(is_lost.long().cummax(-2).values.bool())


def _half_size_grey(frames: torch.Tensor) -> torch.Tensor:
    """Return the mean of each 2 x 2 pixels and their colours, float32, shape (..., T, H // 2, W // 2).

    Args:
        frames: uint8 RGB, shape (..., T, 3, H, W).
    """
    height, width = (side // 2 * 2 for side in frames.shape[-2:])
    red, green, blue = frames[..., :height, :width].unbind(-3)
    # Twelve values of a byte fit into 16 bits, which takes an eighth of the time of floats.
    total = red.short() + green + blue
    total = total[..., 0::2, :] + total[..., 1::2, :]
    return (total[..., 0::2] + total[..., 1::2]).float() / 12
