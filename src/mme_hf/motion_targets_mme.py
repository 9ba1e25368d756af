"""What the model has to predict: frames and trajectories in, one vector per token out.

A target is one class and one line in `MOTION_TARGETS`. It knows nothing of the model, of videos or of trackers.
"""

from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Protocol

import torch

from .appearance_targets_mme import FeaturesTarget, PixelsTarget
from .hog_mme import histogram_of_gradients
from .motion_clip_mme import MotionClip, TargetConfig
from .position_target_mme import FlowHistogramTarget, FlowTarget, PositionTarget
from .shape_targets_mme import ShapeAlongTrackTarget, ShapeTarget
from .trajectories_mme import Trajectories, check_options


class MotionTarget(Protocol):
    """One thing to predict for every token.

    Attributes:
        name: Key in `MOTION_TARGETS`.
        activation: Head activation that can express the values: "linear", "sigmoid" or "tanh".
        weight: Default weight of its mean squared error in the loss.
        visible_weight: How much the same error at visible tokens, that a layer on the encoder's features predicts,
            counts beside that at masked ones; both together count `weight`. May be left out: 0.
        needs_trajectories: Whether the call reads its second argument; where no target does, nothing is tracked.
        reads_frames_along_tracks: Whether the call looks at the frames where the points are. Such a target gets the
            tracks as they were seen also where others get them without the camera's motion. May be left out: False.
    """

    name: ClassVar[str]
    needs_trajectories: ClassVar[bool]
    activation: str
    weight: float

    def size(self, config: TargetConfig) -> int:
        """Return the number of values per token."""

    def __call__(self, clip: MotionClip, trajectories: Trajectories) -> tuple[torch.Tensor, torch.Tensor]:
        """Return values, float32 (..., N, size), and which tokens count, bool (..., N)."""


MOTION_TARGETS: dict[str, type] = {
    target.name: target
    for target in (
        ShapeTarget,
        PositionTarget,
        ShapeAlongTrackTarget,
        FlowTarget,
        FlowHistogramTarget,
        PixelsTarget,
        FeaturesTarget,
    )
}

# Processor options that give the behaviour of the published code; "fixed" normalization gives its "none" variant.
REFERENCE_MOTION: Mapping[str, Any] = MappingProxyType(
    {
        "point_layout": "reference",
        "tracker_options": {
            "flow_precision": "whole_pixel",
            "interpolation": "nearest",
            "border": "clamp",
            "visibility": "inside_frame",
        },
        "motion_targets": {
            "shape": {"activation": "sigmoid", "weight": 54.0, "visible_weight": 0.0},
            "position": {
                "scale_px": 20.0,
                "normalization": "patch_std",
                "token_rule": "any",
                "validity": "read_positions",
                "activation": "tanh",
                "weight": 16.0,
                "visible_weight": 0.0,
            },
        },
    }
)


def build_targets(options: Mapping[str, Mapping[str, Any]], **defaults: Any) -> dict[str, MotionTarget]:
    """Return target objects by name, in the order of `options`.

    Args:
        options: Target name -> its options, for example `{"shape": {}, "position": {"weight": 2.0}}`.
        defaults: Values for options that a target has and `options` does not set, for example `cell_size_px=8`.

    Raises:
        ValueError: If a target is unknown or has no such option.
    """
    targets = {}
    for name, own in options.items():
        if name not in MOTION_TARGETS:
            raise ValueError(f"motion target ({name!r}) is unknown. Choose among {sorted(MOTION_TARGETS)}.")
        builder = MOTION_TARGETS[name]
        check_options(f"motion target {name!r}", builder, own)
        known = getattr(builder, "__dataclass_fields__", {})
        targets[name] = builder(**{**{key: value for key, value in defaults.items() if key in known}, **own})
    return targets


def head_options(target: MotionTarget, config: TargetConfig) -> dict[str, Any]:
    """Return what a model has to know of a target: its entry in `MMEConfig.motion_targets`."""
    return {
        "size": target.size(config),
        "activation": target.activation,
        "weight": float(target.weight),
        "visible_weight": float(getattr(target, "visible_weight", 0.0)),
    }


def takes_visible_weight(name: str) -> bool:
    """Return whether a target is known and has the option, which targets may leave out."""
    return "visible_weight" in getattr(MOTION_TARGETS.get(name), "__dataclass_fields__", {})


def written_options(name: str, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of a target with its defaults: a file must mean the same once a default is another.

    Args:
        name: Of the target; one that is not in `MOTION_TARGETS` keeps the options it has.
        own: Options that were given.
    """
    target = MOTION_TARGETS.get(name)
    options = fields(target) if is_dataclass(target) else ()
    # The processor has the size of a cell, for all targets.
    defaults = {option.name: option.default for option in options if option.name != "cell_size_px"}
    return {**{key: value for key, value in defaults.items() if value is not MISSING}, **own}


__all__ = [
    "MOTION_TARGETS",
    "REFERENCE_MOTION",
    "FeaturesTarget",
    "FlowHistogramTarget",
    "FlowTarget",
    "MotionClip",
    "MotionTarget",
    "PixelsTarget",
    "PositionTarget",
    "ShapeAlongTrackTarget",
    "ShapeTarget",
    "TargetConfig",
    "build_targets",
    "head_options",
    "histogram_of_gradients",
    "takes_visible_weight",
    "written_options",
]
