"""The health report: quiet on real clips, and loud about each known fault, put in through real objects."""

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import cycle

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video

from mme_hf import MOTION_TARGETS, MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader, load_folder_records, load_sample_records
from mme_hf.motion import DISFlow, FlowTracker, build_tracker
from mme_hf.motion.health import MotionHealth
from mme_hf.motion.report import health_of, main, observe_clips, report_motion
from mme_hf.shape_targets_mme import ShapeTarget
from mme_hf.trajectories_mme import Trajectories

SIDE = 112


def processor_with(**options) -> MMEVideoProcessor:
    return MMEVideoProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE}, **options)


def health_with(**options) -> MotionHealth:
    processor = processor_with(**options)
    return health_of(observe_clips(load_sample_records(), processor, num_clips=4), processor)


def only_warning(health: MotionHealth) -> str:
    (warning,) = health.warnings
    return warning


@pytest.fixture(scope="module")
def healthy() -> MotionHealth:
    return health_with()


class Still:
    """A missing trajectory file, as the published code reads it: zeros."""

    name, options = "still", {}

    def __call__(self, frames, points_xy, *, start_frames=(0,), num_steps):
        positions = points_xy.expand(*frames.shape[:-4], len(start_frames), num_steps + 1, *points_xy.shape).clone()
        visible = torch.ones(positions.shape[:-1], dtype=torch.bool)
        return Trajectories(positions, visible, tuple(frames.shape[-2:]))


class Altered:
    """Right tracks whose displacements were multiplied, as when a crop is resized and they are not."""

    name = "altered"

    def __init__(self, *factors: tuple[float, float]):
        self.factors: Iterator[tuple[float, float]] = cycle(factors)

    def __call__(self, frames, points_xy, *, start_frames=(0,), num_steps):
        tracks = build_tracker("dis")(frames, points_xy, start_frames=start_frames, num_steps=num_steps)
        first = tracks.points_xy[..., :1, :, :]
        return replace(tracks, points_xy=first + (tracks.points_xy - first) * torch.tensor(next(self.factors)))


class OfRoundedCrops:
    """Right tracks of a crop that begins at a multiple of 8 px to the left of the frames' own, and above it."""

    name, options = "rounded", {}

    def __init__(self):
        self.offsets = cycle([(5.0, 2.0), (1.0, 7.0), (6.0, 3.0), (3.0, 5.0)])

    def __call__(self, frames, points_xy, *, start_frames=(0,), num_steps):
        offset = torch.tensor(next(self.offsets))
        tracks = build_tracker("dis")(frames, points_xy + offset, start_frames=start_frames, num_steps=num_steps)
        return replace(tracks, points_xy=tracks.points_xy - offset)


class StoredAsBytes:
    """Flow as videos of flow hold it, 128 for rest and 255 for 20 px, read as if it were pixels."""

    name = "bytes"

    def __call__(self, frames, pairs):
        return (128 + DISFlow()(frames, pairs) * (127 / 20)).clamp(0, 255).round()


@dataclass(frozen=True)
class RandomlyBiasedShape(ShapeTarget):
    """Histograms with a random bias drawn anew each time, as the published code's."""

    def __call__(self, clip, trajectories):
        values, counts = super().__call__(clip, trajectories)
        return values + 0.1 * torch.randn(values.shape[-1]).abs(), counts


def test_real_clips_with_default_options_give_no_warning(healthy):
    assert healthy.num_clips == 4
    assert healthy.warnings == []
    # The limits leave room on either side of these.
    assert healthy.best_alteration == "as they are" and healthy.missed_share < 0.2 and healthy.subpixel_share > 0.9
    assert healthy.misfit_share == healthy.offset_gain == 0.0
    assert healthy.targets["position"].agreement == pytest.approx(1.0)
    assert healthy.targets["shape"].repeat_difference == 0.0


def test_what_is_observed_is_what_training_sees(tmp_path):
    write_video(tmp_path / "moving.mp4", moving_texture(70, SIDE, SIDE))
    records, processor = load_folder_records(tmp_path), processor_with(trajectory_num_steps=2)
    (clip,) = observe_clips(records, processor)
    (batch,) = build_clip_loader(records, processor, batch_size=1, num_epochs=1)
    # Of four raw frames two are not read, and what is left must not pass for frames that follow each other.
    assert len(clip.frames) == len(processor.raw_frames_for(70)) < processor.raw_window()
    torch.testing.assert_close(torch.cat(list(clip.labels.values()), dim=-1), batch["inputs"]["labels"][0])


def test_shares_of_the_loss_add_up(healthy):
    assert sum(target.loss_share for target in healthy.targets.values()) == pytest.approx(1.0)


def test_fault_1_whole_pixels_are_named():
    health = health_with(tracker_options={"flow_precision": "whole_pixel", "interpolation": "nearest"})
    assert "whole numbers of pixels" in only_warning(health)


@pytest.mark.parametrize(
    "factor, words",
    [
        (0.5, "2 times too small"),
        (0.75, "1.33 times too small"),
        (7 / 8, "1.14 times too small"),
        (8 / 7, "1.14 times too large"),
        (4 / 3, "1.33 times too large"),
        (2.0, "2 times too large"),
    ],
)
def test_fault_2_tracks_that_were_not_resized_along_are_named(factor, words):
    health = health_with(tracker=Altered((factor, factor)))
    assert any(words in warning for warning in health.warnings), health.warnings


def test_fault_2_multi_scale_crops_are_named_where_one_factor_fits_none():
    # Clip by clip too small and too large, so that over all of them nothing is better than leaving tracks alone.
    # The first is for the grey clip that the collator asks the shapes of.
    health = health_with(tracker=Altered((1.0, 1.0), (0.75, 0.75), (4 / 3, 4 / 3), (4 / 3, 4 / 3), (0.75, 0.75)))
    assert "Were each clip's own crop, resize and flip applied" in only_warning(health)
    assert health.misfit_share >= 0.75


def test_fault_2_a_crop_that_is_rounded_to_cells_is_named():
    health = health_with(tracker=OfRoundedCrops())
    assert "(+4, +4) px from their points" in only_warning(health)
    assert "rounded to cells" in only_warning(health)


def test_tracks_that_were_not_flipped_along_are_named():
    assert any("not flipped alike" in text for text in health_with(tracker=Altered((-1.0, 1.0))).warnings)


def test_fault_3_patch_std_and_tanh_are_named():
    position = {"normalization": "patch_std", "activation": "tanh"}
    warnings = " ".join(health_with(motion_targets={"shape": {}, "position": position}).warnings)
    for words in ("beyond what tanh can give", "hardly follow the displacements", "noise is amplified"):
        assert words in warnings
    assert "shape" not in warnings


def test_fault_3_histograms_beyond_a_sigmoid_are_named():
    health = health_with(motion_targets={"shape": {"activation": "sigmoid"}, "position": {}})
    assert "shape" in only_warning(health) and "beyond what sigmoid can give" in only_warning(health)


def test_fault_4_a_random_target_is_named(monkeypatch):
    monkeypatch.setitem(MOTION_TARGETS, "shape", RandomlyBiasedShape)
    assert "shape: labels of the same clip differ by" in only_warning(health_with())


def test_fault_6_tracks_replaced_by_zeros_are_named():
    health = health_with(tracker=Still())
    assert "every track is static but the frames change" in health.warnings[0]
    assert "position: labels do not vary" in health.warnings[1]


def test_fault_6_tracks_of_one_video_replaced_by_zeros_are_named():
    # The first is for the grey clip that the collator asks the shapes of.
    health = health_with(tracker=Altered((1.0, 1.0), (1.0, 1.0), (0.0, 0.0), (1.0, 1.0), (1.0, 1.0)))
    assert "of the clips that move every track rests" in only_warning(health)


def test_raw_bytes_of_flow_read_as_pixels_are_named():
    health = health_with(tracker=FlowTracker(StoredAsBytes()))
    assert "(128, 128) px: is raw flow (0..255, 128 for rest) read as pixels?" in health.warnings[0]


def test_a_camera_is_found_where_all_steps_of_a_track_have_one(tmp_path):
    # Of eight starts every other is looked at, at raw frames 0, 16, 32, 48, each with its 4 steps.
    video = moving_texture(61, SIDE, SIDE, velocity=(1.0, 0.5))
    video[18] = np.random.default_rng(0).integers(0, 256, video[18].shape)
    health = folder_of(tmp_path, video, camera_motion="remove")
    assert health.camera_found_share == 0.75
    assert health.camera_explained_share > 0.5


def folder_of(folder, *videos: np.ndarray, **options) -> MotionHealth:
    for number, frames in enumerate(videos):
        write_video(folder / f"{number}.mp4", frames)
    processor = processor_with(**options)
    return health_of(observe_clips(load_folder_records(folder), processor), processor)


def test_frames_that_truly_rest_are_no_fault(tmp_path):
    # A still scene seen by a camera with noise, and frames that are all the same beside videos that move.
    (tmp_path / "noisy").mkdir()
    (tmp_path / "same").mkdir()
    noise = np.random.default_rng(0).normal(0, 2, (64, SIDE, SIDE, 3))
    scenes = [moving_texture(1, SIDE, SIDE, seed=seed) for seed in range(4)]
    noisy = [np.clip(scene + noise, 0, 255).astype(np.uint8) for scene in scenes]
    health = folder_of(tmp_path / "noisy", *noisy)
    assert health.warnings == [] and health.static_share > 0.5
    same = [np.repeat(scene, 64, axis=0) for scene in scenes]
    moving = [moving_texture(64, SIDE, SIDE, velocity=velocity, seed=9) for velocity in ((1.0, 0.0), (-0.5, 0.7))]
    health = folder_of(tmp_path / "same", *same[:2], *moving)
    assert health.warnings == [] and health.repeated_share == 0.0 and health.static_share > 0.4


def test_frames_copied_to_raise_the_rate_are_named(tmp_path):
    videos = [np.repeat(moving_texture(32, SIDE, SIDE, seed=seed), 2, axis=0) for seed in range(2)]
    health = folder_of(tmp_path, *videos)
    assert "50 % of the frames seem to repeat the one before" in only_warning(health)
    assert "mpdecimate" in only_warning(health)


def test_one_clip_that_pauses_is_no_data_set_of_copies(tmp_path):
    # Eight steps: fewer are too few to judge one clip by.
    video = np.repeat(moving_texture(36, SIDE, SIDE), 2, axis=0)
    health = folder_of(tmp_path, video, trajectory_num_steps=8)
    assert health.num_clips == 1 and health.repeated_share == 0.5 and health.warnings == []


@pytest.mark.parametrize("frame_stride, num_frames", [(8, 16), (1, 62)])
def test_videos_that_are_shorter_than_a_clip_are_named(frame_stride, num_frames, tmp_path):
    video = moving_texture(61, SIDE, SIDE)
    health = folder_of(tmp_path, video, frame_stride=frame_stride, num_frames=num_frames)
    assert "100 % of the clips are of videos that have fewer frames than a clip spans" in only_warning(health)
    assert folder_of(tmp_path, video).warnings == []


def test_repeated_last_frames_are_no_copies_and_their_tracks_are_not_valid(tmp_path):
    for seed in range(3):
        write_video(tmp_path / f"{seed}.mp4", moving_texture(8, SIDE, SIDE, velocity=(1.3, 0.0), seed=seed))
    processor = processor_with(num_frames=4, frame_stride=2, trajectory_num_steps=8)
    health = health_of(observe_clips(load_folder_records(tmp_path), processor), processor)
    # A track of 8 steps would need 9 frames.
    assert health.valid_share == 0.0 and math.isnan(health.repeated_share)
    assert not any("repeat the one before" in warning for warning in health.warnings)


def panning_clips(tmp_path, velocity, **options):
    for seed in range(2):
        write_video(tmp_path / f"{seed}.mp4", moving_texture(70, SIDE, SIDE, velocity=velocity, seed=seed))
    processor = processor_with(**options)
    return health_of(observe_clips(load_folder_records(tmp_path), processor), processor)


def test_motion_that_is_cut_is_that_of_labels(tmp_path):
    # A pan of 4 px is beyond 3 px, unless it is taken out before.
    targets = {"position": {"max_displacement_px": 3.0}}
    kept = panning_clips(tmp_path, (4.0, 0.0), motion_targets=targets)
    assert kept.clipped_share == pytest.approx(0.5, abs=0.01)  # of x and y, x
    assert any("beyond max_displacement_px" in warning for warning in kept.warnings)
    removed = panning_clips(tmp_path, (4.0, 0.0), motion_targets=targets, camera_motion="remove")
    assert removed.camera_found_share > 0.9 and removed.clipped_share < 0.01


def test_the_limit_is_that_of_any_target_that_has_one(tmp_path):
    health = panning_clips(tmp_path, (2.0, 0.0), motion_targets={"shape": {}, "flow": {"max_displacement_px": 0.5}})
    assert health.clipped_share == pytest.approx(0.5, abs=0.05)


class NowhereShape(ShapeTarget):
    """Histograms of which one value is no number."""

    def __call__(self, clip, trajectories):
        values, counts = super().__call__(clip, trajectories)
        values[..., :1] = math.nan
        return values, counts


def test_labels_that_are_no_numbers_are_named_and_do_not_hide_what_is_wrong_with_others(monkeypatch):
    monkeypatch.setitem(MOTION_TARGETS, "nowhere", NowhereShape)
    options = {"nowhere": {}, "shape": {"weight": 1000.0}, "position": {}}
    words = "\n".join(health_with(motion_targets=options).warnings)
    assert "nowhere: some labels of tokens that count are no finite numbers" in words
    assert "shape makes 98 % of the loss" in words


def test_a_target_that_drowns_the_others_is_named():
    health = health_with(motion_targets={"shape": {"weight": 1000.0}, "position": {}})
    assert "shape makes" in only_warning(health) and "Change the weights" in only_warning(health)


def test_targets_without_tracks_are_reported_too():
    health = health_with(motion_targets=["pixels"])
    assert math.isnan(health.valid_share) and health.warnings == []
    assert "no target reads tracks" in str(health)


def test_the_report_leaves_the_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    health_with(tracker=Still())
    assert torch.equal(torch.get_rng_state(), before)


def test_words_table_and_json_hold_the_same(healthy):
    faulty = replace(healthy, warnings=["something is off"])
    assert "WARNING: something is off" in str(faulty) and "* **Warning**: something is off" in faulty.to_markdown()
    table = healthy.to_markdown().splitlines()
    assert len({len(line) for line in table if line.startswith("|")}) == 1
    one = replace(healthy, num_clips=1, camera_explained_share=-0.07)
    assert "over 1 clip " in one.to_markdown() and "without it squared displacement is 7.0 % larger" in str(one)
    unknown = dict.fromkeys(("variance", "mean_loss", "largest"), math.nan)
    targets = {name: replace(target, **unknown) for name, target in healthy.targets.items()}
    lost = replace(healthy, median_speed_px=math.nan, fast_speed_px=math.nan, targets=targets)
    assert not any("nan" in words for words in (str(lost), lost.summary(), lost.to_markdown()))
    values = json.loads(json.dumps(healthy.to_dict(), allow_nan=False))
    assert values["targets"]["shape"]["agreement"] is None
    assert values["valid_share"] == healthy.valid_share
    assert 6 <= len(str(healthy).splitlines()) <= 10
    assert len(healthy.summary().splitlines()) == 3 and healthy.summary().endswith("no warnings")
    assert len(faulty.summary().splitlines()) == 3 and faulty.summary().endswith("WARNING: something is off")


def test_each_clip_is_of_another_video():
    clips = observe_clips(load_sample_records(), processor_with(), sampling=ClipSampling(samples_per_video=3))
    assert len({clip.source for clip in clips}) == len(clips) == 4


def test_a_data_set_that_cannot_be_read_is_said(tmp_path, caplog):
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    assert report_motion(load_folder_records(tmp_path), processor_with(), tmp_path / "out") is None
    assert "none of the first videos could be read" in caplog.text
    assert f"left out of the report: {tmp_path / 'broken.mp4'}: " in caplog.text


def test_the_command_writes_what_it_says(video_folder, tmp_path):
    main(["--train_dir", str(video_folder), "--output_dir", str(tmp_path), "--image_size", "48", "--num_clips", "3"])
    assert json.loads((tmp_path / "motion_health.json").read_text())["num_clips"] == 3
    assert (tmp_path / "motion_tracks.png").read_bytes().startswith(b"\x89PNG")


def test_the_command_refuses_in_one_line(tmp_path):
    with pytest.raises(SystemExit, match=r"error: train_dir \('.*'\) is not a folder"):
        main(["--train_dir", str(tmp_path / "none")])
    with pytest.raises(SystemExit, match=r"num_clips \(0\) must be at least 1"):
        main(["--num_clips", "0"])
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit, match=r"output_dir \('.*file'\) cannot be made: .* is a file"):
        main(["--output_dir", str(tmp_path / "file")])


class ClipBefore:
    """The tracks of the clip before, as when stored files are matched to videos one place off."""

    name = "before"

    def __init__(self):
        self.before = None

    def __call__(self, frames, points_xy, *, start_frames=(0,), num_steps):
        tracks = build_tracker("dis")(frames, points_xy, start_frames=start_frames, num_steps=num_steps)
        before, self.before = self.before, tracks
        # The first is the grey clip that the collator asks the shapes of: tracks at rest would be another fault.
        return tracks if before is None or not before.displacements.any() else before


def test_tracks_of_another_video_are_named():
    health = health_with(tracker=ClipBefore())
    assert any("they have nothing to do with the frames" in warning for warning in health.warnings), health.warnings
