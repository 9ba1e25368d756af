"""Parameter groups and the learning rate."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Published learning rates are per 256 clips of global batch.
REFERENCE_BATCH_SIZE = 256

OPTIMIZERS = ("adamw", "muon")
# Muon's learning rate over AdamW's: one is about the spectral norm of an update, the other how far a weight moves.
MUON_RATE = 10.0


def parameter_groups(
    model: nn.Module, weight_decay: float, *, learning_rate: float | None = None, layer_decay: float = 1.0
) -> list[dict]:
    """Return the trainable parameters in groups: with weight decay, and without; one pair for each rate.

    Biases, normalisation weights and everything else of one dimension, and mask token and query, take no weight decay.

    Args:
        model: With the configuration of an MME model, where `layer_decay` is not 1.
        weight_decay: Of the parameters that take any.
        learning_rate: Of the last layers; None leaves it to the optimizer.
        layer_decay: Learning rate of a layer over that of the next. The patch embedding is layer 0, block N layer
            N + 1, and all that comes after the blocks has the full rate.

    Source: Masked Motion Encoding, pre-training and fine-tuning recipes; layers are counted as by BEiT.
    """
    groups: dict[tuple[float, bool], dict] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The mask token is (1, 1, width): one vector, though it has three dimensions.
            is_vector = parameter.squeeze().ndim <= 1 or name.endswith("bias")
            scale = 1.0 if layer_decay == 1 else layer_decay ** _layers_above(name, model.config.num_hidden_layers)
            group = {"params": [], "weight_decay": 0.0 if is_vector else weight_decay}
            if learning_rate is not None:
                group["lr"] = learning_rate * scale
            groups.setdefault((scale, not is_vector), group)["params"].append(parameter)
    # The highest rate first: it is the one that a run reports.
    return [groups[key] for key in sorted(groups, reverse=True)]


def _layers_above(name: str, num_layers: int) -> int:
    """Return by how many layers a parameter is away from the last ones, which have the full learning rate."""
    if name.startswith("mme.embeddings."):
        return num_layers + 1
    block = re.match(r"mme\.layers\.(\d+)\.", name)
    return num_layers - int(block[1]) if block else 0


def scaled_learning_rate(learning_rate: float, global_batch_size: int) -> float:
    """Return the learning rate for a global batch, from the one for 256 clips."""
    return learning_rate * global_batch_size / REFERENCE_BATCH_SIZE


class MuonWithAdamW(torch.optim.Optimizer):
    """Muon for the weight matrices of the blocks, AdamW for everything else, as one optimizer.

    Muon makes the singular values of an update alike, so that a matrix also learns in the directions that its gradient
    hardly has.

    Args:
        groups: As `parameter_groups` makes them; those with `"optimizer": "muon"` hold matrices.
        learning_rate: Of groups without a rate of their own.
        betas: Of AdamW.

    Source: K. Jordan, "Muon: an optimizer for hidden layers in neural networks", 2024; `torch.optim.Muon`.
    """

    def __init__(self, groups: list[dict[str, Any]], *, learning_rate: float, betas: tuple[float, float]):
        super().__init__(groups, {"lr": learning_rate, "betas": betas, "optimizer": "adamw"})
        self._share()

    def _share(self) -> None:
        """Have two optimizers of torch work on the groups and the state that this one shows."""
        self._parts = []
        for name, build in (("adamw", partial(torch.optim.AdamW, fused=True)), ("muon", torch.optim.Muon)):
            part = build([group for group in self.param_groups if group["optimizer"] == name])
            part.state = self.state
            self._parts.append(part)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up groups and state of a file or of a copy."""
        super().__setstate__(state)
        self._share()

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Train more parameters."""
        super().add_param_group(param_group)
        if hasattr(self, "_parts"):
            self._share()

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Update every parameter that has a gradient."""
        loss = None if closure is None else torch.enable_grad()(closure)()
        for part in self._parts:
            part.step()
        return loss


def _is_matrix_of_a_block(name: str, parameter: nn.Parameter) -> bool:
    return parameter.ndim == 2 and re.search(r"(^|\.)layers\.\d+\.", name) is not None


def check_optimizer(name: str) -> None:
    """Raise ValueError if there is no optimizer of this name, or not in this torch."""
    if name not in OPTIMIZERS:
        raise ValueError(f"optimizer ({name!r}) must be one of {', '.join(OPTIMIZERS)}.")
    if name == "muon" and not hasattr(torch.optim, "Muon"):
        raise ValueError(f"optimizer ('muon') needs torch 2.9 or newer, but this is {torch.__version__}. Use 'adamw'.")


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
    name: Literal["adamw", "muon"] = "adamw",
) -> torch.optim.Optimizer:
    """Return an optimizer over `parameter_groups`.

    Args:
        model: To train.
        learning_rate: Peak, of the last layers.
        weight_decay: Of the parameters that take any, a share of the rate.
        betas: Of AdamW.
        layer_decay: Learning rate of a layer over that of the next; with "adamw" alone.
        name: "adamw", with the fused kernel: one pass over the weights on any device; or "muon", `MuonWithAdamW`, whose
            matrices have `MUON_RATE` times the rate, and so the decay.

    Raises:
        ValueError: If there is no such optimizer, or it has no `layer_decay`.
    """
    check_optimizer(name)
    if name == "muon" and layer_decay != 1:
        raise ValueError(f"layer_decay ({layer_decay}) needs optimizer 'adamw': Muon has one rate for all blocks.")
    groups = parameter_groups(model, weight_decay, learning_rate=learning_rate, layer_decay=layer_decay)
    if name == "muon":
        names = {parameter: name for name, parameter in model.named_parameters()}
        is_matrix = {parameter: _is_matrix_of_a_block(name, parameter) for parameter, name in names.items()}
        rest = [{**group, "params": [one for one in group["params"] if not is_matrix[one]]} for group in groups]
        matrices = [one for group in groups for one in group["params"] if is_matrix[one]]
        of_muon = {"optimizer": "muon", "lr": MUON_RATE * learning_rate, "weight_decay": weight_decay}
        return MuonWithAdamW([*rest, {"params": matrices, **of_muon}], learning_rate=learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=learning_rate, betas=betas, fused=True)


def build_average(model: nn.Module, decay: float | None, *, device: torch.device) -> AveragedModel | None:
    """Return an exponential moving average of a model's weights, its `module`; None without a decay.

    It begins with the weights after the first update; one `update_parameters(model)` an update.

    Args:
        model: Not wrapped for distribution.
        decay: Share of the average that an update leaves as it was, in [0, 1).
        device: To keep the average on.
    """
    if decay is None:
        return None
    return AveragedModel(model, device=device, multi_avg_fn=get_ema_multi_avg_fn(decay))


def build_scheduler(
    optimizer: torch.optim.Optimizer, *, num_warmup_steps: int, num_training_steps: int, min_learning_rate: float
) -> LambdaLR:
    """Return linear warm-up from 0, then a half cosine down to a floor; one `step()` an optimizer update.

    Args:
        optimizer: Its learning rate is the peak.
        num_warmup_steps: Updates until the peak.
        num_training_steps: Updates in all.
        min_learning_rate: The floor, at most the peak.
    """
    from transformers import get_cosine_with_min_lr_schedule_with_warmup

    peak = optimizer.defaults["lr"]
    return get_cosine_with_min_lr_schedule_with_warmup(
        optimizer, num_warmup_steps, num_training_steps, min_lr_rate=min(1.0, min_learning_rate / peak)
    )
