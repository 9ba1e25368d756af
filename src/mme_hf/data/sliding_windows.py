"""One clip of each window that slides over a video of any length, of which little is in memory at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from math import ceil
from typing import Literal

import torch

from ..video import VideoReader
from ..video.stream import StreamedFrame
from .labelled_clips import ViewSampling

# Raw frames of so many bytes are read in one go: windows that share a key frame are then decoded from it once.
MAX_BYTES_AT_ONCE = 128 * 2**20
# Where a file does not tell, as few do.
USUAL_FPS = 25.0


@dataclass(frozen=True)
class WindowClip:
    """The clip of one window.

    Attributes:
        start_seconds: Where the window begins.
        end_seconds: Where it ends.
        frames: RGB, uint8, shape (frames, 3, H, W).
    """

    start_seconds: float
    end_seconds: float
    frames: torch.Tensor


@dataclass(frozen=True)
class SlidingWindows:
    """Where windows lie, and which frames of them make a clip.

    Attributes:
        num_frames: Frames of a clip.
        frame_stride: Frames from one to the next, in "dense" clips, which lie in the middle of their window.
        frame_sampling: "dense", or "segments": one frame of each of equal parts of the window.
        seconds: Length of a window; None for what a dense clip spans, and for all of the video with "segments".
        step: From one window to the next, in windows, in (0, 1].
    """

    num_frames: int
    frame_stride: int
    frame_sampling: Literal["dense", "segments"] = "dense"
    seconds: float | None = None
    step: float = 1.0

    def length(self, num_available: int | None, fps: float) -> int:
        """Return the frames of a window.

        Args:
            num_available: Frames of the video; None for a stream.
            fps: Frames per second.

        Raises:
            ValueError: If a window is to hold all of a stream, or is shorter than a dense clip though the video is not.
        """
        if self.seconds is not None:
            wanted = max(1, round(self.seconds * fps))
            spanned = (self.num_frames - 1) * self.frame_stride + 1
            is_cut_short = num_available is None or num_available > wanted
            if self.frame_sampling == "dense" and wanted < spanned and is_cut_short:
                raise ValueError(
                    f"window_seconds ({self.seconds:g}) is {wanted} of a video's frames at {fps:g} fps, fewer than the "
                    f"{spanned} of a clip: {self.num_frames}, {self.frame_stride} apart. Closer together, motion would "
                    f"seem slower. Give at least {ceil(100 * spanned / fps) / 100:g}, or a smaller frame_stride."
                )
        elif self.frame_sampling == "dense":
            wanted = self.num_frames * self.frame_stride
        elif num_available is None:
            raise ValueError(
                "frame_sampling ('segments') takes frames of the whole video, and a stream has no end. Give "
                "--window_seconds."
            )
        else:
            wanted = num_available
        return wanted if num_available is None else min(wanted, num_available)

    def starts(self, num_available: int, fps: float) -> list[int]:
        """Return the first frame of each window; the last window ends with the video.

        Args:
            num_available: Frames of the video.
            fps: Frames per second.
        """
        length = self.length(num_available, fps)
        step = self._step(length)
        num_windows = 1 + ceil((num_available - length) / step)
        return [min(number * step, num_available - length) for number in range(num_windows)]

    def clip(self, length: int) -> list[int]:
        """Return the frames of a window of `length` frames that make its clip."""
        clip = (length, self.num_frames, self.frame_stride, torch.Generator(), self.frame_sampling)
        return ViewSampling().clip_frames(*clip)[0]

    def of_video(self, reader: VideoReader) -> Iterator[WindowClip]:
        """Yield the clips of a video that is open.

        Raises:
            VideoReadError: If a frame cannot be decoded.
        """
        fps = reader.average_fps or USUAL_FPS
        length, starts = self.length(reader.num_frames, fps), self.starts(reader.num_frames, fps)
        own, at_once = self.clip(length), 1
        while starts:
            now, starts = starts[:at_once], starts[at_once:]
            indices = sorted({start + frame for start in now for frame in own})
            frames = reader.frames_at(indices)
            place = {index: position for position, index in enumerate(indices)}
            for start in now:
                clip = frames[[place[start + frame] for frame in own]]
                yield WindowClip(start / fps, (start + length) / fps, clip)
            at_once = max(1, MAX_BYTES_AT_ONCE // (len(own) * frames[0].numel()))

    def of_stream(self, stream: Iterable[StreamedFrame]) -> Iterator[WindowClip]:
        """Yield the clips of a stream as soon as each window has been seen.

        A window that the stream ends in is left out if less than half of it was seen, but for the first; in its clip
        the last frame stands for those that are missing.

        Raises:
            VideoReadError: As the stream does.
        """
        open_windows: list[_OpenWindow] = []
        number = next_start = num_closed = 0
        for number, frame in enumerate(stream):
            fps = frame.average_fps or USUAL_FPS
            length = self.length(None, fps)
            if number == next_start:
                open_windows.append(_OpenWindow(number, self.clip(length)))
                next_start += self._step(length)
            for window in open_windows:
                window.take(number, frame.pixels)
            if number == open_windows[0].start + length - 1:
                yield open_windows.pop(0).closed(fps, number + 1)
                num_closed += 1
        for window in open_windows:
            if num_closed == 0 or number + 1 - window.start >= length / 2:
                yield window.closed(fps, number + 1)
                num_closed += 1

    def _step(self, length: int) -> int:
        return max(1, round(self.step * length))


@dataclass
class _OpenWindow:
    start: int
    clip: list[int]
    frames: dict[int, torch.Tensor] = field(default_factory=dict)
    last: torch.Tensor | None = None

    def take(self, number: int, pixels: torch.Tensor) -> None:
        self.last = pixels
        if number - self.start in self.clip:
            self.frames[number - self.start] = pixels

    def closed(self, fps: float, end: int) -> WindowClip:
        frames = torch.stack([self.frames.get(frame, self.last) for frame in self.clip])
        return WindowClip(self.start / fps, end / fps, frames)
