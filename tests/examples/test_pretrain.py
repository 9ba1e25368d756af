"""The script as a user runs it: what it leaves, and how it says no."""

import json
import shutil

import pytest
import runs
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mme_hf import MMEForPreTraining, MMEModel, MMEVideoProcessor
from mme_hf.model_card import render_model_card


@pytest.fixture
def videos(video_folder, tmp_path):
    """The six videos with a file that is no video beside them."""
    folder = tmp_path / "videos"
    shutil.copytree(video_folder, folder)
    (folder / "left" / "notes.txt").write_text("hello")
    return folder


def test_a_run_leaves_all_that_it_promises(videos, tmp_path):
    (videos / "right" / "broken.mp4").write_bytes(b"no video")
    flags = {"max_train_steps": 3, "per_device_train_batch_size": 7, "held_out_fraction": 0.2, "max_bad_fraction": 0.2}
    flags |= {"with_remote_code": True}
    output = runs.finish(runs.start(tmp_path / "run", train_dir=videos, logging_steps=1, **flags))
    folder = tmp_path / "run"

    # What opens it.
    assert (folder / "modeling_mme.py").is_file()
    assert "AutoModelForPreTraining" in json.loads((folder / "config.json").read_text())["auto_map"]
    model = MMEForPreTraining.from_pretrained(folder)
    processor = MMEVideoProcessor.from_pretrained(folder)
    assert model.config.motion_targets == processor.motion_target_config()
    inputs = processor(str(next((videos / "left").glob("*.mp4"))), return_targets=True, return_tensors="pt")
    assert model(**inputs).loss > 0
    _, report = MMEModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]

    # What it says.
    for words in ("explained share on held-out clips", "shape", "position", "1 bad video listed in"):
        assert words in output
    card = (folder / "README.md").read_text()
    assert "| position |" in card and str(tmp_path) not in card
    assert 'MMEModel.from_pretrained("run")' in card  # as seen from where it was started
    assert 'pipeline("video-feature-extraction", model="run", trust_remote_code=True)' in card
    measured = json.loads((folder / "eval_results.json").read_text())
    assert measured["dataset"] == "videos" and list(measured["explained_share"]) == ["shape", "position"]
    assert f"| position | {measured['explained_share']['position']:.3f} |" in card
    assert render_model_card(folder).read_text() == card
    for name in ("motion.png", "motion_tracks.png"):
        assert (folder / name).read_bytes().startswith(b"\x89PNG")
    # Of the six videos that can be read; a few lines on the screen.
    assert json.loads((folder / "motion_health.json").read_text())["num_clips"] == 6
    assert "motion health of 6 clips: " in output and "loss of predicting the mean: shape" in output
    (bad,) = [json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    assert bad["source"] == str(videos / "right" / "broken.mp4")
    assert (folder / "ignored_files.txt").read_text() == f"{videos / 'left' / 'notes.txt'}\n"

    # What it logs.
    events = EventAccumulator(str(folder / "logs" / "mme_pretraining"))
    events.Reload()
    parts = ("shape", "position", "visible_shape", "visible_position")
    names = {"loss", "grad_norm", "learning_rate"} | {f"{what}_{part}" for what in ("loss", "share") for part in parts}
    assert {f"train/{name}" for name in names} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3]
    shares = [events.Scalars(f"train/share_{name}")[0].value for name in parts]
    assert sum(shares) == pytest.approx(1.0, abs=1e-5)


def test_too_many_bad_videos_stop_the_run_with_one_clear_line(videos, tmp_path):
    (videos / "right" / "broken.mp4").write_bytes(b"no video")
    process = runs.start(tmp_path / "run", train_dir=videos, max_train_steps=3, per_device_train_batch_size=7)
    output = runs.finish(process, expected=1)
    assert "stopped: 1 of 7 videos are bad, more than max_bad_fraction (5%) allows" in output
    assert "broken.mp4" in output and "Traceback" not in output
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_missing_manifest_files_count_before_any_work(videos, tmp_path):
    names = [str(path.relative_to(videos)) for path in sorted(videos.rglob("*.mp4"))]
    (videos / "train.txt").write_text("".join(f"{name} 0\n" for name in [*names, "gone.mp4"]))
    process = runs.start(tmp_path / "run", train_manifest=videos / "train.txt", max_train_steps=1)
    output = runs.finish(process, expected=1)
    assert "error: 1 of 7 videos are bad" in output
    assert "gone.mp4: no such file (line 7 of train.txt)" in output


def test_a_loss_that_is_not_finite_names_step_and_videos(videos, tmp_path):
    flags = {"learning_rate": 1e30, "max_train_steps": 5, "per_device_train_batch_size": 2}
    output = runs.finish(runs.start(tmp_path / "run", train_dir=videos, **flags), expected=1)
    assert "stopped: step 2: loss" in output
    assert "not finite. The model was not updated. Videos of the batch:" in output
    assert "clip_" in output and "Traceback" not in output


def test_a_hub_that_cannot_be_pushed_to_is_an_error_before_any_work(videos, tmp_path):
    flags = {"max_train_steps": 1, "per_device_train_batch_size": 2, "push_to_hub": "true", "hub_model_id": "me/mine"}
    process = runs.start(tmp_path / "run", train_dir=videos, hub_token="hf_secret", **flags)
    output = runs.finish(process, expected=1)
    assert "pretrain.py: error: hub_model_id ('me/mine') cannot be pushed to" in output
    assert "hf_secret" not in output and "Traceback" not in output


def test_wrong_configuration_fails_before_any_work_with_one_line(tmp_path):
    output = runs.finish(runs.start(tmp_path / "run", train_dir="nowhere"), expected=1)
    assert "pretrain.py: error: train_dir ('nowhere') is not a folder. Give a folder of videos" in output
    assert "Traceback" not in output
    assert not (tmp_path / "run").exists()
