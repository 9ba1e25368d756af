"""Checkpoints are whole or absent."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch import nn

from mme_hf import MMEConfig, MMEModel, MMEVideoProcessor
from mme_hf.data import RecordCursor
from mme_hf.remote_code import code_files
from mme_hf.training import RunState, latest_checkpoint, save_result
from mme_hf.training.checkpointing import load_checkpoint, read_checkpoint_state, save_checkpoint


@pytest.fixture
def prepared():
    accelerator = Accelerator(cpu=True)
    model = nn.Linear(2, 2)
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(model.parameters(), lr=0.1))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return accelerator, model, optimizer


def save(accelerator, folder, step, **options):
    return save_checkpoint(accelerator, folder, step=step, state={"a": 1}, process_state={"b": 2}, **options)


def test_weights_optimizer_random_state_and_the_rest_come_back(prepared, tmp_path):
    accelerator, model, optimizer = prepared
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 0.5**step)
    for _ in range(3):
        optimizer.step()
        scheduler.step()
    state = RunState(step=3, num_records_seen=12, cursor=RecordCursor(1, 2, 7))
    state.save(accelerator, tmp_path, scheduler=scheduler, settings={"seed": 0}, seconds=5.0, total_limit=None)
    weight, moments = model.weight.clone(), optimizer.state_dict()["state"][0]["exp_avg"].clone()
    drawn = torch.rand(3)
    with torch.no_grad():
        model.weight.zero_()
    optimizer.step()
    fresh_scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 0.5**step)
    resumed = RunState.resume(accelerator, tmp_path, "latest", scheduler=fresh_scheduler, settings={"seed": 0})
    assert resumed == replace(state, seconds=5.0)
    assert torch.equal(model.weight, weight)
    assert torch.equal(optimizer.state_dict()["state"][0]["exp_avg"], moments)
    assert torch.equal(torch.rand(3), drawn)
    assert fresh_scheduler.get_last_lr() == scheduler.get_last_lr()


def test_shares_and_whole_parameters_are_not_taken_for_each_other(prepared, tmp_path):
    checkpoint = save(prepared[0], tmp_path, 1)
    sharded = SimpleNamespace(distributed_type=DistributedType.FSDP)
    with pytest.raises(ValueError, match="was written without FSDP, and this run is with"):
        load_checkpoint(sharded, checkpoint)
    (checkpoint / "pytorch_model_fsdp_0").mkdir()  # as Accelerate calls it
    with pytest.raises(ValueError, match="was written with FSDP, and this run is without"):
        load_checkpoint(prepared[0], checkpoint)


def test_only_the_newest_are_kept_in_the_order_of_their_numbers(prepared, tmp_path):
    for step in (8, 9, 10):
        save(prepared[0], tmp_path, step, total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-9"]
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-10"


def test_a_checkpoint_that_was_being_written_or_removed_is_never_found(prepared, tmp_path):
    save(prepared[0], tmp_path, 1)
    (tmp_path / "checkpoint-2.partial").mkdir()
    (tmp_path / "checkpoint-3.deleted").mkdir()
    assert latest_checkpoint(tmp_path) == tmp_path / "checkpoint-1"
    save(prepared[0], tmp_path, 4)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-1", "checkpoint-4"]


def test_checkpoints_of_a_later_step_are_no_rivals_of_the_new_one(prepared, tmp_path):
    for step in (10, 20, 30):
        save(prepared[0], tmp_path, step)
    save(prepared[0], tmp_path, 15, total_limit=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-10", "checkpoint-15"]


def test_a_new_run_does_not_mix_its_checkpoints_with_those_of_another(prepared, tmp_path):
    save(prepared[0], tmp_path, 1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(prepared[2], lambda step: 1.0)
    with pytest.raises(ValueError, match="holds checkpoint-1 of an earlier run. Go on with it by"):
        RunState.resume(prepared[0], tmp_path, None, scheduler=scheduler, settings={})


def test_the_same_step_can_be_saved_again(prepared, tmp_path):
    save(prepared[0], tmp_path, 1)
    save(prepared[0], tmp_path, 1)
    assert read_checkpoint_state(tmp_path / "checkpoint-1") == {
        "step": 1,
        "state": {"a": 1},
        "process_states": [{"b": 2}],
    }


def test_latest_of_nothing_starts_anew_and_a_wrong_folder_is_an_error(prepared, tmp_path):
    accelerator, _, optimizer = prepared
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    options = {"scheduler": scheduler, "settings": {"seed": 0}}
    assert latest_checkpoint(tmp_path / "nowhere") is None
    assert RunState.resume(accelerator, tmp_path, "latest", **options) == RunState()
    with pytest.raises(ValueError, match="is not a complete checkpoint"):
        RunState.resume(accelerator, tmp_path, str(tmp_path), **options)


def test_other_settings_are_named(prepared, tmp_path):
    accelerator, _, optimizer = prepared
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    options = {"scheduler": scheduler, "seconds": 0.0, "total_limit": None}
    RunState(step=1).save(accelerator, tmp_path, settings={"seed": 0}, **options)
    with pytest.raises(ValueError, match="was written with seed 0, but this run has 1"):
        RunState.resume(accelerator, tmp_path, "latest", scheduler=scheduler, settings={"seed": 1})


def test_a_run_that_would_end_before_its_checkpoint_is_refused(prepared, tmp_path):
    accelerator, _, optimizer = prepared
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer.optimizer, lambda step: 1.0)
    RunState(step=8).save(accelerator, tmp_path, scheduler=scheduler, settings={}, seconds=0.0, total_limit=None)
    options = {"scheduler": scheduler, "settings": {}}
    with pytest.raises(ValueError, match=r"checkpoint-8'\) is at step 8, beyond the 5 updates .*--max_train_steps"):
        RunState.resume(accelerator, tmp_path, "latest", num_steps=5, **options)
    assert RunState.resume(accelerator, tmp_path, "latest", num_steps=8, **options).step == 8


@pytest.fixture
def model():
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    return MMEModel(MMEConfig(image_size=16, num_frames=2, **sizes))


def test_a_result_without_code_leaves_none_of_an_earlier_one(model, tmp_path):
    (tmp_path / "my_mme.py").touch()
    save_result(model, MMEVideoProcessor(), tmp_path, with_remote_code=True)
    assert {path.name for path in code_files()} < {path.name for path in tmp_path.iterdir()}
    for _ in range(2):
        save_result(model, MMEVideoProcessor(), tmp_path, with_remote_code=False)
        assert [path.name for path in tmp_path.glob("*.py")] == ["my_mme.py"]


def test_a_result_does_not_keep_the_picture_of_an_earlier_one(model, tmp_path):
    (tmp_path / "motion.png").touch()
    save_result(model, MMEVideoProcessor(), tmp_path, with_remote_code=False)
    assert not (tmp_path / "motion.png").exists()
