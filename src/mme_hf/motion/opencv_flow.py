"""What the flows of OpenCV share: clips in, grey images, one pair after another, flow out."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

# Pyramids of all methods need this much.
MIN_FRAME_SIZE_PX = 16


def flow_of_grey_pairs(
    name: str,
    frames: torch.Tensor,
    pairs: Sequence[tuple[int, int]],
    write_flow: Callable[[Any, Any, np.ndarray], object],
    prepared: Callable[[np.ndarray], Any] = lambda grey: grey,
) -> torch.Tensor:
    """Return flow in pixels for every pair of frames, float32, shape (..., len(pairs), 2, H, W).

    Each frame is converted to grey and prepared once, however many pairs it is in.

    Args:
        name: Of the flow, for the error.
        frames: uint8 RGB, shape (..., T, 3, H, W), on any device (computed on the CPU).
        pairs: Indices (from, to) of frames.
        write_flow: Called with two prepared images and where their flow is to be written, float32 (H, W, 2).
        prepared: Maps a grey image uint8 (H, W) to what `write_flow` takes; by default that image.

    Raises:
        ValueError: If frames are smaller than 16 px.
    """
    height, width = frames.shape[-2:]
    if min(height, width) < MIN_FRAME_SIZE_PX:
        raise ValueError(f"frames of {height}x{width} are too small for {name!r}: {MIN_FRAME_SIZE_PX} px at least.")
    clips = frames.cpu().reshape(-1, *frames.shape[-4:])
    flow = np.empty((len(clips), len(pairs), height, width, 2), dtype=np.float32)
    used = sorted({index for pair in pairs for index in pair})
    for clip, clip_flow in zip(clips, flow, strict=True):
        images = {index: prepared(_grey(clip[index].numpy())) for index in used}
        for (first, second), pair_flow in zip(pairs, clip_flow, strict=True):
            write_flow(images[first], images[second], pair_flow)
    planes = torch.from_numpy(flow).movedim(-1, -3)
    return planes.reshape(*frames.shape[:-4], *planes.shape[1:]).to(frames.device)


def _grey(frame: np.ndarray) -> np.ndarray:
    """Return the brightness of an RGB frame uint8 (3, H, W), uint8 (H, W)."""
    import cv2

    interleaved = frame.transpose(1, 2, 0)
    if not interleaved.flags.c_contiguous:
        interleaved = cv2.merge(list(frame))  # a tenth of the time of NumPy's copy
    return cv2.cvtColor(interleaved, cv2.COLOR_RGB2GRAY)
