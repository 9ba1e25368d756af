"""OpenCV contrib's TV-L1 flow (Zach, Pock and Bischof, 2007), the usual choice of the authors' tool; for comparison."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from .opencv_flow import flow_of_grey_pairs


@dataclass(frozen=True)
class TVL1Flow:
    """Dense flow on grey frames. Needs `opencv-contrib-python-headless` in place of `opencv-python-headless`.

    Attributes:
        num_scales: Levels of the pyramid, each 0.8 times the one before. OpenCV's own 5 end at 0.41 of the frame and
            lose motion of 5 px and more.
        num_warps: Warps per level.
        num_iterations: Inner iterations per warp.
    """

    name: ClassVar[str] = "tvl1"
    works_on_cpu: ClassVar[bool] = True
    num_scales: int = 10
    num_warps: int = 5
    num_iterations: int = 30

    def __post_init__(self):
        for option in ("num_scales", "num_warps", "num_iterations"):
            if getattr(self, option) < 1:
                raise ValueError(f"tracker 'tvl1': {option} ({getattr(self, option)}) must be at least 1.")

    @staticmethod
    def is_available() -> bool:
        """Return whether this installation of OpenCV has TV-L1."""
        import cv2

        return hasattr(getattr(cv2, "optflow", None), "DualTVL1OpticalFlow_create")

    def prepare(self) -> None:
        """Raise ImportError if OpenCV was installed without its contrib modules."""
        if not self.is_available():
            raise ImportError(
                "tracker 'tvl1' needs OpenCV's contrib modules: pip uninstall opencv-python-headless, then "
                "pip install opencv-contrib-python-headless. Trackers 'dis' and 'torch' need nothing more."
            )

    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, see `OpticalFlow`.

        Raises:
            ImportError: If OpenCV was installed without its contrib modules.
        """
        import cv2

        self.prepare()
        engine = cv2.optflow.DualTVL1OpticalFlow_create(
            nscales=self.num_scales, warps=self.num_warps, innnerIterations=self.num_iterations
        )

        def write_flow(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> None:
            flow[...] = engine.calc(first, second, None)

        return flow_of_grey_pairs(self.name, frames, pairs, write_flow)
