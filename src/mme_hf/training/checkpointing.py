"""Checkpoints that are whole or absent, whenever the run is killed.

A checkpoint is written to `checkpoint-N.partial`, flushed to disk and renamed to `checkpoint-N` at last: a folder under
its final name is complete. Folders under another name are rubbish of a killed run and are removed by the next save.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType, gather_object
from transformers import PreTrainedModel

from ..remote_code import carry_remote_code, drop_remote_code
from ..video_processing_mme import MMEVideoProcessor

STATE_FILE = "trainer_state.json"
_COMPLETE = re.compile(r"checkpoint-(\d+)")
_RUBBISH_SUFFIXES = (".partial", ".deleted")


def save_checkpoint(
    accelerator: Accelerator,
    output_dir: str | Path,
    *,
    step: int,
    state: dict[str, Any],
    process_state: dict[str, Any],
    total_limit: int | None = None,
) -> Path:
    """Write `checkpoint-<step>` in `output_dir`; every process calls it.

    Args:
        accelerator: Holds model, optimizer, gradient scaler and the random states.
        output_dir: Folder that all processes see.
        step: Number of optimizer updates done.
        state: What else a resumed run needs, the same on every process; goes into `trainer_state.json`.
        process_state: The same, but each process has its own.
        total_limit: Number of checkpoints to keep; the oldest go. None keeps all. Checkpoints of later steps go too:
            they belong to a future that a run resumed from before them no longer has.

    Returns:
        The folder of the complete checkpoint.

    Raises:
        RuntimeError: On every process, if one of them does not see the folder.
    """
    final = Path(output_dir) / f"checkpoint-{step}"
    partial = final.with_name(final.name + ".partial")
    process_states = gather_object([process_state])
    if accelerator.is_main_process:
        _remove_rubbish(Path(output_dir))
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(partial))
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        contents = {"step": step, "state": state, "process_states": process_states}
        (partial / STATE_FILE).write_text(json.dumps(contents, indent=1) + "\n")
        _flush_to_disk(partial)
        if final.exists():  # a run resumed from an earlier checkpoint comes by this step again
            _delete(final)
        partial.rename(final)
        _keep_newest(Path(output_dir), step, total_limit)
    accelerator.wait_for_everyone()
    seen = gather_object([(final / STATE_FILE).is_file()])
    if not all(seen):
        raise RuntimeError(
            f"{sum(seen)} of {len(seen)} processes see {final}. output_dir must be a folder that all machines share."
        )
    return final


def latest_checkpoint(output_dir: str | Path) -> Path | None:
    """Return the complete checkpoint with the highest step in `output_dir`, or None."""
    checkpoints = _complete_checkpoints(Path(output_dir))
    return checkpoints[-1] if checkpoints else None


def read_checkpoint_state(checkpoint: str | Path) -> dict[str, Any]:
    """Return what `save_checkpoint` was given: `step`, `state`, and `process_states`, a list by process.

    Raises:
        ValueError: If the folder is not a complete checkpoint.
    """
    path = Path(checkpoint) / STATE_FILE
    if not path.is_file():
        raise ValueError(
            f"resume_from_checkpoint ({str(checkpoint)!r}) is not a complete checkpoint: it has no {STATE_FILE}. "
            "Give a checkpoint-N folder, or 'latest'."
        )
    return json.loads(path.read_text())


def load_checkpoint(accelerator: Accelerator, checkpoint: str | Path) -> None:
    """Put model, optimizer, gradient scaler and random states back; the rest is in `read_checkpoint_state`.

    Raises:
        ValueError: If the checkpoint is of another model, or of a run with FSDP where this one is without, or reversed.
    """
    is_of_shares = any(Path(checkpoint).glob("pytorch_model_fsdp*"))
    if is_of_shares != (accelerator.distributed_type == DistributedType.FSDP):
        was, now = ("with", "without") if is_of_shares else ("without", "with")
        raise ValueError(
            f"resume_from_checkpoint ({str(checkpoint)!r}) was written {was} FSDP, and this run is {now}. Launch it as "
            "before, or start a new run with --model_name_or_path."
        )
    try:
        accelerator.load_state(str(checkpoint))
    except RuntimeError as error:
        raise ValueError(
            f"resume_from_checkpoint ({str(checkpoint)!r}) does not fit this model. Use the same preset and "
            f"model_options as before. {error}"
        ) from error


def save_result(
    model: PreTrainedModel, processor: MMEVideoProcessor, folder: str | Path, *, with_remote_code: bool, **options: Any
) -> None:
    """Save what a run has made: the model, the processor of its inputs, and on request the code that loads both.

    Code that an earlier run saved there is removed where this one asks for none, and its picture in any case.

    Args:
        model: One of ours.
        processor: Its processor.
        folder: Where to.
        with_remote_code: Whether the folder is to load without mme_hf too.
        **options: Passed to the model's `save_pretrained`.
    """
    model.save_pretrained(folder, **options)
    processor.save_pretrained(folder)
    (Path(folder) / "motion.png").unlink(missing_ok=True)  # of the model that was there
    if with_remote_code:
        carry_remote_code(folder)
    else:
        drop_remote_code(folder)


def _complete_checkpoints(output_dir: Path) -> list[Path]:
    if not output_dir.is_dir():
        return []
    steps = {path: _COMPLETE.fullmatch(path.name) for path in output_dir.iterdir() if path.is_dir()}
    return sorted((path for path, match in steps.items() if match), key=_step_of)


def _keep_newest(output_dir: Path, step: int, total_limit: int | None) -> None:
    checkpoints = _complete_checkpoints(output_dir)
    past = [path for path in checkpoints if _step_of(path) <= step]
    for path in {*checkpoints} - {*past[-total_limit if total_limit else 0 :]}:
        _delete(path)


def _step_of(checkpoint: Path) -> int:
    return int(checkpoint.name.split("-")[1])


def _remove_rubbish(output_dir: Path) -> None:
    if output_dir.is_dir():
        for path in output_dir.iterdir():
            if path.name.startswith("checkpoint-") and path.suffix in _RUBBISH_SUFFIXES:
                shutil.rmtree(path)


def _delete(checkpoint: Path) -> None:
    # Renamed first: a kill half-way through the removal must not leave a folder that looks complete.
    doomed = checkpoint.with_name(checkpoint.name + ".deleted")
    checkpoint.rename(doomed)
    shutil.rmtree(doomed)


def _flush_to_disk(folder: Path) -> None:
    for path in [*folder.rglob("*"), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
