"""Which points are given up, and from when on."""

import pytest
import torch
from conftest import moving_texture

from mme_hf.motion.visibility import hide_lost_points
from mme_hf.trajectories_mme import Trajectories, grid_points

SIDE = 64


@pytest.fixture(scope="module")
def scenes():
    """A still scene and another one, uint8 (3, H, W)."""
    return [torch.from_numpy(moving_texture(1, SIDE, SIDE, seed=seed))[0].permute(2, 0, 1) for seed in range(2)]


def visible(frames):
    """Return which points at rest are seen, (frames, rows, columns)."""
    points = grid_points(SIDE, SIDE).expand(1, len(frames), -1, 2)
    tracks = Trajectories(points, torch.ones(points.shape[:-1], dtype=torch.bool), (SIDE, SIDE))
    seen = hide_lost_points(tracks, torch.stack(frames), (0,)).is_visible[0]
    return seen.unflatten(-1, (SIDE // 8, SIDE // 8))


def test_a_point_that_something_hides_stays_lost_when_it_is_uncovered(scenes):
    scene, other = scenes
    covered = scene.clone()
    covered[:, :, :16] = other[:, :, :16]  # two of eight columns of points
    seen = visible([scene, scene, covered, scene])
    assert seen[:2].all() and seen[:, :, 2:].all()
    assert (~seen[2, :, :2]).float().mean() > 0.5
    assert torch.equal(seen[3], seen[2])


def test_a_scene_may_grow_brighter(scenes):
    dim = scenes[0] // 2  # so that nothing is cut off at 255
    assert visible([dim, dim + 40, dim + 80]).all()


def test_after_a_cut_no_point_is_known_even_where_it_looks_the_same(scenes):
    scene, other = scenes
    cut = other.clone()
    cut[:, :, -8:] = scene[:, :, -8:]
    assert not visible([scene, cut])[1].any()
