"""From arguments to the things a pre-training run works with."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import fields, replace
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..clip_tracks_mme import tracker_of
from ..configuration_mme import MMEConfig
from ..data import (
    ClipSampling,
    StoredTracks,
    VideoRecords,
    load_dataset_records,
    load_folder_records,
    load_manifest_records,
    load_sample_records,
)
from ..data.bad_videos import printable
from ..data.shared_videos import shared_videos
from ..data.undecoded import openable
from ..modeling_mme import MMEForPreTraining
from ..motion import MotionParameters, build_ready_tracker, build_tracker
from ..names_mme import check_names
from ..presets import preset_config
from ..video import VideoReadError
from ..video_processing_mme import MMEVideoProcessor
from .model_names import NOT_LOADED, check_model_name
from .target_flags import check_teachers_are_public, processor_options, set_target_weights

if TYPE_CHECKING:
    from .arguments import PretrainingArguments

logger = logging.getLogger(__name__)

SAMPLE_HELD_OUT_FRACTION = 0.2
MAX_SHARED_VIDEOS_NAMED = 3
_PROCESSOR_FLAGS = ("frame_stride", "trajectory_num_steps", "mask_type", "mask_ratio", "tracker", "camera_motion")
_MODEL = ("preset", "model_options")
_KEPT_BY_OPTIMIZER = ("optimizer", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2")
_AUGMENTATIONS = ("flip_probability", "moving_crop_speed")

# Fixed by the processor, so that model and labels cannot disagree.
_SHARED_FIELDS = (
    "image_size",
    "num_frames",
    "patch_size",
    "tubelet_size",
    "num_channels",
    "motion_targets",
)


def check_output_dir(output_dir: str | Path, flag: str = "output_dir") -> None:
    """Raise ValueError if a file is in the way of a folder, or it may not be written to; nothing is made."""
    folder = Path(output_dir).absolute()
    existing = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not existing.is_dir():
        what = "a file" if existing.exists() else "a link that leads nowhere"
        raise ValueError(f"{flag} ({str(output_dir)!r}) cannot be made: {existing} is {what}. Name a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{flag} ({str(output_dir)!r}) may not be written to. Name another folder.")


def check_output_file(file: str | Path, flag: str) -> None:
    """Raise ValueError if a folder is in the way of a file, or it may not be written to; nothing is made."""
    path = Path(file).absolute()
    if path.is_dir():
        raise ValueError(f"{flag} ({str(file)!r}) is a folder. Name a file.")
    if path.exists() and not os.access(path, os.W_OK):
        raise ValueError(f"{flag} ({str(file)!r}) may not be written to. Name another file.")
    check_output_dir(path.parent, flag)


def build_model_and_processor(args: PretrainingArguments) -> tuple[MMEForPreTraining, MMEVideoProcessor]:
    """Return a model and the processor that makes its inputs and targets.

    With `model_name_or_path` both come from there, and the processor is changed by the flags that are given. Those that
    are not get its values in `args`, for logs and cards.

    Raises:
        ValueError: If an option is unknown or out of range, if no target has a weight in the loss, if there is no such
            checkpoint, or if its weights predict other targets than the processor makes.
    """
    check_names("processor_options", args.processor_options, MMEVideoProcessor.valid_kwargs.__annotations__)
    check_names("model_options", args.model_options, {field.name for field in fields(MMEConfig)})
    for name in _SHARED_FIELDS:
        if name in args.model_options:
            raise ValueError(
                f"model_options sets {name!r}, which the processor decides. Use its flag or processor_options."
            )
    if args.model_name_or_path:
        model, processor = _load_model_and_processor(args)
    else:
        preset = preset_config(args.preset)
        processor = _new_processor(args, preset)
        options = {
            **input_size(processor),
            "patch_size": processor.patch_size,
            "tubelet_size": processor.tubelet_size,
            "motion_targets": processor.motion_target_config(),
        }
        model = MMEForPreTraining(preset_config(args.preset, **options, **args.model_options))
    weights = {target: values["weight"] for target, values in model.config.motion_targets.items()}
    if not any(weights.values()):
        raise ValueError(
            f"motion_targets have the weights {weights}: nothing would be trained. Give one of them a weight above 0, "
            f"such as '{next(iter(weights))}:1', or leave the weight out."
        )
    check_teachers_are_public(args, processor)
    for name in _PROCESSOR_FLAGS:
        if name != "tracker" and getattr(args, name) is None:
            setattr(args, name, getattr(processor, name))
    is_tracked = not args.stored_tracks or args.has_validation_data
    # Now, or a worker would be the first to miss it.
    (build_ready_tracker if is_tracked else build_tracker)(processor.tracker, **(processor.tracker_options or {}))
    if args.gradient_checkpointing:
        # The name in newer versions of transformers; the older one warns there.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model, processor


def _new_processor(args: PretrainingArguments, preset: MMEConfig) -> MMEVideoProcessor:
    side = args.image_size or preset.image_size
    height, width = (side, side) if isinstance(side, int) else side
    options = {
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
        "num_frames": args.num_frames or preset.num_frames,
        "patch_size": preset.patch_size,
        "tubelet_size": preset.tubelet_size,
    }
    options |= _processor_flags(args)
    options["tracker"] = args.tracker or default_tracker(args)
    options |= processor_options(args)
    _check_image_size(args, options["patch_size"])
    return MMEVideoProcessor(**options)


def default_tracker(args: PretrainingArguments) -> str:
    """Return the tracker of a run that names none: the fastest where it runs.

    Stored tracks are made by "dis" unless said otherwise, so that is what a run that reads some looks for.
    """
    return "torch" if args.targets_on == "device" and not args.stored_tracks else "dis"


def _load_model_and_processor(args: PretrainingArguments) -> tuple[MMEForPreTraining, MMEVideoProcessor]:
    name = args.model_name_or_path
    check_model_name("model_name_or_path", name)
    changed = _processor_flags(args)
    if args.num_frames:
        changed["num_frames"] = args.num_frames
    if args.image_size:
        changed |= {
            "size": {"shortest_edge": args.image_size},
            "crop_size": {"height": args.image_size, "width": args.image_size},
        }
    try:
        changed |= processor_options(args)
        if args.image_size:
            _check_image_size(args, changed.get("patch_size") or MMEVideoProcessor.from_pretrained(name).patch_size)
        processor = MMEVideoProcessor.from_pretrained(name, **changed)
        model = MMEForPreTraining.from_pretrained(name, **args.model_options)
    except NOT_LOADED as error:
        raise ValueError(f"model_name_or_path ({name!r}) cannot be opened: {error}") from error
    made, predicted = (
        [(target, value["size"]) for target, value in targets.items()]
        for targets in (processor.motion_target_config(), model.config.motion_targets)
    )
    sizes = [(owner.patch_size, owner.tubelet_size) for owner in (processor, model.config)]
    if made != predicted or sizes[0] != sizes[1]:
        raise ValueError(
            f"model_name_or_path ({name!r}) predicts {predicted} values per token of (patch, tubelet) {sizes[1]}, but "
            f"the processor makes {made} per token of {sizes[0]}. Leave --trajectory_num_steps and --processor_options "
            "as in its training."
        )
    if "motion_targets" in changed:
        set_target_weights(model, processor)
    model.config.update(input_size(processor))
    return model, processor


def input_size(processor: MMEVideoProcessor) -> dict[str, Any]:
    """Return what a configuration says of the clips that a processor makes; pipelines take `num_frames` from it."""
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    return {"num_frames": processor.num_frames, "image_size": height if height == width else [height, width]}


def _check_image_size(args: PretrainingArguments, patch_size: int) -> None:
    if args.image_size and "crop_size" not in args.processor_options and args.image_size % patch_size:
        raise ValueError(
            f"image_size ({args.image_size}) does not divide by patch_size ({patch_size}). Choose a multiple of "
            f"{patch_size}, such as {max(1, round(args.image_size / patch_size)) * patch_size}."
        )


def _processor_flags(args: PretrainingArguments) -> dict[str, Any]:
    return {name: value for name in _PROCESSOR_FLAGS if (value := getattr(args, name)) is not None}


def load_records(args: PretrainingArguments) -> tuple[VideoRecords, VideoRecords | None, float]:
    """Return the training videos, those for held-out clips, and the share of each that is held out.

    The second is None where nothing is held out. The share is 0 where held-out clips have videos of their own.
    """
    train = load_training_records(args)
    if args.has_validation_data:
        return train, load_validation_records(args, train), 0.0
    fraction = args.held_out_fraction
    if fraction is None:
        fraction = 0.0 if args.has_own_data else SAMPLE_HELD_OUT_FRACTION
    # Missing files are the training videos' to report: once.
    return train, (replace(train, missing_files=()) if fraction else None), fraction


def load_training_records(args: Any) -> VideoRecords:
    """Return the videos that the data flags name (`dataset_name`, `train_dir`, `train_manifest`), or the samples."""
    if args.dataset_name:
        options = {"config_name": args.dataset_config_name, "streaming": args.streaming}
        return load_dataset_records(args.dataset_name, split=args.dataset_split, **options)
    if args.train_dir:
        return load_folder_records(args.train_dir)
    if args.train_manifest:
        return load_manifest_records(args.train_manifest)
    return load_sample_records()


def load_validation_records(args: Any, train: VideoRecords | None = None) -> VideoRecords | None:
    """Return the videos that `validation_split`, `validation_dir` or `validation_manifest` names; None without any.

    If `train`, the training videos, are given, those that are among both are said.
    """
    validation = _load_validation_records(args)
    shared = shared_videos(train, validation) if train and validation else []
    if shared:
        more = len(shared) - MAX_SHARED_VIDEOS_NAMED
        logger.warning(
            "WARNING: %d of %d validation videos are also trained on: %s%s",
            len(shared),
            validation.num_records,
            ", ".join(map(printable, shared[:MAX_SHARED_VIDEOS_NAMED])),
            f" and {more} more" if more > 0 else "",
        )
    return validation


def _load_validation_records(args: Any) -> VideoRecords | None:
    if args.validation_split:
        options = {"config_name": args.dataset_config_name, "streaming": args.streaming}
        return load_dataset_records(args.dataset_name, split=args.validation_split, **options)
    if args.validation_dir:
        return load_folder_records(args.validation_dir, flag="validation_dir")
    if args.validation_manifest:
        return load_manifest_records(args.validation_manifest, flag="validation_manifest")
    return None


def open_stored_tracks(
    args: PretrainingArguments, processor: MMEVideoProcessor, records: VideoRecords
) -> StoredTracks | None:
    """Return the tracks that `stored_tracks` names, None where it names none.

    Raises:
        ValueError: If they were made by another tracker than the processor's, or have none of the first video.
    """
    if not args.stored_tracks:
        return None
    if args.moving_crop_speed:
        raise ValueError(
            f"moving_crop_speed ({args.moving_crop_speed}) makes motion that stored_tracks ({args.stored_tracks!r}) do "
            "not have. Track on line, or leave moving_crop_speed at 0."
        )
    tracks = StoredTracks(args.stored_tracks, MotionParameters.of(tracker_of(processor)))
    if records.num_records:
        # Tracks of other videos altogether: better said now than by the first batch.
        video = records.dataset[0]["video"]
        # A bad video is for the run to count.
        with suppress(VideoReadError, OSError):
            tracks.motion_of(openable(video))
    return tracks


def describe_targets(args: PretrainingArguments, processor: MMEVideoProcessor, device: torch.device) -> str:
    """Return in words where targets are made, and what follows the points."""
    place = "the data workers" if args.targets_on == "workers" else f"{device.type}, inside the step"
    if args.stored_tracks:
        return f"made on {place}; tracks are read from {args.stored_tracks}"
    tracker, note = tracker_of(processor), ""
    if args.targets_on == "device" and device.type != "cpu" and getattr(tracker, "works_on_cpu", False):
        note = " (which copies all frames to the CPU and works there; --tracker torch does not)"
    return f"made on {place}; points are followed by {tracker.name}{note}"


def train_sampling(args: PretrainingArguments, held_out_fraction: float) -> ClipSampling:
    """Return how training clips are cut: at random times, crops and flips, never from the held-out part."""
    return ClipSampling(
        samples_per_video=args.samples_per_video,
        flip_probability=args.flip_probability,
        moving_crop_speed=args.moving_crop_speed,
        reader=args.reader,
        **_part("train", held_out_fraction),
    )


def held_out_sampling(args: PretrainingArguments, held_out_fraction: float) -> ClipSampling:
    """Return how held-out clips are cut: evenly spaced over the held-out part, centre crop, no flip."""
    return ClipSampling(
        samples_per_video=args.num_eval_clips,
        is_random=False,
        reader=args.reader,
        **_part("held_out", held_out_fraction),
    )


def _part(part: str, held_out_fraction: float) -> dict:
    return {"part": part, "held_out_fraction": held_out_fraction} if held_out_fraction else {}


def settings_of_the_batches(
    args: PretrainingArguments,
    processor: MMEVideoProcessor,
    records: VideoRecords,
    held_out_fraction: float,
    num_processes: int,
) -> dict[str, Any]:
    """Return all that decides which batches a run sees, for a resumed run to insist on.

    With it go the model, and what the saved state of optimizer and schedule brings back, whatever a resumed run asks
    for.
    """
    names = ("seed", "per_device_train_batch_size", "gradient_accumulation_steps", "samples_per_video", "streaming")
    return {
        **{name: getattr(args, name) for name in (*names, *_AUGMENTATIONS, "shuffle_buffer_size")},
        **{name: getattr(args, name) for name in (*_MODEL, *_KEPT_BY_OPTIMIZER)},
        "num_processes": num_processes,
        "data": records.identity,
        "held_out_fraction": held_out_fraction,
        "stored_tracks": True if args.stored_tracks else None,
        "targets_on": args.targets_on,
        **{f"processor {name}": value for name, value in processor.to_dict().items()},
    }


def schedule_lengths(args: PretrainingArguments, num_videos: int | None, global_batch_size: int) -> tuple[int, int]:
    """Return (number of updates, number of warm-up updates).

    Args:
        args: Say how long, in epochs or in steps.
        num_videos: Videos in an epoch; None for a stream.
        global_batch_size: Clips in an update.

    Raises:
        ValueError: If warm-up is longer than the run, or a stream's warm-up is given in epochs.
    """
    if num_videos is None:
        if args.warmup_epochs and args.warmup_steps is None:
            raise ValueError(f"warmup_epochs ({args.warmup_epochs}) needs the number of videos. Give --warmup_steps.")
        num_steps, num_warmup = args.max_train_steps, args.warmup_steps or 0
    else:
        num_clips = num_videos * args.samples_per_video
        # Multiplied first: 30 * (200 / 24) is a little above 250, and would make one update more.
        num_steps = args.max_train_steps or max(1, ceil(args.num_train_epochs * num_clips / global_batch_size))
        num_warmup = args.warmup_steps
        if num_warmup is None:
            num_warmup = round(args.warmup_epochs * num_clips / global_batch_size)
    if num_warmup > num_steps:
        raise ValueError(f"warm-up takes {num_warmup} of {num_steps} updates. Lower --warmup_steps, or train longer.")
    return num_steps, num_warmup
