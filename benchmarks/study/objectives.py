"""What the study compares: rows of its tables, each a way to pre-train, and how large everything is."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from mme_hf import REFERENCE_MOTION

# Raw frames from one input frame to the next, of all clips: those of pre-training, probes and fine-tuning.
FRAME_STRIDE = 4
# Sides of the crop per raw frame: motion of any direction for few videos.
MOVING_CROP_SPEED = 0.007


@dataclass(frozen=True)
class Row:
    """One way to pre-train.

    Attributes:
        name: In results and tables.
        about: What is predicted, in words.
        flags: Of `examples/pretrain.py`, beside those that all rows share; None for weights that are not trained.
        rate_of: Row whose learning rate it takes; by default its own is chosen.
        has_all_seeds: Whether it is run with every seed, or with the first alone.
        has_curve: Whether the checkpoints on the way are probed too.
        is_drawn: Whether a picture of what it predicts is drawn; for targets that keep pixels of motion.
        frame_step: Every how many frames of a video there are for pre-training.
        times_as_long: How many times the updates of other rows.
        default: The default of the package, in words, that it gives up for another value.
    """

    name: str
    about: str
    flags: dict[str, Any] | None = field(default_factory=dict)
    rate_of: str | None = None
    has_all_seeds: bool = False
    has_curve: bool = False
    is_drawn: bool = False
    frame_step: int = 1
    times_as_long: int = 1
    default: str | None = None

    @property
    def base(self) -> str:
        """The row that it differs from by its `default` alone."""
        return self.rate_of or "mme"


def _targets(**options: dict[str, Any]) -> dict[str, str]:
    return {"motion_targets": json.dumps(options)}


_PUBLISHED = {
    **_targets(**REFERENCE_MOTION["motion_targets"]),
    "processor_options": json.dumps(
        {name: value for name, value in REFERENCE_MOTION.items() if name != "motion_targets"}
    ),
}
ROWS = (
    Row("random", "nothing: random weights", None, has_all_seeds=True),
    Row("pixels", "normalised pixels (VideoMAE)", _targets(pixels={}), has_all_seeds=True, has_curve=True),
    Row("shape", "shape alone (MaskFeat)", _targets(shape={}), has_all_seeds=True),
    Row("position", "position alone", _targets(position={}), has_all_seeds=True, is_drawn=True),
    Row(
        "published",
        "shape and position as published",
        _PUBLISHED,
        has_all_seeds=True,
        default="linear heads; targets, weights and visible tokens as `mme` has them",
    ),
    Row("mme", "shape and position, this package's defaults", {}, has_all_seeds=True, has_curve=True, is_drawn=True),
    Row(
        "pixels_long",
        "pixels, four times the updates",
        _targets(pixels={}),
        rate_of="pixels",
        has_all_seeds=True,
        times_as_long=4,
    ),
    Row(
        "mme_long",
        "mme, four times the updates",
        rate_of="mme",
        has_all_seeds=True,
        is_drawn=True,
        times_as_long=4,
    ),
    Row(
        "masked_only",
        "mme, visible tokens not predicted",
        _targets(shape={"visible_weight": 0.0}, position={"visible_weight": 0.0}),
        default="visible tokens are predicted too (`visible_weight`)",
    ),
    Row(
        "flow_histogram",
        "mme and the histogram of its points' directions",
        _targets(shape={}, position={}, flow_histogram={}),
        rate_of="mme",
        default="two targets",
    ),
    Row(
        "pixels_gain_1",
        "pixels, differences between frames not amplified at the start",
        {**_targets(pixels={}), "model_options": json.dumps({"frame_difference_gain": 1.0})},
        rate_of="pixels",
        default="differences between frames amplified at the start (`frame_difference_gain`)",
    ),
    Row(
        "pixels_position",
        "pixels and position",
        _targets(pixels={}, position={}),
        rate_of="mme",
        default="shape beside position",
    ),
    Row(
        "fixed",
        "mme, position in proportion to pixels",
        # Weights with which the mean predictor's loss is that of the default (benchmarks/results/compare_targets.md).
        _targets(shape={}, position={"normalization": "fixed", "weight": 2.4}),
        rate_of="mme",
        default="position as asinh of the displacement (`normalization`)",
    ),
    Row(
        "robust_clip",
        "mme, position on a clip's own scale",
        _targets(shape={}, position={"normalization": "robust_clip", "weight": 5.7}),
        rate_of="mme",
        default="position as asinh of the displacement (`normalization`)",
    ),
    Row(
        "shape_15",
        "mme, shape weighs five times as much",
        _targets(shape={"weight": 15.0}, position={}),
        rate_of="mme",
        default="shape weighs 3, position 1 (`weight`)",
    ),
    Row(
        "sampled_frames",
        "mme, without the frames between input frames",
        # Of videos that have lost all other frames.
        {"frame_stride": 1, "trajectory_num_steps": 1, "moving_crop_speed": FRAME_STRIDE * MOVING_CROP_SPEED},
        rate_of="mme",
        frame_step=FRAME_STRIDE,
        default="tracks at the raw frame rate",
    ),
    Row(
        "camera_removed",
        "mme, the camera's motion taken out, and that of moving crops with it",
        {"camera_motion": "remove"},
        rate_of="mme",
        default="the camera's motion is kept (`camera_motion`)",
    ),
    Row(
        "length_2",
        "mme, tracks of 2 raw frames",
        {"trajectory_num_steps": 2},
        rate_of="mme",
        default="tracks of 4 raw frames (`trajectory_num_steps`)",
    ),
    Row(
        "length_8",
        "mme, tracks of 8 raw frames, in clips that are 4 longer",
        {"trajectory_num_steps": 8},
        rate_of="mme",
        default="tracks of 4 raw frames (`trajectory_num_steps`)",
    ),
    Row(
        "mask_50",
        "mme, half of the patches hidden",
        {"mask_ratio": 0.5},
        rate_of="mme",
        default="7 in 10 patches hidden (`mask_ratio`)",
    ),
    Row(
        "mask_90",
        "mme, nine in ten patches hidden",
        {"mask_ratio": 0.9},
        rate_of="mme",
        default="7 in 10 patches hidden (`mask_ratio`)",
    ),
)
BY_NAME = {row.name: row for row in ROWS}


@dataclass(frozen=True)
class Size:
    """How much is computed.

    Attributes:
        pretraining: Flags that all rows share.
        learning_rates: To choose from, for each row that has its own; where the best is the least or the largest of
            those tried, half or twice of it is tried too.
        rate_steps: Updates of a pre-training that a rate is chosen by.
        num_views: Clips of a video, evenly spaced in time, that probes are fitted to, and that they and
            fine-tuned models are judged by.
        num_crops: Of each of these, along the longer side: what happens at the edge of a wide frame counts too.
        num_readout_views: Clips of a video, of the middle of the frame, that motion is read from.
        finetuning: Flags that all fine-tunings share.
        num_finetuning_seeds: Of how many pre-training seeds a fine-tuning is made.
    """

    pretraining: dict[str, Any]
    learning_rates: tuple[float, ...]
    rate_steps: int
    num_views: int
    num_crops: int
    num_readout_views: int
    finetuning: dict[str, Any]
    num_finetuning_seeds: int

    def lengths(self, row: Row) -> dict[str, int]:
        """Return the flags of a pre-training that say how long it is, in updates."""
        names = ("max_train_steps", "warmup_steps", "checkpointing_steps")
        return {name: row.times_as_long * self.pretraining[name] for name in names}

    def shortened(self) -> dict[str, int]:
        """Return what a pre-training that a rate is chosen by has for other lengths."""
        warmup = round(self.rate_steps / self.pretraining["max_train_steps"] * self.pretraining["warmup_steps"])
        return {"max_train_steps": self.rate_steps, "warmup_steps": warmup}

    def configuration(self, row: Row, seed: int, rate: float) -> dict[str, Any]:
        """Return all flags of a pre-training but those that name files."""
        shared = {**self.pretraining, **self.lengths(row), "frame_stride": FRAME_STRIDE}
        return {**shared, **row.flags, "seed": seed, "learning_rate": rate, "min_learning_rate": rate / 100}


# Flags that pre-trainings, and fine-tunings, of all sizes share.
_PRETRAINING = {
    "samples_per_video": 4,
    "moving_crop_speed": MOVING_CROP_SPEED,
    "optimizer": "muon",
    "max_grad_norm": 1.0,
    "mixed_precision": "bf16",
}
_FINETUNING = {
    "config": "examples/configs/finetune-tiny.yaml",
    "frame_sampling": "dense",
    "frame_stride": FRAME_STRIDE,
    "mixed_precision": "bf16",
}
# Of the smaller sizes, which have few updates. Chosen from mme_long on ut_interaction: half of its training videos to
# fit, the other half to judge.
_SHORT_FINETUNING = {
    **_FINETUNING,
    "use_attentive_pooling": "true",
    "layer_decay": 0.5,
    "rand_augment_num_ops": 0,
    "min_crop_scale": 0.8,
    "drop_path_rate": 0.0,
}
SIZES = {
    # Seconds, to see that all of it works.
    "smoke": Size(
        pretraining={
            **_PRETRAINING,
            "preset": "tiny",
            "image_size": 32,
            "per_device_train_batch_size": 4,
            "max_train_steps": 2,
            "warmup_steps": 0,
            "checkpointing_steps": 1,
            "motion_health": "false",
        },
        learning_rates=(1e-3,),
        rate_steps=1,
        num_views=1,
        num_crops=2,
        num_readout_views=1,
        finetuning={
            **_SHORT_FINETUNING,
            "image_size": 32,
            "max_train_steps": 2,
            "warmup_epochs": 0,
        },
        num_finetuning_seeds=1,
    ),
    # Two cores.
    "cpu": Size(
        pretraining={
            **_PRETRAINING,
            "preset": "tiny",
            "per_device_train_batch_size": 16,
            "max_train_steps": 1500,
            "warmup_steps": 75,
            "checkpointing_steps": 300,
            "checkpoints_total_limit": 5,
        },
        learning_rates=(8e-3, 1.6e-2, 3.2e-2),
        rate_steps=300,
        num_views=4,
        num_crops=3,
        num_readout_views=6,
        finetuning={
            **_SHORT_FINETUNING,
            "max_train_steps": 300,
            "warmup_epochs": 1,
        },
        num_finetuning_seeds=1,
    ),
    # One GPU: minutes a run.
    "gpu": Size(
        pretraining={
            **_PRETRAINING,
            "preset": "small",
            "image_size": 112,
            "per_device_train_batch_size": 128,
            "max_train_steps": 8000,
            "warmup_steps": 400,
            "checkpointing_steps": 1000,
            "checkpoints_total_limit": 8,
            "targets_on": "device",
        },
        learning_rates=(1e-3, 3e-3, 1e-2),
        rate_steps=2000,
        num_views=4,
        num_crops=3,
        num_readout_views=6,
        finetuning={
            **_FINETUNING,
            "preset": "small",
            "num_frames": 16,
            "per_device_train_batch_size": 64,
            "max_train_steps": 2000,
            "warmup_epochs": 5,
        },
        num_finetuning_seeds=3,
    ),
}
