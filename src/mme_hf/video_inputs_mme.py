"""From any video a user may hand over to the frames the model sees: which frames, which part, which values."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from transformers.image_utils import (
    ChannelDimension,
    SizeDict,
    infer_channel_dimension_format,
    is_valid_image,
    pil_torch_interpolation_mapping,
)
from transformers.utils import logging
from transformers.video_utils import VideoMetadata

from .point_tracking_mme import check_finite, constant_on
from .trajectories_mme import ClipGeometry
from .video_reading_mme import is_encoded

logger = logging.get_logger(__name__)

CropBox = tuple[int, int, int, int]
_NUM_CHANNELS = frozenset((1, 3, 4))
_DEEP_MODES = ("I", "F")  # "I;16" too


def as_frames(source: Any, input_data_format: str | None, convert_to_rgb: Callable | None) -> torch.Tensor:
    """Return an array, tensor or list of frames as a tensor (T, C, H, W), uint8 or floating point.

    Args:
        source: Frames (T, C, H, W) or (T, H, W, C) of 1, 3 or 4 channels, one frame without T, or a list of frames
            (PIL images included). Three sides are one frame, so grey frames (T, H, W) need a side of one channel.
        input_data_format: "channels_first" or "channels_last"; None to see it from the shape.
        convert_to_rgb: Function for frames with an alpha channel, which stay uint8; None leaves the channels.

    Raises:
        ValueError: If shape or dtype is none of a video's, or the frames of a list differ in size.
    """
    if isinstance(source, list | tuple):
        frames = [_as_tensor(frame) for frame in _as_rgb(source, convert_to_rgb)]
        if len({frame.shape for frame in frames}) != 1:
            raise ValueError("the frames of a video differ in size. Give frames of one size, or a list of videos.")
        frames = torch.stack([frame[..., None] if frame.ndim == 2 else frame for frame in frames])
    else:
        frames = _as_tensor(source)
        frames = frames[None] if frames.ndim == 3 else frames
    shape = tuple(frames.shape)
    if frames.ndim != 4 or 0 in shape:
        raise ValueError(f"a video has shape {shape}; it must be (T, C, H, W) or (T, H, W, C), with no side empty.")
    if frames.dtype != torch.uint8 and not frames.is_floating_point():
        raise ValueError(f"a video has dtype {frames.dtype}; it must be uint8 in [0, 255] or floating point.")
    if input_data_format is None and not {shape[1], shape[3]} & _NUM_CHANNELS:
        raise ValueError(_channels_message(shape))
    layout = input_data_format or infer_channel_dimension_format(frames, num_channels=tuple(_NUM_CHANNELS))
    if ChannelDimension(layout) == ChannelDimension.LAST:
        frames = frames.permute(0, 3, 1, 2)
    if convert_to_rgb is None or frames.shape[1] == 3:
        return frames
    if frames.shape[1] not in _NUM_CHANNELS:
        raise ValueError(_channels_message(shape))
    if frames.shape[1] == 1:
        return frames.expand(-1, 3, -1, -1)
    rgb = convert_to_rgb(frames)  # blended in floating point
    return rgb.round().to(torch.uint8) if frames.dtype == torch.uint8 else rgb


def _channels_message(shape: tuple[int, ...]) -> str:
    return (
        f"a video has shape {shape}, with (T, C, H, W) or (T, H, W, C) expected and 1, 3 or 4 channels C. Three sides "
        "are taken for one frame: give grey frames as (T, 1, H, W)."
    )


def _as_rgb(frames: Sequence[Any], convert_to_rgb: Callable | None) -> list[Any]:
    """Return the frames with PIL images as RGB, or all as RGBA where one lets something through: to blend it later.

    Raises:
        ValueError: If an image has more than 8 bits: PIL would clip what is above 255.
    """
    for frame in frames:
        if hasattr(frame, "convert") and frame.mode.startswith(_DEEP_MODES):
            raise ValueError(
                f"a frame is a PIL image of mode {frame.mode!r}; it must have 8 bits, as modes 'L' and 'RGB'. Scale "
                "its values to [0, 255] first."
            )
    are_images = all(hasattr(frame, "convert") for frame in frames)
    lets_through = any(getattr(frame, "has_transparency_data", False) for frame in frames)
    mode = "RGBA" if convert_to_rgb is not None and are_images and lets_through else "RGB"
    return [frame.convert(mode) if hasattr(frame, "convert") else frame for frame in frames]


def _as_tensor(array: Any) -> torch.Tensor:
    if isinstance(array, torch.Tensor):
        return array.detach()
    array = np.asarray(array)
    if any(stride < 0 for stride in array.strides):  # a mirrored view, such as BGR as RGB, which torch refuses
        array = array.copy()
    # torch warns about read-only arrays, which decoders and PIL give; only these are copied.
    return torch.as_tensor(np.require(array, requirements=["W"]))


def flatten_batch(videos: Any) -> list[Any]:
    """Return the videos one by one; a list of frames is one video, a list of anything else a batch."""
    if is_encoded(videos):
        return [videos]
    if isinstance(videos, np.ndarray | torch.Tensor):
        return list(videos) if videos.ndim == 5 else [videos]
    if not isinstance(videos, list | tuple):
        if is_valid_image(videos):
            return [[videos]]
        raise ValueError(
            f"videos is a {type(videos).__name__}; give a path, bytes, an array or tensor of frames, a list of frames, "
            "a torchcodec VideoDecoder, or a list of these."
        )
    if not videos:
        raise ValueError("videos is an empty list; give at least one video or frame.")
    first = videos[0]
    is_frame = hasattr(first, "convert") or (isinstance(first, np.ndarray | torch.Tensor) and first.ndim <= 3)
    return [list(videos)] if is_frame else [clip for item in videos for clip in flatten_batch(item)]


def take_frames(frames: torch.Tensor, indices: Sequence[int]) -> torch.Tensor:
    """Return frames (..., T, C, H, W) at indices; a view where they are evenly spaced, in the layout of the input."""
    steps = {after - before for before, after in pairwise(indices)}
    if len(steps) <= 1 and min(steps, default=1) > 0:
        return frames[..., indices[0] : indices[-1] + 1 : min(steps, default=1), :, :, :]
    index = constant_on(frames.device, indices)
    if frames.stride(-3) == 1:  # interleaved channels: indexing the planes would rearrange them
        return frames.movedim(-3, -1).index_select(-4, index).movedim(-1, -3)
    return frames.index_select(-4, index)


def one_per_clip(name: str, value: Any, num_clips: int, is_one: Callable[[Any], bool]) -> list[Any]:
    """Return a list with one value per clip, from one value for all or a list.

    Args:
        name: Of the argument, for the error.
        value: One value, None, or a list of `num_clips`.
        num_clips: Number of clips.
        is_one: Tells one value from a list of them.

    Raises:
        ValueError: If the list has another length.
    """
    if value is None or is_one(value):
        return [value] * num_clips
    if len(value) != num_clips:
        raise ValueError(f"{name} has {len(value)} entries for {num_clips} videos. Give one, or one per video.")
    return list(value)


def crop_boxes(value: Any, num_clips: int) -> list[CropBox | None]:
    """Return one crop box per clip, from one for all or a list; arrays count as lists.

    Raises:
        ValueError: If one is not four whole numbers, or the list has another length.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    is_many = isinstance(value, list | tuple) and any(item is None or np.ndim(item) for item in value)
    boxes = one_per_clip("crop_box", value, num_clips, lambda _: not is_many)
    for box in boxes:
        if box is not None and (not hasattr(box, "__len__") or len(box) != 4 or not all(map(_is_whole, box))):
            raise ValueError(f"crop_box ({box!r}) must be four whole numbers: left, top, width, height in pixels.")
    return [None if box is None else tuple(int(side) for side in box) for box in boxes]


def _is_whole(number: Any) -> bool:
    number = number.item() if hasattr(number, "item") else number
    return isinstance(number, int | float) and not isinstance(number, bool) and float(number).is_integer()


def flip_flags(value: Any, num_clips: int) -> list[bool]:
    """Return one flag per clip, from one for all or a list; NumPy's bool and arrays of bool count too.

    Raises:
        ValueError: If one is neither True nor False, or the list has another length.
    """
    value = value.tolist() if hasattr(value, "tolist") else value
    flags = one_per_clip("flip", value, num_clips, lambda one: not isinstance(one, list | tuple))
    flags = [flag.tolist() if hasattr(flag, "tolist") else flag for flag in flags]
    for flag in flags:
        if flag is not None and not isinstance(flag, bool):
            raise ValueError(f"flip ({flag!r}) must be True or False, for all videos or one per video.")
    return [bool(flag) for flag in flags]


def given_masks(mask: Any, num_clips: int) -> list[torch.Tensor | None]:
    """Return one given mask per clip, from one for all or a batch of them; None where masks are to be drawn.

    Raises:
        ValueError: If it is not bool, or neither (tokens,) nor (num_clips, tokens).
    """
    if mask is None:
        return [None] * num_clips
    mask = torch.as_tensor(mask)
    if mask.dtype != torch.bool or mask.ndim not in (1, 2) or (mask.ndim == 2 and len(mask) != num_clips):
        raise ValueError(
            f"bool_masked_pos has dtype {mask.dtype} and shape {tuple(mask.shape)}; it must be bool, (tokens,) or "
            f"({num_clips}, tokens)."
        )
    return list(mask) if mask.ndim == 2 else [mask] * num_clips


@dataclass(frozen=True)
class RawFramePlan:
    """Which raw frames a sample needs; the other lists index into them.

    Attributes:
        raw_frames: Raw frames to crop and resize, ascending.
        inputs: Positions of the input frames.
        starts: Positions of the frames that tracks start at, one per tubelet.
        is_lost: For each start, whether its track runs into frames that only repeat the last one.
    """

    raw_frames: tuple[int, ...]
    inputs: tuple[int, ...]
    starts: tuple[int, ...]
    is_lost: tuple[bool, ...]


def raw_window(options: Any, stride: int) -> int:
    """Return how many raw frames a sample needs at a stride, from its first input frame to its last tracked one."""
    last_input = (options.num_frames - 1) * stride
    last_tracked = (options.num_frames - options.tubelet_size) * stride + options.trajectory_num_steps
    return max(last_input, last_tracked) + 1


def _largest_stride(num_raw: int, options: Any) -> int:
    """Return the largest stride up to frame_stride whose window fits, 1 if none does."""
    last, num_steps = num_raw - 1, options.trajectory_num_steps
    limits = [options.frame_stride]
    if options.num_frames > 1:
        limits.append(last // (options.num_frames - 1))
    if options.num_frames > options.tubelet_size:
        limits.append((last - num_steps) // (options.num_frames - options.tubelet_size))
    elif num_steps > last:
        limits.append(1)
    return max(1, min(limits))


def fitting_window(num_available: int, options: Any) -> int:
    """Return how many raw frames a sample takes of a video: the window of the largest stride that fits, else all."""
    return min(num_available, raw_window(options, _largest_stride(num_available, options)))


def needed_raw_frames(num_available: int, options: Any) -> list[int]:
    """Return which frames of its window a sample takes of a video, ascending, from 0 to the last one of the window."""
    return sorted(set(plan_raw_frames(fitting_window(num_available, options), options).raw_frames))


def raw_frame_numbers(given: Sequence[int] | None, num_frames: int) -> list[int]:
    """Return which frames of a video an array of raw frames holds: those given, else all from the first on.

    Raises:
        ValueError: If there is not one number for each frame, or they do not ascend.
    """
    if given is None:
        return list(range(num_frames))
    numbers = [int(number) for number in given]
    if len(numbers) != num_frames or any(after <= before for before, after in pairwise(numbers)):
        raise ValueError(
            f"video_metadata has {len(numbers)} frames_indices for {num_frames} raw frames; there must be one "
            "for each, ascending."
        )
    return numbers


def raw_frame_sampler(options: Any) -> Callable[[VideoMetadata], np.ndarray]:
    """Return a function that chooses the raw frames of one sample from the middle of a video."""

    def choose(video: VideoMetadata) -> np.ndarray:
        total = video.total_num_frames
        return np.array(needed_raw_frames(total, options)) + (total - fitting_window(total, options)) // 2

    return choose


def plan_raw_frames(num_raw: int, options: Any) -> RawFramePlan:
    """Return what one sample takes from `num_raw` raw frames: the first window at the largest stride that fits."""
    stride, num_steps = _largest_stride(num_raw, options), options.trajectory_num_steps
    inputs = [frame * stride for frame in range(options.num_frames)]
    starts = inputs[:: options.tubelet_size]
    needed = sorted({*inputs, *(start + step for start in starts for step in range(num_steps + 1))})
    position = {frame: index for index, frame in enumerate(needed)}
    return RawFramePlan(
        raw_frames=tuple(min(frame, num_raw - 1) for frame in needed),
        inputs=tuple(position[frame] for frame in inputs),
        starts=tuple(position[frame] for frame in starts),
        is_lost=tuple(start + num_steps > num_raw - 1 for start in starts),
    )


def clip_geometry(frames: torch.Tensor, crop_box: CropBox | None, flip: bool, options: Any) -> ClipGeometry:
    """Return the crop, resize and flip of a clip (T, C, H, W).

    Args:
        frames: Source frames.
        crop_box: (left, top, width, height) in source pixels; None for shortest-edge resize and centre crop.
        flip: Whether to mirror left to right.
        options: The processor's options.

    Raises:
        ValueError: If the box is empty or outside the frame, or the sizes do not fit together.
    """
    height, width = frames.shape[-2:]
    interpolation = pil_torch_interpolation_mapping.get(options.resample, options.resample)
    crop_size = options.crop_size
    if crop_box is not None:
        left, top, box_width, box_height = crop_box
        geometry = ClipGeometry(
            left, top, box_width, box_height, crop_size.height, crop_size.width, bool(flip), None, interpolation
        )
        geometry.check_frame_size(height, width)
        return geometry
    resized = _resized_size(height, width, options.size) if options.do_resize else (height, width)
    out_height, out_width = (crop_size.height, crop_size.width) if options.do_center_crop else resized
    return ClipGeometry(0, 0, width, height, out_height, out_width, bool(flip), resized, interpolation)


def _resized_size(height: int, width: int, size: SizeDict) -> tuple[int, int]:
    if size.height and size.width:
        return size.height, size.width
    if not size.shortest_edge or size.longest_edge:
        raise ValueError(f"size ({dict(size)}) must give 'shortest_edge', or 'height' and 'width'.")
    edge = size.shortest_edge  # truncated as transformers and torchvision do
    return (edge, int(edge * width / height)) if height <= width else (int(edge * height / width), edge)


def normalize_frames(frames: torch.Tensor, options: Any) -> torch.Tensor:
    """Return frames (..., T, C, H, W) rescaled and normalised, float32, planes contiguous.

    Warns once where floating point frames on the CPU look as if they had been rescaled before; an accelerator would
    have to be waited for.

    Raises:
        ValueError: If a value is not finite, which is looked for on the CPU alone, or means are not those of the
            channels.
    """
    if frames.is_floating_point() and frames.device.type == "cpu":
        check_finite("a video", frames)
        if options.do_rescale:
            _warn_of_rescaled(frames)
    if not (options.do_rescale or options.do_normalize):
        return frames.contiguous()
    scale = options.rescale_factor if options.do_rescale else 1.0
    mean, std = (options.image_mean, options.image_std) if options.do_normalize else (0.0, 1.0)
    mean, std = (torch.as_tensor(value, dtype=torch.float32).reshape(-1, 1, 1) for value in (mean, std))
    num_channels, num_values = frames.shape[-3], max(len(mean), len(std))
    if num_values not in (1, num_channels):
        raise ValueError(
            f"frames have {num_channels} channels; image_mean and image_std are for {num_values}. Leave do_convert_rgb "
            "on, or give one mean and one deviation for all channels."
        )
    factor, offset = (value.to(frames.device, non_blocking=frames.is_cuda) for value in (scale / std, -mean / std))
    if frames.device.type != "cpu":
        # A copy also of what is float32 already: it may be the caller's own.
        pixels = frames.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
        return pixels.mul_(factor).add_(offset)
    # NumPy asks the kernel for huge pages: the first touch of 10 MB in small ones takes longer than the arithmetic.
    pixels = torch.from_numpy(np.empty(frames.shape, dtype=np.float32))
    # Frame by frame, so that four passes stay in the cache; interleaved channels are separated in their own type.
    planes = torch.empty(frames.shape[-3:], dtype=frames.dtype)
    for source, target in zip(frames.flatten(0, -4), pixels.flatten(0, -4), strict=True):
        target.copy_(planes.copy_(source)).mul_(factor).add_(offset)
    return pixels


def _warn_of_rescaled(frames: torch.Tensor) -> None:
    # One frame tells, and not the first one, which may be black; a resized one may be a little above 1.
    if 0 < frames[..., frames.shape[-4] // 2, :, :, :].max() < 1.5:
        logger.warning_once(
            "do_rescale is on, and floating point frames in [0, 1] are given: they look as if they had been rescaled "
            "already, and will be nearly black. Set do_rescale=False, or give values in [0, 255]."
        )
