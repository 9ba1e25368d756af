"""Parameter groups and the learning rate."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

# Published learning rates are per 256 clips of global batch.
REFERENCE_BATCH_SIZE = 256


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return the trainable parameters in two groups: with weight decay, and without.

    Biases, normalisation weights and everything else of one dimension, and the mask token, take no weight decay.

    Source: Masked Motion Encoding, pre-training recipe.
    """
    decayed, plain = [], []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # The mask token is (1, 1, width): one vector, though it has three dimensions.
            is_vector = parameter.squeeze().ndim <= 1 or name.endswith("bias")
            (plain if is_vector else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": plain, "weight_decay": 0.0}]


def scaled_learning_rate(learning_rate: float, global_batch_size: int) -> float:
    """Return the learning rate for a global batch, from the one for 256 clips."""
    return learning_rate * global_batch_size / REFERENCE_BATCH_SIZE


def build_optimizer(
    model: nn.Module, *, learning_rate: float, weight_decay: float, betas: tuple[float, float]
) -> torch.optim.AdamW:
    """Return AdamW over `parameter_groups`, with the fused kernel: one pass over the weights on any device."""
    return torch.optim.AdamW(parameter_groups(model, weight_decay), lr=learning_rate, betas=betas, fused=True)


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
