"""The options of `MMEVideoProcessor`: which there are, and which of them cannot work."""

from collections.abc import Collection, Mapping
from numbers import Integral, Real
from types import SimpleNamespace
from typing import Any

from transformers.image_utils import SizeDict, pil_torch_interpolation_mapping
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
_WHOLE_NUMBERS = ("num_frames", "frame_stride", "patch_size", "tubelet_size", "trajectory_num_steps", "cell_size_px")
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
    check_sizes(options.size, options.crop_size)
    check_resample(options.resample)
    crop_size = options.crop_size
    if options.do_center_crop and not (crop_size and crop_size.height and crop_size.width):
        raise ValueError(f"crop_size ({crop_size}) must give 'height' and 'width', or set do_center_crop=False.")
    if options.do_center_crop:
        check_token_grid(crop_size.height, crop_size.width, options.patch_size)
    _check_scales(options)
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


def _check_scales(options: Any) -> None:
    for name, is_used in (("image_std", options.do_normalize), ("rescale_factor", options.do_rescale)):
        given = getattr(options, name)
        for value in given if isinstance(given, list | tuple) else [given]:
            if is_used and (isinstance(value, bool) or not isinstance(value, Real) or not value > 0):
                raise ValueError(f"{name} ({given!r}) must be above 0: pixels are multiplied or divided by it.")


def check_target_sizes(options: Any) -> None:
    """Raise ValueError if a target is unknown, cannot be had at these sizes, or has a teacher that cannot be found."""
    for target in build_targets(options.motion_targets, cell_size_px=options.cell_size_px).values():
        target.size(target_config(options))


def target_config(options: Any) -> SimpleNamespace:
    """Return what a target may ask to know its size (see `TargetConfig`)."""
    names = ("patch_size", "tubelet_size", "trajectory_num_steps")
    return SimpleNamespace(num_channels=3, **{name: getattr(options, name) for name in names})


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


def check_sizes(size: SizeDict | None, crop_size: SizeDict | None) -> None:
    """Raise ValueError if a side of `size` or `crop_size` is no whole number of at least 1."""
    for name, sides in (("size", size), ("crop_size", crop_size)):
        for side, value in dict(sides or {}).items():
            if value is not None:
                _check_positive(f"{name}[{side!r}]", value)


def check_resample(resample: Any) -> None:
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
