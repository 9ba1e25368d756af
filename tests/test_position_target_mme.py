import math

import numpy as np
import pytest
import torch
from small_tracks import clip_of, tracks_from

from mme_hf.position_target_mme import FlowHistogramTarget, FlowTarget, PositionTarget


def test_position_layout_is_component_step_row_column():
    # Each displacement carries its own address: 1000 x component + 100 x step + 10 x row + column, scaled to be small.
    displacements = torch.zeros(2, 3, 8, 2)
    for step in range(3):
        for point in range(8):
            row, column = divmod(point, 4)
            for component in range(2):
                displacements[:, step, point, component] = 1000 * component + 100 * step + 10 * row + column
    target = PositionTarget(normalization="fixed", scale_px=1.0, max_displacement_px=1e6)
    values, is_valid = target(clip_of(), tracks_from(displacements))
    assert values.shape == (4, 24) and is_valid.all()
    for token, token_column in enumerate([0, 1, 0, 1]):
        for component, step, row, column in np.ndindex(2, 3, 2, 2):
            index = ((component * 3 + step) * 2 + row) * 2 + column
            expected = 1000 * component + 100 * step + 10 * row + 2 * token_column + column
            assert values[token, index] == pytest.approx(expected, abs=1e-2)


@pytest.mark.parametrize("name", ["position", "flow"])
def test_motion_is_limited_either_way_then_scaled(name):
    options = {"scale_px": 4.0, "max_displacement_px": 20.0}
    target = {"position": PositionTarget(normalization="fixed", **options), "flow": FlowTarget(**options)}[name]
    for motion, expected in (((30.0, -3.0), (5.0, -0.75)), ((-30.0, 21.0), (-5.0, 5.0))):
        values, _ = target(clip_of(), tracks_from(torch.tensor(motion).expand(2, 1, 8, 2)))
        assert values[0].tolist() == [expected[0]] * 4 + [expected[1]] * 4


def test_default_scale_follows_the_frame_so_that_labels_do_not_depend_on_resolution():
    for target, scale in ((PositionTarget(normalization="fixed"), 2.0), (PositionTarget(), 0.4)):
        small, _ = target(clip_of(), tracks_from(torch.full((2, 1, 8, 2), 0.5)))
        large, _ = target(clip_of(size=(32, 64)), tracks_from(torch.full((2, 1, 32, 2), 1.0), size=(32, 64)))
        assert target.scale_in((224, 300)) == pytest.approx(scale)
        torch.testing.assert_close(small.unique(), large.unique())
        value = 0.5 / (scale * 16 / 224)
        assert small.mean() == pytest.approx(value if target.normalization == "fixed" else math.asinh(value))


def test_arcsinh_by_hand_and_back():
    displacements = torch.tensor([2.0, -0.001]).expand(2, 1, 8, 2)
    target = PositionTarget(scale_px=0.5)
    assert target.normalization == "arcsinh"
    values, _ = target(clip_of(), tracks_from(displacements))
    # ln(x + sqrt(x^2 + 1)) of 4; what is slow stays in proportion
    assert values[0].tolist() == pytest.approx([math.log(4 + math.sqrt(17))] * 4 + [-0.002] * 4, rel=1e-3)
    back = target.displacements(values, 1, (16, 32))  # (tokens, steps, points, 2)
    torch.testing.assert_close(back, displacements[0, 0, 0].expand(back.shape))
    # What a head says may be anything; labels end at 20 px.
    assert target.displacements(torch.tensor([[100.0, -7.0]]), 1, (16, 32)).tolist() == [[[[20.0, -20.0]]]]
    assert PositionTarget(scale_px=3.0).scale_in((224, 300)) == 3.0


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


def test_trajectory_length_by_hand():
    displacements = torch.zeros(2, 2, 8, 2)
    displacements[0, :, 0] = torch.tensor([[3.0, 4.0], [0.0, -15.0]])  # lengths 5 and 15: divided by 20
    displacements[0, :, 1] = 0.01  # 0.014 px a step, under the floor of 0.1 px: divided by 2 steps x 0.1
    target = PositionTarget(normalization="trajectory_length", scale_px=1.0)
    values, _ = target(clip_of(), tracks_from(displacements))
    token = values[0].unflatten(-1, (2, 2, 2, 2))  # component, step, row, column
    assert token[:, :, 0, 0].tolist() == pytest.approx(np.array([[0.15, 0.0], [0.2, -0.75]]))
    assert token[:, :, 0, 1].flatten().tolist() == pytest.approx([0.05] * 4, rel=1e-3)
    assert token[:, :, 1].eq(0).all() and values[1:].eq(0).all()
    assert values.abs().max() <= 1


def test_robust_clip_divides_by_the_quantile_of_what_counts_in_that_clip():
    lengths = torch.arange(1.0, 17.0)  # the 0.9 quantile of 1 .. 16, rounded down to one of them, is 14
    displacements = torch.zeros(2, 1, 8, 2)
    displacements[..., 0] = lengths.view(2, 1, 8)
    target = PositionTarget(normalization="robust_clip", scale_px=1.0)
    values, _ = target(clip_of(), tracks_from(displacements))
    assert values.max().item() == pytest.approx(16 / 14)

    visible = torch.ones(2, 2, 8, dtype=torch.bool)
    visible[1] = False  # the quantile of 1 .. 8 is 7
    values, _ = target(clip_of(), tracks_from(displacements, visible))
    assert values.max().item() == pytest.approx(16 / 7)
    visible[:] = False  # nothing is known of this clip: the floor, a tenth of the scale
    assert target(clip_of(), tracks_from(displacements, visible))[0].max().item() == pytest.approx(160.0)


def test_robust_clip_does_not_amplify_a_still_clip():
    target = PositionTarget(normalization="robust_clip", scale_px=1.0)
    values, _ = target(clip_of(), tracks_from(torch.full((2, 1, 8, 2), 0.001)))
    assert values.abs().max().item() == pytest.approx(0.01, rel=1e-3)
    assert target(clip_of(), tracks_from(torch.zeros(2, 1, 8, 2)))[0].eq(0).all()


def test_the_floor_of_a_still_step_can_be_set():
    tracks = tracks_from(torch.full((2, 1, 8, 2), 0.5))
    options = {"normalization": "trajectory_length", "still_step_px": 2.0}
    assert PositionTarget(**options)(clip_of(), tracks)[0].unique().tolist() == [0.25]


@pytest.mark.parametrize("normalization", ["patch_std", "trajectory_length", "robust_clip"])
def test_what_keeps_no_pixels_is_not_turned_back_into_them(normalization):
    with pytest.raises(ValueError, match=f"normalization '{normalization}' cannot be turned back"):
        PositionTarget(normalization=normalization).displacements(torch.zeros(4, 32), 4, (112, 112))


# --- flow


def test_flow_is_the_first_step_of_position():
    displacements = torch.randn(2, 3, 8, 2, generator=torch.Generator().manual_seed(0))
    flow, counts = FlowTarget()(clip_of(), tracks_from(displacements))
    position, _ = PositionTarget(normalization="fixed")(clip_of(), tracks_from(displacements))
    assert flow.shape == (4, 8) and counts.all()
    assert torch.equal(flow, position.unflatten(-1, (2, 3, 4))[:, :, 0].flatten(1))


def test_flow_counts_while_its_two_frames_are_seen():
    visible = torch.ones(2, 4, 8, dtype=torch.bool)
    visible[0, 2:, 0] = False  # lost after the flow was read
    visible[1, 1:, 0] = False
    tracks = tracks_from(torch.zeros(2, 3, 8, 2), visible)
    assert FlowTarget()(clip_of(), tracks)[1].tolist() == [True, True, False, True]
    assert FlowTarget(validity="read_positions")(clip_of(), tracks)[1].all()
    assert FlowTarget(token_rule="any")(clip_of(), tracks)[1].all()


def test_a_histogram_of_directions_by_hand():
    # The points of the first token over two steps; y points down. Scale 0.5 px: lengths of 4, 6 and 0.4 units.
    displacements = torch.zeros(2, 2, 8, 2)
    displacements[0, 0, 0] = torch.tensor([2.0, 0.0])  # to the right: bin 0
    displacements[0, 1, 1] = torch.tensor([0.0, -3.0])  # up, three quarters of a turn: bin 6
    displacements[0, 0, 4] = torch.tensor([-0.2, 0.0])  # to the left, bin 4, and slower than the scale
    angle = 2 * math.pi * (3 - 0.25) / 8  # three quarters of the way from bin 2 to bin 3
    displacements[0, 1, 5] = 2 * torch.tensor([math.cos(angle), math.sin(angle)])
    values, counts = FlowHistogramTarget(scale_px=0.5)(clip_of(), tracks_from(displacements))
    votes = {0: math.asinh(4), 6: math.asinh(6), 4: math.asinh(0.4), 2: math.asinh(4) / 4, 3: 3 * math.asinh(4) / 4}
    # Of the 8 displacements of 4 points and 2 steps, 5 are slower than the scale.
    expected = [votes.get(number, 0.0) / 8 for number in range(8)] + [5 / 8]
    assert values.shape == (4, 9) and counts.all()
    torch.testing.assert_close(values[0], torch.tensor(expected), atol=1e-6, rtol=1e-5)
    assert values[1].tolist() == [0.0] * 8 + [1.0]  # at rest


def test_a_histogram_does_not_depend_on_resolution_and_is_limited():
    assert FlowHistogramTarget(num_bins=4).size(None) == 5
    small, _ = FlowHistogramTarget()(clip_of(), tracks_from(torch.full((2, 1, 8, 2), 0.5)))
    large, _ = FlowHistogramTarget()(clip_of(size=(32, 64)), tracks_from(torch.full((2, 1, 32, 2), 1.0), size=(32, 64)))
    torch.testing.assert_close(small[0], large[0])
    scale = 16 / 112 / 5
    assert small[0, 1].item() == pytest.approx(math.asinh(0.5 * math.sqrt(2) / scale))
    # 1000 px to the right and 250 down: the length is limited, the direction stays what it is.
    far, _ = FlowHistogramTarget(scale_px=1.0)(clip_of(), tracks_from(torch.tensor([1000.0, 250.0]).expand(2, 1, 8, 2)))
    nearness = math.atan2(1, 4) / (math.pi / 4)
    expected = [math.asinh(20) * (1 - nearness), math.asinh(20) * nearness, *[0.0] * 7]
    torch.testing.assert_close(far[0], torch.tensor(expected))


def test_lost_points_do_not_vote():
    displacements = torch.zeros(2, 1, 8, 2)
    displacements[..., 0] = torch.tensor([0.0, 30.0, 2.0, 2.0, torch.nan, 30.0, 2.0, 2.0])
    tracks = tracks_from(displacements)
    tracks.is_visible[..., [1, 4, 5]] = False
    values, counts = FlowHistogramTarget(scale_px=1.0, token_rule="any")(clip_of(), tracks)
    # Of the first token's points one is seen, at rest; all of the second's move by 2 px to the right.
    assert counts.all() and values[0].tolist() == [0.0] * 8 + [1.0]
    torch.testing.assert_close(values[1], torch.tensor([math.asinh(2), *[0.0] * 8]))
    assert not FlowHistogramTarget()(clip_of(), tracks)[1][0]
