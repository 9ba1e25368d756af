"""How stored motion was made: what has to be equal for tracks to be the ones that a run needs."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from hashlib import blake2b, file_digest
from inspect import Parameter, signature
from typing import Any

from ..trajectories_mme import TRACKERS
from .protocols import Tracker

# Options of a `FlowTracker` that act in the pixels of the clip, and the only values that stored tracks are followed by.
_FOLLOWED_BY = {"interpolation": "bilinear", "border": "free", "flow_precision": "subpixel"}
# Options that name a file. Tracks depend on what is in it, and where it lies is nobody else's business.
_FILE_OPTIONS = ("weights",)


@dataclass(frozen=True)
class MotionParameters:
    """How stored motion was made; tracks are only good for a run that wants the same.

    Attributes:
        tracker: Name of the tracker.
        tracker_options: All its options, those left at their defaults too; the hash of a file in place of its path.
        short_side_px: Short side of the frames it was run on.
        cell_size_px: Distance of grid points on these frames.
    """

    tracker: str
    tracker_options: Mapping[str, Any] = field(default_factory=dict)
    short_side_px: int = 256
    cell_size_px: int = 8

    def __post_init__(self):
        # As JSON keeps them, so that parameters that were written and read again are equal to others.
        options = json.loads(json.dumps(dict(self.tracker_options), sort_keys=True, default=str))
        object.__setattr__(self, "tracker_options", options)
        for name, wanted in _FOLLOWED_BY.items():
            if self.tracker_options.get(name, wanted) != wanted:
                raise ValueError(
                    f"tracker {self.tracker!r}: {name} ({self.tracker_options[name]!r}) cannot be kept by stored "
                    f"tracks, which are followed with {name} {wanted!r}. Track on line, or use {wanted!r}."
                )
        if self.cell_size_px < 1 or self.short_side_px < self.cell_size_px:
            raise ValueError(
                f"cell_size_px ({self.cell_size_px}) must be at least 1 and at most short_side_px "
                f"({self.short_side_px})."
            )

    @classmethod
    def of(cls, tracker: Tracker, **grid: int) -> "MotionParameters":
        """Return the parameters of motion made by `tracker`; `grid` may set `short_side_px` and `cell_size_px`."""
        builder = TRACKERS.get(tracker.name)
        known = signature(builder).parameters.values() if builder else ()
        # An option left at its default and one set to it are the same, and a default may be another one day.
        defaults = {option.name: option.default for option in known if option.default is not Parameter.empty}
        options = {**defaults, **tracker.options}
        for name in _FILE_OPTIONS:
            if options.get(name) is not None:
                options[name] = file_hash(options[name])
        return cls(tracker.name, options, **grid)

    @classmethod
    def from_json(cls, text: str) -> "MotionParameters":
        """Return the parameters that `to_json` wrote.

        Raises:
            ValueError: If the text is none of them.
        """
        try:
            return cls(**json.loads(text))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"parameters of stored tracks are damaged or of another version ({error}): {text!r}. Extract the "
                "tracks again."
            ) from error

    def to_json(self) -> str:
        """Return the parameters as text, the same for equal ones."""
        return json.dumps(asdict(self), sort_keys=True)

    @property
    def hash(self) -> str:
        """What equal parameters share: 16 hexadecimal digits."""
        return blake2b(self.to_json().encode(), digest_size=8).hexdigest()

    def frame_size(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) in pixels that frames of `source_size` are resized to."""
        short = min(source_size)
        height, width = (side * self.short_side_px // short for side in source_size)
        return height, width

    def grid_size(self, source_size: tuple[int, int]) -> tuple[int, int]:
        """Return the number of (rows, columns) of the grid: whole cells, whose centres are its points."""
        height, width = self.frame_size(source_size)
        return height // self.cell_size_px, width // self.cell_size_px


def file_hash(path: str) -> str:
    """Return what files with equal content share, 32 hexadecimal digits.

    Raises:
        OSError: If the file cannot be read.
    """
    with open(path, "rb") as file:
        return file_digest(file, lambda: blake2b(digest_size=16)).hexdigest()
