"""Histograms of oriented gradients, in cells that tile a frame and in windows around moving points."""

import math

import torch
import torch.nn.functional as F

# Pixels that one pass of the histogram works on: 3 planes of 224 x 224. Its handful of buffers stays in the cache.
_PIXELS_PER_PASS = 3 * 224 * 224
# Windows of one pass on an accelerator, in values: 256 MB in each of a handful of buffers.
_WINDOW_VALUES_PER_PASS = 2**26


@torch.no_grad()
def histogram_of_gradients(video: torch.Tensor, num_bins: int = 9, cell_size_px: int = 8) -> torch.Tensor:
    """Return a histogram of unsigned gradient orientations for every cell and channel, not block-normalised.

    The magnitude of each pixel's Sobel gradient is shared linearly between the two bins nearest to its orientation
    (bin k sits at k * pi / num_bins, wrapping round) and averaged over the cell.

    Args:
        video: Frames, any floating or integer dtype, shape (..., T, C, H, W).
        num_bins: Orientation bins over half a turn.
        cell_size_px: Side of a cell in pixels; height and width are multiples of it.

    Returns:
        Float32 histograms, channel-major (channel * num_bins + bin),
        shape (..., T, C * num_bins, H / cell_size_px, W / cell_size_px).

    Raises:
        ValueError: If the frames do not divide into cells.
        TypeError: If `video` is no tensor.

    Source: Masked Motion Encoding, shape target. Differs in being exact: the published code biases its filters at
        random and loses the votes of gradients that point exactly along a bin.
    """
    if not isinstance(video, torch.Tensor):
        raise TypeError(f"video is a {type(video).__name__}; give a tensor, such as torch.from_numpy(video).")
    if video.ndim < 4:
        raise ValueError(f"video has shape {tuple(video.shape)}; it must be (..., frames, channels, height, width).")
    height, width = video.shape[-2:]
    if cell_size_px < 1 or num_bins < 2 or height % cell_size_px or width % cell_size_px:
        raise ValueError(
            f"frames of {height}x{width} do not divide into cells of cell_size_px ({cell_size_px}), or num_bins "
            f"({num_bins}) is below 2. Choose a cell_size_px that divides height and width."
        )
    shape = (*video.shape[:-3], video.shape[-3] * num_bins, height // cell_size_px, width // cell_size_px)
    if not video.numel():
        return video.new_zeros(shape, dtype=torch.float32)
    planes = video.reshape(-1, height, width)
    # Cache-sized pieces pay off on the CPU only; an accelerator wants everything in one launch.
    planes_per_pass = max(1, _PIXELS_PER_PASS // (height * width)) if video.device.type == "cpu" else len(planes)
    pieces = [_cell_histograms(piece.float(), num_bins, cell_size_px) for piece in planes.split(planes_per_pass)]
    return torch.cat(pieces).reshape(shape)


@torch.no_grad()
def histogram_around_points(
    frames: torch.Tensor, points_xy: torch.Tensor, num_bins: int = 9, window_size_px: int = 8
) -> torch.Tensor:
    """Return the histogram of gradients of a square window centred at each point, at sub-pixel positions.

    Votes are those of `histogram_of_gradients`; a pixel that the window covers in part counts for that part, so that
    a window on whole pixels gives the histogram of that cell and one in between gives the bilinear mixture. Beyond the
    border the frame is repeated; a point outside gets the histogram at the nearest place inside, and one that is
    nowhere (nan), as lost points may be, that of the first pixel.

    Args:
        frames: Any floating or integer dtype, shape (..., C, H, W).
        points_xy: Positions in pixels, each frame's own, shape (..., P, 2).
        num_bins: Orientation bins over half a turn.
        window_size_px: Side of the window in pixels.

    Returns:
        Float32 histograms, channel-major (channel * num_bins + bin), shape (..., P, C * num_bins).
    """
    num_channels, height, width = frames.shape[-3:]
    num_points, taps = points_xy.shape[-2], window_size_px + 1
    if not points_xy.numel():
        return points_xy.new_zeros(*points_xy.shape[:-1], num_channels * num_bins, dtype=torch.float32)
    planes, points = frames.reshape(-1, num_channels, height, width), points_xy.reshape(-1, num_points, 2)
    frames_per_pass = 1
    if frames.device.type != "cpu":
        frames_per_pass = max(1, _WINDOW_VALUES_PER_PASS // (num_points * num_channels * taps * taps))
    pieces = [
        _window_histograms(piece.float(), places.float(), num_bins, window_size_px)
        for piece, places in zip(planes.split(frames_per_pass), points.split(frames_per_pass), strict=True)
    ]
    return torch.cat(pieces).reshape(*points_xy.shape[:-1], num_channels * num_bins)


def _cell_histograms(planes: torch.Tensor, num_bins: int, cell_size_px: int) -> torch.Tensor:
    """Return histograms (planes, bins, H / cell, W / cell) of float32 planes (planes, H, W)."""
    magnitude, phase = _magnitude_and_phase(planes, num_bins)
    sums = [_sum_rows(magnitude, cell_size_px)]
    ramp = torch.empty_like(phase)
    for position in range(num_bins):
        torch.sub(phase, position, out=ramp).clamp_(0, 1).mul_(magnitude)
        sums.append(_sum_rows(ramp, cell_size_px))
    ramps = torch.stack(sums, dim=1).unflatten(-1, (-1, cell_size_px)).sum(-1)  # (planes, bins + 1, rows, columns)
    return _shares(ramps, dim=1).mul_(1 / cell_size_px**2)


def _window_histograms(
    frames: torch.Tensor, points_xy: torch.Tensor, num_bins: int, window_size_px: int
) -> torch.Tensor:
    """Return histograms (frames, P, C * bins) of float32 frames (frames, C, H, W) around points (frames, P, 2)."""
    height, width = frames.shape[-2:]
    margin, taps = window_size_px // 2 + 1, window_size_px + 1
    padded = F.pad(frames, (margin,) * 4, mode="replicate")
    planes = _magnitude_and_phase(padded.flatten(0, 1), num_bins)

    x, y = points_xy.nan_to_num(0.0).unbind(-1)
    inside = torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], dim=-1)
    corner = inside - (window_size_px - 1) / 2 + margin
    first, part = corner.floor().long(), corner.frac()[..., None]
    # A window between pixels covers one more of them along each side: the first and the last in part.
    cover = torch.cat([1 - part, torch.ones_like(part).expand(*part.shape[:-1], taps - 2), part], dim=-1)
    area = cover[..., 1, :, None] * cover[..., 0, None, :]  # (frames, P, taps, taps)

    index = torch.arange(len(frames), device=frames.device)[:, None]
    x, y = first.unbind(-1)
    magnitude, phase = (
        plane.unflatten(0, frames.shape[:2]).unfold(2, taps, 1).unfold(3, taps, 1)[index, :, y, x].flatten(-2)
        for plane in planes
    )  # each (frames, P, C, taps * taps)
    magnitude = magnitude.mul_(area.flatten(-2)[:, :, None])
    sums = [magnitude.sum(-1)]
    ramp = torch.empty_like(phase)
    for position in range(num_bins):
        sums.append(torch.sub(phase, position, out=ramp).clamp_(0, 1).mul_(magnitude).sum(-1))
    return _shares(torch.stack(sums, dim=-1), dim=-1).mul_(1 / window_size_px**2).flatten(-2)


def _magnitude_and_phase(planes: torch.Tensor, num_bins: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the Sobel gradient of planes (planes, H, W): its length, and its unsigned orientation in bins."""
    gradient_x, gradient_y = _sobel(planes)
    magnitude = (gradient_x * gradient_x).addcmul_(gradient_y, gradient_y).sqrt_()
    # Turning every gradient to the upper half plane makes the phase unsigned; sign(0) = 0 sends both ends to bin 0.
    phase = torch.atan2(gradient_y.abs(), gradient_x.mul_(gradient_y.sign())).mul_(num_bins / math.pi)
    return magnitude, phase


def _shares(ramps: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the votes per bin from sums of the magnitude and of its ramps at bins 0, 1, ..., along `dim`."""
    # The triangular share of bin k is clamp(phase - k + 1, 0, 1) - clamp(phase - k, 0, 1): ramps summed over cells and
    # differences taken on the small pooled arrays replace indices and scatters.
    shares = -ramps.diff(dim=dim)
    shares.select(dim, 0).add_(ramps.select(dim, -1))  # beyond the last bin comes the first again
    return shares.clamp_(min=0)


def _sobel(planes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    padded = F.pad(planes[None], (1, 1, 1, 1), mode="replicate")[0]
    rows = (padded[:, :-2] + padded[:, 2:]).add_(padded[:, 1:-1], alpha=2)
    columns = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    return rows[..., :-2] - rows[..., 2:], columns[:, :-2] - columns[:, 2:]


def _sum_rows(planes: torch.Tensor, cell_size_px: int) -> torch.Tensor:
    return planes.unflatten(-2, (-1, cell_size_px)).sum(-2)
