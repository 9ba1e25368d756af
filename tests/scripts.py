"""Scripts of examples/ run inside the tests' process: what they promise, without the seconds that imports take."""

from __future__ import annotations

import os
import runpy
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest
from runs import free_port

EXAMPLES = Path(__file__).parents[1] / "examples"


def run_script(name: str, **flags: object) -> None:
    """Run examples/<name>.py with these flags, on the CPU; a list is several words."""
    words = []
    for flag, value in flags.items():
        words += [f"--{flag}", *map(str, value if isinstance(value, list) else [value])]
    script = EXAMPLES / f"{name}.py"
    with (
        mock.patch.object(sys, "argv", [str(script), *words]),
        mock.patch.dict("os.environ", {"ACCELERATE_USE_CPU": "true"}),
        mock.patch("mme_hf.training.processes.use_all_cores"),
    ):
        runpy.run_path(str(script), run_name="__main__")


def run_on_two_processes(name: str, **flags: object) -> str:
    """Run examples/<name>.py on two processes of the CPU, each value one word; return what they wrote to stderr."""
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node=2", f"--master_port={free_port()}"]
    words = [f"--{flag}={value}" for flag, value in flags.items()]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, str(EXAMPLES / f"{name}.py"), *words]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


def stop_of_script(name: str, message: str, **flags: object) -> None:
    """Expect the script to end with one line that matches `message`, and without a traceback."""
    with pytest.raises(SystemExit, match=message) as stop:
        run_script(name, **flags)
    assert "\n" not in stop.value.code
