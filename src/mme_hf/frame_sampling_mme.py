"""Which frames of a video make a clip: arithmetic on frame numbers."""

from collections.abc import Sequence
from typing import Any

import numpy as np

FRAME_SAMPLINGS = ("dense", "segments")


def middle_clip(
    metadata: Any, num_frames: int, frame_stride: int, fps: float | None, frame_sampling: str
) -> np.ndarray:
    """Return the indices of the frames of one clip of a video, int64, shape (num_frames,).

    Args:
        metadata: Number of frames and frame rate of the video, as `VideoMetadata` has them.
        num_frames: Frames to take.
        frame_stride: Frames from one to the next, where the video is long enough.
        fps: Frames per second to take; wins over `frame_stride`.
        frame_sampling: "dense" takes them from the middle of the video, "segments" one from the middle of each of
            `num_frames` equal parts of it, unless `fps` is given.

    Raises:
        ValueError: If the video has no frames, `fps` is given and its frame rate is unknown or at most half of it, or
            an option cannot be.
    """
    total = metadata.total_num_frames
    if num_frames < 1 or frame_stride < 1:
        raise ValueError(f"num_frames ({num_frames}) and frame_stride ({frame_stride}) must be at least 1.")
    if fps is not None and not fps > 0:
        raise ValueError(f"fps ({fps}) must be above 0.")
    if not total:
        raise ValueError("the video has no frames (total_num_frames = 0); there is nothing to sample.")
    if frame_sampling not in FRAME_SAMPLINGS:
        raise ValueError(f"frame_sampling ({frame_sampling!r}) must be one of {list(FRAME_SAMPLINGS)}.")
    if frame_sampling == "segments" and fps is None:
        return np.array(segment_frames(total, num_frames, [0.5] * num_frames))
    if fps is None:
        stride = fitting_stride(total, num_frames, frame_stride)
    elif metadata.fps:
        if round(metadata.fps / fps) < 1:
            raise ValueError(
                f"fps ({fps:g}) cannot be met: the video has {metadata.fps:g} frames per second. Choose at most that."
            )
        stride = min(metadata.fps / fps, (total - 1) / max(num_frames - 1, 1))
    else:
        raise ValueError(f"fps ({fps}) needs the video's frame rate. Pass video_metadata with fps, or fps=None.")
    offsets = np.arange(num_frames) * max(stride, 1)
    start = max(0.0, (total - 1 - offsets[-1]) // 2)
    return np.minimum(np.round(start + offsets), total - 1).astype(int)


def fitting_stride(num_available: int, num_frames: int, frame_stride: int) -> int:
    """Return the largest stride up to `frame_stride` with which `num_frames` frames fit; 1 where none does.

    Args:
        num_available: Number of frames that may be used.
        num_frames: Frames of a clip.
        frame_stride: Frames from one to the next that are wanted.
    """
    return frame_stride if num_frames == 1 else max(1, min(frame_stride, (num_available - 1) // (num_frames - 1)))


def segment_frames(num_available: int, num_frames: int, places: Sequence[float]) -> list[int]:
    """Return one frame of each of `num_frames` equal segments of a video.

    Args:
        num_available: Number of frames that may be used.
        num_frames: Segments.
        places: Where in its segment each frame lies, in [0, 1).

    Raises:
        ValueError: If there are not as many places as segments.
    """
    if len(places) != num_frames:
        raise ValueError(f"places has {len(places)} numbers for {num_frames} segments.")
    length = num_available / num_frames
    return [int((segment + place) * length) for segment, place in enumerate(places)]
