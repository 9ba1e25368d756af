"""A batched flow in plain PyTorch: all pairs of all clips at once, on any device. The default on a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from .flow_tracker import median_filter_3x3

# Side of the patches that are matched, at every level. Even, so that the centre of an 8 px cell, where the default
# targets have their points, is the centre of a patch of whole pixels.
PATCH_SIZE_PX = 8
PATCH_SIGMA_PX = 2.5
# Distance of patches at each level of the pyramid, in pixels of that level, full resolution first: side by side where
# most of the work is, overlapping below. The last one holds for all further levels.
PATCH_SPACINGS_PX = (8, 8, 4)
# No level is smaller than this.
MIN_LEVEL_SIZE_PX = 8
# Steps before and after every patch is offered the motion of its neighbours.
ITERATIONS = (3, 1)
# Added to the squared gradients (grey values squared): holds still what has no texture. 1 costs accuracy, 0.1 noise.
DAMPING = 0.3
MAX_STEP_PX = 1.0
# What the steps of one round may move a patch; beyond it has slipped to other texture and stays.
MAX_MOVE_PX = 2.0
# A neighbour's motion must match better by this factor.
CANDIDATE_HANDICAP = 1.05


@dataclass(frozen=True)
class TorchFlow:
    """Dense flow on grey frames by matching patches from coarse to fine, on the device of the frames, in float32.

    At each level of a Gaussian pyramid, patches of 8 px on a regular grid take Gauss-Newton steps towards the least
    squared difference; then each tries the motion of its four neighbours and the median of its 3 x 3 neighbourhood,
    and keeps what matches best; then one more step, and a 3 x 3 median over the grid. At full resolution the patches
    are the 8 px cells; between their centres flow is interpolated.

    Nothing is summed in an order that may change and nothing is multiplied in reduced precision, so CPU and GPU agree
    to rounding. One pair of 224 x 224 px takes about 2 MB while it is worked on.

    Attributes:
        num_levels: Pyramid levels at most, full resolution included; small frames have fewer.
        is_compiled: Whether `torch.compile` fuses the work, which on a GPU is worth its half minute at the first batch.

    Source: the inverse-compositional steps of Baker and Matthews (2004) on the patches of Dense Inverse Search (Kroeger
        et al., 2016); candidates of neighbours as in PatchMatch (Barnes et al., 2009).
    """

    name: ClassVar[str] = "torch"
    num_levels: int = 5
    is_compiled: bool = False

    def __post_init__(self):
        if not isinstance(self.num_levels, int) or self.num_levels < 1:
            raise ValueError(f"tracker 'torch': num_levels ({self.num_levels!r}) must be a whole number, at least 1.")

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, float32, shape (..., len(pairs), 2, H, W).

        Args:
            frames: uint8 RGB, shape (..., T, 3, H, W).
            pairs: Indices (from, to) of frames.
        """
        used = sorted({index for pair in pairs for index in pair})
        clips = frames[..., used, :, :, :].reshape(-1, len(used), *frames.shape[-3:])
        places = torch.tensor([[used.index(index) for index in pair] for pair in pairs], device=frames.device)
        flow_of_pairs = _compiled_flow_of_pairs() if self.is_compiled else _flow_of_pairs
        with torch.autocast(frames.device.type, enabled=False):
            flow = flow_of_pairs(clips, places, self.num_levels)
        return flow.reshape(*frames.shape[:-4], *flow.shape[1:])


@lru_cache(maxsize=1)
def _compiled_flow_of_pairs() -> Any:
    return torch.compile(_flow_of_pairs, fullgraph=True)


def _flow_of_pairs(frames: torch.Tensor, pairs: torch.Tensor, num_levels: int) -> torch.Tensor:
    """Return flow (B, pairs, 2, H, W) between pairs (pairs, 2) of the frames uint8 (B, T, 3, H, W)."""
    num_clips, (height, width) = len(frames), frames.shape[-2:]
    red, green, blue = (frames[:, :, channel].float() for channel in range(3))
    pyramid = [0.299 * red + 0.587 * green + 0.114 * blue]  # (B, T, H, W)
    num_levels = min(num_levels, 1 + max(0, int(math.log2(min(height, width) / MIN_LEVEL_SIZE_PX))))
    while len(pyramid) < num_levels:
        pyramid.append(_half_size(pyramid[-1]))
    spacings = PATCH_SPACINGS_PX + PATCH_SPACINGS_PX[-1:] * num_levels
    motion = None
    for level in reversed(range(num_levels)):
        images = pyramid[level]
        before, after = (images[:, indices].flatten(0, 1)[:, None] for indices in pairs.unbind(1))
        matcher = _matcher(before, after, spacings[level])
        if motion is None:
            motion = images.new_zeros(len(before), 2, *matcher.grid_size)
        else:
            enlarged = 2 * motion
            if spacings[level + 1] == spacings[level]:
                enlarged = F.interpolate(enlarged, scale_factor=2.0, mode="bilinear", align_corners=False)
            motion = enlarged[..., : matcher.grid_size[0], : matcher.grid_size[1]]
        motion = _matched(matcher, motion)
    flow = F.interpolate(motion, scale_factor=float(spacings[0]), mode="bilinear", align_corners=False)
    return flow[..., :height, :width].unflatten(0, (num_clips, -1))


def _half_size(images: torch.Tensor) -> torch.Tensor:
    """Return images (..., H, W) at half the size, rounded up, filtered by (1, 3, 3, 1) / 8 each way."""
    bottom, right = (size % 2 for size in images.shape[-2:])
    images = F.pad(images, (1, 1 + right, 1, 1 + bottom), mode="replicate")
    # Three boxes make that filter, without a convolution: those run in TensorFloat-32 unless told otherwise.
    return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(images, 2, stride=1), 2, stride=1), 2)


class _Matcher(NamedTuple):
    """What the steps of one level need; n pairs, P patches, K pixels of a patch.

    Attributes:
        image: The second images, (n, 1, h, w).
        places: Pixels of the unmoved patches in `grid_sample`'s coordinates, (P, K, 2).
        px: One pixel in these coordinates, (2,).
        weights: Gaussian weights of the pixels of a patch, sum 1, (K,).
        template: Patches of the first images, (n, P, K).
        steps_x: What a grey value too much at each pixel moves the patch, in pixels, (n, P, K).
        steps_y: The same downwards.
        grid_size: Rows and columns of patches.
    """

    image: torch.Tensor
    places: torch.Tensor
    px: torch.Tensor
    weights: torch.Tensor
    template: torch.Tensor
    steps_x: torch.Tensor
    steps_y: torch.Tensor
    grid_size: tuple[int, int]

    def difference(self, motion: torch.Tensor) -> torch.Tensor:
        """Return how patches moved by `motion` (n, 2, rows, columns) differ from the template, (n, P, K)."""
        shift = motion.flatten(2).transpose(1, 2)[:, :, None] * self.px  # (n, P, 1, 2)
        moved = F.grid_sample(self.image, self.places + shift, padding_mode="border", align_corners=False)
        return moved[:, 0] - self.template

    def misfit(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the mean absolute difference of each patch but for its brightness, (n, 1, rows, columns)."""
        difference = self.difference(motion)
        difference = difference - (difference * self.weights).sum(-1, keepdim=True)
        return (difference.abs() * self.weights).sum(-1).unflatten(1, self.grid_size)[:, None]

    def stepped(self, motion: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Return motion after Gauss-Newton steps, or as it was where these lead far away."""
        start = motion
        for _ in range(num_steps):
            difference = self.difference(motion)
            step = torch.stack([(difference * self.steps_x).sum(-1), (difference * self.steps_y).sum(-1)], dim=1)
            motion = motion - step.clamp(-MAX_STEP_PX, MAX_STEP_PX).unflatten(2, self.grid_size)
        is_near = (motion - start).abs().amax(1, keepdim=True) <= MAX_MOVE_PX
        return torch.where(is_near, motion, start)


def _matched(matcher: _Matcher, motion: torch.Tensor) -> torch.Tensor:
    """Return motion (n, 2, rows, columns) improved at one level."""
    motion = matcher.stepped(motion, ITERATIONS[0])
    rows, columns = matcher.grid_size
    padded = F.pad(motion, (1, 1, 1, 1), mode="replicate")
    places = ((0, 1), (2, 1), (1, 0), (1, 2))  # above, below, left, right
    candidates = [padded[..., row : row + rows, column : column + columns] for row, column in places]
    candidates.append(median_filter_3x3(motion))
    least = matcher.misfit(motion)
    for candidate in candidates:
        misfit = CANDIDATE_HANDICAP * matcher.misfit(candidate)
        motion = torch.where(misfit < least, candidate, motion)
        least = torch.minimum(least, misfit)
    return median_filter_3x3(matcher.stepped(motion, ITERATIONS[1]))


def _matcher(before: torch.Tensor, after: torch.Tensor, spacing_px: int) -> _Matcher:
    """Return the matcher of images (n, 1, h, w) to images of the same shape."""
    height, width = before.shape[-2:]
    rows, columns = -(-height // spacing_px), -(-width // spacing_px)
    offsets = torch.arange(PATCH_SIZE_PX, device=before.device) - (PATCH_SIZE_PX - 1) / 2
    bell = torch.exp(-(offsets**2) / (2 * PATCH_SIGMA_PX**2))
    weights = (bell[:, None] * bell / bell.sum() ** 2).flatten()

    padded = F.pad(before, (1, 1, 1, 1), mode="replicate")
    gradient_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gradient_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    template, x, y = (_patches(plane, spacing_px, rows, columns) for plane in (before, gradient_x, gradient_y))
    # Without their means the gradients do not see a change of brightness.
    x = x - (x * weights).sum(-1, keepdim=True)
    y = y - (y * weights).sum(-1, keepdim=True)
    weighted_x, weighted_y = x * weights, y * weights
    xx = (weighted_x * x).sum(-1, keepdim=True) + DAMPING
    yy = (weighted_y * y).sum(-1, keepdim=True) + DAMPING
    xy = (weighted_x * y).sum(-1, keepdim=True)
    scale = 1 / (xx * yy - xy * xy)
    steps_x = (yy * scale) * weighted_x - (xy * scale) * weighted_y
    steps_y = (xx * scale) * weighted_y - (xy * scale) * weighted_x

    # grid_sample's coordinates span the image's edges, -0.5 to w - 0.5, as -1 to 1.
    px = torch.stack([offsets.new_full((), 2 / width), offsets.new_full((), 2 / height)])
    pixel_y, pixel_x = (
        (torch.arange(count, device=before.device) * spacing_px + (spacing_px - 1) / 2)[:, None] + offsets
        for count in (rows, columns)
    )
    shape = (rows, columns, PATCH_SIZE_PX, PATCH_SIZE_PX)
    pixels = torch.stack([pixel_x[None, :, None].expand(shape), pixel_y[:, None, :, None].expand(shape)], dim=-1)
    places = (pixels.flatten(2, 3).flatten(0, 1) + 0.5) * px - 1  # (P, K, 2)
    return _Matcher(after, places, px, weights, template, steps_x, steps_y, (rows, columns))


def _patches(planes: torch.Tensor, spacing_px: int, rows: int, columns: int) -> torch.Tensor:
    """Return the patches around the centres of cells of `spacing_px`, (n, P, K), of planes (n, 1, h, w)."""
    margin = (PATCH_SIZE_PX - spacing_px) // 2
    bottom, right = rows * spacing_px - planes.shape[-2] + margin, columns * spacing_px - planes.shape[-1] + margin
    padded = F.pad(planes, (margin, right, margin, bottom), mode="replicate")[:, 0]
    windows = padded.unfold(1, PATCH_SIZE_PX, spacing_px).unfold(2, PATCH_SIZE_PX, spacing_px)
    return windows.flatten(3, 4).flatten(1, 2)
