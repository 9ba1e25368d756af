"""Pixels for everyone, and masks and motion targets for pre-training, all from one array of raw frames."""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers.image_processing_utils import BatchFeature
from transformers.image_utils import PILImageResampling
from transformers.processing_utils import Unpack
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from transformers.video_processing_utils import BaseVideoProcessor
from transformers.video_utils import VideoMetadata

from .frame_sampling_mme import middle_clip
from .motion_targets_mme import build_targets, head_options, written_options
from .names_mme import check_names
from .raw_clips_mme import RawClips, cut_raw_clip, inputs_of, join_raw_clips
from .video_inputs_mme import (
    CropBox,
    as_frames,
    clip_geometry,
    crop_boxes,
    fitting_window,
    flatten_batch,
    flip_flags,
    given_masks,
    needed_raw_frames,
    normalize_frames,
    one_per_clip,
    raw_frame_numbers,
    raw_frame_sampler,
    raw_window,
    take_frames,
)
from .video_options_mme import (
    MMEVideoProcessorKwargs,
    check_needs_targets,
    check_option_names,
    check_option_types,
    check_options_in_place,
    check_pixel_options,
    check_processor_options,
    check_target_sizes,
    check_tracker,
    is_of_a_file,
    named_targets,
    options_of_file,
    target_config,
)
from .video_reading_mme import is_encoded, read_frames

if TYPE_CHECKING:
    # transformers saves remote code by what a file says it imports: with the processor goes its pipeline.
    from .video_pipeline_mme import VideoFeatureExtractionPipeline  # noqa: F401


class MMEVideoProcessor(BaseVideoProcessor):
    """Turns videos into `pixel_values`, and on request raw frames into everything pre-training needs.

    Without targets it takes a path, `Path`, http(s) address, bytes, array, tensor, list of frames or torchcodec
    decoder, or a list of these. `num_frames` frames are taken at `frame_stride` (or at `fps`) from the middle of the
    video; a shorter one takes the largest stride that fits, and below that repeats its last frame.
    """

    resample = PILImageResampling.BILINEAR
    image_mean = IMAGENET_DEFAULT_MEAN
    image_std = IMAGENET_DEFAULT_STD
    size = {"shortest_edge": 224}  # noqa: RUF012 (the base class copies every default onto the instance)
    default_to_square = False
    crop_size = {"height": 224, "width": 224}  # noqa: RUF012
    do_resize = True
    do_center_crop = True
    do_rescale = True
    rescale_factor = 1 / 255
    do_normalize = True
    do_convert_rgb = True
    do_sample_frames = True
    num_frames = 16
    frame_stride = 4
    frame_sampling = "dense"
    patch_size = 16
    tubelet_size = 2
    mask_type = "tube"
    mask_ratio = 0.7
    motion_mask_strength = 1.0
    trajectory_num_steps = 4
    cell_size_px = 8
    point_layout = "cell_center"
    tracker = "dis"
    tracker_options = {}  # noqa: RUF012
    camera_motion = "keep"
    motion_targets = {"shape": {}, "position": {}}  # noqa: RUF012
    valid_kwargs = MMEVideoProcessorKwargs
    model_input_names = ["pixel_values"]  # noqa: RUF012

    def __init__(self, **kwargs: Unpack[MMEVideoProcessorKwargs]):
        check_option_names(type(self).__name__, kwargs, self.valid_kwargs.__annotations__)
        if kwargs.get("motion_targets") is not None:
            kwargs["motion_targets"] = named_targets(kwargs["motion_targets"])
        super().__init__(**kwargs)
        check_processor_options(self)
        # A saved processor may name a tracker, target or teacher that only its author has: it still makes pixels.
        if not is_of_a_file(kwargs):
            check_tracker(self.tracker, self.tracker_options)
            check_target_sizes(self)
        check_option_types(self.valid_kwargs, kwargs)

    @classmethod
    def from_dict(cls, video_processor_dict: dict[str, Any], **kwargs: Any) -> "MMEVideoProcessor":
        """Return a processor with saved options, and others in place of some, which are checked as at construction."""
        check_options_in_place(cls, kwargs, video_processor_dict)
        return super().from_dict(options_of_file(video_processor_dict, cls.__name__), **kwargs)

    def raw_window(self, frame_stride: int | None = None) -> int:
        """Return how many raw frames one sample needs, those of its tracks included.

        Args:
            frame_stride: Raw frames between input frames; None for the processor's own.
        """
        stride = self.frame_stride if frame_stride is None else frame_stride
        return raw_window(self, stride)

    def raw_window_for(self, num_available: int) -> int:
        """Return how many raw frames a sample takes of a video with `num_available` frames.

        That is the window of the largest stride up to `frame_stride` that fits, or all frames where none fits.
        """
        return fitting_window(num_available, self)

    def raw_frames_for(self, num_available: int) -> list[int]:
        """Return which frames of `raw_window_for(num_available)` a sample takes: no others have to be decoded.

        Given alone, they go with `video_metadata={"frames_indices": ...}`, which says which frames they are.
        """
        return needed_raw_frames(num_available, self)

    def motion_target_config(self) -> dict[str, dict[str, Any]]:
        """Return name -> size, activation and weights of every target: what `MMEConfig.motion_targets` holds."""
        config = target_config(self)
        targets = build_targets(self.motion_targets, cell_size_px=self.cell_size_px)
        return {name: head_options(target, config) for name, target in targets.items()}

    def to_dict(self) -> dict[str, Any]:
        """Return the options as plain values: a tracker object as its name and options, `motion_targets` as a list.

        Targets have all of their options, those that were left out too.

        transformers writes JSON with sorted keys; the order of the targets, which is that of the columns of `labels`,
        survives only in a list.
        """
        options = super().to_dict()
        targets = self.motion_targets.items()
        options["motion_targets"] = [{"name": name, **written_options(name, own)} for name, own in targets]
        tracker = self.tracker
        if not isinstance(tracker, str):
            options["tracker"] = getattr(tracker, "name", repr(tracker))
            # Not the tracks of one video, say: these are no setting.
            own = getattr(tracker, "options", {})
            options["tracker_options"] = {name: value for name, value in own.items() if _is_plain(value)}
        return options

    def sample_frames(
        self,
        metadata: VideoMetadata,
        num_frames: int | None = None,
        fps: float | None = None,
        frame_stride: int | None = None,
        frame_sampling: str | None = None,
        **kwargs: Any,
    ) -> np.ndarray:
        """Return the indices of `num_frames` frames from the middle of a video, or spread over all of it.

        Args:
            metadata: Number of frames and frame rate of the video.
            num_frames: Frames to take; None for the processor's own.
            fps: Frames per second to take; wins over `frame_stride`.
            frame_stride: Frames from one to the next; None for the processor's own.
            frame_sampling: "dense" or "segments"; None for the processor's own.
            kwargs: Other options of the processor, not used.

        Raises:
            ValueError: If the video has no frames, or `fps` is given and its frame rate is unknown.
        """
        num_frames = self.num_frames if num_frames is None else num_frames
        frame_stride = self.frame_stride if frame_stride is None else frame_stride
        sampling = self.frame_sampling if frame_sampling is None else frame_sampling
        return middle_clip(metadata, num_frames, frame_stride, fps, sampling)

    def preprocess(
        self,
        videos: Any,
        *,
        return_targets: bool = False,
        generator: torch.Generator | None = None,
        crop_box: CropBox | Sequence[CropBox] | None = None,
        flip: bool | Sequence[bool] = False,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[MMEVideoProcessorKwargs],
    ) -> BatchFeature:
        """Return the inputs of the model for one video or a list of them.

        Args:
            videos: One video or a list. With targets an array holds *raw* frames, uint8, of which the first
                `raw_window()` are used (a path, bytes or decoder gives those in its middle); `frames_indices` of
                `video_metadata` says which frames they are where some are left out. Grey frames need a side of one
                channel: an array with three sides is one frame.
            return_targets: Whether to add mask and motion targets.
            generator: Source of randomness of the masks, on the CPU; None draws from torch's default generator.
            crop_box: (left, top, width, height) in source pixels, cut out and resized to `crop_size`, in place of
                shortest-edge resize and centre crop. One for all videos, or one per video.
            flip: Whether to mirror left to right, one for all videos or one per video.
            bool_masked_pos: Masks to use in place of drawn ones, shape (tokens,) or (batch, tokens).
            kwargs: Options to use in place of the processor's own, see `MMEVideoProcessorKwargs`.

        Returns:
            pixel_values float32 (batch, frames, channels, height, width), and with targets bool_masked_pos
            (batch, tokens), masked_indices (batch, masked), labels (batch, tokens, sum of target sizes) and
            target_mask (batch, tokens, targets).

        Raises:
            ValueError: If an option, the input or the crop box cannot be used; the message says which and why.
        """
        options = self._resolve_options(kwargs)
        if return_targets:
            clips, metadata = self._cut(videos, options, generator, crop_box, flip, bool_masked_pos)
            data = inputs_of(join_raw_clips([[clip] for clip in clips]), options)
        else:
            check_needs_targets(bool_masked_pos=bool_masked_pos, generator=generator)
            loaded = self._load_all(videos, options, is_raw=False)
            boxes, flips = crop_boxes(crop_box, len(loaded)), flip_flags(flip, len(loaded))
            pixels = [
                normalize_frames(clip_geometry(frames, *cut, options).apply_to_frames(frames), options)
                for (frames, _), *cut in zip(loaded, boxes, flips, strict=True)
            ]
            is_batch = options.return_tensors and len({clip.shape for clip in pixels}) == 1
            data = {"pixel_values": _stack(pixels) if is_batch else pixels}
            metadata = [video for _, video in loaded]
        batch = BatchFeature(data=data, tensor_type=options.return_tensors)
        if options.return_metadata:
            batch["video_metadata"] = metadata
        return batch

    def cut_raw_clips(
        self,
        videos: Any,
        *,
        generator: torch.Generator | None = None,
        crop_box: CropBox | Sequence[CropBox] | None = None,
        flip: bool | Sequence[bool] = False,
        bool_masked_pos: torch.Tensor | None = None,
        **kwargs: Unpack[MMEVideoProcessorKwargs],
    ) -> list[RawClips]:
        """Return raw frames, cropped, resized and flipped but uint8, and what was drawn: all that is done clip by clip.

        `inputs_from_raw_clips` makes of them, on any device, what the call with `return_targets=True` returns.

        Args:
            videos: Raw frames, see `preprocess`; so are all other arguments.
            generator: Source of randomness of the masks.
            crop_box: What to cut out.
            flip: Whether to mirror.
            bool_masked_pos: Masks to use in place of drawn ones.
            kwargs: Options to use in place of the processor's own. Those that say how targets are made have to be
                given to `inputs_from_raw_clips` again.

        Returns:
            The clips, those that take the same frames joined: one entry, unless some videos are short.
        """
        clips, _ = self._cut(videos, self._resolve_options(kwargs), generator, crop_box, flip, bool_masked_pos)
        return join_raw_clips([[clip] for clip in clips])

    def inputs_from_raw_clips(
        self, clips: Sequence[RawClips], **kwargs: Unpack[MMEVideoProcessorKwargs]
    ) -> BatchFeature:
        """Return pixels, masks and labels of clips, made together on the device that they are on.

        Nothing waits for the device, unless the tracker does: those of OpenCV work on the CPU.

        Args:
            clips: What `cut_raw_clips` returned, or several such lists put together by `join_raw_clips`.
            kwargs: Options to use in place of the processor's own.

        Returns:
            What `preprocess` returns with targets, as tensors.

        Raises:
            ValueError: If there is no clip, or an option cannot be used.
        """
        options = self._resolve_options(kwargs)
        self._check_target_options(options)
        return BatchFeature(data=inputs_of(clips, options))

    def _resolve_options(self, kwargs: dict[str, Any]) -> SimpleNamespace:
        """Return all options as attributes: those of the call, otherwise the processor's own (as transformers does)."""
        names = list(self.valid_kwargs.__annotations__)
        check_names(type(self).__name__, kwargs, [*names, "return_tensors"], error=TypeError)  # as transformers does
        if kwargs.get("motion_targets") is not None:
            kwargs["motion_targets"] = named_targets(kwargs["motion_targets"])
        if set(kwargs) - {"return_tensors"}:  # 0.2 ms for nothing where no option is given anew
            check_option_types(self.valid_kwargs, kwargs)
        options = {"return_tensors": None, **{name: getattr(self, name, None) for name in names}, **kwargs}
        options = self._standardize_kwargs(**options)
        check_pixel_options(SimpleNamespace(**options))
        self._validate_preprocess_kwargs(**options)
        return SimpleNamespace(**options)

    def _cut(
        self,
        videos: Any,
        options: SimpleNamespace,
        generator: torch.Generator | None,
        crop_box: Any,
        flip: Any,
        bool_masked_pos: torch.Tensor | None,
    ) -> tuple[list[RawClips], list[VideoMetadata]]:
        self._check_target_options(options)
        loaded = self._load_all(videos, options, is_raw=True)
        boxes, flips = crop_boxes(crop_box, len(loaded)), flip_flags(flip, len(loaded))
        masks = given_masks(bool_masked_pos, len(loaded))
        geometries = [
            clip_geometry(frames, *cut, options) for (frames, _), *cut in zip(loaded, boxes, flips, strict=True)
        ]
        clips = [
            cut_raw_clip(frames, video.frames_indices, geometry, mask, generator, options)
            for (frames, video), geometry, mask in zip(loaded, geometries, masks, strict=True)
        ]
        return clips, [video for _, video in loaded]

    def _check_target_options(self, options: SimpleNamespace) -> None:
        check_processor_options(options)
        check_tracker(options.tracker, options.tracker_options)
        check_target_sizes(options)
        if options.fps is not None:
            raise ValueError(
                f"fps ({options.fps}) cannot be met with return_targets=True: points are followed at the video's "
                "own rate. Leave fps out (or pass fps=None) and choose frame_stride."
            )

    def _load_all(
        self, videos: Any, options: SimpleNamespace, *, is_raw: bool
    ) -> list[tuple[torch.Tensor, VideoMetadata]]:
        """Return the wanted frames of every video as (T, C, H, W), and what is known of it."""
        # What chooses the frames of a video that is longer than needed; None takes all.
        sampler = raw_frame_sampler(options) if is_raw else None
        if not is_raw and options.do_sample_frames:
            sampler = partial(self.sample_frames, **vars(options))
        sources = flatten_batch(videos)
        metadata = one_per_clip(
            "video_metadata", options.video_metadata, len(sources), lambda m: isinstance(m, Mapping)
        )
        return [self._load(*item, options, sampler, is_raw) for item in zip(sources, metadata, strict=True)]

    def _load(
        self,
        source: Any,
        metadata: VideoMetadata | dict | None,
        options: SimpleNamespace,
        sampler: Callable[[VideoMetadata], np.ndarray] | None,
        is_raw: bool,
    ) -> tuple[torch.Tensor, VideoMetadata]:
        """Return the wanted frames of one video as (T, C, H, W), and what is known of it."""
        to_rgb = self.convert_to_rgb if options.do_convert_rgb else None
        if is_encoded(source):
            frames, video = read_frames(source, sampler)
            frames = as_frames(frames, None, to_rgb)  # input_data_format is for arrays
        else:
            frames = as_frames(source, options.input_data_format, to_rgb)
            known = {"total_num_frames": len(frames), "height": frames.shape[-2], "width": frames.shape[-1]}
            given = metadata[0] if isinstance(metadata, list) else metadata  # transformers also allows a list per video
            video = VideoMetadata(**{**known, **dict(given or {})})
            video.total_num_frames = len(frames)
            if is_raw:
                video.frames_indices = raw_frame_numbers(video.frames_indices, len(frames))
            else:
                video.frames_indices = (np.arange(len(frames)) if sampler is None else sampler(video)).tolist()
                frames = take_frames(frames, video.frames_indices)
        return (frames if options.device is None else frames.to(options.device)), video


def _stack(tensors: list[torch.Tensor]) -> torch.Tensor:
    return tensors[0][None] if len(tensors) == 1 else torch.stack(tensors)


def _is_plain(value: Any) -> bool:
    is_list = isinstance(value, list | tuple)
    return all(map(_is_plain, value)) if is_list else value is None or isinstance(value, str | int | float | bool)
