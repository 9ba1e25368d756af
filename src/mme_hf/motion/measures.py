"""Numbers that tell whether the motion a run learns from is sound, measured over a few clips."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch

from ..trajectories_mme import Trajectories, is_inside
from .camera_motion import remove_camera_motion
from .consistency import ALTERATIONS, OFFSETS_PX, alteration_residuals, moving_patches, offset_residuals

# Displacement per step below which a track counts as static: a third of what DIS errs by on a still camera's noise.
STATIC_STEP_PX = 0.05
MOVING_STEP_PX = 0.5
MOVED_PX = 1.0
# A step on to a copied frame is at most this share of the point's longest: codecs do not copy exactly.
MAX_COPY_STEP = 0.2
# Fewer say nothing: of one clip, of all clips.
MIN_POINTS = 50
MIN_POINTS_OF_ALL = 150
MIN_TOKENS = 20
MIN_PAIRS = 40
# A clip's tracks are off when altering them lowers its residual by so much: of 118 real clips one came so far.
CLEAR_GAIN = 0.1
MIN_JUDGED_CLIPS = 3
# A clip's tracks are missing when hardly one of the patches that move has a track that does: in 38 real clips that
# move, at most 0.32 of these patches had none.
MIN_MOVING_SHARE = 0.05
ALL_MISSED_SHARE = 0.95
# Share -> what it is a share of; both are counts of `measure_motion`.
_SHARES = {
    "valid": "points",
    "static": "valid",
    "clipped": "components",
    "subpixel": "moved_components",
    "leaving": "points",
    "repeated": "pairs",
    "moving": "known",
    "missed": "moving",
    "still_clips": "moving_clips",
    "camera_found": "starts",
    "camera_explained": "squared",
}


class HeadOptions(Protocol):
    """What is asked of a target besides its labels."""

    activation: str
    weight: float


@dataclass(frozen=True)
class ObservedClip:
    """One clip on its way to the model.

    Attributes:
        source: Name of the video.
        frames: What the tracker was given, uint8 (T, 3, H, W).
        tracks: What it returned, points_xy (S, L + 1, P, 2), those that run into repeated frames never visible; None
            where no target reads tracks.
        start_frames: Which of `frames` the tracks start at.
        tracker_seconds: How long it took.
        learned_tracks: `tracks` as labels are made of them, without the camera's motion where that is removed; None for
            `tracks` as they are.
        is_short: Whether the video, or its part, has fewer raw frames than a clip spans at the frame stride.
        labels: Of each target, float32 (N, size).
        counts: Of each target, which tokens count, bool (N,).
        is_masked: Which tokens are hidden, bool (N,).
        motion_px: Of targets whose labels stand for displacements, these in pixels, laid out as the labels.
        labels_px: Of those among them whose labels keep pixels, the displacements that the labels say, laid out alike.
        repeat_differences: Of each target, norm of the difference to labels made a second time over the labels' norm.
    """

    source: str
    frames: torch.Tensor = field(repr=False)
    tracks: Trajectories | None = field(repr=False)
    start_frames: Sequence[int] = ()
    tracker_seconds: float = math.nan
    learned_tracks: Trajectories | None = field(default=None, repr=False)
    is_short: bool = False
    labels: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    counts: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    is_masked: torch.Tensor | None = field(default=None, repr=False)
    motion_px: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    labels_px: Mapping[str, torch.Tensor] = field(default_factory=dict, repr=False)
    repeat_differences: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class TargetHealth:
    """Numbers of one target. NaN where there was nothing to measure.

    Attributes:
        activation: How its head ends.
        counted_share: Masked tokens that count.
        variance: Of the labels over masked tokens that count, mean over values.
        mean_loss: Loss, not weighted, of predicting each value's mean.
        loss_share: Share of the weighted total loss that this is, if visible tokens are like masked ones.
        unreachable_share: Labels beyond what the activation can give.
        largest: Largest absolute label.
        agreement: Cosine between labels, in pixels if they keep these, and the displacements they stand for.
        rest_ratio: Root mean square label of tokens at rest over that of moving tokens.
        repeat_difference: Largest relative difference between labels made twice of the same clip.
    """

    activation: str
    counted_share: float
    variance: float
    mean_loss: float
    loss_share: float
    unreachable_share: float
    largest: float
    agreement: float
    rest_ratio: float
    repeat_difference: float


def measure_motion(
    clips: Sequence[ObservedClip], heads: Mapping[str, HeadOptions], max_displacement_px: float = math.inf
) -> dict[str, Any]:
    """Return the fields of `MotionHealth` but its warnings.

    Args:
        clips: At least one; few are enough, of different videos.
        heads: Activation and weight of each target.
        max_displacement_px: Limit of a displacement in the labels.

    Raises:
        ValueError: If there is no clip.
    """
    if not clips:
        raise ValueError("there is no clip to measure: no video of these batches could be read.")
    totals, residuals, residuals_beside = Counter(), Counter(), Counter()
    gains = []
    speeds, first_steps = [torch.empty(0)], [torch.empty(0, 2)]
    for clip in clips:
        if clip.tracks is None:
            continue
        _add_tracks(totals, clip, max_displacement_px, speeds, first_steps)
        some = _thinned(clip)
        _add_frames(totals, some)
        _add_camera(totals, some)
        sums, count = alteration_residuals(some.tracks, some.frames, some.start_frames)
        residuals.update(sums)
        residuals_beside.update(offset_residuals(some.tracks, some.frames, some.start_frames))
        totals.update(judged=count, tracked_clips=1)
        if count >= MIN_POINTS:
            gains.append(_best(sums)[1])
    speed, steps = torch.cat(speeds), torch.cat(first_steps)
    best, gain = next(iter(ALTERATIONS)), math.nan
    if totals["judged"] >= MIN_POINTS_OF_ALL:
        best, gain = _best(residuals)
    # Edges of what moves in one clip may well fit better beside their place, by chance.
    offset, offset_gain = OFFSETS_PX[0], math.nan
    if totals["tracked_clips"] >= MIN_JUDGED_CLIPS:
        offset, offset_gain = _best(residuals_beside)
    if totals["pairs"] < MIN_PAIRS:
        totals["pairs"] = 0
    num_misfits = sum(clip_gain > CLEAR_GAIN for clip_gain in gains)
    seconds = torch.tensor([clip.tracker_seconds for clip in clips]).nanmedian()
    return {
        "num_clips": len(clips),
        "short_share": sum(clip.is_short for clip in clips) / len(clips),
        **{f"{name}_share": _ratio(totals[name], totals[of]) for name, of in _SHARES.items()},
        "step_px": tuple(steps.median(0).values.tolist()) if len(steps) else (math.nan, math.nan),
        "median_speed_px": float(speed.nanmedian()),
        "fast_speed_px": float(speed.nanquantile(0.99)) if len(speed) else math.nan,
        "best_alteration": best,
        "alteration_gain": gain,
        "best_offset_px": offset,
        "offset_gain": offset_gain,
        "misfit_share": num_misfits / len(gains) if len(gains) >= MIN_JUDGED_CLIPS else math.nan,
        "tracker_ms_per_clip": 1000 * float(seconds),
        "targets": measure_targets(clips, heads),
    }


def measure_targets(clips: Sequence[ObservedClip], heads: Mapping[str, HeadOptions]) -> dict[str, TargetHealth]:
    """Return the numbers of each target over the clips."""
    masked = {name: torch.cat([clip.labels[name][clip.is_masked] for clip in clips]).double() for name in heads}
    counts = {name: torch.cat([clip.counts[name][clip.is_masked] for clip in clips]) for name in heads}
    variances = {name: _variance(masked[name][counts[name]]) for name in heads}
    losses = {name: variances[name] * _ratio(counts[name].sum(), counts[name].numel()) for name in heads}
    # A target that nothing was measured of says nothing of the others.
    total = sum(head.weight * losses[name] for name, head in heads.items() if math.isfinite(losses[name]))
    result = {}
    for name, head in heads.items():
        values = masked[name][counts[name]]
        agreement, rest_ratio = _agreement(clips, name)
        repeats = [clip.repeat_differences[name] for clip in clips if name in clip.repeat_differences]
        limits = {"tanh": (-1.0, 1.0), "sigmoid": (0.0, 1.0)}.get(head.activation, (-math.inf, math.inf))
        beyond = (values <= limits[0]) & (values < 0) | (values >= limits[1])
        result[name] = TargetHealth(
            activation=head.activation,
            counted_share=_ratio(counts[name].sum(), counts[name].numel()),
            variance=variances[name],
            mean_loss=losses[name],
            loss_share=_ratio(head.weight * losses[name], total),
            unreachable_share=_ratio(beyond.sum(), beyond.numel()),
            largest=float(values.abs().max()) if values.numel() else math.nan,
            agreement=agreement,
            rest_ratio=rest_ratio,
            repeat_difference=max(repeats) if repeats else math.nan,
        )
    return result


def _add_tracks(
    totals: Counter,
    clip: ObservedClip,
    max_displacement_px: float,
    speeds: list[torch.Tensor],
    first_steps: list[torch.Tensor],
) -> None:
    tracks = clip.tracks
    begun, valid = tracks.is_visible[:, 0], tracks.is_visible.all(1)
    steps = tracks.displacements  # (S, L, P, 2)
    seen = tracks.is_visible[:, :-1] & tracks.is_visible[:, 1:]
    components = steps[seen]
    moved = components[components.abs() > 1e-3]
    learned = (tracks if clip.learned_tracks is None else clip.learned_tracks).displacements
    totals["points"] += begun.numel()
    totals["valid"] += int(valid.sum())
    totals["static"] += int((_way(tracks)[valid] < STATIC_STEP_PX * tracks.num_steps).sum())
    totals["components"] += components.numel()
    totals["clipped"] += int((learned[seen].abs() > max_displacement_px).sum())
    totals["moved_components"] += moved.numel()
    totals["subpixel"] += int(((moved - moved.round()).abs() > 1e-3).sum())
    totals["leaving"] += int((begun & ~is_inside(tracks.points_xy[:, 1], tracks.frame_size)).sum())
    speeds.append(components.norm(dim=-1)[::7])  # every 7th: a quantile needs no more
    first_steps.append(steps[:, 0][begun])
    num_copied, num_judged = _copied_frames(tracks)
    totals["repeated"] += num_copied
    totals["pairs"] += num_judged


def _copied_frames(tracks: Trajectories) -> tuple[int, int]:
    """Return in how many pairs of frames nothing moves of what moves before or after, and of how many pairs.

    Pixels would not tell: a codec changes copies a little, and leaves frames of a scene at rest all the same.
    """
    lengths = tracks.displacements.norm(dim=-1)  # (S, L, P)
    shares = lengths / lengths.amax(1, keepdim=True).clamp(min=STATIC_STEP_PX)
    # What noise and codecs do to a scene at rest leads nowhere.
    moves = tracks.is_visible.all(1) & (_way(tracks) > MOVED_PX)
    typical = shares.masked_fill(~moves[:, None], math.nan).nanmedian(-1).values  # (S, L)
    is_enough = moves.sum(-1) >= MIN_TOKENS
    return int((typical < MAX_COPY_STEP)[is_enough].sum()), typical[is_enough].numel()


def _way(tracks: Trajectories) -> torch.Tensor:
    """Return how far points come, in pixels, shape (S, P)."""
    return (tracks.points_xy[:, -1] - tracks.points_xy[:, 0]).norm(dim=-1)


def _thinned(clip: ObservedClip) -> ObservedClip:
    """Return the clip with every other start: what is asked of the pixels takes as long as the tracking."""
    tracks = clip.tracks
    half = Trajectories(tracks.points_xy[::2], tracks.is_visible[::2], tracks.frame_size)
    return replace(clip, tracks=half, start_frames=clip.start_frames[::2])


def _add_frames(totals: Counter, clip: ObservedClip) -> None:
    moving, known = moving_patches(clip.tracks, clip.frames, clip.start_frames)
    rests = clip.tracks.displacements[:, 0].norm(dim=-1) < STATIC_STEP_PX
    num_known, num_moving, num_missed = int(known.sum()), int(moving.sum()), int((moving & rests).sum())
    totals.update(known=num_known, moving=num_moving, missed=num_missed)
    if num_moving >= MIN_POINTS and num_moving > MIN_MOVING_SHARE * num_known:
        totals.update(moving_clips=1, still_clips=int(num_missed > ALL_MISSED_SHARE * num_moving))


def _add_camera(totals: Counter, clip: ObservedClip) -> None:
    own = remove_camera_motion(clip.tracks, clip.frames, clip.start_frames)
    # One slipped track of 80 px outweighs a thousand others: only those that hold to their end.
    valid = clip.tracks.is_visible.all(1, keepdim=True)
    squared, rest = (float((tracks.displacements.square().sum(-1) * valid).sum()) for tracks in (clip.tracks, own))
    found = own.camera_motion_found.all(-1)
    totals.update(starts=found.numel(), camera_found=int(found.sum()), squared=squared, camera_explained=squared - rest)


def _best(residuals: Mapping[Any, float]) -> tuple[Any, float]:
    """Return what fits best, and the share by which it lowers the residual of the first, which is no change."""
    best = min(residuals, key=residuals.__getitem__)
    return best, 1 - _ratio(residuals[best], residuals[next(iter(residuals))])


def _agreement(clips: Sequence[ObservedClip], name: str) -> tuple[float, float]:
    """Return the cosine between labels and displacements, and root mean square labels at rest over those that move."""
    pairs = [
        (
            clip.labels_px.get(name, clip.labels[name])[clip.counts[name]].double(),
            clip.motion_px[name][clip.counts[name]].double(),
        )
        for clip in clips
        if name in clip.motion_px
    ]
    if not pairs:
        return math.nan, math.nan
    labels, motion = (torch.cat(values) for values in zip(*pairs, strict=True))
    cosine = _ratio((labels * motion).sum(), labels.norm() * motion.norm())
    speed = motion.square().mean(-1).sqrt()
    rests, moves = speed < STATIC_STEP_PX, speed > MOVING_STEP_PX
    if min(int(rests.sum()), int(moves.sum())) < MIN_TOKENS:
        return cosine, math.nan
    return cosine, math.sqrt(_ratio(labels[rests].square().mean(), labels[moves].square().mean()))


def _variance(values: torch.Tensor) -> float:
    return float(values.var(0, unbiased=False).mean()) if values.numel() else math.nan


def _ratio(part: Any, whole: Any) -> float:
    return float(part) / float(whole) if whole else math.nan
