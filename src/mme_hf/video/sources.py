"""What may be opened as a video, checked alike for every backend before any of them sees it."""

import io
import operator
import os
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from .errors import FrameSizeError, VideoReadError

VideoSource = str | os.PathLike | bytes | bytearray | memoryview | BinaryIO

_HEADER_BYTES = 16
_STILL_IMAGES = {b"\x89PNG\r\n\x1a\n": "PNG", b"\xff\xd8\xff": "JPEG", b"II*\x00": "TIFF", b"MM\x00*": "TIFF"}


def describe_source(source: VideoSource) -> str:
    """Return how messages name `source`: its path, or "<bytes, N bytes>" and the like for what has no path."""
    if isinstance(source, (str, os.PathLike)):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return f"<bytes, {len(source)} bytes>"
    name = getattr(source, "name", None)
    if isinstance(name, str):
        return name
    return f"<{type(source).__name__}, {source_size(source)} bytes>"


def is_path(source: VideoSource) -> bool:
    """Say whether `source` is a path or URL."""
    return isinstance(source, (str, os.PathLike))


def is_url(source: VideoSource) -> bool:
    """Say whether `source` is an address such as https://..., which only FFmpeg can judge."""
    return isinstance(source, str) and "://" in source


def source_size(source: VideoSource) -> int | None:
    """Return the size of `source` in bytes, or None where it cannot be known without reading it (URLs)."""
    if is_url(source):
        return None
    if is_path(source):
        return os.stat(source).st_size
    if isinstance(source, (bytes, bytearray, memoryview)):
        return len(source)
    position = source.tell()
    size = source.seek(0, io.SEEK_END)
    source.seek(position)
    return size


def source_header(source: VideoSource) -> bytes:
    """Return the first bytes of `source`, enough to know its container; empty for a URL."""
    if is_url(source):
        return b""
    if is_path(source):
        with open(source, "rb") as file:
            return file.read(_HEADER_BYTES)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return bytes(source[:_HEADER_BYTES])
    source.seek(0)
    header = source.read(_HEADER_BYTES)
    source.seek(0)
    return header


def as_ffmpeg_input(source: VideoSource) -> str | BinaryIO:
    """Return `source` as a path or as a file object at its beginning, the two forms that the backends take."""
    if is_path(source):
        return os.fspath(source)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return io.BytesIO(source)
    rewind(source)
    return source


def rewind(source: VideoSource) -> None:
    """Put a file object back to its beginning; leave other sources alone."""
    if hasattr(source, "seek"):
        source.seek(0)


def check_source(source: VideoSource) -> None:
    """Refuse what no backend can read as a video.

    Raises:
        VideoReadError: If the path is empty, or the file is missing, is a folder, may not be read, is empty, or is a
            still image.
        TypeError: If `source` is not a path, bytes, or a seekable binary file object.
    """
    is_file_object = hasattr(source, "read") and hasattr(source, "seek")
    if not (is_path(source) or is_file_object or isinstance(source, (bytes, bytearray, memoryview))):
        raise TypeError(
            f"source ({type(source).__name__}) must be a path, bytes, or a seekable binary file object of a video file."
        )
    if is_url(source):
        return
    if is_path(source) and not os.fspath(source):
        raise VideoReadError("''", "the path is empty. Give the path of a video file.")
    if is_path(source) and Path(source).is_dir():
        raise VideoReadError(describe_source(source), "it is a folder, not a video file.")
    try:
        header = source_header(source)
    except OSError as error:
        cause = "there is no such file." if isinstance(error, FileNotFoundError) else f"it cannot be opened ({error})."
        raise VideoReadError(describe_source(source), cause) from error
    if isinstance(header, str):
        raise TypeError("source is a file object in text mode; open it with mode 'rb'.")
    if not header:
        raise VideoReadError(describe_source(source), "it is empty (0 bytes).")
    for magic, name in _STILL_IMAGES.items():
        if header.startswith(magic):
            raise VideoReadError(describe_source(source), f"it is a still image ({name}), not a video.")


def check_open(decoder: object | None, source: str) -> None:
    """Raise ValueError if a reader has let go of its decoder."""
    if decoder is None:
        raise ValueError(f"the reader of {source} is closed. Open the video again to read from it.")


def check_indices(indices: Sequence[int], num_frames: int, source: str) -> list[int]:
    """Return `indices` as a list of int.

    Raises:
        IndexError: If one is outside [0, num_frames).
        TypeError: If one is no whole number.
    """
    indices = [_as_index(index) for index in indices]
    for index in indices:
        if not 0 <= index < num_frames:
            raise IndexError(f"frame index ({index}) is outside [0, {num_frames}), the frames of {source}.")
    return indices


def check_frame_size(size: tuple[int, int], first: tuple[int, int], index: int, source: str) -> None:
    """Raise FrameSizeError if a frame's (width, height) is not that of the first one read."""
    if size != first:
        was, now = (f"{width}x{height}" for width, height in (first, size))
        raise FrameSizeError(source, f"its frames change size from {was} to {now} by frame {index}.")


def _as_index(index: object) -> int:
    try:
        return operator.index(index)
    except TypeError as error:
        raise TypeError(f"frame index ({index!r}) is a {type(index).__name__}; it must be a whole number.") from error
