"""Labels, validity, HOG and tracks of the published code, to 1e-5 of the largest value."""

import pytest
import torch
from published import GOLDEN, NEEDS_GOLDEN, assert_agrees
from safetensors.torch import load_file

from mme_hf.motion_targets_mme import REFERENCE_MOTION, MotionClip, build_targets, histogram_of_gradients
from mme_hf.point_tracking_mme import track_points
from mme_hf.trajectories_mme import Trajectories, grid_points

pytestmark = NEEDS_GOLDEN


@pytest.fixture(scope="module")
def pretrain():
    return load_file(GOLDEN / "pretrain_vectors.safetensors")


def labels(pretrain, target):
    """Return labels and validity of the masked tokens."""
    video = pretrain["video"].transpose(1, 2)
    num_steps = pretrain["displacement"].shape[2] // 8
    motion = pretrain["displacement"].unflatten(2, (8, num_steps)).flatten(-2).permute(0, 2, 3, 4, 1)  # (B, S, L, P, 2)
    start = grid_points(*video.shape[-2:], layout="reference").expand(*motion.shape[:2], 1, -1, -1)
    points = torch.cat([start, start + motion.cumsum(2)], dim=2)
    visible = pretrain["point_valid"].bool().flatten(-2)[:, :, None].expand(points.shape[:-1])
    values, is_valid = target(MotionClip(video, 16, 2), Trajectories(points, visible, tuple(video.shape[-2:])))
    mask = pretrain["mask"].bool()
    return values[mask].unflatten(0, (len(mask), -1)), is_valid[mask].unflatten(0, (len(mask), -1))


def reference_target(name, **changes):
    options = {name: {**REFERENCE_MOTION["motion_targets"][name], **changes}}
    return build_targets(options)[name]


def test_shape_labels(pretrain):
    values, is_valid = labels(pretrain, reference_target("shape"))
    assert_agrees(values, pretrain["hog_label"])
    assert is_valid.all()


@pytest.mark.parametrize(
    ("normalization", "name"), [("fixed", "trajectory_label_none"), ("patch_std", "trajectory_label_patch_std")]
)
def test_position_labels(pretrain, normalization, name):
    values, is_valid = labels(pretrain, reference_target("position", normalization=normalization))
    assert_agrees(values, pretrain[name])
    assert torch.equal(is_valid, pretrain["token_valid"].bool())


def test_histogram():
    golden = load_file(GOLDEN / "hog_vectors.safetensors")
    ours = histogram_of_gradients(golden["video"].transpose(1, 2)).transpose(1, 2)
    assert_agrees(ours, golden["hog_none_block8"])


def test_tracks():
    golden = load_file(GOLDEN / "tracker_vectors.safetensors")
    flow = golden["flow"].transpose(1, 2)  # (1, 2L, 2, H, W)
    num_steps, (height, width) = flow.shape[1] // 2, flow.shape[-2:]
    tracks = track_points(
        flow,
        grid_points(height, width, layout="reference"),
        num_steps=num_steps,
        start_frames=(0, num_steps),
        interpolation="nearest",
        border="clamp",
    )
    rows, columns = height // 8, width // 8
    motion = tracks.displacements.clamp(-20, 20).permute(0, 4, 2, 1, 3).flatten(1, 2)  # (1, 2L, trajectory, P)
    assert torch.equal(motion.unflatten(-1, (rows, columns)), golden["displacement"])
    valid = tracks.is_visible[:, :, :-1].all(2).unflatten(-1, (rows, columns))
    assert torch.equal(valid, golden["valid"].bool())
    # Positions of points still inside are equal; the golden ones are clamped, ours are not.
    position = golden["position"].flatten(2, 3).unflatten(1, (2, num_steps))
    seen = tracks.is_visible[:, :, :-1]
    assert torch.equal(tracks.points_xy[:, :, :-1][seen], position[seen])
