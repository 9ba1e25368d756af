"""Random crops of pre-training: where to cut, as boxes in source pixels; the processor does the cutting."""

from __future__ import annotations

import torch

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


def random_flip(probability: float, generator: torch.Generator) -> bool:
    """Return True with the given probability."""
    return bool(torch.rand((), generator=generator) < probability)


def _draw(num_choices: int, generator: torch.Generator) -> int:
    return int(torch.randint(num_choices, (), generator=generator))
