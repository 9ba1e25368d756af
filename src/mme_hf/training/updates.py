"""One optimizer update, over any number of batches and processes."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data import BadVideo
from ..point_tracking_mme import constant_on


class NonFiniteLossError(RuntimeError):
    """The loss, the gradient or a score is infinite or not a number."""


@dataclass(frozen=True)
class UpdateReport:
    """What one update did, over all processes.

    Attributes:
        loss: Mean loss over the clips.
        target_losses: As the model names them, without weights, mean over the clips; none of a classifier.
        grad_norm: Norm of the gradient before clipping.
        num_clips: Clips the gradient is made of.
        num_records: Videos that were tried.
        bad_videos: Videos that could not be read.
    """

    loss: float
    target_losses: Mapping[str, float]
    grad_norm: float
    num_clips: int
    num_records: int
    bad_videos: Sequence[BadVideo]


def run_update(
    accelerator: Accelerator,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: Sequence[Mapping],
    *,
    inputs_of: Callable[[Mapping], Mapping[str, torch.Tensor]],
    clips_per_batch: int,
    step: int,
    max_grad_norm: float | None = None,
) -> UpdateReport:
    """Do one update over `batches`, as if they and those of all other processes were one batch.

    The gradient is the sum over the clips divided by the number of clips a full update has: a clip that could not be
    read makes the update that much smaller and shifts no weight to the others, so no process needs to know how many
    clips another one lost.

    Args:
        accelerator: Prepared `model` and `optimizer`.
        model: `MMEForPreTraining` or `MMEForVideoClassification`, prepared.
        optimizer: Prepared.
        batches: This process' batches, as `ClipCollator` or `LabelledCollator` makes them.
        inputs_of: Makes what the model takes of a batch, on its device, as `BatchInputs` does. Called when it is a
            batch's turn, so that only one is held there.
        clips_per_batch: Clips of a batch in which every video could be read.
        step: Number of this update, for the error message.
        max_grad_norm: Clip the gradient's norm to this.

    Raises:
        NonFiniteLossError: Before the optimizer's step, on every process, naming the videos.
    """
    optimizer.zero_grad()
    clips_per_update = clips_per_batch * len(batches)
    outputs = []
    for batch in batches:
        is_last = batch is batches[-1]
        with contextlib.nullcontext() if is_last else accelerator.no_sync(model):
            outputs.append(_backward(accelerator, model, inputs_of(batch), clips_per_update))
    grad_norm = accelerator.clip_grad_norm_(model.parameters(), math.inf if max_grad_norm is None else max_grad_norm)
    means, num_clips, num_records, num_bad = _over_all_processes(accelerator, batches, outputs)
    grad_norm = float(grad_norm)
    # With fp16 an infinite gradient is normal: the scaler skips the step.
    if not (math.isfinite(means["loss"]) and (math.isfinite(grad_norm) or accelerator.scaler is not None)):
        raise _non_finite_error(batches, [output["loss"] for output in outputs], means["loss"], grad_norm, step)
    optimizer.step()
    return UpdateReport(
        loss=means.pop("loss"),
        target_losses=means,
        grad_norm=grad_norm,
        num_clips=num_clips,
        num_records=num_records,
        bad_videos=gather_object([bad for batch in batches for bad in batch["bad_videos"]]) if num_bad else [],
    )


def _backward(
    accelerator: Accelerator, model: torch.nn.Module, inputs: Mapping[str, torch.Tensor], clips_per_update: int
) -> dict[str, torch.Tensor]:
    outputs = model(**inputs)
    accelerator.backward(outputs.loss * (len(inputs["pixel_values"]) / clips_per_update))
    losses = {"loss": outputs.loss, **getattr(outputs, "target_losses", {})}  # a classifier has one loss only
    return {name: loss.detach().float() for name, loss in losses.items()}


def _over_all_processes(
    accelerator: Accelerator, batches: Sequence[Mapping], outputs: Sequence[Mapping[str, torch.Tensor]]
) -> tuple[dict[str, float], int, int, int]:
    """Return mean losses over the clips, and the numbers of clips, records and bad videos."""
    counts = [
        sum(len(batch["sources"]) for batch in batches),
        sum(batch["num_records"] for batch in batches),
        sum(len(batch["bad_videos"]) for batch in batches),
    ]
    sizes = [len(batch["sources"]) for batch in batches]
    totals = sum(size * torch.stack(list(output.values())) for size, output in zip(sizes, outputs, strict=True))
    # The only wait for the device in an update, but for those of a moving average.
    sums = accelerator.reduce(
        torch.cat([totals, constant_on(totals.device, counts).to(totals.dtype)]), reduction="sum"
    ).tolist()
    *sums, num_clips, num_records, num_bad = sums
    means = dict(zip(outputs[0], (value / max(num_clips, 1) for value in sums), strict=True))
    return means, int(num_clips), int(num_records), int(num_bad)


def _non_finite_error(
    batches: Sequence[Mapping], losses: Sequence[torch.Tensor], loss: float, grad_norm: float, step: int
) -> NonFiniteLossError:
    suspects = [
        batch for batch, value in zip(batches, losses, strict=True) if not math.isfinite(value) or math.isfinite(loss)
    ]
    sources = sorted(set(gather_object([source for batch in suspects for source in batch["sources"]])))
    return NonFiniteLossError(
        f"step {step}: loss {loss}, gradient norm {grad_norm}: not finite. The model was not updated. Videos of the "
        f"batch: {', '.join(sources)}. Look at these, lower --learning_rate, set --max_grad_norm, or use bf16 or no "
        "mixed precision instead of fp16."
    )
