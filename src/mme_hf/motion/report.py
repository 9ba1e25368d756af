"""The health report of a data set's motion: `python -m mme_hf.motion.report --train_dir my_videos`.

It takes a few clips on the way that training takes them, looks at what the tracker returned and what labels came of
it, prints numbers and warnings, and writes them to `motion_health.json` with a picture of the tracks beside them.
"""

from __future__ import annotations

import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from accelerate import PartialState
from huggingface_hub.errors import StrictDataclassError

from ..clip_tracks_mme import clip_tracks
from ..data import ClipSampling, VideoRecords, build_clip_loader
from ..data.bad_videos import printable
from ..motion_targets_mme import MotionClip, build_targets
from ..position_target_mme import PositionTarget
from ..raw_clips_mme import RawClips
from ..training.arguments import PretrainingArguments
from ..training.parsing import parse_arguments
from ..training.setup import (
    build_model_and_processor,
    check_output_dir,
    load_records,
    open_stored_tracks,
    train_sampling,
)
from ..trajectories_mme import Trajectories, build_tracker
from ..video_processing_mme import MMEVideoProcessor
from ..visualization import tracks_sheet
from .health import MotionHealth, motion_health
from .measures import ObservedClip

if TYPE_CHECKING:
    from ..data import StoredTracks

logger = logging.getLogger(__name__)

# Clips whose labels are made twice: a target that draws is found out by one.
NUM_REPEATED = 2
# Below this most labels keep the motion that was to be taken out of them.
MIN_CAMERA_FOUND_SHARE = 0.5


class _ObservedTracker:
    """Passes on what a tracker returns, and keeps it; a second call for the same clip is answered from memory."""

    def __init__(self, tracker: Any):
        self.tracker = tracker
        self.name, self.options = getattr(tracker, "name", "observed"), getattr(tracker, "options", {})
        self.frames: torch.Tensor | None = None
        self.tracks: Trajectories | None = None
        self._answer: Trajectories | None = None
        self.start_frames: tuple[int, ...] = ()
        self.seconds = float("nan")
        if hasattr(tracker, "for_clip"):
            self.for_clip = self._for_clip

    def __call__(self, frames: torch.Tensor, points_xy: torch.Tensor, *, start_frames=(0,), num_steps: int):
        if self._answer is None:
            _wait_for(frames.device)
            started = time.perf_counter()
            self._answer = self.tracker(frames, points_xy, start_frames=start_frames, num_steps=num_steps)
            _wait_for(frames.device)
            self.seconds = time.perf_counter() - started
            self.tracks = self._answer.each(lambda tensor: tensor[0].cpu())
            self.frames, self.start_frames = frames[0].cpu(), tuple(start_frames)
        return self._answer

    def _for_clip(self, *clip: Any) -> _ObservedTracker:
        self.tracker = self.tracker.for_clip(*clip)
        return self


class ClipObserver:
    """A processor that keeps what goes through it, one clip of raw frames a call.

    Args:
        processor: Makes the samples.
        device: Where targets are made.

    Attributes:
        clips: What was observed, one entry per call.
    """

    def __init__(self, processor: MMEVideoProcessor, device: torch.device | str = "cpu"):
        self.processor = processor
        self.device = device
        self.clips: list[ObservedClip] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self.processor, name)

    def __call__(
        self, raw_frames: torch.Tensor, *, source: str = "", tracker: Any = None, **options: Any
    ) -> Mapping[str, torch.Tensor]:
        """Return what the processor returns for one clip, on the CPU."""
        tracker = self.processor.tracker if tracker is None else tracker
        if isinstance(tracker, str):
            tracker = build_tracker(tracker, **(self.processor.tracker_options or {}))
        observed = _ObservedTracker(tracker)
        # What says which clip this is; what comes back is always targets, as tensors.
        cut = {name: value for name, value in options.items() if name not in ("return_targets", "return_tensors")}
        clips = [own.to(self.device) for own in self.processor.cut_raw_clips(raw_frames, tracker=observed, **cut)]
        sample = self._sample(clips, observed)
        labels = _by_target(self.processor, sample)
        repeats = {}
        if len(self.clips) < NUM_REPEATED:
            again = self._sample(clips, observed)
            repeats = {
                name: float((labels[name] - second).norm() / labels[name].norm().clamp(min=1e-12))
                for name, second in _by_target(self.processor, again).items()
            }
        seen, learned = None, None
        if observed.tracks is not None:
            seen, learned = clip_tracks(observed.tracks, observed.frames, clips[0].plan, self.processor)
        self.clips.append(
            ObservedClip(
                source,
                raw_frames if observed.frames is None else observed.frames,
                seen,
                observed.start_frames,
                observed.seconds,
                learned_tracks=learned,
                # A window at a smaller stride, or one cut short, ends before.
                is_short=clips[0].plan.raw_frames[-1] + 1 < self.processor.raw_window(),
                labels=labels,
                counts=dict(zip(labels, sample["target_mask"][0].unbind(-1), strict=True)),
                is_masked=sample["bool_masked_pos"][0],
                motion_px=_motion_in_px(self.processor, sample["pixel_values"][0], learned),
                labels_px=_labels_in_px(self.processor, labels, sample["pixel_values"].shape[-2:]),
                repeat_differences=repeats,
            )
        )
        return sample

    def _sample(self, clips: list[RawClips], tracker: _ObservedTracker) -> dict[str, torch.Tensor]:
        inputs = self.processor.inputs_from_raw_clips(clips, tracker=tracker)
        return {name: tensor.cpu() for name, tensor in inputs.items()}


def _wait_for(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def observe_clips(
    records: VideoRecords,
    processor: MMEVideoProcessor,
    *,
    num_clips: int = 6,
    sampling: ClipSampling | None = None,
    stored_tracks: StoredTracks | None = None,
    seed: int = 0,
    device: torch.device | str = "cpu",
) -> list[ObservedClip]:
    """Return a clip of each of the first videos of the first epoch, observed on its way.

    Videos that cannot be read are left out, and a warning names each.

    Args:
        records: The videos.
        processor: Makes the samples.
        num_clips: How many clips to take, at most.
        sampling: How clips are cut; of each video only one is taken, as those of one video say the same.
        stored_tracks: Where tracks are read; None to track on line.
        seed: Seed of order, crops and masks.
        device: Where targets are made.
    """
    observer = ClipObserver(processor, device)
    is_stream = records.num_records is None
    loader = build_clip_loader(
        # Shuffling a stream would first fill a buffer.
        records.limited(num_clips) if is_stream else records,
        observer,
        batch_size=1,
        sampling=replace(sampling or ClipSampling(), samples_per_video=1),
        stored_tracks=stored_tracks,
        shuffle=not is_stream,
        seed=seed,
        num_epochs=1,
    )
    observer.clips.clear()  # the collator asks for the shapes of a grey clip
    sources: list[str] = []
    # Targets and trackers of others may draw from torch's own generators; the run must not notice.
    with torch.random.fork_rng(_devices_in_use()):
        for batch in islice(loader, 2 * num_clips):
            sources += batch["sources"]
            for bad in batch["bad_videos"]:
                logger.warning("left out of the report: %s: %s", printable(bad.source), bad.cause)
            if len(sources) >= num_clips:
                break
    named = [replace(clip, source=source) for clip, source in zip(observer.clips, sources, strict=True)]
    return named[:num_clips]


def report_motion(
    records: VideoRecords,
    processor: MMEVideoProcessor,
    output_dir: str | Path,
    *,
    detail: Literal["summary", "all"] = "summary",
    **observation: Any,
) -> MotionHealth | None:
    """Log the health of a data set's motion and write it to `motion_health.json`, with `motion_tracks.png` beside it.

    The picture is there only where a target reads tracks.

    Args:
        records: The videos.
        processor: Makes the samples.
        output_dir: Folder to write to.
        detail: How much of it to log.
        **observation: Options of `observe_clips`.

    Returns:
        The health, or None, saying so, where no clip could be read.
    """
    clips = observe_clips(records, processor, **observation)
    if not clips:
        logger.warning("motion health not measured: none of the first videos could be read.")
        return None
    health = health_of(clips, processor)
    folder = Path(output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    numbers, picture = folder / "motion_health.json", folder / "motion_tracks.png"
    numbers.write_text(json.dumps(health.to_dict(), indent=2) + "\n", encoding="utf-8")
    places = f"numbers in {numbers}"
    if any(clip.tracks is not None for clip in clips):
        tracks_sheet(clips, title=f"tracks in {records.name}").save(picture)
        places += f", tracks in {picture}"
    text = health.summary() if detail == "summary" else str(health)
    logger.log(logging.WARNING if health.warnings else logging.INFO, "%s\n  %s", text, places)
    return health


def _devices_in_use() -> list[int]:
    return [torch.cuda.current_device()] if torch.cuda.is_initialized() else []


def health_of(clips: Sequence[ObservedClip], processor: MMEVideoProcessor) -> MotionHealth:
    """Return the health of observed clips, measured against the targets of the processor that made them."""
    targets = build_targets(processor.motion_targets, cell_size_px=processor.cell_size_px)
    limit = min((getattr(target, "max_displacement_px", math.inf) for target in targets.values()), default=math.inf)
    health = motion_health(clips, targets, limit)
    if processor.camera_motion == "remove" and health.camera_found_share < MIN_CAMERA_FOUND_SHARE:
        warning = (
            f"camera_motion is 'remove', and it is removed from only {100 * health.camera_found_share:.0f} % of the "
            "starts of tracks: the others have a step in which none is found, and keep theirs. Does something fill "
            "most of these frames?"
        )
        return replace(health, warnings=[*health.warnings, warning])
    return health


def _by_target(processor: MMEVideoProcessor, sample: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    sizes = {name: target["size"] for name, target in processor.motion_target_config().items()}
    return dict(zip(sizes, sample["labels"][0].split(list(sizes.values()), dim=-1), strict=True))


def _motion_in_px(
    processor: MMEVideoProcessor, pixel_values: torch.Tensor, tracks: Trajectories | None
) -> dict[str, torch.Tensor]:
    """Return, for targets whose labels are displacements, these in pixels and in the layout of the labels."""
    if tracks is None:
        return {}
    clip = MotionClip(pixel_values, processor.patch_size, processor.tubelet_size)
    targets = build_targets(processor.motion_targets, cell_size_px=processor.cell_size_px)
    return {
        name: replace(target, normalization="fixed", scale_px=1.0)(clip, tracks)[0]
        for name, target in targets.items()
        if isinstance(target, PositionTarget)
    }


def _labels_in_px(
    processor: MMEVideoProcessor, labels: Mapping[str, torch.Tensor], frame_size: tuple[int, int]
) -> dict[str, torch.Tensor]:
    """Return the displacements that labels say, in pixels, of targets that keep these."""
    targets = build_targets(processor.motion_targets, cell_size_px=processor.cell_size_px)
    return {
        # From (tokens, steps, points, 2) to the layout of the labels: component, step, point.
        name: target.displacements(labels[name], processor.trajectory_num_steps, frame_size).movedim(-1, 1).flatten(1)
        for name, target in targets.items()
        if isinstance(target, PositionTarget) and target.keeps_pixels
    }


@dataclass
class ReportArguments(PretrainingArguments):
    """The flags of `examples/pretrain.py`, so that a report is of what a run with them would train on."""

    output_dir: str = field(default="outputs/motion", metadata={"help": "Folder for the report."})
    num_clips: int = field(default=16, metadata={"help": "Clips to look at, each of another video."})

    def __post_init__(self):
        super().__post_init__()
        if self.num_clips < 1:
            raise ValueError(f"num_clips ({self.num_clips}) must be at least 1.")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a mistake in the arguments ends it with one line."""
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        args = parse_arguments(ReportArguments, argv, prog="python -m mme_hf.motion.report")
        check_output_dir(args.output_dir)
        _, processor = build_model_and_processor(args)
        records, _, held_out_fraction = load_records(args)
        health = report_motion(
            records,
            processor,
            args.output_dir,
            detail="all",
            num_clips=args.num_clips,
            sampling=train_sampling(args, held_out_fraction),
            stored_tracks=open_stored_tracks(args, processor, records),
            seed=args.seed,
            device=PartialState().device if args.targets_on == "device" else "cpu",
        )
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"mme_hf.motion.report: error: {error}")
    if health is None:
        sys.exit(1)


if __name__ == "__main__":
    main()
