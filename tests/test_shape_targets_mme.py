import pytest
import torch
from small_tracks import clip_of

from mme_hf.hog_mme import histogram_around_points, histogram_of_gradients
from mme_hf.motion_clip_mme import MotionClip
from mme_hf.shape_targets_mme import ShapeAlongTrackTarget, ShapeTarget
from mme_hf.trajectories_mme import Trajectories, grid_points

SCALES = (0.5, 1.0, 2.0)


def followed(velocity=(0.0, 0.0), num_steps=2):
    """Return 4 input frames out of 6 raw ones of 16 x 32, and tracks that all move by `velocity` a raw frame."""
    raw = torch.randint(0, 256, (6, 3, 16, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    clip = clip_of()
    clip.raw_frames, clip.input_frames, clip.start_frames, clip.channel_scales = raw, (0, 1, 3, 4), (0, 3), SCALES
    steps = torch.arange(num_steps + 1.0)[:, None, None] * torch.tensor(velocity)
    points = (grid_points(16, 32) + steps).expand(2, -1, -1, -1)
    return clip, Trajectories(points, torch.ones(points.shape[:-1], dtype=torch.bool), (16, 32))


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


# --- along the track


def test_histograms_follow_the_points_in_the_documented_order():
    clip, tracks = followed(velocity=(0.75, -0.5))
    values, counts = ShapeAlongTrackTarget()(clip, tracks)
    assert values.shape == (4, 3 * 9 * 3 * 4) and counts.all()
    for tubelet, start in enumerate((0, 3)):
        for step in range(3):
            points = grid_points(16, 32) + step * torch.tensor([0.75, -0.5])
            expected = histogram_around_points(clip.raw_frames[start + step], points).view(2, 4, 3, 9)
            for channel, bin_index, row, column in [(0, 0, 0, 0), (2, 8, 1, 3), (1, 4, 0, 2)]:
                index = (((channel * 9 + bin_index) * 3 + step) * 2 + row) * 2 + column % 2
                ours = values[2 * tubelet + column // 2, index]
                wanted = expected[row, column, channel, bin_index] * SCALES[channel]
                assert ours.item() == pytest.approx(wanted.item(), rel=1e-5)


def test_points_at_rest_see_the_cells_of_every_raw_frame_in_the_scale_of_the_model_input():
    clip, tracks = followed()
    values, _ = ShapeAlongTrackTarget()(clip, tracks)
    normalised = clip.raw_frames * torch.tensor(SCALES)[:, None, None] - 1.0
    cells = histogram_of_gradients(normalised[:3])  # (positions, C * bins, 2, 4)
    first_token = values[0].unflatten(-1, (27, 3, 2, 2))
    torch.testing.assert_close(first_token, cells[..., :2].transpose(0, 1), atol=1e-2, rtol=1e-5)


def test_a_patch_that_moves_without_changing_keeps_its_histogram():
    clip, tracks = followed(velocity=(1.0, 0.0))
    clip.raw_frames = torch.stack([clip.raw_frames[0].roll(shift, dims=-1) for shift in range(6)])
    values = ShapeAlongTrackTarget()(clip, tracks)[0].unflatten(-1, (27, 3, 2, 2))[0, ..., 1]  # off the border
    torch.testing.assert_close(values[:, 0], values[:, 2], atol=1e-2, rtol=1e-4)


def test_tokens_count_where_their_points_are_seen():
    clip, tracks = followed()
    tracks.is_visible[0, 2, 0] = False  # the last position of one point of token 0
    tracks.is_visible[1, 1:, [2, 3, 6, 7]] = False  # all points of token 3
    assert ShapeAlongTrackTarget()(clip, tracks)[1].tolist() == [False, True, True, False]
    assert ShapeAlongTrackTarget(token_rule="any")(clip, tracks)[1].tolist() == [True, True, True, False]
    assert ShapeAlongTrackTarget(validity="read_positions")(clip, tracks)[1].tolist() == [True, True, True, False]


def test_without_raw_frames_it_says_what_is_missing():
    with pytest.raises(ValueError, match="shape_along_track is made from raw frames, and the clip has none"):
        ShapeAlongTrackTarget()(clip_of(), followed()[1])
