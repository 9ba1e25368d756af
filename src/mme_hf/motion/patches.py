"""What frames look like around points, and how much of it is read at once."""

import torch
import torch.nn.functional as F

from ..point_tracking_mme import constant_on

# Numbers worked on at once: on a CPU what stays in its cache takes two thirds of the time.
MAX_CHUNK_ELEMENTS = {"cpu": 2**19, "cuda": 2**23}


def square_offsets(num_per_side: int, spacing_px: float, device: torch.device) -> torch.Tensor:
    """Return the places of a square of samples around its centre, row by row, (x, y) in pixels, shape (K, 2)."""
    offset = (torch.arange(num_per_side, device=device) - (num_per_side - 1) / 2) * spacing_px
    return torch.stack(torch.meshgrid(offset, offset, indexing="xy"), dim=-1).flatten(0, 1)


def read_patches(
    images: torch.Tensor, points_xy: torch.Tensor, offsets_px: torch.Tensor, frame_size: tuple[int, int]
) -> torch.Tensor:
    """Return images around points, between pixels bilinear, beyond the border as at the border, shape (n, P, K).

    Args:
        images: One channel, of any resolution, shape (n, H, W).
        points_xy: Points in pixels of the frames, shape (n, P, 2).
        offsets_px: Places around each point, in pixels of the frames, shape (K, 2).
        frame_size: (height, width) of the frames in pixels.
    """
    height, width = frame_size
    # grid_sample's coordinates span the frame's edges, -0.5 to W - 0.5, as -1 to 1, at any resolution.
    places = (points_xy[..., None, :] + offsets_px + 0.5) * constant_on(images.device, [2 / width, 2 / height]) - 1
    return F.grid_sample(images[:, None], places, padding_mode="border", align_corners=False)[:, 0]


def chunk_length(device: torch.device, num_elements: int) -> int:
    """Return how many items of so many numbers are best worked on at once."""
    return max(1, MAX_CHUNK_ELEMENTS.get(device.type, 2**19) // max(1, num_elements))
