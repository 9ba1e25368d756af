import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mme_hf.motion_targets_mme import (
    MOTION_TARGETS,
    REFERENCE_MOTION,
    MotionClip,
    PositionTarget,
    ShapeTarget,
    build_targets,
    histogram_of_gradients,
)
from mme_hf.trajectories_mme import Trajectories, grid_points


def histogram_by_loop(plane, num_bins, cell):
    """Written from the definition, pixel by pixel in float64."""
    height, width = plane.shape
    padded = np.pad(plane.astype(np.float64), 1, mode="edge")
    result = np.zeros((num_bins, height // cell, width // cell))
    for y in range(height):
        for x in range(width):
            w = padded[y : y + 3, x : x + 3]
            gx = (w[:, 0] - w[:, 2]) @ [1, 2, 1]
            gy = (w[0] - w[2]) @ [1, 2, 1]
            phase = (math.atan2(gy, gx) % math.pi) / math.pi * num_bins
            low = math.floor(phase)
            share = phase - low
            result[low % num_bins, y // cell, x // cell] += math.hypot(gx, gy) * (1 - share)
            result[(low + 1) % num_bins, y // cell, x // cell] += math.hypot(gx, gy) * share
    return result / cell**2


def tracks_from(displacements, is_visible=None, size=(16, 32)):
    """Tracks of the 8 px grid with given displacements (S, L, P, 2)."""
    start = grid_points(*size).expand(displacements.shape[0], 1, -1, -1)
    points = torch.cat([start, start + displacements.cumsum(1)], dim=1)
    visible = torch.ones(points.shape[:-1], dtype=torch.bool) if is_visible is None else is_visible
    return Trajectories(points, visible, size)


def clip_of(num_frames=4, size=(16, 32), tubelet_size=2):
    return MotionClip(torch.zeros(num_frames, 3, *size), patch_size=16, tubelet_size=tubelet_size)


@pytest.mark.parametrize(("num_bins", "cell"), [(9, 8), (6, 4)])
def test_histogram_equals_a_loop_over_pixels(num_bins, cell):
    video = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))
    result = histogram_of_gradients(video, num_bins, cell)
    assert result.shape == (2, 3 * num_bins, 16 // cell, 24 // cell) and result.dtype == torch.float32
    for frame in range(2):
        for channel in range(3):
            expected = histogram_by_loop(video[frame, channel].numpy(), num_bins, cell)
            ours = result[frame, channel * num_bins : (channel + 1) * num_bins].numpy()
            np.testing.assert_allclose(ours, expected, atol=1e-5 * expected.max())


@pytest.mark.parametrize("bin_index", range(9))
def test_a_ramp_along_a_bin_votes_for_that_bin_alone(bin_index):
    angle = bin_index * math.pi / 9
    y, x = torch.meshgrid(torch.arange(24.0), torch.arange(24.0), indexing="ij")
    ramp = -(math.cos(angle) * x + math.sin(angle) * y)  # Sobel as defined here is left minus right
    histogram = histogram_of_gradients(ramp.view(1, 1, 24, 24))[0, :, 1, 1]  # the inner cell sees no border
    expected = torch.zeros(9)
    expected[bin_index] = 8.0  # Sobel of a unit slope
    torch.testing.assert_close(histogram, expected, atol=2e-4, rtol=0)


def test_opposite_gradients_share_a_bin_and_flat_frames_do_not_vote():
    ramp = torch.arange(16.0).expand(1, 1, 16, 16)
    torch.testing.assert_close(histogram_of_gradients(ramp), histogram_of_gradients(-ramp))
    assert histogram_of_gradients(torch.full((1, 1, 16, 16), 3.0)).eq(0).all()


def test_histogram_works_in_float32_whatever_comes_in():
    video = torch.randint(0, 256, (2, 3, 16, 16), dtype=torch.uint8)
    expected = histogram_of_gradients(video.float())
    for dtype in (torch.uint8, torch.float64, torch.bfloat16):
        torch.testing.assert_close(histogram_of_gradients(video.to(dtype)), expected)


def test_shape_target_takes_the_second_frame_of_each_tubelet_in_the_published_order():
    clip = clip_of()
    clip.pixel_values = torch.randn(4, 3, 16, 32)
    values, is_valid = ShapeTarget()(clip, None)
    assert values.shape == (4, 108) and is_valid.all()
    histograms = histogram_of_gradients(clip.pixel_values)
    for token, (frame, column) in enumerate([(1, 0), (1, 1), (3, 0), (3, 1)]):
        for channel, bin_index, row, cell in [(0, 0, 0, 0), (2, 5, 1, 0), (1, 8, 0, 1)]:
            index = ((channel * 9 + bin_index) * 2 + row) * 2 + cell
            assert values[token, index] == histograms[frame, channel * 9 + bin_index, row, 2 * column + cell]


def test_shape_of_single_frame_tubelets_uses_every_frame():
    clip = MotionClip(torch.randn(3, 3, 16, 16), patch_size=16, tubelet_size=1)
    assert ShapeTarget()(clip, None)[0].shape == (3, 108)


def test_position_layout_is_component_step_row_column():
    # Each displacement carries its own address: 1000 x component + 100 x step + 10 x row + column, scaled to be small.
    displacements = torch.zeros(2, 3, 8, 2)
    for step in range(3):
        for point in range(8):
            row, column = divmod(point, 4)
            for component in range(2):
                displacements[:, step, point, component] = 1000 * component + 100 * step + 10 * row + column
    target = PositionTarget(scale_px=1.0, max_displacement_px=1e6)
    values, is_valid = target(clip_of(), tracks_from(displacements))
    assert values.shape == (4, 24) and is_valid.all()
    for token, token_column in enumerate([0, 1, 0, 1]):
        for component, step, row, column in np.ndindex(2, 3, 2, 2):
            index = ((component * 3 + step) * 2 + row) * 2 + column
            expected = 1000 * component + 100 * step + 10 * row + 2 * token_column + column
            assert values[token, index] == pytest.approx(expected, abs=1e-2)


def test_position_is_limited_then_scaled():
    displacements = torch.tensor([30.0, -3.0]).expand(2, 1, 8, 2)
    values, _ = PositionTarget(scale_px=4.0, max_displacement_px=20.0)(clip_of(), tracks_from(displacements))
    assert values[0].tolist() == [5.0] * 4 + [-0.75] * 4


def test_default_scale_follows_the_frame_so_that_labels_do_not_depend_on_resolution():
    small, _ = PositionTarget()(clip_of(), tracks_from(torch.full((2, 1, 8, 2), 0.5)))
    large, _ = PositionTarget()(clip_of(size=(32, 64)), tracks_from(torch.full((2, 1, 32, 2), 1.0), size=(32, 64)))
    assert PositionTarget().scale_in((224, 300)) == 2.0
    torch.testing.assert_close(small.unique(), large.unique())
    assert small.mean() == pytest.approx(0.5 / (16 / 112))


def test_patch_std_by_hand():
    displacements = torch.zeros(2, 1, 8, 2)
    displacements[0, 0, [0, 1, 4, 5], 0] = torch.tensor([1.0, 2.0, 3.0, 6.0])  # points of the first token
    target = PositionTarget(scale_px=20.0, normalization="patch_std")
    values, _ = target(clip_of(), tracks_from(displacements))
    # mean 3, deviations -2 -1 0 3, unbiased variance 14 / 3; the 1e-6 is added after the division by 20
    std = math.sqrt(14 / 3) / 20 + 1e-6
    torch.testing.assert_close(values[0, :4], torch.tensor([-2.0, -1.0, 0.0, 3.0]) / 20 / std, rtol=1e-4, atol=1e-4)
    assert values[0, 4:].eq(0).all() and values[1:].eq(0).all()


def test_token_counts_only_if_all_its_points_are_seen_at_every_position():
    visible = torch.ones(2, 3, 8, dtype=torch.bool)
    visible[0, 2, 0] = False  # first tubelet: the last position of one point of token 0
    visible[1, 1:, [2, 3, 6, 7]] = False  # second tubelet: all points of token 1 leave
    tracks = tracks_from(torch.zeros(2, 2, 8, 2), visible)
    assert PositionTarget()(clip_of(), tracks)[1].tolist() == [False, True, True, False]
    assert PositionTarget(token_rule="any")(clip_of(), tracks)[1].tolist() == [True, True, True, False]
    assert PositionTarget(validity="read_positions")(clip_of(), tracks)[1].tolist() == [True, True, True, False]


def test_sizes_follow_the_configuration():
    config = SimpleNamespace(num_channels=3, patch_size=16, tubelet_size=2, trajectory_num_steps=4)
    assert ShapeTarget().size(config) == 108 and PositionTarget().size(config) == 32
    assert ShapeTarget(num_bins=6, cell_size_px=4).size(config) == 288


def test_defaults_fill_only_what_a_target_has_and_the_user_left_open():
    targets = build_targets({"position": {"weight": 3.0}, "shape": {"cell_size_px": 4}}, cell_size_px=16, other=1)
    assert list(targets) == ["position", "shape"]
    assert targets["position"] == PositionTarget(cell_size_px=16, weight=3.0)
    assert targets["shape"].cell_size_px == 4


def test_reference_options_build():
    targets = build_targets(REFERENCE_MOTION["motion_targets"])
    assert {name: target.activation for name, target in targets.items()} == {"shape": "sigmoid", "position": "tanh"}
    assert (targets["shape"].weight, targets["position"].weight) == (54.0, 16.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_targets({"pixel": {}}), "motion target \\('pixel'\\) is unknown. Choose among"),
        (lambda: build_targets({"shape": {"bins": 9}}), "motion target 'shape' has no option bins"),
        (lambda: PositionTarget(scale_px=0.0), "scale_px \\(0.0\\)"),
        (lambda: PositionTarget(normalization="std"), "normalization \\('std'\\) must be one of"),
        (lambda: PositionTarget(token_rule="most"), "token_rule \\('most'\\) must be one of"),
        (lambda: ShapeTarget(activation="relu"), "activation \\('relu'\\) must be"),
        (lambda: histogram_of_gradients(torch.zeros(1, 3, 16, 20)), "16x20 do not divide into cells"),
        (lambda: histogram_of_gradients(torch.zeros(3, 16, 16)), "video has shape"),
        (
            lambda: PositionTarget()(clip_of(num_frames=6), tracks_from(torch.zeros(2, 1, 8, 2))),
            "2 starts of 8 points .* the clip needs 3 starts",
        ),
        (
            lambda: PositionTarget(cell_size_px=5).size(SimpleNamespace(patch_size=16, trajectory_num_steps=4)),
            "patch_size \\(16\\) does not divide by cell_size_px \\(5\\)",
        ),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_table_names_are_the_targets_own():
    assert all(target.name == name for name, target in MOTION_TARGETS.items())
