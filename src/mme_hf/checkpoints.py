"""Published checkpoints to our models: read the file, tell its layout, rename its tensors, account for every one."""

import argparse
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from .checkpoint_layouts import LAYOUTS, CheckpointLayout, our_name
from .configuration_mme import MMEConfig, check_config_names
from .modeling_mme import MMEPreTrainedModel

StateDict = dict[str, torch.Tensor]

# The published files keep their state dict under one of these keys, DeepSpeed's under the second.
_STATE_DICT_KEYS = ("model", "module")
# The later ones come of files that are no pickle at all: torch trips over their first bytes.
_READING_ERRORS = (pickle.UnpicklingError, EOFError, RuntimeError, SafetensorError, LookupError, TypeError, ValueError)


@dataclass(frozen=True)
class Conversion:
    """What a published checkpoint became.

    Attributes:
        model: With its weights, in evaluation mode, in the checkpoint's floating point type.
        layout: How the checkpoint names its tensors.
        left_out: Published names of the tensors that the model has no use for.
    """

    model: MMEPreTrainedModel
    layout: CheckpointLayout
    left_out: tuple[str, ...]


def convert_checkpoint(path: str | os.PathLike, **config_overrides: Any) -> MMEPreTrainedModel:
    """Return our model with the weights of a published checkpoint of MME or VideoMAE.

    A pre-training checkpoint of MME becomes [`MMEForPreTraining`], a fine-tuned one of either
    [`MMEForVideoClassification`], and a pre-training checkpoint of VideoMAE [`MMEModel`]: its decoder predicts pixels
    by one linear layer, is checked for completeness, and left out.

    Sizes are read off the tensors. What no tensor tells is the published model's, unless given in
    `config_overrides`: heads of 64 values in the encoder (16 heads for the wider ViT-H and ViT-g) and half as many
    heads in the decoder (12 and 6 for ViT-B), 224 px frames, 16 of them. The targets keep the published activations
    (sigmoid for shape, tanh for position) and weights (54 and 16).

    Args:
        path: A `.safetensors` file, or a `.pth` or `.pt` file with tensors as `{"model": state dict}` or
            `{"module": state dict}`; also DeepSpeed's `mp_rank_00_model_states.pt`. No code in a file is run.
        **config_overrides: Fields of [`MMEConfig`], such as `num_attention_heads` or `image_size`.

    Returns:
        The model in evaluation mode, in the checkpoint's floating point type.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If the file is of no known layout, an override is no field of MMEConfig, or a tensor is unknown,
            missing or of the wrong shape; names it.
    """
    return convert_and_report(path, **config_overrides).model


def convert_and_report(path: str | os.PathLike, **config_overrides: Any) -> Conversion:
    """Return what `convert_checkpoint` does, and what the checkpoint was; arguments and errors are the same."""
    check_config_names(config_overrides)
    tensors = _read_tensors(path)
    layout = next((layout for layout in LAYOUTS if layout.marker in tensors), None)
    if layout is None:
        known = ", ".join(f"{layout.name} (has {layout.marker})" for layout in LAYOUTS)
        raise ValueError(
            f"{path}: the layout is not known; its first tensors are {sorted(tensors)[:5]}. Known layouts: {known}."
        )
    fields = layout.config_from(tensors)
    left_out = layout.left_out(tensors)
    model = layout.model_class(MMEConfig(**{**fields, **config_overrides}))
    if missing := [name for name in left_out if name not in tensors]:
        raise ValueError(f"{path}: the checkpoint lacks {_listed(missing)}: a part of a {layout.name} checkpoint.")
    wanted = {name: tensor for name, tensor in tensors.items() if name not in left_out}
    renamed = _renamed(wanted, layout, path)
    _check_tensors(renamed, model.state_dict(), path)
    model.load_state_dict({name: tensor for name, (_, tensor) in renamed.items()})
    floating_types = {tensor.dtype for tensor in wanted.values()}
    if len(floating_types) == 1:
        model.to(floating_types.pop())
    return Conversion(model.eval(), layout, tuple(left_out))


def _read_tensors(path: str | os.PathLike) -> StateDict:
    """Return the state dict of a published file, loaded without running any code in it."""
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path}: no such checkpoint file.")
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        # The arguments of the published runs lie beside their weights; a Namespace does nothing but keep values.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except _READING_ERRORS as error:
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
        name = our_name(published_name, layout.renames)
        if name is None:
            unknown.append(published_name)
            continue
        for part_name, part in _parts(name, tensor):
            renamed[part_name] = (published_name, part)
    if unknown:
        raise ValueError(
            f"{path}: the layout {layout.name} has no place for {_listed(unknown)}. Remove these tensors from the "
            "file, or add them to the layout's renames."
        )
    return renamed


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


__all__ = ["LAYOUTS", "CheckpointLayout", "Conversion", "convert_and_report", "convert_checkpoint"]
