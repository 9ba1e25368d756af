"""Masked Motion Encoding models: an encoder of video tokens, its pre-training to predict hidden motion, a classifier.

Shapes in comments and docstrings: B clips, T frames, C channels, H W pixels, N tokens of a clip, M of them masked and
V = N - M visible, D features, S values predicted per token. Tokens are numbered by tubelet, then row, then column.
`bool_masked_pos` is True where a token is hidden; `target_mask` is True where a label counts.
"""

import math
from collections.abc import Mapping
from os import PathLike
from typing import ClassVar

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.masking_utils import create_bidirectional_mask
from transformers.modeling_outputs import BaseModelOutputWithPooling, ImageClassifierOutput
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, logging
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .attention_mme import MMEAttention, MMEAttentivePooler, MMELayer
from .configuration_mme import MMEConfig
from .layers_mme import MMEMLP, MMEEmbeddings, MMETubeletProjection, cast_once_for_autocast
from .names_mme import check_names
from .outputs_mme import MMEForPreTrainingOutput, MMEModelOutput
from .tokens_mme import (
    MMESinusoidPositions,
    check_num_masked,
    first_of_tokens,
    masked_indices_from,
    mean_of_tokens,
    sinusoid_table,
    take_tokens,
    token_mask_from,
    visible_indices_from,
)
from .videomae_weights_mme import (
    VIDEOMAE_KEY_MAPPING,
    VIDEOMAE_KEYS_LEFT_OUT,
    config_dict_at,
    config_dict_of_videomae,
)

logger = logging.get_logger(__name__)

_INPUT_NAMES = frozenset(
    ("pixel_values", "bool_masked_pos", "masked_indices", "frame_mask", "labels", "target_mask", "return_dict")
) | frozenset(TransformersKwargs.__annotations__)
# The published classifier's start: 0.001 of a deviation of 0.02.
CLASSIFIER_STD = 0.02 * 0.001
_PRETRAINING_HEADS = [r"^decoder\.", r"^visible_heads\."]
_HEADS = [*_PRETRAINING_HEADS, r"^(pooler|fc_norm|classifier)\."]
_FINAL_LAYERNORM = {"layernorm.weight", "layernorm.bias"}
_HEAD_ACTIVATIONS: dict[str, type[nn.Module]] = {"linear": nn.Identity, "sigmoid": nn.Sigmoid, "tanh": nn.Tanh}


def _share_of_update(labels: torch.Tensor, num_items_in_batch: torch.Tensor | int) -> torch.Tensor:
    """Return the share that a batch's labels have of all in an update: of its loss, if that is to be one large batch's.

    Counted as the Trainer counts, which leaves out -100. An update of no clips has no labels, and not nan for a share.
    """
    num_items = torch.as_tensor(num_items_in_batch, device=labels.device)
    return labels.ne(-100).sum() / num_items.clamp(min=1)


def _check_input_names(model: nn.Module, kwargs: dict) -> None:
    """Raise ValueError for a misspelt input, which would be taken for an option of some attention."""
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
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = VIDEOMAE_KEYS_LEFT_OUT

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *model_args, config=None, **kwargs):
        """Return the model in a folder or on the Hub: one of ours, or a VideoMAE of transformers.

        Of a VideoMAE all that the model has a place for is taken: the encoder, and a classifier its head. A new
        classifier averages tokens, unless `use_mean_pooling` says otherwise. Arguments are those of
        [`PreTrainedModel.from_pretrained`].
        """
        of_videomae = config_dict_of_videomae(pretrained_model_name_or_path, kwargs)
        if of_videomae is None:
            return super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        if isinstance(config, str | PathLike):
            values = config_dict_at(config, kwargs)
        elif getattr(config, "model_type", None) == "videomae":
            values = config.to_dict()
        else:
            values = of_videomae if config is None else None
        if values is not None:
            # Not the configuration's to take: it would keep "auto" as if it were a type.
            precision = {name: kwargs.pop(name) for name in ("dtype", "torch_dtype") if name in kwargs}
            config, kwargs = cls.config_class.from_dict(values, return_unused_kwargs=True, **kwargs)
            kwargs.update(precision)
        kwargs["key_mapping"] = VIDEOMAE_KEY_MAPPING
        loaded = super().from_pretrained(pretrained_model_name_or_path, *model_args, config=config, **kwargs)
        # Or it would be saved under VideoMAE's names, which a configuration of ours does not go with.
        (loaded[0] if isinstance(loaded, tuple) else loaded)._weight_conversions = None
        return loaded

    def post_init(self) -> None:
        """Finish building, as transformers has it, but report every key of a checkpoint that this model leaves out."""
        super().post_init()
        # transformers adds what parts ignore. An encoder alone has no use for heads; a model with heads misses them.
        self._keys_to_ignore_on_load_unexpected = set(type(self)._keys_to_ignore_on_load_unexpected)

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, MMEClassifierHead):
            init.trunc_normal_(module.weight, std=CLASSIFIER_STD)
            init.zeros_(module.bias)
            return
        if isinstance(module, nn.Linear | MMETubeletProjection):
            # With transformers' usual deviation of 0.02 the blocks of a narrow model start so close to linear that it
            # does not find out how pixels move: `benchmarks/learns_motion.py`.
            bound = (6 / (module.weight.shape[0] + module.weight[0].numel())) ** 0.5  # Xavier's, for a matrix
            init.uniform_(module.weight, -bound, bound)
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
        elif isinstance(module, MMEAttentivePooler):
            init.trunc_normal_(module.query, mean=0.0, std=self.config.initializer_range)


class MMEModel(MMEPreTrainedModel):
    """The encoder: tokens of a clip, all or only the visible ones, to features.

    Example:
        >>> model = MMEModel(MMEConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4))
        >>> model(torch.zeros(1, 16, 3, 224, 224)).last_hidden_state.shape
        torch.Size([1, 1568, 32])
    """

    # Of a checkpoint with heads the encoder is all that is wanted here; what else it has is no news.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [*VIDEOMAE_KEYS_LEFT_OUT, *_HEADS]

    @classmethod
    def from_pretrained(cls, *args, output_loading_info: bool = False, **kwargs):
        """Return the encoder in a checkpoint, as [`MMEPreTrainedModel.from_pretrained`] does.

        A classifier that averages tokens has no final LayerNorm before; its encoder is returned without one, so that
        features are the tokens that it averages.
        """
        model, info = super().from_pretrained(*args, output_loading_info=True, **kwargs)
        if set(info["missing_keys"]) == _FINAL_LAYERNORM:
            logger.warning(
                "The encoder of this checkpoint has no final LayerNorm: the classifier it is from averages tokens "
                "without one. It is left out, not initialized."
            )
            model.layernorm = None
            info["missing_keys"] = set()
        return (model, info) if output_loading_info else model

    def __init__(self, config: MMEConfig, has_final_layernorm: bool = True):
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
        # A classifier that averages tokens normalises their mean instead.
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps) if has_final_layernorm else None
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
        frame_mask: torch.Tensor | None = None,
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
            frame_mask: True where a frame is real, False where it pads a shorter clip to the length of the batch, bool,
                shape (batch_size, num_frames). Tubelets must be all real or all padding. Features of real tokens are
                those of the clip without padding, wherever that is; of padding they mean nothing. Not with masks.
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

        token_mask = position_indices = None
        if frame_mask is not None:
            if masked_indices is not None:
                raise ValueError("frame_mask cannot be combined with masked tokens. Mask clips of equal length.")
            token_mask, position_indices = self.token_mask(pixel_values, frame_mask)
            # Padding that is not finite would reach real tokens, and gradients, as 0 * nan.
            is_padding = ~frame_mask.to(pixel_values.device)[..., None, None, None]
            pixel_values = pixel_values.masked_fill(is_padding, 0.0)
        hidden_states = self.embeddings(pixel_values, visible_indices, position_indices)
        if token_mask is not None:
            kwargs["attention_mask"] = create_bidirectional_mask(self.config, hidden_states, token_mask)
        for layer in self.layers:
            hidden_states = layer(hidden_states, **kwargs)
        if self.layernorm is not None:
            hidden_states = self.layernorm(hidden_states)
        return MMEModelOutput(last_hidden_state=hidden_states, visible_indices=visible_indices, token_mask=token_mask)

    def token_mask(self, pixel_values: torch.Tensor, frame_mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return which tokens are real, bool, and where they are in the clip without padding, (batch_size, num_tokens).

        Raises:
            ValueError: If `frame_mask` does not fit the clips, a tubelet is part real and part padding, or a clip has
                no real frame.
        """
        _, rows, columns = self.embeddings.patch_embeddings.token_grid(pixel_values)
        if not isinstance(frame_mask, torch.Tensor):
            raise ValueError(
                f"frame_mask is a {type(frame_mask).__name__}, expected a tensor. mme_hf.pad_clips makes it."
            )
        if frame_mask.shape != pixel_values.shape[:2] or frame_mask.dtype != torch.bool:
            raise ValueError(
                f"frame_mask has shape {tuple(frame_mask.shape)} and dtype {frame_mask.dtype}, expected torch.bool of "
                f"shape (batch, frames) = {tuple(pixel_values.shape[:2])}: True where a frame is real."
            )
        return token_mask_from(frame_mask.to(pixel_values.device), self.config.tubelet_size, rows * columns)

    @can_return_tuple
    def get_video_features(
        self,
        pixel_values: torch.Tensor,
        layer: int = -1,
        frame_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> BaseModelOutputWithPooling:
        """Return features of whole clips.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            layer: Which block's output, from 1 to `num_hidden_layers`, or counted from the end; 0 is the first block's
                input. That of the last one is after the final LayerNorm, the others are before any.
            frame_mask: True where a frame is real, as in `forward`.
            **kwargs: As in `forward`.

        Returns:
            `last_hidden_state`, tokens of that layer, shape (batch_size, num_tokens, hidden_size), and `pooler_output`,
            the mean of each clip's tokens, real ones alone, shape (batch_size, hidden_size).

        Raises:
            ValueError: If there is no such layer.
        """
        num_layers = self.config.num_hidden_layers
        if not -num_layers - 1 <= layer <= num_layers:
            raise ValueError(f"layer ({layer}) must be from {-num_layers - 1} to {num_layers}.")
        is_last = layer in (-1, num_layers)
        if not is_last:
            kwargs["output_hidden_states"] = True
        kwargs["return_dict"] = True  # the decorator makes the tuple
        outputs = self(pixel_values, frame_mask=frame_mask, **kwargs)
        tokens = outputs.last_hidden_state if is_last else outputs.hidden_states[layer]
        return BaseModelOutputWithPooling(
            last_hidden_state=tokens,
            pooler_output=mean_of_tokens(tokens, outputs.token_mask),
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


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
        hidden_states = cast_once_for_autocast(self.layernorm(hidden_states))
        predictions = [self.head_activations[name](head(hidden_states)) for name, head in self.heads.items()]
        return torch.cat(predictions, dim=-1)


class MMEForPreTraining(MMEPreTrainedModel):
    """The encoder with a small decoder that predicts the motion of hidden tokens.

    With `labels`, one layer on the encoder's features predicts the visible tokens too, of targets with a
    `visible_weight`: the motion that can be seen has to be measured before that of hidden tokens can be told from it.
    """

    _fsdp_plan: ClassVar[dict[str, str]] = {"decoder.layers.*": "free_full_weight"}

    def __init__(self, config: MMEConfig):
        super().__init__(config)
        self.mme = MMEModel(config)
        self.decoder = MMEDecoder(config)
        self.visible_heads = nn.ModuleDict(
            {
                name: nn.Linear(config.hidden_size, target["size"])
                for name, target in config.motion_targets.items()
                if target.get("visible_weight")
            }
        )
        self.post_init()

    @property
    def loss_weights(self) -> dict[str, float]:
        """Weight of each of `target_losses` in the loss: those of a target add up to its weight."""
        weights = {}
        for name, target in self.config.motion_targets.items():
            visible = target.get("visible_weight", 0.0)
            weights[name] = target["weight"] / (1 + visible)
            if name in self.visible_heads:
                weights[f"visible_{name}"] = target["weight"] * visible / (1 + visible)
        return weights

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
                by side in the order of `config.motion_targets`. Values of tokens that do not count may be anything;
                visible tokens count where a target has a `visible_weight`.
            target_mask: True where a label counts, bool, shape (batch_size, num_tokens) for all targets or
                (batch_size, num_tokens, num_targets) one by one. Default: every token counts.
            **kwargs: `num_items_in_batch`, which the Trainer gives: how many numbers the `labels` of all batches of
                an update have; `loss` is then multiplied by the share that this batch has of them, so that it adds up
                to the loss of one large batch. `target_losses` stay those of this batch. And `output_hidden_states`,
                `output_attentions`, `return_dict`, and options of the attention.

        Raises:
            ValueError: If no mask is given, it hides nothing or everything, a shape does not fit, or an input is
                misspelt.
        """
        _check_input_names(self, kwargs)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        num_tokens = self.mme.check_inputs(pixel_values, bool_masked_pos, masked_indices)
        if masked_indices is None:
            if bool_masked_pos is None:
                raise ValueError("Pre-training needs bool_masked_pos or masked_indices. The processor returns both.")
            masked_indices = masked_indices_from(bool_masked_pos.to(pixel_values.device))
        if masked_indices.shape[1] == 0 and pixel_values.shape[0] > 0:
            raise ValueError(f"0 of {num_tokens} tokens are masked, so there is nothing to predict. Mask some.")
        self._check_labels(labels, target_mask, (pixel_values.shape[0], num_tokens))

        encoded = self.mme(pixel_values, masked_indices=masked_indices, return_dict=True, **kwargs)
        logits = self.decoder(encoded.last_hidden_state, encoded.visible_indices, masked_indices, **kwargs)

        loss = target_losses = None
        if labels is not None:
            target_losses = self.target_losses(self.split_targets(logits), labels, masked_indices, target_mask)
            target_losses |= self._visible_losses(encoded, labels, target_mask)
            loss = sum(weight * target_losses[name] for name, weight in self.loss_weights.items())
            if num_items_in_batch is not None:
                loss = loss * _share_of_update(labels, num_items_in_batch).to(loss.device)
        return MMEForPreTrainingOutput(
            loss=loss,
            logits=logits,
            target_losses=target_losses,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def target_losses(
        self,
        predictions: Mapping[str, torch.Tensor],
        labels: torch.Tensor,
        indices: torch.Tensor,
        target_mask: torch.Tensor | None = None,
    ) -> dict[str, torch.Tensor]:
        """Return the squared error of each target that is predicted, in float32 and without its weight.

        That is the mean over a token's values, 0 for tokens that do not count, summed over the predicted tokens of the
        batch and divided by their number, those that do not count included.

        Args:
            predictions: Target name -> values, shape (batch_size, num_predicted, size of the target).
            labels: As in `forward`.
            indices: Which tokens are predicted, int64, shape (batch_size, num_predicted).
            target_mask: As in `forward`.

        Source: Masked Motion Encoding, equation 1, in the published code's normalisation: its loss is
            16 * position + 54 * shape, of masked tokens.
        """
        targets = list(self.config.motion_targets)
        wanted = self.split_targets(take_tokens(labels, indices))
        if target_mask is not None:
            counts = take_tokens(target_mask.bool(), indices)
            counts = counts[..., None].expand(-1, -1, len(targets)) if counts.dim() == 2 else counts
        num_predicted = max(indices.numel(), 1)
        losses = {}
        for name, values in predictions.items():
            error = values.float() - wanted[name].float()
            if target_mask is not None:
                # Before squaring, so that a label that is not finite cannot reach the gradient through 0 * nan.
                error = error.masked_fill(~counts[..., targets.index(name), None], 0.0)
            losses[name] = error.square().mean(dim=-1).sum() / num_predicted
        return losses

    def _visible_losses(
        self, encoded: MMEModelOutput, labels: torch.Tensor, target_mask: torch.Tensor | None
    ) -> dict[str, torch.Tensor]:
        features = cast_once_for_autocast(encoded.last_hidden_state)
        predictions = {
            name: self.decoder.head_activations[name](head(features)) for name, head in self.visible_heads.items()
        }
        losses = self.target_losses(predictions, labels, encoded.visible_indices, target_mask)
        return {f"visible_{name}": loss for name, loss in losses.items()}

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


class MMEClassifierHead(nn.Linear):
    """The last layer of a classifier; a class of its own because it has a start of its own."""


class MMEForVideoClassification(MMEPreTrainedModel):
    """The encoder with a classifier on top: the mean of its tokens, or an attentive pooler, a LayerNorm, one layer.

    Loads from a folder of pre-training, whose decoder and layers for visible tokens are left out and whose head is new,
    and from VideoMAE checkpoints.
    """

    # The final LayerNorm too: where tokens are averaged, their mean is normalised instead.
    _keys_to_ignore_on_load_unexpected: ClassVar[list[str]] = [
        *VIDEOMAE_KEYS_LEFT_OUT,
        *_PRETRAINING_HEADS,
        r"^(mme\.)?layernorm\.",
    ]

    def __init__(self, config: MMEConfig):
        super().__init__(config)
        self.num_labels = config.num_labels
        averages_tokens = config.use_mean_pooling and not config.use_attentive_pooling
        self.mme = MMEModel(config, has_final_layernorm=not averages_tokens)
        # CODEPATH: classifiers of `--use_attentive_pooling`; published ones have no pooler.
        self.pooler = MMEAttentivePooler(config) if config.use_attentive_pooling else None
        takes_first_token = not (config.use_mean_pooling or config.use_attentive_pooling)
        self.fc_norm = None if takes_first_token else nn.LayerNorm(config.hidden_size, eps=config.fc_norm_eps)
        self.classifier = MMEClassifierHead(config.hidden_size, config.num_labels)
        self.post_init()

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        frame_mask: torch.Tensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> ImageClassifierOutput:
        """Return logits, shape (batch_size, num_labels), and, with `labels`, the loss.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            labels: Class numbers, int64, shape (batch_size,); with `problem_type` "single_label_classification" also
                the share of each class, as mixed clips have it, float, shape (batch_size, num_labels). With
                "multi_label_classification" 0 or 1 for each class, with "regression" values, both float, of that
                shape, or (batch_size,) for one label. Without a `problem_type` it is told from the first labels, as
                everywhere in transformers.
            frame_mask: True where a frame is real, bool, shape (batch_size, num_frames), for clips padded to a common
                length. Padding changes no logits.
            **kwargs: `num_items_in_batch`, which the Trainer gives: how many numbers the `labels` of all batches of
                an update have, which the loss is then divided by instead of those of this batch;
                `output_hidden_states`, `output_attentions`, `return_dict`, and options of the attention.

        Raises:
            ValueError: If a shape does not fit, or an input is misspelt.
        """
        _check_input_names(self, kwargs)
        num_items_in_batch = kwargs.pop("num_items_in_batch", None)
        self.mme.check_inputs(pixel_values, None, None)
        self._check_labels(labels, pixel_values.shape[0])
        encoded = self.mme(pixel_values, frame_mask=frame_mask, return_dict=True, **kwargs)
        logits = self.classifier(self.pool(encoded.last_hidden_state, encoded.token_mask))
        return ImageClassifierOutput(
            loss=None if labels is None else self._loss(logits.float(), labels.to(logits.device), num_items_in_batch),
            logits=logits,
            hidden_states=encoded.hidden_states,
            attentions=encoded.attentions,
        )

    def pool(self, tokens: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return what the classifier is applied to, shape (batch_size, hidden_size).

        Args:
            tokens: Of the encoder, shape (batch_size, num_tokens, hidden_size).
            token_mask: True where a token is real, shape (batch_size, num_tokens); None for all.
        """
        if self.fc_norm is None:
            return first_of_tokens(tokens, token_mask)
        pooled = mean_of_tokens(tokens, token_mask) if self.pooler is None else self.pooler(tokens, token_mask)
        return self.fc_norm(pooled)

    def _check_labels(self, labels: torch.Tensor | None, batch_size: int) -> None:
        if labels is None:
            return
        is_number_of_class = not labels.is_floating_point()
        # No set: its hashes would bind a compiled graph to this batch size.
        expected = [(batch_size,) if is_number_of_class else (batch_size, self.num_labels)]
        if self.num_labels == 1:
            expected += [(batch_size,), (batch_size, 1)]
        if labels.shape not in expected:
            raise ValueError(
                f"labels has shape {tuple(labels.shape)} and dtype {labels.dtype}, expected whole numbers of shape "
                f"(batch,) = {(batch_size,)}, one class for each clip, or floating point ones of shape (batch, labels) "
                f"= {(batch_size, self.num_labels)}."
            )

    def _loss(
        self, logits: torch.Tensor, labels: torch.Tensor, num_items_in_batch: torch.Tensor | int | None
    ) -> torch.Tensor:
        if labels.shape[0] == 0:
            # Its mean would be nan, and a process without clips must keep step with the others.
            return logits.sum()
        is_mixed = self.config.problem_type == "single_label_classification" and labels.is_floating_point()
        if is_mixed:
            loss = nn.functional.cross_entropy(logits, labels)
        else:
            loss = self.loss_function(labels, logits, self.config, num_items_in_batch=num_items_in_batch)
        # The call above has told a problem_type that was not given.
        if num_items_in_batch is None or (self.config.problem_type == "single_label_classification" and not is_mixed):
            return loss
        # transformers divides by num_items_in_batch for class numbers alone, and the Trainer relies on it for all.
        return loss * _share_of_update(labels, num_items_in_batch)


__all__ = ["MMEForPreTraining", "MMEForVideoClassification", "MMEModel", "MMEPreTrainedModel"]
