"""`--motion_targets` and `--teacher`, as options of the processor and weights of a loaded model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..motion_targets_mme import takes_visible_weight
from ..video_options_mme import named_targets

if TYPE_CHECKING:
    from ..modeling_mme import MMEForPreTraining
    from ..video_processing_mme import MMEVideoProcessor
    from .arguments import PretrainingArguments


def processor_options(args: PretrainingArguments) -> dict[str, Any]:
    """Return `args.processor_options`, with the motion targets that the flags name.

    Raises:
        ValueError: If the targets are said twice or cannot be understood, or a teacher is given and nothing to teach.
    """
    options = dict(args.processor_options)
    if args.motion_targets:
        if "motion_targets" in options:
            raise ValueError("motion_targets and processor_options both say what is predicted. Give one of them.")
        options["motion_targets"] = parse_motion_targets(args.motion_targets)
    if args.teacher:
        targets = named_targets(options.get("motion_targets") or {})
        if "features" not in targets:
            raise ValueError(
                f"teacher ({args.teacher!r}) has nothing to teach: 'features' is not among the targets. Add it, as in "
                "--motion_targets shape position features."
            )
        options["motion_targets"] = {**targets, "features": {**targets["features"], "teacher": args.teacher}}
    return options


def check_teachers_are_public(args: PretrainingArguments, processor: MMEVideoProcessor) -> None:
    """Raise ValueError if a run that is pushed has a teacher of this machine alone, wherever it was named."""
    for target in processor.motion_targets.values() if args.push_to_hub else ():
        teacher = target.get("teacher")
        if teacher and Path(teacher).exists():
            raise ValueError(
                f"teacher ({teacher!r}) is a folder here, which those who load the processor from the Hub do not "
                "have. Push the teacher first, and give its name there."
            )


def parse_motion_targets(words: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Return target name -> options from `name` and `name:weight` words, or from one word of JSON.

    Raises:
        ValueError: If a word is neither, a weight is no number, or a target is named twice.
    """
    if len(words) == 1 and words[0].lstrip().startswith("{"):
        try:
            return json.loads(words[0])
        except json.JSONDecodeError as error:
            raise ValueError(f"motion_targets ({words[0]!r}) is not JSON: {error}.") from error
    targets: dict[str, dict[str, Any]] = {}
    for word in words:
        name, _, weight = word.partition(":")
        if name in targets:
            raise ValueError(f"motion_targets ({' '.join(words)}) names {name!r} twice. Name each target once.")
        try:
            targets[name] = {"weight": float(weight)} if weight else {}
        except ValueError:
            raise ValueError(
                f"motion_targets has {word!r}; it must be a name, or a name and a weight such as 'position:0.5'."
            ) from None
    return targets


def set_target_weights(model: MMEForPreTraining, processor: MMEVideoProcessor) -> None:
    """Give the losses of a loaded model the weights that were asked for; its heads stay as they are.

    A target that is asked for without a `visible_weight` keeps the model's, here and in the processor; layers for
    visible tokens that are not wanted are left out.

    Raises:
        ValueError: If the heads that are asked for are not the model's.
    """
    for name, target in model.config.motion_targets.items():
        if takes_visible_weight(name):
            kept = {"visible_weight": target.get("visible_weight", 0.0)}
            processor.motion_targets[name] = {**kept, **processor.motion_targets[name]}
    wanted = processor.motion_target_config()
    for name, target in model.config.motion_targets.items():
        if target["activation"] != wanted[name]["activation"]:
            raise ValueError(
                f"motion target {name!r} was trained with activation {target['activation']!r}, and "
                f"{wanted[name]['activation']!r} is asked for. Leave the activation as in its training."
            )
        asked = wanted[name]["visible_weight"]
        if asked and name not in model.visible_heads:
            raise ValueError(
                f"motion target {name!r} was trained without a visible_weight, and {asked} is asked for: there is no "
                "layer for it. Leave it out."
            )
        if not asked and name in model.visible_heads:
            del model.visible_heads[name]
    model.config.motion_targets = wanted
