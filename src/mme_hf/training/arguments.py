"""The flags of `examples/pretrain.py`, checked before any work begins."""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import re
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar

from ..video import check_backend

T = TypeVar("T")


def _flag(default: Any, help_text: str) -> Any:
    return field(default=default, metadata={"help": help_text})


@dataclass
class DataArguments:
    """Which videos to read, and how clips are cut from them."""

    dataset_name: str | None = _flag(None, "HF data set with a Video column: a name on the Hub or a local folder.")
    dataset_config_name: str | None = _flag(None, "Configuration of that data set.")
    dataset_split: str = _flag("train", "Split of that data set to train on.")
    validation_split: str | None = _flag(None, "Split of that data set for the held-out clips.")
    streaming: bool = _flag(False, "Read the data set record by record instead of downloading it first.")
    shuffle_buffer_size: int = _flag(256, "Undecoded records held to shuffle a stream.")
    train_dir: str | None = _flag(None, "Folder of class folders, or flat folder of videos.")
    train_manifest: str | None = _flag(None, "Text or CSV file of 'path label' lines.")
    validation_dir: str | None = _flag(None, "Like train_dir, for the held-out clips.")
    validation_manifest: str | None = _flag(None, "Like train_manifest, for the held-out clips.")
    held_out_fraction: float | None = _flag(
        None,
        "Share at the end of every training video that is kept for held-out clips. Default: 0.2 for the sample clips, "
        "0 (train on everything) for your own data.",
    )
    stored_tracks: str | None = _flag(
        None,
        "Tracks of the training videos, as extract_trajectories.py makes them: a folder of Parquet shards, or an HF "
        "data set. Videos of validation_* are tracked on line, by the same tracker.",
    )
    reader: str = _flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    samples_per_video: int = _flag(1, "Clips (time, crop, flip, mask) cut from each video that is opened.")
    flip_probability: float = _flag(0.5, "How often a clip is mirrored. 0 where left and right mean something.")
    moving_crop_speed: float = _flag(
        0.0,
        "Let the crop of every other clip slide over the frames, at up to this speed in sides of the crop per raw "
        "frame (0.02): motion of any speed and direction, for few videos or slow ones. 0: crops stand still.",
    )
    dataloader_num_workers: int | None = _flag(None, "Decoding processes of each training process. Default: by cores.")
    targets_on: str = _flag(
        "workers",
        "Where tracks, labels and masks are made: by the data 'workers', or on the 'device' of the model, inside the "
        "step; workers then only decode, crop and resize.",
    )
    max_bad_fraction: float = _flag(0.05, "Stop once a larger share of the videos cannot be read.")
    on_bad_video: str = _flag("skip", "'skip' counts and lists unreadable videos; 'error' stops at the first.")


@dataclass
class ModelArguments:
    """What is trained, and what it sees."""

    model_name_or_path: str | None = _flag(None, "Start from these weights and their processor.")
    preset: str = _flag("tiny", "tiny, small, base or large.")
    image_size: int | None = _flag(None, "Side of the square input in pixels. Default: the preset's.")
    num_frames: int | None = _flag(None, "Input frames of a clip. Default: the preset's.")
    frame_stride: int = _flag(4, "Raw frames from one input frame to the next.")
    trajectory_num_steps: int = _flag(4, "Raw frames over which points are followed.")
    mask_type: str = _flag("tube", "tube, cube, random or motion (tubes where the motion is).")
    mask_ratio: float = _flag(0.7, "Share of the tokens that is hidden.")
    motion_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is predicted: names, each with a weight in the loss if wanted ('shape position:0.5'), or "
            "JSON with the options of each. There are: shape, position (the default two), shape_along_track, flow, "
            "pixels, features."
        },
    )
    teacher: str | None = _flag(
        None, "Frozen vision model that the target 'features' is made by: a folder or a Hub name (CLIP, DINO, ...)."
    )
    tracker: str | None = _flag(
        None,
        "How points are followed: dis, torch, farneback, raft, tvl1. Default: dis; torch with --targets_on device.",
    )
    camera_motion: str = _flag(
        "keep", "keep, or remove: take the camera's motion, where one is found, out of the tracks that labels are of."
    )
    model_options: str | None = _flag(None, "More MMEConfig fields, as JSON (a mapping in a recipe file).")
    processor_options: str | None = _flag(None, "More MMEVideoProcessor fields, as JSON (a mapping in a recipe file).")
    gradient_checkpointing: bool = _flag(False, "Save memory by computing activations twice.")


@dataclass
class TrainingArguments:
    """How it is trained, and what is kept."""

    output_dir: str = _flag("outputs/pretrain", "Folder for the model, checkpoints, logs and reports.")
    per_device_train_batch_size: int = _flag(8, "Clips in a batch of one process.")
    gradient_accumulation_steps: int = _flag(1, "Batches to add up for one update.")
    learning_rate: float = _flag(1.5e-4, "Peak learning rate for 256 clips an update; scaled to the global batch.")
    min_learning_rate: float = _flag(1e-5, "Floor of the cosine, scaled like the peak.")
    weight_decay: float = _flag(0.05, "AdamW weight decay; none on biases and normalisation.")
    adam_beta1: float = _flag(0.9, "AdamW beta 1.")
    adam_beta2: float = _flag(0.95, "AdamW beta 2.")
    max_grad_norm: float | None = _flag(None, "Clip the gradient's norm to this.")
    num_train_epochs: float = _flag(1.0, "Passes over the videos.")
    max_train_steps: int | None = _flag(None, "Updates; wins over num_train_epochs.")
    warmup_epochs: float = _flag(0.0, "Epochs of linear warm-up.")
    warmup_steps: int | None = _flag(None, "Updates of linear warm-up; wins over warmup_epochs.")
    mixed_precision: str | None = _flag(None, "no, fp16 or bf16. Default: what accelerate is configured for.")
    seed: int = _flag(0, "Seed of weights, order, crops, flips and masks.")
    checkpointing_steps: int | None = _flag(None, "Updates between checkpoints. Default: none.")
    checkpoints_total_limit: int | None = _flag(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = _flag(None, "A checkpoint folder, or 'latest' (which may not exist yet).")
    motion_health: bool = _flag(True, "Look at tracks and labels of the first clips, and warn if something is off.")
    logging_steps: int = _flag(1, "Updates between two logged values.")
    num_eval_clips: int = _flag(4, "Held-out clips of each video.")
    max_eval_videos: int = _flag(256, "Videos that held-out clips are taken from, at most.")
    num_baseline_clips: int = _flag(128, "Training clips that the mean predictor is of; a stream is read once at most.")
    with_tracking: bool = _flag(True, "Log to report_to; --no_with_tracking turns it off.")
    report_to: str = _flag("tensorboard", "Tracker of accelerate: tensorboard, wandb, ...")
    push_to_hub: bool = _flag(False, "Push the result to the Hub.")
    hub_model_id: str | None = _flag(None, "Repository to push to. Default: the output folder's name.")
    hub_token: str | None = _flag(None, "Token for the Hub. Default: the one you are logged in with.")


@dataclass
class PretrainingArguments(TrainingArguments, ModelArguments, DataArguments):
    """Everything that `examples/pretrain.py` can be told."""

    config: str | None = _flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.model_options = _mapping("model_options", self.model_options)
        self.processor_options = _mapping("processor_options", self.processor_options)
        for name, smallest in _SMALLEST.items():
            value = getattr(self, name)
            if value is not None and not smallest <= value < math.inf:
                and_finite = ", and finite" if value == math.inf else ""
                raise ValueError(f"{name} ({value}) must be at least {smallest}{and_finite}.")
        if self.seed >= _NUM_SEEDS:
            raise ValueError(f"seed ({self.seed}) must be below {_NUM_SEEDS}.")
        if not 0 < self.learning_rate < math.inf:
            raise ValueError(f"learning_rate ({self.learning_rate}) must be above 0, such as 1.5e-4.")
        if not self.min_learning_rate <= self.learning_rate:
            raise ValueError(
                f"min_learning_rate ({self.min_learning_rate}) is above learning_rate ({self.learning_rate}). "
                "The cosine ends at the first and begins at the second."
            )
        for name in ("adam_beta1", "adam_beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1), such as 0.9.")
        if self.max_train_steps is not None and (self.warmup_steps or 0) > self.max_train_steps:
            raise ValueError(
                f"warmup_steps ({self.warmup_steps}) is above max_train_steps ({self.max_train_steps}): warm-up takes "
                f"{self.warmup_steps} of {self.max_train_steps} updates. Shorten it, or train longer."
            )
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"max_grad_norm ({self.max_grad_norm}) must be above 0. Leave it out not to clip.")
        if self.held_out_fraction is not None and not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction ({self.held_out_fraction}) must lie in [0, 1), such as 0.2.")
        if self.per_device_train_batch_size % self.samples_per_video:
            raise ValueError(
                f"per_device_train_batch_size ({self.per_device_train_batch_size}) does not divide by "
                f"samples_per_video ({self.samples_per_video}). The batch counts clips, not videos."
            )
        if self.mixed_precision not in (None, "no", "fp16", "bf16"):
            raise ValueError(f"mixed_precision ({self.mixed_precision!r}) must be 'no', 'fp16' or 'bf16'.")
        if self.targets_on not in ("workers", "device"):
            raise ValueError(f"targets_on ({self.targets_on!r}) must be 'workers' or 'device'.")
        if self.with_tracking:
            _check_report_to(self.report_to)
        self._check_data_source()

    def _check_data_source(self) -> None:
        _check_one_source(self, "streaming", "validation_split", "dataset_config_name")
        validations = [
            name for name in ("validation_split", "validation_dir", "validation_manifest") if getattr(self, name)
        ]
        if len(validations) > 1:
            raise ValueError(f"{' and '.join(validations)} name different data. Give one of them.")
        if validations and self.held_out_fraction:
            raise ValueError(
                f"held_out_fraction ({self.held_out_fraction}) and {validations[0]} both say what is held out. "
                "Give one of them."
            )
        if self.streaming and self.max_train_steps is None:
            raise ValueError("streaming is on, so the number of videos is unknown. Give --max_train_steps.")

    @property
    def has_validation_data(self) -> bool:
        """Whether held-out clips come from videos of their own."""
        return bool(self.validation_split or self.validation_dir or self.validation_manifest)


@dataclass
class ExtractionArguments:
    """Everything that `examples/extract_trajectories.py` can be told."""

    dataset_name: str | None = _flag(None, "HF data set with a Video column: a name on the Hub or a local folder.")
    dataset_config_name: str | None = _flag(None, "Configuration of that data set.")
    dataset_split: str = _flag("train", "Split of that data set.")
    streaming: bool = _flag(False, "Read the data set record by record instead of downloading it first.")
    train_dir: str | None = _flag(None, "Folder of class folders, or flat folder of videos.")
    train_manifest: str | None = _flag(None, "Text or CSV file of 'path label' lines.")
    output_dir: str = _flag("outputs/tracks", "Folder for the data set. An unfinished one is gone on with.")
    tracker: str = _flag("dis", "How points are followed; as in the training run.")
    tracker_options: str | None = _flag(None, "Options of the tracker, as JSON (a mapping in a recipe file).")
    num_videos_per_shard: int = _flag(64, "Videos in a Parquet file, the unit of work that a killed run loses.")
    reader: str = _flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    max_bad_fraction: float = _flag(0.05, "Stop once a larger share of the videos cannot be read.")
    on_bad_video: str = _flag("skip", "'skip' counts and lists unreadable videos; 'error' stops at the first.")
    push_to_hub: bool = _flag(False, "Push the data set to the Hub.")
    hub_dataset_id: str | None = _flag(None, "Data set to push to. Default: the output folder's name.")
    hub_token: str | None = _flag(None, "Token for the Hub. Default: the one you are logged in with.")
    config: str | None = _flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.tracker_options = _mapping("tracker_options", self.tracker_options)
        if self.num_videos_per_shard < 1:
            raise ValueError(f"num_videos_per_shard ({self.num_videos_per_shard}) must be at least 1.")
        check_backend(self.reader, "reader")
        _check_one_source(self, "streaming", "dataset_config_name")


def _check_one_source(args: Any, *of_a_dataset: str) -> None:
    """Raise ValueError if data flags name two sources, or those in `of_a_dataset` are given without one."""
    sources = [name for name in _DATA_SOURCES if getattr(args, name)]
    if len(sources) > 1:
        raise ValueError(f"{' and '.join(sources)} name different data. Give one of them.")
    for name in of_a_dataset:
        if getattr(args, name) and not args.dataset_name:
            raise ValueError(f"{name} ({getattr(args, name)!r}) needs --dataset_name, which is not given.")


def _check_report_to(name: str) -> None:
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


_NUM_SEEDS = 2**32  # of NumPy
_DATA_SOURCES = ("dataset_name", "train_dir", "train_manifest")
_SMALLEST = {
    "image_size": 1,
    "num_frames": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "samples_per_video": 1,
    "dataloader_num_workers": 0,
    "shuffle_buffer_size": 1,
    "num_train_epochs": 0,
    "max_train_steps": 1,
    "warmup_epochs": 0,
    "warmup_steps": 0,
    "min_learning_rate": 0,
    "weight_decay": 0,
    "checkpointing_steps": 1,
    "checkpoints_total_limit": 1,
    "logging_steps": 1,
    "num_eval_clips": 1,
    "max_eval_videos": 1,
    "num_baseline_clips": 1,
    "seed": 0,
}


def parse_arguments(
    arguments_class: type[T], argv: Sequence[str] | None = None, *, sample_recipe: Path | None = None
) -> T:
    """Return the arguments of a command line, on top of the recipe that its `--config` names.

    Args:
        arguments_class: `PretrainingArguments`, or a dataclass with its `config` and data fields.
        argv: Command line without the program; by default this process' own.
        sample_recipe: The recipe where neither a recipe nor any data is named.

    Raises:
        ValueError: If the recipe is missing or none, a name is no flag, or a value is out of range.
    """
    from transformers import HfArgumentParser

    argv = list(sys.argv[1:] if argv is None else argv)
    usage = "%(prog)s [--config FILE.yaml] [--flag value ...]"  # argparse's own names every flag: 60 lines
    parser = HfArgumentParser(arguments_class, allow_abbrev=False, formatter_class=_HelpFormatter, usage=usage)
    parser.error = _refuse  # argparse's own prints the usage first
    given, unknown = parser.parse_known_args(argv)
    if unknown:
        flag = unknown[0].split("=")[0]
        remedy = _remedy(flag, _flags_of(arguments_class)) if flag.startswith("-") else "Name videos with --train_dir."
        raise ValueError(f"{flag} is no flag. {remedy}")
    recipe = Path(given.config) if given.config else None
    if recipe is None and not any(getattr(given, name) for name in _DATA_SOURCES):
        recipe = sample_recipe
    values = _read_recipe(recipe, arguments_class) if recipe is not None else {}
    try:
        # Through the parser, as if typed before the flags: so every value has the type that its flag has.
        return parser.parse_args_into_dataclasses(_as_flags(values) + argv)[0]
    except ValueError as error:
        typed = {word.split("=")[0].lstrip("-").replace("-", "_") for word in argv if word.startswith("--")}
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


def _mapping(name: str, value: str | dict | None) -> dict[str, Any]:
    if value is None or isinstance(value, dict):
        return value or {}
    try:
        parsed = json.loads(value)
    except json.JSONDecodeError as error:
        raise ValueError(f"{name} ({value!r}) is not JSON: {error}.") from error
    if not isinstance(parsed, dict):
        raise ValueError(f"{name} ({value!r}) must be a JSON object: '{{\"name\": value}}'.")
    return parsed
