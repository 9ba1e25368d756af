"""How a script ends that is stopped at its work: with one line."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError

from .checkpointing import latest_checkpoint

INTERRUPTED = 130  # what a shell gives for Ctrl-C
# Of torch.save where a disk is full; its error is a plain RuntimeError.
_WRITING_FAILED = ("PytorchStreamWriter", "iostream error", "unexpected pos")


@contextmanager
def stopping_in_one_line(script: str, run: Any, *errors: type[Exception]) -> Iterator[None]:
    """End the script with one line where its run is interrupted, cannot write, or raises one of `errors`.

    Args:
        script: Its name.
        run: Has an `output_dir`, an `accelerator`, and a `state` with a `step` where it makes checkpoints.
        *errors: Whose message says what is to be done. Any other is a fault of ours and passes.
    """
    try:
        yield
    except KeyboardInterrupt:
        if run.accelerator.is_main_process:
            print(f"\n{script}: {_where_it_stopped(run)}", file=sys.stderr, flush=True)  # below the progress bar
        sys.exit(INTERRUPTED)
    except errors as error:
        sys.exit(f"{script}: stopped: {error}")
    except (OSError, SafetensorError) as error:
        _exit_for_lack_of_space(script, run.output_dir, error)
    except RuntimeError as error:
        if not any(words in str(error) for words in _WRITING_FAILED):
            raise
        _exit_for_lack_of_space(script, run.output_dir, error)


def _exit_for_lack_of_space(script: str, output_dir: Path, error: Exception) -> NoReturn:
    cause = (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
    sys.exit(f"{script}: stopped: a file could not be read or written: {cause}. Is there room in {output_dir}?")


def _where_it_stopped(run: Any) -> str:
    state = getattr(run, "state", None)
    if state is None:
        return "stopped"
    checkpoint = latest_checkpoint(run.output_dir)
    if checkpoint is None:
        return f"stopped at update {state.step}; there is no checkpoint to go on from: --checkpointing_steps makes them"
    way_on = f"the same command with --resume_from_checkpoint latest goes on from {checkpoint.name}"
    return f"stopped at update {state.step}; {way_on}"
