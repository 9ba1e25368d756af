"""How good a classifier is on videos that it was not trained on, and which of its states was the best."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from accelerate import Accelerator

from ..data import BadVideoLog
from .held_out import watched
from .metrics import classification_metrics
from .mixing import UnlabelledVideoError
from .prediction import VideoPredictions, predict_videos
from .sharding import whole_model
from .updates import NonFiniteLossError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ValidationResult:
    """What one evaluation found.

    Attributes:
        top1: Share of the videos whose best score is that of their class.
        top5: Share whose class is among the five best scores; 1 where there are no more classes.
        num_videos: Videos that were scored.
    """

    top1: float
    top5: float
    num_videos: int

    @classmethod
    def of(cls, predictions: VideoPredictions) -> ValidationResult:
        """Return the result of predictions of labelled videos.

        Raises:
            UnlabelledVideoError: If a video has no label.
        """
        if not predictions.is_labelled:
            source = predictions.sources[int(predictions.labels.argmin())]
            raise UnlabelledVideoError(f"{source} has no label, so it cannot be judged by. Leave it out.")
        metrics = classification_metrics(predictions.scores, predictions.labels)
        return cls(metrics["top1"], metrics["top5"], len(predictions.labels))


@dataclass
class BestModel:
    """The best of a run's states so far. Accelerate saves and restores it with a checkpoint, weights and all.

    So that whoever resumes has the best model of the past as it was, whatever has happened to the folder since.

    Attributes:
        keeps_weights: Whether this process keeps weights; one is enough.
        step: Updates after which it was found; 0 for none yet.
        result: What it scored.
        num_evaluations_since: Evaluations after it, none of them better.
        weights: Its parameters by name, on the CPU.
    """

    keeps_weights: bool = True
    step: int = 0
    result: ValidationResult | None = None
    num_evaluations_since: int = 0
    weights: dict[str, torch.Tensor] = field(default_factory=dict)

    def offer(self, result: ValidationResult, step: int, weights_of: Callable[[], dict[str, torch.Tensor]]) -> bool:
        """Take a state if its top-1 is above the best one's, and return whether it is.

        Args:
            result: What it scored.
            step: Updates it took.
            weights_of: Makes a copy of its parameters; called if it is taken.
        """
        if self.result is not None and result.top1 <= self.result.top1:
            self.num_evaluations_since += 1
            return False
        self.step, self.result, self.num_evaluations_since = step, result, 0
        if self.keeps_weights:
            self.weights = weights_of()
        return True

    def state_dict(self) -> dict[str, Any]:
        """Return what `load_state_dict` takes."""
        names = ("step", "num_evaluations_since", "weights")
        result = None if self.result is None else asdict(self.result)
        return {**{name: getattr(self, name) for name in names}, "result": result}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Become what a checkpoint holds."""
        self.step, self.num_evaluations_since = state["step"], state["num_evaluations_since"]
        self.result = ValidationResult(**state["result"]) if state["result"] else None
        self.weights = state["weights"] if self.keeps_weights else {}


@dataclass
class Judge:
    """Scores a classifier on the validation videos now and then, and keeps the best of its states.

    Attributes:
        accelerator: Gathers over processes; gives device and precision; takes what is logged.
        model: What is judged; not wrapped for distribution.
        batches: Views of the validation videos, this process' share; gone through each time.
        bad_videos: Takes those that could not be read.
        best: Best state so far.
        weights_of: Makes a copy of the model's parameters, by name, on the CPU.
        epoch_of: Says how many epochs so many updates are; None where an epoch's length is not known.
        clips_per_forward: Clips that the model is given at once.
        num_steps: Updates of the run; the last one is always judged.
        eval_steps: Updates from one evaluation to the next; None for an epoch.
        patience: Evaluations without a better one after which training is over; None for any number.
    """

    accelerator: Accelerator
    model: torch.nn.Module
    batches: Iterable[Mapping]
    bad_videos: BadVideoLog
    best: BestModel
    weights_of: Callable[[torch.nn.Module], dict[str, torch.Tensor]]
    epoch_of: Callable[[int], float | None]
    clips_per_forward: int
    num_steps: int
    eval_steps: int | None = None
    patience: int | None = None

    @property
    def has_lost_patience(self) -> bool:
        """Whether the model has not become better for long enough."""
        return self.patience is not None and self.best.num_evaluations_since >= self.patience

    def is_due(self, step: int) -> bool:
        """Return whether the model is to be judged after `step` updates."""
        if step == self.num_steps:
            return True
        if self.eval_steps:
            return step % self.eval_steps == 0
        epoch, before = self.epoch_of(step), self.epoch_of(step - 1)
        return epoch is not None and int(epoch) > int(before)

    def judge(self, step: int) -> bool:
        """Score, say and log what the model is worth after `step` updates; return whether it is the best so far.

        Raises:
            TooManyBadVideosError: If too many videos could not be read to judge by the rest.
            UnlabelledVideoError: If a video has no label.
            NonFiniteLossError: If a score is not finite, as after an update that was too large.
        """
        batches, model = watched(self.batches, self.bad_videos), whole_model(self.model)
        predictions = predict_videos(self.accelerator, model, batches, clips_per_forward=self.clips_per_forward)
        if not predictions.scores.isfinite().all():
            raise NonFiniteLossError(
                f"update {step}: the model's scores of the validation videos are not finite. Lower --learning_rate, or "
                "set --max_grad_norm."
            )
        result = ValidationResult.of(predictions)
        is_best = self.best.offer(result, step, lambda: self.weights_of(model))
        epoch, best = self.epoch_of(step), self.best
        when = f"update {step}" if epoch is None else f"epoch {epoch:.1f}, update {step}"
        rank = "the best so far" if is_best else f"the best is {best.result.top1:.3f}, of update {best.step}"
        logger.info("%s: validation top-1 %.3f, top-5 %.3f; %s", when, result.top1, result.top5, rank)
        values = {"top1": result.top1, "top5": result.top5, "best_top1": best.result.top1}
        self.accelerator.log({f"validation/{name}": value for name, value in values.items()}, step=step)
        return is_best
