"""OpenCV's polynomial expansion flow (Farnebäck, 2003), for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from .opencv_flow import flow_of_grey_pairs


@dataclass(frozen=True)
class FarnebackFlow:
    """Dense flow on grey frames.

    Attributes:
        num_levels: Levels of the pyramid.
        window_size_px: Side of the averaging window.
        num_iterations: Per level.
        polynomial_size_px: Side of the neighbourhood that polynomials are fitted to, 5 or 7.
    """

    name: ClassVar[str] = "farneback"
    works_on_cpu: ClassVar[bool] = True
    num_levels: int = 5
    window_size_px: int = 15
    num_iterations: int = 3
    polynomial_size_px: int = 5

    def __post_init__(self):
        for option in ("num_levels", "window_size_px", "num_iterations"):
            if getattr(self, option) < 1:
                raise ValueError(f"tracker 'farneback': {option} ({getattr(self, option)}) must be at least 1.")
        if self.polynomial_size_px not in (5, 7):
            raise ValueError(f"tracker 'farneback': polynomial_size_px ({self.polynomial_size_px}) must be 5 or 7.")

    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, see `OpticalFlow`."""
        import cv2

        # The smoothing that OpenCV's documentation gives for the two sizes.
        sigma = {5: 1.1, 7: 1.5}[self.polynomial_size_px]

        def write_flow(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> None:
            flow[...] = cv2.calcOpticalFlowFarneback(
                first,
                second,
                None,
                pyr_scale=0.5,
                levels=self.num_levels,
                winsize=self.window_size_px,
                iterations=self.num_iterations,
                poly_n=self.polynomial_size_px,
                poly_sigma=sigma,
                flags=0,
            )

        return flow_of_grey_pairs(self.name, frames, pairs, write_flow)
