"""The progress bar and the logged values of a training run."""

from __future__ import annotations

import logging
import shlex
import shutil
import time
from collections.abc import Mapping
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import Accelerator
from tqdm.auto import tqdm
from transformers.utils import logging as transformers_logging

from ..wording import counted
from .optimization import scaled_learning_rate
from .updates import UpdateReport

if TYPE_CHECKING:
    from torch import nn

    from ..data import VideoRecords
    from .arguments import LoopArguments

logger = logging.getLogger(__name__)

_OF_ONE_RUN = (
    "bad_videos.jsonl",
    "bad_held_out_videos.jsonl",
    "bad_validation_videos.jsonl",
    "eval_results.json",
    "ignored_files.txt",
    "motion_health.json",
    "motion_tracks.png",
)
# What not every run leaves.
_OF_SOME_RUNS = {
    "motion.png": "target beside prediction",
    "eval_results.json": "what it scored",
    "last/": "the model of the last update",
}


def set_up_logging(*, is_main_process: bool) -> None:
    """Show what the run says, from the main process, and of the libraries only what a user needs."""
    logging.basicConfig(level=logging.INFO if is_main_process else logging.ERROR, format="%(message)s")
    # The Hub's HTTP client would list every request, with the signatures that uploads are allowed by.
    for library in ("accelerate", "httpx", "httpx2"):
        logging.getLogger(library).setLevel(logging.WARNING)
    for library in ("datasets", "huggingface_hub"):  # with handlers of their own, or everything would be said twice
        logging.getLogger(library).propagate = False
    transformers_logging.disable_progress_bar()  # of writing one small file, in the middle of the last words


def put_earlier_run_aside(output_dir: Path, name: str) -> None:
    """Make room for a new run where there was one: lists would be stale, and curves would lie over each other.

    What a run lists, draws and measures is removed, and the last model beside the best; each run says it anew. Its
    curves, which nothing brings back, are kept beside the new ones, as a run of their own in TensorBoard: `logs/<name>`
    becomes `logs/<name>_earlier_1`.

    Args:
        output_dir: Folder of both runs.
        name: What the trackers call the run.
    """
    for stale in _OF_ONE_RUN:
        (output_dir / stale).unlink(missing_ok=True)
    if (output_dir / "last" / "config.json").is_file():
        shutil.rmtree(output_dir / "last")
    curves = output_dir / "logs" / name
    if curves.is_dir():
        numbers = (number for number in count(1) if not curves.with_name(f"{name}_earlier_{number}").exists())
        curves.rename(curves.with_name(f"{name}_earlier_{next(numbers)}"))


def announce_run(
    records: VideoRecords,
    model: nn.Module,
    *,
    model_name: str,
    output_dir: Path | None,
    where: str,
    what: str,
    targets: str | None = None,
) -> None:
    """Say what is about to be trained, on what and where.

    Args:
        records: The videos; files that are none are counted, and listed in `output_dir`.
        model: To count the parameters of.
        model_name: What to call it.
        output_dir: Folder for that list; None on processes other than the main one.
        where: Devices and workers, in words.
        what: Updates, batch, learning rate and seed, in words.
        targets: Where targets are made and by which tracker, in words; None where there are none.
    """
    if records.ignored_files and output_dir is not None:
        listing = output_dir / "ignored_files.txt"
        listing.parent.mkdir(parents=True, exist_ok=True)
        # A name may be no text.
        listing.write_text(
            "".join(f"{path}\n" for path in records.ignored_files), encoding="utf-8", errors="backslashreplace"
        )
        logger.warning("ignored %s without a video's ending: %s", counted(len(records.ignored_files), "file"), listing)
    videos = "a stream" if records.num_records is None else counted(records.num_records, "video")
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("data: %s (%s)", records.name, videos)
    logger.info("model: %s, %.1f M parameters, on %s", model_name, num_parameters / 1e6, where)
    if targets is not None:
        logger.info("targets: %s", targets)
    logger.info("run: %s", what)


def describe_updates(args: LoopArguments, num_steps: int, global_batch_size: int, too_few: int = 0) -> str:
    """Return how long a run is and what decides its updates, in words that warn of `too_few` updates or less."""
    rate = scaled_learning_rate(args.learning_rate, global_batch_size)
    text = f"{counted(num_steps, 'update')} of {counted(global_batch_size, 'clip')}, peak learning rate {rate:.2e}, "
    text += f"seed {args.seed}"
    if num_steps <= too_few:
        text += (
            "\n  THESE ARE TOO FEW TO LEARN MOTION. Take a recipe, such as --config examples/configs/tiny.yaml, or "
            "raise --num_train_epochs and --learning_rate."
        )
    return text


def announce_result(output_dir: Path, *, report_to: str | None) -> None:
    """Say what a finished run has left in `output_dir`, and where its logs are.

    Args:
        output_dir: Folder of the run.
        report_to: Tracker that its values went to; None for none.
    """
    logger.info("saved in %s: config.json, model.safetensors, video_preprocessor_config.json,", output_dir)
    made = [f", {name} ({what})" for name, what in _OF_SOME_RUNS.items() if (output_dir / name).exists()]
    logger.info("  README.md (model card)%s", "".join(made))
    if report_to in ("all", "tensorboard"):
        logger.info("  logs (tensorboard --logdir %s)", shlex.quote(str(output_dir / "logs")))


class ProgressReporter:
    """Shows and logs each update: loss, each target's share of it, learning rate, clips per second.

    Args:
        accelerator: Its trackers take the values; only the main process shows a bar.
        weights: Weight of each of the model's `target_losses`; empty for a classifier.
        num_steps: Updates in all.
        step: Updates done before.
        logging_steps: Updates between two logged values.
    """

    def __init__(
        self, accelerator: Accelerator, weights: Mapping[str, float], *, num_steps: int, step: int, logging_steps: int
    ):
        self.accelerator = accelerator
        self.weights = weights
        self.logging_steps = logging_steps
        self._previous = time.perf_counter()
        self.bar = tqdm(
            total=num_steps,
            initial=step,
            unit="step",
            disable=not accelerator.is_main_process,
            dynamic_ncols=True,
            bar_format="{percentage:3.0f}% {n_fmt}/{total_fmt} [{elapsed}<{remaining}] {desc}",
        )

    def restart_clock(self) -> None:
        """Leave what has been done since the last update out of the next one's time."""
        self._previous = time.perf_counter()

    def update(
        self,
        report: UpdateReport,
        *,
        step: int,
        learning_rate: float,
        num_bad_videos: int,
        epoch: float | None = None,
    ) -> None:
        """Show one update; `step` counts from 1, `epoch` from 0, as far as it is known."""
        now = time.perf_counter()
        clips_per_second = report.num_clips / (now - self._previous)
        self._previous = now
        shares = {
            name: self.weights[name] * loss / report.loss if report.loss else 0.0
            for name, loss in report.target_losses.items()
        }
        parts = " + ".join(f"{name} {share:.0%}" for name, share in self._of_targets(shares).items())
        loss = f"loss {report.loss:.3f}" + (f" = {parts}" if parts else "")
        rates = f"lr {learning_rate:.1e} | {clips_per_second:.1f} clips/s"
        self.bar.set_description_str(
            " | ".join([loss, rates, *([] if epoch is None else [f"epoch {epoch:.1f}"])]), refresh=False
        )
        self.bar.update()
        if step % self.logging_steps == 0:
            values = {
                "loss": report.loss,
                **{f"loss_{name}": loss for name, loss in report.target_losses.items()},
                **{f"share_{name}": share for name, share in shares.items()},
                "grad_norm": report.grad_norm,
                "learning_rate": learning_rate,
                "clips_per_second": clips_per_second,
                "bad_videos": num_bad_videos,
            }
            self.accelerator.log({f"train/{name}": value for name, value in values.items()}, step=step)

    @staticmethod
    def _of_targets(shares: Mapping[str, float]) -> dict[str, float]:
        """Return the shares of masked and visible tokens together: the bar has no room for both."""
        together: dict[str, float] = {}
        for name, share in shares.items():
            target = name.removeprefix("visible_")
            target = target if target in shares else name
            together[target] = together.get(target, 0.0) + share
        return together

    def close(self) -> None:
        """End the bar."""
        self.bar.close()
