"""What the flows of OpenCV share: clips in, grey images, one pair after another, flow out."""

from collections.abc import Callable, Sequence

import numpy as np
import torch

# Pyramids of all methods need this much.
MIN_FRAME_SIZE_PX = 16


def flow_of_grey_pairs(
    name: str,
    frames: torch.Tensor,
    pairs: Sequence[tuple[int, int]],
    flow_of: Callable[[np.ndarray, np.ndarray], np.ndarray],
) -> torch.Tensor:
    """Return flow in pixels for every pair of frames, float32, shape (..., len(pairs), 2, H, W).

    Each frame is converted to grey once.

    Args:
        name: Of the flow, for the error.
        frames: uint8 RGB, shape (..., T, 3, H, W), on any device (computed on the CPU).
        pairs: Indices (from, to) of frames.
        flow_of: Maps two grey images uint8 (H, W) to flow (H, W, 2).

    Raises:
        ValueError: If frames are smaller than 16 px.
    """
    import cv2

    height, width = frames.shape[-2:]
    if min(height, width) < MIN_FRAME_SIZE_PX:
        raise ValueError(f"frames of {height}x{width} are too small for {name!r}: {MIN_FRAME_SIZE_PX} px at least.")
    clips = frames.cpu().reshape(-1, *frames.shape[-4:])
    flow = np.empty((len(clips), len(pairs), height, width, 2), dtype=np.float32)
    for clip, clip_flow in zip(clips, flow, strict=True):
        images = clip.permute(0, 2, 3, 1)
        grey = {
            index: cv2.cvtColor(np.ascontiguousarray(images[index].numpy()), cv2.COLOR_RGB2GRAY)
            for index in sorted({index for pair in pairs for index in pair})
        }
        for (first, second), pair_flow in zip(pairs, clip_flow, strict=True):
            pair_flow[...] = flow_of(grey[first], grey[second])
    planes = torch.from_numpy(flow).movedim(-1, -3)
    return planes.reshape(*frames.shape[:-4], *planes.shape[1:]).to(frames.device)
