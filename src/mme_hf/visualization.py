"""Pictures of what a model was asked and what it answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .drawing import annotated, draw_histograms, draw_tracks, length_factor, picture, table
from .motion_clip_mme import cells_per_side, tokens_from_cells
from .motion_targets_mme import build_targets, histogram_of_gradients
from .trajectories_mme import Trajectories, grid_points

if TYPE_CHECKING:
    from PIL import Image

    from .modeling_mme import MMEForPreTraining
    from .motion.measures import ObservedClip
    from .video_processing_mme import MMEVideoProcessor

# Tubelets shown, evenly spaced over the clip: more make the tracks too small to read.
MAX_COLUMNS = 4
MAX_ROWS = 8
# Pictures in a sheet are about so wide, whatever the frames are.
PANEL_WIDTH_PX = 280


def liveliest_clip(
    batches: Iterable[Mapping[str, Any]], motion_targets: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, torch.Tensor], str]:
    """Return the inputs and the source of the clip that moves most: a still one would show nothing.

    Args:
        batches: Batches as `ClipCollator` makes them.
        motion_targets: The model's, `position` among them.

    Raises:
        ValueError: If there is no clip in `batches`, or `position` is not among the targets.
    """
    names = list(motion_targets)
    _check_has_position(names)
    best: tuple[float, dict[str, torch.Tensor], str] | None = None
    for batch in batches:
        inputs = batch["inputs"]
        labels = dict(
            zip(names, inputs["labels"].split([motion_targets[name]["size"] for name in names], -1), strict=True)
        )
        counts = inputs["target_mask"][..., names.index("position")]
        motion = (labels["position"].abs().mean(-1) * counts).sum(1) / counts.sum(1).clamp(min=1)
        for index, liveliness in enumerate(motion.tolist()):
            if best is None or liveliness > best[0]:
                clip = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
                best = (liveliness, clip, batch["sources"][index])
    if best is None:
        raise ValueError("there is no clip to choose from: no video of these batches could be read.")
    return best[1], best[2]


@torch.no_grad()
def draw_motion_prediction(
    model: MMEForPreTraining,
    processor: MMEVideoProcessor,
    inputs: Mapping[str, torch.Tensor],
    path: str | Path,
    *,
    title: str = "",
) -> None:
    """Draw a clip, what the model sees of it, and target beside predicted tracks, as a PNG.

    Only points of masked tokens that count have tracks, in both rows; all are drawn the same number of times longer
    than they are, which the picture says.

    Args:
        model: Makes the prediction.
        processor: Made `inputs`; knows how to turn labels into pixels.
        inputs: Batch with `pixel_values`, `masked_indices`, `bool_masked_pos`, `labels` and `target_mask`; the first
            clip is drawn.
        path: File to write.
        title: Line above the picture.

    Raises:
        ValueError: If `position` is not among the model's targets.
    """
    names = list(model.config.motion_targets)
    _check_has_position(names)
    clip = {name: tensor[:1].to(model.device) for name, tensor in inputs.items() if isinstance(tensor, torch.Tensor)}
    was_training = model.training
    predictions = model.eval().split_targets(model(**clip).logits)["position"]
    model.train(was_training)
    indices = clip["masked_indices"]
    labels = clip["labels"].gather(1, indices[..., None].expand(-1, -1, clip["labels"].shape[-1]))
    counts = clip["target_mask"].gather(1, indices[..., None].expand(-1, -1, len(names)))[0, :, names.index("position")]
    frames = visible_frames(clip["pixel_values"][0].cpu(), processor)
    tracks = [
        _token_tracks(values[0][counts].float().cpu(), indices[0][counts].cpu(), processor, frames.shape[1:3])
        for values in (model.split_targets(labels)["position"], predictions)
    ]
    sheet = _prediction_sheet(frames, clip["bool_masked_pos"][0].cpu().numpy(), tracks, processor, title)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, optimize=True)


def tracks_sheet(clips: Sequence[ObservedClip], *, title: str = "") -> Image.Image:
    """Return a contact sheet: a row for each clip, its tracks over the frames they start at.

    Args:
        clips: The first eight that have tracks are drawn.
        title: Line at the top.

    Raises:
        ValueError: If no clip has tracks.
    """
    clips = [clip for clip in clips if clip.tracks is not None][:MAX_ROWS]
    if not clips:
        raise ValueError("no clip has tracks, so there are none to draw.")
    rows, names = [], []
    for clip in clips:
        shown = _spread(len(clip.start_frames))
        factor = tracks_factor(clip.tracks)
        frames = [pixels_of(clip.frames[clip.start_frames[start]]) for start in shown]
        size = panel_size(frames[0].shape[:2])
        rows.append(
            [
                draw_tracks(frame, *_arrays(clip.tracks, start), size=size, factor=factor)
                for frame, start in zip(frames, shown, strict=True)
            ]
        )
        names.append(f"x {factor}  {Path(clip.source).name}")
    first, num_steps = clips[0], clips[0].tracks.num_steps
    return table(
        rows,
        row_names=names,
        # Not by their places in `frames`, which leaves out raw frames that no track runs over.
        column_names=[f"start of tubelet {start}" for start in _spread(len(first.start_frames))],
        title=title,
        footer=f"A clip in each row. Tracks over {num_steps} raw frames, drawn longer than they are by the factor at "
        f"the left. {COLOR_WORDS}",
    )


COLOR_WORDS = (
    "A track starts thin and dark and ends in a dot. Colour: direction, as on the ring. Grey: at rest. Nothing: lost "
    "from view."
)


def clip_sheet(
    clip: ObservedClip, without_camera: Trajectories, processor: MMEVideoProcessor, *, title: str = ""
) -> Image.Image:
    """Return one clip as a sheet: frames, tracks, tracks without the camera's motion, histograms of gradients.

    Args:
        clip: With tracks.
        without_camera: Its tracks less the motion of the camera.
        processor: Made the clip.
        title: Line at the top.
    """
    shown = _spread(len(clip.start_frames))
    factor = tracks_factor(clip.tracks)
    frames = [pixels_of(clip.frames[clip.start_frames[start]]) for start in shown]
    size = panel_size(frames[0].shape[:2])
    moved = [
        [
            draw_tracks(frame, *_arrays(tracks, start), size=size, factor=factor)
            for frame, start in zip(frames, shown, strict=True)
        ]
        for tracks in (clip.tracks, without_camera)
    ]
    found = getattr(without_camera, "camera_motion_found", None)
    if found is not None:
        moved[1] = [annotated(image, _where_found(found[start])) for image, start in zip(moved[1], shown, strict=True)]
    glyphs = [draw_histograms(frame, histograms_of(frame, processor), size=size) for frame in frames]
    return table(
        [[picture(frame, size) for frame in frames], *moved, glyphs],
        row_names=("frames", "tracks", "less camera motion, where found", "shape: edges in each cell"),
        column_names=[f"raw frame {clip.start_frames[start]}" for start in shown],
        title=title,
        footer=f"Tracks over {clip.tracks.num_steps} raw frames, {times(factor)}. {COLOR_WORDS} Bars: edges, the "
        "longer and lighter the sharper. Camera motion is removed from tracks where it is found in all steps.",
    )


def clip_animation(clip: ObservedClip, without_camera: Trajectories) -> list[Image.Image]:
    """Return the raw frames one by one, with the tracks that lead to each, and beside it without the camera's motion.

    Heads of tracks are where the points are; tails are drawn longer than they are by a factor that the picture says.
    Frames between the end of one track and the start of the next have none.

    Args:
        clip: With tracks.
        without_camera: Its tracks less the motion of the camera.
    """
    factor = tracks_factor(clip.tracks)
    footer = f"Tracks {times(factor)}. {COLOR_WORDS}"
    names = ("frames", "tracks", "less camera motion, where found")
    pictures = []
    for number in range(clip.start_frames[0], clip.start_frames[-1] + clip.tracks.num_steps + 1):
        frame = pixels_of(clip.frames[number])
        size = panel_size(frame.shape[:2])
        panels = _panels_at(clip, without_camera, number, size, factor)
        pictures.append(table([[picture(frame, size), *panels]], column_names=names, footer=footer))
    return pictures


def _panels_at(
    clip: ObservedClip, without_camera: Trajectories, number: int, size: tuple[int, int], factor: int
) -> list[Image.Image]:
    """Return the tracks that lead to a raw frame, as they are and without the camera's motion."""
    frame = pixels_of(clip.frames[number])
    # The track that began first: it goes on until it ends, and only then the next one takes over.
    running = (
        index for index, first in enumerate(clip.start_frames) if first <= number <= first + clip.tracks.num_steps
    )
    start = next(running, None)
    if start is None:
        return [draw_tracks(frame, np.zeros((1, 0, 2)), np.zeros((1, 0), bool), size=size)] * 2
    step = number - clip.start_frames[start]
    panels = []
    for tracks in (clip.tracks, without_camera):
        points, visible = _arrays(tracks, start)
        # What is left of the motion has its heads where the points are.
        points = points[: step + 1] + (clip.tracks.points_xy[start, step].cpu().numpy() - points[step])
        panels.append(draw_tracks(frame, points, visible[: len(points)], size=size, factor=factor, anchor=-1))
    found = getattr(without_camera, "camera_motion_found", None)
    if found is not None and step:
        panels[1] = annotated(panels[1], _where_found(found[start]))
    return panels


def _where_found(found: torch.Tensor) -> str:
    """Return in how many steps of a start (L,) a camera's motion was found, and what that meant for its tracks."""
    return f"found in {int(found.sum())} of {len(found)} steps: {'removed' if found.all() else 'not removed'}"


def times(factor: int) -> str:
    """Return how a legend says by what factor tracks are drawn longer."""
    return "drawn as long as they are" if factor == 1 else f"drawn {factor} times as long as they are"


def tracks_factor(tracks: Trajectories) -> int:
    """Return how many times longer the tracks of a clip must be drawn to be seen."""
    way = (tracks.points_xy[:, -1] - tracks.points_xy[:, 0]).norm(dim=-1)[tracks.is_visible.all(1)]
    spacing = (tracks.frame_size[0] * tracks.frame_size[1] / tracks.points_xy.shape[-2]) ** 0.5
    return length_factor(way.numpy(), spacing, tracks.num_steps)


def panel_size(frame_size: tuple[int, int]) -> tuple[int, int]:
    """Return (height, width) in pixels that frames of (height, width) are drawn at."""
    height, width = frame_size
    return round(height * PANEL_WIDTH_PX / width), PANEL_WIDTH_PX


def histograms_of(frame: np.ndarray, processor: MMEVideoProcessor) -> np.ndarray:
    """Return the histograms of a frame uint8 (H, W, 3), channels added up, shape (bins, rows, columns)."""
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None]
    histograms = histogram_of_gradients(planes, cell_size_px=processor.cell_size_px)[0]
    return histograms.unflatten(0, (3, -1)).sum(0).numpy()


def visible_frames(pixel_values: torch.Tensor, processor: MMEVideoProcessor) -> np.ndarray:
    """Return normalised frames (T, C, H, W) as they were, uint8 (T, H, W, C)."""
    mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
    std = torch.tensor(processor.image_std).view(-1, 1, 1)
    return ((pixel_values * std + mean).clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).numpy()


def pixels_of(frame: torch.Tensor) -> np.ndarray:
    """Return a frame (3, H, W) as an array (H, W, 3)."""
    return np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())


def _check_has_position(names: Sequence[str]) -> None:
    if "position" not in names:
        raise ValueError(f"motion_targets ({list(names)}) has no 'position', so there is no motion to draw.")


def _spread(num_starts: int) -> list[int]:
    return np.linspace(0, num_starts - 1, min(MAX_COLUMNS, num_starts)).round().astype(int).tolist()


def _arrays(tracks: Trajectories, start: int) -> tuple[np.ndarray, np.ndarray]:
    return tracks.points_xy[start].cpu().numpy(), tracks.is_visible[start].cpu().numpy()


def _token_tracks(
    values: torch.Tensor, indices: torch.Tensor, processor: MMEVideoProcessor, frame_size: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (L + 1, tokens * points, 2) of tokens' points, and the tubelet each belongs to."""
    options = {**processor.motion_targets["position"]}
    target = build_targets({"position": options}, cell_size_px=processor.cell_size_px)["position"]
    motion = target.displacements(values, processor.trajectory_num_steps, frame_size)  # (tokens, L, points, 2)
    cell = target.cell_size_px
    grid = grid_points(*frame_size, cell, processor.point_layout).T.unflatten(
        -1, (frame_size[0] // cell, frame_size[1] // cell)
    )
    side = cells_per_side(processor.patch_size, cell)
    homes = tokens_from_cells(grid[None], side).unflatten(-1, (2, -1)).mT  # (tokens of a frame, points, 2)
    tubelets = (indices // len(homes)).repeat_interleave(motion.shape[2])
    first = homes[indices % len(homes)][:, None]
    points = torch.cat([first, first + motion.cumsum(1)], dim=1)  # (tokens, L + 1, points, 2)
    return points.movedim(1, 0).flatten(1, 2).numpy(), tubelets.numpy()


def _prediction_sheet(
    frames: np.ndarray,
    mask: np.ndarray,
    tracks: Sequence[tuple[np.ndarray, np.ndarray]],
    processor: MMEVideoProcessor,
    title: str,
) -> Image.Image:
    patch, tubelet_size = processor.patch_size, processor.tubelet_size
    height, width = frames.shape[1:3]
    grid = (len(frames) // tubelet_size, height // patch, width // patch)
    masks = mask.reshape(grid).repeat(patch, 1).repeat(patch, 2)
    shown, size = _spread(grid[0]), panel_size((height, width))
    target_points = tracks[0][0]
    way = np.linalg.norm(target_points[-1] - target_points[0], axis=-1)
    factor = length_factor(way, processor.cell_size_px, len(target_points) - 1)
    rows: list[list[Image.Image]] = [[], [], [], []]
    for tubelet in shown:
        frame = frames[tubelet * tubelet_size]
        hidden = np.where(masks[tubelet][..., None], np.uint8(128), frame)
        rows[0].append(picture(frame, size))
        rows[1].append(picture(hidden, size))
        for row, (points, tubelets) in zip(rows[2:], tracks, strict=True):
            here = points[:, tubelets == tubelet]
            row.append(draw_tracks(frame, here, np.ones(here.shape[:2], bool), size=size, factor=factor))
    return table(
        rows,
        row_names=("frames", "what the model sees", "target motion", "predicted motion"),
        column_names=[f"frame {tubelet * tubelet_size}" for tubelet in shown],
        title=title,
        footer=f"Tracks of hidden points over {processor.trajectory_num_steps} raw frames, {times(factor)}. "
        f"{COLOR_WORDS}",
    )
