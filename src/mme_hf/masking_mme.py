"""Which tokens are hidden: tube, cube and random masks with the same count in every draw."""

from collections.abc import Callable

import torch

Grid = tuple[int, int, int]

# Tokens of a block of the cube mask: 2 tubelets x 4 x 4 patches, 4 frames of 64 x 64 px in the usual geometry.
CUBE_BLOCK: Grid = (2, 4, 4)


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


MASK_TYPES: dict[str, Callable[..., torch.Tensor]] = {"tube": tube_mask, "cube": cube_mask, "random": random_mask}


def build_mask(mask_type: str, grid: Grid, mask_ratio: float, generator: torch.Generator | None = None) -> torch.Tensor:
    """Return a mask over the tokens of a clip; every draw hides the same number.

    Args:
        mask_type: A key of `MASK_TYPES`: "tube", "cube" or "random".
        grid: Tokens in time, rows and columns.
        mask_ratio: Share of tokens to hide, between 0 and 1.
        generator: Source of randomness on the CPU; None draws from torch's default generator.

    Returns:
        Bool, True = hidden, shape (tokens,).

    Raises:
        ValueError: If the type is unknown, the grid or the ratio impossible, or no token would be hidden or seen.
    """
    check_mask_type(mask_type)
    if len(grid) != 3 or min(grid) < 1:
        raise ValueError(f"grid {tuple(grid)} must be three positive numbers: tokens in time, rows and columns.")
    if generator is not None and generator.device.type != "cpu":
        raise ValueError(f"generator is on {generator.device}; masks are drawn on the CPU. Use torch.Generator().")
    return MASK_TYPES[mask_type](tuple(grid), mask_ratio, generator)


def check_mask_type(mask_type: str) -> None:
    """Raise ValueError if there is no mask of that name."""
    if mask_type not in MASK_TYPES:
        raise ValueError(f"mask_type ({mask_type!r}) is unknown. Choose one of {sorted(MASK_TYPES)}.")


def check_mask_ratio(mask_ratio: float) -> None:
    """Raise ValueError unless the ratio lies between 0 and 1."""
    if not 0 < mask_ratio < 1:
        raise ValueError(f"mask_ratio ({mask_ratio}) must be between 0 and 1, both excluded. The published one is 0.7.")


def _num_masked(num_places: int, mask_ratio: float) -> int:
    check_mask_ratio(mask_ratio)
    num_masked = int(mask_ratio * num_places)
    if num_masked == 0:
        raise ValueError(
            f"mask_ratio ({mask_ratio}) of {num_places} places hides none. "
            f"Raise mask_ratio to at least {1 / num_places:.3g} or use more tokens."
        )
    return num_masked
