"""OpenCV's Dense Inverse Search optical flow (Kroeger et al., 2016), the default on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import torch

from .opencv_flow import flow_of_grey_pairs

PATCH_SIZE_PX = 8
PRESETS = ("ultrafast", "fast", "medium")
# Points that the flow is refined at: one per cell, at its centre, as the default targets have them.
CELL_SIZE_PX = 8
# What the refinement may take away from or add to DIS' own answer; beyond it has slipped to other texture.
MAX_REFINEMENT_PX = 4.0


@dataclass(frozen=True)
class DISFlow:
    """Dense flow on grey frames, refined on the 8 px grid; each frame is converted once, each pair computed once.

    Points are followed from the centres of 8 px cells, so that is where a coarse DIS is refined: by pyramid-free
    Lucas-Kanade in a window around each centre and a 3 x 3 median over the grid, once per window size. In between, flow
    is interpolated. More accurate than preset "medium" in under half of its time (benchmarks/bench_motion.py).

    Attributes:
        preset: OpenCV's "ultrafast", "fast" or "medium".
        refinement_windows_px: Sides of the windows, odd, first to last; empty for DIS' own flow at every pixel.
        finest_scale: Pyramid level to stop at, 0 for full resolution; None keeps the preset's.
        patch_stride: Distance of patches in pixels; None keeps the preset's.
        gradient_descent_iterations: Per patch; None keeps the preset's.
        variational_refinement_iterations: Per level, 0 for none; None keeps the preset's.
    """

    name: ClassVar[str] = "dis"
    preset: Literal["ultrafast", "fast", "medium"] = "fast"
    refinement_windows_px: Sequence[int] = (9, 7)
    finest_scale: int | None = None
    patch_stride: int | None = None
    gradient_descent_iterations: int | None = None
    variational_refinement_iterations: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "refinement_windows_px", tuple(self.refinement_windows_px))  # a list, from JSON
        if any(not isinstance(side, int) or side < 3 or side % 2 == 0 for side in self.refinement_windows_px):
            raise ValueError(
                f"tracker 'dis': refinement_windows_px ({self.refinement_windows_px}) must be odd numbers of at least "
                "3, or empty for none."
            )
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

        # A fresh object per call: it holds buffers, is neither picklable nor safe to share between threads.
        engine = self._build_engine(cv2)

        def flow_of(first: np.ndarray, second: np.ndarray) -> np.ndarray:
            flow = engine.calc(first, second, None)
            return _refined(flow, first, second, self.refinement_windows_px) if self.refinement_windows_px else flow

        return flow_of_grey_pairs(self.name, frames, pairs, flow_of)

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


def _refined(flow: np.ndarray, first: np.ndarray, second: np.ndarray, windows_px: Sequence[int]) -> np.ndarray:
    """Return flow (H, W, 2) refined at the centres of the cells and interpolated between them."""
    import cv2

    height, width = first.shape
    rows, columns = height // CELL_SIZE_PX, width // CELL_SIZE_PX
    y, x = np.mgrid[:rows, :columns].astype(np.float32) * CELL_SIZE_PX + (CELL_SIZE_PX - 1) / 2
    centres = np.stack([x, y], axis=-1)
    motion = cv2.remap(flow, x, y, cv2.INTER_LINEAR)
    for side in windows_px:
        arrivals, is_found, _ = cv2.calcOpticalFlowPyrLK(
            first,
            second,
            centres.reshape(-1, 2),
            (centres + motion).reshape(-1, 2),
            winSize=(side, side),
            maxLevel=0,
            # Two steps: the start is within a pixel or two, and more of them change the error by under 1 %.
            criteria=(cv2.TERM_CRITERIA_COUNT, 2, 0.0),
            flags=cv2.OPTFLOW_USE_INITIAL_FLOW,
        )
        refined = arrivals.reshape(motion.shape) - centres
        is_kept = is_found.reshape(rows, columns, 1).astype(bool)
        is_kept = is_kept & (np.abs(refined - motion).max(axis=-1, keepdims=True) <= MAX_REFINEMENT_PX)
        refined = np.where(is_kept, refined, motion)
        motion = np.stack([cv2.medianBlur(np.ascontiguousarray(refined[..., axis]), 3) for axis in range(2)], axis=-1)
    dense = cv2.resize(motion, (columns * CELL_SIZE_PX, rows * CELL_SIZE_PX), interpolation=cv2.INTER_LINEAR)
    below, right = height - dense.shape[0], width - dense.shape[1]
    return cv2.copyMakeBorder(dense, 0, below, 0, right, cv2.BORDER_REPLICATE) if below or right else dense
