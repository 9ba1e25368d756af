"""The extraction script as a user runs it: alone, killed and started again, on two processes; and training on it."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import runs
from conftest import moving_texture, write_video
from datasets import load_dataset

SCRIPT = Path(__file__).parents[2] / "examples" / "extract_trajectories.py"


def start(output_dir, *, launcher=(), **flags):
    """Start the script with one video in a shard."""
    merged = {"output_dir": output_dir, "num_videos_per_shard": 1, "max_bad_fraction": 0.5, **flags}
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), *(f"--{name}={value}" for name, value in merged.items())],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=output_dir.parent,
    )


def rows(folder):
    """Return all rows of a data set, in order."""
    return [row for shard in sorted(folder.glob("data/*.parquet")) for row in pq.read_table(shard).to_pylist()]


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for index in range(5):
        write_video(folder / f"clip_{index}.mp4", moving_texture(40, 48, 64, velocity=(1.0, 0.3 * index), seed=index))
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture(scope="module")
def extracted(videos, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "tracks"
    return folder, runs.finish(start(folder, train_dir=videos))


def test_a_run_leaves_all_that_it_promises_and_says_what_it_cost(videos, extracted):
    folder, output = extracted
    assert "5 videos (1 bad ones beside them)" in output and "MB for 10 s" in output and "videos/s" in output
    assert [row["video"] for row in rows(folder)] == ["broken.mp4", *(f"clip_{index}.mp4" for index in range(5))]
    (bad,) = [json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    assert bad["source"] == str(videos / "broken.mp4") and "bad videos are listed in" in output
    card = (folder / "README.md").read_text()
    assert "path: data/*.parquet" in card and "tracker `dis`" in card and str(videos.parent) not in card
    stream = load_dataset(str(folder), split="train", streaming=True)
    assert next(iter(stream))["video"] == "broken.mp4"
    assert not list(folder.rglob("*.tmp"))


def test_training_reads_the_tracks_and_stops_at_a_video_without_any(videos, extracted, tmp_path):
    flags = {"train_dir": videos, "stored_tracks": extracted[0], "max_train_steps": 2, "max_bad_fraction": 0.2}
    flags["per_device_train_batch_size"] = 3
    runs.finish(runs.start(tmp_path / "run", held_out_fraction=0.3, **flags))
    assert len(runs.logged(tmp_path / "run")) == 2
    shard = next(
        shard for shard in sorted(extracted[0].glob("data/*")) if "clip_3" in str(pq.read_table(shard)["video"])
    )
    hidden = shard.rename(tmp_path / shard.name)
    try:
        output = runs.finish(runs.start(tmp_path / "second", **flags), expected=1)
    finally:
        hidden.rename(shard)
    assert f"pretrain.py: stopped: no tracks for video {videos / 'clip_3.mp4'} (hash " in output
    assert "which has 5 videos" in output and "Traceback" not in output


def test_wrong_flags_are_one_line(tmp_path):
    output = runs.finish(
        start(tmp_path / "tracks", train_dir="nowhere", tracker_options='{"preset": "slow"}'), expected=1
    )
    assert "extract_trajectories.py: error: tracker 'dis': preset ('slow') must be one of" in output
    assert "Traceback" not in output and not (tmp_path / "tracks").exists()


def test_a_killed_run_goes_on_and_keeps_its_finished_shards(videos, extracted, tmp_path):
    folder = tmp_path / "tracks"
    process = start(folder, train_dir=videos)
    deadline = time.monotonic() + 120
    while len(list(folder.glob("data/*.parquet"))) < 3 and time.monotonic() < deadline:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = {path: path.stat().st_mtime_ns for path in folder.glob("data/*.parquet")}
    assert 3 <= len(kept) <= 6
    output = runs.finish(start(folder, train_dir=videos))
    assert f"{6 - len(kept)} videos in this run" in output
    assert rows(folder) == rows(extracted[0])
    assert all(path.stat().st_mtime_ns == written for path, written in kept.items())


def test_two_processes_make_what_one_makes(videos, extracted, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(runs.free_port()))
    output = runs.finish(start(tmp_path / "tracks", launcher=launcher, train_dir=videos))
    assert rows(tmp_path / "tracks") == rows(extracted[0])
    assert "6 videos in this run" in output and output.count("videos/s\n") == 1
