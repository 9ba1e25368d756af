"""The scripts under FSDP2: what they do with shares of the parameters is what they do with copies."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch

from mme_hf import MMEForPreTraining

FSDP_ON_CPU = Path(runs.__file__).with_name("fsdp_on_cpu.py")
FSDP2 = runs.SCRIPT.parent / "configs" / "accelerate" / "fsdp2.yaml"


def run_script(folder, *, script, is_sharded, **flags):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(runs.free_port())]
    launcher += [str(FSDP_ON_CPU)] if is_sharded else []
    return runs.finish(runs.start(folder, launcher=tuple(launcher), script=script, **flags))


def assert_same_weights(first, second):
    one, two = runs.weights(first), runs.weights(second)
    assert one.keys() == two.keys()
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_pre_training_with_shares_is_that_with_copies_and_can_be_resumed(video_folder, tmp_path):
    flags = {"script": runs.SCRIPT, "train_dir": video_folder, "held_out_fraction": 0.3, "max_grad_norm": 1.0}
    flags |= {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 2, "max_train_steps": 4}
    flags |= {"checkpointing_steps": 2, "model_options": runs.SMALL["model_options"].replace("0.2", "0.0")}
    run_script(tmp_path / "copies", is_sharded=False, **flags)
    output = run_script(tmp_path / "shares", is_sharded=True, **flags)
    assert "explained share on held-out clips" in output and (tmp_path / "shares" / "motion.png").is_file()
    # Only shares are saved like this.
    assert (tmp_path / "shares" / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()
    for name in ("train/loss", "train/grad_norm"):
        logged = [runs.logged(tmp_path / folder, name) for folder in ("shares", "copies")]
        assert logged[0] == pytest.approx(logged[1], rel=1e-4)
    assert_same_weights(tmp_path / "shares", tmp_path / "copies")
    shutil.copytree(tmp_path / "shares", tmp_path / "resumed")
    shutil.rmtree(tmp_path / "resumed" / "checkpoint-4")
    assert "resumed from" in run_script(tmp_path / "resumed", is_sharded=True, **flags, resume_from_checkpoint="latest")
    assert_same_weights(tmp_path / "resumed", tmp_path / "shares")


@pytest.mark.slow
def test_fine_tuning_with_shares_is_that_with_copies(direction_videos, tmp_path):
    # 10 videos to judge by: processes have different numbers of batches of them.
    flags = {**direction_videos, "script": runs.FINETUNE, "per_device_eval_batch_size": 2, "eval_steps": 3}
    flags |= {"per_device_train_batch_size": 4, "max_train_steps": 6, "drop_path_rate": 0.0, "learning_rate": 0.05}
    for folder in ("copies", "shares"):
        run_script(tmp_path / folder, is_sharded=folder == "shares", **flags)
    assert_same_weights(tmp_path / "shares", tmp_path / "copies")
    assert_same_weights(tmp_path / "shares" / "last", tmp_path / "copies" / "last")


@pytest.mark.slow
@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="Accelerate shards on accelerators alone: needs two GPUs")
def test_accelerate_launch_shards_over_gpus(video_folder, tmp_path):
    flags = {"train_dir": video_folder, "per_device_train_batch_size": 2, "max_train_steps": 2}
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(FSDP2), "--num_processes", "2"]
    command += runs.command_line(tmp_path / "run", **flags, checkpointing_steps=2)
    subprocess.run(command, check=True, cwd=tmp_path, timeout=300)
    assert (tmp_path / "run" / "checkpoint-2" / "pytorch_model_fsdp_0").is_dir()
    assert MMEForPreTraining.from_pretrained(tmp_path / "run", output_loading_info=True)[1]["missing_keys"] == set()
