"""Which tokens are hidden: tube, cube, random and motion-guided masks with the same count in every draw."""

import math
from collections.abc import Callable

import torch

Grid = tuple[int, int, int]

# Tokens of a block of the cube mask: 2 tubelets x 4 x 4 patches, 4 frames of 64 x 64 px in the usual geometry.
CUBE_BLOCK: Grid = (2, 4, 4)
# Added to motion relative to the clip's mean: a patch at rest can be hidden too, and in a still clip all alike.
_REST = 0.1


def tube_mask(grid: Grid, mask_ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a mask that hides the same patches in every tubelet, `int(mask_ratio * rows * columns)` of them.

    Args:
        grid: Tokens in time, rows and columns.
        mask_ratio: Share of tokens to hide, between 0 and 1.
        generator: Source of randomness on the CPU; None draws from torch's default generator.

    Returns:
        Bool, True = hidden, shape (tokens,), tokens in the order time, row, column.
    """
    num_patches = grid[1] * grid[2]
    num_masked = _num_masked(num_patches, mask_ratio)
    mask = torch.zeros(num_patches, dtype=torch.bool)
    mask[torch.randperm(num_patches, generator=generator)[:num_masked]] = True
    return mask.repeat(grid[0])


def random_mask(grid: Grid, mask_ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a mask that hides `int(mask_ratio * tokens)` tokens, each equally likely. See `tube_mask`."""
    num_tokens = grid[0] * grid[1] * grid[2]
    mask = torch.zeros(num_tokens, dtype=torch.bool)
    mask[torch.randperm(num_tokens, generator=generator)[: _num_masked(num_tokens, mask_ratio)]] = True
    return mask


def cube_mask(
    grid: Grid, mask_ratio: float, generator: torch.Generator | None = None, block: Grid = CUBE_BLOCK
) -> torch.Tensor:
    """Return a mask that hides blocks in space and time, `int(mask_ratio * tokens)` tokens in all.

    The grid is tiled by blocks from a random offset and blocks are hidden in random order; the last one is hidden
    only in part, so that the count is exact.

    Args:
        grid: Tokens in time, rows and columns.
        mask_ratio: Share of tokens to hide, between 0 and 1.
        generator: Source of randomness on the CPU; None draws from torch's default generator.
        block: Tokens of a block in time, rows and columns.

    Returns:
        Bool, True = hidden, shape (tokens,).
    """
    num_tokens = grid[0] * grid[1] * grid[2]
    num_masked = _num_masked(num_tokens, mask_ratio)
    block_of_axis = []
    for size, side in zip(grid, block, strict=True):
        offset = int(torch.randint(side, (1,), generator=generator))
        block_of_axis.append((torch.arange(size) + offset) // side)
    num_blocks = [int(index[-1]) + 1 for index in block_of_axis]
    time, row, column = torch.meshgrid(*block_of_axis, indexing="ij")
    block_of_token = ((time * num_blocks[1] + row) * num_blocks[2] + column).flatten()
    rank = torch.randperm(num_blocks[0] * num_blocks[1] * num_blocks[2], generator=generator)
    order = rank[block_of_token].argsort(stable=True)
    mask = torch.zeros(num_tokens, dtype=torch.bool)
    mask[order[:num_masked]] = True
    return mask


def motion_mask(
    grid: Grid,
    mask_ratio: float,
    generator: torch.Generator | None = None,
    *,
    motion: torch.Tensor,
    strength: float = 1.0,
) -> torch.Tensor:
    """Return a tube mask that hides patches the more often the more they move. See `tube_mask`.

    `int(mask_ratio * rows * columns)` patches are drawn without replacement, each time with chances proportional to
    (motion / mean motion of the clip + 0.1) ** strength.

    Args:
        grid: Tokens in time, rows and columns.
        mask_ratio: Share of tokens to hide, between 0 and 1.
        generator: Source of randomness on the CPU; None draws from torch's default generator.
        motion: How much each patch moves, in any unit, at least 0, shape (rows, columns) or (rows * columns,).
        strength: How much motion decides: 0 for a plain tube mask, 1 for chances proportional to motion.

    Returns:
        Bool, True = hidden, shape (tokens,), tokens in the order time, row, column.
    """
    noise = draw_mask_noise(grid, generator)
    num_patches = num_masked_patches(grid, mask_ratio)
    return mask_from_noise(noise, motion.detach().to("cpu"), grid, num_patches, strength)


def draw_mask_noise(grid: Grid, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return what chance has to say about a motion-guided mask, before the motion is known.

    Args:
        grid: Tokens in time, rows and columns.
        generator: Source of randomness on the CPU; None draws from torch's default generator.

    Returns:
        Uniform in (0, 1), float64, shape (rows * columns,).
    """
    _check_generator(generator)
    return torch.rand(grid[1] * grid[2], generator=generator, dtype=torch.float64).clamp(min=1e-300)


def mask_from_noise(
    noise: torch.Tensor, motion: torch.Tensor, grid: Grid, num_patches: int, strength: float = 1.0
) -> torch.Tensor:
    """Return the motion-guided masks that noise stands for, see `motion_mask`; batched, on the device of the motion.

    Args:
        noise: As `draw_mask_noise` draws it, shape (..., rows * columns).
        motion: How much each patch moves, as many values.
        grid: Tokens in time, rows and columns.
        num_patches: How many to hide in each frame, see `num_masked_patches`.
        strength: How much motion decides.

    Returns:
        Bool, True = hidden, shape (..., tokens).
    """
    motion = motion.reshape(noise.shape).to(noise.dtype)
    weights = motion / motion.mean(-1, keepdim=True).clamp(min=1e-9) + _REST
    # The largest of log weight + Gumbel noise are such a draw without replacement.
    keys = strength * weights.log() - (-noise.log()).log()
    chosen = keys.topk(num_patches, dim=-1).indices
    mask = torch.zeros(noise.shape, dtype=torch.bool, device=noise.device).scatter(-1, chosen, True)
    return mask.repeat(*[1] * (mask.ndim - 1), grid[0])


def num_masked_patches(grid: Grid, mask_ratio: float) -> int:
    """Return how many patches of a frame a tube hides."""
    return _num_masked(grid[1] * grid[2], mask_ratio)


def patch_motion(
    displacements: torch.Tensor, is_visible: torch.Tensor, points: tuple[int, int], patches: tuple[int, int]
) -> torch.Tensor:
    """Return how far the points of each patch move per raw frame, over the whole clip and as long as they are seen.

    Camera motion counts as motion here.

    Args:
        displacements: In pixels, shape (..., S, L, P, 2).
        is_visible: Whether a point is seen, bool, shape (..., S, L + 1, P).
        points: Rows and columns of the points.
        patches: Rows and columns of the patches; they divide those of the points.

    Returns:
        Float32 pixels per raw frame, 0 for points never seen, shape (..., rows, columns).
    """
    is_seen = is_visible[..., 1:, :]
    lengths = displacements.float().norm(dim=-1).where(is_seen, 0.0)
    mean = lengths.sum((-3, -2)) / is_seen.sum((-3, -2)).clamp(min=1)  # (..., P)
    cells = (points[0] // patches[0], points[1] // patches[1])
    return mean.unflatten(-1, points).unflatten(-1, (-1, cells[1])).unflatten(-3, (-1, cells[0])).mean((-3, -1))


MASK_TYPES: dict[str, Callable[..., torch.Tensor]] = {
    "tube": tube_mask,
    "cube": cube_mask,
    "random": random_mask,
    "motion": motion_mask,
}


def build_mask(
    mask_type: str,
    grid: Grid,
    mask_ratio: float,
    generator: torch.Generator | None = None,
    *,
    motion: torch.Tensor | None = None,
    motion_strength: float = 1.0,
) -> torch.Tensor:
    """Return a mask over the tokens of a clip; every draw hides the same number.

    Args:
        mask_type: A key of `MASK_TYPES`: "tube", "cube", "random" or "motion".
        grid: Tokens in time, rows and columns.
        mask_ratio: Share of tokens to hide, between 0 and 1.
        generator: Source of randomness on the CPU; None draws from torch's default generator.
        motion: For "motion": how much each patch moves, see `motion_mask`; the others do not read it.
        motion_strength: For "motion": how much motion decides, 0 for a plain tube mask.

    Returns:
        Bool, True = hidden, shape (tokens,).

    Raises:
        ValueError: If the type is unknown, the grid or the ratio impossible, no token would be hidden or seen, or a
            motion-guided mask is wanted without motion to guide it.
    """
    check_mask_type(mask_type)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid {tuple(grid)} must be three positive numbers: tokens in time, rows and columns.")
    _check_generator(generator)
    if mask_type != "motion":
        return MASK_TYPES[mask_type](tuple(grid), mask_ratio, generator)
    check_motion_strength(motion_strength)
    if motion is None:
        raise ValueError(
            "mask_type 'motion' needs trajectories, to know where the motion is, and there are none. Give the "
            "processor raw frames and a tracker (return_targets=True), or choose mask_type 'tube'."
        )
    if motion.numel() != grid[1] * grid[2] or not motion.isfinite().all() or motion.min() < 0:
        raise ValueError(
            f"motion has shape {tuple(motion.shape)} and values {motion.min():.3g} to {motion.max():.3g}; it must be "
            f"finite, at least 0, and of shape {tuple(grid[1:])}: (rows, columns) of the patches."
        )
    return motion_mask(tuple(grid), mask_ratio, generator, motion=motion, strength=motion_strength)


def check_motion_strength(strength: float) -> None:
    """Raise ValueError unless motion can decide that much."""
    if isinstance(strength, bool) or not isinstance(strength, int | float) or not 0 <= strength < math.inf:
        raise ValueError(
            f"motion_mask_strength ({strength!r}) must be a finite number of at least 0: 0 for a plain tube mask, 1 "
            "for chances proportional to motion."
        )


def check_mask_type(mask_type: str) -> None:
    """Raise ValueError if there is no mask of that name."""
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type ({mask_type!r}) is unknown. Choose one of {sorted(MASK_TYPES)}.")


def check_mask_ratio(mask_ratio: float) -> None:
    """Raise ValueError unless the ratio lies between 0 and 1."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio ({mask_ratio}) must be between 0 and 1, both excluded. The published one is 0.7.")


def _check_generator(generator: torch.Generator | None) -> None:
    if generator is None:
        return
    if not isinstance(generator, torch.Generator):
        raise ValueError(
            f"generator ({generator!r}) must be a torch.Generator, such as torch.Generator().manual_seed(0), or None."
        )
    if generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}; masks are drawn on the CPU. Use torch.Generator().")


def _num_masked(num_places: int, mask_ratio: float) -> int:
    check_mask_ratio(mask_ratio)
    num_masked = int(mask_ratio * num_places)
    if num_masked == 0:
        raise ValueError(
            f"mask_ratio ({mask_ratio}) of {num_places} places hides none. "
            f"Raise mask_ratio to at least {1 / num_places:.3g} or use more tokens."
        )
    return num_masked
