"""Published checkpoints to our models: read the file, tell its layout, rename its tensors, account for every one."""

import os
import pickle
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .configuration_mme import MMEConfig, check_config_names
from .modeling_mme import MMEForPreTraining, MMEPreTrainedModel

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
    """

    name: str
    marker: str
    model_class: type[MMEPreTrainedModel]
    config_from: Callable[[Mapping[str, torch.Tensor]], dict[str, Any]]
    renames: tuple[tuple[str, str], ...]


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


def _config_from_mme_pretraining(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Return MMEConfig fields for the published pre-training layout."""
    width, num_channels, tubelet_size, patch_height, patch_width = _shape(tensors, "encoder.patch_embed.proj.weight")
    if patch_height != patch_width:
        raise ValueError(
            f"encoder.patch_embed.proj.weight has patches of {patch_height} x {patch_width} px. MMEConfig.patch_size "
            "is one number: only square patches convert."
        )
    decoder_width = _shape(tensors, "decoder.0.norm.weight")[0]
    # Activations and weights are the published model's; no tensor tells them.
    shape_size = _shape(tensors, "decoder.0.head.0.2.weight")[0]
    position_size = _shape(tensors, "decoder.0.head.1.2.weight")[0]
    return {
        "patch_size": patch_height,
        "tubelet_size": tubelet_size,
        "num_channels": num_channels,
        "hidden_size": width,
        "num_hidden_layers": _num_blocks(tensors, "encoder.blocks"),
        "num_attention_heads": max(width // _HEAD_DIM, 1),
        "intermediate_size": _shape(tensors, "encoder.blocks.0.mlp.fc1.weight")[0],
        "qkv_bias": "encoder.blocks.0.attn.q_bias" in tensors,
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


LAYOUTS: tuple[CheckpointLayout, ...] = (
    CheckpointLayout(
        name="MME pre-training",
        marker="decoder.0.head.1.2.weight",
        model_class=MMEForPreTraining,
        config_from=_config_from_mme_pretraining,
        renames=(
            (r"encoder\.patch_embed\.proj\.(weight|bias)", r"mme.embeddings.patch_embeddings.projection.\1"),
            *_block_renames(r"encoder\.blocks", "mme.layers"),
            (r"encoder\.norm\.(weight|bias)", r"mme.layernorm.\1"),
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
)


def convert_checkpoint(path: str | os.PathLike, **config_overrides: Any) -> MMEPreTrainedModel:
    """Return our model with the weights of a published checkpoint.

    Sizes are read off the tensors. What no tensor tells is the published model's, unless given in
    `config_overrides`: heads of 64 values in the encoder and half as many heads in the decoder (12 and 6 for ViT-B),
    224 px frames, 16 of them. The targets keep the published activations (sigmoid for shape, tanh for position) and
    weights (54 and 16).

    Args:
        path: A `.pth` or `.pt` file with tensors only, as `{"model": state dict}`.
        **config_overrides: Fields of [`MMEConfig`], such as `num_attention_heads` or `image_size`.

    Returns:
        The model in evaluation mode, in the checkpoint's floating point type.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known layout, an override is no field of MMEConfig, or a tensor is unknown,
            missing or of the wrong shape; names it.
    """
    check_config_names(config_overrides)
    tensors = _read_tensors(path)
    layout = next((layout for layout in LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        known = ", ".join(f"{layout.name} (has {layout.marker})" for layout in LAYOUTS)
        raise ValueError(
            f"{path}: the layout is not known; its first tensors are {sorted(tensors)[:5]}. Known layouts: {known}."
        )
    model = layout.model_class(MMEConfig(**{**layout.config_from(tensors), **config_overrides}))
    renamed = _renamed(tensors, layout, path)
    _check_tensors(renamed, model.state_dict(), path)
    model.load_state_dict({name: tensor for name, (_, tensor) in renamed.items()})
    floating_types = {tensor.dtype for tensor in tensors.values()}
    if len(floating_types) == 1:
        model.to(floating_types.pop())
    return model.eval()


def _read_tensors(path: str | os.PathLike) -> StateDict:
    """Return the state dict of a published file, loaded without running any code in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file.")
    try:
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


__all__ = ["LAYOUTS", "CheckpointLayout", "convert_checkpoint"]
