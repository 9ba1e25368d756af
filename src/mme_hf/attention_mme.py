"""Attention: the transformer block of encoder and decoder, and a classifier's attentive pooler.

Shapes: B clips, N tokens of a clip, M of them that ask, D features.
"""

from collections.abc import Callable

import torch
from torch import nn
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs

from .configuration_mme import MMEConfig
from .layers_mme import MMEMLP, MMEDropPath, cast_once_for_autocast


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs: Unpack[TransformersKwargs],
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return attention, shape (B, queries, heads, head_dim), and its weights, shape (B, heads, queries, keys)."""
    attention_weights = torch.matmul(query, key.transpose(2, 3)) * scaling
    if attention_mask is not None:
        attention_weights = attention_weights + attention_mask
    attention_weights = nn.functional.softmax(attention_weights, dim=-1, dtype=torch.float32).to(query.dtype)
    attention_weights = nn.functional.dropout(attention_weights, p=dropout, training=module.training)
    return torch.matmul(attention_weights, value).transpose(1, 2).contiguous(), attention_weights


class MMEAttention(nn.Module):
    """Multi-head attention of the first `num_queries` tokens to all tokens; not causal.

    Encoder and decoder share one configuration and pass their sizes: a copy of it with the decoder's sizes would not
    follow `set_attn_implementation`.
    """

    def __init__(self, config: MMEConfig, hidden_size: int, num_attention_heads: int):
        super().__init__()
        self.config = config
        self.head_dim = hidden_size // num_attention_heads
        self.scaling = self.head_dim**-0.5
        self.attention_dropout = config.attention_probs_dropout_prob
        self.is_causal = False  # read by sdpa and flash attention, which would default to True
        self.q_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.k_proj = nn.Linear(hidden_size, hidden_size, bias=False)
        self.v_proj = nn.Linear(hidden_size, hidden_size, bias=config.qkv_bias)
        self.o_proj = nn.Linear(hidden_size, hidden_size)

    def forward(
        self,
        hidden_states: torch.Tensor,
        num_queries: int | None = None,
        attention_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return attention's output, shape (batch_size, num_queries, hidden_size), and its weights if it has them."""
        hidden_states = cast_once_for_autocast(hidden_states)
        query_states = hidden_states if num_queries is None else hidden_states[:, :num_queries]
        query = self.q_proj(query_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, M, head_dim)
        key = self.k_proj(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if hidden_states.shape[0] == 0:
            # Flash attention refuses an empty batch, and its masks have another shape.
            attention_interface, attention_mask = eager_attention_forward, None
        attention_output, attention_weights = attention_interface(
            self,
            query,
            key,
            value,
            attention_mask,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attention_output.flatten(2)), attention_weights


class MMELayer(GradientCheckpointingLayer):
    """A pre-norm transformer block, of the encoder or of the decoder."""

    def __init__(
        self,
        config: MMEConfig,
        *,
        hidden_size: int,
        num_attention_heads: int,
        intermediate_size: int,
        drop_path_rate: float = 0.0,
    ):
        super().__init__()
        self.layernorm_before = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.attention = MMEAttention(config, hidden_size, num_attention_heads)
        self.layernorm_after = nn.LayerNorm(hidden_size, eps=config.layer_norm_eps)
        self.mlp = MMEMLP(config, hidden_size, intermediate_size, hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)
        self.drop_path = MMEDropPath(drop_path_rate)

    def forward(
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> torch.Tensor:
        """Return the first `num_queries` tokens (default all) after the block; every token is attended to.

        Args:
            hidden_states: Shape (batch_size, num_tokens, hidden_size).
            num_queries: How many leading tokens the caller needs.
            **kwargs: Passed to the attention, `attention_mask` and options of the attention function.

        Returns:
            Shape (batch_size, num_queries, hidden_size).
        """
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), num_queries, **kwargs)
        residual = hidden_states if num_queries is None else hidden_states[:, :num_queries]
        hidden_states = residual + self.drop_path(self.dropout(attention_output))
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(mlp_output))


class MMEAttentivePooler(nn.Module):
    """A learnt query that attends to all tokens, in one transformer block of which only the query is computed.

    Source: Touvron et al., Going deeper with Image Transformers, class attention.
    """

    def __init__(self, config: MMEConfig):
        super().__init__()
        self.config = config
        self.query = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.layer = MMELayer(
            config,
            hidden_size=config.hidden_size,
            num_attention_heads=config.num_attention_heads,
            intermediate_size=config.intermediate_size,
        )

    def forward(self, tokens: torch.Tensor, token_mask: torch.Tensor | None = None, **kwargs) -> torch.Tensor:
        """Return one vector for each clip, shape (batch_size, hidden_size).

        Args:
            tokens: Features, shape (batch_size, num_tokens, hidden_size).
            token_mask: True where a token is real, shape (batch_size, num_tokens); None for all.
            **kwargs: Passed to the attention function.
        """
        hidden_states = torch.cat([self.query.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        if token_mask is not None:
            token_mask = nn.functional.pad(token_mask, (1, 0), value=True)
            kwargs["attention_mask"] = create_bidirectional_mask(
                self.config, hidden_states[:, :1], token_mask, encoder_hidden_states=hidden_states
            )
        return self.layer(hidden_states, num_queries=1, **kwargs)[:, 0]
