"""Stored motion: exact where it is coded, and the same tracks for any clip as its video's motion gives."""

import json
import tracemalloc
import zlib
from dataclasses import replace
from types import MappingProxyType

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video

from mme_hf import MMEVideoProcessor, open_video
from mme_hf.data import load_sample_records
from mme_hf.motion import (
    MotionParameters,
    StoredMotion,
    StoredTracker,
    StoredTracksError,
    build_tracker,
    extract_motion,
)
from mme_hf.motion.grid_codec import decode_chunk, encode_chunk
from mme_hf.motion.stored import PAIRS_PER_CHUNK
from mme_hf.position_target_mme import PositionTarget
from mme_hf.trajectories_mme import ClipGeometry, Trajectories, grid_points, is_inside

# Rounding to 1/64 px.
MAX_ROUNDING_PX = 1 / 128


class GreyVideo:
    """A video of which only size and length matter; notes the most frames that were read at once."""

    def __init__(self, num_frames, height, width):
        self.num_frames, self.size, self.most_frames = num_frames, (height, width), 0

    def frames_at(self, indices):
        self.most_frames = max(self.most_frames, len(indices))
        return torch.zeros(len(indices), 3, *self.size, dtype=torch.uint8)


class GivenVideo:
    """Frames in place of a file."""

    def __init__(self, frames):
        self.frames, self.num_frames = frames, len(frames)

    def frames_at(self, indices):
        return self.frames[list(indices)]


class AffineTracker:
    """Tracks a known motion: p moves by `matrix @ p + shift` from every frame to the next."""

    name = "affine"
    options = MappingProxyType({})

    def __init__(self, matrix, shift, lost=()):
        self.matrix, self.shift, self.lost = torch.tensor(matrix), torch.tensor(shift), set(lost)
        self.num_calls = 0

    def __call__(self, frames, points_xy, *, start_frames=(0,), num_steps):
        positions = [points_xy]
        for _ in range(num_steps):
            positions.append(positions[-1] + positions[-1] @ self.matrix.T + self.shift)
        tracks = torch.stack(positions).expand(len(start_frames), -1, -1, -1)
        is_visible = is_inside(tracks, frames.shape[-2:])
        for start, point in self.lost:
            is_visible[start, 1:, point] = False
        return Trajectories(tracks, is_visible, tuple(frames.shape[-2:]))


WHOLE_FRAME = ClipGeometry(0, 0, 340, 256, 256, 340)
GEOMETRIES = {
    "whole frame": ClipGeometry(0, 0, 340, 256, 256, 344),
    "crop, enlarged": ClipGeometry(20, 10, 169, 169, 224, 224),
    "crop, mirrored": ClipGeometry(116, 32, 224, 224, 224, 224, True),
    "corner, other shape, mirrored": ClipGeometry(0, 88, 224, 168, 112, 112, True),
    "shortest edge and centre": ClipGeometry(0, 0, 340, 256, 224, 224, False, (224, 297)),
}


def clip_frames(geometry, num_frames):
    return torch.zeros(num_frames, 3, geometry.out_height, geometry.out_width, dtype=torch.uint8)


def test_the_code_gives_back_what_it_was_given():
    generator = np.random.default_rng(0)
    values = generator.integers(-(2**15), 2**15, (5, 2, 4, 7), dtype=np.int16)  # all that int16 holds
    is_lost = generator.random((5, 4, 7)) < 0.3
    decoded, decoded_lost = decode_chunk(encode_chunk(values, is_lost), 5, (4, 7))
    assert np.array_equal(decoded, values) and np.array_equal(decoded_lost, is_lost)


def test_a_damaged_code_is_an_error():
    code = encode_chunk(np.ones((3, 2, 4, 4), dtype=np.int16), np.zeros((3, 4, 4), dtype=bool))
    with pytest.raises(ValueError, match=r"chunk of stored tracks is damaged .*Extract these tracks again"):
        decode_chunk(code[:-4], 3, (4, 4))
    # 3 pairs x 2 x 16 values of 2 bytes and 48 bits.
    with pytest.raises(ValueError, match=r"holds more than 132 bytes; 2 pairs of 4x4 points need 132"):
        decode_chunk(code, 2, (4, 4))
    with pytest.raises(ValueError, match="damaged"):
        decode_chunk(zlib.compress(b"abc")[2:], 3, (4, 4))
    with pytest.raises(ValueError, match="incomplete or has something after its end"):
        decode_chunk(code + b"more", 3, (4, 4))


def test_a_code_that_would_unpack_to_more_than_the_grid_holds_is_refused_before_it_does():
    bomb = zlib.compress(bytes(10**8))
    tracemalloc.start()
    with pytest.raises(ValueError, match="holds more than 198 bytes; 3 pairs of 4x4 points need 198"):
        decode_chunk(bomb, 3, (4, 4))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10**6


def test_damage_that_shows_when_motion_is_read_names_the_video_and_the_chunk():
    motion = extract_motion(GreyVideo(40, 64, 64), AffineTracker([[0.0, 0.0], [0.0, 0.0]], [2.0, 0.0]))
    damaged = StoredMotion(motion.parameters, (64, 64), 40, (motion.chunks[0], b"12"), source="clip.mp4")
    assert damaged.displacements_at([0])[0].shape == (1, 2, 32, 32)
    with pytest.raises(StoredTracksError, match=r"stored tracks of clip\.mp4, frames 32 to 39: a chunk .* is damaged"):
        damaged.displacements_at([33])


@pytest.mark.parametrize(
    ("size", "num_frames", "message"),
    [((0, 64), 2, r"source_size \(0, 64\)"), ((64, None), 2, "source_size"), ((64, 64), None, "num_frames None")],
)
def test_sizes_that_no_video_has_are_damage(size, num_frames, message):
    with pytest.raises(StoredTracksError, match=message):
        StoredMotion(MotionParameters("dis"), size, num_frames, (b"",))


def test_motion_is_kept_to_a_128th_of_a_pixel_and_frames_are_read_in_chunks():
    video = GreyVideo(2 * PAIRS_PER_CHUNK + 6, 256, 340)
    motion = extract_motion(video, AffineTracker([[0.01, -0.02], [0.005, 0.01]], [3.3, -1.7]))
    assert len(motion.chunks) == 3 and video.most_frames == PAIRS_PER_CHUNK + 1
    displacements, is_lost = motion.displacements_at([0, PAIRS_PER_CHUNK - 1, PAIRS_PER_CHUNK, video.num_frames - 2])
    points = grid_points(256, 336)
    expected = (points @ torch.tensor([[0.01, -0.02], [0.005, 0.01]]).T + torch.tensor([3.3, -1.7])).T
    assert displacements.shape == (4, 2, 32, 42) and not is_lost.any()
    assert (displacements.flatten(-2) - expected).abs().max() <= MAX_ROUNDING_PX + 1e-5


@pytest.mark.parametrize("source_size", [(256, 340), (480, 640), (120, 160)])
@pytest.mark.parametrize("name", GEOMETRIES)
def test_every_cut_of_stored_motion_is_that_cut_of_the_exact_tracks(name, source_size):
    # The geometries are for 256 x 340 frames; others are cut at the same share of theirs.
    share = source_size[0] / 256
    geometry = GEOMETRIES[name]
    box = (int(value * share) for value in (geometry.left, geometry.top, geometry.width, geometry.height))
    geometry = ClipGeometry(*box, geometry.out_height, geometry.out_width, geometry.is_flipped, geometry.resized_size)
    matrix, shift = [[0.012, -0.02], [0.015, -0.008]], [1.3, -1.1]
    motion = extract_motion(GreyVideo(30, *source_size), AffineTracker(matrix, shift))
    points, numbers = grid_points(geometry.out_height, geometry.out_width), range(7, 20)
    tracks = motion.tracker(geometry, numbers)(clip_frames(geometry, 13), points, start_frames=(0, 8), num_steps=4)

    # By hand, in pixels of the resized frame, where the motion is affine; then cut like frames.
    height, width = motion.parameters.frame_size(source_size)
    scale = torch.tensor([width / source_size[1], height / source_size[0]])
    resized = (geometry.source_points(points) + 0.5) * scale - 0.5
    exact = AffineTracker(matrix, shift)(torch.zeros(1, 3, height, width), resized, start_frames=(0, 8), num_steps=4)
    source = Trajectories((exact.points_xy + 0.5) / scale - 0.5, exact.is_visible, source_size)
    expected = geometry.apply_to_trajectories(source).points_xy

    # Beyond the outermost grid points, up to 8 px off the border, motion is that of the nearest one.
    outermost = torch.tensor([8 * (width // 8) - 4.5, 8 * (height // 8) - 4.5])
    is_between = ((exact.points_xy >= 3.5) & (exact.points_xy <= outermost)).all(-1).all(1)
    magnification = max(geometry.out_width / geometry.width, geometry.out_height / geometry.height) / scale.min()
    error = (tracks.points_xy - expected).abs().amax((1, 3))[is_between]
    assert is_between.sum() > 0.8 * is_between.numel()
    assert error.max() <= 4 * MAX_ROUNDING_PX * magnification * 1.1 + 1e-3
    inside = is_inside(expected, (geometry.out_height, geometry.out_width)).int().cummin(1).values.bool()
    assert (tracks.is_visible == inside).float().mean() > 0.995
    assert torch.equal(tracks.points_xy[:, 0], points.expand(2, -1, -1)) and tracks.is_visible[:, 0].all()


def test_a_point_lost_by_the_tracker_stays_lost_and_one_that_leaves_is_seen_again_from_its_next_start():
    # Grid point 43 is row 1, column 1 of 42: (11.5, 11.5); pair 2 loses it.
    motion = extract_motion(GreyVideo(8, 256, 340), AffineTracker([[0.0, 0.0], [0.0, 0.0]], [0.0, 0.0], lost={(2, 43)}))
    points = torch.tensor([[11.5, 11.5], [13.0, 10.0], [19.5, 11.5]])
    tracks = StoredTracker(motion)(clip_frames(WHOLE_FRAME, 8), points, start_frames=(0, 3), num_steps=4)
    # The second point is nearest to the lost grid point, the third to its neighbour.
    assert tracks.is_visible[0, :, 0].tolist() == tracks.is_visible[0, :, 1].tolist() == [True] * 3 + [False] * 2
    assert tracks.is_visible[0, :, 2].all() and tracks.is_visible[1].all()


def test_a_repeated_frame_shows_no_motion_and_a_skipped_one_is_refused():
    motion = extract_motion(GreyVideo(5, 256, 340), AffineTracker([[0.0, 0.0], [0.0, 0.0]], [2.0, 0.0]))
    geometry, points = WHOLE_FRAME, torch.tensor([[100.0, 100.0]])
    tracks = motion.tracker(geometry, (3, 4, 4, 4))(clip_frames(geometry, 4), points, num_steps=3)
    assert tracks.points_xy[0, :, 0, 0].tolist() == pytest.approx([100, 102, 102, 102], abs=1e-3)
    with pytest.raises(ValueError, match=r"from frame 0 to 2; stored tracks go frame by frame"):
        motion.tracker(geometry, (0, 2))(clip_frames(geometry, 2), points, num_steps=1)
    with pytest.raises(ValueError, match=r"no motion from frame 4 to the next: the video has 5 frames"):
        motion.tracker(geometry, (4, 5))(clip_frames(geometry, 2), points, num_steps=1)
    with pytest.raises(ValueError, match=r"these stored tracks are of one clip of 4 frames of 256x340"):
        motion.tracker(geometry, (0, 1, 2, 3))(clip_frames(geometry, 2), points, num_steps=1)
    with pytest.raises(ValueError, match=r"cut from a video of 256x340"):
        StoredTracker(motion)(torch.zeros(4, 3, 128, 128, dtype=torch.uint8), points, num_steps=1)


def test_a_video_of_one_frame_has_no_motion():
    motion = extract_motion(GreyVideo(1, 256, 340), build_tracker("dis"))
    assert motion.chunks == ()
    with pytest.raises(ValueError, match=r"has 1 chunks; it must have 0"):
        StoredMotion(motion.parameters, (256, 340), 1, (b"",))


def test_motion_too_fast_to_store_is_lost_and_so_is_a_lost_point_that_is_nowhere():
    fast = extract_motion(GreyVideo(2, 256, 1024), AffineTracker([[0.0, 0.0], [0.0, 0.0]], [600.0, 0.0]))
    displacements, is_lost = fast.displacements_at([0])
    assert is_lost.all() and displacements.max() < 512
    # Not inside the frame, so not visible to this tracker.
    nowhere = AffineTracker([[0.0, 0.0], [0.0, 0.0]], [float("nan"), 0.0])
    displacements, is_lost = extract_motion(GreyVideo(2, 256, 340), nowhere).displacements_at([0])
    assert is_lost.all() and not displacements.any()


def test_a_visible_point_that_is_nowhere_is_not_stored():
    class Faulty(AffineTracker):
        def __call__(self, *inputs, **options):
            tracks = super().__call__(*inputs, **options)
            return replace(tracks, is_visible=torch.ones_like(tracks.is_visible))

    with pytest.raises(ValueError, match="a visible point that is nowhere"):
        extract_motion(GreyVideo(2, 256, 340), Faulty([[0.0, 0.0], [0.0, 0.0]], [float("nan"), 0.0]))


def test_parameters_are_those_of_the_tracker_with_its_defaults():
    left_out, set_to = (
        MotionParameters.of(build_tracker("dis")),
        MotionParameters.of(build_tracker("dis", preset="fast")),
    )
    assert left_out.hash == set_to.hash != MotionParameters.of(build_tracker("dis", preset="medium")).hash
    assert MotionParameters.from_json(left_out.to_json()).hash == left_out.hash
    # Pixels of the frames that were tracked are not those of a clip: cut to whole ones, 0.95 px would be 0.875.
    for name, value in (("border", "clamp"), ("interpolation", "nearest"), ("flow_precision", "whole_pixel")):
        with pytest.raises(ValueError, match=rf"{name} \('{value}'\) cannot be kept by stored tracks"):
            MotionParameters.of(build_tracker("dis", **{name: value}))


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"tracker": "dis", "speed": 1}', '{"tracker": "dis", "cell_size_px": "8"}']
)
def test_parameters_that_are_none_are_refused_in_words(text):
    with pytest.raises(ValueError, match="parameters of stored tracks are damaged or of another version"):
        MotionParameters.from_json(text)


def test_weights_count_by_what_is_in_their_file_not_by_where_it_lies(tmp_path):
    def parameters(name, content):
        (tmp_path / name).write_bytes(content)
        return MotionParameters.of(build_tracker("raft", weights=str(tmp_path / name)))

    first, moved, other = parameters("a.pth", b"one"), parameters("b.pth", b"one"), parameters("a.pth", b"two")
    assert first == moved != other
    assert str(tmp_path) not in first.to_json()


class TwoMotions:
    """Three noisy frames in which a textured object crosses a textured background; moments of its motion are pinned."""

    num_frames = 3

    def frames_at(self, indices):
        background = moving_texture(3, 96, 128, velocity=(2.3, -1.1), seed=0)
        texture = 255 - moving_texture(3, 96, 128, velocity=(-1.7, 0.6), seed=1)
        for frame in range(3):
            place = np.s_[frame, 30:70, 40 + 3 * frame : 90 + 3 * frame]
            background[place] = texture[place]
        noisy = (background + np.random.default_rng(0).normal(0, 6, background.shape)).clip(0, 255).astype(np.uint8)
        return torch.from_numpy(noisy).permute(0, 3, 1, 2)[list(indices)]


# Mean x and y and deviation of x and y in px of frames enlarged to 256 x 341, and the share of lost points.
PINNED_MOMENTS = {
    "dis": (4.6360, -2.1459, 3.5432, 1.7083, 0.0119),
    "torch": (4.6045, -2.0911, 3.4385, 1.7125, 0.0119),
    "farneback": (4.4606, -1.8110, 3.2663, 1.9217, 0.0108),
}


@pytest.mark.parametrize("name", PINNED_MOMENTS)
def test_trackers_give_the_numbers_that_stored_tracks_of_earlier_versions_hold(name):
    """Where this fails on purpose, raise the package's version, and SAME_TRACKS_SINCE to it, with the numbers here."""
    displacements, is_lost = extract_motion(TwoMotions(), build_tracker(name)).displacements_at([0, 1])
    axes = (0, 2, 3)
    found = (*displacements.mean(axes), *displacements.std(axes), is_lost.float().mean())
    # Other processors and versions of OpenCV round otherwise.
    assert torch.stack(found).tolist() == pytest.approx(PINNED_MOMENTS[name], abs=0.02)


def test_without_a_video_the_name_says_how_stored_tracks_are_used():
    with pytest.raises(ValueError, match=r"cannot be built without them\. .*extract_trajectories\.py.*--stored_tracks"):
        build_tracker("stored")


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    path = tmp_path_factory.mktemp("video") / "clip.mp4"
    return write_video(path, moving_texture(50, 96, 128, velocity=(1.5, -0.5)))


def test_the_processor_tells_the_tracker_which_frames_it_sees_and_how_they_are_cut(video):
    processor = MMEVideoProcessor(
        num_frames=4, frame_stride=3, size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}
    )
    with open_video(video) as reader:
        motion = extract_motion(reader, build_tracker("dis"))
        frames = reader.frames_at(range(50))
    seen = []

    class Spy(StoredTracker):
        def __call__(self, frames, *args, **options):
            seen.append((self.frame_numbers, self.geometry))
            return super().__call__(frames, *args, **options)

    # A path: the window is in the middle of the video. 4 frames, stride 3: tracks from 0 and 6, so 11 raw frames.
    options = {"return_targets": True, "return_tensors": "pt", "generator": torch.Generator().manual_seed(0)}
    from_path = processor(str(video), tracker=Spy(motion), **options)
    assert seen[0][0] == tuple(19 + frame for frame in (0, 1, 2, 3, 4, 6, 7, 8, 9, 10))
    options["generator"].manual_seed(0)
    from_frames = processor(frames[19:30], tracker=Spy(motion, first_frame=19), **options)
    assert seen[1] == seen[0]
    assert torch.equal(from_path["labels"], from_frames["labels"])
    # 1.5 px of 96 are 1 px of 64; mirrored, to the left.
    for flip, expected in ((False, 1.0), (True, -1.0)):
        tracker = StoredTracker(motion, first_frame=19)
        batch = processor(frames[19:30], crop_box=(16, 0, 96, 96), flip=flip, tracker=tracker, **options)
        motion_px = PositionTarget().displacements(batch["labels"][..., 108:], processor.trajectory_num_steps, (64, 64))
        assert motion_px[..., 0].median() == pytest.approx(expected, abs=0.1 * 64 / 112)
        assert motion_px[..., 1].median() == pytest.approx(-1 / 3, abs=0.1 * 64 / 112)


def test_frames_of_another_size_than_the_videos_are_refused_and_only_settings_are_saved(video, tmp_path):
    processor = MMEVideoProcessor(
        num_frames=4, frame_stride=3, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
    )
    with open_video(video) as reader:
        tracker = StoredTracker(extract_motion(reader, build_tracker("dis")))
        frames = reader.frames_at(range(50))
    with pytest.raises(ValueError, match=r"a video: its stored tracks are of a video of 96x128, its frames 48x64"):
        processor(frames[:, :, ::2, ::2], tracker=tracker, return_targets=True)
    processor.tracker = tracker
    processor.save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "video_preprocessor_config.json").read_text())
    assert saved["tracker"] == "stored" and "motion" not in saved["tracker_options"]
    assert MMEVideoProcessor.from_pretrained(tmp_path, tracker=tracker).tracker is tracker


def pixels_apart(first, second):
    """Mean distance per step of two trackers' points, where both see them."""
    is_seen = (first.is_visible & second.is_visible)[..., 1:, :]
    num_steps = torch.arange(1, first.num_steps + 1)[:, None]
    return ((first.points_xy - second.points_xy)[..., 1:, :, :].norm(dim=-1) / num_steps)[is_seen].mean()


# What the grid and the rounding cost on real clips, px per step of a 224 px clip. Measured: 0.006 to 0.024.
STORAGE_PX = 0.05
# What frames of another size change for DIS itself, as a share of the motion. Measured: 0.07 to 0.17
# (0.08 to 0.97 px), with and without storage.
OTHER_SIZE_SHARE = 0.25
MIN_VISIBILITY_AGREEMENT = 0.95


@pytest.mark.parametrize("index", range(4))
def test_stored_then_cut_agrees_with_cut_then_tracked_on_the_sample_clips(index):
    with open_video(load_sample_records().dataset[index]["video"]["path"]) as reader:
        frames = reader.frames_at(range(40))
    tracker = build_tracker("dis")
    motion = extract_motion(GivenVideo(frames), tracker)
    height, width = frames.shape[-2:]
    side = int(0.8 * min(height, width))
    geometry = ClipGeometry((width - side) // 2, (height - side) // 3, side, side, 224, 224, True)
    clip, points, tracked = geometry.apply_to_frames(frames[8:32]), grid_points(224, 224), {"start_frames": (0, 8, 16)}
    cut_then_tracked = tracker(clip, points, **tracked, num_steps=4)
    stored_then_cut = motion.tracker(geometry, range(8, 32))(clip, points, **tracked, num_steps=4)

    # The third way tells what storage has to do with it: the dense flow of the whole frame, which was never stored.
    size = motion.parameters.frame_size((height, width))
    scale = torch.tensor([size[1] / width, size[0] / height])
    whole = ClipGeometry(0, 0, width, height, *size).apply_to_frames(frames[8:32])
    dense = tracker(whole, (geometry.source_points(points) + 0.5) * scale - 0.5, **tracked, num_steps=4)
    dense = Trajectories((dense.points_xy + 0.5) / scale - 0.5, dense.is_visible, (height, width))
    tracked_then_cut = geometry.apply_to_trajectories(dense)

    assert pixels_apart(stored_then_cut, tracked_then_cut) < STORAGE_PX
    motion_px = cut_then_tracked.displacements.norm(dim=-1)[cut_then_tracked.is_visible[:, 1:]].mean()
    assert pixels_apart(stored_then_cut, cut_then_tracked) < OTHER_SIZE_SHARE * motion_px
    agreement = (stored_then_cut.is_visible == cut_then_tracked.is_visible).float().mean()
    assert agreement > MIN_VISIBILITY_AGREEMENT
