"""Runs of the real scripts, as small as they come."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

import pytest
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

SCRIPT = Path(__file__).parents[1] / "examples" / "pretrain.py"
FINETUNE = SCRIPT.with_name("finetune.py")
# 32 px, 4 frames, 2 layers of width 24, with drop path so that the model's own randomness is part of the promise.
SMALL = {
    "image_size": "32",
    "num_frames": "4",
    "frame_stride": "2",
    "model_options": json.dumps(
        {
            "hidden_size": 24,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 48,
            "decoder_hidden_size": 24,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 48,
            "drop_path_rate": 0.2,
        }
    ),
    "learning_rate": "0.05",
    "dataloader_num_workers": "0",
    "num_baseline_clips": "1",
}
# A classifier of 16 px, 4 frames, 2 layers of width 32, that learns to tell directions in seconds.
SMALL_CLASSIFIER = {
    "image_size": "16",
    "num_frames": "4",
    "frame_stride": "1",
    "model_options": json.dumps(
        {
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "patch_size": 8,
        }
    ),
    "no_flip": "true",
    "warmup_steps": "0",
    "dataloader_num_workers": "0",
}


def command_line(output_dir: Path, *, script: Path = SCRIPT, **flags: object) -> list[str]:
    """Return the flags of a small run."""
    small = SMALL if script == SCRIPT else SMALL_CLASSIFIER
    merged = {**small, "output_dir": str(output_dir), **{name: str(value) for name, value in flags.items()}}
    return [str(script), *(part for name, value in merged.items() for part in (f"--{name}", value))]


def start(
    output_dir: Path, *, launcher: tuple[str, ...] = (), script: Path = SCRIPT, **flags: object
) -> subprocess.Popen:
    """Start a small run in a process of its own."""
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, *command_line(output_dir, script=script, **flags)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=output_dir.parent,
    )


def finish(process: subprocess.Popen, *, expected: int = 0) -> str:
    """Wait for a run and return what it printed."""
    output, _ = process.communicate(timeout=300)
    assert process.returncode == expected, output
    return output


@cache
def finetune_script() -> ModuleType:
    """Return the fine-tuning script as a module, to run it in this process: that saves the seconds of a start."""
    import torch

    spec = importlib.util.spec_from_file_location(FINETUNE.stem, FINETUNE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    # Several threads would wait for each other: OMP_WAIT_POLICY is read when torch is loaded.
    module.use_all_cores = lambda: torch.set_num_threads(1)
    return module


def finetune_here(output_dir: Path, **flags: object) -> Any:
    """Do a small run in this process, and return it."""
    script = finetune_script()
    words = command_line(output_dir, script=FINETUNE, **flags)[1:]
    with new_accelerator():
        run = script.Finetuning(script.parse_arguments(script.FinetuningArguments, words))
        run.train()
        run.finish()
    return run


def last_words_of_finetuning(output_dir: Path, **flags: object) -> str:
    """Do a small run in this process that must fail, and return what it ends with."""
    words = command_line(output_dir, script=FINETUNE, **flags)
    with new_accelerator(), patch.object(sys, "argv", words), pytest.raises(SystemExit) as stop:
        finetune_script().main()
    return str(stop.value)


@contextmanager
def new_accelerator():
    """Let the code under it begin as a process of its own does: accelerate keeps its state in the process."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    def reset():
        for state in (AcceleratorState, GradientState, PartialState):
            state._reset_state()

    reset()  # what another test has left
    try:
        yield
    finally:
        reset()


def weights(output_dir: Path) -> dict:
    """Return the parameters at the end of a run."""
    return load_file(output_dir / "model.safetensors")


def logged(output_dir: Path, name: str = "train/loss", run: str = "mme_pretraining") -> dict[int, float]:
    """Return a logged value by step, the last one where a step was logged twice."""
    events = EventAccumulator(str(output_dir / "logs" / run))
    events.Reload()
    return {event.step: event.value for event in events.Scalars(name)}


def free_port() -> int:
    """Return a port nobody listens on; torchrun's own choice, 0, is handed to its processes as it is."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
