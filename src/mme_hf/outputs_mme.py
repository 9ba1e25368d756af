"""What MME models return."""

from dataclasses import dataclass

import torch
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import ModelOutput


@dataclass
class MMEModelOutput(BaseModelOutput):
    """What the encoder returns.

    Attributes:
        last_hidden_state: Features of the visible tokens in ascending order, shape (batch_size, num_visible,
            hidden_size); of all tokens if none was masked.
        hidden_states: With `output_hidden_states=True`, the input of the first block and the output of each, before
            the final LayerNorm, `num_hidden_layers + 1` tensors of that shape.
        attentions: With `output_attentions=True` and eager attention, one tensor per block, shape
            (batch_size, num_attention_heads, num_visible, num_visible).
        visible_indices: Which tokens `last_hidden_state` holds, int64, shape (batch_size, num_visible); None if none
            was masked.
        token_mask: Which tokens are real, bool, shape (batch_size, num_tokens); None without `frame_mask`.
    """

    visible_indices: torch.Tensor | None = None
    token_mask: torch.Tensor | None = None


@dataclass
class MMEForPreTrainingOutput(ModelOutput):
    """What pre-training returns.

    Attributes:
        loss: Weighted sum of `target_losses`, float32 scalar; None without `labels`.
        logits: Predictions after each head's activation, targets side by side in the order of
            `config.motion_targets`, shape (batch_size, num_masked, sum of target sizes). Row i belongs to
            `masked_indices[:, i]`, or to the i-th masked token of `bool_masked_pos`.
        target_losses: Each target's loss without its weight, of masked tokens by its name and, where the target has a
            `visible_weight`, of visible ones as `visible_NAME`: float32 scalars; None without `labels`.
        hidden_states: Of the encoder, as in [`MMEModelOutput`].
        attentions: Of the encoder, as in [`MMEModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    target_losses: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


__all__ = ["MMEForPreTrainingOutput", "MMEModelOutput"]
