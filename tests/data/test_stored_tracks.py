"""Stored tracks on disk: found by the video's bytes, refused where they are not what a run needs."""

import json
import shutil
from itertools import islice
from types import SimpleNamespace

import pytest
import torch
from conftest import moving_texture, write_video
from datasets import config, load_dataset

from mme_hf import MMEVideoProcessor, open_video
from mme_hf.data import (
    ClipDataset,
    ClipSampling,
    MissingTracksError,
    RecordCursor,
    RecordRequest,
    StoredTracks,
    build_clip_loader,
    load_folder_records,
)
from mme_hf.data.extraction import extract_shard, shards_of, start_or_continue
from mme_hf.data.stored_tracks import TracksTotals, write_shard
from mme_hf.motion import MotionParameters, StoredTracker, build_tracker
from mme_hf.training.setup import open_stored_tracks
from mme_hf.video import VideoReadError

PARAMETERS = MotionParameters.of(build_tracker("dis"))


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(3):
        write_video(folder / f"clip_{index}.mp4", moving_texture(12, 64, 80, velocity=(1.0 + index, 0.5), seed=index))
    (folder / "cut.mp4").write_bytes((folder / "clip_0.mp4").read_bytes()[:-2000])
    return folder


def extract(records, folder, tracker=None, size=2):
    tracker = tracker or build_tracker("dis")
    parameters = MotionParameters.of(tracker)
    for shard in shards_of(records, folder, size=size, process_index=0, num_processes=1):
        if shard.records is not None:
            found = extract_shard(shard, records.name, tracker=tracker, parameters=parameters)
            write_shard([row for row, _ in found], shard.path)
    return folder


@pytest.fixture(scope="module")
def stored(videos, tmp_path_factory):
    return extract(load_folder_records(videos), tmp_path_factory.mktemp("tracks"))


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def folder(stored, tmp_path):
    return shutil.copytree(stored, tmp_path / "copy")


def test_a_video_is_found_by_its_bytes_wherever_it_lies(stored, videos, tmp_path):
    tracks = StoredTracks(stored, PARAMETERS)
    path = videos / "clip_1.mp4"
    moved = shutil.copy(path, tmp_path / "renamed.mp4")
    motion = tracks.motion_of(str(path))
    assert (len(tracks), motion.num_frames, motion.source_size) == (4, 12, (64, 80))
    assert tracks.motion_of(str(moved)) == tracks.motion_of(path.read_bytes()) == motion
    assert tracks.motion_of(str(videos / "clip_2.mp4")) != motion
    # A file that changed under its name is another video.
    path_of_other = tmp_path / "other.mp4"
    shutil.copy(videos / "clip_2.mp4", path_of_other)
    assert tracks.motion_of(str(path_of_other)) != motion
    shutil.copy(path, path_of_other)
    assert tracks.motion_of(str(path_of_other)) == motion


def test_the_shards_are_a_data_set_that_streams(stored, videos):
    stream = load_dataset(str(stored), split="train", streaming=True)
    rows = list(stream)
    assert [row["video"] for row in rows] == [path.name for path in sorted(videos.glob("*.mp4"))]
    row = rows[0]
    assert (row["format_version"], row["parameters_hash"]) == (1, PARAMETERS.hash)
    assert json.loads(row["parameters"])["tracker"] == "dis" and row["package_version"] and len(row["video_hash"]) == 32
    assert next(row for row in rows if row["video"] == "cut.mp4")["error"]
    totals = TracksTotals.of_folder(stored)
    assert (totals.num_videos, totals.num_bad) == (3, 1)
    assert totals.seconds == pytest.approx(3 * 12 / 30)  # 30 frames per second, 12 frames each


def test_a_video_without_tracks_is_an_error_that_names_it(stored, tmp_path):
    stranger = write_video(tmp_path / "stranger.mp4", moving_texture(5, 64, 80, seed=9))
    with pytest.raises(MissingTracksError, match=rf"no tracks for video {stranger} \(hash \w+\) in .* has 4 videos"):
        StoredTracks(stored).motion_of(str(stranger))


def test_a_video_that_extraction_could_not_read_is_a_bad_one(stored, videos):
    with pytest.raises(VideoReadError, match=r"cut\.mp4.*extraction of its tracks could not read it: "):
        StoredTracks(stored).motion_of(str(videos / "cut.mp4"))


def test_tracks_made_otherwise_are_refused_with_what_differs(stored):
    wanted = MotionParameters.of(build_tracker("dis", preset="medium"))
    message = r"made with tracker 'dis' \{'preset': 'fast'\} .*; this run needs tracker 'dis' \{'preset': 'medium'\} \("
    with pytest.raises(ValueError, match=message):
        StoredTracks(stored, wanted)
    with pytest.raises(ValueError, match=r"made with tracker 'dis' .*; this run needs tracker 'mine' \{\}"):
        StoredTracks(stored, MotionParameters("mine"))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda shard: shard.write_bytes(shard.read_bytes()[:-100]),
            r"shard train-00001\.parquet is damaged or incompl",
        ),
        (lambda shard: shard.write_bytes(b""), r"shard train-00001\.parquet is damaged or incomplete"),
        (lambda shard: shutil.rmtree(shard.parent), "holds no Parquet shard. Make them with"),
    ],
)
def test_a_damaged_folder_is_refused_by_name(folder, damage, message):
    damage(folder / "data" / "train-00001.parquet")
    with pytest.raises(ValueError, match=message):
        StoredTracks(folder)


def rewritten(folder, change):
    shard = folder / "data" / "train-00000.parquet"
    rows = load_dataset("parquet", data_files=str(shard), split="train").to_list()
    write_shard([{**row, **change} for row in rows], shard)
    return folder


def test_another_format_is_refused_but_another_version_of_the_package_is_not(folder):
    assert len(StoredTracks(rewritten(folder, {"package_version": "0.0.1"}))) == 4
    with pytest.raises(ValueError, match=r"has format \[1, 7\] \(made by mme_hf 0\.0\.1.*reads format 1\. Extract"):
        StoredTracks(rewritten(folder, {"format_version": 7}))


def test_a_folder_of_two_kinds_of_tracks_is_refused(folder):
    other = MotionParameters("dis", {"preset": "medium"})
    with pytest.raises(ValueError, match="mixes tracks made with tracker 'dis' .* and tracker 'dis'"):
        StoredTracks(rewritten(folder, {"parameters": other.to_json(), "parameters_hash": other.hash}))


def test_what_is_no_data_set_of_tracks_is_refused(tmp_path, monkeypatch):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"has no column average_fps, .*these are no stored tracks"):
        StoredTracks(tmp_path)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    with pytest.raises(ValueError, match=r"'me/none'\) is neither a folder nor a data set that can be opened"):
        StoredTracks("me/none")


@pytest.fixture
def processor():
    return MMEVideoProcessor(
        num_frames=4,
        frame_stride=2,
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
    )


def request(record, seed=0):
    return RecordRequest(record, 0, 0, seed, RecordCursor())


def test_clips_take_their_tracks_from_the_frames_they_are_cut_from(stored, videos, processor):
    records, tracks = load_folder_records(videos), StoredTracks(stored)
    given = []

    class Spy(MMEVideoProcessor):
        def __call__(self, frames, **options):
            given.append((frames, options))
            return processor(frames, **options)

    dataset = ClipDataset(records, Spy(num_frames=4, frame_stride=2), ClipSampling(samples_per_video=2))
    dataset.stored_tracks = tracks
    result = dataset[request(0, seed=3)]
    assert result.bad_video is None and len(given) == 2
    motion = tracks.motion_of(str(videos / "clip_0.mp4"))
    with open_video(videos / "clip_0.mp4") as reader:
        every = reader.frames_at(range(12))
    for (frames, options), sample in zip(given, result.samples, strict=True):
        assert options["tracker"].motion == motion
        # Where the window of 9 frames lies, found by comparing pixels.
        (start,) = [first for first in range(4) if torch.equal(every[first : first + 9], frames)]
        assert options["tracker"].first_frame == start
        expected = processor(frames, **{**options, "tracker": StoredTracker(motion, first_frame=start)})
        assert torch.equal(sample["labels"], expected["labels"])
    # Raw clips carry their tracks with them, to where there is no data set of tracks.
    sender = ClipDataset(records, processor, dataset.sampling, targets_on="device", stored_tracks=tracks)
    for clips, sample in zip(sender[request(0, seed=3)].samples, result.samples, strict=True):
        assert torch.equal(processor.inputs_from_raw_clips(clips)["labels"], sample["labels"])


def test_bad_videos_are_counted_and_missing_tracks_stop_the_run_also_in_a_worker(stored, videos, processor, tmp_path):
    result = ClipDataset(load_folder_records(videos), processor, stored_tracks=StoredTracks(stored))[request(3)]
    assert result.bad_video is not None and not result.samples
    (tmp_path / "videos").mkdir()
    write_video(tmp_path / "videos" / "stranger.mp4", moving_texture(9, 64, 80, seed=9))
    records = load_folder_records(tmp_path / "videos")
    options = {"batch_size": 1, "shuffle": False, "stored_tracks": StoredTracks(stored)}
    for num_workers in (0, 1):
        loader = build_clip_loader(records, processor, num_workers=num_workers, **options)
        with pytest.raises(MissingTracksError) as caught:
            next(iter(loader))
        assert str(caught.value).startswith("no tracks for video ") and "\n" not in str(caught.value)


def test_a_run_checks_tracker_and_first_video_before_it_begins(stored, videos, processor, tmp_path):
    args = SimpleNamespace(stored_tracks=str(stored))
    records = load_folder_records(videos)
    assert len(open_stored_tracks(args, processor, records)) == 4
    assert open_stored_tracks(SimpleNamespace(stored_tracks=None), processor, records) is None
    processor.tracker_options = {"preset": "medium"}
    with pytest.raises(ValueError, match="this run needs tracker 'dis' {'preset': 'medium'}"):
        open_stored_tracks(args, processor, records)
    processor.tracker_options = {}
    write_video(tmp_path / "stranger.mp4", moving_texture(9, 64, 80, seed=9))
    with pytest.raises(MissingTracksError, match="no tracks for video"):
        open_stored_tracks(args, processor, load_folder_records(tmp_path))


@pytest.mark.parametrize("num_processes", [1, 2, 3])
def test_processes_share_the_shards_and_streams_are_cut_alike(videos, tmp_path, num_processes):
    records = load_folder_records(videos)
    for kind in (records, records.streamed()):
        shares = [
            [
                (shard.path.name, shard.first_place, [row["video"]["path"] for row in shard.records])
                for shard in shards_of(kind, tmp_path, size=3, process_index=index, num_processes=num_processes)
            ]
            for index in range(num_processes)
        ]
        paths = sorted(str(path) for path in videos.glob("*.mp4"))
        expected = [("train-00000.parquet", 0, paths[:3]), ("train-00001.parquet", 3, paths[3:])]
        assert sorted(shard for share in shares for shard in share) == expected
        assert len(shares[0]) == (2 if num_processes == 1 else 1)


def test_finished_shards_are_kept_and_other_settings_refused(folder, videos):
    shards = list(shards_of(load_folder_records(videos), folder, size=2, process_index=0, num_processes=1))
    assert [shard.records for shard in shards] == [None, None]
    settings = {"data": "abc", "num_videos_per_shard": 2}
    with pytest.raises(ValueError, match=r"holds Parquet files but no extraction\.json"):
        start_or_continue(folder, settings, is_main=True)
    (folder / "data" / ".train-00002.parquet.7.tmp").write_bytes(b"half")
    (folder / "extraction.json").write_text(json.dumps({**settings, "format_version": 1}))
    start_or_continue(folder, settings, is_main=True)
    assert not list(folder.glob("data/.*.tmp"))
    with pytest.raises(ValueError, match=r"tracks made with num_videos_per_shard 2; this run has 3\. Use the same"):
        start_or_continue(folder, {**settings, "num_videos_per_shard": 3}, is_main=True)


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="int"):
        write_shard([{"num_frames": "many"}], tmp_path / "data" / "train-00000.parquet")
    assert list(islice((tmp_path / "data").iterdir(), 1)) == []
