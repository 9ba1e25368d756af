"""Names of models that are to be loaded: a folder, or 'user/name' on the Hub."""

from __future__ import annotations

import json
from difflib import get_close_matches
from pathlib import Path

from safetensors import SafetensorError

from ..configuration_mme import MMEConfig
from .checkpointing import STATE_FILE

# What `from_pretrained` raises where files are missing or damaged.
NOT_LOADED = (OSError, SafetensorError)
MODEL_TYPES = (MMEConfig.model_type, "videomae")
# How a path begins that no name on the Hub does; runs are saved in the last.
_BEGINS_A_PATH = (".", "/", "~", "outputs/")


def check_model_name(flag: str, name: str) -> None:
    """Raise ValueError for a name that is neither a folder with a model nor can be one on the Hub."""
    folder = Path(name)
    if not folder.is_dir():
        # Asked for on the Hub, a misspelt folder would take a minute of attempts where there is no network.
        is_below_a_folder = len(folder.parts) > 1 and Path(folder.parts[0]).is_dir()
        if is_below_a_folder or folder.is_absolute() or name.startswith(_BEGINS_A_PATH) or len(folder.parts) > 2:
            raise ValueError(f"{flag} ({name!r}): there is no such folder.{_likely(folder)}")
    elif (folder / STATE_FILE).is_file():
        raise ValueError(
            f"{flag} ({name!r}) is a checkpoint to go on from. Give it to --resume_from_checkpoint, or name the folder "
            "of a finished run."
        )
    elif not (folder / "config.json").is_file():
        raise ValueError(f"{flag} ({name!r}) has no config.json: name the folder that a run saved its model in.")
    else:
        _check_model_type(flag, folder / "config.json")


def _likely(folder: Path) -> str:
    """Return a sentence with the folders that may have been meant."""
    existing = next((parent for parent in folder.parents if parent.is_dir()), Path())
    wanted = folder.relative_to(existing).parts[0]
    names = sorted(path.name for path in existing.iterdir() if path.is_dir() and not path.name.startswith("."))
    close = [str(existing / name) for name in get_close_matches(wanted, names)]
    if close:
        return f" Did you mean {' or '.join(close)}?"
    return " Name the folder that a run saved its model in, or 'user/name' on the Hub."


def _check_model_type(flag: str, config_file: Path) -> None:
    try:
        model_type = json.loads(config_file.read_text(encoding="utf-8")).get("model_type")
    except (AttributeError, OSError, ValueError) as error:
        raise ValueError(f"{flag}: {config_file} cannot be read: {error}") from error
    if model_type not in MODEL_TYPES:
        raise ValueError(
            f"{flag} ({str(config_file.parent)!r}) is a model of type {model_type!r}, which has no such weights. Name "
            f"one of type {' or '.join(MODEL_TYPES)}."
        )
