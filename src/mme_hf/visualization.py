"""Pictures of what a model was asked and what it answered."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from .motion_targets_mme import build_targets


if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from .modeling_mme import MMEForPreTraining
    from .video_processing_mme import MMEVideoProcessor

# Tubelets shown, evenly spaced over the clip: more make the arrows too small to read.
MAX_COLUMNS = 4
# Sums of displacements shorter than this are drawn as dots: no arrow head would be visible.
MIN_ARROW_PX = 0.25


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
    its trajectory. Only masked tokens that count have one, in both rows; both rows have the same scale.

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
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    names = list(model.config.motion_targets)
    if "position" not in names:
        raise ValueError(f"motion_targets ({names}) has no 'position', so there is no motion to draw.")
    clip = {name: tensor[:1].to(model.device) for name, tensor in inputs.items()}
    was_training = model.training
    predictions = model.eval().split_targets(model(**clip).logits)["position"]
    model.train(was_training)
    indices = clip["masked_indices"]
    labels = clip["labels"].gather(1, indices[..., None].expand(-1, -1, clip["labels"].shape[-1]))
    targets = model.split_targets(labels)["position"]
    counts = clip["target_mask"].gather(1, indices[..., None].expand(-1, -1, len(names)))[0, :, names.index("position")]

    frames = _visible_frames(clip["pixel_values"][0].cpu(), processor)  # (T, H, W, 3)
    patch, tubelet_size = processor.patch_size, processor.tubelet_size
    grid = (len(frames) // tubelet_size, frames.shape[1] // patch, frames.shape[2] // patch)
    target = build_targets({"position": processor.motion_targets["position"]})["position"]
    shown = np.linspace(0, grid[0] - 1, min(MAX_COLUMNS, grid[0])).round().astype(int)
    height, width = frames.shape[1:3]
    figure = Figure(figsize=(2.6 * len(shown), 2.6 * 4 * height / width + 0.5), layout="constrained", dpi=110)
    FigureCanvasAgg(figure)
    rows = figure.subplots(4, len(shown), squeeze=False)
    masks = clip["bool_masked_pos"][0].cpu().numpy().reshape(grid)
    for column, tubelet in enumerate(shown):
        frame = frames[tubelet * tubelet_size]
        hidden = masks[tubelet].repeat(patch, 0).repeat(patch, 1)
        masked_frame = np.where(hidden[..., None], 0.5, frame)
        faded = 0.35 * frame + 0.65 * frame.mean(-1, keepdims=True)
        tokens = (indices[0] // (grid[1] * grid[2]) == int(tubelet)) & counts
        for axes, image in zip(rows[:, column], (frame, masked_frame, faded, faded), strict=True):
            axes.imshow(image, vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[], xlim=(-0.5, width - 0.5), ylim=(height - 0.5, -0.5))
        rows[0, column].set_title(f"frame {tubelet * tubelet_size}", fontsize=9)
        for row, values in ((2, targets), (3, predictions)):
            values = values[0][tokens].float().cpu()
            motion = target.displacements(values, processor.trajectory_num_steps, (height, width))
            _draw_arrows(rows[row, column], motion, indices[0][tokens].cpu().numpy(), grid, patch)
    row_names = ("frames", "what the model sees", "target motion", "predicted motion")
    for axes, label in zip(rows[:, 0], row_names, strict=True):
        axes.set_ylabel(label, fontsize=9)
    figure.suptitle(title, fontsize=10)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


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
