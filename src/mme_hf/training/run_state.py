"""Where a run stands, saved and restored so that a resumed run equals an uninterrupted one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from accelerate.utils import gather_object
from torch.optim.lr_scheduler import LambdaLR

from ..data import RecordCursor
from .checkpointing import latest_checkpoint, load_checkpoint, read_checkpoint_state, save_checkpoint
from .updates import UpdateReport

logger = logging.getLogger(__name__)


@dataclass
class RunState:
    """What a run must know to go on, beside the weights and random states that Accelerate keeps.

    Attributes:
        step: Updates done.
        num_records_seen: Videos tried so far, over all processes.
        cursor: Where this process goes on in the order of the videos.
        seconds: Time trained before this process started.
    """

    step: int = 0
    num_records_seen: int = 0
    cursor: RecordCursor = field(default_factory=RecordCursor)
    seconds: float = 0.0

    def advance(self, report: UpdateReport, cursor: RecordCursor) -> None:
        """Count one update, after which the next batch starts at `cursor`."""
        self.step += 1
        self.num_records_seen += report.num_records
        self.cursor = cursor

    def save(
        self,
        accelerator: Accelerator,
        output_dir: str | Path,
        *,
        scheduler: LambdaLR,
        settings: Mapping[str, Any],
        seconds: float,
        total_limit: int | None,
    ) -> Path:
        """Write a checkpoint and return its folder; every process calls it.

        Args:
            accelerator: Holds model, optimizer and random states.
            output_dir: Folder that all processes see.
            scheduler: Of the learning rate.
            settings: What decides the order and content of the batches; `resume` insists on the same.
            seconds: Time trained so far, by this process and those it went on from.
            total_limit: Number of checkpoints to keep.
        """
        return save_checkpoint(
            accelerator,
            output_dir,
            step=self.step,
            state={
                "settings": dict(settings),
                "num_records_seen": self.num_records_seen,
                "scheduler": {name: value for name, value in scheduler.state_dict().items() if name != "lr_lambdas"},
                "seconds": seconds,
            },
            process_state=self.cursor.to_dict(),
            total_limit=total_limit,
        )

    @classmethod
    def resume(
        cls,
        accelerator: Accelerator,
        output_dir: str | Path,
        wanted: str | None,
        *,
        scheduler: LambdaLR,
        settings: Mapping[str, Any],
        num_steps: int | None = None,
    ) -> RunState:
        """Return the state to start from: a checkpoint's, with everything else restored too, or a new one.

        Args:
            accelerator: Holds model, optimizer and random states.
            output_dir: Where "latest" looks.
            wanted: A checkpoint folder, "latest" (a new run where there is none yet), or None for a new run.
            scheduler: Of the learning rate.
            settings: As given to `save`.
            num_steps: Updates that the run is to have in the end; None for any number.

        Raises:
            ValueError: If the checkpoint is not complete, does not fit, was made with other settings or is beyond the
                run's end; if processes find different ones; and if a new run would mix its checkpoints with those of
                an earlier run.
        """
        _insist_on_agreement("the data", settings.get("data"), "Every machine must list the same videos.")
        newest = latest_checkpoint(output_dir)
        if wanted is None and newest is not None:
            raise ValueError(
                f"output_dir ({str(output_dir)!r}) holds {newest.name} of an earlier run. Go on with it by "
                "--resume_from_checkpoint latest, name another --output_dir, or remove its checkpoints."
            )
        if wanted is None:
            return cls()
        checkpoint = newest if wanted == "latest" else Path(wanted)
        # A machine that does not share the folder would start from step 0 beside others that do not.
        _insist_on_agreement(
            f"the checkpoint to go on from in output_dir ({str(output_dir)!r})",
            checkpoint.name if checkpoint else None,
            "It must be a folder that all machines share.",
        )
        if checkpoint is None:
            logger.info("no checkpoint in %s yet: starting from the beginning", output_dir)
            return cls()
        contents = read_checkpoint_state(checkpoint)
        if num_steps is not None and contents["step"] > num_steps:
            raise ValueError(
                f"resume_from_checkpoint ({str(checkpoint)!r}) is at step {contents['step']}, beyond the {num_steps} "
                "updates of this run. Raise --max_train_steps (or --num_train_epochs), or name an earlier checkpoint."
            )
        # As JSON keeps them: a tuple comes back as a list.
        present = json.loads(json.dumps(settings))
        _insist_on_same_settings(checkpoint, contents["state"]["settings"], present)
        load_checkpoint(accelerator, checkpoint)
        # Its own lambdas: functions are no part of a checkpoint.
        scheduler.load_state_dict({**scheduler.state_dict(), **contents["state"]["scheduler"]})
        logger.info("resumed from %s", checkpoint)
        cursor = RecordCursor(**contents["process_states"][accelerator.process_index])
        return cls(contents["step"], contents["state"]["num_records_seen"], cursor, contents["state"]["seconds"])


def _insist_on_agreement(what: str, value: Any, remedy: str) -> None:
    found = gather_object([value])
    if any(other != found[0] for other in found):
        raise ValueError(f"processes do not agree on {what}: {found}. {remedy}")


def _insist_on_same_settings(checkpoint: Path, written: Mapping[str, Any], present: Mapping[str, Any]) -> None:
    for name, value in present.items():
        if written.get(name) != value:
            raise ValueError(
                f"resume_from_checkpoint ({str(checkpoint)!r}) was written with {name} {written.get(name)!r}, but this "
                f"run has {value!r}. Use the same value, or start a new run with --model_name_or_path."
            )
