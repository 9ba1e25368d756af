"""One video to its samples, in a DataLoader worker; the only place that may skip a video it cannot read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import Dataset
from transformers.video_utils import VideoMetadata

from ..motion import StoredMotion, StoredTracker, StoredTracksError
from ..motion.at_rest import track_at_rest
from ..raw_clips_mme import RawClips, join_raw_clips
from ..video import VideoReader, VideoReadError, check_backend, open_video
from ..video.sampling import evenly_spaced_starts, random_start
from .augmentation import CropBox, center_crop_box, cut_path, happens, multi_scale_crop_box, random_path
from .bad_videos import BadVideo
from .ordering import RecordCursor, RecordRequest
from .rows import RowReading
from .undecoded import openable, source_name

if TYPE_CHECKING:
    from ..video_processing_mme import MMEVideoProcessor
    from .records import VideoRecords
    from .stored_tracks import StoredTracks

TargetsOn = Literal["workers", "device"]


# Crops that move, of those of a run that asks for some: what stands still is to be recognised too.
MOVING_CROP_SHARE = 0.5
# A crop that moves by half of its side from one frame to the next shows other things, not motion.
MAX_CROP_SPEED = 0.5


@dataclass(frozen=True)
class ClipSampling:
    """How clips are cut from a video.

    Attributes:
        samples_per_video: Clips taken from each video that is opened; each has its own time, crop, flip and mask.
        is_random: Random time, multi-scale crop and flip; otherwise evenly spaced times and the centre crop.
        flip_probability: How often a random sample is mirrored.
        moving_crop_speed: Largest speed at which the crop of a random sample slides over the frames, as if the camera
            panned, in sides of the crop per raw frame. Half of the samples have a crop that moves; 0: none.
        part: Which part of each video may be used.
        held_out_fraction: Share at the end of each video that "train" leaves out and "held_out" is made of.
        reader: Backend of `open_video`.
    """

    samples_per_video: int = 1
    is_random: bool = True
    flip_probability: float = 0.5
    moving_crop_speed: float = 0.0
    part: Literal["all", "train", "held_out"] = "all"
    held_out_fraction: float = 0.2
    reader: str = "auto"

    def __post_init__(self):
        if self.samples_per_video < 1:
            raise ValueError(f"samples_per_video ({self.samples_per_video}) must be at least 1.")
        if not 0.0 <= self.flip_probability <= 1.0:
            raise ValueError(f"flip_probability ({self.flip_probability}) must lie in [0, 1].")
        if not 0.0 <= self.moving_crop_speed <= MAX_CROP_SPEED:
            raise ValueError(
                f"moving_crop_speed ({self.moving_crop_speed}) must lie in [0, {MAX_CROP_SPEED}]: it is in sides of "
                "the crop per frame, such as 0.02."
            )
        if self.part not in ("all", "train", "held_out"):
            raise ValueError(f"part ({self.part!r}) must be 'all', 'train' or 'held_out'.")
        check_backend(self.reader, "reader")
        if not 0.0 < self.held_out_fraction < 1.0:
            raise ValueError(f"held_out_fraction ({self.held_out_fraction}) must lie between 0 and 1, such as 0.2.")

    def frame_range(self, num_frames: int) -> range:
        """Return the frames of a video that this part is made of."""
        if self.part == "all":
            return range(num_frames)
        # At least one frame on either side, so that no part of a video of two frames or more is empty.
        split = min(max(1, num_frames - ceil(num_frames * self.held_out_fraction)), max(1, num_frames - 1))
        return range(split) if self.part == "train" else range(split, num_frames)


@dataclass(frozen=True)
class OpenedVideo:
    """What is known of a video that is open.

    Attributes:
        video: Its path or bytes.
        source: How messages name it.
        record: Its undecoded record, with a `label` where the data set has one.
        generator: For everything that is random about its samples.
    """

    video: str | bytes
    source: str
    record: Mapping[str, Any]
    generator: torch.Generator


@dataclass(frozen=True)
class ClipResult:
    """What came of one `RecordRequest`: samples, or the reason why there are none.

    A sample of pre-training is what the processor returns for one clip: the model's inputs, or raw clips to make them
    of; `labelled_clips` has others.
    """

    source: str
    samples: tuple[Any, ...]
    bad_video: BadVideo | None
    next_cursor: RecordCursor


class VideoDataset(Dataset):
    """Opens videos that `RecordRequest`s name, or row numbers; what becomes of them is told by `samples_of`.

    Args:
        records: The videos.
        reader: Backend of `open_video`.
        **row_options: `seed` and `max_bad_fraction` of what is read by row numbers, as `RowReading` takes them.
    """

    def __init__(self, records: VideoRecords, reader: str = "auto", **row_options: Any):
        self.name = records.name
        self.reader = reader
        # A stream's records come with their requests; only rows are looked up here.
        self.rows = None if records.num_records is None else records.dataset
        self.row_reading = RowReading(records.num_records or 0, **row_options)

    def __len__(self) -> int:
        """Return the number of videos.

        Raises:
            TypeError: If they are a stream, which cannot be read by row numbers either.
        """
        if self.rows is None:
            raise TypeError(
                f"{self.name} is a stream: its length is not known, and it has no rows to be read by number."
            )
        return self.row_reading.num_rows

    def set_epoch(self, epoch: int) -> None:
        """Say which epoch rows are read for: another one has other crops, times, flips and masks."""
        self.row_reading.epoch = epoch

    def __getitem__(self, request: RecordRequest | int) -> ClipResult:
        """Return the samples of one video, or the cause why it cannot be read.

        Of a request whoever made it counts bad videos; of row numbers this data set does.

        Raises:
            TooManyBadVideosError: If too many rows could not be read.
        """
        if isinstance(request, RecordRequest):
            return self._result(request)
        len(self)  # a stream has no rows
        result = self._result(self.row_reading.request(request))
        if result.bad_video is not None:
            self.row_reading.report(request, result.bad_video)
        return result

    def _result(self, request: RecordRequest) -> ClipResult:
        record = request.record if isinstance(request.record, Mapping) else self.rows[request.record]
        source = source_name(record["video"], self.name, request.record)
        generator = torch.Generator().manual_seed(request.seed)
        try:
            video = openable(record["video"])
            with open_video(video, backend=self.reader) as reader:
                samples = tuple(self.samples_of(reader, OpenedVideo(video, source, record, generator)))
        except VideoReadError as error:
            return ClipResult(source, (), BadVideo(source, str(error.cause)), request.next_cursor)
        except OSError as error:  # a remote file that is gone, or a disk that fails
            return ClipResult(source, (), BadVideo(source, f"{type(error).__name__}: {error}"), request.next_cursor)
        return ClipResult(source, samples, None, request.next_cursor)

    def samples_of(self, reader: VideoReader, opened: OpenedVideo) -> Sequence[Any]:
        """Return what is made of one video.

        Raises:
            VideoReadError: If it cannot be used; it is then skipped, and counted.
        """
        raise NotImplementedError


class ClipDataset(VideoDataset):
    """Makes inputs for pre-training of the videos that `RecordRequest`s name.

    Args:
        records: The videos.
        processor: Makes pixel values, masks, labels and target masks from raw frames.
        sampling: How clips are cut from a video.
        return_targets: Whether to make masks, labels and target masks.
        targets_on: Where these are made: here, or on the "device" of the model, of the raw clips that are then sent.
        stored_tracks: Where tracks are read; None to track on line.
        **row_options: As `VideoDataset` takes them.
    """

    def __init__(
        self,
        records: VideoRecords,
        processor: MMEVideoProcessor,
        sampling: ClipSampling | None = None,
        *,
        return_targets: bool = True,
        targets_on: TargetsOn = "workers",
        stored_tracks: StoredTracks | None = None,
        **row_options: Any,
    ):
        self.sampling = sampling or ClipSampling()
        super().__init__(records, self.sampling.reader, **row_options)
        self.processor = processor
        self.return_targets = return_targets
        self.sends_raw_clips = sends_raw_clips(return_targets, targets_on)
        self.stored_tracks = stored_tracks if return_targets else None

    def samples_of(self, reader: VideoReader, opened: OpenedVideo) -> Sequence[Any]:
        """Return the samples of one video.

        Raises:
            StoredTracksError: If the run reads stored tracks and this video's are missing, damaged or do not fit it.
        """
        is_stored = self.stored_tracks is not None
        motion = self._motion(opened.video, opened.source, reader) if is_stored else None
        return self._samples(reader, opened.generator, motion)

    def _motion(self, video: str | bytes, source: str, reader: VideoReader) -> StoredMotion:
        motion = self.stored_tracks.motion_of(video, source)
        if motion.num_frames != reader.num_frames:
            raise StoredTracksError(
                f"video {source} has {reader.num_frames} frames for this reader; its stored tracks are of "
                f"{motion.num_frames}, so frames are numbered otherwise. Extract its tracks with the --reader "
                f"({self.sampling.reader}) and the versions of video libraries that this run has."
            )
        return motion

    def _samples(
        self, reader: VideoReader, generator: torch.Generator, motion: StoredMotion | None
    ) -> list[Mapping[str, torch.Tensor] | list[RawClips]]:
        frame_range = self.sampling.frame_range(reader.num_frames)
        if not frame_range:
            raise VideoReadError("", f"its {self.sampling.part} part is empty: it has {reader.num_frames} frame(s)")
        window = min(len(frame_range), self.processor.raw_window_for(len(frame_range)))
        needed = self._needed_frames(len(frame_range), window)
        num_clips = self.sampling.samples_per_video
        if self.sampling.is_random:
            starts = [random_start(len(frame_range), window, generator) for _ in range(num_clips)]
        else:
            starts = evenly_spaced_starts(len(frame_range), window, num_clips)
        starts = [frame_range.start + start for start in starts]
        # One pass over the file serves all clips; frames they share are decoded once.
        indices = sorted({start + frame for start in starts for frame in needed})
        frames = reader.frames_at(indices)
        place = {index: position for position, index in enumerate(indices)}
        trackers = [None if motion is None else StoredTracker(motion, first_frame=start) for start in starts]
        samples = []
        for start, tracker in zip(starts, trackers, strict=True):
            own, numbers = [place[start + frame] for frame in needed], needed
            if self.return_targets:
                # With what other clips need of this one's window: a view, of which the processor takes its own.
                own = slice(own[0], own[-1] + 1)
                numbers = [index - start for index in indices[own]]
            samples.append(self._sample(frames[own], numbers, generator, tracker))
        return samples

    def _needed_frames(self, num_available: int, window: int) -> list[int]:
        """Return which frames of a window of the video a sample is made of."""
        if self.return_targets:
            return self.processor.raw_frames_for(num_available)
        return self.processor.sample_frames(VideoMetadata(total_num_frames=window)).tolist()

    def _sample(
        self,
        raw_frames: torch.Tensor,
        frame_numbers: Sequence[int],
        generator: torch.Generator,
        tracker: StoredTracker | None,
    ) -> Mapping[str, torch.Tensor] | list[RawClips]:
        height, width = raw_frames.shape[-2:]
        aspect_ratio = self.processor.crop_size["width"] / self.processor.crop_size["height"]
        if self.sampling.is_random:
            crop_box = multi_scale_crop_box(height, width, generator, aspect_ratio=aspect_ratio)
            flip = happens(self.sampling.flip_probability, generator)
        else:
            crop_box, flip = center_crop_box(height, width, aspect_ratio), False
        if self.sampling.moving_crop_speed and self.sampling.is_random and happens(MOVING_CROP_SHARE, generator):
            raw_frames = self._cut_along_a_path(raw_frames, frame_numbers, crop_box, generator)
            crop_box = (0, 0, raw_frames.shape[-1], raw_frames.shape[-2])
        options = {"crop_box": crop_box, "flip": flip}
        if not self.return_targets:
            return self.processor(raw_frames, do_sample_frames=False, return_tensors="pt", **options)
        options |= {"generator": generator, "video_metadata": {"frames_indices": frame_numbers}}
        if tracker is not None:
            options["tracker"] = tracker
        if self.sends_raw_clips:
            return self.processor.cut_raw_clips(raw_frames, **options)
        return self.processor(raw_frames, return_targets=True, return_tensors="pt", **options)

    def _cut_along_a_path(
        self, raw_frames: torch.Tensor, frame_numbers: Sequence[int], crop_box: CropBox, generator: torch.Generator
    ) -> torch.Tensor:
        speed, window = self.sampling.moving_crop_speed, frame_numbers[-1] + 1
        boxes = random_path(crop_box, *raw_frames.shape[-2:], window, generator, max_speed=speed)
        size = (self.processor.crop_size["height"], self.processor.crop_size["width"])
        return cut_path(raw_frames, boxes[list(frame_numbers)], size, self.processor.resample)


class ClipCollator:
    """Joins `ClipResult`s to a batch; videos that could not be read are left out and named.

    A batch whose videos are all bad has zero clips, with the shapes it would otherwise have: the model takes it, and a
    process that met it still takes part in the step.

    Args:
        processor: The processor that made the samples.
        return_targets: Whether samples have masks, labels and target masks.
        targets_on: Whether "workers" made these; otherwise samples are raw clips.
    """

    def __init__(self, processor: MMEVideoProcessor, *, return_targets: bool = True, targets_on: TargetsOn = "workers"):
        self.sends_raw_clips = sends_raw_clips(return_targets, targets_on)
        self.empty_inputs = {} if self.sends_raw_clips else _empty_inputs(processor, return_targets)

    def __call__(self, results: Sequence[ClipResult]) -> dict[str, Any]:
        """Return the batch.

        Returns:
            `inputs`: the model's keyword arguments, first dimension the clips, or `raw_clips`, of which
            `training.BatchInputs` makes them; `sources`: the video of each clip; `bad_videos`: what could not be read;
            `num_records`: how many records were tried; `next_cursor`: where to go on after this batch.
        """
        samples = [sample for result in results for sample in result.samples]
        if self.sends_raw_clips:
            clips = {"raw_clips": join_raw_clips(samples)}
        else:
            inputs = {
                name: torch.cat([sample[name] for sample in samples]) if samples else empty
                for name, empty in self.empty_inputs.items()
            }
            clips = {"inputs": inputs}
        return {
            **clips,
            "sources": [result.source for result in results for _ in result.samples],
            "bad_videos": [result.bad_video for result in results if result.bad_video],
            "num_records": len(results),
            "next_cursor": results[-1].next_cursor,
        }

    def model_inputs(self, results: Sequence[ClipResult]) -> dict[str, torch.Tensor]:
        """Return the model's keyword arguments alone: a `data_collator` for transformers' Trainer.

        Raises:
            ValueError: If samples are raw clips.
        """
        if self.sends_raw_clips:
            raise ValueError(
                "targets_on ('device') sends raw clips, of which a Trainer cannot make inputs: use 'workers'."
            )
        return self(results)["inputs"]


def sends_raw_clips(return_targets: bool, targets_on: TargetsOn) -> bool:
    """Return whether workers hand over raw clips rather than the model's inputs.

    Raises:
        ValueError: If `targets_on` is unknown.
    """
    if targets_on not in ("workers", "device"):
        raise ValueError(f"targets_on ({targets_on!r}) must be 'workers' or 'device'.")
    return return_targets and targets_on == "device"


def grey_frame(processor: MMEVideoProcessor) -> torch.Tensor:
    """Return a video of one frame. What the processor makes of it has the shapes and types of any other clip's."""
    height, width = processor.crop_size["height"], processor.crop_size["width"]
    return torch.full((1, 3, height, width), 127, dtype=torch.uint8)


def _empty_inputs(processor: MMEVideoProcessor, return_targets: bool) -> dict[str, torch.Tensor]:
    options = {"return_targets": return_targets, "return_tensors": "pt"}
    if return_targets:
        # A run of stored tracks has not asked its own tracker whether it can work.
        options |= {"generator": torch.Generator().manual_seed(0), "tracker": track_at_rest}
    inputs = processor(grey_frame(processor), **options)
    return {name: tensor[:0].clone() for name, tensor in inputs.items()}
