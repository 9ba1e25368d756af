"""Labelled videos for classifiers: their flags, the records these name, and the processor that cuts them."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..configuration_mme import MMEConfig
from ..data import VideoRecords
from ..frame_sampling_mme import FRAME_SAMPLINGS
from ..video import check_backend
from ..video_processing_mme import MMEVideoProcessor
from .mixing import UnlabelledVideoError
from .parsing import flag

logger = logging.getLogger(__name__)

PROCESSOR_FILE = "video_preprocessor_config.json"


@dataclass
class LabelledDataArguments:
    """Which labelled videos to read, and which frames of them."""

    dataset_name: str | None = flag(None, "HF data set with a Video column: a name on the Hub or a local folder.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    dataset_split: str = flag("train", "Split of that data set to train on.")
    validation_split: str | None = flag(None, "Split of that data set to judge by.")
    streaming: bool = flag(False, "Read the data set record by record instead of downloading it first.")
    train_dir: str | None = flag(None, "Folder of class folders.")
    train_manifest: str | None = flag(None, "Text or CSV file of 'path label' lines.")
    validation_dir: str | None = flag(None, "Like train_dir, for the videos to judge by.")
    validation_manifest: str | None = flag(None, "Like train_manifest, for the videos to judge by.")
    frame_sampling: str | None = flag(
        None,
        "'dense' takes frames frame_stride apart; 'segments' one of each of equal parts of the whole video. Default: "
        "as the model's processor does.",
    )
    num_frames: int | None = flag(None, "Frames of a clip. Default: the model's.")
    frame_stride: int | None = flag(None, "Raw frames from one to the next. Default: the model's processor's.")
    image_size: int | None = flag(None, "Side of the square input in pixels. Default: the model's.")
    reader: str = flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    dataloader_num_workers: int | None = flag(None, "Decoding processes of each process. Default: by cores.")
    max_bad_fraction: float = flag(0.05, "Stop once a larger share of the videos cannot be read.")
    on_bad_video: str = flag("skip", "'skip' counts and lists unreadable videos; 'error' stops at the first.")

    def check_data(self) -> None:
        """Raise ValueError if a flag of this class has a value that it cannot have."""
        if self.frame_sampling not in (None, *FRAME_SAMPLINGS):
            raise ValueError(f"frame_sampling ({self.frame_sampling!r}) must be one of {list(FRAME_SAMPLINGS)}.")
        for name in ("num_frames", "frame_stride", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1.")
        if self.dataloader_num_workers is not None and self.dataloader_num_workers < 0:
            raise ValueError(f"dataloader_num_workers ({self.dataloader_num_workers}) must be at least 0.")
        check_backend(self.reader, "reader")
        validations = [
            name for name in ("validation_split", "validation_dir", "validation_manifest") if getattr(self, name)
        ]
        if len(validations) > 1:
            raise ValueError(f"{' and '.join(validations)} name different data. Give one of them.")


def label_mappings(records: VideoRecords) -> dict[str, dict]:
    """Return `id2label` and `label2id` of a data set's classes, as a configuration takes them."""
    names = records.label_names
    return {"id2label": dict(enumerate(names)), "label2id": {name: number for number, name in enumerate(names)}}


def check_every_video_is_labelled(records: VideoRecords) -> None:
    """Raise UnlabelledVideoError if a video has no class; those of a stream are looked at when they come."""
    if records.num_records is not None and any(label is None or label < 0 for label in records.dataset["label"]):
        raise UnlabelledVideoError(f"{records.name} has videos without a label. Leave them out.")


def label_names_of(config: MMEConfig) -> tuple[str, ...]:
    """Return the names of a classifier's classes in their order."""
    return tuple(config.id2label[number] for number in range(config.num_labels))


def processor_of(model_name_or_path: str | None, config: MMEConfig, args: LabelledDataArguments) -> MMEVideoProcessor:
    """Return the processor saved with a model, changed by the flags that are given.

    A checkpoint without one of ours (a VideoMAE's) gets a new one, made for the model's usual input, which normalises
    as the checkpoint's own processor does.

    Args:
        model_name_or_path: Where the model is from; None for a new one.
        config: Of the model.
        args: With the flags.

    Raises:
        ValueError: If what is asked for does not fit the model's patches and tubelets, or the saved one is broken.
    """
    changes = _changes(args)
    if args.image_size is not None and args.image_size % config.patch_size:
        raise ValueError(
            f"image_size ({args.image_size}) does not divide by patch_size ({config.patch_size}) of the model."
        )
    if changes.get("num_frames", config.num_frames) % config.tubelet_size:
        raise ValueError(
            f"num_frames ({args.num_frames}) does not divide by tubelet_size ({config.tubelet_size}) of the model."
        )
    if model_name_or_path is None:
        return new_processor(config, args)
    saved = _saved_options(model_name_or_path)
    if saved.get("video_processor_type") == MMEVideoProcessor.__name__:
        return MMEVideoProcessor.from_pretrained(model_name_or_path, **changes)
    logger.info("processor: a new one; %s has none of ours", model_name_or_path)
    return new_processor(config, args, **{name: saved[name] for name in ("image_mean", "image_std") if name in saved})


def _saved_options(model_name_or_path: str) -> dict[str, Any]:
    """Return what a checkpoint's processor, of whatever class, was saved with; nothing where there is none."""
    try:
        return MMEVideoProcessor.get_video_processor_dict(model_name_or_path)[0]
    except OSError as error:
        file = Path(model_name_or_path) / PROCESSOR_FILE
        if file.is_file():
            raise ValueError(f"the processor in {file} cannot be loaded: {error}") from error
        return {}


def new_processor(config: MMEConfig, args: LabelledDataArguments, **options: Any) -> MMEVideoProcessor:
    """Return a processor made for a model's usual input, changed by the flags that are given.

    Args:
        config: Of the model.
        args: With the flags.
        **options: Of the processor, beside those that the configuration tells.
    """
    height, width = config.frame_size
    own = {
        "num_frames": config.num_frames,
        "patch_size": config.patch_size,
        "tubelet_size": config.tubelet_size,
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
    }
    return MMEVideoProcessor(**{**own, **options, **_changes(args)})


def _changes(args: LabelledDataArguments) -> dict[str, Any]:
    changes = {name: getattr(args, name) for name in ("num_frames", "frame_stride", "frame_sampling")}
    if args.image_size is not None:
        side = args.image_size
        changes |= {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}}
    return {name: value for name, value in changes.items() if value is not None}
