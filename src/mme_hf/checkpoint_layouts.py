"""How published checkpoints name their tensors, what these become, and which sizes they tell."""

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from .modeling_mme import MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEPreTrainedModel

Tensors = Mapping[str, torch.Tensor]

# Heads are 64 values wide, but for the published ViT-H and ViT-g; no tensor's shape tells.
_HEAD_DIM = 64
_NUM_HEADS = {1280: 16, 1408: 16}
_KINDS = ("weight", "bias")
_BLOCK_TENSORS = (
    (r"norm1\.(weight|bias)", r"layernorm_before.\2"),
    (r"norm2\.(weight|bias)", r"layernorm_after.\2"),
    (r"attn\.q_bias", "attention.q_proj.bias"),
    (r"attn\.v_bias", "attention.v_proj.bias"),
    (r"attn\.qkv\.weight", "attention.qkv"),
    (r"attn\.proj\.(weight|bias)", r"attention.o_proj.\2"),
    (r"mlp\.(fc[12])\.(weight|bias)", r"mlp.\2.\3"),
)


@dataclass(frozen=True)
class CheckpointLayout:
    """How one family of published checkpoints names its tensors. A new family is one more of these in `LAYOUTS`.

    Attributes:
        name: What error messages call it.
        marker: A tensor that this layout has and the others have not.
        model_class: The model that the checkpoint becomes.
        config_from: Reads the fields of MMEConfig off the tensors' shapes.
        renames: (pattern, replacement) pairs; a pattern must match a whole published name, and the first that
            does gives our name. Names ending in `.qkv` are split into three.
        left_out: Names the tensors of such a checkpoint that the model has no use for; it must have them all the same.
    """

    name: str
    marker: str
    model_class: type[MMEPreTrainedModel]
    config_from: Callable[[Tensors], dict[str, Any]]
    renames: tuple[tuple[str, str], ...]
    left_out: Callable[[Tensors], list[str]] = lambda tensors: []


def our_name(published_name: str, renames: Iterable[tuple[str, str]]) -> str | None:
    """Return what a published tensor is called here, or None if the layout has no place for it."""
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, published_name):
            return match.expand(replacement)
    return None


def _block_renames(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the renames of transformer blocks, `published` and `ours` being what stands before the block's number."""
    return tuple((rf"{published}\.(\d+)\.{old}", rf"{ours}.\1.{new}") for old, new in _BLOCK_TENSORS)


def _encoder_renames(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the renames of the encoder, `published` and `ours` being the prefixes with their dots."""
    return (
        (rf"{published}patch_embed\.proj\.(weight|bias)", rf"{ours}embeddings.patch_embeddings.projection.\1"),
        *_block_renames(rf"{published}blocks", f"{ours}layers"),
        (rf"{published}norm\.(weight|bias)", rf"{ours}layernorm.\1"),
    )


def _num_blocks(tensors: Tensors, prefix: str) -> int:
    """Return how many transformer blocks are named `prefix`.0, `prefix`.1, ..."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _shape(tensors: Tensors, name: str, num_sides: int) -> tuple[int, ...]:
    """Return a tensor's shape, or say that the checkpoint lacks it, or has another."""
    if name not in tensors:
        raise ValueError(f"The checkpoint lacks the tensor {name}, which tells a size of the model.")
    shape = tuple(tensors[name].shape)
    if len(shape) != num_sides:
        raise ValueError(f"The tensor {name} has the shape {shape}; expected {num_sides} sides, which tell sizes.")
    return shape


def _num_heads(width: int) -> int:
    return _NUM_HEADS.get(width, max(width // _HEAD_DIM, 1))


def _encoder_config(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Return MMEConfig fields of the encoder, whose tensors' names begin with `prefix`."""
    projection = f"{prefix}patch_embed.proj.weight"
    width, num_channels, tubelet_size, patch_height, patch_width = _shape(tensors, projection, 5)
    if patch_height != patch_width:
        raise ValueError(
            f"{projection} has patches of {patch_height} x {patch_width} px. MMEConfig.patch_size is one number: only "
            "square patches convert."
        )
    return {
        "patch_size": patch_height,
        "tubelet_size": tubelet_size,
        "num_channels": num_channels,
        "hidden_size": width,
        "num_hidden_layers": _num_blocks(tensors, f"{prefix}blocks"),
        "num_attention_heads": _num_heads(width),
        "intermediate_size": _shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight", 2)[0],
        "qkv_bias": f"{prefix}blocks.0.attn.q_bias" in tensors,
    }


def _config_from_mme_pretraining(tensors: Tensors) -> dict[str, Any]:
    encoder = _encoder_config(tensors, "encoder.")
    # Activations and weights are the published model's; no tensor tells them.
    shape_size = _shape(tensors, "decoder.0.head.0.2.weight", 2)[0]
    position_size = _shape(tensors, "decoder.0.head.1.2.weight", 2)[0]
    return {
        **encoder,
        "decoder_hidden_size": _shape(tensors, "decoder.0.norm.weight", 1)[0],
        "decoder_num_hidden_layers": _num_blocks(tensors, "decoder.0.blocks"),
        "decoder_num_attention_heads": max(encoder["num_attention_heads"] // 2, 1),
        "decoder_intermediate_size": _shape(tensors, "decoder.0.blocks.0.mlp.fc1.weight", 2)[0],
        "motion_head_hidden_size": _shape(tensors, "decoder.0.head.0.0.weight", 2)[0],
        "motion_targets": {
            "shape": {"size": shape_size, "activation": "sigmoid", "weight": 54.0, "visible_weight": 0.0},
            "position": {"size": position_size, "activation": "tanh", "weight": 16.0, "visible_weight": 0.0},
        },
    }


def _config_from_classifier(tensors: Tensors) -> dict[str, Any]:
    # The published code has one of the two: a norm of the mean of all tokens, or of all tokens to take the first.
    takes_first_token = any(name.startswith("norm.") for name in tensors) and not any(
        name.startswith("fc_norm.") for name in tensors
    )
    return {
        **_encoder_config(tensors, ""),
        "num_labels": _shape(tensors, "head.weight", 2)[0],
        "use_mean_pooling": not takes_first_token,
    }


def _config_from_videomae_pretraining(tensors: Tensors) -> dict[str, Any]:
    return _encoder_config(tensors, "encoder.")


def _decoder_of_videomae(tensors: Tensors) -> list[str]:
    """Return the names of VideoMAE's decoder: it predicts pixels, which no head of ours does in the same way."""
    parts = [f"{part}.{kind}" for part in ("norm1", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2") for kind in _KINDS]
    parts.append("attn.qkv.weight")
    if "decoder.blocks.0.attn.q_bias" in tensors:
        parts += ["attn.q_bias", "attn.v_bias"]
    blocks = range(_num_blocks(tensors, "decoder.blocks"))
    return [
        "encoder_to_decoder.weight",
        "mask_token",
        *(f"decoder.blocks.{number}.{part}" for number in blocks for part in parts),
        *(f"decoder.{part}.{kind}" for part in ("norm", "head") for kind in _KINDS),
    ]


LAYOUTS: tuple[CheckpointLayout, ...] = (
    CheckpointLayout(
        name="MME pre-training",
        marker="decoder.0.head.1.2.weight",
        model_class=MMEForPreTraining,
        config_from=_config_from_mme_pretraining,
        renames=(
            *_encoder_renames(r"encoder\.", "mme."),
            (r"encoder_to_decoder\.0\.weight", "decoder.encoder_to_decoder.weight"),
            (r"mask_token", "decoder.mask_token"),
            *_block_renames(r"decoder\.0\.blocks", "decoder.layers"),
            (r"decoder\.0\.norm\.(weight|bias)", r"decoder.layernorm.\1"),
            (r"decoder\.0\.head\.0\.0\.(weight|bias)", r"decoder.heads.shape.fc1.\1"),
            (r"decoder\.0\.head\.0\.2\.(weight|bias)", r"decoder.heads.shape.fc2.\1"),
            (r"decoder\.0\.head\.1\.0\.(weight|bias)", r"decoder.heads.position.fc1.\1"),
            (r"decoder\.0\.head\.1\.2\.(weight|bias)", r"decoder.heads.position.fc2.\1"),
        ),
    ),
    CheckpointLayout(
        name="MME or VideoMAE classifier",
        marker="head.weight",
        model_class=MMEForVideoClassification,
        config_from=_config_from_classifier,
        renames=(
            *_encoder_renames("", "mme."),
            (r"fc_norm\.(weight|bias)", r"fc_norm.\1"),
            (r"head\.(weight|bias)", r"classifier.\1"),
        ),
    ),
    CheckpointLayout(
        name="VideoMAE pre-training",
        marker="decoder.head.weight",
        model_class=MMEModel,
        config_from=_config_from_videomae_pretraining,
        renames=_encoder_renames(r"encoder\.", ""),
        left_out=_decoder_of_videomae,
    ),
)

__all__ = ["LAYOUTS", "CheckpointLayout", "our_name"]
