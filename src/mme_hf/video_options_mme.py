"""The options of `MMEVideoProcessor`: which there are, and which of them cannot work."""

import math
from collections.abc import Collection, Mapping
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

from huggingface_hub.dataclasses import validate_typed_dict
from transformers.image_utils import ChannelDimension, pil_torch_interpolation_mapping
from transformers.processing_utils import VideosKwargs

from .frame_sampling_mme import FRAME_SAMPLINGS
from .masking_mme import check_mask_ratio, check_mask_type, check_motion_strength
from .motion_targets_mme import build_targets, takes_visible_weight
from .names_mme import KEYS_NOT_KEPT, check_names
from .trajectories_mme import POINT_LAYOUTS, TRACKERS, check_options

CAMERA_MOTION: tuple[str, ...] = ("keep", "remove")
# Those that torchvision resizes tensors with.
# Not Lanczos: torchvision has it for tensors in new versions alone, and on CPUs alone.
_FILTERS = ("nearest", "nearest-exact", "bilinear", "bicubic")
_NUM_CHANNELS = 3
_WHOLE_NUMBERS = ("num_frames", "frame_stride", "patch_size", "tubelet_size", "trajectory_num_steps", "cell_size_px")
# Checked by this file, in more ways than one: transformers' own types have no place for a whole number or SizeDict.
_CHECKED_HERE = frozenset(("size", "crop_size", "image_mean", "image_std", "rescale_factor"))
# What transformers writes beside the options; no user types these.
_KEYS_OF_A_FILE = frozenset(
    ("video_processor_type", "image_processor_type", "feature_extractor_type", "processor_class", "auto_map")
)


class MMEVideoProcessorKwargs(VideosKwargs, total=False):
    """Options of `MMEVideoProcessor`, saved with it; each can be given anew in a call.

    Attributes:
        frame_stride: Raw frames from one input frame to the next.
        frame_sampling: "dense": frames `frame_stride` apart from the middle of a video; "segments": one frame of each
            of equal parts of all of it. With targets frames are always dense.
        patch_size: Side of a token in pixels.
        tubelet_size: Input frames of a token.
        mask_type: "tube", "cube", "random" or "motion" (tubes where the motion is, see `motion_mask`).
        mask_ratio: Share of tokens to hide.
        motion_mask_strength: How much motion decides with mask_type "motion": 0 not at all, 1 in proportion.
        trajectory_num_steps: Raw frames that points are followed for, from the first frame of each tubelet.
        cell_size_px: One point is followed per cell of this side.
        point_layout: "cell_center", or "reference" (see `grid_points`).
        tracker: Name of a registered tracker; in a call, any tracker.
        tracker_options: Options of the tracker.
        camera_motion: "keep", or "remove": targets and motion-guided masks get what moves against the background (see
            `mme_hf.motion.remove_camera_motion`; tracks with a step in which none is found stay as they are).
        motion_targets: Target name -> its options, or a list of names; the order is that of the columns of `labels`.
    """

    frame_stride: int | None
    frame_sampling: str | None
    patch_size: int | None
    tubelet_size: int | None
    mask_type: str | None
    mask_ratio: float | None
    motion_mask_strength: float | int | None
    trajectory_num_steps: int | None
    cell_size_px: int | None
    point_layout: str | None
    tracker: Any
    tracker_options: dict[str, Any] | None
    camera_motion: str | None
    motion_targets: dict[str, dict[str, Any]] | list[str | dict[str, Any]] | None


def is_of_a_file(options: Mapping[str, Any]) -> bool:
    """Return whether options come from a saved processor rather than from a user's hand."""
    return not _KEYS_OF_A_FILE.isdisjoint(options)


def options_of_file(saved: Mapping[str, Any], owner: str) -> dict[str, Any]:
    """Return saved options as `owner` takes them.

    The file of another model's processor, such as VideoMAE's, says how pixels are made. That it leaves the choice of
    frames to its user (`do_sample_frames` is False) is no choice of that user. Targets of files from before there was a
    `visible_weight` have none, as the models beside them.
    """
    options = {name: value for name, value in saved.items() if name not in KEYS_NOT_KEPT}
    if isinstance(options.get("motion_targets"), list):
        options["motion_targets"] = [_with_visible_weight(target) for target in options["motion_targets"]]
    if saved.get("video_processor_type", owner) != owner:
        options.pop("do_sample_frames", None)
    return options


def _with_visible_weight(target: Any) -> Any:
    """Return an entry of a file's targets, with the option that older files had not."""
    if isinstance(target, Mapping) and takes_visible_weight(target.get("name")):
        return {"visible_weight": 0.0, **target}
    return target


def check_option_names(owner: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Raise ValueError for an option that does not exist; in a file, where other versions have more, if misspelt."""
    check_names(owner, given, {*known, *_KEYS_OF_A_FILE}, misspelt_only=is_of_a_file(given))


def check_option_types(schema: type, given: Mapping[str, Any]) -> None:
    """Raise StrictDataclassFieldValidationError, as transformers' calls do, for a value of a type not in `schema`."""
    names = set(schema.__annotations__) - _CHECKED_HERE
    validate_typed_dict(schema, {name: value for name, value in given.items() if name in names})


def check_options_in_place(owner: type, given: Mapping[str, Any], saved: Mapping[str, Any]) -> None:
    """Raise ValueError for options given in place of saved ones that are misspelt, or name what is not there.

    Targets and tracker of a file may be its author's own; a user who names one wants to have it.
    """
    check_names(owner.__name__, given, owner.valid_kwargs.__annotations__, misspelt_only=True)  # else dropped
    if given.get("motion_targets") is not None:
        build_targets(named_targets(given["motion_targets"]))
    if not {"tracker", "tracker_options"}.isdisjoint(given):
        chosen = {**saved, **given}
        check_tracker(chosen.get("tracker", owner.tracker), chosen.get("tracker_options"))


def check_needs_targets(**given: Any) -> None:
    """Raise ValueError for what decides how masks are made, where no targets are asked for."""
    for name, value in given.items():
        if value is not None:
            raise ValueError(
                f"{name} is for masks, which are made with targets alone, and would go unread. Leave it out, or set "
                "return_targets=True."
            )


def named_targets(targets: Any) -> dict[str, Mapping[str, Any]]:
    """Return target name -> options from such a mapping, a list of names, or the list that `to_dict` writes.

    Raises:
        ValueError: If it is none of these, or names a target twice.
    """
    if isinstance(targets, Mapping):
        items = list(targets.items())
    elif isinstance(targets, list | tuple):
        items = [_named_target(item) for item in targets]
    else:
        raise ValueError(f"motion_targets ({targets!r}) must be a list of names such as ['position'], or a mapping.")
    for name, own in items:
        if not isinstance(own, Mapping):
            raise ValueError(f"motion_targets[{name!r}] ({own!r}) must be a mapping of its options; {{}} for none.")
    if len(dict(items)) < len(items):
        raise ValueError(f"motion_targets ({targets!r}) names a target twice. Name each once.")
    return dict(items)


def _named_target(item: Any) -> tuple[Any, Any]:
    if isinstance(item, Mapping) and "name" in item:
        return item["name"], {key: value for key, value in item.items() if key != "name"}
    if not isinstance(item, str):
        raise ValueError(f"motion_targets has the entry {item!r}; it must be a name, or {{'name': ..., its options}}.")
    return item, {}


def check_processor_options(options: Any) -> None:
    """Raise ValueError naming the first option that cannot work, before any frame is touched."""
    for name in _WHOLE_NUMBERS:
        _check_positive(name, getattr(options, name))
    if options.num_frames % options.tubelet_size:
        raise ValueError(
            f"num_frames ({options.num_frames}) does not divide by tubelet_size ({options.tubelet_size}). "
            "Choose a tubelet_size that divides num_frames."
        )
    if options.patch_size % options.cell_size_px:
        raise ValueError(
            f"patch_size ({options.patch_size}) does not divide by cell_size_px ({options.cell_size_px}). "
            "Choose a cell_size_px that divides patch_size."
        )
    if options.frame_sampling not in FRAME_SAMPLINGS:
        raise ValueError(
            f"frame_sampling ({options.frame_sampling!r}) is unknown. Choose one of {list(FRAME_SAMPLINGS)}."
        )
    check_pixel_options(options)
    crop_size = options.crop_size
    if options.do_center_crop and not (crop_size and crop_size.height and crop_size.width):
        raise ValueError(f"crop_size ({crop_size}) must give 'height' and 'width', or set do_center_crop=False.")
    if options.do_center_crop:
        check_token_grid(crop_size.height, crop_size.width, options.patch_size)
    if options.point_layout not in POINT_LAYOUTS:
        raise ValueError(f"point_layout ({options.point_layout!r}) is unknown. Choose one of {list(POINT_LAYOUTS)}.")
    if options.camera_motion not in CAMERA_MOTION:
        raise ValueError(f"camera_motion ({options.camera_motion!r}) is unknown. Choose one of {list(CAMERA_MOTION)}.")
    if not options.motion_targets:
        raise ValueError("motion_targets is empty. Name at least one target, for example {'position': {}}.")
    check_mask_type(options.mask_type)
    if isinstance(options.mask_ratio, bool) or not isinstance(options.mask_ratio, Real):
        raise ValueError(f"mask_ratio ({options.mask_ratio!r}) must be a number between 0 and 1, such as 0.7.")
    check_mask_ratio(options.mask_ratio)
    check_motion_strength(options.motion_mask_strength)


def check_pixel_options(options: Any) -> None:
    """Raise ValueError naming the first option that no pixels can be made with, at construction and in every call."""
    for name in ("size", "crop_size"):
        for side, value in dict(getattr(options, name) or {}).items():
            if value is not None:
                _check_positive(f"{name}[{side!r}]", value)
    _check_resample(options.resample)
    _check_scale("image_mean", options.image_mean, options.do_normalize, is_factor=False)
    _check_scale("image_std", options.image_std, options.do_normalize)
    _check_scale("rescale_factor", options.rescale_factor, options.do_rescale, is_list=False)
    fps = getattr(options, "fps", None)
    if fps is not None and (not _is_finite(fps) or fps <= 0):
        raise ValueError(f"fps ({fps!r}) must be a finite number above 0: frames to take of a second.")
    if getattr(options, "data_format", None) not in (None, ChannelDimension.FIRST, ChannelDimension.FIRST.value):
        raise ValueError(
            f"data_format ({options.data_format!r}) cannot be had: pixel_values are (batch, frames, channels, height, "
            "width). Leave data_format out, and permute them."
        )
    if getattr(options, "do_pad", None):
        raise ValueError(
            f"do_pad ({options.do_pad!r}) cannot be had: frames are resized and cropped, and none is padded. Leave it "
            "out; mme_hf.pad_clips joins clips of unequal length."
        )


def _check_scale(name: str, given: Any, is_used: bool | None, *, is_factor: bool = True, is_list: bool = True) -> None:
    if given is None and not is_used:
        return
    values = given if is_list and isinstance(given, list | tuple) else [given]
    if len(values) not in (1, _NUM_CHANNELS) or not all(map(_is_finite, values)):
        several = f", or {_NUM_CHANNELS}: one for each channel" if is_list else ""
        raise ValueError(f"{name} ({given!r}) must be a finite number{several}.")
    if is_factor and not all(value > 0 for value in values):
        raise ValueError(f"{name} ({given!r}) must be above 0: pixels are multiplied or divided by it.")


def _is_finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def check_target_sizes(options: Any) -> None:
    """Raise ValueError if a target is unknown, cannot be had at these sizes, or has a teacher that cannot be found."""
    for name, target in build_targets(options.motion_targets, cell_size_px=options.cell_size_px).items():
        own, of_tracks = getattr(target, "cell_size_px", options.cell_size_px), options.cell_size_px
        if own != of_tracks and getattr(target, "needs_trajectories", True):
            raise ValueError(
                f"motion target {name!r}: cell_size_px ({own}) cannot be another than the processor's cell_size_px "
                f"({of_tracks}): points are followed once for all targets, one per cell. Leave it out, or set that of "
                f"the processor to {own}."
            )
        target.size(target_config(options))


def target_config(options: Any) -> SimpleNamespace:
    """Return what a target may ask to know its size (see `TargetConfig`)."""
    names = ("patch_size", "tubelet_size", "trajectory_num_steps")
    return SimpleNamespace(num_channels=_NUM_CHANNELS, **{name: getattr(options, name) for name in names})


def check_tracker(tracker: Any, tracker_options: Any) -> None:
    """Raise ValueError if no tracker of that name is registered, or it lacks an option; the tracker is not built.

    Where no tracker is registered at all (remote code without mme_hf) any name passes: pixels need none.
    """
    if not isinstance(tracker, str) and not callable(tracker):
        raise ValueError(f"tracker ({tracker!r}) must be a name or a tracker.")
    if not isinstance(tracker_options or {}, Mapping):
        raise ValueError(f"tracker_options ({tracker_options!r}) must be a mapping of options; {{}} for none.")
    if isinstance(tracker, str) and TRACKERS:
        if tracker not in TRACKERS:
            raise ValueError(f"tracker ({tracker!r}) is unknown. Choose one of {sorted(TRACKERS)}.")
        check_options(f"tracker {tracker!r}", TRACKERS[tracker], tracker_options or {})


def _check_resample(resample: Any) -> None:
    """Raise ValueError if tensors cannot be resized so; None is for transformers to judge."""
    mode = pil_torch_interpolation_mapping.get(resample, resample)
    if resample is not None and getattr(mode, "value", mode) not in _FILTERS:
        raise ValueError(
            f"resample ({resample!r}) is no filter for tensors. Choose PIL's number of one: 0 (nearest), 2 "
            "(bilinear) or 3 (bicubic)."
        )


def check_token_grid(height: int, width: int, patch_size: int) -> None:
    """Raise ValueError if patches do not tile a frame."""
    if height % patch_size or width % patch_size:
        raise ValueError(
            f"crop_size {height}x{width} does not divide by patch_size ({patch_size}). Choose a crop_size that does."
        )


def _check_positive(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise ValueError(f"{name} ({value!r}) must be a whole number, such as 16.")
    if value < 1:
        raise ValueError(f"{name} ({value}) must be at least 1.")
