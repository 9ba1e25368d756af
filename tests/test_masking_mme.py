import numpy as np
import pytest
import torch

from mme_hf.masking_mme import MASK_TYPES, build_mask, motion_mask, patch_motion

GRID = (8, 14, 14)


def draw(mask_type, grid, ratio, generator=None):
    motion = torch.arange(float(grid[1] * grid[2])).view(grid[1:]) if mask_type == "motion" else None
    return build_mask(mask_type, grid, ratio, generator, motion=motion)


@pytest.mark.parametrize("mask_type", sorted(MASK_TYPES))
@pytest.mark.parametrize("ratio", [0.1, 0.7, 0.9])
@pytest.mark.parametrize("grid", [GRID, (4, 7, 5), (1, 3, 9)])
def test_every_draw_hides_the_same_number(mask_type, ratio, grid):
    generator = torch.Generator().manual_seed(0)
    masks = torch.stack([draw(mask_type, grid, ratio, generator) for _ in range(20)])
    per_frame, total = int(ratio * (grid[1] * grid[2])), int(ratio * (grid[0] * grid[1] * grid[2]))
    expected = per_frame * grid[0] if mask_type in ("tube", "motion") else total
    assert masks.dtype == torch.bool and masks.shape == (20, grid[0] * grid[1] * grid[2])
    assert (masks.sum(1) == expected).all()
    assert len({tuple(mask.tolist()) for mask in masks}) > 1


def test_tube_mask_is_the_same_in_every_tubelet():
    mask = build_mask("tube", GRID, 0.7).view(8, -1)
    assert (mask == mask[0]).all() and mask[0].sum() == int(0.7 * 196)


def partial_blocks(mask, offset, block):
    """Return how many blocks are hidden in part, where the first ones of each axis lack `offset` tokens."""
    pad = [(lack, -(lack + size) % side) for lack, size, side in zip(offset, mask.shape, block, strict=True)]
    shape = [
        part
        for (before, after), size, side in zip(pad, mask.shape, block, strict=True)
        for part in ((before + size + after) // side, side)
    ]
    hidden, there = (np.pad(values, pad).reshape(shape).sum((1, 3, 5)) for values in (mask, np.ones_like(mask)))
    return ((hidden > 0) & (hidden < there)).sum()


def test_cube_mask_hides_whole_blocks_but_for_one_from_any_offset():
    generator = torch.Generator().manual_seed(0)
    # 4 frames of 64 x 64 px in tokens of 2 frames and 16 x 16 px.
    block = (2, 4, 4)
    found = set()
    for _ in range(40):
        mask = build_mask("cube", (6, 10, 10), 0.5, generator).view(6, 10, 10).numpy()
        offsets = [offset for offset in np.ndindex(block) if partial_blocks(mask, offset, block) <= 1]
        assert len(offsets) == 1  # no smaller or larger block fits, and no other place of it
        found.add(offsets[0])
    assert [set(axis) for axis in zip(*found, strict=True)] == [set(range(side)) for side in block]


def test_every_token_is_hidden_about_equally_often():
    generator = torch.Generator().manual_seed(0)
    for mask_type in set(MASK_TYPES) - {"motion"}:
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


# --- guided by motion


def rates(motion, ratio=0.5, strength=1.0, num_draws=2000):
    generator = torch.Generator().manual_seed(0)
    grid = (2, *motion.shape)
    masks = [motion_mask(grid, ratio, generator, motion=motion, strength=strength) for _ in range(num_draws)]
    return torch.stack(masks).view(num_draws, 2, *motion.shape).float().mean(0)


def test_moving_patches_are_hidden_more_often_in_every_tubelet_alike():
    motion = torch.zeros(4, 4)
    motion[:2] = 3.0
    rate = rates(motion)
    assert torch.equal(rate[0], rate[1])
    assert rate[0, :2].min() > 0.8 > 0.2 > rate[0, 2:].max() > 0  # a patch at rest is hidden too, now and then


def test_one_draw_has_chances_in_proportion_to_motion():
    motion = torch.tensor([[0.0, 1.0], [2.0, 3.0]])  # weights: motion / 1.5 + 0.1
    expected = motion / 1.5 + 0.1
    rate = rates(motion, ratio=0.25, num_draws=4000)[0]
    torch.testing.assert_close(rate, expected / expected.sum(), atol=0.03, rtol=0)


@pytest.mark.parametrize(("motion", "strength"), [(torch.rand(4, 4), 0.0), (torch.zeros(4, 4), 1.0)])
def test_without_strength_or_without_motion_it_is_a_plain_tube_mask(motion, strength):
    assert (rates(motion, strength=strength) - 0.5).abs().max() < 0.06


def test_the_unit_of_motion_does_not_matter_and_the_generator_decides():
    motion = torch.rand(14, 14)
    masks = [
        build_mask("motion", GRID, 0.7, torch.Generator().manual_seed(seed), motion=motion * unit)
        for seed, unit in ((3, 1.0), (3, 100.0), (4, 1.0))
    ]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])


def test_motion_of_a_patch_is_the_mean_step_of_its_points_while_they_are_seen():
    displacements = torch.zeros(2, 3, 8, 2)  # 2 starts, 3 steps, 2 x 4 points
    displacements[:, :, 0] = torch.tensor([3.0, 4.0])  # 5 px a step, one of 4 points of the left patch
    displacements[:, 2, 1] = 600.0  # a wild step, after the point was lost
    visible = torch.ones(2, 4, 8, dtype=torch.bool)
    visible[:, 3, 1] = False
    visible[:, :, 7] = False
    displacements[:, :, 7] = torch.nan  # never seen, and nowhere
    assert patch_motion(displacements, visible, (2, 4), (1, 2)).tolist() == [[1.25, 0.0]]
    batch = patch_motion(displacements.expand(3, -1, -1, -1, -1), visible.expand(3, -1, -1, -1), (2, 4), (2, 4))
    assert batch.shape == (3, 2, 4) and batch[1, 0, 0] == 5.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "mask_type 'motion' needs trajectories, to know where the motion is"),
        ({"motion": torch.ones(3, 3)}, r"motion has shape \(3, 3\) .* of shape \(14, 14\)"),
        ({"motion": -torch.ones(14, 14)}, "at least 0"),
        ({"motion": torch.full((14, 14), torch.nan)}, "must be finite"),
        ({"motion": torch.ones(14, 14), "motion_strength": -1}, r"motion_mask_strength \(-1\) must be a finite"),
    ],
)
def test_motion_that_cannot_guide_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_mask("motion", GRID, 0.7, **options)
