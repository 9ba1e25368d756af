"""Trajectories: where points are, frame by frame, and how they follow a crop, a resize and a flip.

One convention for space and time, used everywhere in this package:

* A point is `(x, y)` in pixels, x to the right, y down; `(0, 0)` is the *centre* of the top-left pixel, so a frame of
  width W has its pixel centres at 0 .. W - 1 and its edges at -0.5 and W - 0.5.
* Arrays of pixels are `(..., H, W)`, so indexing is `image[..., y, x]`.
* The displacement with index `t` goes from frame `t` to frame `t + 1`.
* Masks are True where a thing counts; only `bool_masked_pos` is True where a token is hidden.

Letters in comments: B clips, T frames, C channels, H W pixels, N tokens, P points, S starts, L steps.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as tvF

PointLayout = Literal["cell_center", "reference"]
POINT_LAYOUTS: tuple[str, ...] = ("cell_center", "reference")

# Name -> builder of a tracker (see `mme_hf.motion.Tracker`). Empty until `mme_hf` is imported: the exported core must
# not depend on OpenCV.
TRACKERS: dict[str, Callable[..., Any]] = {}
# Name -> what may be done to tracks before labels are made of them: `(tracks, frames, start_frames) -> Trajectories`.
# Filled by `mme_hf` too, see `mme_hf.motion`.
TRACK_FILTERS: dict[str, Callable[..., Any]] = {}


@dataclass(frozen=True)
class Trajectories:
    """Points followed over the raw frames of a clip.

    Attributes:
        points_xy: Positions in pixels, (x, y) last, one per raw frame, not clamped to the frame, float32,
            shape (..., num_starts, num_steps + 1, num_points, 2). Those of lost points may be anything, nan too.
        is_visible: True while the point is known to be inside the frame (and not judged occluded); once lost a point
            stays lost. Bool, shape (..., num_starts, num_steps + 1, num_points).
        frame_size: (height, width) in pixels of the frames the positions refer to.
        camera_motion_found: None for tracks as they were seen. Where the camera's motion was taken out of them: whether
            one was found for each step, bool, shape (..., num_starts, num_steps). A start with a step without is as it
            was. Positions of the others are sums of what is left, and no places in the frames.
    """

    points_xy: torch.Tensor
    is_visible: torch.Tensor
    frame_size: tuple[int, int]
    camera_motion_found: torch.Tensor | None = None

    def __post_init__(self):
        if self.points_xy.ndim < 4 or self.points_xy.shape[-1] != 2:
            raise ValueError(
                f"points_xy has shape {tuple(self.points_xy.shape)}; it must be (..., starts, steps + 1, points, 2)."
            )
        if self.is_visible.shape != self.points_xy.shape[:-1] or self.is_visible.dtype != torch.bool:
            raise ValueError(
                f"is_visible has shape {tuple(self.is_visible.shape)} and dtype {self.is_visible.dtype}; it must be "
                f"bool of shape {tuple(self.points_xy.shape[:-1])}, that of points_xy without its last dimension."
            )
        found, steps = self.camera_motion_found, (*self.points_xy.shape[:-3], self.num_steps)
        if found is not None and (found.shape != steps or found.dtype != torch.bool):
            raise ValueError(
                f"camera_motion_found has shape {tuple(found.shape)} and dtype {found.dtype}; it must be bool of shape "
                f"{steps}, one for each step of each start."
            )

    def __repr__(self) -> str:
        return f"Trajectories(points_xy={tuple(self.points_xy.shape)}, frame_size={self.frame_size})"

    @property
    def num_steps(self) -> int:
        """Number of displacements per track, one less than the number of positions."""
        return self.points_xy.shape[-3] - 1

    @property
    def displacements(self) -> torch.Tensor:
        """Motion from one raw frame to the next in pixels, shape (..., num_starts, num_steps, num_points, 2).

        0 where a position is no finite number, as those of lost points may be.
        """
        return self.points_xy.diff(dim=-3).nan_to_num(0.0, posinf=0.0, neginf=0.0)

    def each(self, function: Callable[[torch.Tensor], torch.Tensor]) -> "Trajectories":
        """Return the tracks with every tensor passed through a function, such as `torch.Tensor.cpu`."""
        found = self.camera_motion_found
        return replace(
            self,
            points_xy=function(self.points_xy),
            is_visible=function(self.is_visible),
            camera_motion_found=None if found is None else function(found),
        )

    def crop(self, left: float, top: float, width: int, height: int) -> "Trajectories":
        """Return the tracks seen from a crop of the frame; points are invisible from where they leave it.

        Without the camera's motion positions no longer say where points are: crop before it is taken out.

        Args:
            left: First column of the crop in pixels.
            top: First row of the crop in pixels.
            width: Width of the crop in pixels.
            height: Height of the crop in pixels.
        """
        points_xy = self.points_xy - self.points_xy.new_tensor([left, top])
        is_visible = (self.is_visible & is_inside(points_xy, (height, width))).long().cummin(-2).values.bool()
        return replace(self, points_xy=points_xy, is_visible=is_visible, frame_size=(height, width))

    def resize(self, height: int, width: int) -> "Trajectories":
        """Return the tracks of the frame resized to (height, width) pixels; x becomes (x + 0.5) * scale - 0.5."""
        scale = self.points_xy.new_tensor([width / self.frame_size[1], height / self.frame_size[0]])
        return replace(self, points_xy=(self.points_xy + 0.5) * scale - 0.5, frame_size=(height, width))

    def flip(self) -> "Trajectories":
        """Return the tracks of the frame mirrored left to right; x becomes width - 1 - x."""
        points_xy = self.points_xy * self.points_xy.new_tensor([-1, 1])
        return replace(self, points_xy=points_xy + self.points_xy.new_tensor([self.frame_size[1] - 1, 0]))

    def hide(self, is_hidden: torch.Tensor) -> "Trajectories":
        """Return the tracks with more positions marked invisible (occluded points, repeated frames).

        Args:
            is_hidden: True where a position is not to be trusted, bool, broadcastable to `is_visible`.
        """
        return replace(self, is_visible=self.is_visible & ~is_hidden)


@dataclass(frozen=True)
class ClipGeometry:
    """One crop, resize and flip, applied alike to pixels and to tracks.

    The box is cut out of the source frames, resized, and mirrored. With `resized_size` the resized box is larger than
    the output and its centre is kept: shortest-edge resize and centre crop are one geometry.

    Attributes:
        left: First column of the box in source pixels.
        top: First row of the box in source pixels.
        width: Width of the box in source pixels.
        height: Height of the box in source pixels.
        out_height: Height of the result in pixels.
        out_width: Width of the result in pixels.
        is_flipped: Whether the result is mirrored left to right.
        resized_size: (height, width) of the resized box before its centre is cut out; None for the output size.
        interpolation: Filter of the resize, always antialiased.
    """

    left: int
    top: int
    width: int
    height: int
    out_height: int
    out_width: int
    is_flipped: bool = False
    resized_size: tuple[int, int] | None = None
    interpolation: InterpolationMode = InterpolationMode.BILINEAR

    def __post_init__(self):
        if min(self.width, self.height) < 1:
            raise ValueError(
                f"crop_box of width {self.width} and height {self.height} is empty; both must be at least 1 pixel."
            )
        if min(self.out_height, self.out_width) < 1:
            raise ValueError(f"out_height ({self.out_height}) and out_width ({self.out_width}) must be at least 1.")
        if min(self.left, self.top) < 0:
            raise ValueError(f"crop box left ({self.left}) and top ({self.top}) must not be negative.")
        resized = self.resized_size or (self.out_height, self.out_width)
        if resized[0] < self.out_height or resized[1] < self.out_width:
            raise ValueError(
                f"frame resized to {resized[0]}x{resized[1]} is smaller than the crop "
                f"{self.out_height}x{self.out_width}. Raise size, lower crop_size, or set do_resize=True."
            )

    @property
    def _cut(self) -> tuple[int, int, int, int]:
        """Resized height and width, then the first row and column that are kept (transformers' centre crop)."""
        height, width = self.resized_size or (self.out_height, self.out_width)
        return height, width, int((height - self.out_height) / 2.0), int((width - self.out_width) / 2.0)

    def check_frame_size(self, height: int, width: int) -> None:
        """Raise ValueError if the box does not lie inside frames of (height, width) pixels."""
        if self.left + self.width > width or self.top + self.height > height:
            raise ValueError(
                f"crop_box (left {self.left}, top {self.top}, width {self.width}, height {self.height}) reaches "
                f"outside the frame of {height}x{width} (height x width). Choose a box inside the frame."
            )

    def apply_to_frames(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the frames cropped, resized with antialiasing and flipped, in their own dtype.

        Args:
            frames: uint8 or floating point, shape (..., C, H, W). Memory laid out (..., H, W, C) is the faster one.

        Returns:
            Frames of shape (..., C, out_height, out_width).
        """
        return self.resize_box(self.cut_box(frames))

    def cut_box(self, frames: torch.Tensor) -> torch.Tensor:
        """Return the box of the frames (..., C, H, W) at its own size, a view."""
        self.check_frame_size(*frames.shape[-2:])
        return frames[..., self.top : self.top + self.height, self.left : self.left + self.width]

    def resize_box(self, box: torch.Tensor) -> torch.Tensor:
        """Return what `cut_box` gave, (..., C, height, width), resized and flipped as in `apply_to_frames`."""
        lead = box.shape[:-3]
        height, width, first_row, first_column = self._cut
        if (height, width) != (self.height, self.width):
            box = box.reshape(-1, *box.shape[-3:])
            # torch's 8-bit kernel takes 3.9 ms for 16 interleaved frames of 256x340 and 8.5 for planes, but turning one
            # into the other costs as much as it saves: each layout keeps its own.
            if box.stride(-3) == 1:
                box = box.contiguous(memory_format=torch.channels_last)
            box = tvF.resize(box, [height, width], interpolation=self.interpolation, antialias=True)
            box = box.reshape(*lead, *box.shape[-3:])
        box = box[..., first_row : first_row + self.out_height, first_column : first_column + self.out_width]
        return box.flip(-1) if self.is_flipped else box

    def apply_to_trajectories(self, trajectories: Trajectories) -> Trajectories:
        """Return the tracks as they are in the frames that `apply_to_frames` returns."""
        self.check_frame_size(*trajectories.frame_size)
        height, width, first_row, first_column = self._cut
        # Where the box ends is asked of the result alone: enlarged, its outermost pixels reach beyond their centres.
        box = trajectories.points_xy - trajectories.points_xy.new_tensor([self.left, self.top])
        tracks = replace(trajectories, points_xy=box, frame_size=(self.height, self.width)).resize(height, width)
        tracks = tracks.crop(first_column, first_row, self.out_width, self.out_height)
        return tracks.flip() if self.is_flipped else tracks

    def source_points(self, points_xy: torch.Tensor) -> torch.Tensor:
        """Return where points of the result are in the source frame: `apply_to_trajectories` backwards.

        Args:
            points_xy: Positions in pixels of the result, shape (..., 2).
        """
        height, width, first_row, first_column = self._cut
        if self.is_flipped:
            points_xy = points_xy * points_xy.new_tensor([-1, 1]) + points_xy.new_tensor([self.out_width - 1, 0])
        scale = points_xy.new_tensor([self.width / width, self.height / height])
        resized = points_xy + points_xy.new_tensor([first_column, first_row])
        return (resized + 0.5) * scale - 0.5 + points_xy.new_tensor([self.left, self.top])


def build_tracker(name: str, **options: Any) -> Any:
    """Return the tracker registered under `name`.

    Args:
        name: A key of `TRACKERS`, for example "dis".
        options: Options of that tracker.

    Returns:
        A callable `(frames uint8 (..., T, 3, H, W), points_xy (P, 2), start_frames=(0,), num_steps=L) -> Trajectories`.

    Raises:
        ValueError: If no tracker of that name is registered, or it has no such option.
    """
    if not TRACKERS:
        raise ValueError(
            f"tracker {name!r} is not available: no tracker is registered. Motion targets need the mme_hf package, "
            "not only its remote code: install mme_hf (pip install mme_hf) and `import mme_hf` first."
        )
    if name not in TRACKERS:
        raise ValueError(f"tracker ({name!r}) is unknown. Choose one of {sorted(TRACKERS)}.")
    check_options(f"tracker {name!r}", TRACKERS[name], options)
    return TRACKERS[name](**options)


def check_options(owner: str, builder: Callable[..., Any], options: Mapping[str, Any]) -> None:
    """Raise ValueError naming the options that `builder` does not take, and those it does."""
    known = [name for name in inspect.signature(builder).parameters if name != "self"]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ValueError(f"{owner} has no option {', '.join(unknown)}. Its options are {', '.join(known)}.")


def is_inside(points_xy: torch.Tensor, frame_size: tuple[int, int]) -> torch.Tensor:
    """Return whether points lie between the first and the last pixel centres of a frame, shape (...).

    Args:
        points_xy: Positions in pixels, shape (..., 2).
        frame_size: (height, width) in pixels.
    """
    height, width = frame_size
    x, y = points_xy.unbind(-1)
    return (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)


def grid_points(height: int, width: int, cell_size_px: int = 8, layout: PointLayout = "cell_center") -> torch.Tensor:
    """Return one point per cell of a regular grid over a frame, row by row, float32, shape (points, 2).

    Args:
        height: Frame height in pixels, a multiple of `cell_size_px`.
        width: Frame width in pixels, a multiple of `cell_size_px`.
        cell_size_px: Side of a cell.
        layout: "cell_center" puts the points at the true centres (3.5, 11.5, ... for 8 px cells), which a horizontal
            flip maps onto each other; "reference" at pixels 4, 12, ... as the published code does.

    Raises:
        ValueError: If the size does not divide by the cell, or the layout is unknown.
    """
    if layout not in POINT_LAYOUTS:
        raise ValueError(f"point_layout ({layout!r}) is unknown. Choose one of {list(POINT_LAYOUTS)}.")
    if cell_size_px < 1 or height % cell_size_px or width % cell_size_px:
        raise ValueError(
            f"frame size {height}x{width} does not divide into cells of cell_size_px ({cell_size_px}). "
            "Choose a cell_size_px that divides height and width."
        )
    first = cell_size_px // 2 if layout == "reference" else (cell_size_px - 1) / 2
    y = torch.arange(height // cell_size_px, dtype=torch.float32) * cell_size_px + first
    x = torch.arange(width // cell_size_px, dtype=torch.float32) * cell_size_px + first
    return torch.stack([x.expand(len(y), -1), y[:, None].expand(-1, len(x))], dim=-1).flatten(0, 1)
