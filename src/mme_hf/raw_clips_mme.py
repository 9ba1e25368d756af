"""Raw frames in, all that pre-training takes out: one batched function, the same on a CPU and on an accelerator.

What has to be done clip by clip (decoding, cropping, drawing at random) ends in `RawClips`; nothing else of a clip is
needed to make pixels, tracks, labels and masks of it, wherever and together with whichever clips that is done.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from .clip_tracks_mme import (
    clip_tracks,
    follow_points,
    is_of_one_clip,
    needs_tracks,
    reads_frames_along_tracks,
    tracker_of,
)
from .masking_mme import Grid, build_mask, draw_mask_noise, mask_from_noise, num_masked_patches, patch_motion
from .motion_targets_mme import MotionClip, build_targets
from .point_tracking_mme import check_finite, constant_on, full_precision
from .trajectories_mme import ClipGeometry, Trajectories
from .video_inputs_mme import RawFramePlan, normalize_frames, plan_raw_frames, take_frames
from .video_options_mme import check_token_grid


@dataclass(frozen=True, eq=False)
class RawClips:
    """Clips that take the same raw frames, and what was drawn for each: all that depends on the video and on chance.

    Attributes:
        frames: Raw frames, cropped, resized and flipped, uint8 in [0, 255], shape (B, R, 3, H, W).
        plan: Which of them are input frames, and which tracks start at.
        num_masked: Tokens hidden in each clip.
        bool_masked_pos: Which these are, bool, shape (B, N); None where the motion is to decide.
        mask_noise: What then decides beside the motion (see `draw_mask_noise`), shape (B, patches).
        tracks: Tracks that only a clip's own tracker knows, such as stored ones; None where points are still to be
            followed.
        places: Which of the clips of a batch these are.
    """

    frames: torch.Tensor
    plan: RawFramePlan
    num_masked: int
    bool_masked_pos: torch.Tensor | None = None
    mask_noise: torch.Tensor | None = None
    tracks: Trajectories | None = None
    places: tuple[int, ...] = (0,)

    def __len__(self) -> int:
        return len(self.frames)

    def to(self, device: torch.device | str) -> "RawClips":
        """Return the clips on a device; a GPU takes them from pinned memory without waiting for the copy."""
        device = torch.device(device)

        def moved(tensor: torch.Tensor) -> torch.Tensor:
            # Apple's devices have no float64.
            tensor = tensor.float() if device.type == "mps" and tensor.dtype == torch.float64 else tensor
            return tensor.to(device, non_blocking=device.type == "cuda")

        return self._each(moved)

    def pin_memory(self) -> "RawClips":
        """Return the clips in pinned memory; a DataLoader asks for it."""
        return self._each(torch.Tensor.pin_memory)

    def _each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "RawClips":
        moved = {name: getattr(self, name) for name in ("frames", "bool_masked_pos", "mask_noise")}
        moved = {name: None if tensor is None else function(tensor) for name, tensor in moved.items()}
        return replace(self, **moved, tracks=None if self.tracks is None else self.tracks.each(function))


def cut_raw_clip(
    raw_frames: torch.Tensor,
    frame_numbers: Sequence[int],
    geometry: ClipGeometry,
    mask: torch.Tensor | None,
    generator: torch.Generator | None,
    options: Any,
) -> RawClips:
    """Return one clip of raw frames, with what is random about it.

    Args:
        raw_frames: Frames of the video, uint8, shape (T, 3, H, W), the sample's first one first.
        frame_numbers: Which of its frames they are, ascending. Those that the sample does not need may be missing.
        geometry: Crop, resize and flip.
        mask: Tokens to hide, bool, shape (N,); None to draw them.
        generator: Source of randomness of the mask.
        options: The processor's options.

    Raises:
        ValueError: If frames are not uint8, a frame is missing, or frame size, mask and tokens do not fit together.
    """
    if raw_frames.dtype != torch.uint8:
        raise ValueError(
            f"raw frames have dtype {raw_frames.dtype}; motion targets are made from uint8 frames in [0, 255]."
        )
    check_token_grid(geometry.out_height, geometry.out_width, options.patch_size)
    plan, places = _planned(frame_numbers, options)
    # After the crop: of large frames only that part is copied.
    frames = geometry.resize_box(take_frames(geometry.cut_box(raw_frames), places))[None]
    grid = _token_grid(frames, options)
    tracks, is_guided = None, mask is None and options.mask_type == "motion"
    if needs_tracks(options, is_guided=is_guided):
        tracker = tracker_of(options)
        if is_of_one_clip(tracker):
            shown = [frame_numbers[place] for place in places]
            tracker = tracker.for_clip(geometry, shown, tuple(raw_frames.shape[-2:]))
            tracks = follow_points(frames, plan, tracker, options)
    if is_guided:
        num_masked = grid[0] * num_masked_patches(grid, options.mask_ratio)
        noise = draw_mask_noise(grid, generator)[None]
        return RawClips(frames, plan, num_masked, mask_noise=noise, tracks=tracks).to(frames.device)
    if mask is None:
        mask = build_mask(options.mask_type, grid, options.mask_ratio, generator)
    elif mask.numel() != grid[0] * grid[1] * grid[2]:
        raise ValueError(f"bool_masked_pos has {mask.numel()} tokens; the clip has {' x '.join(map(str, grid))}.")
    return RawClips(frames, plan, int(mask.sum()), mask[None], tracks=tracks).to(frames.device)


def _planned(frame_numbers: Sequence[int], options: Any) -> tuple[RawFramePlan, list[int]]:
    """Return the plan of a sample that begins with the first of the given frames, and where its raw frames are."""
    place_of = {number - frame_numbers[0]: place for place, number in enumerate(frame_numbers)}
    plan = plan_raw_frames(max(place_of) + 1, options)
    missing = sorted(set(plan.raw_frames) - set(place_of))
    if missing:
        raise ValueError(
            f"{len(missing)} raw frames are missing, the first is frame {frame_numbers[0] + missing[0]}: "
            "frames_indices of video_metadata has it not. Targets need frames at the video's own rate."
        )
    return plan, [place_of[frame] for frame in plan.raw_frames]


def join_raw_clips(batches: Sequence[Sequence[RawClips]]) -> list[RawClips]:
    """Return the clips of several batches as one batch, those that can be worked on together joined.

    Args:
        batches: Each as `MMEVideoProcessor.cut_raw_clips` returns it. Order, of batches and in them, is kept: `places`
            tells it.
    """
    num_before, groups = 0, {}
    for batch in batches:
        for clips in batch:
            own = replace(clips, places=tuple(num_before + place for place in clips.places))
            kind = (own.plan, own.frames.shape[1:], own.num_masked, own.mask_noise is None, own.tracks is None)
            groups.setdefault(kind, []).append(own)
        num_before += sum(map(len, batch))
    return [_joined(group) for group in groups.values()]


def _joined(group: Sequence[RawClips]) -> RawClips:
    first = group[0]
    if len(group) == 1:
        return first
    tracks = None
    if first.tracks is not None:
        tracks = replace(
            first.tracks,
            points_xy=torch.cat([own.tracks.points_xy for own in group]),
            is_visible=torch.cat([own.tracks.is_visible for own in group]),
        )
    joined = {
        name: None if getattr(first, name) is None else torch.cat([getattr(own, name) for own in group])
        for name in ("frames", "bool_masked_pos", "mask_noise")
    }
    return replace(first, **joined, tracks=tracks, places=sum((own.places for own in group), ()))


@torch.no_grad()
def inputs_of(groups: Sequence[RawClips], options: Any) -> dict[str, torch.Tensor]:
    """Return the model's inputs for all clips of a batch, in its order, on the device of the frames.

    Args:
        groups: As `join_raw_clips` returns them.
        options: The processor's options.

    Returns:
        pixel_values, bool_masked_pos, masked_indices, labels and target_mask, see `MMEVideoProcessor.preprocess`.

    Raises:
        ValueError: If there is no clip, or clips differ in frame size or in how many tokens they hide.
    """
    if not groups:
        raise ValueError("there is no clip to make inputs of.")
    with full_precision(groups[0].frames.device):
        parts = [_inputs_of_group(group, options) for group in groups]
    if len(parts) == 1:
        return parts[0]
    for name in parts[0]:
        shapes = sorted({tuple(part[name].shape[1:]) for part in parts})
        if len(shapes) > 1:
            raise ValueError(f"{name} differs in shape between videos: {shapes}.")
    places = [place for group in groups for place in group.places]
    order = constant_on(groups[0].frames.device, sorted(range(len(places)), key=places.__getitem__))
    return {name: torch.cat([part[name] for part in parts]).index_select(0, order) for name in parts[0]}


def _inputs_of_group(clips: RawClips, options: Any) -> dict[str, torch.Tensor]:
    frames, plan = clips.frames, clips.plan
    pixels = normalize_frames(take_frames(frames, plan.inputs), options)
    clip = _motion_clip(pixels, frames, plan, options)
    targets = build_targets(options.motion_targets, cell_size_px=options.cell_size_px)
    seen, moved = None, None
    if needs_tracks(options, is_guided=clips.bool_masked_pos is None):
        tracks = clips.tracks
        if tracks is None:
            tracks = follow_points(frames, plan, tracker_of(options), options)
        seen, moved = clip_tracks(tracks, frames, plan, options)
    values, valid = zip(
        *(target(clip, seen if reads_frames_along_tracks(target) else moved) for target in targets.values()),
        strict=True,
    )
    mask = clips.bool_masked_pos
    if mask is None:
        mask = _guided_mask(clips, moved, clip.token_grid, options)
    return {
        "pixel_values": pixels,
        "bool_masked_pos": mask,
        # Sorted, not searched for: their number is known, and asking for it would wait for the device.
        "masked_indices": mask.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, : clips.num_masked],
        "labels": torch.cat(values, dim=-1),
        "target_mask": torch.stack(valid, dim=-1),
    }


def _guided_mask(clips: RawClips, moved: Trajectories, grid: Grid, options: Any) -> torch.Tensor:
    points = tuple(side // options.cell_size_px for side in moved.frame_size)
    motion = patch_motion(moved.displacements, moved.is_visible, points, grid[1:])
    check_finite("motion of the patches", motion)
    # As many as were to be hidden when the clips were cut, which need not be the options' share.
    num_patches = clips.num_masked // grid[0]
    return mask_from_noise(clips.mask_noise, motion, grid, num_patches, options.motion_mask_strength)


def _token_grid(frames: torch.Tensor, options: Any) -> Grid:
    height, width = frames.shape[-2:]
    side = options.patch_size
    return options.num_frames // options.tubelet_size, height // side, width // side


def _motion_clip(pixels: torch.Tensor, frames: torch.Tensor, plan: RawFramePlan, options: Any) -> MotionClip:
    scale = options.rescale_factor if options.do_rescale else 1.0
    std = options.image_std if options.do_normalize else 1.0
    return MotionClip(
        pixels,
        options.patch_size,
        options.tubelet_size,
        raw_frames=frames,
        input_frames=plan.inputs,
        start_frames=plan.starts,
        channel_scales=(scale / np.broadcast_to(std, frames.shape[-3])).tolist(),
    )
