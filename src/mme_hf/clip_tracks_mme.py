"""The tracks of clips: by which tracker, over which of their frames, and with or without the camera's motion."""

from collections.abc import Callable
from typing import Any

import torch

from .motion_targets_mme import build_targets
from .point_tracking_mme import check_finite, constant_on
from .trajectories_mme import TRACK_FILTERS, Trajectories, build_tracker, grid_points
from .video_inputs_mme import RawFramePlan


def needs_tracks(options: Any, *, is_guided: bool) -> bool:
    """Return whether points have to be followed.

    Args:
        options: With `motion_targets` and `cell_size_px`.
        is_guided: Whether a mask goes by the motion.
    """
    targets = build_targets(options.motion_targets, cell_size_px=options.cell_size_px).values()
    return is_guided or any(getattr(target, "needs_trajectories", True) for target in targets)


def tracker_of(options: Any) -> Any:
    """Return the tracker that `tracker` and `tracker_options` name.

    Raises:
        ValueError: If no such tracker is registered.
    """
    tracker = options.tracker
    return build_tracker(tracker, **(options.tracker_options or {})) if isinstance(tracker, str) else tracker


def is_of_one_clip(tracker: Any) -> bool:
    """Return whether a tracker must be told the clip by `for_clip(geometry, frame_numbers, frame_size)`.

    Stored tracks are those of a whole video: they must know which of its frames these are, and how they were cut.
    """
    return hasattr(tracker, "for_clip")


def follow_points(
    frames: torch.Tensor, plan: RawFramePlan, tracker: Callable[..., Trajectories], options: Any
) -> Trajectories:
    """Return the tracks of the grid's points from the start of every tubelet.

    Args:
        frames: Raw frames, cropped and resized, uint8, shape (..., R, 3, H, W).
        plan: Which of them tracks start at.
        tracker: Follows the points.
        options: With `cell_size_px`, `point_layout` and `trajectory_num_steps`.

    Raises:
        ValueError: If the tracker does not take a batch for one, or a visible point is nowhere (see `check_finite`).
    """
    points_xy = grid_points(*frames.shape[-2:], options.cell_size_px, options.point_layout)
    points_xy = points_xy.to(frames.device, non_blocking=frames.is_cuda)
    tracks = tracker(frames, points_xy, start_frames=plan.starts, num_steps=options.trajectory_num_steps)
    name = getattr(tracker, "name", tracker)
    if tracks.points_xy.shape[:-4] != frames.shape[:-4]:
        raise ValueError(
            f"tracker ({name!r}) returned tracks of shape {tuple(tracks.points_xy.shape)} "
            f"for frames of shape {tuple(frames.shape)}; what comes before (starts, steps + 1, points, 2) must be what "
            "comes before (frames, 3, height, width)."
        )
    # Displacements from or to what is no number are 0, which must not become the label of a point that counts.
    seen = tracks.points_xy.where(tracks.is_visible[..., None], 0.0)
    check_finite(f"what tracker ({name!r}) returned as positions of visible points", seen)
    return tracks


def clip_tracks(
    tracks: Trajectories, frames: torch.Tensor, plan: RawFramePlan, options: Any
) -> tuple[Trajectories, Trajectories]:
    """Return the tracks of clips as they are seen, and as motion is learned from them.

    They are the same unless the camera's motion is removed.

    Args:
        tracks: As the tracker returned them.
        frames: Raw frames, cropped and resized, uint8, shape (..., R, 3, H, W).
        plan: Which of them tracks start at, and which only repeat the last one of the video.
        options: With `camera_motion`.

    Raises:
        ValueError: If the camera's motion is to be removed and nothing that can is registered.
    """
    if any(plan.is_lost):
        # Steps between copies of the last frame would look like points at rest; nothing is known of them.
        tracks = tracks.hide(constant_on(tracks.is_visible.device, plan.is_lost)[:, None, None])
    if options.camera_motion != "remove":
        return tracks, tracks
    if "remove_camera_motion" not in TRACK_FILTERS:
        raise ValueError(
            "camera_motion ('remove') is not available: it needs the mme_hf package, not only its remote code. Install "
            "mme_hf (pip install mme_hf) and `import mme_hf` first, or use camera_motion='keep'."
        )
    return tracks, TRACK_FILTERS["remove_camera_motion"](tracks, frames, plan.starts)


def reads_frames_along_tracks(target: Any) -> bool:
    """Return whether a target looks at the frames where the points are, so that their true places matter."""
    return getattr(target, "reads_frames_along_tracks", False)
