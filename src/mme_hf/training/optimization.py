"""Parameter groups and the learning rate."""

from __future__ import annotations

import re

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

# Published learning rates are per 256 clips of global batch.
REFERENCE_BATCH_SIZE = 256


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


def build_optimizer(
    model: nn.Module,
    *,
    learning_rate: float,
    weight_decay: float,
    betas: tuple[float, float],
    layer_decay: float = 1.0,
) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`, with the fused kernel: one pass over the weights on any device."""
    groups = parameter_groups(model, weight_decay, learning_rate=learning_rate, layer_decay=layer_decay)
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
