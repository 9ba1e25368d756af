"""OpenCV's Dense Inverse Search optical flow (Kroeger et al., 2016), the default on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from .flow_tracker import FlowTracker

PATCH_SIZE_PX = 8
PRESETS = ("ultrafast", "fast", "medium")
# OpenCV's coarse-to-fine patches of 8 px need this much at the finest level.
MIN_FRAME_SIZE_PX = 16


@dataclass(frozen=True)
class DISFlow:
    """Dense flow on grey frames; each frame is converted once, each pair computed once.

    The default is preset "fast" stopped one level finer, at scale 1 as "medium" does: the same error as "medium" on
    warped real frames (0.31 against 0.32 px at 224 px) in 0.8 of its time.

    Attributes:
        preset: OpenCV's "ultrafast", "fast" or "medium".
        finest_scale: Pyramid level to stop at, 0 for full resolution; None keeps the preset's.
        patch_stride: Distance of patches in pixels; None keeps the preset's.
        gradient_descent_iterations: Per patch; None keeps the preset's.
        variational_refinement_iterations: Per level, 0 for none; None keeps the preset's.
    """

    name: ClassVar[str] = "dis"
    preset: Literal["ultrafast", "fast", "medium"] = "fast"
    finest_scale: int | None = 1
    patch_stride: int | None = None
    gradient_descent_iterations: int | None = None
    variational_refinement_iterations: int | None = None

    def __post_init__(self):
        if self.preset not in PRESETS:
            raise ValueError(f"tracker 'dis': preset ({self.preset!r}) must be one of {list(PRESETS)}.")
        for name in ("finest_scale", "variational_refinement_iterations"):
            self._check_at_least(name, 0)
        for name in ("patch_stride", "gradient_descent_iterations"):
            self._check_at_least(name, 1)
        if self.patch_stride is not None and self.patch_stride > PATCH_SIZE_PX:
            raise ValueError(
                f"tracker 'dis': patch_stride ({self.patch_stride}) must be at most {PATCH_SIZE_PX}, the side of DIS' "
                "patches: a larger one leaves holes, and far larger ones crash OpenCV."
            )

    def _check_at_least(self, name: str, lowest: int) -> None:
        value = getattr(self, name)
        if value is not None and value < lowest:
            raise ValueError(f"tracker 'dis': {name} ({value}) must be at least {lowest}, or None for the preset's.")

    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, float32, shape (..., len(pairs), 2, H, W).

        Args:
            frames: uint8 RGB, shape (..., T, 3, H, W), on any device (computed on the CPU).
            pairs: Indices (from, to) of frames.

        Raises:
            ValueError: If frames are smaller than 16 px.
        """
        import cv2

        height, width = frames.shape[-2:]
        if min(height, width) < MIN_FRAME_SIZE_PX:
            raise ValueError(f"frames of {height}x{width} are too small for 'dis': {MIN_FRAME_SIZE_PX} px at least.")
        # A fresh object per call: it holds buffers, is neither picklable nor safe to share between threads.
        engine = self._build_engine(cv2)
        clips = frames.cpu().reshape(-1, *frames.shape[-4:])
        flow = np.empty((len(clips), len(pairs), height, width, 2), dtype=np.float32)
        for clip, clip_flow in zip(clips, flow, strict=True):
            images = clip.permute(0, 2, 3, 1)
            grey = {
                index: cv2.cvtColor(np.ascontiguousarray(images[index].numpy()), cv2.COLOR_RGB2GRAY)
                for index in sorted({index for pair in pairs for index in pair})
            }
            for (first, second), pair_flow in zip(pairs, clip_flow, strict=True):
                pair_flow[...] = engine.calc(grey[first], grey[second], None)
        planes = torch.from_numpy(flow).movedim(-1, -3)
        return planes.reshape(*frames.shape[:-4], *planes.shape[1:]).to(frames.device)

    def _build_engine(self, cv2: Any) -> Any:
        engine = cv2.DISOpticalFlow_create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{self.preset.upper()}"))
        settings = {
            "setFinestScale": self.finest_scale,
            "setPatchStride": self.patch_stride,
            "setGradientDescentIterations": self.gradient_descent_iterations,
            "setVariationalRefinementIterations": self.variational_refinement_iterations,
        }
        for setter, value in settings.items():
            if value is not None:
                getattr(engine, setter)(value)
        return engine


def build_dis_tracker(
    *,
    preset: Literal["ultrafast", "fast", "medium"] = "fast",
    finest_scale: int | None = 1,
    patch_stride: int | None = None,
    gradient_descent_iterations: int | None = None,
    variational_refinement_iterations: int | None = None,
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    border: Literal["free", "clamp"] = "free",
    flow_precision: Literal["subpixel", "whole_pixel"] = "subpixel",
    median_filter_size: int = 0,
) -> FlowTracker:
    """Return a tracker on DIS flow. Options: see `DISFlow` and `FlowTracker`."""
    options = dict(locals())
    flow_options = {name: options[name] for name in options if name in DISFlow.__dataclass_fields__}
    tracker_options = {name: options[name] for name in options if name not in flow_options}
    return FlowTracker(DISFlow(**flow_options), **tracker_options, options=options)
