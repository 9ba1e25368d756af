"""Stored tracks on disk: found by the video's bytes, refused where they are not what a run needs."""

import json
import os
import shutil
import time
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import moving_texture, write_video
from datasets import config, load_dataset
from pyarrow import parquet

from mme_hf import MMEVideoProcessor, __version__, open_video
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
from mme_hf.motion import MotionParameters, StoredTracker, StoredTracksError, build_tracker
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


@pytest.mark.parametrize("place", [0.2, 0.5, 0.8])
def test_a_byte_that_changed_inside_the_motion_is_an_error_that_names_the_shard(folder, videos, place):
    shard = folder / "data" / "train-00001.parquet"
    content = bytearray(shard.read_bytes())
    group = parquet.ParquetFile(shard).metadata.row_group(0)
    columns = [group.column(index) for index in range(group.num_columns)]
    (motion,) = (column for column in columns if column.path_in_schema.startswith("motion"))
    first = motion.dictionary_page_offset or motion.data_page_offset
    content[first + int(place * motion.total_compressed_size)] ^= 0xFF
    shard.write_bytes(content)
    with pytest.raises(ValueError, match=r"shard train-00001\.parquet is damaged"):
        tracks = StoredTracks(folder)
        for video in sorted(videos.glob("clip_*.mp4")):
            tracks.motion_of(str(video)).displacements_at(range(11))


def test_a_shard_that_is_gone_or_replaced_later_stops_a_run_and_is_no_bad_video(folder, videos, processor):
    tracks = StoredTracks(folder)
    dataset = ClipDataset(load_folder_records(videos), processor, stored_tracks=tracks)
    shard = folder / "data" / "train-00000.parquet"
    shutil.copy(folder / "data" / "train-00001.parquet", shard)
    with pytest.raises(StoredTracksError, match=r"shard train-00000\.parquet .* has changed since it was opened"):
        dataset[request(0)]
    shard.unlink()
    with pytest.raises(StoredTracksError, match=r"shard train-00000\.parquet is damaged"):
        dataset[request(0)]


def rewritten(folder, change, name="train-00000.parquet"):
    shard = folder / "data" / name
    rows = load_dataset("parquet", data_files=str(shard), split="train").to_list()
    write_shard([{**row, **change} for row in rows], shard)
    return folder


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format_version": 7}, r"is of format 7, not 1"),
        ({"package_version": "0.0.1"}, rf"was made by mme_hf 0\.0\.1, whose tracks .* mme_hf {__version__}"),
        ({"parameters_hash": "0" * 16}, rf"has the parameters_hash {'0' * 16}, not {PARAMETERS.hash}"),
    ],
)
def test_a_row_that_is_another_later_stops_a_run(folder, videos, change, message):
    tracks = StoredTracks(folder)
    rewritten(folder, change)
    changed = rf"shard train-00000\.parquet of .* has changed since it was opened: its row of .*clip_0\.mp4 {message}"
    with pytest.raises(StoredTracksError, match=changed):
        tracks.motion_of(str(videos / "clip_0.mp4"))


def test_tracks_made_anew_otherwise_are_not_taken_for_those_that_were_opened(folder, videos):
    tracks = StoredTracks(folder)
    shutil.rmtree(folder)
    extract(load_folder_records(videos), folder, build_tracker("dis", preset="ultrafast"))
    message = (
        r"made with tracker 'dis' \{'preset': 'ultrafast'\} .*, not with tracker 'dis' \{'preset': 'fast'\} .*again"
    )
    with pytest.raises(StoredTracksError, match=message):
        tracks.motion_of(str(videos / "clip_0.mp4"))


def test_another_format_is_refused(folder):
    with pytest.raises(
        ValueError, match=r"has format \[1, 7\] \(made by mme_hf .*\); mme_hf .* reads format 1\. Extract"
    ):
        StoredTracks(rewritten(folder, {"format_version": 7}))


@pytest.mark.parametrize("version", ["0.0.1", "99.0", "mine", None])
def test_tracks_of_a_version_whose_numbers_may_differ_are_refused(folder, version):
    message = rf"made by mme_hf {version}; this run has mme_hf {__version__}, whose .* Extract the tracks again"
    with pytest.raises(ValueError, match=message):
        StoredTracks(rewritten(folder, {"package_version": version}))


def test_tracks_of_an_earlier_version_with_the_same_numbers_are_read(folder, monkeypatch):
    monkeypatch.setattr("mme_hf.data.stored_tracks.__version__", "0.3.1")
    assert len(StoredTracks(folder)) == 4
    monkeypatch.setattr("mme_hf.data.stored_tracks.SAME_TRACKS_SINCE", "0.3.0")
    with pytest.raises(ValueError, match=r"whose tracks are those of 0\.3\.0 to 0\.3\.1"):
        StoredTracks(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"parameters": "{"}, "parameters of stored tracks are damaged"),
        ({"parameters": None}, "parameters of stored tracks are damaged"),
        ({"parameters_hash": "0" * 16}, "parameters do not have the hash that is kept with them"),
    ],
)
def test_parameters_that_are_damaged_are_refused(folder, change, message):
    rewritten(folder, change, "train-00001.parquet")
    with pytest.raises(ValueError, match=message):
        StoredTracks(rewritten(folder, change))


def test_a_video_that_changed_under_its_name_is_said_to_have(stored, videos, tmp_path):
    changed = tmp_path / "clip_1.mp4"
    changed.write_bytes((videos / "clip_1.mp4").read_bytes() + b"0")
    with pytest.raises(MissingTracksError, match=r"another file of the name clip_1\.mp4 \(hash \w+\): .* has changed"):
        StoredTracks(stored).motion_of(str(changed))


def test_folders_beside_each_other_are_one_data_set(videos, tmp_path):
    (tmp_path / "more").mkdir()
    write_video(tmp_path / "more" / "new.mp4", moving_texture(9, 64, 80, seed=9))
    extract(load_folder_records(videos), tmp_path / "tracks" / "first")
    extract(load_folder_records(tmp_path / "more"), tmp_path / "tracks" / "second")
    tracks = StoredTracks(tmp_path / "tracks", PARAMETERS)
    assert len(tracks) == 5 and tracks.motion_of(str(tmp_path / "more" / "new.mp4")).num_frames == 9
    # A video that one extraction could not read and the other could has tracks, whichever comes first.
    for name in ("first", "second"):
        folder = shutil.copytree(tmp_path / "tracks" / "first", tmp_path / f"{name} is bad" / name)
        shutil.copytree(tmp_path / "tracks" / "first", tmp_path / f"{name} is bad" / "sometimes")
        rewritten(folder, {"error": "no decoder", "motion": []})
        assert StoredTracks(folder.parent).motion_of(str(videos / "clip_0.mp4")).num_frames == 12


def test_a_reader_that_counts_other_frames_than_extraction_did_stops_the_run(folder, videos, processor):
    rewritten(folder, {"num_frames": 13})
    dataset = ClipDataset(load_folder_records(videos), processor, stored_tracks=StoredTracks(folder))
    with pytest.raises(StoredTracksError, match=r"clip_0\.mp4 has 12 frames for this reader; .* 13.*--reader"):
        dataset[request(0)]


def test_a_folder_of_two_kinds_of_tracks_is_refused(folder):
    other = MotionParameters("dis", {"preset": "medium"})
    with pytest.raises(ValueError, match="mixes tracks made with tracker 'dis' .* and tracker 'dis'"):
        StoredTracks(rewritten(folder, {"parameters": other.to_json(), "parameters_hash": other.hash}))


def test_what_is_no_data_set_of_tracks_is_refused(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({"text": ["a"]}), tmp_path / "other.parquet")
    with pytest.raises(ValueError, match=r"has no column average_fps, .*these are no stored tracks"):
        StoredTracks(tmp_path)
    with pytest.raises(ValueError, match=r"'me/none'\) is no folder, and none on the Hub: data set "):
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
    args = SimpleNamespace(stored_tracks=str(stored), moving_crop_speed=0.0)
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
    # A first record without a video is for the run to count.
    empty = replace(records, dataset=records.dataset.map(lambda video: {"video": None}))
    assert len(open_stored_tracks(args, processor, empty)) == 4
    args.moving_crop_speed = 0.01
    with pytest.raises(ValueError, match=r"moving_crop_speed \(0.01\) makes motion that stored_tracks .* do not have"):
        open_stored_tracks(args, processor, records)


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
    left, being_written = (folder / "data" / f".train-00002.parquet.{process}.tmp" for process in (7, 8))
    for unfinished in (left, being_written):
        unfinished.write_bytes(b"half")
    an_hour_ago = time.time() - 3601
    os.utime(left, (an_hour_ago, an_hour_ago))
    (folder / "extraction.json").write_text(
        json.dumps({**settings, "format_version": 1, "package_version": __version__})
    )
    start_or_continue(folder, settings, is_main=True)
    # A shard is written in seconds; what is newer may be another run's.
    assert list(folder.glob("data/.*.tmp")) == [being_written]
    with pytest.raises(ValueError, match=r"tracks made with num_videos_per_shard 2; this run has 3\. Use the same"):
        start_or_continue(folder, {**settings, "num_videos_per_shard": 3}, is_main=True)


def test_an_extraction_is_not_gone_on_with_by_a_version_whose_numbers_may_differ(tmp_path):
    start_or_continue(tmp_path, {}, is_main=True)
    settings = json.loads((tmp_path / "extraction.json").read_text())
    assert settings["package_version"] == __version__
    start_or_continue(tmp_path, {}, is_main=True)
    (tmp_path / "extraction.json").write_text(json.dumps({**settings, "package_version": "0.0.1"}))
    with pytest.raises(ValueError, match=r"holds tracks made by mme_hf 0\.0\.1; .* name another --output_dir"):
        start_or_continue(tmp_path, {}, is_main=True)


@pytest.mark.parametrize("text", ["{", "[]", '"text"'])
def test_settings_that_are_damaged_are_refused(tmp_path, text):
    (tmp_path / "extraction.json").write_text(text)
    with pytest.raises(ValueError, match=r"extraction\.json is damaged.*name another"):
        start_or_continue(tmp_path, {}, is_main=True)


def test_a_folder_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"output_dir \('.*/file/tracks'\) cannot be written: .*Not a directory"):
        start_or_continue(tmp_path / "file" / "tracks", {}, is_main=True)


def test_a_shard_that_cannot_be_written_leaves_nothing(tmp_path):
    with pytest.raises(Exception, match="int"):
        write_shard([{"num_frames": "many"}], tmp_path / "data" / "train-00000.parquet")
    assert list(tmp_path.iterdir()) == []
