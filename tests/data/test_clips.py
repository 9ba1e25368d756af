"""From videos to batches: good ones, odd ones and bad ones."""

import threading
import zipfile
from functools import partial
from hashlib import blake2b
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video

from mme_hf import MMEVideoProcessor, open_video
from mme_hf.data import (
    ClipCollator,
    ClipDataset,
    ClipSampling,
    RecordCursor,
    RecordRequest,
    build_clip_loader,
    load_folder_records,
)
from mme_hf.position_target_mme import PositionTarget
from mme_hf.video.pyav_reader import PyAVReader


@pytest.fixture(scope="module")
def processor():
    # Input frames 0, 2, 4, 6; tracks of 4 steps from 0 and 4: 9 raw frames.
    return MMEVideoProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, num_frames=4, frame_stride=2
    )


def request(record, seed=0):
    return RecordRequest(record, 0, 0, seed, RecordCursor(0, 1, 1))


def dataset_of(folder, processor, **sampling):
    return ClipDataset(load_folder_records(folder), processor, ClipSampling(**sampling))


def one(tmp_path, processor, frames, name="clip.mp4", **options):
    write_video(tmp_path / name, frames, **options)
    return dataset_of(tmp_path, processor)[request(0)]


def test_a_sample_depends_on_its_seed_alone(video_folder, processor):
    dataset = dataset_of(video_folder, processor)
    first, again, other = dataset[request(0, seed=1)], dataset[request(0, seed=1)], dataset[request(0, seed=2)]
    torch.rand(3)  # the state of torch's own generator plays no part
    for name, tensor in first.samples[0].items():
        assert torch.equal(tensor, again.samples[0][name])
    assert not torch.equal(first.samples[0]["pixel_values"], other.samples[0]["pixel_values"])


def test_several_samples_of_one_video_are_all_different(video_folder, processor):
    samples = dataset_of(video_folder, processor, samples_per_video=3)[request(0)].samples
    assert len({sample["pixel_values"].sum().item() for sample in samples}) == 3
    assert len({tuple(sample["masked_indices"][0].tolist()) for sample in samples}) > 1


def test_only_frames_that_inputs_and_tracks_need_are_read(video_folder, monkeypatch):
    options = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4}
    dataset = dataset_of(video_folder, MMEVideoProcessor(frame_stride=6, **options))
    asked, read = [], PyAVReader.frames_at
    monkeypatch.setattr(PyAVReader, "frames_at", lambda self, indices: asked.append(indices) or read(self, indices))
    (sample,) = dataset[request(0)].samples
    # Inputs 0, 6, 12, 18; tracks of 4 steps from 0 and from 12.
    (indices,) = asked
    assert [index - indices[0] for index in indices] == [0, 1, 2, 3, 4, 6, 12, 13, 14, 15, 16, 18]
    assert sample["pixel_values"].shape[1] == 4


def test_without_targets_only_input_frames_are_read(video_folder, processor, monkeypatch):
    records, sampling = load_folder_records(video_folder), ClipSampling(samples_per_video=2, is_random=False)
    dataset = ClipDataset(records, processor, sampling, return_targets=False)
    asked, read = [], PyAVReader.frames_at
    monkeypatch.setattr(PyAVReader, "frames_at", lambda self, indices: asked.append(indices) or read(self, indices))
    samples = dataset[request(0)].samples
    # Two windows of 9 of the 40 frames, from 0 and from 31; the 7 frames from input to input are in their middle.
    assert asked == [[1 + start + frame for start in (0, 31) for frame in (0, 2, 4, 6)]]
    with open_video(records.dataset[0]["video"]["path"]) as reader:
        frames = reader.frames_at(asked[0]).split(4)
    for sample, clip in zip(samples, frames, strict=True):
        expected = processor(clip, do_sample_frames=False, crop_box=(8, 0, 48, 48), return_tensors="pt")
        assert torch.equal(sample["pixel_values"], expected["pixel_values"])


@pytest.mark.parametrize("targets_on", ["workers", "device"])
def test_labels_are_those_of_the_whole_window_though_parts_of_it_are_not_read(tmp_path, targets_on):
    write_video(tmp_path / "clip.mp4", moving_texture(23, 48, 48, velocity=(1.5, -0.5)))
    options = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4}
    processor = MMEVideoProcessor(frame_stride=6, **options)  # 12 of 19 raw frames
    records = load_folder_records(tmp_path)
    dataset = ClipDataset(records, processor, ClipSampling(is_random=False), targets_on=targets_on)
    (sample,) = dataset[request(0)].samples
    inputs = sample if targets_on == "workers" else processor.inputs_from_raw_clips(sample)
    with open_video(str(tmp_path / "clip.mp4")) as reader:
        window = reader.frames_at(range(2, 21))  # in the middle
    expected = processor(window, return_targets=True, crop_box=(0, 0, 48, 48), return_tensors="pt")
    for name in ("pixel_values", "labels", "target_mask"):
        assert torch.equal(inputs[name], expected[name]), name


def test_a_video_whose_frames_change_size_is_a_bad_one(tmp_path, processor):
    parts = [write_video(tmp_path / "part.ts", moving_texture(12, *size)).read_bytes() for size in ((32, 32), (48, 64))]
    (tmp_path / "part.ts").write_bytes(b"".join(parts))
    dataset = dataset_of(tmp_path, processor, samples_per_video=3, is_random=False)  # at both ends and in the middle
    result = dataset[request(0)]
    assert result.bad_video.cause.startswith("its frames change size from 32x32 to 64x48") and not result.samples


@pytest.mark.parametrize(
    ("probability", "expected"), [(0.0, {False}), (0.5, {False, True}), (1.0, {True})], ids=["never", "half", "always"]
)
def test_random_samples_are_mirrored_as_often_as_asked_for(tmp_path, processor, probability, expected):
    ramp = np.linspace(20, 220, 64, dtype=np.uint8)[None, None, :, None]  # brighter to the right
    write_video(tmp_path / "ramp.mp4", np.broadcast_to(ramp, (9, 48, 64, 3)))
    sampling = ClipSampling(samples_per_video=12, flip_probability=probability)
    dataset = ClipDataset(load_folder_records(tmp_path), processor, sampling, return_targets=False)
    rows = [sample["pixel_values"].mean((0, 1, 2, 3)) for sample in dataset[request(0)].samples]
    assert {bool(row[-1] < row[0]) for row in rows} == expected


def test_a_moving_crop_makes_the_same_motion_at_all_points_of_a_still_video(tmp_path, processor):
    still = moving_texture(1, 96, 96).repeat(12, axis=0)
    write_video(tmp_path / "still.mp4", still)
    dataset = dataset_of(tmp_path, processor, moving_crop_speed=0.05, flip_probability=0.0)
    spreads, motions = [], []
    for seed in range(8):
        sample = dataset[request(0, seed=seed)].samples[0]
        position = sample["labels"][0, :, 108:][sample["target_mask"][0, :, 1]]
        displacements = PositionTarget().displacements(position, 4, (32, 32))  # (tokens, steps, points, 2)
        motion = displacements.mean((0, 1, 2))  # (x, y) in pixels of the 32 px crop per frame
        motions.append(motion.norm())
        spreads.append((displacements - motion).abs().mean())
    # Half of the crops stand still, the others slide by up to 5 % of 32 px, 1.6 px, a frame.
    assert min(motions) < 0.05 < 0.2 < max(motions) < 1.7
    assert max(spreads) < 0.1


def test_the_held_out_part_and_the_training_part_share_no_frame():
    # 40 frames, the last fifth of which is 32..39.
    assert ClipSampling(part="train").frame_range(40) == range(32)
    assert ClipSampling(part="held_out").frame_range(40) == range(32, 40)
    for num_frames in range(2, 60):
        train = ClipSampling(part="train").frame_range(num_frames)
        held_out = ClipSampling(part="held_out").frame_range(num_frames)
        assert [*train, *held_out] == list(range(num_frames))
        assert len(train) > 0 < len(held_out)


@pytest.mark.parametrize(("part", "allowed"), [("train", range(32)), ("held_out", range(32, 40)), ("all", range(40))])
def test_only_frames_of_the_part_are_read(video_folder, processor, monkeypatch, part, allowed):
    from mme_hf.data import clips

    read = []

    class Spy:
        def __init__(self, reader):
            self.reader, self.num_frames = reader, reader.num_frames

        def __enter__(self):
            return self

        def __exit__(self, *exc_info):
            self.reader.close()

        def frames_at(self, indices):
            read.extend(indices)
            return self.reader.frames_at(indices)

    open_video = clips.open_video
    monkeypatch.setattr(clips, "open_video", lambda *args, **options: Spy(open_video(*args, **options)))
    dataset = dataset_of(video_folder, processor, part=part, samples_per_video=2)
    for seed in range(80):  # enough to meet the first and the last start
        dataset[request(0, seed)]
    assert set(read) <= set(allowed)
    assert min(read) == allowed.start and max(read) == allowed[-1]


def test_bad_files_are_named_with_their_cause_and_good_ones_go_on(tmp_path, processor):
    good = write_video(tmp_path / "good.mp4", moving_texture(20, 48, 64))
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "text.mp4").write_text("no video at all")
    (tmp_path / "cut.mp4").write_bytes(good.read_bytes()[:-2000])
    loader = build_clip_loader(load_folder_records(tmp_path), processor, batch_size=4, shuffle=False, num_epochs=1)
    batch = next(iter(loader))
    assert batch["sources"] == [str(good)]
    assert len(batch["inputs"]["pixel_values"]) == 1
    assert [bad.source for bad in batch["bad_videos"]] == [
        str(tmp_path / name) for name in ("cut.mp4", "empty.mp4", "text.mp4")
    ]
    assert all(len(bad.cause) > 10 for bad in batch["bad_videos"])
    assert batch["num_records"] == 4


def test_a_batch_of_bad_videos_alone_has_no_clip_but_every_tensor(tmp_path, processor):
    (tmp_path / "empty.mp4").write_bytes(b"")
    result = dataset_of(tmp_path, processor)[request(0)]
    batch = ClipCollator(processor)([result, result])
    assert batch["sources"] == []
    shapes = {name: tuple(tensor.shape) for name, tensor in batch["inputs"].items()}
    assert shapes == {
        "pixel_values": (0, 4, 3, 32, 32),
        "bool_masked_pos": (0, 8),
        "masked_indices": (0, 4),  # int(0.7 * 4) = 2 of each tubelet's 4 tokens
        "labels": (0, 8, 140),
        "target_mask": (0, 8, 2),
    }


def test_a_run_of_stored_tracks_does_not_call_its_tracker_for_a_batch_of_no_clips(processor):
    # Nothing is known of the tracker of such a run but its name: it may not be installed.
    def tracker(frames, points_xy, *, start_frames, num_steps):
        raise ImportError("not installed")

    for mask_type in ("tube", "motion"):
        options = {"tracker": tracker, "camera_motion": "remove", "mask_type": mask_type}
        own = MMEVideoProcessor(**{**processor.to_dict(), **options})
        empty = ClipCollator(own).empty_inputs
        for name, tensor in ClipCollator(processor).empty_inputs.items():
            assert (empty[name].shape, empty[name].dtype) == (tensor.shape, tensor.dtype), name


@pytest.mark.parametrize(
    ("num_frames", "counting_tubelets"),
    [(9, [True, True]), (8, [True, True]), (7, [True, True]), (6, [True, False]), (1, [False, False])],
)
def test_a_short_clip_takes_a_smaller_stride_and_invents_no_motion(tmp_path, processor, num_frames, counting_tubelets):
    # Stride 2 needs 9 frames, stride 1 needs 7 (tracks from 0 and 2, 4 steps each); below that the last is repeated.
    sample = one(tmp_path, processor, moving_texture(num_frames, 48, 48, velocity=(0.2, 0.0))).samples[0]
    position = sample["target_mask"][0, :, 1].unflatten(0, (2, 4))
    assert position.any(1).tolist() == counting_tubelets
    assert sample["target_mask"][0, :, 0].all()  # the shape is there to be seen in every frame
    assert sample["pixel_values"].shape == (1, 4, 3, 32, 32)


@pytest.mark.parametrize("size", [(20, 18), (96, 48), (48, 96), (66, 50)], ids=["small", "portrait", "wide", "uneven"])
def test_frames_of_any_size_become_clips(tmp_path, processor, size):
    result = one(tmp_path, processor, moving_texture(12, *size))
    assert result.bad_video is None
    assert result.samples[0]["pixel_values"].shape == (1, 4, 3, 32, 32)


@pytest.fixture
def served(video_folder):
    """A web server on loopback that cannot seek, as the plainest ones."""
    handler = partial(SimpleHTTPRequestHandler, directory=str(video_folder))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_streamed_path_may_be_a_url_also_into_an_archive(tmp_path, video_folder, processor, served):
    video = next(video_folder.rglob("*.mp4"))
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        archive.write(video, "clip.mp4")
    dataset = dataset_of(video_folder, processor)
    expected = dataset[request({"video": {"bytes": None, "path": str(video)}})].samples[0]
    for url in (f"{served}/{video.relative_to(video_folder)}", f"zip://clip.mp4::{tmp_path / 'videos.zip'}"):
        sample = dataset[request({"video": {"bytes": None, "path": url}})].samples[0]
        assert torch.equal(sample["pixel_values"], expected["pixel_values"])
    missing = dataset[request({"video": {"bytes": None, "path": f"{served}/none.mp4"}})]
    assert missing.bad_video.source == f"{served}/none.mp4"
    assert "FileNotFoundError" in missing.bad_video.cause


def test_a_damaged_archive_and_a_record_without_a_video_are_bad_videos(tmp_path, processor):
    with zipfile.ZipFile(tmp_path / "videos.zip", "w") as archive:
        archive.writestr("clip.mp4", b"x" * 1000)
    content = (tmp_path / "videos.zip").read_bytes()
    (tmp_path / "videos.zip").write_bytes(content.replace(b"xx", b"xy", 1))
    dataset = dataset_of(_with_one_video(tmp_path / "videos"), processor)
    damaged = dataset[request({"video": {"bytes": None, "path": f"zip://clip.mp4::{tmp_path / 'videos.zip'}"}})]
    assert "the archive is damaged: Bad CRC-32" in damaged.bad_video.cause
    for nothing in (None, {"bytes": None, "path": None}):
        assert "the record has no video" in dataset[request({"video": nothing})].bad_video.cause
    dataset.rows = [{"video": None}]
    assert dataset[request(0)].source == "videos[0]"


def test_embedded_videos_are_named_by_their_place(tmp_path, processor):
    dataset = dataset_of(tmp_path if any(tmp_path.iterdir()) else _with_one_video(tmp_path), processor)
    result = dataset[request({"video": {"bytes": b"broken", "path": "a.mp4"}})]
    # blake2b of b"broken", 6 bytes
    assert result.source == f"{tmp_path.name}[{blake2b(b'broken', digest_size=6).hexdigest()}] (a.mp4)"


def _with_one_video(folder):
    folder.mkdir(exist_ok=True)
    write_video(folder / "clip.mp4", moving_texture(9, 48, 48))
    return folder


def test_workers_make_the_same_batches_as_the_main_process(video_folder, processor):
    records = load_folder_records(video_folder)
    loaders = [
        build_clip_loader(records, processor, batch_size=2, seed=3, num_workers=num_workers) for num_workers in (0, 2)
    ]
    state = torch.get_rng_state()
    for alone, helped in zip(*(islice(loader, 4) for loader in loaders), strict=True):
        assert alone["sources"] == helped["sources"]
        assert alone["next_cursor"] == helped["next_cursor"]
        for name, tensor in alone["inputs"].items():
            assert torch.equal(tensor, helped["inputs"][name])
    assert torch.equal(torch.get_rng_state(), state)  # or a resumed run would draw other numbers


def test_a_batch_size_that_does_not_divide_is_an_error(video_folder, processor):
    with pytest.raises(ValueError, match=r"batch_size \(3\) does not divide by samples_per_video \(2\)"):
        build_clip_loader(
            load_folder_records(video_folder), processor, batch_size=3, sampling=ClipSampling(samples_per_video=2)
        )


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"samples_per_video": 0}, r"samples_per_video \(0\)"),
        ({"flip_probability": 2.0}, r"flip_probability \(2.0\)"),
        ({"moving_crop_speed": 2.0}, r"moving_crop_speed \(2.0\) must lie in \[0, 0.5\]"),
        ({"part": "test"}, r"part \('test'\)"),
        ({"reader": "eyes"}, r"reader \('eyes'\) must be one of 'auto', 'decord', 'pyav', 'torchcodec'"),
        ({"held_out_fraction": 0.0}, r"held_out_fraction \(0.0\)"),
    ],
)
def test_wrong_sampling_is_named(wrong, message):
    with pytest.raises(ValueError, match=message):
        ClipSampling(**wrong)
