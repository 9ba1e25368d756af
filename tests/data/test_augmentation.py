"""Random crops."""

import pytest
import torch
from torchvision.transforms.v2 import functional as tvF

from mme_hf.data.augmentation import center_crop_box, cut_path, happens, multi_scale_crop_box, random_path


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
    # Four squares, and each of the three pairs of neighbours lying and standing.
    assert len({(width, height) for _, _, width, height in boxes}) == 10


def test_a_frame_of_one_pixel_still_has_a_crop():
    assert multi_scale_crop_box(1, 1, torch.Generator().manual_seed(0)) == (0, 0, 1, 1)


def test_chances_have_the_probability_they_are_given():
    generator = torch.Generator().manual_seed(0)
    assert not any(happens(0.0, generator) for _ in range(20))
    assert all(happens(1.0, generator) for _ in range(20))
    # 1000 fair draws lie within 5 standard deviations (16 each) of 500.
    assert 420 < sum(happens(0.5, generator) for _ in range(1000)) < 580


def test_paths_are_straight_as_fast_as_allowed_and_inside_the_frame():
    generator = torch.Generator().manual_seed(0)
    paths = torch.stack(
        [random_path((40, 30, 50, 40), 100, 130, 6, generator, max_speed=0.5) for _ in range(500)]
    )  # (paths, frames, 4)
    left, top, width, height = paths.unbind(-1)
    assert (width == 50).all() and (height == 40).all()
    assert left.min() >= 0 and top.min() >= 0 and left.max() <= 130 - 50 and top.max() <= 100 - 40
    steps = paths.diff(dim=1)
    torch.testing.assert_close(steps, steps[:, :1].expand_as(steps))
    # Five steps have room for 80 / 5 = 16 px of x each and 60 / 5 = 12 px of y; u ** 2 <= 1/4 for half of the draws, so
    # half of the speeds are at most an eighth of the sides.
    assert steps[..., 0].abs().max() == pytest.approx(16, abs=0.01)
    assert steps[..., 1].abs().max() == pytest.approx(12, abs=0.01)
    speeds = ((steps[:, 0, :2] / torch.tensor([50.0, 40.0])).norm(dim=-1)).median()
    assert speeds == pytest.approx(0.125, abs=0.03)


def test_paths_keep_their_middle_at_the_box_where_there_is_room():
    path = random_path((50, 60, 20, 20), 200, 200, 5, torch.Generator().manual_seed(1), max_speed=0.2)
    assert path[0, 0] != path[1, 0]
    torch.testing.assert_close(path[2, :2], torch.tensor([50.0, 60.0], dtype=torch.float64))


def test_paths_that_end_at_the_border_do_not_round_past_it():
    generator = torch.Generator().manual_seed(0)
    for room in range(1, 60):
        path = random_path((room // 2, room // 3, 33, 33), 33 + room, 33 + room, 29, generator, max_speed=0.5)
        assert path.min() >= 0 and (path[:, :2] + path[:, 2:]).max() <= 33 + room


def test_a_frame_without_room_keeps_the_crop_still():
    path = random_path((0, 0, 64, 48), 48, 64, 4, torch.Generator().manual_seed(0), max_speed=0.3)
    assert torch.equal(path, torch.tensor([[0.0, 0.0, 64.0, 48.0]], dtype=torch.float64).expand(4, -1))


def test_a_box_of_whole_pixels_is_cut_as_the_processor_cuts_it():
    frames = torch.randint(0, 256, (2, 3, 60, 80), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    cut = cut_path(frames, torch.tensor([[10.0, 5.0, 40.0, 30.0], [20.0, 15.0, 40.0, 30.0]]), (24, 32), 2)
    for frame, result, (left, top) in zip(frames, cut, ((10, 5), (20, 15)), strict=True):
        wanted = tvF.resize(frame[:, top : top + 30, left : left + 40], [24, 32], antialias=True)
        # Pillow may read a little beyond the box where the filter reaches there; both round twice, each in its own way.
        assert (result.int() - wanted.int())[:, 2:-2, 2:-2].abs().max() <= 2


def test_a_box_between_pixels_moves_a_ramp_by_a_fraction():
    ramp = (torch.arange(64, dtype=torch.uint8) * 4).expand(1, 3, 40, -1)
    whole, half = (cut_path(ramp, torch.tensor([[left, 4.0, 32.0, 32.0]]), (32, 32), 2) for left in (10.0, 10.5))
    # 4 grey values a pixel: half a pixel to the right is 2 brighter everywhere.
    assert torch.equal(half, whole + 2)
