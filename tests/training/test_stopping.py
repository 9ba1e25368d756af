"""The last line of a script that is stopped at its work."""

import signal
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import runs
import torch
from safetensors.torch import save_file

from mme_hf.training import stopping_in_one_line

FULL = Path("/dev/full")


def run_in(folder, **attributes):
    return SimpleNamespace(output_dir=folder, accelerator=SimpleNamespace(is_main_process=True), **attributes)


@pytest.mark.skipif(not FULL.exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize(
    "write",
    [
        lambda: FULL.write_text("x" * 10_000),
        lambda: torch.save({"a": torch.zeros(10_000)}, FULL),
        lambda: save_file({"a": torch.zeros(10)}, "/dev/none/x.safetensors"),  # it would take the place of /dev/full
    ],
    ids=["text", "torch", "safetensors"],
)
def test_a_full_disk_is_one_line_that_names_the_folder(tmp_path, write):
    message = r"^x.py: stopped: a file could not be .*\. Is there room in .*\?$"
    with pytest.raises(SystemExit, match=message) as stop, stopping_in_one_line("x.py", run_in(tmp_path)):
        write()
    assert str(tmp_path) in stop.value.code and "\n" not in stop.value.code


def test_faults_of_ours_keep_their_traceback(tmp_path):
    for error in (RuntimeError("shapes differ"), KeyError("x"), ValueError("x")):
        with pytest.raises(type(error)), stopping_in_one_line("x.py", run_in(tmp_path), OverflowError):
            raise error
    stops = pytest.raises(SystemExit, match="x.py: stopped: too large")
    with stops, stopping_in_one_line("x.py", run_in(tmp_path), OverflowError):
        raise OverflowError("too large")


def test_an_interrupted_run_without_a_checkpoint_says_so(tmp_path, capsys):
    for attributes, words in (
        ({}, "stopped"),
        ({"state": SimpleNamespace(step=3)}, "stopped at update 3; there is no"),
    ):
        with pytest.raises(SystemExit) as stop, stopping_in_one_line("x.py", run_in(tmp_path, **attributes)):
            raise KeyboardInterrupt
        assert stop.value.code == 130 and f"x.py: {words}" in capsys.readouterr().err


@pytest.fixture
def heeded_interrupts():
    """Let processes that a test starts heed SIGINT, which those of a shell's background inherit as ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("heeded_interrupts")
def test_an_interrupted_pretraining_names_the_checkpoint_that_it_goes_on_from(video_folder, tmp_path):
    flags = {"max_train_steps": 100_000, "per_device_train_batch_size": 2, "checkpointing_steps": 50}
    flags |= {"dataloader_num_workers": 1, "motion_health": "false"}
    process = runs.start(tmp_path / "run", train_dir=video_folder, **flags)
    while process.poll() is None and not (tmp_path / "run" / "checkpoint-50").exists():
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    output = runs.finish(process, expected=130)
    assert "--resume_from_checkpoint latest goes on from checkpoint-" in output and "Traceback" not in output
