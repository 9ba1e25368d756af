"""Published checkpoints to our models: read the file, tell its layout, rename its tensors, account for every one."""

import argparse
import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .configuration_mme import MMEConfig, check_config_names
from .modeling_mme import MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEPreTrainedModel

StateDict = dict[str, torch.Tensor]

# ViT's rule, for the head counts that no tensor's shape tells.
_HEAD_DIM = 64
# The published files keep their state dict under one of these keys.
_STATE_DICT_KEYS = ("model", "module")


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
        left_out: Patterns of tensors that the model has no place for and does not need.
    """

    name: str
    marker: str
    model_class: type[MMEPreTrainedModel]
    config_from: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]
    renames: tuple[tuple[str, str], ...]
    left_out: tuple[str, ...] = ()


@dataclass(frozen=True)
class ConvertedCheckpoint:
    """A published checkpoint as ours.

    Attributes:
        model: In evaluation mode, in the checkpoint's floating point type.
        layout: Name of the layout that it had.
        left_out: Published tensors that are not in the model.
    """

    model: MMEPreTrainedModel
    layout: str
    left_out: tuple[str, ...]


def _block_renames(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the renames of transformer blocks, `published` and `ours` being what stands before the block's number."""
    return tuple(
        (rf"{published}\.(\d+)\.{old}", rf"{ours}.\1.{new}")
        for old, new in (
            (r"norm1\.(weight|bias)", r"layernorm_before.\2"),
            (r"norm2\.(weight|bias)", r"layernorm_after.\2"),
            (r"attn\.q_bias", "attention.q_proj.bias"),
            (r"attn\.v_bias", "attention.v_proj.bias"),
            (r"attn\.qkv\.weight", "attention.qkv"),
            (r"attn\.proj\.(weight|bias)", r"attention.o_proj.\2"),
            (r"mlp\.(fc[12])\.(weight|bias)", r"mlp.\2.\3"),
        )
    )


def _num_blocks(tensors: Mapping[str, torch.Tensor], prefix: str) -> int:
    """Return how many transformer blocks are named `prefix`.0, `prefix`.1, ..."""
    numbers = [int(match[1]) for name in tensors if (match := re.match(rf"{re.escape(prefix)}\.(\d+)\.", name))]
    return max(numbers, default=-1) + 1


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...]:
    """Return a tensor's shape, or say that the checkpoint lacks it."""
    if name not in tensors:
        raise ValueError(f"The checkpoint lacks the tensor {name}, which tells a size of the model.")
    return tuple(tensors[name].shape)


def _encoder_config(tensors: Mapping[str, torch.Tensor], prefix: str) -> dict[str, Any]:
    """Return the MMEConfig fields of an encoder whose tensors' names begin with `prefix`."""
    name = f"{prefix}patch_embed.proj.weight"
    width, num_channels, tubelet_size, patch_height, patch_width = _shape(tensors, name)
    if patch_height != patch_width:
        raise ValueError(
            f"{name} has patches of {patch_height} x {patch_width} px. MMEConfig.patch_size is one number: only square "
            "patches convert."
        )
    return {
        "patch_size": patch_height,
        "tubelet_size": tubelet_size,
        "num_channels": num_channels,
        "hidden_size": width,
        "num_hidden_layers": _num_blocks(tensors, f"{prefix}blocks"),
        "num_attention_heads": max(width // _HEAD_DIM, 1),
        "intermediate_size": _shape(tensors, f"{prefix}blocks.0.mlp.fc1.weight")[0],
        "qkv_bias": f"{prefix}blocks.0.attn.q_bias" in tensors,
    }


def _config_from_videomae_pretraining(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return _encoder_config(tensors, "encoder.")


def _config_from_classifier(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    return {**_encoder_config(tensors, ""), "num_labels": _shape(tensors, "head.weight")[0]}


def _config_from_mme_pretraining(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return MMEConfig fields for the published pre-training layout."""
    width = _shape(tensors, "encoder.patch_embed.proj.weight")[0]
    decoder_width = _shape(tensors, "decoder.0.norm.weight")[0]
    # Activations and weights are the published model's; no tensor tells them.
    shape_size = _shape(tensors, "decoder.0.head.0.2.weight")[0]
    position_size = _shape(tensors, "decoder.0.head.1.2.weight")[0]
    return {
        **_encoder_config(tensors, "encoder."),
        "decoder_hidden_size": decoder_width,
        "decoder_num_hidden_layers": _num_blocks(tensors, "decoder.0.blocks"),
        "decoder_num_attention_heads": max(width // _HEAD_DIM // 2, 1),
        "decoder_intermediate_size": _shape(tensors, "decoder.0.blocks.0.mlp.fc1.weight")[0],
        "motion_head_hidden_size": _shape(tensors, "decoder.0.head.0.0.weight")[0],
        "motion_targets": {
            "shape": {"size": shape_size, "activation": "sigmoid", "weight": 54.0},
            "position": {"size": position_size, "activation": "tanh", "weight": 16.0},
        },
    }


def _encoder_renames(published: str, ours: str) -> tuple[tuple[str, str], ...]:
    """Return the renames of an encoder, `published` and `ours` being what stands before its names."""
    published = re.escape(published)
    return (
        (rf"{published}patch_embed\.proj\.(weight|bias)", rf"{ours}embeddings.patch_embeddings.projection.\1"),
        *_block_renames(rf"{published}blocks", f"{ours}layers"),
        (rf"{published}norm\.(weight|bias)", rf"{ours}layernorm.\1"),
    )


LAYOUTS: tuple[CheckpointLayout, ...] = (
    CheckpointLayout(
        name="MME pre-training",
        marker="decoder.0.head.1.2.weight",
        model_class=MMEForPreTraining,
        config_from=_config_from_mme_pretraining,
        renames=(
            *_encoder_renames("encoder.", "mme."),
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
        name="VideoMAE pre-training",
        marker="decoder.head.weight",
        model_class=MMEModel,
        config_from=_config_from_videomae_pretraining,
        renames=_encoder_renames("encoder.", ""),
        # It predicts pixels, through one linear layer where ours has two.
        left_out=(
            r"encoder_to_decoder\.weight",
            r"mask_token",
            r"decoder\.blocks\.\d+\.(norm[12]|attn|mlp)\..+",
            r"decoder\.(norm|head)\.(weight|bias)",
        ),
    ),
    CheckpointLayout(
        name="MME or VideoMAE classifier",
        marker="head.weight",
        model_class=MMEForVideoClassification,
        config_from=_config_from_classifier,
        renames=(
            *_encoder_renames("", "mme.")[:-1],  # the mean of the tokens is normalised, not they
            (r"fc_norm\.(weight|bias)", r"fc_norm.\1"),
            (r"head\.(weight|bias)", r"classifier.\1"),
        ),
    ),
)


def convert_checkpoint(path: str | os.PathLike, **config_overrides: Any) -> MMEPreTrainedModel:
    """Return our model with the weights of a published checkpoint.

    Sizes are read off the tensors. What no tensor tells is the published model's, unless given in
    `config_overrides`: heads of 64 values in the encoder and half as many heads in the decoder (12 and 6 for ViT-B),
    224 px frames, 16 of them. The targets keep the published activations (sigmoid for shape, tanh for position) and
    weights (54 and 16). A pre-training checkpoint of VideoMAE becomes its encoder, without the decoder.

    Args:
        path: A `.pth` or `.pt` file with a state dict under "model" or "module" (as DeepSpeed's
            mp_rank_00_model_states.pt has it) or by itself, or a `.safetensors` file. No code in it is run.
        **config_overrides: Fields of [`MMEConfig`], such as `num_attention_heads`, `image_size` or `id2label`.

    Returns:
        [`MMEForPreTraining`], [`MMEForVideoClassification`] or, of VideoMAE's pre-training, [`MMEModel`], in evaluation
        mode, in the checkpoint's floating point type.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known layout, an override is no field of MMEConfig, or a tensor is unknown,
            missing or of the wrong shape; names it.
    """
    return read_checkpoint(path, **config_overrides).model


def read_checkpoint(path: str | os.PathLike, **config_overrides: Any) -> ConvertedCheckpoint:
    """Return what `convert_checkpoint` does, with the layout that was found and the tensors that were left out."""
    check_config_names(config_overrides)
    tensors = _read_tensors(path)
    layout = next((layout for layout in LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        known = ", ".join(f"{layout.name} (has {layout.marker})" for layout in LAYOUTS)
        raise ValueError(
            f"{path}: the layout is not known; its first tensors are {sorted(tensors)[:5]}. Known layouts: {known}."
        )
    left_out = [name for name in tensors if any(re.fullmatch(pattern, name) for pattern in layout.left_out)]
    model = layout.model_class(MMEConfig(**_fields(layout.config_from(tensors), config_overrides)))
    renamed = _renamed({name: tensor for name, tensor in tensors.items() if name not in left_out}, layout, path)
    _check_tensors(renamed, model.state_dict(), path)
    model.load_state_dict({name: tensor for name, (_, tensor) in renamed.items()})
    floating_types = {tensor.dtype for tensor in tensors.values()}
    if len(floating_types) == 1:
        model.to(floating_types.pop())
    return ConvertedCheckpoint(model.eval(), layout.name, tuple(left_out))


def _fields(told: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    # Names of the classes say how many there are; both at once would have to agree.
    labels = overrides.get("id2label")
    if labels is not None and len(labels) != told.get("num_labels", len(labels)):
        raise ValueError(f"id2label names {len(labels)} classes; the checkpoint has {told['num_labels']}.")
    return {**{name: value for name, value in told.items() if labels is None or name != "num_labels"}, **overrides}


def _read_tensors(path: str | os.PathLike) -> StateDict:
    """Return the state dict of a published file, loaded without running any code in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file.")
    if Path(path).suffix == ".safetensors":
        try:
            return load_file(path)
        except SafetensorError as error:
            raise ValueError(f"{path}: not a safetensors file ({error}).") from error
    try:
        # Published files keep the command line of their run; a Namespace is nothing but its values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(
            f"{path}: not a checkpoint of tensors alone, which is all that is read: other files could run code."
        ) from error
    for key in _STATE_DICT_KEYS:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not all(isinstance(value, torch.Tensor) for value in content.values()):
        raise ValueError(f"{path}: expected a state dict of tensors under one of the keys {_STATE_DICT_KEYS}.")
    return dict(content)


def _renamed(
    tensors: StateDict, layout: CheckpointLayout, path: str | os.PathLike
) -> dict[str, tuple[str, torch.Tensor]]:
    """Return our name -> (published name, tensor in our layout).

    Raises:
        ValueError: If the layout has no name for a tensor; names all such.
    """
    renamed: dict[str, tuple[str, torch.Tensor]] = {}
    unknown = []
    for published_name, tensor in tensors.items():
        name = _our_name(published_name, layout.renames)
        if name is None:
            unknown.append(published_name)
            continue
        for our_name, part in _parts(name, tensor):
            renamed[our_name] = (published_name, part)
    if unknown:
        raise ValueError(
            f"{path}: the layout {layout.name} has no place for {_listed(unknown)}. Remove these tensors from the "
            "file, or add them to the layout's renames."
        )
    return renamed


def _our_name(published_name: str, renames: Iterable[tuple[str, str]]) -> str | None:
    for pattern, replacement in renames:
        if match := re.fullmatch(pattern, published_name):
            return match.expand(replacement)
    return None


def _parts(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """Return the tensors that a published one becomes, under our names."""
    if name.endswith(".attention.qkv"):
        prefix = name.removesuffix("qkv")
        return [(f"{prefix}{part}_proj.weight", rows) for part, rows in zip("qkv", tensor.chunk(3), strict=True)]
    return [(name, tensor)]


def _check_tensors(
    renamed: Mapping[str, tuple[str, torch.Tensor]], expected: Mapping[str, torch.Tensor], path: str | os.PathLike
) -> None:
    """Raise a ValueError that names every tensor missing, left over or of another shape than the model's."""
    missing = [name for name in expected if name not in renamed]
    unexpected = [published for name, (published, _) in renamed.items() if name not in expected]
    if missing or unexpected:
        raise ValueError(
            f"{path}: the checkpoint lacks {_listed(missing)} and the model has no place for {_listed(unexpected)}. "
            "If you override a size, check that it is the checkpoint's."
        )
    for name, (published, tensor) in renamed.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(
                f"{path}: {published} gives {name} the shape {tuple(tensor.shape)}, but the configuration asks for "
                f"{tuple(expected[name].shape)}. Check the sizes you override."
            )


def _listed(names: list[str]) -> str:
    return ", ".join(names) if names else "nothing"


__all__ = ["LAYOUTS", "CheckpointLayout", "ConvertedCheckpoint", "convert_checkpoint", "read_checkpoint"]
