import pytest
import torch

from mme_hf.masking_mme import CUBE_BLOCK, MASK_TYPES, build_mask, cube_mask

GRID = (8, 14, 14)


@pytest.mark.parametrize("mask_type", sorted(MASK_TYPES))
@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.9])
@pytest.mark.parametrize("grid", [GRID, (4, 7, 5), (1, 3, 9)])
def test_every_draw_hides_the_same_number(mask_type, ratio, grid):
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([build_mask(mask_type, grid, ratio, generator) for _ in range(20)])
    per_frame, total = int(ratio * (grid[1] * grid[2])), int(ratio * (grid[0] * grid[1] * grid[2]))
    expected = per_frame * grid[0] if mask_type == "tube" else total
    assert masks.dtype == torch.bool and masks.shape == (20, grid[0] * grid[1] * grid[2])
    assert (masks.sum(1) == expected).all()
    assert len({tuple(mask.tolist()) for mask in masks}) > 1


def test_tube_mask_is_the_same_in_every_tubelet():
    mask = build_mask("tube", GRID, 0.7).view(8, -1)
    assert (mask == mask[0]).all() and mask[0].sum() == int(0.7 * 196)


def test_cube_mask_hides_whole_blocks_but_for_one():
    generator = torch.Generator().manual_seed(1)
    # Block sides that divide the grid in every axis, offset 0: count blocks that are neither full nor empty.
    mask = cube_mask((4, 8, 8), 0.53, generator, block=(1, 1, 1))
    assert mask.sum() == int(0.53 * 256)
    mask = cube_mask((8, 8, 8), 0.6, generator, block=CUBE_BLOCK).view(8, 8, 8)
    neighbours_agree = (mask[:, :, 1:] == mask[:, :, :-1]).float().mean()
    assert neighbours_agree > 0.8  # a random mask of this ratio: 0.52


def test_every_token_is_hidden_about_equally_often():
    generator = torch.Generator().manual_seed(0)
    for mask_type in MASK_TYPES:
        rate = torch.stack([build_mask(mask_type, (4, 8, 8), 0.5, generator) for _ in range(800)]).float().mean(0)
        assert (rate - 0.5).abs().max() < 0.1, mask_type


def test_generator_decides():
    draws = [build_mask("cube", GRID, 0.7, torch.Generator().manual_seed(seed)) for seed in (3, 3, 4)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])


def test_none_draws_from_the_default_generator():
    torch.manual_seed(5)
    first = build_mask("random", GRID, 0.7)
    torch.manual_seed(5)
    assert torch.equal(first, build_mask("random", GRID, 0.7))


@pytest.mark.parametrize(
    ("mask_type", "grid", "ratio", "message"),
    [
        ("stripe", GRID, 0.7, "mask_type \\('stripe'\\) is unknown. Choose one of"),
        ("tube", GRID, 0.0, "mask_ratio \\(0.0\\) must be between 0 and 1"),
        ("cube", GRID, 1.0, "mask_ratio \\(1.0\\) must be between 0 and 1"),
        ("tube", (8, 2, 2), 0.1, "of 4 places hides none. Raise mask_ratio to at least 0.25"),
        ("random", (8, 0, 2), 0.5, "three positive numbers"),
        ("random", (8, 2), 0.5, "three positive numbers"),
    ],
)
def test_impossible_masks_are_refused(mask_type, grid, ratio, message):
    with pytest.raises(ValueError, match=message):
        build_mask(mask_type, grid, ratio)
