"""OpenCV's Dense Inverse Search optical flow (Kroeger et al., 2016), the default on the CPU."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch

from .opencv_flow import MIN_FRAME_SIZE_PX, flow_of_grey_pairs

PATCH_SIZE_PX = 8
PRESETS = ("ultrafast", "fast", "medium")
# Points that the flow is refined at: one per cell, at its centre, as the default targets have them.
CELL_SIZE_PX = 8
# Side of the windows that are compared, in pixels of their level. Even, so that a cell's centre is the centre of a
# window of whole pixels: nothing is blurred by reading between them, and OpenCV's vector code takes eight at once.
WINDOW_SIZE_PX = 8
# Steps of a refinement at full and at half size. A second one at full size would take a twelfth of all the time; it
# lowers the error at borders of moving objects by a twentieth, and elsewhere by nothing.
NUM_STEPS = (1, 2)
# Of DIS' smoothing of the whole flow, where it is refined: the presets' 5 take more time for 5 % less error. Its 16
# steps of search are kept: 12 err by up to 5 % more, and lose the background of a shaken real scene in places.
MAX_VARIATIONAL_ITERATIONS = 3
# What a refinement may take away from or add to the motion; beyond it has slipped to other texture.
MAX_REFINEMENT_PX = 4.0
# Smaller changes of brightness, grey values, are left: the motion that they are judged along is not exact.
MIN_BRIGHTNESS_CHANGE = 2


class _Images(NamedTuple):
    """One grey frame at the sizes that are needed, uint8.

    Attributes:
        levels: At full and at half size.
        cells: One pixel per whole cell.
    """

    levels: tuple[np.ndarray, np.ndarray]
    cells: np.ndarray


@dataclass(frozen=True)
class DISFlow:
    """Dense flow on grey frames, refined on the 8 px grid; each frame is prepared once, each pair computed once.

    Points are followed from the centres of 8 px cells, so that is where a coarse DIS of the frames at half size is
    refined: by Lucas-Kanade in a window around each centre and a 3 x 3 median over the grid, first at half size, then
    twice at full size. In between, flow is interpolated. Before the refinement the second frame is made as bright as
    the first. More accurate than preset "medium" up to about 4 px a frame, in less than half of its time; "medium" is
    better at faster motion and in blurred frames (benchmarks/bench_motion.py).

    Attributes:
        preset: OpenCV's "ultrafast", "fast" or "medium".
        refinement_levels: Of each refinement, first to last: 0 at full size, 1 at half size. Empty for DIS' own flow at
            every pixel.
        finest_scale: Pyramid level to stop at, 0 for full resolution; None keeps the preset's.
        patch_stride: Distance of patches in pixels; None keeps the preset's.
        gradient_descent_iterations: Per patch; None keeps the preset's.
        variational_refinement_iterations: Per level, 0 for none; None keeps the preset's, but no more than 3 where the
            flow is refined.
    """

    name: ClassVar[str] = "dis"
    works_on_cpu: ClassVar[bool] = True
    preset: Literal["ultrafast", "fast", "medium"] = "fast"
    refinement_levels: Sequence[int] = (1, 0, 0)
    finest_scale: int | None = None
    patch_stride: int | None = None
    gradient_descent_iterations: int | None = None
    variational_refinement_iterations: int | None = None

    def __post_init__(self):
        object.__setattr__(self, "refinement_levels", tuple(self.refinement_levels))  # a list, from JSON
        if any(level not in (0, 1) for level in self.refinement_levels):
            raise ValueError(
                f"tracker 'dis': refinement_levels ({self.refinement_levels}) must be 0 (full size) or 1 (half size) "
                "for each refinement, or empty for none."
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
        shorter_side = min(frames.shape[-2:])
        engine = self._build_engine(cv2, shorter_side)

        if not self.refinement_levels:

            def write_flow(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> None:
                flow[...] = engine.calc(first, second, None)

            return flow_of_grey_pairs(self.name, frames, pairs, write_flow)
        # DIS halves the frames itself, level by level; started from half size, its finest level is one less.
        start_level = 1 if engine.getFinestScale() and shorter_side >= 2 * MIN_FRAME_SIZE_PX else 0
        engine.setFinestScale(engine.getFinestScale() - start_level)
        if self.variational_refinement_iterations is None:
            iterations = min(engine.getVariationalRefinementIterations(), MAX_VARIATIONAL_ITERATIONS)
            engine.setVariationalRefinementIterations(iterations)

        def write_refined(first: _Images, second: _Images, flow: np.ndarray) -> None:
            coarse = engine.calc(first.levels[start_level], second.levels[start_level], None)
            motion = _read_at_centres(coarse, start_level, first.cells.shape)
            _interpolate(_refined(motion, first, second, self.refinement_levels), flow)

        return flow_of_grey_pairs(self.name, frames, pairs, write_refined, _images_of)

    def _build_engine(self, cv2: Any, shorter_side: int) -> Any:
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
        # Where no level so coarse holds a patch, OpenCV picks levels by the width alone: low and wide frames shrink to
        # nothing, which gives nan or a crash. Picked by the shorter side this is what it picks for square frames.
        coarsest = (shorter_side // PATCH_SIZE_PX).bit_length() - 1
        if engine.getFinestScale() > coarsest:
            engine.setFinestScale(max(coarsest - 2, 0))
        return engine


def _images_of(grey: np.ndarray) -> _Images:
    import cv2

    height, width = grey.shape
    rows, columns = height // CELL_SIZE_PX, width // CELL_SIZE_PX
    even, whole = grey[: height // 2 * 2, : width // 2 * 2], grey[: rows * CELL_SIZE_PX, : columns * CELL_SIZE_PX]
    half = cv2.resize(even, (width // 2, height // 2), interpolation=cv2.INTER_AREA)
    return _Images((grey, half), cv2.resize(whole, (columns, rows), interpolation=cv2.INTER_AREA))


@lru_cache(maxsize=8)
def _centres(grid_size: tuple[int, int], level: int) -> np.ndarray:
    """Return the centres of the cells in pixels of a level, (x, y) last, shape (rows, columns, 2)."""
    y, x = np.mgrid[: grid_size[0], : grid_size[1]].astype(np.float32)
    cell_size = CELL_SIZE_PX / 2**level
    centres = np.stack([x, y], axis=-1) * cell_size + (cell_size - 1) / 2
    centres.flags.writeable = False  # shared by all who ask
    return centres


def _read_at_centres(flow: np.ndarray, level: int, grid_size: tuple[int, int]) -> np.ndarray:
    """Return the motion in pixels of full size at the centres of the cells, from the flow of a level."""
    import cv2

    motion = cv2.remap(flow, _centres(grid_size, level), None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return motion * np.float32(2**level)


def _refined(motion: np.ndarray, first: _Images, second: _Images, levels: Sequence[int]) -> np.ndarray:
    """Return motion in pixels at the centres of the cells, shape (rows, columns, 2), refined at each of `levels`."""
    import cv2

    change = _brightness_change(motion, first, second)
    change = change if abs(change) >= MIN_BRIGHTNESS_CHANGE else 0
    for level in levels:
        target = second.levels[level]
        target = cv2.subtract(target, (float(change),)) if change else target
        refined = _step(motion, first.levels[level], target, level)
        motion = np.stack([cv2.medianBlur(np.ascontiguousarray(refined[..., axis]), 3) for axis in range(2)], axis=-1)
    return motion


def _brightness_change(motion: np.ndarray, first: _Images, second: _Images) -> int:
    """Return by how many grey values most of the second frame is brighter, along the motion.

    DIS compares patches without their means, Lucas-Kanade does not: a change of exposure by 4 grey values costs it half
    a pixel.
    """
    import cv2

    arrivals = _centres(motion.shape[:2], 0) + motion
    places = (arrivals + 0.5) / CELL_SIZE_PX - 0.5
    seen = cv2.remap(second.cells, places, None, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return round(float(np.median(seen.astype(np.int16) - first.cells)))


def _step(motion: np.ndarray, first: np.ndarray, second: np.ndarray, level: int) -> np.ndarray:
    """Return the motion after Lucas-Kanade between two images of a level, unchanged where that fails."""
    import cv2

    grid_size = motion.shape[:2]
    centres, scale = _centres(grid_size, level), np.float32(2**level)
    arrivals, is_found, _ = cv2.calcOpticalFlowPyrLK(
        first,
        second,
        centres.reshape(-1, 2),
        (centres + motion / scale).reshape(-1, 2),
        winSize=(WINDOW_SIZE_PX, WINDOW_SIZE_PX),
        maxLevel=0,
        criteria=(cv2.TERM_CRITERIA_COUNT, NUM_STEPS[level], 0.0),
        # Eigenvalues are at hand; the residuals that would be returned instead take a sixth of the time.
        flags=cv2.OPTFLOW_USE_INITIAL_FLOW | cv2.OPTFLOW_LK_GET_MIN_EIGENVALS,
    )
    refined = (arrivals.reshape(motion.shape) - centres) * scale
    # By component: NumPy's maximum over so short an axis takes four times as long as all else here.
    is_too_far = np.abs(refined - motion) > MAX_REFINEMENT_PX
    has_failed = (is_found.reshape(grid_size) == 0) | is_too_far[..., 0] | is_too_far[..., 1]
    np.copyto(refined, motion, where=has_failed[..., None])
    return refined


def _interpolate(motion: np.ndarray, flow: np.ndarray) -> None:
    """Write to `flow` (H, W, 2) the motion between the centres of the cells; beyond whole cells it stays the same."""
    import cv2

    height, width = (CELL_SIZE_PX * number for number in motion.shape[:2])
    cv2.resize(motion, (width, height), dst=flow[:height, :width], interpolation=cv2.INTER_LINEAR)
    flow[:height, width:] = flow[:height, width - 1 : width]
    flow[height:] = flow[height - 1 : height]
