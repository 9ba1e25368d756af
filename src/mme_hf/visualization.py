"""Pictures of what a model was asked and what it answered."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from .motion_targets_mme import build_targets

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from .modeling_mme import MMEForPreTraining
    from .video_processing_mme import MMEVideoProcessor

# Tubelets shown, evenly spaced over the clip: more make the arrows too small to read.
MAX_COLUMNS = 4
# Sums of displacements shorter than this are drawn as dots: no arrow head would be visible.
MIN_ARROW_PX = 0.25


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
    """Draw a clip, what the model sees of it, and target beside predicted motion, as a PNG.

    An arrow is the way of a token's points, averaged over those points, from the token's first frame to the end of
    its trajectory, as long as it is in the picture. Only masked tokens that count have one, in both rows.

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
    clip = {name: tensor[:1].to(model.device) for name, tensor in inputs.items()}
    was_training = model.training
    predictions = model.eval().split_targets(model(**clip).logits)["position"]
    model.train(was_training)
    indices = clip["masked_indices"]
    labels = clip["labels"].gather(1, indices[..., None].expand(-1, -1, clip["labels"].shape[-1]))
    counts = clip["target_mask"].gather(1, indices[..., None].expand(-1, -1, len(names)))[0, :, names.index("position")]
    target = build_targets({"position": processor.motion_targets["position"]})["position"]
    frame_size = tuple(clip["pixel_values"].shape[-2:])
    motions = [
        target.displacements(values[0][counts].float().cpu(), processor.trajectory_num_steps, frame_size)
        for values in (model.split_targets(labels)["position"], predictions)
    ]
    frames = _visible_frames(clip["pixel_values"][0].cpu(), processor)  # (T, H, W, 3)
    figure = _draw_rows(frames, clip["bool_masked_pos"][0].cpu().numpy(), indices[0][counts].cpu(), motions, processor)
    figure.suptitle(title, fontsize=10)
    figure.supxlabel(
        f"arrows: the way over {processor.trajectory_num_steps} raw frames; dots: less than {MIN_ARROW_PX} px",
        fontsize=8,
    )
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def _check_has_position(names: Sequence[str]) -> None:
    if "position" not in names:
        raise ValueError(f"motion_targets ({list(names)}) has no 'position', so there is no motion to draw.")


def _draw_rows(
    frames: np.ndarray,
    mask: np.ndarray,
    indices: torch.Tensor,
    motions: Sequence[torch.Tensor],
    processor: MMEVideoProcessor,
) -> Figure:
    from matplotlib.figure import Figure

    patch, tubelet_size = processor.patch_size, processor.tubelet_size
    height, width = frames.shape[1:3]
    grid = (len(frames) // tubelet_size, height // patch, width // patch)
    shown = np.linspace(0, grid[0] - 1, min(MAX_COLUMNS, grid[0])).round().astype(int)
    figure = Figure(figsize=(2.6 * len(shown), 2.6 * 4 * height / width + 0.6), layout="constrained", dpi=110)
    rows = figure.subplots(4, len(shown), squeeze=False)
    masks = mask.reshape(grid).repeat(patch, 1).repeat(patch, 2)
    for column, tubelet in enumerate(shown):
        frame = frames[tubelet * tubelet_size]
        faded = 0.35 * frame + 0.65 * frame.mean(-1, keepdims=True)
        masked_frame = np.where(masks[tubelet][..., None], 0.5, frame)
        for axes, image in zip(rows[:, column], (frame, masked_frame, faded, faded), strict=True):
            axes.imshow(image, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        rows[0, column].set_title(f"frame {tubelet * tubelet_size}", fontsize=9)
        is_here = indices // (grid[1] * grid[2]) == int(tubelet)
        for axes, motion in zip(rows[2:, column], motions, strict=True):
            _draw_arrows(axes, motion[is_here], indices[is_here].numpy(), grid, patch)
    row_names = ("frames", "what the model sees", "target motion", "predicted motion")
    for axes, label in zip(rows[:, 0], row_names, strict=True):
        axes.set_ylabel(label, fontsize=9)
    return figure


def _draw_arrows(axes: Axes, motion_px: torch.Tensor, indices: np.ndarray, grid: tuple[int, ...], patch: int) -> None:
    total = motion_px.sum(1).mean(1).numpy()  # (tokens, L, points, 2) -> (tokens, 2)
    row, column = np.divmod(indices % (grid[1] * grid[2]), grid[2])
    x, y = (column + 0.5) * patch - 0.5, (row + 0.5) * patch - 0.5
    length = np.hypot(*total.T)
    still = length < MIN_ARROW_PX
    axes.scatter(x[still], y[still], s=1.5, c="#ffd24a", linewidths=0)
    style: dict[str, Any] = {"angles": "xy", "scale_units": "xy", "scale": 1.0, "width": 0.009, "cmap": "cool"}
    moving = ~still
    if moving.any():
        # Colour tells the length from 0 to half a patch a step, the same in every picture.
        axes.quiver(x[moving], y[moving], *total[moving].T, length[moving], clim=(0, patch), **style)


def _visible_frames(pixel_values: torch.Tensor, processor: MMEVideoProcessor) -> np.ndarray:
    mean = torch.tensor(processor.image_mean).view(-1, 1, 1)
    std = torch.tensor(processor.image_std).view(-1, 1, 1)
    return (pixel_values * std + mean).clamp(0, 1).permute(0, 2, 3, 1).numpy()
