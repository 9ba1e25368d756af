"""How much of the motion a model explains on clips it has not seen."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator


class NothingToExplainError(ValueError):
    """No label to compare with; raised on every process alike, after their sums have been added up."""


@dataclass(frozen=True)
class MeanPredictor:
    """Predicts the mean of the training labels, whatever it is shown: the yardstick of `explained_share`.

    Attributes:
        means: For each target its mean label over masked tokens that count, float64, shape (size,).
    """

    means: Mapping[str, torch.Tensor]

    @classmethod
    def fit(cls, batches: Iterable[Mapping], sizes: Mapping[str, int], accelerator: Accelerator) -> MeanPredictor:
        """Return the predictor of the mean over `batches` of all processes.

        Args:
            batches: Batches as `ClipCollator` makes them, their `inputs` on any device.
            sizes: Values per token of each target, in the order of `labels`.
            accelerator: Adds up over processes.
        """
        sums = {name: torch.zeros(size + 1, dtype=torch.float64) for name, size in sizes.items()}
        for batch in batches:
            for name, (labels, counts) in _masked_labels(batch["inputs"], sizes).items():
                sums[name][:-1] += labels[counts].double().sum(0)
                sums[name][-1] += counts.sum()
        means = {}
        for name, total in sums.items():
            total = _add_up(total, accelerator)
            if total[-1] == 0:
                raise NothingToExplainError(f"target {name!r} has no masked token that counts in the training clips.")
            means[name] = total[:-1] / total[-1]
        return cls(means)


@torch.no_grad()
def explained_share(
    model: torch.nn.Module,
    batches: Iterable[Mapping],
    baseline: MeanPredictor,
    accelerator: Accelerator,
) -> dict[str, float]:
    """Return 1 - squared error / squared error of the mean predictor, for each target.

    Over masked tokens that count. 1 is a perfect prediction, 0 no better than the mean of the training labels,
    negative worse than that.

    Args:
        model: `MMEForPreTraining`, not wrapped for distribution: processes may have different numbers of batches.
        batches: Batches of held-out clips, as `ClipCollator` makes them, their `inputs` on any device.
        baseline: Mean of the training labels.
        accelerator: Adds up over processes; gives the precision.

    Raises:
        NothingToExplainError: If no held-out token counts.
    """
    was_training = model.training
    model.eval()
    sizes = {name: len(mean) for name, mean in baseline.means.items()}
    errors = {name: torch.zeros(2, dtype=torch.float64) for name in sizes}
    for batch in batches:
        inputs = {name: tensor.to(accelerator.device) for name, tensor in batch["inputs"].items()}
        if not len(inputs["pixel_values"]):
            continue
        with accelerator.autocast():
            outputs = model(**inputs)
        predictions = model.split_targets(outputs.logits.cpu())
        for name, (labels, counts) in _masked_labels(batch["inputs"], sizes).items():
            guesses = torch.stack([predictions[name].double(), baseline.means[name].expand_as(labels)])
            squared = (guesses - labels.double()).square().sum(-1)  # (2, B, masked tokens)
            errors[name] += squared[:, counts].sum(1)
    model.train(was_training)
    return {name: _share(name, _add_up(error, accelerator)) for name, error in errors.items()}


def _share(name: str, errors: torch.Tensor) -> float:
    if errors[1] == 0:
        raise NothingToExplainError(
            f"target {name!r} does not vary over the held-out clips, or none of its tokens counts."
        )
    return float(1.0 - errors[0] / errors[1])


def _masked_labels(
    inputs: Mapping[str, torch.Tensor], sizes: Mapping[str, int]
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """Return for each target (labels (B, masked tokens, size), whether they count (B, masked tokens)), on the CPU."""
    indices = inputs["masked_indices"]
    labels = inputs["labels"].gather(1, indices[..., None].expand(-1, -1, inputs["labels"].shape[-1]))
    target_mask = inputs["target_mask"]
    counts = target_mask.gather(1, indices[..., None].expand(-1, -1, target_mask.shape[-1])).cpu()
    columns = labels.cpu().split(list(sizes.values()), dim=-1)
    return {name: (columns[i], counts[..., i]) for i, name in enumerate(sizes)}


def _add_up(total: torch.Tensor, accelerator: Accelerator) -> torch.Tensor:
    # Not every device has float64 (MPS has not); float32 is enough for the sum of a few processes' sums.
    if accelerator.num_processes == 1:
        return total
    return accelerator.reduce(total.float().to(accelerator.device), reduction="sum").cpu().double()
