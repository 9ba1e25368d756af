"""What frames themselves show of how points move, where a flow alone can be wrong."""

from collections.abc import Iterator

import torch
import torch.nn.functional as F

from ..trajectories_mme import is_inside
from .patches import chunk_length, read_patches, square_offsets

# Structure-tensor eigenvalue in (grey levels / px) ** 2: absolute, and as a share of the frame's 95th percentile.
MIN_TEXTURE = 0.5
MIN_TEXTURE_SHARE = 0.002
# Texture is averaged over 7 px; looked at every 4 px it costs a fifth of looking everywhere.
TEXTURE_SPACING_PX = 4
# 3 x 3 pixels around a point are compared; 5 x 5 tell no more.
SAMPLES_PER_SIDE = 3
# A point whose flow says that it moves on its own moves with the camera if that explains what is around it, 3 px apart,
# better than its flow does, by a tenth and half a grey value: enough to leave plain surfaces, where both explain it
# alike, to the flow. What all of the frame has grown brighter by is no difference.
DRAGGED_SPACING_PX = 3.0
MAX_ERROR_RATIO = 0.9
MIN_GAIN_GREY_LEVELS = 0.5
# What has moved so looks alike in the next frame: samples 2 px apart correlate, or differ by no more than noise makes
# them: less than twice the median of all places, and than one place differs from another.
SHOWN_SPACING_PX = 2.0
SHOWN_REACH_PX = (SAMPLES_PER_SIDE - 1) / 2 * SHOWN_SPACING_PX
MIN_CORRELATION = 0.8
MAX_ERROR_AGAINST_MEDIAN = 2.0
MIN_ERROR_GREY_LEVELS = 2.0


def is_textured(frames: torch.Tensor) -> torch.Tensor:
    """Return where a frame has structure in both directions, so that its motion is known.

    Args:
        frames: uint8 RGB, shape (..., 3, H, W).

    Returns:
        For pixels 0, 4, 8, ... in both directions, bool, shape (..., ceil(H / 4), ceil(W / 4)).

    Source: Shi and Tomasi, Good Features to Track: the smaller eigenvalue of the structure tensor over 7 x 7 px.
    """
    grey = frames.reshape(-1, *frames.shape[-3:]).to(torch.float32).mean(1, keepdim=True)
    padded = F.pad(grey, (1, 1, 1, 1), mode="replicate")
    right = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    down = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    products = torch.cat([right * right, right * down, down * down], dim=1)
    means = F.avg_pool2d(products, 7, stride=TEXTURE_SPACING_PX, padding=3, count_include_pad=False)
    xx, xy, yy = means.unbind(1)
    smaller = (xx + yy) / 2 - (((xx - yy) / 2).square() + xy.square()).sqrt()
    limit = (MIN_TEXTURE_SHARE * smaller.flatten(1).quantile(0.95, dim=1)).clamp(min=MIN_TEXTURE)
    return (smaller > limit[:, None, None]).view(*frames.shape[:-3], *smaller.shape[-2:])


def read_texture(textured: torch.Tensor, points_xy: torch.Tensor) -> torch.Tensor:
    """Return what `is_textured` (..., rows, columns) says of points (..., P, 2), those outside read at the border."""
    rows, columns = textured.shape[-2:]
    x, y = (points_xy.nan_to_num(0.0) / TEXTURE_SPACING_PX).round().long().unbind(-1)
    return textured.flatten(-2).gather(-1, y.clamp(0, rows - 1) * columns + x.clamp(0, columns - 1))


def is_shown(
    frames: torch.Tensor, begins_in: torch.Tensor, from_xy: torch.Tensor, motion: torch.Tensor, textured: torch.Tensor
) -> torch.Tensor:
    """Return around which points the next frame looks as if they had moved so.

    Args:
        frames: uint8 RGB, shape (..., T, 3, H, W).
        begins_in: Number of the frame that each step begins in, shape (..., *steps).
        from_xy: Points there, shape (..., *steps, P, 2).
        motion: How far they would move, same shape.
        textured: Points that tell one motion from another, bool, shape (..., *steps, P); of the others none is shown.

    Returns:
        bool, shape (..., *steps, P).
    """
    frame_size = tuple(frames.shape[-2:])
    offsets = square_offsets(SAMPLES_PER_SIDE, SHOWN_SPACING_PX, frames.device)
    correlations, errors, errors_by_chance = [], [], []
    for before, after, at, moved in _steps(frames, begins_in, from_xy, motion):
        here = read_patches(before, at, offsets, frame_size)  # (steps, P, K)
        there = read_patches(after, at + moved, offsets, frame_size)
        here, there = (patches - patches.mean(-1, keepdim=True) for patches in (here, there))
        correlations.append(F.cosine_similarity(here, there, dim=-1))
        errors.append((here - there).abs().mean(-1))
        errors_by_chance.append((here - there.roll(1, dims=-2)).abs().mean(-1))  # one point against another
    correlation, error, by_chance = (
        torch.cat(values).view(textured.shape) for values in (correlations, errors, errors_by_chance)
    )
    usual, usual_by_chance = (
        values.masked_fill(~textured, torch.nan).nanquantile(0.5, dim=-1, keepdim=True) for values in (error, by_chance)
    )
    noise = (MAX_ERROR_AGAINST_MEDIAN * usual).minimum(usual_by_chance).clamp(min=MIN_ERROR_GREY_LEVELS)
    return textured & ((correlation > MIN_CORRELATION) | (error < noise))


def is_dragged(
    frames: torch.Tensor, begins_in: torch.Tensor, from_xy: torch.Tensor, own: torch.Tensor, of_camera: torch.Tensor
) -> torch.Tensor:
    """Return which points the frames show to move with the camera rather than by their flow.

    Args:
        frames, begins_in, from_xy: See `is_shown`.
        own: Motion of the points less that of the camera, shape (..., *steps, P, 2).
        of_camera: Motion of the camera at these points, same shape.

    Returns:
        bool, shape (..., *steps, P).
    """
    frame_size = tuple(frames.shape[-2:])
    offsets = square_offsets(SAMPLES_PER_SIDE, DRAGGED_SPACING_PX, frames.device)
    dragged = []
    for before, after, at, flow, camera in _steps(frames, begins_in, from_xy, own + of_camera, of_camera):
        here = read_patches(before, at, offsets, frame_size)  # (steps, P, K)
        by_flow, by_camera = (read_patches(after, at + motion, offsets, frame_size) - here for motion in (flow, camera))
        seen = is_inside(at + flow, frame_size) & is_inside(at + camera, frame_size)
        # Most points move by their flow, whether they are background or not.
        brighter = by_flow.mean(-1).masked_fill(~seen, torch.nan).nanmedian(-1).values.nan_to_num(0.0)[:, None, None]
        by_flow, by_camera = ((difference - brighter).abs().mean(-1) for difference in (by_flow, by_camera))
        dragged.append(seen & (by_camera < MAX_ERROR_RATIO * by_flow - MIN_GAIN_GREY_LEVELS))
    return torch.cat(dragged).view(own.shape[:-1])


def _steps(
    frames: torch.Tensor, begins_in: torch.Tensor, *of_points: torch.Tensor
) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield several steps at once: the frames before and after, grey, (n, H, W), and values of points, (n, P, 2)."""
    clips, num_frames = frames.shape[:-4].numel(), frames.shape[-4]
    grey = frames.flatten(0, -4).to(torch.float32).mean(1)
    of_clip = torch.arange(clips, device=frames.device) * num_frames
    begins = (begins_in.reshape(clips, -1) + of_clip[:, None]).flatten()
    of_points = tuple(values.flatten(0, -3) for values in of_points)
    step = chunk_length(frames.device, SAMPLES_PER_SIDE**2 * of_points[0].shape[1])
    for index, *values in zip(*(values.split(step) for values in (begins, *of_points)), strict=True):
        yield grey[index], grey[index + 1], *values
