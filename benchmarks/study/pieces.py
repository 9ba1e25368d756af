"""Results of a study and the folders that they are computed in: of which settings they are."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Piece:
    """One result.

    Attributes:
        name: Its kind and what it is of; also of its JSON file.
        configuration: What it depends on beside videos and code.
        compute: Returns what it found.
    """

    name: str
    configuration: Mapping[str, Any]
    compute: Callable[[], dict[str, Any]]


def check_configuration(path: Path, configuration: Mapping[str, Any]) -> None:
    """Stop the study if a result that is there is of other settings than it would be of now."""
    known, wanted = json.loads(path.read_text()).get("configuration", {}), as_json(configuration)
    if known != wanted:
        names = sorted(name for name in {*known, *wanted} if known.get(name) != wanted.get(name))
        sys.exit(
            f"study.py: error: {path} is of other settings ({', '.join(names)}). Remove it, and what else is of them, "
            "to have it run again, or give another --results_dir."
        )


def is_of(folder: Path, settings: Mapping[str, Any]) -> bool:
    """Return whether a working folder was begun with these settings."""
    note = _note_of(folder)
    return note.exists() and json.loads(note.read_text()) == as_json(settings)


def begin(folder: Path, settings: Mapping[str, Any]) -> None:
    """Note the settings of a working folder; one of others is emptied, as a run in it would go on from there."""
    if folder.exists() and not is_of(folder, settings):
        shutil.rmtree(folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    _note_of(folder).write_text(json.dumps(settings) + "\n", encoding="utf-8")


def as_json(value: Any) -> Any:
    """Return a value as it comes back from a JSON file."""
    return json.loads(json.dumps(value))


def _note_of(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.json")  # beside it: scripts want an empty folder
