from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import write_video
from torchvision.transforms import v2

from mme_hf import MMEVideoProcessor, open_video
from mme_hf.data import VideoRecords, load_folder_records
from mme_hf.data.labelled_clips import (
    NO_LABEL,
    Augmentation,
    ViewSampling,
    build_labelled_loader,
    crop_corners,
)

GENERATOR = torch.Generator()


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        # 20 frames, 4 of stride 3: a window of 10 frames may start at 0 to 10; one sits in the middle.
        ({}, [[5, 8, 11, 14]]),
        ({"num_segments": 3}, [[0, 3, 6, 9], [5, 8, 11, 14], [10, 13, 16, 19]]),
        # Parts of 5 frames; their middles are at 2.5, 7.5, ...; two views lie at a quarter and three quarters.
        ({"of": "segments"}, [[2, 7, 12, 17]]),
        ({"of": "segments", "num_segments": 2}, [[1, 6, 11, 16], [3, 8, 13, 18]]),
        ({"frame_order": "reversed"}, [[14, 11, 8, 5]]),
        ({"frame_order": "frozen"}, [[11, 11, 11, 11]]),
    ],
)
def test_views_are_spread_over_the_video(sampling, expected):
    frame_sampling = sampling.pop("of", "dense")
    assert ViewSampling(**sampling).clip_frames(20, 4, 3, GENERATOR, frame_sampling) == expected


def test_shuffled_frames_are_the_same_frames():
    (shuffled,) = ViewSampling(frame_order="shuffled").clip_frames(80, 16, 4, torch.Generator().manual_seed(0))
    (forwards,) = ViewSampling().clip_frames(80, 16, 4, GENERATOR)
    assert shuffled != forwards and sorted(shuffled) == forwards


@pytest.mark.parametrize("frame_sampling", ["dense", "segments"])
def test_random_clips_reach_the_whole_video_and_stay_in_it(frame_sampling):
    sampling = ViewSampling(augmentation=Augmentation(), samples_per_video=200)
    clips = sampling.clip_frames(20, 4, 3, torch.Generator().manual_seed(0), frame_sampling)
    assert len(clips) == 200 and {min(map(min, clips)), max(map(max, clips))} == {0, 19}
    assert all(clip == sorted(clip) and len(set(clip)) == 4 for clip in clips)


@pytest.mark.parametrize(("num_available", "expected"), [(1, [0, 0, 0, 0]), (3, [0, 1, 2, 2]), (8, [0, 2, 4, 6])])
def test_a_short_video_has_a_shorter_stride_and_then_repeats_its_last_frame(num_available, expected):
    assert ViewSampling().clip_frames(num_available, 4, 3, GENERATOR) == [expected]


def test_crops_go_from_end_to_end_of_the_longer_side():
    assert crop_corners((10, 20), (10, 10), 3) == [(0, 0), (0, 5), (0, 10)]
    assert crop_corners((20, 10), (10, 10), 3) == [(0, 0), (5, 0), (10, 0)]
    assert crop_corners((12, 20), (10, 10), 1) == [(1, 5)]
    with pytest.raises(ValueError, match=r"crop_size \(30, 10\) does not fit into frames resized to \(20, 10\)"):
        crop_corners((20, 10), (30, 10), 1)


def test_values_out_of_range_are_refused():
    for options, message in (
        ({"frame_order": "backwards"}, r"frame_order \('backwards'\) must be one of"),
        ({"num_crops": 0}, r"num_crops \(0\) must be at least 1"),
        ({"reader": "vlc"}, r"reader \('vlc'\) must be one of"),
    ):
        with pytest.raises(ValueError, match=message):
            ViewSampling(**options)
    for options, message in (
        ({"min_crop_scale": 0}, r"min_crop_scale \(0\)"),
        ({"flip_probability": 2}, r"flip_probability \(2\)"),
        ({"rand_augment_magnitude": 11}, r"rand_augment_magnitude \(11\) must lie in \[0, 10\]"),
    ):
        with pytest.raises(ValueError, match=message):
            Augmentation(**options)


def test_operations_are_as_strong_and_as_frequent_as_the_published_ones(monkeypatch):
    magnitudes = []

    def note(self, clip, transform_id, magnitude, **options):
        magnitudes.append((transform_id, abs(magnitude)))
        return clip

    monkeypatch.setattr(v2.RandAugment, "_apply_image_or_video_transform", note)
    pixels = Augmentation().of_pixels((8, 8), (0, 0, 0))
    torch.manual_seed(0)
    for _ in range(250):
        pixels(torch.zeros(2, 3, 8, 8, dtype=torch.uint8))
    # 7 of 10: of 30 degrees, and of a shear of 0.3.
    assert {round(magnitude, 3) for name, magnitude in magnitudes if name == "Rotate"} == {21.0}
    assert {round(magnitude, 3) for name, magnitude in magnitudes if name == "ShearX"} == {0.21}
    # Half of 4 x 250; the deviation is 16.
    assert 420 < len(magnitudes) < 580


@pytest.fixture(scope="module")
def records(tmp_path_factory):
    """Two classes, three videos of 12 frames that are brighter from left to right, and one file that is no video."""
    root = tmp_path_factory.mktemp("actions")
    ramp = np.broadcast_to(np.linspace(20, 220, 64, dtype=np.uint8)[None, None, :, None], (12, 32, 64, 3))
    for name in ("jump/a.mp4", "jump/b.mp4", "run/c.mp4"):
        (root / name).parent.mkdir(exist_ok=True)
        write_video(root / name, ramp)
    (root / "run" / "broken.mp4").write_bytes(b"no video")
    return load_folder_records(root)


@pytest.fixture(scope="module")
def processor():
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    return MMEVideoProcessor(num_frames=4, frame_stride=2, **size)


def test_views_are_the_crops_that_the_processor_would_make_one_by_one(records: VideoRecords, processor):
    sampling = ViewSampling(num_segments=2, num_crops=3)
    loader = build_labelled_loader(
        records, processor, videos_per_batch=2, sampling=sampling, shuffle=False, num_epochs=1
    )
    batches = list(loader)
    assert [len(batch["pixel_values"]) for batch in batches] == [12, 6]
    assert batches[0]["places"] == [0] * 6 + [1] * 6 and batches[1]["places"] == [3] * 6
    assert [batch["labels"].tolist() for batch in batches] == [[0] * 12, [1] * 6]
    assert [bad.source.rsplit("/", 1)[-1] for bad in batches[1]["bad_videos"]] == ["broken.mp4"]
    views = batches[0]["pixel_values"][:6].unflatten(0, (2, 3))
    frames = records.dataset[0]["video"]["path"]
    with open_video(frames) as reader:
        for time, start in enumerate((0, 5)):  # windows of 7 of the 12 frames
            raw = reader.frames_at(range(start, start + 7, 2))
            for crop, left in enumerate((0, 16, 32)):
                box = {"crop_box": (left, 0, 32, 32), "do_sample_frames": False, "return_tensors": "pt"}
                torch.testing.assert_close(views[time, crop], processor(raw, **box)["pixel_values"][0])


def test_a_crop_of_another_shape_than_the_frames_is_covered_by_them(records):
    # Frames of 32 x 64 and crops of 48 x 32: resized to 48 x 96.
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 48, "width": 32}}
    processor = MMEVideoProcessor(num_frames=4, frame_stride=2, **size)
    sampling = ViewSampling(num_crops=3)
    loader = build_labelled_loader(records, processor, videos_per_batch=1, sampling=sampling, shuffle=False)
    views = next(iter(loader))["pixel_values"]
    assert views.shape == (3, 4, 3, 48, 32)
    # It is brighter to the right, so the three crops are from left to right.
    means = views.mean((1, 2, 3, 4))
    assert means[0] < means[1] < means[2]


def test_augmented_clips_depend_on_the_seed_alone(records, processor):
    sampling = ViewSampling(augmentation=Augmentation(), samples_per_video=2)

    def batch(seed, num_workers=0):
        options = {"videos_per_batch": 2, "sampling": sampling, "seed": seed, "num_workers": num_workers}
        return next(iter(build_labelled_loader(records, processor, **options)))["pixel_values"]

    state = torch.random.get_rng_state()
    first = batch(0)
    assert torch.equal(torch.random.get_rng_state(), state)  # the training loop's randomness is its own
    assert torch.equal(first, batch(0, num_workers=1)) and not torch.equal(first, batch(1))
    assert not torch.equal(first[0], first[1])  # two draws of one video
    assert first.shape[1:] == (4, 3, 32, 32) and first.isfinite().all()


PLAIN = Augmentation(min_crop_scale=1, flip_probability=0, rand_augment_num_ops=0, random_erasing_probability=0)


def augmented(records, processor, num_clips, **changes):
    """Return clips of the first video that are augmented by nothing but `changes`."""
    sampling = ViewSampling(augmentation=replace(PLAIN, **changes), samples_per_video=num_clips)
    loader = build_labelled_loader(records, processor, videos_per_batch=1, sampling=sampling, shuffle=False)
    return next(iter(loader))["pixel_values"]


@pytest.mark.parametrize("smallest", [0.25, 0.5])
def test_crops_are_of_all_sizes_down_to_the_smallest_and_of_all_shapes(smallest):
    # The first colour tells the column and the second the row, 4 grey values a pixel, of 64 x 64.
    ramp = 4 * torch.arange(64, dtype=torch.uint8).expand(64, -1)
    clip = torch.stack([ramp, ramp.T, ramp])[None]
    crop = replace(PLAIN, min_crop_scale=smallest).of_pixels((64, 64), (0, 0, 0))
    torch.manual_seed(0)
    crops = torch.stack([crop(clip)[0, :2] for _ in range(300)]).float()
    columns, rows = ((crops.amax((2, 3)) - crops.amin((2, 3))) / 4 + 1).unbind(1)
    areas, shapes = columns * rows / 64**2, columns / rows
    assert smallest - 0.03 < areas.min() < smallest + 0.05 and areas.max() > 0.9
    assert 0.7 < shapes.min() < 0.8 and 1.25 < shapes.max() < 1.4


@pytest.mark.parametrize(
    ("probability", "expected"), [(0, {False}), (0.5, {False, True}), (1, {True})], ids=["never", "half", "always"]
)
def test_clips_are_mirrored_as_often_as_asked_for(records, processor, probability, expected):
    clips = augmented(records, processor, 12, flip_probability=probability)
    slopes = clips.mean((1, 2, 3)).diff(dim=-1)  # brightness rises to the right
    assert {bool((slope < 0).all()) for slope in slopes} == expected
    assert ((slopes > 0).all(1) | (slopes < 0).all(1)).all()


@pytest.mark.parametrize("probability", [0.0, 0.25, 1.0])
def test_a_rectangle_of_a_clip_is_filled_with_noise_as_often_as_asked_for(records, processor, probability):
    whole = augmented(records, processor, 1)[0]
    changed = (augmented(records, processor, 100, random_erasing_probability=probability) != whole).any(2)
    is_erased = changed.flatten(1).any(1)
    # The deviation at a quarter is 4.3.
    assert is_erased.sum() == 100 * probability or (probability == 0.25 and 10 < is_erased.sum() < 40)
    for clip in changed[is_erased]:  # (frames, rows, columns): the same place in all frames
        assert torch.equal(clip[0], clip[-1])
        assert torch.equal(clip[0], clip[0].any(1)[:, None] & clip[0].any(0))


def test_without_any_augmentation_a_random_clip_is_the_frame_resized(records, processor):
    clip = augmented(records, processor, 1)[0]
    # Brightness rises to the right in every row: neither mirrored nor erased.
    assert (clip.mean((0, 1, 2)).diff() > 0).all()


def test_records_without_labels_are_told_apart(tmp_path, records, processor):
    write_video(tmp_path / "a.mp4", np.zeros((4, 32, 32, 3), np.uint8))
    unlabelled = load_folder_records(tmp_path)
    with pytest.raises(ValueError, match=r"has no labels. Give class folders"):
        unlabelled.check_classes()
    batch = next(iter(build_labelled_loader(unlabelled, processor, videos_per_batch=1)))
    assert batch["labels"].tolist() == [NO_LABEL]
    records.check_classes()
