"""A batched flow in plain PyTorch: all pairs of all clips at once, on any device. The default on a GPU."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F

from ..point_tracking_mme import constant_on
from .flow_tracker import median_filter_3x3


class _Level(NamedTuple):
    """How one level of the pyramid is worked on, in pixels of that level.

    Attributes:
        spacing_px: Distance of patches.
        num_steps: Steps before every patch is offered the motion of its neighbours; one more follows.
        compared_size_px: Side of the middle of a patch that tells which of the motions offered is best.
    """

    spacing_px: int
    num_steps: int
    compared_size_px: int


# Full resolution first; the last one holds for all further levels. Where most of the work is, patches lie side by side
# and their middles decide: a quarter of the reading, and at borders of moving objects the error falls by a tenth.
# Below, where motion may still be wrong by whole pixels, patches overlap and decide with all they have.
LEVELS = (_Level(8, 2, 4), _Level(8, 2, 4), _Level(4, 3, 8))
# Side of the patches that are matched, at every level. Even, so that the centre of an 8 px cell, where the default
# targets have their points, is the centre of a patch of whole pixels.
PATCH_SIZE_PX = 8
PATCH_SIGMA_PX = 2.5
# No level is smaller than this.
MIN_LEVEL_SIZE_PX = 8
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
    to rounding.

    Attributes:
        num_levels: Pyramid levels at most, full resolution included; small frames have fewer.
        is_compiled: Whether `torch.compile` fuses the work, some 1,300 operations into 200, which on a GPU is worth its
            minutes at the first batch.

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
        places = constant_on(frames.device, [[used.index(index) for index in pair] for pair in pairs])
        clips = frames.index_select(-4, constant_on(frames.device, used)).reshape(-1, len(used), *frames.shape[-3:])
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
    levels = LEVELS + LEVELS[-1:] * num_levels
    motion = None
    for level in reversed(range(num_levels)):
        images = pyramid[level]
        before, after = (images[:, indices].flatten(0, 1)[:, None] for indices in pairs.unbind(1))
        matcher = _matcher(before, after, levels[level])
        if motion is None:
            motion = images.new_zeros(len(before), 2, *matcher.grid_size)
        else:
            enlarged = 2 * motion
            if levels[level + 1].spacing_px == levels[level].spacing_px:
                enlarged = F.interpolate(enlarged, scale_factor=2.0, mode="bilinear", align_corners=False)
            motion = enlarged[..., : matcher.grid_size[0], : matcher.grid_size[1]]
        motion = _matched(matcher, motion, levels[level].num_steps)
    flow = F.interpolate(motion, scale_factor=float(levels[0].spacing_px), mode="bilinear", align_corners=False)
    return flow[..., :height, :width].unflatten(0, (num_clips, -1))


def _half_size(images: torch.Tensor) -> torch.Tensor:
    """Return images (..., H, W) at half the size, rounded up, filtered by (1, 3, 3, 1) / 8 each way."""
    bottom, right = (size % 2 for size in images.shape[-2:])
    images = F.pad(images, (1, 1 + right, 1, 1 + bottom), mode="replicate")
    # Three boxes make that filter, without a convolution: those run in TensorFloat-32 unless told otherwise.
    return F.avg_pool2d(F.avg_pool2d(F.avg_pool2d(images, 2, stride=1), 2, stride=1), 2)


class _Patches(NamedTuple):
    """Patches of the first images: n pairs, P patches, K pixels of a patch.

    Attributes:
        places: Their pixels in `grid_sample`'s coordinates, (P, K, 2).
        grey: Their grey values, (n, P, K).
        weights: Gaussian weights of the pixels of each patch, 0 outside the frame, sum 1, (P, K).
    """

    places: torch.Tensor
    grey: torch.Tensor
    weights: torch.Tensor

    def middle(self, size_px: int) -> "_Patches":
        """Return the middle of each patch."""
        if size_px == PATCH_SIZE_PX:
            return self
        shape, kept = (
            (PATCH_SIZE_PX, PATCH_SIZE_PX),
            slice((PATCH_SIZE_PX - size_px) // 2, (PATCH_SIZE_PX + size_px) // 2),
        )
        places = self.places.unflatten(1, shape)[:, kept, kept].flatten(1, 2)
        grey = self.grey.unflatten(2, shape)[:, :, kept, kept].flatten(2)
        weights = self.weights.unflatten(1, shape)[:, kept, kept].flatten(1)
        return _Patches(places, grey, _shares(weights))


class _Matcher(NamedTuple):
    """What the steps of one level need.

    Attributes:
        image: The second images, (n, 1, h, w).
        patches: Patches of the first images.
        compared: The middles of the patches, which tell whose motion is best.
        steps_x: What a grey value too much at each pixel moves the patch, in pixels, (n, P, K).
        steps_y: The same downwards.
        px: One pixel in `grid_sample`'s coordinates, (2,).
        grid_size: Rows and columns of patches.
    """

    image: torch.Tensor
    patches: _Patches
    compared: _Patches
    steps_x: torch.Tensor
    steps_y: torch.Tensor
    px: torch.Tensor
    grid_size: tuple[int, int]

    def difference(self, patches: _Patches, motion: torch.Tensor) -> torch.Tensor:
        """Return how the image differs from patches moved by `motion` (n, 2, rows, columns), (n, P, K)."""
        shift = motion.flatten(2).transpose(1, 2)[:, :, None] * self.px  # (n, P, 1, 2)
        moved = F.grid_sample(self.image, patches.places + shift, padding_mode="border", align_corners=False)
        return moved[:, 0] - patches.grey

    def misfit(self, motion: torch.Tensor) -> torch.Tensor:
        """Return the mean absolute difference of each patch but for its brightness, (n, 1, rows, columns)."""
        difference = self.difference(self.compared, motion)
        brightness = (difference * self.compared.weights).sum(-1, keepdim=True)
        difference = (difference - brightness) * self.compared.weights
        # The norm reads the product once: in eager mode what limits a GPU is how often memory is read and written.
        return difference.norm(p=1, dim=-1).unflatten(1, self.grid_size)[:, None]

    def stepped(self, motion: torch.Tensor, num_steps: int) -> torch.Tensor:
        """Return motion after Gauss-Newton steps, or as it was where these lead far away."""
        start = motion
        for _ in range(num_steps):
            difference = self.difference(self.patches, motion)
            step = torch.stack([(difference * self.steps_x).sum(-1), (difference * self.steps_y).sum(-1)], dim=1)
            motion = motion - step.clamp(-MAX_STEP_PX, MAX_STEP_PX).unflatten(2, self.grid_size)
        is_near = (motion - start).abs().amax(1, keepdim=True) <= MAX_MOVE_PX
        return torch.where(is_near, motion, start)


def _matched(matcher: _Matcher, motion: torch.Tensor, num_steps: int) -> torch.Tensor:
    """Return motion (n, 2, rows, columns) improved at one level."""
    motion = matcher.stepped(motion, num_steps)
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
    return median_filter_3x3(matcher.stepped(motion, 1))


def _matcher(before: torch.Tensor, after: torch.Tensor, level: _Level) -> _Matcher:
    """Return the matcher of images (n, 1, h, w) to images of the same shape."""
    spacing_px = level.spacing_px
    height, width = before.shape[-2:]
    rows, columns = -(-height // spacing_px), -(-width // spacing_px)
    padded = F.pad(before, (1, 1, 1, 1), mode="replicate")
    gradient_x = (padded[..., 1:-1, 2:] - padded[..., 1:-1, :-2]) / 2
    gradient_y = (padded[..., 2:, 1:-1] - padded[..., :-2, 1:-1]) / 2
    grey, x, y = (_patches(plane, spacing_px, rows, columns) for plane in (before, gradient_x, gradient_y))
    places, weights, px = _patch_pixels(before, spacing_px, rows, columns)
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

    patches = _Patches(places, grey, weights)
    middle = patches.middle(level.compared_size_px)
    return _Matcher(after, patches, middle, steps_x, steps_y, px, (rows, columns))


def _patch_pixels(
    image: torch.Tensor, spacing_px: int, rows: int, columns: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return places and weights of the pixels of all patches (see `_Patches`), and a pixel (see `_Matcher.px`)."""
    offsets = torch.arange(PATCH_SIZE_PX, device=image.device) - (PATCH_SIZE_PX - 1) / 2
    bell = torch.exp(-(offsets**2) / (2 * PATCH_SIGMA_PX**2))
    places, weights, px = [], [], []
    for count, length in ((columns, image.shape[-1]), (rows, image.shape[-2])):
        centres = torch.arange(count, device=image.device) * spacing_px + (spacing_px - 1) / 2
        pixels = centres[:, None] + offsets
        # grid_sample's coordinates span the image's edges, -0.5 to w - 0.5, as -1 to 1.
        px.append(offsets.new_full((), 2 / length))
        places.append((pixels + 0.5) * px[-1] - 1)
        weights.append(bell * (pixels >= 0) * (pixels < length))  # what the border is padded with says nothing
    (x, y), (weight_x, weight_y) = places, weights
    shape = (rows, columns, PATCH_SIZE_PX, PATCH_SIZE_PX)
    xy = torch.stack([x[None, :, None].expand(shape), y[:, None, :, None].expand(shape)], dim=-1)
    weight = weight_y[:, None, :, None] * weight_x[None, :, None]
    return xy.flatten(2, 3).flatten(0, 1), _shares(weight.flatten(2, 3).flatten(0, 1)), torch.stack(px)


def _shares(weights: torch.Tensor) -> torch.Tensor:
    """Return weights (P, K) with the sum 1 for each patch, or 0 for one that lies outside the frame."""
    return weights / weights.sum(-1, keepdim=True).clamp(min=1e-6)


def _patches(planes: torch.Tensor, spacing_px: int, rows: int, columns: int) -> torch.Tensor:
    """Return the patches around the centres of cells of `spacing_px`, (n, P, K), of planes (n, 1, h, w)."""
    margin = (PATCH_SIZE_PX - spacing_px) // 2
    bottom, right = rows * spacing_px - planes.shape[-2] + margin, columns * spacing_px - planes.shape[-1] + margin
    padded = F.pad(planes, (margin, right, margin, bottom), mode="replicate")[:, 0]
    windows = padded.unfold(1, PATCH_SIZE_PX, spacing_px).unfold(2, PATCH_SIZE_PX, spacing_px)
    return windows.flatten(3, 4).flatten(1, 2)
