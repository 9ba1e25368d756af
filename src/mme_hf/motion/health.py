"""Is the motion that a run learns from sound? Numbers over a few clips, and words where something is off."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..wording import counted
from .consistency import ALTERATIONS
from .measures import MIN_MOVING_SHARE, HeadOptions, ObservedClip, TargetHealth, measure_motion

# Why displacements may fit better when altered.
CAUSES = {
    "x 0.5": "they look 2 times too large. Were tracks of larger frames not resized along?",
    "x 0.75": "they look 1.33 times too large. Were crop and resize applied to the tracks?",
    "x 0.88": "they look 1.14 times too large. Were crop and resize applied to the tracks?",
    "x 1.14": "they look 1.14 times too small. Were crop and resize applied to the tracks?",
    "x 1.33": "they look 1.33 times too small. Were crop and resize applied to the tracks?",
    "x 2": "they look 2 times too small. Were crop and resize applied to the tracks?",
    "at 0": "they have nothing to do with the frames.",
    "mirrored": "frames and tracks are not flipped alike.",
    "with x and y exchanged": "the order of the components is (y, x) somewhere.",
}
ENLARGEMENTS = ("x 1.14", "x 1.33", "x 2")
# Limits between what real clips give (118 of four kinds, 4 by 4 and 6 by 6, at 64 to 224 px) and what faults give.
MAX_LEAVING_SHARE = 0.3
MIN_VALID_SHARE = 0.3
MAX_MISSED_SHARE = 0.5
MIN_SUBPIXEL_SHARE = 0.05
MIN_ALTERATION_GAIN = 0.05
# Flow is smooth and so falls short where small things move: real clips of little else came to 0.09.
MIN_ENLARGEMENT_GAIN = 0.1
# Real clips come to 0, and pass this where their crops are rounded down to cells (tests/motion/test_report.py).
MIN_OFFSET_GAIN = 0.03
MAX_MISFIT_SHARE = 0.34
MAX_CLIPPED_SHARE = 0.05
MAX_REPEATED_SHARE = 0.4
MAX_UNREACHABLE_SHARE = 1e-3
MIN_AGREEMENT = 0.3
MAX_REST_RATIO = 0.5
MAX_REPEAT_DIFFERENCE = 1e-3
MIN_VARIANCE = 1e-8
MIN_COUNTED_SHARE = 0.2
MAX_LOSS_SHARE = 0.98
MAX_SHORT_SHARE = 0.5
MIN_CLIPS = 4
# Where so much rests, that motion makes little of the loss is no matter of weights.
MAX_STATIC_SHARE = 0.7


@dataclass(frozen=True)
class MotionHealth:
    """Numbers over a few clips, and warnings in words. NaN where there was nothing to measure; shares are in [0, 1].

    Attributes:
        num_clips: Clips measured.
        short_share: Clips whose video has fewer raw frames than a clip spans at the frame stride.
        valid_share: Points seen at every position of their track.
        static_share: Valid points that move less than 0.05 px a step.
        clipped_share: Components of displacements beyond `max_displacement_px`.
        subpixel_share: Components other than zero that are no whole number of pixels.
        leaving_share: Points outside the frame after their first step.
        step_px: Component-wise median of the first step, (x, y).
        median_speed_px: Median length of a step.
        fast_speed_px: 99th percentile of the length of a step.
        repeated_share: Pairs of frames in which all rests though it moves before or after, of those in such tracks.
        moving_share: Textured patches that move, by the frames alone.
        missed_share: Those among them whose track stays where it is.
        still_clips_share: Clips in which that is all of them, of the clips that move.
        best_alteration: What would have to be done to displacements to fit the frames best, see `ALTERATIONS`.
        alteration_gain: By how much that lowers the residual, as a share.
        misfit_share: Clips that would, each by itself, fit clearly better when altered.
        best_offset_px: How far from their points displacements fit the frames best, (x, y), see `OFFSETS_PX`.
        offset_gain: By how much that lowers the residual, as a share.
        camera_found_share: Starts of tracks with a camera motion in every step: of others none is removed.
        camera_explained_share: Squared displacement that goes with it; below 0 where the camera follows what moves.
        tracker_ms_per_clip: Median over the clips.
        targets: By name.
        warnings: What is off, in words; empty where nothing is.
    """

    num_clips: int
    short_share: float
    valid_share: float
    static_share: float
    clipped_share: float
    subpixel_share: float
    leaving_share: float
    step_px: tuple[float, float]
    median_speed_px: float
    fast_speed_px: float
    repeated_share: float
    moving_share: float
    missed_share: float
    still_clips_share: float
    best_alteration: str
    alteration_gain: float
    misfit_share: float
    best_offset_px: tuple[float, float]
    offset_gain: float
    camera_found_share: float
    camera_explained_share: float
    tracker_ms_per_clip: float
    targets: Mapping[str, TargetHealth]
    warnings: Sequence[str] = ()

    def rows(self) -> list[tuple[str, str]]:
        """Return what a reader wants to see, as (name, words)."""
        change = "larger" if self.camera_explained_share < 0 else "less"
        rows = [
            (
                "points",
                f"{_percent(self.valid_share)} valid, {_percent(self.static_share)} static, "
                f"{_percent(self.clipped_share)} clipped, {_percent(self.subpixel_share)} of steps sub-pixel",
            ),
            (
                "speed",
                f"median {_number(self.median_speed_px, '.2f')}, 99th percentile "
                f"{_number(self.fast_speed_px, '.1f')} px a frame; "
                f"{_percent(self.repeated_share)} of the frames rest among frames that move",
            ),
            (
                "frames",
                f"{_percent(self.moving_share)} of textured patches move, {_percent(self.missed_share)} of these "
                f"have a track at rest; displacements fit best {self.best_alteration}",
            ),
            (
                "camera",
                f"motion found in all steps of {_percent(self.camera_found_share)} of the starts; without it squared "
                f"displacement is {_percent(abs(self.camera_explained_share))} {change}",
            ),
            ("tracker", f"{self.tracker_ms_per_clip:.0f} ms a clip"),
        ]
        if math.isnan(self.valid_share):
            rows = [("points", "no target reads tracks: none were made")]
        for name, target in self.targets.items():
            text = (
                f"variance {_number(target.variance, '.3g')}; the mean predictor's loss is "
                f"{_number(target.mean_loss, '.3g')}, {_percent(target.loss_share)} of the total; largest "
                f"{_number(target.largest, '.2g')}"
            )
            if target.activation != "linear":
                text += f", {_percent(target.unreachable_share)} beyond {target.activation}"
            rows.append((name, text))
        return rows

    def summary(self) -> str:
        """Return three lines, for the screen of a run, and the warnings."""
        motion = "no target reads tracks"
        if not math.isnan(self.valid_share):
            motion = (
                f"{_percent(self.valid_share)} of points valid, {_percent(self.static_share)} static, median "
                f"{_number(self.median_speed_px, '.2f')} px a frame; tracker {self.tracker_ms_per_clip:.0f} ms a clip"
            )
        losses = ", ".join(
            f"{name} {_number(target.mean_loss, '.3g')} ({_percent(target.loss_share)} of the total)"
            for name, target in self.targets.items()
        )
        lines = [
            f"motion health of {counted(self.num_clips, 'clip')}: {motion}",
            f"  loss of predicting the mean: {losses}",
        ]
        return "\n".join([*lines, *self._warning_lines()])

    def _warning_lines(self) -> list[str]:
        return [f"  WARNING: {text}" for text in self.warnings] or ["  no warnings"]

    def __str__(self) -> str:
        rows = self.rows()
        width = max(len(name) for name, _ in rows)
        lines = [
            f"motion health of {counted(self.num_clips, 'clip')}:",
            *(f"  {name:<{width}}  {text}" for name, text in rows),
        ]
        return "\n".join([*lines, *self._warning_lines()])

    def to_markdown(self) -> str:
        """Return the numbers as a table whose source is aligned too, and the warnings as a list below it."""
        rows = [("measure", f"over {counted(self.num_clips, 'clip')}"), *self.rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(2)]
        lines = [f"| {name:<{widths[0]}} | {text:<{widths[1]}} |" for name, text in rows]
        lines.insert(1, f"|{'-' * (widths[0] + 2)}|{'-' * (widths[1] + 2)}|")
        warnings = [f"* **Warning**: {text}" for text in self.warnings] or ["No warnings."]
        return "\n".join([*lines, "", *warnings])

    def to_dict(self) -> dict[str, Any]:
        """Return everything as values for JSON, NaN as None."""
        return _without_nan(asdict(self))


def motion_health(
    clips: Sequence[ObservedClip], heads: Mapping[str, HeadOptions], max_displacement_px: float = math.inf
) -> MotionHealth:
    """Return the numbers of a few clips, and a warning for everything that is off.

    Args:
        clips: As `mme_hf.motion.report.observe_clips` returns them; six of different videos are enough.
        heads: Activation and weight of each target.
        max_displacement_px: Limit of a displacement in the labels.

    Raises:
        ValueError: If there is no clip.
    """
    health = MotionHealth(**measure_motion(clips, heads, max_displacement_px))
    return replace(health, warnings=[*track_warnings(health), *target_warnings(health)])


def track_warnings(health: MotionHealth) -> list[str]:
    """Return what is wrong with the tracks, in words."""
    warnings = []
    share = {name: _percent(value) for name, value in vars(health).items() if name.endswith("_share")}
    if health.short_share > MAX_SHORT_SHARE:
        warnings.append(
            f"{share['short_share']} of the clips are of videos that have fewer frames than a clip spans: they are "
            "seen at a smaller frame stride, so that motion is slower, and where that is not enough their last frame "
            "repeats. Use a smaller --frame_stride or --num_frames."
        )
    if health.leaving_share > MAX_LEAVING_SHARE:
        x, y = health.step_px
        warnings.append(
            f"{share['leaving_share']} of the points leave the frame in their first step, the typical one being "
            f"({x:.0f}, {y:.0f}) px: is raw flow (0..255, 128 for rest) read as pixels? Subtract 128, and multiply by "
            "the pixels that a grey value stands for."
        )
    elif health.valid_share < MIN_VALID_SHARE:
        warnings.append(
            f"only {share['valid_share']} of the points are seen at every position of their track: many cuts, or "
            "motion that the tracker cannot follow. Look at the tracks; fewer trajectory_num_steps lose fewer points."
        )
    if health.subpixel_share < MIN_SUBPIXEL_SHARE:
        # Cut to whole pixels, slow points rest and the others are too slow: no warnings of their own.
        warnings.append(
            "displacements are whole numbers of pixels: motion below 1 px a frame is lost. Is flow cut to integers, "
            "or stored as such? Keep fractions (flow_precision 'subpixel')."
        )
    else:
        warnings += _misfit_warnings(health)
    if health.clipped_share > MAX_CLIPPED_SHARE:
        warnings.append(
            f"{share['clipped_share']} of the displacements are beyond max_displacement_px and cut: raise it."
        )
    return warnings


def _misfit_warnings(health: MotionHealth) -> list[str]:
    warnings = []
    if health.moving_share > MIN_MOVING_SHARE and health.missed_share > MAX_MISSED_SHARE:
        static = _percent(health.static_share)
        extent = "every track is static" if health.static_share > 0.99 else f"{static} of the tracks are static"
        warnings.append(
            f"{extent} but the frames change: {_percent(health.moving_share)} of the textured patches move, and "
            f"{_percent(health.missed_share)} of these have a track at rest. Are tracks missing and replaced by zeros? "
            "Make them anew."
        )
    elif health.still_clips_share > 0:
        warnings.append(
            f"in {_percent(health.still_clips_share)} of the clips that move every track rests. Are the tracks of some "
            "videos missing and replaced by zeros? Make them anew."
        )
    limit = MIN_ENLARGEMENT_GAIN if health.best_alteration in ENLARGEMENTS else MIN_ALTERATION_GAIN
    if health.best_alteration != next(iter(ALTERATIONS)) and health.alteration_gain > limit:
        warnings.append(
            f"displacements would fit the frames better {health.best_alteration} "
            f"(residual {_percent(health.alteration_gain)} lower): {CAUSES[health.best_alteration]}"
        )
    elif health.misfit_share > MAX_MISFIT_SHARE:
        warnings.append(
            f"in {_percent(health.misfit_share)} of the clips displacements would fit the frames clearly better if "
            "scaled or mirrored, not in all alike. Were each clip's own crop, resize and flip applied to its tracks?"
        )
    if health.offset_gain > MIN_OFFSET_GAIN:
        x, y = health.best_offset_px
        warnings.append(
            f"displacements would fit the frames better ({x:+.0f}, {y:+.0f}) px from their points (residual "
            f"{_percent(health.offset_gain)} lower): tracks are read beside their place. Was the crop rounded to cells "
            "of their grid?"
        )
    # One person may well pause so often; the clips of a data set do not.
    if health.repeated_share > MAX_REPEATED_SHARE and health.num_clips > 1:
        warnings.append(
            f"{_percent(health.repeated_share)} of the frames seem to repeat the one before: nothing moves in them of "
            "what moves before or after. Was the frame rate raised by copying frames? Drop the copies (ffmpeg -vf "
            "mpdecimate)."
        )
    return warnings


def target_warnings(health: MotionHealth) -> list[str]:
    """Return what is wrong with the labels, in words."""
    warnings = []
    for name, target in health.targets.items():
        if target.counted_share > 0 and not math.isfinite(target.largest):
            warnings.append(
                f"{name}: some labels of tokens that count are no finite numbers, and so is the loss. Look at what "
                "they are made of."
            )
        if target.unreachable_share > MAX_UNREACHABLE_SHARE:
            warnings.append(
                f"{name}: {_percent(target.unreachable_share)} of the labels are beyond what {target.activation} can "
                f"give (the largest is {target.largest:.2g}). Use activation 'linear', or another scale."
            )
        if target.agreement < MIN_AGREEMENT:
            warnings.append(
                f"{name}: labels hardly follow the displacements they stand for (cosine {target.agreement:.2f}; a pure "
                "translation may become 0). Use normalization 'arcsinh'."
            )
        if target.rest_ratio > MAX_REST_RATIO:
            warnings.append(
                f"{name}: labels of tokens at rest are {target.rest_ratio:.2f} times as large as those of tokens that "
                "move: noise is amplified. Use normalization 'arcsinh'."
            )
        if target.repeat_difference > MAX_REPEAT_DIFFERENCE:
            warnings.append(
                f"{name}: labels of the same clip differ by {_percent(target.repeat_difference)} when made twice: "
                "something in the target is drawn at random. Make it a function of the clip alone."
            )
        if target.variance < MIN_VARIANCE:
            warnings.append(
                f"{name}: labels do not vary (variance {target.variance:.1g}): there is nothing to learn. Look at what "
                "they are made of, or take the target out."
            )
        if target.counted_share < MIN_COUNTED_SHARE:
            warnings.append(
                f"{name}: only {_percent(target.counted_share)} of the masked tokens count: clips shorter than their "
                "window, or lost tracks. A smaller frame_stride, num_frames or trajectory_num_steps keeps more."
            )
        others = [other for other in health.targets.values() if other is not target and other.variance >= MIN_VARIANCE]
        is_enough = health.num_clips >= MIN_CLIPS and not health.static_share > MAX_STATIC_SHARE
        if target.loss_share > MAX_LOSS_SHARE and others and is_enough:
            warnings.append(
                f"{name} makes {_percent(target.loss_share)} of the loss of a predictor of the mean: the other targets "
                "hardly count. Change the weights (--motion_targets NAME:WEIGHT ...)."
            )
    return warnings


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else f"{value:{form}}"


def _percent(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.{1 if share < 0.1 else 0}f} %"


def _without_nan(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
