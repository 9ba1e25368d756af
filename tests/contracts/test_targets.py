"""What every motion target must do, whichever it is."""

import inspect
import json
import pickle
from types import SimpleNamespace

import pytest
import torch

from mme_hf.motion_targets_mme import MOTION_TARGETS, MotionClip, build_targets
from mme_hf.trajectories_mme import Trajectories, grid_points

CONFIG = SimpleNamespace(num_channels=3, patch_size=16, tubelet_size=2, trajectory_num_steps=3)
NUM_TOKENS = 2 * 2 * 3


def sample(lead):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randn(*lead, 4, 3, 32, 48, generator=generator)
    points = grid_points(32, 48) + torch.randn(*lead, 2, 4, 24, 2, generator=generator) * 3
    tracks = Trajectories(points, torch.rand(points.shape[:-1], generator=generator) > 0.02, (32, 48))
    return MotionClip(pixels, patch_size=16, tubelet_size=2), tracks


@pytest.fixture(params=sorted(MOTION_TARGETS))
def target(request):
    return build_targets({request.param: {}})[request.param]


@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_one_float32_vector_and_one_flag_per_token(target, lead):
    clip, tracks = sample(lead)
    values, is_valid = target(clip, tracks)
    assert values.shape == (*lead, NUM_TOKENS, target.size(CONFIG)) and values.dtype == torch.float32
    assert is_valid.shape == (*lead, NUM_TOKENS) and is_valid.dtype == torch.bool
    assert values.isfinite().all()


def test_batch_equals_single(target):
    clip, tracks = sample((3,))
    values, is_valid = target(clip, tracks)
    for index in range(3):
        one_clip = MotionClip(clip.pixel_values[index], 16, 2)
        one_tracks = Trajectories(tracks.points_xy[index], tracks.is_visible[index], tracks.frame_size)
        one_values, one_valid = target(one_clip, one_tracks)
        torch.testing.assert_close(values[index], one_values)
        assert torch.equal(is_valid[index], one_valid)


def test_half_precision_pixels_still_give_float32(target):
    clip, tracks = sample(())
    clip.pixel_values = clip.pixel_values.bfloat16()
    assert target(clip, tracks)[0].dtype == torch.float32


def test_declares_what_the_model_needs(target):
    assert target.activation in ("linear", "sigmoid", "tanh") and target.weight > 0
    assert isinstance(target.size(CONFIG), int) and isinstance(target.needs_trajectories, bool)


def test_options_survive_json_and_the_target_pickles(target):
    options = {name: getattr(target, name) for name in inspect.signature(type(target)).parameters}
    again = build_targets({target.name: json.loads(json.dumps(options))})[target.name]
    assert again == target == pickle.loads(pickle.dumps(target))
