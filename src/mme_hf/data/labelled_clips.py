"""Labelled videos to clips for a classifier: augmented ones to train on, several views of each to judge by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch.utils.data import DataLoader
from torchvision.transforms import v2

from ..frame_sampling_mme import fitting_stride, segment_frames
from ..video import VideoReader, check_backend
from ..video.sampling import evenly_spaced_starts, random_start
from .clips import ClipResult, OpenedVideo, VideoDataset, grey_frame
from .loading import video_loader
from .ordering import ClipBatchSampler, batches_of_rows

if TYPE_CHECKING:
    from ..video_processing_mme import MMEVideoProcessor
    from .records import VideoRecords

FRAME_ORDERS = ("forwards", "reversed", "shuffled", "frozen")
# The published recipe counts the strength of RandAugment from 0 to 10, torchvision by default from 0 to 30; and of the
# operations that are drawn it does every other one.
MAX_MAGNITUDE = 10
_OPERATION_PROBABILITY = 0.5
# What a label column is set to where there is none.
NO_LABEL = -1


@dataclass(frozen=True)
class Augmentation:
    """What is done to the clips that a classifier trains on; one draw for all frames of a clip.

    Attributes:
        min_crop_scale: Smallest share of the frame's area that a crop covers; its sides are 3 to 4 up to 4 to 3.
        flip_probability: How often a clip is mirrored. 0 where left and right mean something.
        rand_augment_num_ops: Operations of RandAugment drawn for each clip, of which every other is done; 0 for none.
        rand_augment_magnitude: Their strength, in [0, 10].
        random_erasing_probability: How often a rectangle is filled with noise.

    Source: the fine-tuning recipe of Masked Motion Encoding, which is VideoMAE's.
    """

    min_crop_scale: float = 0.25
    flip_probability: float = 0.5
    rand_augment_num_ops: int = 4
    rand_augment_magnitude: int = 7
    random_erasing_probability: float = 0.25

    def __post_init__(self):
        if not 0 < self.min_crop_scale <= 1:
            raise ValueError(f"min_crop_scale ({self.min_crop_scale}) must lie in (0, 1]: a share of the frame's area.")
        for name in ("flip_probability", "random_erasing_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must lie in [0, 1].")
        if self.rand_augment_num_ops < 0:
            raise ValueError(f"rand_augment_num_ops ({self.rand_augment_num_ops}) must be at least 0.")
        if not 0 <= self.rand_augment_magnitude <= MAX_MAGNITUDE:
            raise ValueError(
                f"rand_augment_magnitude ({self.rand_augment_magnitude}) must lie in [0, {MAX_MAGNITUDE}]."
            )

    def of_pixels(self, size: tuple[int, int], fill: Sequence[int]) -> v2.Transform:
        """Return what is done to uint8 clips (T, 3, H, W); the result is of `size`, (height, width).

        Args:
            size: Of the result in pixels.
            fill: Colour of what an operation leaves empty, in [0, 255].
        """
        # The crop first: all that follows then works on fewer pixels.
        crop = v2.RandomResizedCrop(size, scale=(self.min_crop_scale, 1.0), ratio=(3 / 4, 4 / 3), antialias=True)
        steps: list[v2.Transform] = [crop, v2.RandomHorizontalFlip(self.flip_probability)]
        operation = v2.RandAugment(
            num_ops=1,
            magnitude=self.rand_augment_magnitude,
            num_magnitude_bins=MAX_MAGNITUDE + 1,
            interpolation=v2.InterpolationMode.BILINEAR,
            fill=list(fill),
        )
        steps += [v2.RandomApply([operation], _OPERATION_PROBABILITY)] * self.rand_augment_num_ops
        return v2.Compose(steps)

    def of_inputs(self) -> v2.Transform:
        """Return what is done to normalised clips (T, 3, H, W)."""
        return v2.RandomErasing(self.random_erasing_probability, value="random")


@dataclass(frozen=True)
class ViewSampling:
    """Which clips and which crops of a video a classifier sees.

    Attributes:
        augmentation: Random clips for training, augmented like this; None for views at fixed places.
        samples_per_video: Augmented clips of each video that is opened; each has its own frames.
        num_segments: Views in time of each video, without augmentation.
        num_crops: Views in space of each of these, evenly spaced along the longer side of the frame.
        frame_order: "forwards", or what a model that reads motion has to mind: "reversed", "shuffled", or "frozen" at
            the middle frame of the clip.
        reader: Backend of `open_video`.
    """

    augmentation: Augmentation | None = None
    samples_per_video: int = 1
    num_segments: int = 1
    num_crops: int = 1
    frame_order: Literal["forwards", "reversed", "shuffled", "frozen"] = "forwards"
    reader: str = "auto"

    def __post_init__(self):
        if self.frame_order not in FRAME_ORDERS:
            raise ValueError(f"frame_order ({self.frame_order!r}) must be one of {list(FRAME_ORDERS)}.")
        for name in ("samples_per_video", "num_segments", "num_crops"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} ({getattr(self, name)}) must be at least 1.")
        check_backend(self.reader, "reader")

    @property
    def clips_per_video(self) -> int:
        """Samples that each video gives."""
        return self.samples_per_video if self.augmentation else self.num_segments * self.num_crops

    def clip_frames(
        self,
        num_available: int,
        num_frames: int,
        frame_stride: int,
        generator: torch.Generator,
        frame_sampling: str = "dense",
    ) -> list[list[int]]:
        """Return the frames of each clip in time, those of a video too short for one repeated.

        Args:
            num_available: Frames of the video.
            num_frames: Frames of a clip.
            frame_stride: Frames from one to the next, where the video is long enough.
            generator: Source of randomness.
            frame_sampling: "dense" takes frames `frame_stride` apart, "segments" one of each of equal parts of the
                whole video.
        """
        num_clips = self.samples_per_video if self.augmentation else self.num_segments
        if frame_sampling == "segments":
            if self.augmentation:
                places = torch.rand(num_clips, num_frames, generator=generator).tolist()
            else:
                places = [[(clip + 0.5) / num_clips] * num_frames for clip in range(num_clips)]
            clips = [segment_frames(num_available, num_frames, own) for own in places]
        else:
            stride = fitting_stride(num_available, num_frames, frame_stride)
            window = (num_frames - 1) * stride + 1
            if self.augmentation:
                starts = [random_start(num_available, window, generator) for _ in range(num_clips)]
            else:
                starts = evenly_spaced_starts(num_available, window, num_clips)
            clips = [
                [min(start + stride * frame, num_available - 1) for frame in range(num_frames)] for start in starts
            ]
        return [self._in_order(frames, generator) for frames in clips]

    def _in_order(self, frames: list[int], generator: torch.Generator) -> list[int]:
        if self.frame_order == "reversed":
            return frames[::-1]
        if self.frame_order == "shuffled":
            return [frames[place] for place in torch.randperm(len(frames), generator=generator).tolist()]
        if self.frame_order == "frozen":
            return [frames[len(frames) // 2]] * len(frames)
        return frames


@dataclass(frozen=True)
class LabelledSample:
    """The clips of one video.

    Attributes:
        pixel_values: Normalised, float32, shape (clips, frames, channels, height, width).
        label: Its class, or `NO_LABEL`.
    """

    pixel_values: torch.Tensor
    label: int


class LabelledClipDataset(VideoDataset):
    """Makes inputs of a classifier of the videos that `RecordRequest`s name; each sample is all clips of a video.

    Args:
        records: The videos, labelled or not.
        processor: Resizes and normalises; says how many frames a clip has, and which.
        sampling: Which clips are made.
        **row_options: As `VideoDataset` takes them.
    """

    def __init__(self, records: VideoRecords, processor: MMEVideoProcessor, sampling: ViewSampling, **row_options: Any):
        super().__init__(records, sampling.reader, **row_options)
        self.processor = processor
        self.sampling = sampling

    def samples_of(self, reader: VideoReader, opened: OpenedVideo) -> Sequence[LabelledSample]:
        """Return the clips of one video."""
        processor, sampling = self.processor, self.sampling
        clips = sampling.clip_frames(
            reader.num_frames,
            processor.num_frames,
            processor.frame_stride,
            opened.generator,
            processor.frame_sampling,
        )
        # One pass over the file serves all clips; frames they share are decoded, resized and normalised once.
        indices = sorted({index for clip in clips for index in clip})
        frames = reader.frames_at(indices)
        place = {index: position for position, index in enumerate(indices)}
        places = [[place[index] for index in clip] for clip in clips]
        make = self._views if sampling.augmentation is None else self._augmented
        pixels = make(frames, places, opened.generator)
        label = opened.record.get("label")
        return [LabelledSample(pixels, NO_LABEL if label is None else label)]

    def _views(self, frames: torch.Tensor, places: list[list[int]], generator: torch.Generator) -> torch.Tensor:
        options = {"do_sample_frames": False, "do_center_crop": False, "return_tensors": "pt"}
        height, width = self.processor.crop_size["height"], self.processor.crop_size["width"]
        shortest_edge = self.processor.size["shortest_edge"]
        scale = max(height / frames.shape[-2], width / frames.shape[-1])
        if shortest_edge and scale > shortest_edge / min(frames.shape[-2:]):
            # The crop is longer than frames of this shape would be: they are made to cover it.
            sides = (max(height, round(scale * frames.shape[-2])), max(width, round(scale * frames.shape[-1])))
            options["size"] = {"height": sides[0], "width": sides[1]}
        whole = self.processor(frames, **options)["pixel_values"][0]
        corners = crop_corners(tuple(whole.shape[-2:]), (height, width), self.sampling.num_crops)
        # Written where they stay: views are many times the frames, and copying them costs more than decoding.
        views = whole.new_empty(len(places), len(corners), len(places[0]), whole.shape[1], height, width)
        for clip, of_clip in zip(torch.tensor(places), views, strict=True):
            for (top, left), view in zip(corners, of_clip, strict=True):
                torch.index_select(whole[:, :, top : top + height, left : left + width], 0, clip, out=view)
        return views.flatten(0, 1)

    def _augmented(self, frames: torch.Tensor, places: list[list[int]], generator: torch.Generator) -> torch.Tensor:
        processor, augmentation = self.processor, self.sampling.augmentation
        size = (processor.crop_size["height"], processor.crop_size["width"])
        fill = [round(255 * mean) for mean in processor.image_mean]
        of_pixels, of_inputs = augmentation.of_pixels(size, fill), augmentation.of_inputs()
        options = {"do_sample_frames": False, "do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
        clips = []
        # torchvision draws from torch's global generator; those of other devices are the model's.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(int(torch.randint(2**63 - 1, (), generator=generator)))
            for clip in places:
                inputs = processor(of_pixels(frames[clip]), **options)["pixel_values"][0]
                clips.append(of_inputs(inputs))
        return torch.stack(clips)


def crop_corners(frame_size: tuple[int, int], crop_size: tuple[int, int], num_crops: int) -> list[tuple[int, int]]:
    """Return (top, left) of crops evenly spaced along the longer side: one in the middle, more from end to end.

    Args:
        frame_size: (height, width) in pixels.
        crop_size: (height, width) in pixels.
        num_crops: How many.

    Raises:
        ValueError: If the crop is larger than the frame.
    """
    rooms = [frame - crop for frame, crop in zip(frame_size, crop_size, strict=True)]
    if min(rooms) < 0:
        raise ValueError(
            f"crop_size {crop_size} does not fit into frames resized to {frame_size}. Use a larger size, or a square "
            "crop_size."
        )
    along = 0 if rooms[0] > rooms[1] else 1
    corners = []
    for start in evenly_spaced_starts(frame_size[along], crop_size[along], num_crops):
        corner = [room // 2 for room in rooms]
        corner[along] = start
        corners.append((corner[0], corner[1]))
    return corners


class LabelledCollator:
    """Joins `ClipResult`s to a batch; videos that could not be read are left out and named.

    Args:
        processor: The processor that made the samples.
    """

    def __init__(self, processor: MMEVideoProcessor):
        self.empty = processor(grey_frame(processor), return_tensors="pt")["pixel_values"][:0].clone()

    def __call__(self, results: Sequence[ClipResult]) -> dict[str, Any]:
        """Return the batch.

        Returns:
            `pixel_values`: all clips, float32 (clips, frames, channels, height, width), those of a video together;
            `labels`: of each clip, int64 (clips,), `NO_LABEL` where there is none; `sources`: the video of each clip;
            `places`: which record of the epoch each clip is of, a list of integers; `bad_videos`: what could not be
            read; `num_records`: how many records were tried; `next_cursor`: where to go on after this batch.
        """
        clips = [(result, sample) for result in results for sample in result.samples]
        each = [(result, sample) for result, sample in clips for _ in sample.pixel_values]
        return {
            "pixel_values": _joined([sample.pixel_values for _, sample in clips] or [self.empty]),
            "labels": torch.tensor([sample.label for _, sample in each], dtype=torch.int64),
            "sources": [result.source for result, _ in each],
            # `next_cursor` is that after the record.
            "places": [result.next_cursor.index - 1 for result, _ in each],
            "bad_videos": [result.bad_video for result in results if result.bad_video],
            "num_records": len(results),
            "next_cursor": results[-1].next_cursor,
        }

    def model_inputs(self, results: Sequence[ClipResult]) -> dict[str, torch.Tensor]:
        """Return the model's keyword arguments alone: a `data_collator` for transformers' Trainer.

        Raises:
            ValueError: If a video has no label.
        """
        batch = self(results)
        for source, label in zip(batch["sources"], batch["labels"].tolist(), strict=True):
            if label == NO_LABEL:
                raise ValueError(f"{source} has no label, so there is no loss to make of it. Leave it out.")
        return {"pixel_values": batch["pixel_values"], "labels": batch["labels"]}


def _joined(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0] if len(tensors) == 1 else torch.cat(tensors)


def build_labelled_loader(
    records: VideoRecords,
    processor: MMEVideoProcessor,
    *,
    videos_per_batch: int,
    sampling: ViewSampling | None = None,
    num_workers: int = 0,
    pin_memory: bool = False,
    rows: Sequence[int] | None = None,
    **order_options: Any,
) -> DataLoader:
    """Return a loader of batches as `LabelledCollator` makes them, `sampling.clips_per_video` clips of each video.

    Args:
        records: The videos, labelled or not.
        processor: Makes pixel values.
        videos_per_batch: Videos in a batch of this process.
        sampling: Which clips are made.
        num_workers: Processes that decode; 0 decodes in the calling process.
        pin_memory: Whether batches are copied to pinned memory, for a GPU.
        rows: Numbers of the videos to take, once and in this order; None for all.
        **order_options: Of all: passed to `ClipBatchSampler`: seed, shuffle, cursor, num_epochs, process_index, ...
    """
    if rows is not None:
        order = batches_of_rows(rows, videos_per_batch)
    else:
        order = ClipBatchSampler(records, batch_size=videos_per_batch, **order_options)
    return video_loader(
        LabelledClipDataset(records, processor, sampling or ViewSampling()),
        order,
        LabelledCollator(processor),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )
