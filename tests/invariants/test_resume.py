"""A run that is killed and resumed equals one that never stopped, bit for bit."""

import signal
import time

import pytest
import runs
import torch
from datasets import Dataset, Features, Video

STEPS = 9


@pytest.fixture(scope="module")
def sources(video_folder, tmp_path_factory):
    """The same six videos as a folder, and, each of them thrice, as a Parquet data set of three shards to stream.

    `datasets` sleeps for 5 s after each pass over Parquet; a run is two passes long.
    """
    shards = tmp_path_factory.mktemp("shards")
    files = sorted(video_folder.rglob("*.mp4"))
    for index in range(3):
        own = 3 * files[2 * index : 2 * index + 2]
        rows = {"video": [{"bytes": path.read_bytes(), "path": path.name} for path in own]}
        Dataset.from_dict(rows, features=Features({"video": Video(decode=False)})).to_parquet(
            shards / f"train-{index}.parquet"
        )
    return {
        "rows": {"train_dir": video_folder},
        "stream": {"dataset_name": shards, "streaming": "true", "shuffle_buffer_size": 3},
        "device": {
            "train_dir": video_folder,
            "targets_on": "device",
            "mask_type": "motion",
            "optimizer": "muon" if hasattr(torch.optim, "Muon") else "adamw",
        },
    }


def wait_for(condition, process, what, seconds=120):
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, f"no {what} after {seconds} s"
        time.sleep(0.001)


@pytest.mark.parametrize("kind", ["rows", "stream", "device"])
def test_killed_while_it_writes_a_checkpoint_and_resumed(sources, kind, tmp_path):
    # Batches of 2 x 2 from 6 videos, so that step 4 ends inside the third epoch (the first one of the stream of 18, the
    # second of which is cut short by the end); workers, and two clips a video.
    flags = {
        **sources[kind],
        "max_train_steps": STEPS,
        "per_device_train_batch_size": 4,
        "samples_per_video": 2,
        "gradient_accumulation_steps": 2,
        "dataloader_num_workers": 2,
        "checkpointing_steps": 2,
    }
    # Looking at the motion first must not change the run either.
    runs.finish(runs.start(tmp_path / "whole", motion_health="false", **flags))
    assert not (tmp_path / "whole" / "motion_health.json").exists()
    # The same command line for the first start and for every restart.
    killed, flags = tmp_path / "killed", {**flags, "resume_from_checkpoint": "latest"}
    process = runs.start(killed, **flags)
    wait_for(lambda: (killed / "checkpoint-4.partial").is_dir(), process, "second checkpoint")
    process.send_signal(signal.SIGKILL)
    output, _ = process.communicate(timeout=60)  # ends only once its workers, who hold the same pipe, have ended too
    assert "starting from the beginning" in output
    assert (killed / "checkpoint-2").is_dir()
    assert not (killed / "model.safetensors").exists()
    (killed / "motion_health.json").unlink()
    output = runs.finish(runs.start(killed, **flags))
    assert "resumed from" in output
    assert "motion health" not in output and not (killed / "motion_health.json").exists()
    whole, resumed = runs.weights(tmp_path / "whole"), runs.weights(killed)
    assert whole.keys() == resumed.keys()
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    losses = runs.logged(killed)
    assert sorted(losses) == list(range(1, STEPS + 1))
    assert losses == runs.logged(tmp_path / "whole")


def test_other_settings_are_refused_on_resume(sources, tmp_path):
    flags = {**sources["rows"], "max_train_steps": 1, "per_device_train_batch_size": 2, "checkpointing_steps": 1}
    runs.finish(runs.start(tmp_path / "run", **flags))
    flags |= {"resume_from_checkpoint": "latest", "seed": 5}
    output = runs.finish(runs.start(tmp_path / "run", **flags), expected=1)
    assert "was written with seed 0, but this run has 5" in output
    assert "Traceback" not in output
