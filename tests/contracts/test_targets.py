"""What every motion target must do, whichever it is."""

import inspect
import json
import pickle
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from teachers import save_teacher

from mme_hf.motion_targets_mme import MOTION_TARGETS, MotionClip, build_targets
from mme_hf.position_target_mme import NORMALIZATIONS
from mme_hf.trajectories_mme import Trajectories, grid_points

CONFIG = SimpleNamespace(num_channels=3, patch_size=16, tubelet_size=2, trajectory_num_steps=3)
NUM_TOKENS = 2 * 2 * 3
VARIANTS = [
    *((name, {}) for name in sorted(MOTION_TARGETS)),
    *(("position", {"normalization": name}) for name in NORMALIZATIONS[1:]),  # the first is the default
    ("pixels", {"normalization": "none"}),
]
SCALES = (0.02, 0.01, 0.03)


def sample(lead):
    generator = torch.Generator().manual_seed(0)
    raw = torch.randint(0, 256, (*lead, 7, 3, 32, 48), dtype=torch.uint8, generator=generator)
    inputs, starts = (0, 1, 3, 5), (0, 3)
    points = grid_points(32, 48) + torch.randn(*lead, 2, 4, 24, 2, generator=generator) * 3
    tracks = Trajectories(points, torch.rand(points.shape[:-1], generator=generator) > 0.02, (32, 48))
    pixels = raw[..., list(inputs), :, :, :] * torch.tensor(SCALES)[:, None, None] - 0.5
    return MotionClip(pixels, 16, 2, raw, inputs, starts, SCALES), tracks


def part(clip, tracks, index):
    """Return one clip of a batch."""
    one = MotionClip(clip.pixel_values[index], 16, 2, clip.raw_frames[index], *(clip.input_frames, clip.start_frames))
    one.channel_scales = clip.channel_scales
    return one, Trajectories(tracks.points_xy[index], tracks.is_visible[index], tracks.frame_size)


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def name_of(variant):
    return "-".join([variant[0], *variant[1].values()])


def but(*names):
    """Return the mark of a test for all targets but these, of which it could say nothing."""
    return pytest.mark.parametrize(
        "target", [own for own in VARIANTS if own[0] not in names], ids=name_of, indirect=True
    )


READ_TRACKS_ALONE = ("position", "flow", "flow_histogram")


@pytest.fixture(params=VARIANTS, ids=name_of)
def target(request, teacher):
    name, options = request.param
    return build_targets({name: {**options, **({"teacher": teacher} if name == "features" else {})}})[name]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_one_float32_vector_and_one_flag_per_token(target, lead):
    clip, tracks = sample(lead)
    values, is_valid = target(clip, tracks)
    assert values.shape == (*lead, NUM_TOKENS, target.size(CONFIG)) and values.dtype == torch.float32
    assert is_valid.shape == (*lead, NUM_TOKENS) and is_valid.dtype == torch.bool
    assert values.isfinite().all() and not values.requires_grad


def test_batch_equals_single(target):
    clip, tracks = sample((3,))
    values, is_valid = target(clip, tracks)
    for index in range(3):
        one_values, one_valid = target(*part(clip, tracks, index))
        torch.testing.assert_close(values[index], one_values, atol=1e-5, rtol=1e-5)
        assert torch.equal(is_valid[index], one_valid)


@pytest.mark.parametrize("place", [torch.nan, torch.inf, 1e6])
def test_positions_of_lost_points_may_be_anything(target, place):
    clip, tracks = sample((2,))
    visible = tracks.is_visible.long().cummin(-2).values.bool()  # once lost a point stays lost
    assert not visible.all()
    expected, expected_valid = target(clip, replace(tracks, is_visible=visible))
    elsewhere = tracks.points_xy.where(visible[..., None], place)
    values, is_valid = target(clip, Trajectories(elsewhere, visible, tracks.frame_size))
    assert torch.equal(is_valid, expected_valid) and is_valid.any()
    assert torch.equal(values[is_valid], expected[is_valid]) and values.isfinite().all()


@but(*READ_TRACKS_ALONE, "shape_along_track", "pixels", "features")  # of raw frames
def test_half_precision_pixels_still_give_float32(target):
    clip, tracks = sample(())
    clip.pixel_values = clip.pixel_values.bfloat16()
    assert target(clip, tracks)[0].dtype == torch.float32


@but(*READ_TRACKS_ALONE, "shape")  # of input frames
def test_memory_layout_of_the_frames_does_not_matter(target):
    clip, tracks = sample(())
    expected = target(clip, tracks)[0]
    clip.raw_frames = clip.raw_frames.contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(target(clip, tracks)[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
def test_labels_are_made_where_the_frames_are(target):
    clip, tracks = sample((2,))
    expected, expected_valid = target(clip, tracks)
    clip.pixel_values, clip.raw_frames = clip.pixel_values.cuda(), clip.raw_frames.cuda()
    tracks = Trajectories(tracks.points_xy.cuda(), tracks.is_visible.cuda(), tracks.frame_size)
    values, is_valid = target(clip, tracks)
    assert values.is_cuda and is_valid.is_cuda and torch.equal(is_valid.cpu(), expected_valid)
    torch.testing.assert_close(values.cpu(), expected, atol=2e-3, rtol=1e-3)


def mirrored(target, values):
    """Return the labels (N, size) of the clip seen in a mirror, by the layout that the target documents."""
    values = values.unflatten(0, (2, 2, 3)).flip(2).flatten(0, 2)
    steps = {"position": 3, "flow": 1}
    if target.name in steps:
        flipped = values.unflatten(-1, (2, steps[target.name], 2, 2)).flip(-1)
        return (flipped * torch.tensor([-1.0, 1.0])[:, None, None, None]).flatten(1)
    if target.name == "flow_histogram":  # k eighths of a turn become 4 - k, and rest stays rest
        return values.flatten(1)[:, [4, 3, 2, 1, 0, 7, 6, 5, 8]]
    if target.name == "pixels":
        return values.unflatten(-1, (2, 16, 16, 3)).flip(-2).flatten(1)
    # Left and right change sides: an orientation of k bins becomes one of 9 - k, and 0 stays.
    histograms = values.unflatten(-1, (3, 9, -1, 2, 2)).flip(-1)
    return histograms[:, :, [0, 8, 7, 6, 5, 4, 3, 2, 1]].flatten(1)


def test_a_mirrored_clip_has_mirrored_labels(target):
    if target.name == "features":
        pytest.skip("no image model promises it")
    clip, tracks = sample(())
    values, is_valid = target(clip, tracks)
    clip.pixel_values, clip.raw_frames = clip.pixel_values.flip(-1), clip.raw_frames.flip(-1)
    tracks = tracks.flip()
    points = tracks.points_xy.unflatten(-2, (4, 6)).flip(-2).flatten(-3, -2)  # the points change sides too
    visible = tracks.is_visible.unflatten(-1, (4, 6)).flip(-1).flatten(-2)
    seen, seen_valid = target(clip, Trajectories(points, visible, tracks.frame_size))
    torch.testing.assert_close(seen, mirrored(target, values), atol=2e-4, rtol=1e-4)
    assert torch.equal(seen_valid, is_valid.view(2, 2, 3).flip(-1).flatten())


def test_declares_what_the_model_needs(target):
    assert target.activation in ("linear", "sigmoid", "tanh") and target.weight > 0
    assert isinstance(target.size(CONFIG), int) and isinstance(target.needs_trajectories, bool)


def test_options_survive_json_and_the_target_pickles(target):
    options = {name: getattr(target, name) for name in inspect.signature(type(target)).parameters}
    again = build_targets({target.name: json.loads(json.dumps(options))})[target.name]
    assert again == target == pickle.loads(pickle.dumps(target))
    assert len(pickle.dumps(target)) < 1000  # a name, not the weights behind it
