"""Random crops."""

import torch

from mme_hf.data.augmentation import center_crop_box, multi_scale_crop_box, random_flip


def test_the_centre_box_is_the_largest_of_its_shape():
    assert center_crop_box(240, 320) == (40, 0, 240, 240)
    assert center_crop_box(320, 240) == (0, 40, 240, 240)
    assert center_crop_box(100, 100, aspect_ratio=2.0) == (0, 25, 100, 50)


def test_crops_lie_at_corners_or_the_centre_at_the_published_scales():
    generator = torch.Generator().manual_seed(0)
    boxes = {multi_scale_crop_box(200, 300, generator) for _ in range(2000)}
    sides = {200, 175, 150, 132}  # 200 x (1, .875, .75, .66)
    assert {width for _, _, width, _ in boxes} == sides == {height for _, _, _, height in boxes}
    for left, top, width, height in boxes:
        right, bottom = 300 - width, 200 - height
        assert (left, top) in {(0, 0), (right, 0), (0, bottom), (right, bottom), (right // 2, bottom // 2)}
        # Neighbouring scales only: 200 goes with 175, not with 150.
        assert abs(sorted(sides).index(width) - sorted(sides).index(height)) <= 1


def test_a_frame_of_one_pixel_still_has_a_crop():
    assert multi_scale_crop_box(1, 1, torch.Generator().manual_seed(0)) == (0, 0, 1, 1)


def test_flips_have_the_probability_they_are_given():
    generator = torch.Generator().manual_seed(0)
    assert not any(random_flip(0.0, generator) for _ in range(20))
    assert all(random_flip(1.0, generator) for _ in range(20))
    # 1000 fair draws lie within 5 standard deviations (16 each) of 500.
    assert 420 < sum(random_flip(0.5, generator) for _ in range(1000)) < 580
