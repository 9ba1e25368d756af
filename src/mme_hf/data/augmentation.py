"""Random crops of pre-training: where to cut, as boxes in source pixels; the processor cuts those that stand still."""

from __future__ import annotations

import math

import numpy as np
import torch
from PIL import Image

# Crop sides as shares of the frame's short side, and how far apart width and height may be on this list.
CROP_SCALES = (1.0, 0.875, 0.75, 0.66)
MAX_SCALE_DISTANCE = 1

CropBox = tuple[int, int, int, int]


def center_crop_box(height: int, width: int, aspect_ratio: float = 1.0) -> CropBox:
    """Return the largest centred box of a shape.

    Args:
        height: Frame height in pixels.
        width: Frame width in pixels.
        aspect_ratio: Width of the box over its height.

    Returns:
        (left, top, width, height) in whole pixels.
    """
    box_height = min(height, round(width / aspect_ratio))
    box_width = min(width, round(height * aspect_ratio))
    return (width - box_width) // 2, (height - box_height) // 2, box_width, box_height


def multi_scale_crop_box(height: int, width: int, generator: torch.Generator, *, aspect_ratio: float = 1.0) -> CropBox:
    """Return a random crop at a corner or the centre, at one of four scales of the largest centred box.

    Width and height are drawn from neighbouring scales, so that the shape varies a little too.

    Args:
        height: Frame height in pixels.
        width: Frame width in pixels.
        generator: Source of randomness.
        aspect_ratio: Width of the largest box over its height.

    Returns:
        (left, top, width, height) in whole pixels, inside the frame.

    Source: Masked Motion Encoding, pre-training augmentation (crops at four scales, corners and centre).
    """
    pairs = [
        (first, second)
        for i, first in enumerate(CROP_SCALES)
        for j, second in enumerate(CROP_SCALES)
        if abs(i - j) <= MAX_SCALE_DISTANCE
    ]
    scale_y, scale_x = pairs[_draw(len(pairs), generator)]
    _, _, full_width, full_height = center_crop_box(height, width, aspect_ratio)
    box_height, box_width = max(1, round(full_height * scale_y)), max(1, round(full_width * scale_x))
    right, bottom = width - box_width, height - box_height
    corners = ((0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2))
    left, top = corners[_draw(len(corners), generator)]
    return left, top, box_width, box_height


def random_path(
    box: CropBox, height: int, width: int, num_frames: int, generator: torch.Generator, *, max_speed: float
) -> torch.Tensor:
    """Return the boxes of a crop that slides over the frames in a straight line at a random constant speed.

    Speeds are max_speed * u ** 2 with u uniform in [0, 1], so slow ones prevail, and are reduced where the frame has no
    room; the middle of the path is as near to `box` as that room allows.

    Args:
        box: (left, top, width, height) in pixels.
        height: Frame height in pixels.
        width: Frame width in pixels.
        num_frames: Length of the path.
        generator: Source of randomness.
        max_speed: Of the sides of the box per frame.

    Returns:
        (left, top, width, height) of each frame in pixels, not whole, shape (num_frames, 4).
    """
    left, top, box_width, box_height = box
    speed, angle = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
    speed, angle = max_speed * speed**2, 2 * math.pi * angle
    time = torch.arange(num_frames, dtype=torch.float64)
    columns = _slide(left, box_width * speed * math.cos(angle), width - box_width, time)
    rows = _slide(top, box_height * speed * math.sin(angle), height - box_height, time)
    return torch.stack([columns, rows, torch.full_like(time, box_width), torch.full_like(time, box_height)], dim=1)


def _slide(middle: float, step: float, room: float, time: torch.Tensor) -> torch.Tensor:
    """Return positions within [0, room], `step` apart where that is possible, with their middle near `middle`."""
    length = step * (len(time) - 1)
    length = max(-room, min(room, length))
    first = min(max(middle - length / 2, max(0.0, -length)), min(room, room - length))
    # Rounding may lead past an end by a hair, which Pillow refuses.
    return (first + length * time / max(len(time) - 1, 1)).clamp(0.0, room)


def cut_path(frames: torch.Tensor, boxes: torch.Tensor, size: tuple[int, int], resample: int) -> torch.Tensor:
    """Return each frame's box resized with antialiasing; unlike the processor's crops, boxes need not be whole pixels.

    Args:
        frames: uint8 RGB, shape (T, 3, H, W), as a reader gives them.
        boxes: (left, top, width, height) of each frame in pixels, shape (T, 4).
        size: (height, width) of the result.
        resample: Filter, a `PIL.Image.Resampling`.

    Returns:
        uint8, shape (T, 3, *size).
    """
    height, width = size
    cut = np.empty((len(frames), height, width, 3), dtype=np.uint8)
    for picture, frame, (left, top, box_width, box_height) in zip(cut, frames, boxes.tolist(), strict=True):
        box = (left, top, left + box_width, top + box_height)
        image = Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy())
        picture[:] = image.resize((width, height), Image.Resampling(resample), box=box)
    return torch.from_numpy(cut).permute(0, 3, 1, 2)


def happens(probability: float, generator: torch.Generator) -> bool:
    """Return True with the given probability."""
    return bool(torch.rand((), generator=generator) < probability)


def _draw(num_choices: int, generator: torch.Generator) -> int:
    return int(torch.randint(num_choices, (), generator=generator))
