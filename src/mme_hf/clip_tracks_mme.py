"""The tracks of one clip: by which tracker, over which of its frames, and with or without the camera's motion."""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from .trajectories_mme import TRACK_FILTERS, ClipGeometry, Trajectories, build_tracker, grid_points
from .video_inputs_mme import RawFramePlan


def clip_tracker(options: Any, geometry: ClipGeometry, frame_numbers: Sequence[int]) -> Callable[..., Trajectories]:
    """Return what tracks a clip.

    Args:
        options: With `tracker` and `tracker_options`.
        geometry: How the clip's frames are cut from those of the video.
        frame_numbers: Which frames of the video they are.

    Raises:
        ValueError: If no such tracker is registered.
    """
    tracker = options.tracker
    if isinstance(tracker, str):
        tracker = build_tracker(tracker, **(options.tracker_options or {}))
    # Stored tracks are those of a whole video: they must know which of its frames these are, and how they were cut.
    return tracker.for_clip(geometry, frame_numbers) if hasattr(tracker, "for_clip") else tracker


def clip_tracks(
    frames: torch.Tensor, plan: RawFramePlan, tracker: Callable[..., Trajectories], options: Any
) -> tuple[Trajectories, Trajectories]:
    """Return the tracks of a clip as they are seen, and as motion is learned from them.

    They are the same unless the camera's motion is removed.

    Args:
        frames: Raw frames, cropped and resized, uint8, shape (R, 3, H, W).
        plan: Which of them tracks start at, and which only repeat the last one of the video.
        tracker: Follows the points.
        options: With `cell_size_px`, `point_layout`, `trajectory_num_steps` and `camera_motion`.

    Raises:
        ValueError: If the camera's motion is to be removed and nothing that can is registered.
    """
    removes_camera_motion = options.camera_motion == "remove"
    if removes_camera_motion and "remove_camera_motion" not in TRACK_FILTERS:
        raise ValueError(
            "camera_motion ('remove') is not available: it needs the mme_hf package, not only its remote code. Install "
            "mme_hf (pip install mme_hf) and `import mme_hf` first, or use camera_motion='keep'."
        )
    points_xy = grid_points(*frames.shape[-2:], options.cell_size_px, options.point_layout)
    tracks = tracker(frames, points_xy, start_frames=plan.starts, num_steps=options.trajectory_num_steps)
    if any(plan.is_lost):
        # Steps between copies of the last frame would look like points at rest; nothing is known of them.
        tracks = tracks.hide(torch.tensor(plan.is_lost, device=tracks.is_visible.device)[:, None, None])
    if not removes_camera_motion:
        return tracks, tracks
    return tracks, TRACK_FILTERS["remove_camera_motion"](tracks, frames, plan.starts)


def reads_frames_along_tracks(target: Any) -> bool:
    """Return whether a target looks at the frames where the points are, so that their true places matter."""
    return getattr(target, "reads_frames_along_tracks", False)
