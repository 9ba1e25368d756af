"""Pictures of what a model was asked and what it answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .drawing import annotated, draw_histograms, draw_tracks, length_factor, picture, table
from .hidden_motion import HiddenMotion, check_has_position, hidden_motion
from .motion_targets_mme import histogram_of_gradients
from .trajectories_mme import Trajectories

if TYPE_CHECKING:
    from PIL import Image

    from .modeling_mme import MMEForPreTraining
    from .motion.measures import ObservedClip
    from .video_processing_mme import MMEVideoProcessor

# Of the sizes of a clip's labels: high, as most of a clip may stand still.
LIVELY_QUANTILE = 0.95
# How many times the median change of a clip's frames makes a cut: 5 in the sample clips, where steady motion has 2.2.
SCENE_CHANGE = 2.5
# Tubelets shown, evenly spaced over the clip: more make the tracks too small to read.
MAX_COLUMNS = 4
MAX_ROWS = 8
# Pictures in a sheet are about so wide, whatever the frames are.
PANEL_WIDTH_PX = 280


def liveliest_clip(
    batches: Iterable[Mapping[str, Any]], motion_targets: Mapping[str, Mapping[str, Any]]
) -> tuple[dict[str, torch.Tensor], str]:
    """Return the inputs and the source of the clip that moves most, if possible of those without a change of scene.

    A still one would show nothing, and from one scene to the next nothing moves.

    Args:
        batches: Batches as `ClipCollator` makes them.
        motion_targets: The model's, `position` among them.

    Raises:
        ValueError: If there is no clip in `batches`, or `position` is not among the targets.
    """
    names = list(motion_targets)
    check_has_position(names)
    best: tuple[tuple[bool, float], dict[str, torch.Tensor], str] | None = None
    for batch in batches:
        inputs = batch["inputs"]
        labels = dict(
            zip(names, inputs["labels"].split([motion_targets[name]["size"] for name in names], -1), strict=True)
        )
        counts = inputs["target_mask"][..., names.index("position")]
        for index, counted in enumerate(counts):
            motion = labels["position"][index][counted].abs().flatten()
            # Of the same clip whether labels are compressed (arcsinh) or not: a mean would not be.
            liveliness = float(motion.quantile(LIVELY_QUANTILE)) if len(motion) else 0.0
            rank = (not changes_scene(inputs["pixel_values"][index]), liveliness)
            if best is None or rank > best[0]:
                clip = {name: tensor[index : index + 1] for name, tensor in inputs.items()}
                best = (rank, clip, batch["sources"][index])
    if best is None:
        raise ValueError("there is no clip to choose from: no video of these batches could be read.")
    return best[1], best[2]


def changes_scene(frames: torch.Tensor) -> bool:
    """Return whether two successive frames of (T, C, H, W) differ by far more than others do, as they do at a cut."""
    changes = (frames[1:] - frames[:-1]).abs().mean((1, 2, 3))
    return len(changes) > 1 and bool(changes.max() > SCENE_CHANGE * changes.median())


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
        processor: Made `inputs`.
        inputs: See `hidden_motion`.
        path: File to write.
        title: Line above the picture.

    Raises:
        ValueError: If `position` is not among the model's targets.
    """
    sheet = _prediction_sheet(hidden_motion(model, processor, inputs), title)
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
    for number in range(clip.start_frames[0], last_frame(clip) + 1):
        frame = pixels_of(clip.frames[number])
        size = panel_size(frame.shape[:2])
        panels = [tracks_panel(clip, tracks, number, size, factor) for tracks in (clip.tracks, without_camera)]
        pictures.append(table([[picture(frame, size), *panels]], column_names=names, footer=footer))
    return pictures


def tracks_panel(
    clip: ObservedClip, tracks: Trajectories, number: int, size: tuple[int, int], factor: int
) -> Image.Image:
    """Return the tracks that lead to a raw frame over that frame.

    Args:
        clip: With the tracks as they were seen, which say where the points are.
        tracks: What is drawn: these, or what is left of them without the camera's motion.
        number: Of the raw frame.
        size: (height, width) of the picture.
        factor: Times that tracks are drawn longer than they are.
    """
    frame = pixels_of(clip.frames[number])
    # The track that began first: it goes on until it ends, and only then the next one takes over.
    running = (
        index for index, first in enumerate(clip.start_frames) if first <= number <= first + clip.tracks.num_steps
    )
    start = next(running, None)
    if start is None:
        return draw_tracks(frame, np.zeros((1, 0, 2)), np.zeros((1, 0), bool), size=size)
    step = number - clip.start_frames[start]
    points, visible = _arrays(tracks, start)
    # What is left of the motion has its heads where the points are.
    points = points[: step + 1] + (clip.tracks.points_xy[start, step].cpu().numpy() - points[step])
    image = draw_tracks(frame, points, visible[: len(points)], size=size, factor=factor, anchor=-1)
    found = tracks.camera_motion_found
    return annotated(image, _where_found(found[start])) if found is not None and step else image


def last_frame(clip: ObservedClip) -> int:
    """Return the number of the raw frame that the last track of a clip ends at."""
    return clip.start_frames[-1] + clip.tracks.num_steps


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


def panel_size(frame_size: tuple[int, int], panel_width: int = PANEL_WIDTH_PX) -> tuple[int, int]:
    """Return (height, width) in pixels that frames of (height, width) are drawn at."""
    height, width = frame_size
    return round(height * panel_width / width), panel_width


def histograms_of(frame: np.ndarray, processor: MMEVideoProcessor) -> np.ndarray:
    """Return the histograms of a frame uint8 (H, W, 3), channels added up, shape (bins, rows, columns)."""
    planes = torch.from_numpy(frame).permute(2, 0, 1)[None]
    histograms = histogram_of_gradients(planes, cell_size_px=processor.cell_size_px)[0]
    return histograms.unflatten(0, (3, -1)).sum(0).numpy()


def pixels_of(frame: torch.Tensor) -> np.ndarray:
    """Return a frame (3, H, W) as an array (H, W, 3)."""
    return np.ascontiguousarray(frame.permute(1, 2, 0).cpu().numpy())


def _spread(num_starts: int) -> list[int]:
    return np.linspace(0, num_starts - 1, min(MAX_COLUMNS, num_starts)).round().astype(int).tolist()


def _arrays(tracks: Trajectories, start: int) -> tuple[np.ndarray, np.ndarray]:
    return tracks.points_xy[start].cpu().numpy(), tracks.is_visible[start].cpu().numpy()


def _prediction_sheet(motion: HiddenMotion, title: str) -> Image.Image:
    shown, size = _spread(len(motion.is_hidden)), panel_size(motion.frames.shape[1:3])
    first_frames = [tubelet * len(motion.frames) // len(motion.is_hidden) for tubelet in shown]
    tracks = [
        [
            draw_tracks(motion.frame(tubelet), *motion.tracks_of(xy, tubelet), size=size, factor=motion.factor)
            for tubelet in shown
        ]
        for xy in (motion.target_xy, motion.predicted_xy)
    ]
    return table(
        [
            [picture(motion.frames[index], size) for index in first_frames],
            [picture(motion.seen_frame(index), size) for index in first_frames],
            *tracks,
        ],
        row_names=("frames", "what the model sees", "target motion", "predicted motion"),
        column_names=[f"frame {index}" for index in first_frames],
        title=title,
        footer=f"Tracks of hidden points over {motion.num_steps} raw frames, {times(motion.factor)}. {COLOR_WORDS}",
    )
