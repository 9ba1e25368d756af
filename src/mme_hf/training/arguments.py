"""The flags of `examples/pretrain.py`, checked before any work begins."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from ..video import check_backend
from .optimization import check_optimizer
from .parsing import check_one_source, check_report_to, check_smallest, flag, mapping_of

_SMALLEST_OF_LOOP = {
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
    "seed": 0,
}
DEFAULT_PRESET = "tiny"
_SMALLEST = {
    "image_size": 1,
    "num_frames": 1,
    "num_eval_clips": 1,
    "max_eval_videos": 1,
    "num_baseline_clips": 1,
}


@dataclass
class DataArguments:
    """Which videos to read, and how clips are cut from them."""

    dataset_name: str | None = flag(None, "HF data set with a Video column: a name on the Hub or a local folder.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    dataset_split: str = flag("train", "Split of that data set to train on.")
    validation_split: str | None = flag(None, "Split of that data set for the held-out clips.")
    streaming: bool = flag(False, "Read the data set record by record instead of downloading it first.")
    shuffle_buffer_size: int = flag(256, "Undecoded records held to shuffle a stream.")
    train_dir: str | None = flag(None, "Folder of class folders, or flat folder of videos.")
    train_manifest: str | None = flag(None, "Text or CSV file of 'path label' lines.")
    validation_dir: str | None = flag(None, "Like train_dir, for the held-out clips.")
    validation_manifest: str | None = flag(None, "Like train_manifest, for the held-out clips.")
    held_out_fraction: float | None = flag(
        None,
        "Share at the end of every training video that is kept for held-out clips. Default: 0.2 for the sample clips, "
        "0 (train on everything) for your own data.",
    )
    stored_tracks: str | None = flag(
        None,
        "Tracks of the training videos, as extract_trajectories.py makes them: a folder of Parquet shards, or an HF "
        "data set. Videos of validation_* are tracked on line, by the same tracker.",
    )
    reader: str = flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    samples_per_video: int = flag(1, "Clips (time, crop, flip, mask) cut from each video that is opened.")
    flip_probability: float = flag(0.5, "How often a clip is mirrored. 0 where left and right mean something.")
    moving_crop_speed: float = flag(
        0.0,
        "Let the crop of every other clip slide over the frames, at up to this speed in sides of the crop per raw "
        "frame (0.02): motion of any speed and direction, for few videos or slow ones. 0: crops stand still.",
    )
    dataloader_num_workers: int | None = flag(None, "Decoding processes of each training process. Default: by cores.")
    targets_on: str = flag(
        "workers",
        "Where tracks, labels and masks are made: by the data 'workers', or on the 'device' of the model, inside the "
        "step; workers then only decode, crop and resize.",
    )
    max_bad_fraction: float = flag(0.05, "Stop once a larger share of the videos cannot be read.")
    on_bad_video: str = flag("skip", "'skip' counts and lists unreadable videos; 'error' stops at the first.")


@dataclass
class ModelArguments:
    """What is trained, and what it sees."""

    model_name_or_path: str | None = flag(None, "Start from these weights and their processor.")
    preset: str | None = flag(None, "Random weights of this size: tiny, small, base or large. Default: tiny.")
    image_size: int | None = flag(None, "Side of the square input in pixels. Default: the preset's.")
    num_frames: int | None = flag(None, "Input frames of a clip. Default: the preset's.")
    # Of the processor: those of a checkpoint stay unless the flag is given, be it with the value of a new one.
    frame_stride: int | None = flag(None, "Raw frames from one input frame to the next. Default: 4, or the model's.")
    trajectory_num_steps: int | None = flag(
        None, "Raw frames over which points are followed. Default: 4, or the model's."
    )
    mask_type: str | None = flag(
        None, "tube, cube, random or motion (tubes where the motion is). Default: tube, or the model's."
    )
    mask_ratio: float | None = flag(None, "Share of the tokens that is hidden. Default: 0.7, or the model's.")
    motion_targets: list[str] | None = field(
        default=None,
        metadata={
            "help": "What is predicted: names, each with a weight in the loss if wanted ('shape position:0.5'), or "
            "JSON with the options of each. There are: shape, position (the default two), shape_along_track, flow, "
            "flow_histogram, pixels, features."
        },
    )
    teacher: str | None = flag(
        None, "Frozen vision model that the target 'features' is made by: a folder or a Hub name (CLIP, DINO, ...)."
    )
    tracker: str | None = flag(
        None,
        "How points are followed: dis, torch, farneback, raft, tvl1. Default: dis; torch with --targets_on device; or "
        "the model's.",
    )
    camera_motion: str | None = flag(
        None,
        "keep, or remove: take the camera's motion, where one is found, out of the tracks that labels are of. Default: "
        "keep, or the model's.",
    )
    model_options: str | None = flag(None, "More MMEConfig fields, as JSON (a mapping in a recipe file).")
    processor_options: str | None = flag(None, "More MMEVideoProcessor fields, as JSON (a mapping in a recipe file).")
    gradient_checkpointing: bool = flag(False, "Save memory by computing activations twice.")


@dataclass
class PushArguments:
    """Whether the result is published, and how."""

    push_to_hub: bool = flag(False, "Push the result to the Hub.")
    hub_private_repo: bool = flag(False, "Push to a private repository: a new one is made so, a public one is refused.")
    hub_token: str | None = flag(None, "Token for the Hub. Default: the one you are logged in with.")

    @property
    def hub_options(self) -> dict[str, Any]:
        """What the functions of `mme_hf.hub` are to know of these flags."""
        return {"token": self.hub_token, "private": self.hub_private_repo}


@dataclass
class LoopArguments(PushArguments):
    """How a model is trained, and what is kept; of every script that trains one."""

    output_dir: str = flag("outputs/pretrain", "Folder for the model, checkpoints, logs and reports.")
    per_device_train_batch_size: int = flag(8, "Clips in a batch of one process.")
    gradient_accumulation_steps: int = flag(1, "Batches to add up for one update.")
    learning_rate: float = flag(1.5e-4, "Peak learning rate for 256 clips an update; scaled to the global batch.")
    min_learning_rate: float = flag(1e-5, "Floor of the cosine, scaled like the peak.")
    weight_decay: float = flag(0.05, "Weight decay, times the rate; none on biases and normalisation.")
    adam_beta1: float = flag(0.9, "AdamW beta 1.")
    adam_beta2: float = flag(0.95, "AdamW beta 2.")
    max_grad_norm: float | None = flag(None, "Clip the gradient's norm to this.")
    num_train_epochs: float = flag(1.0, "Passes over the videos.")
    max_train_steps: int | None = flag(None, "Updates; wins over num_train_epochs.")
    warmup_epochs: float = flag(0.0, "Epochs of linear warm-up.")
    warmup_steps: int | None = flag(None, "Updates of linear warm-up; wins over warmup_epochs.")
    mixed_precision: str | None = flag(None, "no, fp16 or bf16. Default: what accelerate is configured for.")
    seed: int = flag(0, "Seed of all that is random: weights, order, crops, flips, masks, mixtures.")
    checkpointing_steps: int | None = flag(None, "Updates between checkpoints. Default: none.")
    checkpoints_total_limit: int | None = flag(3, "Checkpoints to keep.")
    resume_from_checkpoint: str | None = flag(None, "A checkpoint folder, or 'latest' (which may not exist yet).")
    logging_steps: int = flag(1, "Updates between two logged values.")
    with_tracking: bool = flag(True, "Log to report_to; --no_with_tracking turns it off.")
    report_to: str = flag("tensorboard", "Tracker of accelerate: tensorboard, wandb, ...")
    with_remote_code: bool = flag(
        False, "Save the code beside the model, so that it loads without mme_hf (trust_remote_code=True)."
    )
    hub_model_id: str | None = flag(None, "Repository to push to. Default: the output folder's name.")

    def check_loop(self) -> None:
        """Raise ValueError if a flag of this class has a value that it cannot have, alone or beside the data's."""
        check_smallest(self, _SMALLEST_OF_LOOP)
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
        if self.per_device_train_batch_size % self.samples_per_video:
            raise ValueError(
                f"per_device_train_batch_size ({self.per_device_train_batch_size}) does not divide by "
                f"samples_per_video ({self.samples_per_video}). The batch counts clips, not videos."
            )
        if self.mixed_precision not in (None, "no", "fp16", "bf16"):
            raise ValueError(f"mixed_precision ({self.mixed_precision!r}) must be 'no', 'fp16' or 'bf16'.")
        if self.with_tracking:
            check_report_to(self.report_to)
        check_one_source(self, "streaming", "validation_split", "dataset_config_name")
        if self.streaming and self.max_train_steps is None:
            raise ValueError("streaming is on, so the number of videos is unknown. Give --max_train_steps.")


@dataclass
class TrainingArguments(LoopArguments):
    """How it is trained, and how it is judged."""

    optimizer: str = flag(
        "adamw",
        "adamw, or muon: Muon at 10 times the rate for the matrices of the blocks, AdamW for the rest. Needs torch 2.9 "
        "and whole parameters on every process.",
    )
    motion_health: bool = flag(True, "Look at tracks and labels of the first clips, and warn if something is off.")
    num_eval_clips: int = flag(4, "Held-out clips of each video.")
    max_eval_videos: int = flag(256, "Videos that held-out clips are taken from, at most.")
    num_baseline_clips: int = flag(128, "Training clips that the mean predictor is of; a stream is read once at most.")


@dataclass
class PretrainingArguments(TrainingArguments, ModelArguments, DataArguments):
    """Everything that `examples/pretrain.py` can be told."""

    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.model_options = mapping_of("model_options", self.model_options)
        self.processor_options = mapping_of("processor_options", self.processor_options)
        if self.preset and self.model_name_or_path:
            raise ValueError(
                f"preset ({self.preset!r}) and model_name_or_path ({self.model_name_or_path!r}) both say what is "
                "trained. Give one of them."
            )
        if not self.model_name_or_path:
            self.preset = self.preset or DEFAULT_PRESET
        check_smallest(self, _SMALLEST)
        self.check_loop()
        if self.held_out_fraction is not None and not 0 <= self.held_out_fraction < 1:
            raise ValueError(f"held_out_fraction ({self.held_out_fraction}) must lie in [0, 1), such as 0.2.")
        check_optimizer(self.optimizer)
        if self.targets_on not in ("workers", "device"):
            raise ValueError(f"targets_on ({self.targets_on!r}) must be 'workers' or 'device'.")
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

    @property
    def has_own_data(self) -> bool:
        """Whether videos are named; else they are the samples."""
        return bool(self.dataset_name or self.train_dir or self.train_manifest)

    @property
    def has_validation_data(self) -> bool:
        """Whether held-out clips come from videos of their own."""
        return bool(self.validation_split or self.validation_dir or self.validation_manifest)


@dataclass
class ExtractionArguments(PushArguments):
    """Everything that `examples/extract_trajectories.py` can be told."""

    dataset_name: str | None = flag(None, "HF data set with a Video column: a name on the Hub or a local folder.")
    dataset_config_name: str | None = flag(None, "Configuration of that data set.")
    dataset_split: str = flag("train", "Split of that data set.")
    streaming: bool = flag(False, "Read the data set record by record instead of downloading it first.")
    train_dir: str | None = flag(None, "Folder of class folders, or flat folder of videos.")
    train_manifest: str | None = flag(None, "Text or CSV file of 'path label' lines.")
    output_dir: str = flag("outputs/tracks", "Folder for the data set. An unfinished one is gone on with.")
    tracker: str = flag("dis", "How points are followed; as in the training run.")
    tracker_options: str | None = flag(None, "Options of the tracker, as JSON (a mapping in a recipe file).")
    num_videos_per_shard: int = flag(64, "Videos in a Parquet file, the unit of work that a killed run loses.")
    reader: str = flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    max_bad_fraction: float = flag(0.05, "Stop once a larger share of the videos cannot be read.")
    on_bad_video: str = flag("skip", "'skip' counts and lists unreadable videos; 'error' stops at the first.")
    hub_dataset_id: str | None = flag(None, "Data set to push to. Default: the output folder's name.")
    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.tracker_options = mapping_of("tracker_options", self.tracker_options)
        if self.num_videos_per_shard < 1:
            raise ValueError(f"num_videos_per_shard ({self.num_videos_per_shard}) must be at least 1.")
        check_backend(self.reader, "reader")
        check_one_source(self, "streaming", "dataset_config_name")
