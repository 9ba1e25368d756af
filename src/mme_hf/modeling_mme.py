"""Masked Motion Encoding models: an encoder of video tokens, and its pre-training to predict hidden motion.

Shapes in comments and docstrings: B clips, T frames, C channels, H W pixels, N tokens of a clip, M of them masked and
V = N - M visible, D features, S values predicted per token. Tokens are numbered by tubelet, then row, then column.
`bool_masked_pos` is True where a token is hidden; `target_mask` is True where a label counts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.processing_utils import Unpack
from transformers.utils import ModelOutput, TransformersKwargs
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .configuration_mme import MMEConfig
from .names_mme import check_names
from .tokens_mme import (
    MMESinusoidPositions,
    check_num_masked,
    masked_indices_from,
    sinusoid_table,
    take_tokens,
    visible_indices_from,
)

_INPUT_NAMES = frozenset(
    ("pixel_values", "bool_masked_pos", "masked_indices", "labels", "target_mask", "return_dict")
) | frozenset(TransformersKwargs.__annotations__)
_HEAD_ACTIVATIONS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


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
    """

    visible_indices: torch.Tensor | None = None


@dataclass
class MMEForPreTrainingOutput(ModelOutput):
    """What pre-training returns.

    Attributes:
        loss: Weighted sum of `target_losses`, float32 scalar; None without `labels`.
        logits: Predictions after each head's activation, targets side by side in the order of
            `config.motion_targets`, shape (batch_size, num_masked, sum of target sizes). Row i belongs to
            `masked_indices[:, i]`, or to the i-th masked token of `bool_masked_pos`.
        target_losses: Each target's loss without its weight, name -> float32 scalar; None without `labels`.
        hidden_states: Of the encoder, as in [`MMEModelOutput`].
        attentions: Of the encoder, as in [`MMEModelOutput`].
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    target_losses: dict[str, torch.Tensor] | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


def _cast_once_for_autocast(hidden_states: torch.Tensor) -> torch.Tensor:
    """Return what autocast would feed to each linear layer, so that layers with one input share one copy of it."""
    device_type = hidden_states.device.type
    if torch.is_autocast_enabled(device_type):
        return hidden_states.to(torch.get_autocast_dtype(device_type))
    return hidden_states


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


class MMETubeletProjection(nn.Linear):
    """The matrix product that makes tokens; a class of its own because it has a start of its own."""

    def __init__(self, tubelet_size: int, num_values_per_frame: int, hidden_size: int):
        super().__init__(tubelet_size * num_values_per_frame, hidden_size)
        self.tubelet_size = tubelet_size

    def with_differences_amplified(self, gain: float) -> torch.Tensor:
        """Return the weight with what it makes of differences between the frames of a tubelet multiplied by `gain`."""
        by_frame = self.weight.unflatten(1, (self.tubelet_size, -1))  # (D, frames, C * height * width)
        shared = by_frame.mean(1, keepdim=True)
        return (shared + gain * (by_frame - shared)).flatten(1)


class MMEPatchEmbeddings(nn.Module):
    """Turns each wanted tubelet of a clip into a token by one matrix product.

    A Conv3d whose kernel is its stride is this product, but it computes every token; here masked tubelets are not
    even copied. Columns of the weight are (frame, channel, row, column) of a tubelet, the order it has in memory.
    """

    def __init__(self, config: MMEConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        self.num_channels = config.num_channels
        self.projection = MMETubeletProjection(
            config.tubelet_size, config.num_channels * config.patch_size**2, config.hidden_size
        )

    def token_grid(self, pixel_values: torch.Tensor) -> tuple[int, int, int]:
        """Return the numbers of tubelets, rows and columns of tokens in a clip.

        Raises:
            ValueError: If the clip's shape or type is not what the model takes.
        """
        if pixel_values.dim() != 5 or pixel_values.shape[2] != self.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, frames, "
                f"{self.num_channels} channels, height, width). MMEVideoProcessor makes this shape."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values has dtype {pixel_values.dtype}, expected normalised floating point frames. "
                "MMEVideoProcessor rescales and normalises."
            )
        _, num_frames, _, height, width = pixel_values.shape
        if num_frames % self.tubelet_size or num_frames == 0:
            raise ValueError(
                f"pixel_values has {num_frames} frames, expected a positive multiple of tubelet_size "
                f"({self.tubelet_size}). Sample another number of frames."
            )
        if height % self.patch_size or width % self.patch_size or height == 0 or width == 0:
            raise ValueError(
                f"pixel_values has frames of {height} x {width} px, expected positive multiples of patch_size "
                f"({self.patch_size}). Resize or crop the frames."
            )
        return num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def forward(self, pixel_values: torch.Tensor, token_indices: torch.Tensor | None = None) -> torch.Tensor:
        """Return tokens without positions.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            token_indices: The tokens wanted, int64, shape (batch_size, num_wanted); None for all.

        Returns:
            Embeddings, shape (batch_size, num_wanted, hidden_size).
        """
        num_tubelets, num_rows, num_columns = self.token_grid(pixel_values)
        tubelets = pixel_values.unflatten(4, (num_columns, self.patch_size)).unflatten(3, (num_rows, self.patch_size))
        tubelets = tubelets.unflatten(1, (num_tubelets, self.tubelet_size))
        tubelets = tubelets.permute(0, 1, 4, 6, 2, 3, 5, 7)  # (B, tubelets, rows, columns, frames, C, height, width)
        if token_indices is None:
            tubelets = tubelets.flatten(1, 3)  # (B, N, frames, C, height, width)
        else:
            row_and_column = token_indices % (num_rows * num_columns)
            tubelets = tubelets[
                torch.arange(token_indices.shape[0], device=token_indices.device)[:, None],
                token_indices // (num_rows * num_columns),
                row_and_column // num_columns,
                row_and_column % num_columns,
            ]  # (B, V, frames, C, height, width)
        return self.projection(tubelets.flatten(2).to(self.projection.weight.dtype))


class MMEEmbeddings(nn.Module):
    """Tokens with positions, of the visible tubelets only."""

    def __init__(self, config: MMEConfig):
        super().__init__()
        self.patch_embeddings = MMEPatchEmbeddings(config)
        self.position_embeddings = MMESinusoidPositions(config.num_tokens, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(self, pixel_values: torch.Tensor, visible_indices: torch.Tensor | None = None) -> torch.Tensor:
        """Return embeddings of the visible tokens, shape (batch_size, num_visible, hidden_size)."""
        embeddings = self.patch_embeddings(pixel_values, visible_indices)
        positions = self.position_embeddings(math.prod(self.patch_embeddings.token_grid(pixel_values)))
        # The weights' type, not the embeddings': under autocast the residual stream then stays float32.
        positions = positions.to(self.patch_embeddings.projection.weight.dtype)
        if visible_indices is not None:
            positions = positions[visible_indices]  # (B, V, D)
        return self.dropout(embeddings + positions)


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
        self, hidden_states: torch.Tensor, num_queries: int | None = None, **kwargs: Unpack[TransformersKwargs]
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return attention's output, shape (batch_size, num_queries, hidden_size), and its weights if it has them."""
        hidden_states = _cast_once_for_autocast(hidden_states)
        query_states = hidden_states if num_queries is None else hidden_states[:, :num_queries]
        query = self.q_proj(query_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)  # (B, heads, M, head_dim)
        key = self.k_proj(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)
        value = self.v_proj(hidden_states).unflatten(2, (-1, self.head_dim)).transpose(1, 2)

        attention_interface: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        if hidden_states.shape[0] == 0:
            attention_interface = eager_attention_forward  # flash attention refuses an empty batch
        attention_output, attention_weights = attention_interface(
            self,
            query,
            key,
            value,
            None,
            dropout=self.attention_dropout if self.training else 0.0,
            scaling=self.scaling,
            **kwargs,
        )
        return self.o_proj(attention_output.flatten(2)), attention_weights


class MMEMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: MMEConfig, hidden_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, output_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return shape (..., output_size) from shape (..., hidden_size)."""
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class MMEDropPath(nn.Module):
    """Stochastic depth: drops what a block adds, for whole clips, and scales what is kept to the same mean."""

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the same shape, (batch_size, ...), with some clips zero while training."""
        if self.drop_rate == 0.0 or not self.training:
            return hidden_states
        keep_rate = 1.0 - self.drop_rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.dim() - 1)
        return hidden_states * (hidden_states.new_empty(shape).bernoulli_(keep_rate) / keep_rate)

    def extra_repr(self) -> str:
        """Return the rate for printing."""
        return f"drop_rate={self.drop_rate}"


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
            **kwargs: Passed to the attention function.

        Returns:
            Shape (batch_size, num_queries, hidden_size).
        """
        attention_output, _ = self.attention(self.layernorm_before(hidden_states), num_queries, **kwargs)
        residual = hidden_states if num_queries is None else hidden_states[:, :num_queries]
        hidden_states = residual + self.drop_path(self.dropout(attention_output))
        mlp_output = self.mlp(self.layernorm_after(hidden_states))
        return hidden_states + self.drop_path(self.dropout(mlp_output))


def _check_input_names(model: nn.Module, kwargs: dict) -> None:
    """Raise ValueError for a misspelt input, which would be taken for an option of some attention function."""
    if not torch.compiler.is_compiling():
        check_names(type(model).__name__, kwargs, _INPUT_NAMES, misspelt_only=True)


class MMEPreTrainedModel(PreTrainedModel):
    """What all MME models share: how they are initialised, loaded and run."""

    config: MMEConfig
    base_model_prefix = "mme"
    main_input_name = "pixel_values"
    input_modalities = "video"
    supports_gradient_checkpointing = True
    _no_split_modules: ClassVar[list[str]] = ["MMEEmbeddings", "MMELayer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs: ClassVar[dict[str, type]] = {"hidden_states": MMELayer, "attentions": MMEAttention}

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Linear):
            # With transformers' usual deviation of 0.02 the blocks of a narrow model start so close to linear that it
            # does not find out how pixels move: `benchmarks/learns_motion.py`.
            init.xavier_uniform_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
            if isinstance(module, MMETubeletProjection):
                init.copy_(module.weight, module.with_differences_amplified(self.config.frame_difference_gain))
            return
        super()._init_weights(module)
        if isinstance(module, MMESinusoidPositions):
            init.copy_(module.table, sinusoid_table(*module.table.shape))
        elif isinstance(module, MMEDecoder):
            init.trunc_normal_(module.mask_token, mean=0.0, std=self.config.initializer_range)


class MMEModel(MMEPreTrainedModel):
    """The encoder: tokens of a clip, all or only the visible ones, to features.

    Example:
        >>> model = MMEModel(MMEConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
        >>> model(torch.zeros(1, 16, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 1568, 32])
    """

    # Of a pre-training checkpoint the encoder is all that is wanted here; its decoder is no news.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [r"^decoder\."]

    def __init__(self, config: MMEConfig):
        super().__init__(config)
        self.embeddings = MMEEmbeddings(config)
        # Plain Python: with torch.linspace the rates would be on the meta device while a checkpoint loads.
        last_layer = max(config.num_hidden_layers - 1, 1)
        self.layers = nn.ModuleList(
            MMELayer(
                config,
                hidden_size=config.hidden_size,
                num_attention_heads=config.num_attention_heads,
                intermediate_size=config.intermediate_size,
                drop_path_rate=config.drop_path_rate * layer_index / last_layer,
            )
            for layer_index in range(config.num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Return the layer that turns pixels into tokens."""
        return self.embeddings.patch_embeddings.projection

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the layer that turns pixels into tokens."""
        self.embeddings.patch_embeddings.projection = value

    def check_inputs(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None, masked_indices: torch.Tensor | None
    ) -> int:
        """Return the number of tokens in a clip, after checking that the inputs fit each other.

        Raises:
            ValueError: Names the input, its shape and the shape expected.
        """
        if not isinstance(pixel_values, torch.Tensor):
            raise ValueError(
                f"pixel_values is a {type(pixel_values).__name__}, expected a tensor of normalised frames. "
                "MMEVideoProcessor makes it, with return_tensors='pt'."
            )
        batch_size = pixel_values.shape[0]
        num_tokens = math.prod(self.embeddings.patch_embeddings.token_grid(pixel_values))
        if bool_masked_pos is not None and bool_masked_pos.shape != (batch_size, num_tokens):
            raise ValueError(
                f"bool_masked_pos has shape {tuple(bool_masked_pos.shape)}, expected (batch, tokens) = "
                f"{(batch_size, num_tokens)} for pixel_values of shape {tuple(pixel_values.shape)}."
            )
        if bool_masked_pos is not None and bool_masked_pos.dtype != torch.bool:
            raise ValueError(
                f"bool_masked_pos has dtype {bool_masked_pos.dtype}, expected torch.bool: True where a token is "
                "hidden. Compare, as in mask > 0.5, or call bool()."
            )
        if masked_indices is not None:
            if masked_indices.dim() != 2 or masked_indices.shape[0] != batch_size:
                raise ValueError(
                    f"masked_indices has shape {tuple(masked_indices.shape)}, expected (batch, masked tokens) with "
                    f"a batch of {batch_size}."
                )
            check_num_masked(masked_indices.shape[1], num_tokens)
        return num_tokens

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        masked_indices: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMEModelOutput:
        """Return features of the visible tokens.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width); any
                frame size and count that patch_size and tubelet_size divide.
            bool_masked_pos: True where a token is hidden, equally many in each clip, shape (batch_size, num_tokens)
                with num_tokens = num_frames / tubelet_size * height / patch_size * width / patch_size. Not read
                where `masked_indices` is given.
            masked_indices: Numbers of the hidden tokens, ascending, int64, shape (batch_size, num_masked). Makes
                their count static, as full-graph compilation needs. Not checked for range or repeats: that
                would wait for the device.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and options of the attention.

        Raises:
            ValueError: If a shape does not fit, the clips hide different numbers of tokens, or an input is misspelt.
        """
        _check_input_names(self, kwargs)
        num_tokens = self.check_inputs(pixel_values, bool_masked_pos, masked_indices)
        if masked_indices is None and bool_masked_pos is not None:
            masked_indices = masked_indices_from(bool_masked_pos.to(pixel_values.device))
            check_num_masked(masked_indices.shape[1], num_tokens)
        visible_indices = None if masked_indices is None else visible_indices_from(masked_indices, num_tokens)

        hidden_states = self.embeddings(pixel_values, visible_indices)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        return MMEModelOutput(last_hidden_state=self.layernorm(hidden_states), visible_indices=visible_indices)


class MMEDecoder(nn.Module):
    """From features of the visible tokens to predictions for the masked ones."""

    def __init__(self, config: MMEConfig):
        super().__init__()
        width = config.decoder_hidden_size
        self.encoder_to_decoder = nn.Linear(config.hidden_size, width, bias=False)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.position_embeddings = MMESinusoidPositions(config.num_tokens, width)
        self.layers = nn.ModuleList(
            MMELayer(
                config,
                hidden_size=width,
                num_attention_heads=config.decoder_num_attention_heads,
                intermediate_size=config.decoder_intermediate_size,
            )
            for _ in range(config.decoder_num_hidden_layers)
        )
        self.layernorm = nn.LayerNorm(width, eps=config.layer_norm_eps)
        self.heads = nn.ModuleDict(
            {
                name: MMEMLP(config, width, config.motion_head_hidden_size, target["size"])
                for name, target in config.motion_targets.items()
            }
        )
        self.head_activations = nn.ModuleDict(
            {name: _HEAD_ACTIVATIONS[target["activation"]]() for name, target in config.motion_targets.items()}
        )

    def forward(
        self,
        visible_states: torch.Tensor,
        visible_indices: torch.Tensor,
        masked_indices: torch.Tensor,
        **kwargs: Unpack[TransformersKwargs],
    ) -> torch.Tensor:
        """Return predictions for the masked tokens, after their activations, targets side by side.

        Args:
            visible_states: The encoder's output, shape (batch_size, num_visible, hidden_size).
            visible_indices: Which tokens these are, shape (batch_size, num_visible).
            masked_indices: Which tokens to predict, shape (batch_size, num_masked).
            **kwargs: Passed to the attention function.

        Returns:
            Shape (batch_size, num_masked, sum of target sizes), in the order of `masked_indices`.
        """
        num_masked = masked_indices.shape[1]
        positions = self.position_embeddings(num_masked + visible_indices.shape[1]).to(self.mask_token.dtype)
        # Attention does not mind the order, so the masked tokens come first: the last block needs only them.
        hidden_states = torch.cat(
            [
                self.mask_token + positions[masked_indices],
                self.encoder_to_decoder(visible_states) + positions[visible_indices],
            ],
            dim=1,
        )  # (B, N, D)
        for layer in self.layers[:-1]:
            hidden_states = layer(hidden_states, **kwargs)
        hidden_states = self.layers[-1](hidden_states, num_queries=num_masked, **kwargs)  # (B, M, D)
        hidden_states = _cast_once_for_autocast(self.layernorm(hidden_states))
        predictions = [self.head_activations[name](head(hidden_states)) for name, head in self.heads.items()]
        return torch.cat(predictions, dim=-1)


class MMEForPreTraining(MMEPreTrainedModel):
    """The encoder with a small decoder that predicts the motion of hidden tokens."""

    # The Trainer would otherwise leave it to the model to divide the loss by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: MMEConfig):
        super().__init__(config)
        self.mme = MMEModel(config)
        self.decoder = MMEDecoder(config)
        self.post_init()

    def split_targets(self, values: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return the columns of `logits` or `labels` by target name, each of shape (..., size of the target)."""
        sizes = [target["size"] for target in self.config.motion_targets.values()]
        return dict(zip(self.config.motion_targets, values.split(sizes, dim=-1), strict=True))

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        bool_masked_pos: torch.Tensor | None = None,
        masked_indices: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        target_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MMEForPreTrainingOutput:
        """Return predictions for the masked tokens and, with `labels`, the loss.

        A batch of no clips gives loss 0 and zero gradients, so that a process without readable clips keeps step
        with the others.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            bool_masked_pos: True where a token is hidden, equally many in each clip, shape (batch_size, num_tokens).
            masked_indices: The same as numbers, ascending, int64, shape (batch_size, num_masked). One of the two is
                needed; this one avoids waiting for the device and lets the forward pass compile as one graph.
            labels: Motion of every token, float, shape (batch_size, num_tokens, sum of target sizes), targets side
                by side in the order of `config.motion_targets`. Values of tokens that do not count may be anything.
            target_mask: True where a label counts, bool, shape (batch_size, num_tokens) for all targets or
                (batch_size, num_tokens, num_targets) one by one. Default: every token counts.
            **kwargs: `output_hidden_states`, `output_attentions`, `return_dict`, and options of the attention.

        Raises:
            ValueError: If no mask is given, it hides nothing or everything, a shape does not fit, or an input is
                misspelt.
        """
        _check_input_names(self, kwargs)
        num_tokens = self.mme.check_inputs(pixel_values, bool_masked_pos, masked_indices)
        if masked_indices is None:
            if bool_masked_pos is None:
                raise ValueError("Pre-training needs bool_masked_pos or masked_indices. The processor returns both.")
            masked_indices = masked_indices_from(bool_masked_pos.to(pixel_values.device))
        if masked_indices.shape[1] == 0 and pixel_values.shape[0] > 0:
            raise ValueError(f"0 of {num_tokens} tokens are masked, so there is nothing to predict. Mask some.")
        self._check_labels(labels, target_mask, (pixel_values.shape[0], num_tokens))

        encoded = self.mme(pixel_values, masked_indices=masked_indices, **kwargs)
        logits = self.decoder(encoded.last_hidden_state, encoded.visible_indices, masked_indices, **kwargs)

        loss = target_losses = None
        if labels is not None:
            target_losses = self.target_losses(logits, labels, masked_indices, target_mask)
            loss = sum(self.config.motion_targets[name]["weight"] * value for name, value in target_losses.items())
        return MMEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            target_losses=target_losses,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def target_losses(
        self,
        logits: torch.Tensor,
        labels: torch.Tensor,
        masked_indices: torch.Tensor,
        target_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return each target's squared error, in float32 and without its weight.

        That is the mean over a token's values, 0 for tokens that do not count, summed over the masked tokens of the
        batch and divided by their number, those that do not count included. Arguments are those of `forward`.

        Source: Masked Motion Encoding, equation 1, in the published code's normalisation: its loss is
            16 * position + 54 * shape.
        """
        num_targets = len(self.config.motion_targets)
        labels = take_tokens(labels, masked_indices)  # (B, M, S)
        if target_mask is not None:
            counts = take_tokens(target_mask.bool(), masked_indices)
            counts = counts[..., None].expand(-1, -1, num_targets) if counts.dim() == 2 else counts
        num_masked = max(masked_indices.numel(), 1)
        predictions, wanted = self.split_targets(logits), self.split_targets(labels)
        losses = {}
        for index, name in enumerate(predictions):
            error = predictions[name].float() - wanted[name].float()
            if target_mask is not None:
                # Before squaring, so that a label that is not finite cannot reach the gradient through 0 * nan.
                error = error.masked_fill(~counts[..., index, None], 0.0)
            losses[name] = error.square().mean(dim=-1).sum() / num_masked
        return losses

    def _check_labels(
        self, labels: torch.Tensor | None, target_mask: torch.Tensor | None, expected: tuple[int, int]
    ) -> None:
        targets = self.config.motion_targets
        expected_labels = (*expected, sum(target["size"] for target in targets.values()))
        if labels is not None and labels.shape != expected_labels:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)}, expected (batch, tokens, values) = {expected_labels} for "
                f"the targets {', '.join(targets)}. Make the labels with the processor saved beside this model."
            )
        if target_mask is not None and target_mask.shape not in (expected, (*expected, len(targets))):
            raise ValueError(
                f"target_mask has shape {tuple(target_mask.shape)}, expected {expected} or "
                f"{(*expected, len(targets))}: (batch, tokens), or one column for each target."
            )


__all__ = ["MMEForPreTraining", "MMEForPreTrainingOutput", "MMEModel", "MMEModelOutput", "MMEPreTrainedModel"]
