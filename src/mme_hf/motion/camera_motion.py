"""Camera motion: the homography that the background follows from one frame to the next, and motion without it.

What is background, and how its homography is fitted, is decided in `background_fit.py`.
"""

import logging
from collections.abc import Sequence
from dataclasses import replace

import torch

from ..point_tracking_mme import check_flow, check_tracked_frames, constant_on
from ..trajectories_mme import Trajectories, grid_points, is_inside
from .appearance import SHOWN_REACH_PX, is_dragged, is_shown, is_textured, read_texture
from .background_fit import (
    BACKENDS,
    INLIER_DISTANCE_PX,
    NUM_HYPOTHESES,
    Backend,
    Matches,
    border_weight,
    fit_background,
)
from .patches import chunk_length

NUM_GRID_CELLS = 32
# Of the weight of textured places, what must look as the camera's motion says. Where an object hides so much background
# that flow follows it everywhere, the flow agrees with itself, and only the pictures show that it is wrong.
MIN_SHOWN_SHARE = 0.75
NUM_CHECKED_CELLS = 16

logger = logging.getLogger(__name__)


@torch.no_grad()
def estimate_camera_motion(
    from_xy: torch.Tensor,
    to_xy: torch.Tensor,
    is_usable: torch.Tensor | None = None,
    *,
    frame_size: tuple[int, int],
    backend: Backend = "torch",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the homography that the background follows, for every pair of frames.

    Args:
        from_xy: Points of the first frame in pixels, shape (..., P, 2).
        to_xy: The same points in the second frame, shape (..., P, 2).
        is_usable: Points to rely on, bool, shape (..., P); None for all. Points that are not finite never are.
        frame_size: (height, width) in pixels, which says where the border is.
        backend: Where hypotheses come from: "torch", all pairs at once on any device, or "opencv", RANSAC pair by pair
            on the CPU. Choice and refinement are the same, so both give the same homography where both find one.

    Returns:
        Homographies in pixels, float32, shape (..., 3, 3), last entry 1, the identity where none is found; and whether
        one is found, bool, shape (...): not with under 24 usable points, when the usable points near the border do not
        agree, or when the motion is implausible.

    Raises:
        ValueError: If shapes disagree or the backend is unknown.

    Source: Wang and Schmid, Action Recognition with Improved Trajectories, section 3.1, with the preference for the
        border in place of a person detector.
    """
    if from_xy.ndim < 2 or from_xy.shape != to_xy.shape or from_xy.shape[-1] != 2:
        raise ValueError(
            f"from_xy {tuple(from_xy.shape)} and to_xy {tuple(to_xy.shape)} must both be (..., points, 2)."
        )
    lead, num_points = from_xy.shape[:-2], from_xy.shape[-2]
    if is_usable is not None and (is_usable.shape != from_xy.shape[:-1] or is_usable.dtype != torch.bool):
        raise ValueError(
            f"is_usable has shape {tuple(is_usable.shape)} and dtype {is_usable.dtype}; it must be bool of shape "
            f"{tuple(from_xy.shape[:-1])}."
        )
    if backend not in BACKENDS:
        raise ValueError(f"backend ({backend!r}) is unknown. Choose one of {list(BACKENDS)}.")
    starts, ends = (points.to(torch.float32).reshape(lead.numel(), num_points, 2) for points in (from_xy, to_xy))
    usable = (starts.isfinite() & ends.isfinite()).all(-1)
    if is_usable is not None:
        usable &= is_usable.reshape(usable.shape)
    starts, ends = (points.masked_fill(~usable[..., None], 0.0) for points in (starts, ends))
    if not usable.numel():
        return torch.eye(3, device=usable.device).repeat(*lead, 1, 1), usable.new_zeros(lead)
    step = chunk_length(usable.device, NUM_HYPOTHESES * num_points)
    chunks = zip(starts.split(step), ends.split(step), usable.split(step), strict=True)
    homographies, found = zip(
        *(fit_background(Matches.of(*chunk, frame_size), backend) for chunk in chunks), strict=True
    )
    return torch.cat(homographies).reshape(*lead, 3, 3), torch.cat(found).reshape(lead)


@torch.no_grad()
def estimate_camera_of_flow(
    flow: torch.Tensor, frames: torch.Tensor | None = None, *, backend: Backend = "torch"
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `estimate_camera_motion` of a flow, read on a grid of its pixels.

    Args:
        flow: Motion from each frame to the next in pixels, x then y, shape (..., T, 2, H, W).
        frames: The frames, uint8 RGB, shape (..., T + 1, 3, H, W); see `compensate_camera_motion`.
        backend: See `estimate_camera_motion`.

    Returns:
        Homographies in pixels, shape (..., T, 3, 3), and whether one is found, shape (..., T): with frames, not where
        they show something else at the border.

    Raises:
        ValueError: If shapes disagree, frames are not uint8, or the backend is unknown.
    """
    _check_flow_and_frames(flow, frames)
    frame_size = (flow.shape[-2], flow.shape[-1])
    from_xy = _coarse_grid(frame_size, NUM_GRID_CELLS, flow.device)
    x, y = from_xy.long().unbind(-1)
    to_xy = from_xy + flow[..., y, x].transpose(-1, -2)
    from_xy, usable = from_xy.expand(to_xy.shape), is_inside(to_xy, frame_size)
    if frames is None:
        return estimate_camera_motion(from_xy, to_xy, usable, frame_size=frame_size, backend=backend)
    begins_in = torch.arange(flow.shape[-4], device=frames.device).expand(flow.shape[:-3])
    return _estimate_with_frames(frames, begins_in, from_xy, to_xy, usable, backend)


@torch.no_grad()
def compensate_camera_motion(
    flow: torch.Tensor, frames: torch.Tensor | None = None, *, backend: Backend = "torch"
) -> torch.Tensor:
    """Return the flow without the motion of the camera: what moves against the background.

    The camera's displacement of every pixel, H(p) - p, is subtracted exactly. Where no camera motion is found the flow
    comes back unchanged and the number of such pairs is logged as a warning; `estimate_camera_of_flow` tells which.
    With frames, pixels that they show to move with the camera, though their flow is that of an object nearby, get 0.

    Args:
        flow: Motion from each frame to the next in pixels, x then y, shape (..., T, 2, H, W).
        frames: The frames, uint8 RGB, shape (..., T + 1, 3, H, W). With them only textured places are matched, which
            keeps black bars and plain walls, whose flow is a guess, from passing for a background at rest. What is
            found must be what they show at the border: often that stops an object that fills the frame as well.
        backend: See `estimate_camera_motion`.

    Returns:
        Flow in pixels, float32, shape and device of `flow`.

    Raises:
        ValueError: If shapes disagree, frames are not uint8, or the backend is unknown.
    """
    _check_flow_and_frames(flow, frames)
    flow = flow.detach().to(torch.float32)
    if not flow.numel():
        return flow
    homographies, found = estimate_camera_of_flow(flow, frames, backend=backend)
    if not found.all():
        message = "No camera motion found in %d of %d pairs of frames; their flow is unchanged."
        logger.warning(message, int((~found).sum()), found.numel())
    pixels = grid_points(*flow.shape[-2:], 1).to(flow.device)
    of_camera = camera_displacements(homographies, pixels)
    own = flow.flatten(-2).transpose(-1, -2) - of_camera
    if frames is not None:
        begins_in = torch.arange(flow.shape[-4], device=frames.device).expand(flow.shape[:-3])
        own = _without_drag(frames, begins_in, pixels.expand(own.shape), own, of_camera, found)
    return own.transpose(-1, -2).reshape(flow.shape)


@torch.no_grad()
def estimate_camera_of_tracks(
    tracks: Trajectories,
    frames: torch.Tensor | None = None,
    start_frames: Sequence[int] | None = None,
    *,
    backend: Backend = "torch",
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `estimate_camera_motion` of each start and step of tracks, from the points seen before and after it.

    Args:
        tracks, frames, start_frames, backend: See `remove_camera_motion`.

    Returns:
        Homographies in pixels, shape (..., S, L, 3, 3), and whether one is found, shape (..., S, L): with frames, not
        where they show something else at the border.

    Raises:
        ValueError: If `frames` come without `start_frames`, or do not fit the tracks.
    """
    from_xy, to_xy = tracks.points_xy[..., :-1, :, :], tracks.points_xy[..., 1:, :, :]
    usable = tracks.is_visible[..., :-1, :] & tracks.is_visible[..., 1:, :]
    if frames is None:
        return estimate_camera_motion(from_xy, to_xy, usable, frame_size=tracks.frame_size, backend=backend)
    begins_in = _frames_of_steps(tracks, frames, start_frames).expand(from_xy.shape[:-2])
    return _estimate_with_frames(frames, begins_in, from_xy, to_xy, usable, backend)


@torch.no_grad()
def remove_camera_motion(
    tracks: Trajectories,
    frames: torch.Tensor | None = None,
    start_frames: Sequence[int] | None = None,
    *,
    backend: Backend = "torch",
) -> Trajectories:
    """Return tracks that move only as their points move against the background.

    For each start and step the camera's homography H is estimated from the points seen before and after it, read at
    their true positions p; the displacement becomes (p' - p) - (H(p) - p), and positions are the sums of these. They
    are no places in the frames any more, but `is_visible` still tells of the true ones. A start with a step whose
    camera motion is not found stays as it is: taken out of some of its steps only, a steady pan would be a jerk.

    Args:
        tracks: Tracks of points all over the frame.
        frames: The frames that were tracked, uint8 RGB, shape (..., T, 3, H, W); see `compensate_camera_motion`.
        start_frames: Frames that the tracks start at; needed with `frames`.
        backend: See `estimate_camera_motion`.

    Returns:
        Trajectories with `camera_motion_found`; starts where it is not True of all steps are those of `tracks`.

    Raises:
        ValueError: If `frames` come without `start_frames`, or do not fit the tracks.
    """
    positions = tracks.points_xy
    from_xy, to_xy = positions[..., :-1, :, :], positions[..., 1:, :, :]
    homographies, found = estimate_camera_of_tracks(tracks, frames, start_frames, backend=backend)
    of_camera = camera_displacements(homographies, from_xy) * found.all(-1)[..., None, None, None]
    own = (to_xy - from_xy) - of_camera
    if frames is not None:
        begins_in = _frames_of_steps(tracks, frames, start_frames).expand(own.shape[:-2])
        own = _without_drag(frames, begins_in, from_xy, own, of_camera, found.all(-1, keepdim=True))
    first = positions[..., :1, :, :]
    moved = torch.cat([first, first + own.cumsum(dim=-3)], dim=-3)
    return replace(tracks, points_xy=moved, camera_motion_found=found)


def camera_displacements(homographies: torch.Tensor, points_xy: torch.Tensor) -> torch.Tensor:
    """Return how far homographies move points, H(p) - p, in pixels, shape (..., P, 2).

    Args:
        homographies: In pixels, shape (..., 3, 3).
        points_xy: Points in pixels, shape (..., P, 2).
    """
    change = homographies - torch.eye(3, device=homographies.device)
    linear, offset, depth = change[..., :2, :2], change[..., :2, 2], change[..., 2:, :2]
    more_depth = points_xy @ depth.transpose(-1, -2) + change[..., 2:, 2:]
    moved = points_xy @ linear.transpose(-1, -2) + offset[..., None, :]
    return (moved - points_xy * more_depth) / (1 + more_depth)


def _check_flow_and_frames(flow: torch.Tensor, frames: torch.Tensor | None) -> None:
    check_flow(flow)
    lead, (num_pairs, _, height, width) = flow.shape[:-4], flow.shape[-4:]
    expected = (*lead, num_pairs + 1, 3, height, width)
    if frames is not None and (tuple(frames.shape) != expected or frames.dtype != torch.uint8):
        raise ValueError(
            f"frames have shape {tuple(frames.shape)} and dtype {frames.dtype}; for this flow they must be {expected} "
            "and torch.uint8."
        )


def _frames_of_steps(tracks: Trajectories, frames: torch.Tensor, start_frames: Sequence[int] | None) -> torch.Tensor:
    """Return the number of the frame that each step of each start begins in, shape (S, L)."""
    num_starts, num_steps = tracks.points_xy.shape[-4], tracks.num_steps
    if start_frames is None or len(start_frames) != num_starts:
        raise ValueError(f"start_frames ({start_frames}) must name the {num_starts} frames that the tracks start at.")
    if tuple(frames.shape[-2:]) != tuple(tracks.frame_size) or frames.shape[:-4] != tracks.points_xy.shape[:-4]:
        raise ValueError(
            f"frames have shape {tuple(frames.shape)}; the tracks are of {tracks.frame_size} (height x width)."
        )
    check_tracked_frames(frames.shape[-4], start_frames, num_steps)
    return constant_on(frames.device, start_frames)[:, None] + torch.arange(num_steps, device=frames.device)


def _estimate_with_frames(
    frames: torch.Tensor,
    begins_in: torch.Tensor,
    from_xy: torch.Tensor,
    to_xy: torch.Tensor,
    usable: torch.Tensor,
    backend: Backend,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return `estimate_camera_motion` of textured points where the frames do not refute it.

    They refute what their textured border does not show, if it is off by some pixels: on smooth texture, by 4. Where
    nothing at the border is textured an object vouches for itself.

    Args:
        frames: uint8 RGB, shape (..., T, 3, H, W).
        begins_in: Number of the frame that each step begins in, shape (..., *steps).
        from_xy, to_xy, usable, backend: See `estimate_camera_motion`.
    """
    frame_size = height, width = tuple(frames.shape[-2:])
    if not usable.numel():
        return estimate_camera_motion(from_xy, to_xy, usable, frame_size=frame_size, backend=backend)
    textured = _of_steps(is_textured(frames[..., :-1, :, :, :]), begins_in)  # no step begins in the last frame
    usable = usable & read_texture(textured, from_xy)
    homographies, found = estimate_camera_motion(from_xy, to_xy, usable, frame_size=frame_size, backend=backend)
    places = _coarse_grid(frame_size, NUM_CHECKED_CELLS, frames.device)
    motion = camera_displacements(homographies, places)
    places = places.expand(motion.shape)
    # Beyond the border there is nothing to compare with.
    reach, inner_size = SHOWN_REACH_PX, (height - 2 * SHOWN_REACH_PX, width - 2 * SHOWN_REACH_PX)
    checked = is_inside(places - reach, inner_size) & is_inside(places + motion - reach, inner_size)
    checked = checked & read_texture(textured, places)
    weight = border_weight(places, frame_size)
    shown = is_shown(frames, begins_in, places, motion, checked)
    found = found & ((weight * shown).sum(-1) >= MIN_SHOWN_SHARE * (weight * checked).sum(-1))
    return homographies.where(found[..., None, None], torch.eye(3, device=found.device)), found


def _coarse_grid(frame_size: tuple[int, int], num_cells: int, device: torch.device) -> torch.Tensor:
    """Return pixels of which about so many lie along the longer side, one at least along each, row by row, (P, 2)."""
    height, width = frame_size
    stride = max(1, round(max(frame_size) / num_cells))
    y, x = (torch.arange(min(stride, length) // 2, length, stride, device=device) for length in (height, width))
    return torch.cartesian_prod(y, x).flip(-1).float()


def _of_steps(of_frames: torch.Tensor, begins_in: torch.Tensor) -> torch.Tensor:
    """Return what belongs to the frames (..., T, A, B) that steps (..., *steps) begin in, (..., *steps, A, B)."""
    num_clips = of_frames.shape[:-3].numel()
    clips = torch.arange(num_clips, device=of_frames.device)[:, None]
    chosen = of_frames.reshape(num_clips, *of_frames.shape[-3:])[clips, begins_in.reshape(num_clips, -1)]
    return chosen.view(*begins_in.shape, *of_frames.shape[-2:])


def _without_drag(
    frames: torch.Tensor,
    begins_in: torch.Tensor,
    from_xy: torch.Tensor,
    own: torch.Tensor,
    of_camera: torch.Tensor,
    found: torch.Tensor,
) -> torch.Tensor:
    """Return the motion of points less the camera's, 0 where it is only that of an object nearby.

    Args:
        frames, begins_in, from_xy, own, of_camera: See `is_dragged`.
        found: Where the camera's motion has been taken out, broadcasts with (..., *steps).
    """
    if not own.numel():
        return own
    dragged = is_dragged(frames, begins_in, from_xy, own, of_camera) & (own.norm(dim=-1) > INLIER_DISTANCE_PX)
    return own.masked_fill((dragged & found[..., None])[..., None], 0.0)
