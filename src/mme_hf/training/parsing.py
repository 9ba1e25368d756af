"""From a command line and a recipe to a dataclass of arguments, and what those of several scripts are checked for."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

# What names the videos that a script works on.
_DATA_SOURCES = ("dataset_name", "train_dir", "train_manifest")
# What names the model to begin with: either of them.
_FIRST_MODEL = ("model_name_or_path", "preset")
_NUM_SEEDS = 2**32  # of NumPy


def flag(default: Any, help_text: str) -> Any:
    """Return the field of a dataclass that is a flag, with its default and what `--help` says of it."""
    return dataclasses.field(default=default, metadata={"help": help_text})


def check_one_source(args: Any, *of_a_dataset: str) -> None:
    """Raise ValueError if data flags name two sources, or those in `of_a_dataset` are given without one."""
    sources = [name for name in _DATA_SOURCES if getattr(args, name)]
    if len(sources) > 1:
        raise ValueError(f"{' and '.join(sources)} name different data. Give one of them.")
    for name in of_a_dataset:
        if getattr(args, name) and not args.dataset_name:
            raise ValueError(f"{name} ({getattr(args, name)!r}) needs --dataset_name, which is not given.")


def check_report_to(name: str) -> None:
    """Raise ValueError for a tracker that accelerate does not know, or would leave out in silence: not installed."""
    from accelerate.tracking import get_available_trackers
    from accelerate.utils import LoggerType

    available = sorted(map(str, get_available_trackers()))
    if name not in ("all", *available):
        fault = "is not installed" if name in LoggerType.list() else "is no tracker of accelerate"
        raise ValueError(
            f"report_to ({name!r}) {fault}. Here there are: {', '.join(available)}; 'all' takes every one of them, "
            "--no_with_tracking none."
        )


def check_smallest(args: Any, smallest: Mapping[str, float]) -> None:
    """Raise ValueError for a number below its smallest value, or one that is not finite, and for too large a seed."""
    for name, least in smallest.items():
        value = getattr(args, name)
        if value is not None and not least <= value < math.inf:
            and_finite = ", and finite" if value == math.inf else ""
            raise ValueError(f"{name} ({value}) must be at least {least}{and_finite}.")
    if args.seed >= _NUM_SEEDS:
        raise ValueError(f"seed ({args.seed}) must be below {_NUM_SEEDS}.")


def parse_arguments(
    arguments_class: type[T],
    argv: Sequence[str] | None = None,
    *,
    sample_recipe: Path | None = None,
    positional: str | None = None,
    prog: str | None = None,
) -> T:
    """Return the arguments of a command line, on top of the recipe that its `--config` names.

    Args:
        arguments_class: `PretrainingArguments`, or a dataclass with its `config` and data fields.
        argv: Command line without the program; by default this process' own.
        sample_recipe: The recipe where neither a recipe nor any data is named.
        positional: Field, a list, that words without a flag are added to; None takes no such words.
        prog: The command, for its help; None for the name of the script.

    Raises:
        ValueError: If the recipe is missing or none, a name is no flag, or a value is out of range.
    """
    from transformers import HfArgumentParser

    argv = list(sys.argv[1:] if argv is None else argv)
    named = f"{positional.upper()} ... " if positional else ""
    usage = f"%(prog)s {named}[--config FILE.yaml] [--flag value ...]"  # argparse's own names every flag: 60 lines
    options = {"prog": prog, "usage": usage, "formatter_class": _HelpFormatter}
    parser = HfArgumentParser(arguments_class, allow_abbrev=False, **options)
    parser.error = _refuse  # argparse's own prints the usage first
    given, unknown = parser.parse_known_args(argv)
    if positional:
        words = [word for word in unknown if word == "-" or not word.startswith("-")]
        unknown = [word for word in unknown if word not in words]
        if words:
            argv += [f"--{positional}", *(getattr(given, positional) or []), *words]
    if unknown:
        flag = unknown[0].split("=")[0]
        remedy = _remedy(flag, _flags_of(arguments_class)) if flag.startswith("-") else "Name videos with --train_dir."
        raise ValueError(f"{flag} is no flag. {remedy}")
    recipe = Path(given.config) if given.config else None
    if recipe is None and sample_recipe and not any(getattr(given, name) for name in _DATA_SOURCES):
        recipe = sample_recipe
    typed = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
    values = _read_recipe(recipe, arguments_class) if recipe is not None else {}
    if typed.intersection(_FIRST_MODEL):  # which wins over the recipe's, also where that is named otherwise
        values = {name: value for name, value in values.items() if name not in _FIRST_MODEL}
    try:
        # Through the parser, as if typed before the flags: so every value has the type that its flag has.
        # Words without a flag are in `argv` a second time, with theirs.
        return parser.parse_args_into_dataclasses(_as_flags(values) + argv, return_remaining_strings=True)[0]
    except ValueError as error:
        at_fault = [name for name in values if name not in typed and re.search(rf"\b{name}\b", str(error))]
        if not at_fault:
            raise
        why = "" if given.config else ", which is used where no data is named; flags win over it"
        raise ValueError(f"{error} ({', '.join(at_fault)} is set by the recipe {recipe}{why}.)") from error


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Adds the defaults, but for those that say nothing or are told in words."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_told = action.default is None or "Default:" in (action.help or "")
        return action.help if is_told else super()._get_help_string(action)


def _refuse(message: str) -> None:
    raise ValueError(message)


def _flags_of(arguments_class: type) -> list[str]:
    return [f"--{item.name}" for item in dataclasses.fields(arguments_class)]


def _remedy(name: str, known: Collection[str]) -> str:
    close = get_close_matches(name, known, n=1)
    return f"Did you mean {close[0]}?" if close else "See --help."


def _read_recipe(path: Path, arguments_class: type) -> dict[str, Any]:
    """Return the values that a recipe sets, by flag."""
    import yaml

    if not path.is_file():
        raise ValueError(f"config ({str(path)!r}) is not a file. The recipes are in examples/configs.")
    try:
        recipe = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"config ({str(path)!r}) is not a YAML recipe ({reason}). See examples/configs.") from error
    if not isinstance(recipe, dict):
        raise ValueError(f"config ({str(path)!r}) is not a YAML recipe: it holds no 'flag: value' lines.")
    is_list = {item.name: "list" in str(item.type) for item in dataclasses.fields(arguments_class)}
    known = [name for name in is_list if name != "config"]
    for name, value in recipe.items():
        if isinstance(value, list) and not is_list.get(name, True):
            raise ValueError(f"config ({str(path)!r}) sets {name} to the list {value}. It takes one value.")
        if name not in known:
            raise ValueError(f"config ({str(path)!r}) sets {name!r}, which is no flag. {_remedy(str(name), known)}")
    return {name: value for name, value in recipe.items() if value is not None}


def _as_flags(values: Mapping[str, Any]) -> list[str]:
    flags = []
    for name, value in values.items():
        words = value if isinstance(value, list) else [json.dumps(value) if isinstance(value, dict) else value]
        flags += [f"--{name}", *map(str, words)]
    return flags


def mapping_of(name: str, value: str | dict | None) -> dict[str, Any]:
    """Return the mapping that a flag or a recipe gives as JSON, or as it is; an empty one for None."""
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} ({value!r}) is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} ({value!r}) must be a JSON object: '{{\"name\": value}}'.")
    return parsed
