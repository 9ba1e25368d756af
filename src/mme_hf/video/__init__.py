"""Random access to the frames of a video: one protocol, one file per backend, no backend loaded before it is used.

Frame `i` is the i-th frame that decoding the file from its start gives, in display order. Every backend either keeps
to that numbering or refuses the file with a `VideoReadError`.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Literal, Protocol

import torch

from .errors import FrameSizeError, VideoReadError
from .sampling import evenly_spaced_starts, random_start, window_indices
from .sources import VideoSource, check_source, describe_source, rewind

__all__ = [
    "VideoReadError",
    "VideoReader",
    "evenly_spaced_starts",
    "open_video",
    "random_start",
    "window_indices",
]

Backend = Literal["auto", "decord", "pyav", "torchcodec"]

# Tried in this order by "auto", on opening and again on every read that fails. decord comes second: without an error it
# gives wrong frames of whole classes of files (see numbering.py), and finding those out makes it 1.5 to 5 times slower.
AUTO_BACKENDS = ("pyav", "decord")

READERS = {
    "decord": ("decord_reader", "DecordReader"),
    "pyav": ("pyav_reader", "PyAVReader"),
    "torchcodec": ("torchcodec_reader", "TorchCodecReader"),
}


class VideoReader(Protocol):
    """Random access to the frames of one video. Frames are numbered from 0 in display order."""

    num_frames: int
    average_fps: float

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, in that order, RGB, uint8 in [0, 255], shape (len(indices), 3, H, W).

        Args:
            indices: Frame indices in [0, num_frames), in any order, repeats allowed.

        Raises:
            IndexError: If an index is outside [0, num_frames).
            TypeError: If an index is no whole number.
            ValueError: If the reader is closed.
            VideoReadError: If a frame cannot be decoded, or they are not all of one size.
        """

    def close(self) -> None:
        """Release the decoder and the file. A file object that the caller opened stays open."""

    def __enter__(self) -> "VideoReader": ...

    def __exit__(self, *exc_info: object) -> None: ...


def check_backend(backend: str, name: str = "backend") -> None:
    """Raise ValueError for a backend that `open_video` does not know; messages call it `name`."""
    if backend not in ("auto", *READERS):
        raise ValueError(f"{name} ({backend!r}) must be one of {', '.join(map(repr, ('auto', *READERS)))}.")


def open_video(source: VideoSource, backend: Backend = "auto", *, num_threads: int = 1) -> VideoReader:
    """Open a video for random access to its frames.

    Args:
        source: Path (str or `Path`), URL that FFmpeg can open, the bytes of a video file, or a seekable binary file
            object (which stays the caller's to close).
        backend: "decord", "pyav", "torchcodec", or "auto": the first of `AUTO_BACKENDS` that can open the file; if it
            fails on a later read, the next one takes over and gives the same frames for the same indices.
        num_threads: Decoding threads. One is best inside data loading workers.

    Raises:
        VideoReadError: If the source is missing, empty, truncated, or holds no readable video. It names both.
        ValueError: If `backend` is unknown.
        TypeError: If `source` is none of the above.
        ImportError: If the named backend is not installed.
    """
    check_backend(backend)
    check_source(source)
    if backend == "auto":
        return AutoReader(source, num_threads=num_threads)
    return _reader_class(backend)(source, num_threads=num_threads)


def _reader_class(backend: str) -> Callable[..., VideoReader]:
    module, name = READERS[backend]
    return getattr(import_module(f".{module}", __name__), name)


class AutoReader:
    """A reader that starts with one backend and moves to the next where that one fails, on opening or on reading."""

    def __init__(self, source: VideoSource, *, num_threads: int = 1, backends: Sequence[str] = AUTO_BACKENDS):
        self._source = source
        self._num_threads = num_threads
        self._remaining = list(backends)
        self._reader = self._open_next(None)

    @property
    def backend(self) -> str:
        """Name of the backend now in use."""
        return self._backend

    @property
    def num_frames(self) -> int:
        """Number of frames that can be read."""
        return self._reader.num_frames

    @property
    def average_fps(self) -> float:
        """Frames per second, averaged over the video."""
        return self._reader.average_fps

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`; see `VideoReader.frames_at`."""
        while True:
            try:
                return self._reader.frames_at(indices)
            except FrameSizeError:  # decord would stretch the others to the size of the first
                raise
            except VideoReadError as error:
                self._reader.close()
                self._reader = self._open_next(error)

    def close(self) -> None:
        """Release the decoder and the file."""
        self._reader.close()

    def __enter__(self) -> "AutoReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open_next(self, error: VideoReadError | None) -> VideoReader:
        """Open with the next backend that can; raise the first refusal when there is none left."""
        while self._remaining:
            self._backend = self._remaining.pop(0)
            rewind(self._source)
            try:
                return _reader_class(self._backend)(self._source, num_threads=self._num_threads)
            except VideoReadError as refusal:
                error = error or refusal
            except ImportError as missing:
                # decord has no wheel for some machines (ARM): that is what the next backend is for.
                error = error or VideoReadError(describe_source(self._source), f"{self._backend} is missing: {missing}")
        raise error
