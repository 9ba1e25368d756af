"""Stored tracks: the motion of a whole video, worked out once and kept small, read again for any clip of it.

What is kept is not tracks of one length but what all tracks are made of: for every raw frame the displacement to the
next one of the points of a regular grid, over the frame resized to a fixed short side. A track of any length from any
frame follows this motion, read bilinearly between grid points and at the border as at the nearest one; so a crop, a
resize and a flip need no tracks of their own. Per pair of frames there is one value, not one per step and start.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

import numpy as np
import torch

from ..point_tracking_mme import check_points, check_tracked_frames, track_points
from ..trajectories_mme import ClipGeometry, Trajectories, grid_points, is_inside
from .flow_tracker import check_frames
from .grid_codec import MAX_DISPLACEMENT_PX, STEPS_PER_PX, decode_chunk, encode_chunk
from .motion_parameters import MotionParameters
from .protocols import Tracker

# Raised whenever a chunk's bytes, its grid or its number of pairs come to mean something else.
FORMAT_VERSION = 1
PAIRS_PER_CHUNK = 32


class StoredTracksError(ValueError):
    """Stored tracks that a run relies on are damaged, or are not there."""

    def __str__(self) -> str:
        # A DataLoader worker's error comes with its traceback for a message; only what it says is for the user.
        return super().__str__().rsplit(f"{type(self).__name__}: ", 1)[-1].strip()


class _Frames(Protocol):
    """What extraction needs of a `VideoReader`."""

    num_frames: int

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor: ...


@dataclass(frozen=True)
class StoredMotion:
    """The motion of one video on the grid, as it is stored; decoded where it is read.

    Attributes:
        parameters: How it was made.
        source_size: (height, width) in pixels of the video's frames.
        num_frames: Frames of the video, so one more than displacements.
        chunks: Coded displacements of `PAIRS_PER_CHUNK` pairs of frames each, the last one of what is left.
        source: What messages call the video.

    Raises:
        StoredTracksError: If size, length and number of chunks do not fit together, as in a damaged row.
    """

    parameters: MotionParameters
    source_size: tuple[int, int]
    num_frames: int
    chunks: tuple[bytes, ...] = field(repr=False)
    source: str = field(default="a video", compare=False)

    def __post_init__(self):
        sizes = (*self.source_size, self.num_frames)
        if not all(isinstance(size, int) and size > 0 for size in sizes):
            raise StoredTracksError(
                f"stored tracks of {self.source} have source_size {self.source_size} and num_frames {self.num_frames}, "
                "which must be positive. The row is damaged: extract this video's tracks again."
            )
        expected = -(-(self.num_frames - 1) // PAIRS_PER_CHUNK)
        if len(self.chunks) != expected:
            raise StoredTracksError(
                f"stored tracks of {self.source}: motion of {self.num_frames} frames has {len(self.chunks)} chunks; it "
                f"must have {expected} of {PAIRS_PER_CHUNK} pairs. The row is damaged: extract these tracks again."
            )

    def displacements_at(self, first_frames: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the motion of the grid points from each frame to the next.

        Args:
            first_frames: Frames that the motion starts from.

        Returns:
            Displacements in resized pixels, float32, shape (len(first_frames), 2, rows, columns), and whether the
            tracker lost the point inside the frame, bool, shape (len(first_frames), rows, columns).

        Raises:
            ValueError: If a frame is not one of the video or is its last one.
            StoredTracksError: If a chunk is damaged.
        """
        outside = [frame for frame in first_frames if not 0 <= frame < self.num_frames - 1]
        if outside:
            raise ValueError(
                f"stored tracks have no motion from frame {outside[0]} to the next: the video has {self.num_frames} "
                "frames. Are these tracks of another video, or frame numbers of another reader?"
            )
        grid_size = self.parameters.grid_size(self.source_size)
        numbers = sorted({frame // PAIRS_PER_CHUNK for frame in first_frames})
        decoded = {number: self._decoded(number, grid_size) for number in numbers}
        places = [divmod(frame, PAIRS_PER_CHUNK) for frame in first_frames]
        values = np.stack([decoded[number][0][place] for number, place in places])
        is_lost = np.stack([decoded[number][1][place] for number, place in places])
        return torch.from_numpy(values.astype(np.float32) / STEPS_PER_PX), torch.from_numpy(is_lost)

    def _decoded(self, number: int, grid_size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
        first = number * PAIRS_PER_CHUNK
        num_pairs = min(PAIRS_PER_CHUNK, self.num_frames - 1 - first)
        try:
            return decode_chunk(self.chunks[number], num_pairs, grid_size)
        except ValueError as error:
            frames = f"frames {first} to {first + num_pairs}"
            raise StoredTracksError(f"stored tracks of {self.source}, {frames}: {error}") from error

    def tracker(self, geometry: ClipGeometry | None, raw_frames: Sequence[int]) -> "StoredTracker":
        """Return the tracker of one clip of this video.

        Args:
            geometry: How the clip's frames were cut from the video's; None for whole frames.
            raw_frames: Number in the video of each frame of the clip; a frame may be repeated.
        """
        return StoredTracker(self, geometry=geometry, frame_numbers=tuple(raw_frames))


@dataclass(frozen=True)
class StoredTracker:
    """A `Tracker` that reads the stored motion of one video in place of looking at frames.

    Given to the processor (`processor(raw_frames, tracker=StoredTracker(motion, first_frame=n), ...)`) it is told by
    `for_clip` which frames it is shown and how they were cut. Alone it takes whole frames in their order.

    Attributes:
        motion: Stored motion of the video.
        first_frame: Number in the video of the first frame that the processor is given.
        geometry: How the frames that are tracked were cut from the video's; None for whole frames.
        frame_numbers: Number in the video of each frame that is tracked; None for all from `first_frame` on.
    """

    name: ClassVar[str] = "stored"
    motion: StoredMotion
    first_frame: int = 0
    geometry: ClipGeometry | None = None
    frame_numbers: tuple[int, ...] | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `build_tracker` needs to make an equal tracker."""
        return {name: getattr(self, name) for name in ("motion", "first_frame", "geometry", "frame_numbers")}

    def for_clip(
        self, geometry: ClipGeometry, raw_frames: Sequence[int], frame_size: tuple[int, int]
    ) -> "StoredTracker":
        """Return the tracker of frames `raw_frames`, counted from `first_frame`, after `geometry`.

        Raises:
            StoredTracksError: If the frames are of another (height, width) than the video's: tracks would not fit.
        """
        if tuple(frame_size) != self.motion.source_size:
            given, own = (f"{height}x{width}" for height, width in (frame_size, self.motion.source_size))
            raise StoredTracksError(
                f"{self.motion.source}: its stored tracks are of a video of {own}, its frames {given} (height x width)."
            )
        frame_numbers = tuple(self.first_frame + frame for frame in raw_frames)
        return replace(self, geometry=geometry, frame_numbers=frame_numbers)

    def __call__(
        self, frames: torch.Tensor, points_xy: torch.Tensor, *, start_frames: Sequence[int] = (0,), num_steps: int
    ) -> Trajectories:
        """Return the tracks of all points from every start frame, see `Tracker`.

        Frames must be of one clip; only their number and size are looked at.

        Raises:
            ValueError: If frames are not uint8 (T, 3, H, W), too few for the tracks, or not the frames described.
        """
        check_frames(frames)
        check_points(points_xy)
        check_tracked_frames(frames.shape[-4], start_frames, num_steps)
        height, width = frames.shape[-2:]
        lead, num_given = frames.shape[:-4], frames.shape[-4]
        numbers = self.frame_numbers or tuple(range(self.first_frame, self.first_frame + num_given))
        geometry = self.geometry or ClipGeometry(0, 0, width, height, height, width)
        expected = (len(numbers), geometry.out_height, geometry.out_width)
        whole_size = (height, width) if self.geometry is None else self.motion.source_size
        if lead.numel() != 1 or (num_given, height, width) != expected or whole_size != self.motion.source_size:
            raise ValueError(
                f"frames have shape {tuple(frames.shape)}; these stored tracks are of one clip of {expected[0]} frames "
                f"of {expected[1]}x{expected[2]}, cut from a video of {self.motion.source_size[0]}x"
                f"{self.motion.source_size[1]} (height x width)."
            )
        source_xy = geometry.source_points(points_xy.to("cpu", torch.float32))
        source_tracks, is_lost = self._follow(source_xy, numbers, start_frames, num_steps)
        tracks = geometry.apply_to_trajectories(source_tracks)
        # Set, not computed: the way to the source frame and back rounds.
        positions = torch.cat([points_xy.to("cpu").expand_as(tracks.points_xy[:, :1]), tracks.points_xy[:, 1:]], dim=1)
        is_known = is_inside(positions, (height, width))
        is_known[:, 1:] &= ~is_lost
        is_visible = is_known.int().cummin(dim=1).values.bool()
        shape = (*lead, *is_visible.shape)
        device = frames.device
        return Trajectories(
            positions.reshape(*shape, 2).to(device), is_visible.reshape(shape).to(device), (height, width)
        )

    def _follow(
        self, source_xy: torch.Tensor, numbers: Sequence[int], start_frames: Sequence[int], num_steps: int
    ) -> tuple[Trajectories, torch.Tensor]:
        """Return tracks in source pixels (S, L + 1, P, 2), and where a step lost its point, bool (S, L, P)."""
        parameters, source_size = self.motion.parameters, self.motion.source_size
        steps = sorted({start + step for start in start_frames for step in range(num_steps)})
        motion, is_lost = self._motion_of_steps([(numbers[step], numbers[step + 1]) for step in steps])
        # Source pixels -> resized pixels -> cells: in cells the grid is an image that `track_points` reads.
        height, width = parameters.frame_size(source_size)
        scale = torch.tensor([width / source_size[1], height / source_size[0]])
        cell = parameters.cell_size_px
        cells = track_points(
            motion / cell,
            (source_xy + 0.5) * scale / cell - 0.5,
            num_steps=num_steps,
            start_frames=[steps.index(start) for start in start_frames],
        )
        source = (cells.points_xy + 0.5) * cell / scale - 0.5
        is_visible = torch.ones(source.shape[:-1], dtype=torch.bool)
        lost_steps = torch.zeros_like(is_visible[:, 1:])
        if is_lost.any():
            rows, columns = is_lost.shape[1:]
            column, row = cells.points_xy[:, :-1].round().long().unbind(-1)
            pair = torch.tensor([[steps.index(start + step) for step in range(num_steps)] for start in start_frames])
            lost_steps = is_lost[pair[..., None], row.clamp(0, rows - 1), column.clamp(0, columns - 1)]
        return Trajectories(source, is_visible, source_size), lost_steps

    def _motion_of_steps(self, steps: Sequence[tuple[int, int]]) -> tuple[torch.Tensor, torch.Tensor]:
        for before, after in steps:
            if after - before not in (0, 1):
                raise ValueError(f"a track steps from frame {before} to {after}; stored tracks go frame by frame.")
        moving = [place for place, (before, after) in enumerate(steps) if before != after]
        rows, columns = self.motion.parameters.grid_size(self.motion.source_size)
        # A frame that only repeats the one before it shows no motion.
        motion = torch.zeros(len(steps), 2, rows, columns)
        is_lost = torch.zeros(len(steps), rows, columns, dtype=torch.bool)
        if moving:
            motion[moving], is_lost[moving] = self.motion.displacements_at([steps[place][0] for place in moving])
        return motion, is_lost


def build_stored_tracker(
    *,
    motion: StoredMotion | None = None,
    first_frame: int = 0,
    geometry: ClipGeometry | None = None,
    frame_numbers: tuple[int, ...] | None = None,
) -> StoredTracker:
    """Return a tracker that reads stored motion. Options: see `StoredTracker`."""
    if motion is None:
        raise ValueError(
            "tracker 'stored' reads the tracks of one video and cannot be built without them. Extract tracks with "
            "examples/extract_trajectories.py; then give pretrain.py --stored_tracks FOLDER beside the tracker they "
            "were made with, or open them with mme_hf.data.StoredTracks and call "
            "processor(raw_frames, tracker=StoredTracker(tracks.motion_of(video), first_frame=...))."
        )
    return StoredTracker(motion, first_frame, geometry, frame_numbers)


@torch.no_grad()
def extract_motion(
    reader: _Frames,
    tracker: Tracker,
    parameters: MotionParameters | None = None,
    *,
    device: torch.device | str = "cpu",
) -> StoredMotion:
    """Return the motion of a video, worked through chunk by chunk, so that its length costs no memory.

    Args:
        reader: The open video.
        tracker: Tracks the grid from every frame to the next.
        parameters: What they say of the tracker is not looked at; by default those of `tracker`.
        device: Where frames are resized and tracked.

    Raises:
        VideoReadError: If the reader cannot read a frame.
        ValueError: If the tracker returns a position of a visible point that is not a number.
    """
    parameters = parameters or MotionParameters.of(tracker)
    chunks = []
    source_size = tuple(reader.frames_at([0]).shape[-2:])
    height, width = parameters.frame_size(source_size)
    geometry = ClipGeometry(0, 0, source_size[1], source_size[0], height, width)
    rows, columns = parameters.grid_size(source_size)
    cell = parameters.cell_size_px
    grid_xy = grid_points(rows * cell, columns * cell, cell)
    for first in range(0, reader.num_frames - 1, PAIRS_PER_CHUNK):
        last = min(first + PAIRS_PER_CHUNK, reader.num_frames - 1)
        frames = geometry.apply_to_frames(reader.frames_at(range(first, last + 1)).to(device))
        tracks = tracker(frames, grid_xy.to(device), start_frames=tuple(range(last - first)), num_steps=1)
        arrivals, is_seen = tracks.points_xy[:, 1], tracks.is_visible[:, 1]
        is_known = arrivals.isfinite().all(-1)
        if (is_seen & ~is_known).any():
            raise ValueError("the tracker returned a visible point that is nowhere (nan); its tracks cannot be stored.")
        # A point that left the frame is known to have; only a track lost inside it, or anywhere, has to be remembered.
        is_lost = ~is_seen & (is_inside(arrivals, tracks.frame_size) | ~is_known)
        chunks.append(_encoded(tracks.displacements[:, 0].cpu(), is_lost.cpu(), (rows, columns)))
    return StoredMotion(parameters, source_size, reader.num_frames, tuple(chunks))


def _encoded(displacements: torch.Tensor, is_lost: torch.Tensor, grid_size: tuple[int, int]) -> bytes:
    """Return the code of displacements (pairs, P, 2) in resized pixels and lost points (pairs, P)."""
    is_lost = is_lost | (displacements.abs() > MAX_DISPLACEMENT_PX).any(-1)
    displacements = displacements.clamp(-MAX_DISPLACEMENT_PX, MAX_DISPLACEMENT_PX)
    values = (displacements * STEPS_PER_PX).round().to(torch.int16)
    return encode_chunk(values.transpose(1, 2).unflatten(2, grid_size).numpy(), is_lost.unflatten(1, grid_size).numpy())
