"""What every tracker must do, whichever it is."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.models import optical_flow

from mme_hf.motion import TRACKERS, build_tracker, extract_motion
from mme_hf.motion.tvl1 import TVL1Flow
from mme_hf.trajectories_mme import grid_points

SIZE = (96, 112)


def texture(shift_x, shift_y, size=SIZE, seed=0):
    """A smooth random scene, written as a sum of waves so that any sub-pixel shift of it is exact."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    image = np.zeros(size)
    for _ in range(60):
        frequency, phase = generator.uniform(-0.8, 0.8, 2), generator.uniform(0, 2 * np.pi)
        image += np.sin(frequency[0] * (x - shift_x) + frequency[1] * (y - shift_y) + phase)
    frame = np.clip(127 + 22 * image, 0, 255).round().astype(np.uint8)
    return torch.from_numpy(frame).expand(3, -1, -1)


def moving(dx, dy, num_frames=4, seed=0):
    return torch.stack([texture(dx * t, dy * t, seed=seed) for t in range(num_frames)])


class WholeVideo:
    """Frames as extraction reads them from a file."""

    def __init__(self, frames):
        self.frames, self.num_frames = frames, len(frames)

    def frames_at(self, indices):
        return self.frames[list(indices)]


@pytest.fixture(scope="session")
def raft_options(tmp_path_factory):
    """Options of "raft": torchvision's weights if its cache has them, else random ones, which follow nothing."""
    cached = Path(torch.hub.get_dir()) / "checkpoints" / optical_flow.Raft_Small_Weights.DEFAULT.url.rsplit("/", 1)[1]
    if cached.is_file():
        return {}
    path = tmp_path_factory.mktemp("raft") / "random.pt"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        torch.save(optical_flow.raft_small(weights=None).state_dict(), path)
    return {"weights": str(path), "num_updates": 1, "visibility": "inside_frame"}


@pytest.fixture(params=sorted(TRACKERS))
def tracker_for(request):
    """From frames (T, 3, H, W) to a tracker that can track them; only stored tracks look at the frames beforehand."""
    if request.param == "tvl1" and not TVL1Flow.is_available():
        pytest.skip("needs OpenCV's contrib modules")
    options = request.getfixturevalue("raft_options") if request.param == "raft" else {}

    def build(frames):
        if request.param != "stored":
            return build_tracker(request.param, **options)
        return build_tracker("stored", motion=extract_motion(WholeVideo(frames), build_tracker("dis")))

    build.name, build.is_trained = request.param, "weights" not in options
    return build


@pytest.fixture
def good_tracker_for(tracker_for):
    """As `tracker_for`, but only of trackers that can be expected to be right."""
    if not tracker_for.is_trained:
        pytest.skip("torchvision's cache has no weights of RAFT; random ones follow nothing")
    return tracker_for


@pytest.fixture
def points():
    return grid_points(*SIZE)


def test_shapes_and_types(tracker_for, points):
    frames = moving(1, 0, num_frames=6)
    tracks = tracker_for(frames)(frames, points, start_frames=(0, 2), num_steps=3)
    assert tracks.points_xy.shape == (2, 4, len(points), 2) and tracks.points_xy.dtype == torch.float32
    assert tracks.is_visible.shape == (2, 4, len(points)) and tracks.is_visible.dtype == torch.bool
    assert tracks.frame_size == SIZE
    assert torch.equal(tracks.points_xy[:, 0], points.expand(2, -1, -1)) and tracks.is_visible[:, 0].all()


@pytest.mark.parametrize("shift", [(0.3, -0.4), (1.5, 0.7), (-3.25, 2.6), (5.5, 0.0)])
def test_known_sub_pixel_shifts(good_tracker_for, points, shift):
    frames = moving(*shift)
    tracks = good_tracker_for(frames)(frames, points, num_steps=3)
    expected = points + 3 * torch.tensor(shift)
    # Points whose whole track stays 8 px off the border, where half of every window is known.
    limit = torch.tensor([SIZE[1] - 9.0, SIZE[0] - 9.0])
    inner = ((points >= 8) & (points <= limit) & (expected >= 8) & (expected <= limit)).all(-1)
    error = (tracks.points_xy[0, -1] - expected).norm(dim=-1)[inner] / 3
    assert inner.sum() > 50 and error.mean() < 0.2 and error.median() < 0.1


def test_points_that_leave_the_frame_become_invisible(good_tracker_for, points):
    frames = moving(4.0, 0.0, num_frames=5)
    tracks = good_tracker_for(frames)(frames, points, num_steps=4)
    x = points[:, 0]
    assert not tracks.is_visible[0, -1, x > SIZE[1] - 12].any()
    assert tracks.is_visible[0, -1, (x > 12) & (x < SIZE[1] - 28)].all()
    assert (tracks.is_visible[0, 1:] <= tracks.is_visible[0, :-1]).all()


def test_points_that_something_hides_become_invisible(good_tracker_for, points):
    frames = moving(0.5, 0.0, num_frames=5)
    for step in range(5):  # a square of 40 px that crosses the scene at 5 px a frame: its right edge goes from 56 to 76
        left = 16 + 5 * step
        frames[step, :, 24:64, left : left + 40] = texture(5 * step, 0, seed=1)[:, 24:64, left : left + 40]
    tracks = good_tracker_for(frames)(frames, points, num_steps=4)
    x, y = points.unbind(-1)
    beside = (y > 24) & (y < 63)
    hidden = beside & (x > 56) & (x < 72)  # background at the start, inside the square at the end
    far = (x > 12) & (x < SIZE[1] - 12) & ((y < 12) | (y > 76) | (x > 92))
    assert hidden.sum() == 10 and far.sum() > 40
    assert tracks.is_visible[0, -1, hidden].float().mean() <= 0.3
    assert tracks.is_visible[0, -1, far].float().mean() > 0.98


@pytest.mark.parametrize("frame", [texture(0, 0), torch.full((3, *SIZE), 90, dtype=torch.uint8)])
def test_static_and_uniform_scenes_do_not_move(good_tracker_for, points, frame):
    frames = frame.expand(3, -1, -1, -1)
    tracks = good_tracker_for(frames)(frames, points, num_steps=2)
    assert tracks.displacements.abs().max() < 0.01 and tracks.is_visible.all()


def test_batch_equals_single(tracker_for, points):
    if tracker_for.name == "stored":
        pytest.skip("stored tracks are those of one video")
    clips = torch.stack([moving(1, 0.5, seed=seed) for seed in (0, 1)])
    tracker = tracker_for(clips[0])
    both = tracker(clips, points, start_frames=(0, 1), num_steps=2)
    assert both.points_xy.shape == (2, 2, 3, len(points), 2)
    for index, clip in enumerate(clips):
        one = tracker(clip, points, start_frames=(0, 1), num_steps=2)
        torch.testing.assert_close(both.points_xy[index], one.points_xy, atol=1e-4, rtol=0)
        assert torch.equal(both.is_visible[index], one.is_visible)


def test_a_batch_of_no_clips_has_no_tracks(tracker_for, points):
    if tracker_for.name == "stored":
        pytest.skip("stored tracks are those of one video")
    frames = moving(1, 0)
    tracks = tracker_for(frames)(frames[None][:0], points, start_frames=(0, 1), num_steps=2)
    assert tracks.points_xy.shape == (0, 2, 3, len(points), 2) and tracks.is_visible.shape == (0, 2, 3, len(points))


def test_same_input_gives_the_same_tracks(tracker_for, points):
    frames = moving(2, 1)
    first, second = (tracker_for(frames)(frames, points, num_steps=3) for _ in range(2))
    assert torch.equal(first.points_xy, second.points_xy)


def test_a_track_does_not_depend_on_frames_outside_it(tracker_for, points):
    frames = moving(2, 1, num_frames=6)
    alone = tracker_for(frames[2:5])(frames[2:5], points, num_steps=2)
    among = tracker_for(frames)(frames, points, start_frames=(0, 2, 3), num_steps=2)
    torch.testing.assert_close(among.points_xy[1], alone.points_xy[0], atol=1e-4, rtol=0)


def test_memory_layout_does_not_matter(tracker_for, points):
    frames = moving(1, 1)
    interleaved = frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    expected = tracker_for(frames)(frames, points, num_steps=3)
    assert torch.equal(tracker_for(interleaved)(interleaved, points, num_steps=3).points_xy, expected.points_xy)


def test_survives_pickling_and_says_what_it_is(tracker_for, points):
    frames = moving(1, 1)
    tracker = tracker_for(frames)
    again = pickle.loads(pickle.dumps(tracker))
    assert torch.equal(again(frames, points, num_steps=3).points_xy, tracker(frames, points, num_steps=3).points_xy)
    assert repr(again) == repr(tracker) and tracker.name in TRACKERS
    assert repr(build_tracker(tracker.name, **tracker.options)) == repr(tracker)


@pytest.mark.parametrize(
    ("frames", "options", "message"),
    [
        (moving(0, 0).float(), {}, "dtype torch.float32; a tracker takes uint8"),
        (moving(0, 0).numpy(), {}, "frames are a ndarray; a tracker takes a tensor"),
        (moving(0, 0)[:, :2], {}, "shape \\(4, 2, 96, 112\\)"),
        (moving(0, 0)[..., :1, :], {}, "frames of 1x112 .* are too small to track in"),
        (moving(0, 0), {"num_steps": 4}, "needs 5 frames; there are 4"),
        (moving(0, 0), {"start_frames": (-1,)}, "none negative"),
    ],
)
def test_wrong_frames_are_refused(tracker_for, points, frames, options, message):
    with pytest.raises(ValueError, match=message):
        tracker_for(moving(0, 0))(frames, points, **{"num_steps": 2, **options})


def test_points_that_are_no_tensor_of_points_are_refused(tracker_for):
    frames = moving(0, 0)
    with pytest.raises(ValueError, match=r"points_xy is a list; it must be a tensor of shape \(points, 2\)"):
        tracker_for(frames)(frames, [[8.0, 8.0]], num_steps=2)
    with pytest.raises(ValueError, match=r"points_xy has shape \(2,\); it must be \(points, 2\)"):
        tracker_for(frames)(frames, torch.zeros(2), num_steps=2)


def test_a_stride_that_would_crash_opencv_is_refused():
    with pytest.raises(ValueError, match=r"patch_stride \(99\) must be at most 8"):
        build_tracker("dis", patch_stride=99)
