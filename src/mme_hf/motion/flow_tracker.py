"""A tracker made of any dense optical flow."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from inspect import Parameter, Signature
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
import torch.nn.functional as F

from ..point_tracking_mme import check_tracked_frames, track_points
from ..trajectories_mme import Trajectories, build_tracker
from .protocols import OpticalFlow, Tracker
from .visibility import hide_lost_points


@dataclass(frozen=True)
class FlowTracker:
    """Follows points through the flow between successive raw frames; every pair of frames is computed once.

    Attributes:
        flow: Dense flow between frames.
        interpolation: How flow is read between pixels: "bilinear", or "nearest".
        border: What happens to points that leave the frame, see `track_points`.
        flow_precision: "subpixel", or "whole_pixel" to cut flow to whole pixels as the published code does.
        median_filter_size: 3 to pass a 3 x 3 median over the flow first, as Dense Trajectories do; 0 for none.
        visibility: "matched" to lose points that no longer look as at their start (hidden, slipped, or cut away);
            "inside_frame" to lose only those that leave the frame, as the published code does.
    """

    flow: OpticalFlow
    interpolation: Literal["bilinear", "nearest"] = "bilinear"
    border: Literal["free", "clamp"] = "free"
    flow_precision: Literal["subpixel", "whole_pixel"] = "subpixel"
    median_filter_size: int = 0
    visibility: Literal["matched", "inside_frame"] = "matched"

    def __post_init__(self):
        choices = {
            "interpolation": ("bilinear", "nearest"),
            "border": ("free", "clamp"),
            "flow_precision": ("subpixel", "whole_pixel"),
            "median_filter_size": (0, 3),
            "visibility": ("matched", "inside_frame"),
        }
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"tracker: {name} ({getattr(self, name)!r}) must be one of {list(allowed)}.")

    @property
    def options(self) -> dict[str, Any]:
        """Options that `build_tracker` makes an equal tracker from: what is not at its default, here and in the flow.

        Of a flow that is no dataclass nothing is known.
        """
        parts = [(item, self) for item in fields(self) if item.name != "flow"]
        parts += [(item, self.flow) for item in (fields(self.flow) if is_dataclass(self.flow) else ()) if item.init]
        values = {item.name: (getattr(part, item.name), item.default) for item, part in parts}
        return {name: value for name, (value, default) in values.items() if value is not default and value != default}

    @property
    def name(self) -> str:
        """Name of the flow, which is the tracker's key in `TRACKERS`."""
        return self.flow.name

    @property
    def works_on_cpu(self) -> bool:
        """Whether frames of another device are copied to the CPU, and tracks back."""
        return getattr(self.flow, "works_on_cpu", False)

    def prepare(self) -> None:
        """Have the flow load what it needs, if it needs anything. Raises what a call would raise without it."""
        getattr(self.flow, "prepare", lambda: None)()

    def __call__(
        self, frames: torch.Tensor, points_xy: torch.Tensor, *, start_frames: Sequence[int] = (0,), num_steps: int
    ) -> Trajectories:
        """Return the tracks of all points from every start frame, see `Tracker`.

        Raises:
            ValueError: If frames are not uint8 (..., T, 3, H, W), or too few for the tracks.
        """
        check_frames(frames)
        check_tracked_frames(frames.shape[-4], start_frames, num_steps)
        first_frames = sorted({start + step for start in start_frames for step in range(num_steps)})
        pairs = [(frame, frame + 1) for frame in first_frames]
        has_clips = frames.shape[:-4].numel() > 0
        # No flow is asked for a batch of no clips: torch's padding and RAFT take none.
        shape = (*frames.shape[:-4], len(pairs), 2, *frames.shape[-2:])
        flow = self.flow(frames, pairs) if has_clips else frames.new_empty(shape, dtype=torch.float32)
        if self.median_filter_size and has_clips:
            flow = median_filter_3x3(flow)
        if self.flow_precision == "whole_pixel":
            flow = flow.trunc()
        # Frames of one track follow each other in `first_frames` too, so its flow is a run of that list.
        starts = [first_frames.index(start) for start in start_frames]
        tracks = track_points(
            flow,
            points_xy,
            num_steps=num_steps,
            start_frames=starts,
            interpolation=self.interpolation,
            border=self.border,
        )
        return hide_lost_points(tracks, frames, start_frames) if self.visibility == "matched" else tracks


def check_frames(frames: torch.Tensor) -> None:
    """Raise ValueError unless frames are a tensor, uint8 RGB, of shape (..., T, 3, H, W)."""
    if not isinstance(frames, torch.Tensor):
        raise ValueError(f"frames are a {type(frames).__name__}; a tracker takes a tensor of uint8 RGB frames.")
    if frames.ndim < 4 or frames.shape[-3] != 3 or frames.dtype != torch.uint8:
        raise ValueError(
            f"frames have shape {tuple(frames.shape)} and dtype {frames.dtype}; a tracker takes uint8 RGB frames "
            "of shape (..., frames, 3, height, width)."
        )
    if min(frames.shape[-2:]) < 2:
        height, width = frames.shape[-2:]
        raise ValueError(f"frames of {height}x{width} (height x width) are too small to track in: at least 2x2.")


def build_ready_tracker(name: str, **options: Any) -> Tracker:
    """Return the tracker of `build_tracker`, having found that it has all it needs.

    Processors can be loaded where their tracker cannot work; a run that is to track asks first, and does not leave it
    to a data worker to find out.

    Raises:
        ValueError: If it cannot be built, or its weights or libraries are missing.
    """
    tracker = build_tracker(name, **options)
    try:
        getattr(tracker, "prepare", lambda: None)()
    except (ImportError, RuntimeError) as error:
        raise ValueError(str(error)) from error
    return tracker


def tracker_builder(flow_class: type[OpticalFlow]) -> Callable[..., FlowTracker]:
    """Return what `TRACKERS` holds for a flow: a function of the flow's options and `FlowTracker`'s own."""
    own = [item for item in fields(FlowTracker) if item.name != "flow"]

    def build(**options: Any) -> FlowTracker:
        tracker_options = {item.name: options[item.name] for item in own if item.name in options}
        flow_options = {name: value for name, value in options.items() if name not in tracker_options}
        _check_types(flow_class, flow_options)
        return FlowTracker(flow_class(**flow_options), **tracker_options)

    # `check_options` reads the names off the signature, `MotionParameters` the defaults.
    parameters = [
        Parameter(item.name, Parameter.KEYWORD_ONLY, default=item.default) for item in (*fields(flow_class), *own)
    ]
    build.__signature__ = Signature(parameters)
    build.__doc__ = f"Return a tracker on {flow_class.__name__}; its options and those of FlowTracker."
    return build


def _check_types(flow_class: type[OpticalFlow], options: Mapping[str, Any]) -> None:
    """Raise ValueError for a value of another type than its field's, as JSON may hold; choices the flow checks."""
    # `item.type` is text where a file defers its annotations.
    hints = get_type_hints(flow_class) if options else {}
    for item in fields(flow_class):
        if item.name not in options:
            continue
        allowed = _classes_of(hints[item.name])
        if {Any, Literal}.isdisjoint(allowed) and not isinstance(options[item.name], allowed):
            words = " | ".join("None" if kind is type(None) else kind.__name__ for kind in allowed)
            raise ValueError(f"tracker {flow_class.name!r}: {item.name} ({options[item.name]!r}) must be {words}.")


def _classes_of(hint: Any) -> tuple[Any, ...]:
    """Return the classes whose values a type hint allows, without what it says of their items."""
    origin = get_origin(hint)
    if origin in (Union, UnionType):
        return tuple(kind for part in get_args(hint) for kind in _classes_of(part))
    return (origin or hint,)


def median_filter_3x3(flow: torch.Tensor) -> torch.Tensor:
    """Return the median of each pixel's 3 x 3 neighbourhood, border replicated, shape and dtype of the input.

    Args:
        flow: Any planes, shape (..., H, W).
    """
    padded = F.pad(flow.flatten(0, -3), (1, 1, 1, 1), mode="replicate")
    rows = [padded[..., row : row + flow.shape[-2], :] for row in range(3)]
    low, middle, high = _sort3(*rows)
    columns = [[plane[..., column : column + flow.shape[-1]] for column in range(3)] for plane in (low, middle, high)]
    # Median of nine = median of (largest low, median of middles, smallest high) of the sorted columns.
    largest_low = torch.maximum(torch.maximum(*columns[0][:2]), columns[0][2])
    smallest_high = torch.minimum(torch.minimum(*columns[2][:2]), columns[2][2])
    return _sort3(largest_low, _sort3(*columns[1])[1], smallest_high)[1].reshape(flow.shape)


def _sort3(a: torch.Tensor, b: torch.Tensor, c: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    a, b = torch.minimum(a, b), torch.maximum(a, b)
    middle, high = torch.minimum(b, c), torch.maximum(b, c)
    return torch.minimum(a, middle), torch.maximum(a, middle), high
