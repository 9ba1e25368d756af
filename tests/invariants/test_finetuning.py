"""Fine-tuning that is stopped and resumed equals one that never was, and a batch in parts equals the whole."""

import json
import shutil
import signal
import time

import pytest
import runs
import torch

# All that is random: crops, RandAugment, erasing, mixing, drop path; with an average, and a best model that is not the
# last one. Updates of 4 x 2 clips of 16 videos with two clips of each: an epoch is 4 updates.
RECIPE = {
    "max_train_steps": 10,
    "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 2,
    "checkpointing_steps": 3,
    "ema_decay": 0.8,
    "drop_path_rate": 0.2,
    "learning_rate": 0.2,
    "random_erasing_probability": 0.5,
    "eval_steps": 2,
}


class Killed(Exception):
    """In place of a signal."""


def assert_same_run(whole, other):
    for folder in ("", "last"):
        one, two = runs.weights(whole / folder), runs.weights(other / folder)
        assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert json.loads((whole / "eval_results.json").read_text()) == json.loads(
        (other / "eval_results.json").read_text()
    )
    for name in ("train/loss", "train/grad_norm", "validation/top1", "validation/best_top1"):
        assert runs.logged(whole, name, "mme_finetuning") == runs.logged(other, name, "mme_finetuning")


def test_a_run_that_breaks_off_and_is_resumed_equals_a_whole_one(direction_videos, tmp_path, monkeypatch):
    flags = {**direction_videos, **RECIPE}
    whole = runs.finetune_here(tmp_path / "whole", **flags)
    script = runs.finetune_script()
    real_update = script.run_update

    def breaks_off(*args, **options):
        if options["step"] == 9:  # after the checkpoint of update 6 and the evaluation of update 8
            raise Killed
        return real_update(*args, **options)

    flags["resume_from_checkpoint"] = "latest"
    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(script, "run_update", breaks_off)
        runs.finetune_here(tmp_path / "broken", **flags)
    # Whatever lies in the folder, the checkpoint knows the best model of its past.
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"of a future that is no more")
    resumed = runs.finetune_here(tmp_path / "broken", **flags)
    assert resumed.best.step == whole.best.step
    assert_same_run(tmp_path / "whole", tmp_path / "broken")
    assert sorted(runs.logged(tmp_path / "broken", run="mme_finetuning")) == list(range(1, 11))


def test_the_best_of_the_past_survives(direction_videos, tmp_path):
    # No evaluation after the resumption is better than those before: all weights stay as they are.
    flags = {**direction_videos, **RECIPE, "learning_rate": 1e-9, "min_learning_rate": 0, "checkpointing_steps": 6}
    whole = runs.finetune_here(tmp_path / "run", **flags)
    assert whole.best.step == 2
    best = runs.weights(tmp_path / "run")
    (tmp_path / "run" / "model.safetensors").unlink()
    runs.finetune_here(tmp_path / "run", resume_from_checkpoint="latest", **flags)
    again = runs.weights(tmp_path / "run")
    assert all(torch.equal(best[name], again[name]) for name in best)


def test_other_settings_are_refused_on_resume(direction_videos, tmp_path):
    flags = {**direction_videos, "max_train_steps": 1, "checkpointing_steps": 1}
    runs.finetune_here(tmp_path / "run", **flags)
    flags["resume_from_checkpoint"] = "latest"
    for name, value in (("layer_decay", 0.5), ("mixup_alpha", 0.3), ("ema_decay", 0.9), ("min_crop_scale", 0.5)):
        words = runs.last_words_of_finetuning(tmp_path / "run", **{**flags, name: value})
        assert "was written with" in words and str(value) in words


def test_a_batch_in_parts_equals_the_whole(direction_videos, tmp_path):
    # Without what goes by the batch: mixing, and drop path. A video that cannot be read makes the update smaller, and
    # leaves one of the parts without a clip.
    videos = tmp_path / "train"
    shutil.copytree(direction_videos["train_dir"], videos)
    (videos / "left" / "broken.mp4").write_bytes(b"no video")
    flags = {**direction_videos, "train_dir": videos, "max_train_steps": 5, "learning_rate": 0.05}
    flags["max_bad_fraction"] = 0.1
    flags |= {"mixup_alpha": 0, "cutmix_alpha": 0, "drop_path_rate": 0}
    parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
    whole = runs.finetune_here(tmp_path / "whole", per_device_train_batch_size=8, **flags)
    split = runs.finetune_here(tmp_path / "split", **parts, **flags)
    assert whole.bad_videos.num_bad == split.bad_videos.num_bad == 1
    one, two = whole.model.state_dict(), split.model.state_dict()
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)


@pytest.mark.slow
def test_a_killed_run_resumed_equals_a_whole_one(direction_videos, tmp_path):
    flags = {**direction_videos, **RECIPE, "dataloader_num_workers": 2, "script": runs.FINETUNE}
    runs.finish(runs.start(tmp_path / "whole", **flags))
    killed, flags = tmp_path / "killed", {**flags, "resume_from_checkpoint": "latest"}
    process = runs.start(killed, **flags)
    deadline = time.monotonic() + 200
    while not (killed / "checkpoint-6.partial").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    assert (killed / "checkpoint-3").is_dir() and not (killed / "last").exists()
    assert "resumed from" in runs.finish(runs.start(killed, **flags))
    assert_same_run(tmp_path / "whole", killed)


@pytest.mark.slow
def test_two_processes_give_the_weights_of_one_with_twice_the_batch(direction_videos, tmp_path):
    flags = {**direction_videos, "max_train_steps": 5, "learning_rate": 0.05, "script": runs.FINETUNE}
    flags |= {"mixup_alpha": 0, "cutmix_alpha": 0, "drop_path_rate": 0}
    runs.finish(runs.start(tmp_path / "one", per_device_train_batch_size=8, **flags))
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(runs.free_port()))
    runs.finish(runs.start(tmp_path / "two", launcher=launcher, per_device_train_batch_size=4, **flags))
    one, two = (runs.weights(tmp_path / name / "last") for name in ("one", "two"))
    assert all(torch.allclose(one[name], two[name], rtol=1e-4, atol=1e-5) for name in one)
    results = [json.loads((tmp_path / name / "eval_results.json").read_text()) for name in ("one", "two")]
    assert results[0] == results[1] and results[0]["num_videos"] == 10
