"""Frames of an encoded video: by the readers of mme_hf where it is imported, otherwise by torchcodec or PyAV alone."""

import io
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers.video_utils import VideoMetadata

# "auto" -> a function that opens a path or bytes as a reader (num_frames, average_fps, frames_at, close). Empty until
# `mme_hf` is imported: the exported core must not depend on one decoder. Without it `open_plainly` is used.
VIDEO_OPENERS: dict[str, Callable[[Any], Any]] = {}

_SECONDS_TO_WAIT_FOR_A_SERVER = 60
# AVI, MPEG program and transport streams: a seek in these leads torchcodec to other frames, without an error.
_NOT_TO_SEEK_IN = (b"RIFF", b"\x00\x00\x01\xba", b"\x47")
_DECODING_ERRORS = (RuntimeError, ValueError, OSError)


def is_encoded(source: Any) -> bool:
    """Return whether a video still has to be decoded: a path, URL, bytes, file object or torchcodec decoder."""
    return (
        isinstance(source, str | Path | bytes | bytearray | memoryview)
        or hasattr(source, "get_frames_at")
        or hasattr(source, "read")
    )


def read_frames(
    source: Any, sampler: Callable[[VideoMetadata], np.ndarray] | None
) -> tuple[torch.Tensor, VideoMetadata]:
    """Return the frames that `sampler` chooses, of which only these are kept, and what is known of the video.

    Args:
        source: What `is_encoded` accepts. An http(s) address is fetched whole.
        sampler: Frame indices for a video; None for all frames.

    Returns:
        Frames, uint8 in [0, 255], shape (len(indices), 3, height, width), and the video's metadata.

    Raises:
        OSError: If an address or a file cannot be read.
        RuntimeError: If it holds no video that can be decoded; names it.
        ImportError: If there is no decoder.
    """

    def choose(video: VideoMetadata) -> list[int]:
        indices = np.arange(video.total_num_frames) if sampler is None else sampler(video)
        video.frames_indices = [int(index) for index in indices]
        return video.frames_indices

    if hasattr(source, "get_frames_at"):  # a torchcodec VideoDecoder, which `datasets` yields
        known = source.metadata
        video = VideoMetadata(total_num_frames=known.num_frames, fps=known.average_fps, video_backend="torchcodec")
        return source.get_frames_at(indices=choose(video)).data, video
    if isinstance(source, str) and source.lower().startswith(("http://", "https://")):
        source = _fetched(source)
    reader = VIDEO_OPENERS.get("auto", open_plainly)(source)
    try:
        video = VideoMetadata(total_num_frames=reader.num_frames, fps=reader.average_fps)
        return reader.frames_at(choose(video)), video
    finally:
        reader.close()


def open_plainly(source: Any) -> "TorchCodecVideo | PyAVVideo":
    """Open a path, bytes or file object with torchcodec, or with PyAV where that is missing or cannot read it.

    Raises:
        FileNotFoundError: If there is no such file.
        RuntimeError: If neither can read it; names it and says why.
        ImportError: If neither is installed, or the one that this kind of file needs is not.
    """
    if isinstance(source, str | Path) and "://" not in str(source) and not Path(source).is_file():
        what = "is no file" if Path(source).exists() else "is not there"
        raise FileNotFoundError(f"video {str(source)!r} {what}. Give the path of a video file.")
    header = _first_bytes(source)
    # A camera's transport stream has a time of four bytes before each packet.
    can_seek = not (header.startswith(_NOT_TO_SEEK_IN) or header.startswith(_NOT_TO_SEEK_IN[-1], 4))
    missing, causes = [], []
    for kind in (TorchCodecVideo, PyAVVideo) if can_seek else (PyAVVideo,):
        try:
            return kind(source)
        except ImportError as error:
            missing.append(str(error))
        except RuntimeError as error:
            causes.append(str(error))
    if not causes:
        wanted = "av or torchcodec" if can_seek else "av"
        raise ImportError(f"{' '.join(missing)} Install {wanted}, or give frames instead of a file.")
    raise RuntimeError(f"Cannot read video {_name_of(source)}: {' '.join(causes + missing)}")


class TorchCodecVideo:
    """Frames through torchcodec, which finds them by their place in the file.

    Raises:
        ImportError: If torchcodec, or the FFmpeg libraries that it needs, cannot be loaded.
        RuntimeError: If it cannot read the video.
    """

    def __init__(self, source: Any):
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:  # RuntimeError where FFmpeg is missing
            raise ImportError(f"torchcodec cannot be loaded ({_first_line(error)}).") from error
        self._name = _name_of(source)
        try:
            # Channels last in memory, on which resizing is fastest.
            self._decoder = VideoDecoder(_as_input(source), dimension_order="NHWC", seek_mode="exact")
            self.num_frames = len(self._decoder)
        except _DECODING_ERRORS as error:
            raise RuntimeError(f"torchcodec: {_first_line(error)}.") from error
        self.average_fps = float(self._decoder.metadata.average_fps or 0)

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, RGB, uint8, shape (len(indices), 3, height, width)."""
        try:
            return self._decoder.get_frames_at(list(indices)).data.permute(0, 3, 1, 2)
        except _DECODING_ERRORS as error:
            raise RuntimeError(f"Cannot read video {self._name}: torchcodec: {_first_line(error)}.") from error

    def close(self) -> None:
        """Let go of the file."""
        self._decoder = None


class PyAVVideo:
    """Frames through PyAV, by decoding from the start: once to count them, once to get them.

    PyAV's default threads work on one frame. Those that decode ahead may want to log, for which they wait for Python's
    lock, while it is held by whoever waits for them to end: early, as all frames that are wanted are there.

    Headers are no use for counting: WebM has no number of frames, and others announce frames that do not decode.

    Raises:
        ImportError: If PyAV is not installed.
        RuntimeError: If it cannot read the video, or there is no frame in it.
    """

    def __init__(self, source: Any):
        try:
            import av
        except ImportError as error:
            raise ImportError(f"PyAV cannot be loaded ({_first_line(error)}).") from error
        self._av, self._source = av, source
        self.average_fps = 0.0
        self.num_frames = sum(1 for _ in self._decoded())
        if not self.num_frames:
            raise RuntimeError("PyAV: there is no frame in it.")

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, RGB, uint8, shape (len(indices), 3, height, width)."""
        wanted, last, pictures = set(indices), max(indices), {}
        for index, frame in enumerate(self._decoded()):
            if index in wanted:
                picture = frame.to_ndarray(format="rgb24")
                # PyAV gives the counter-clockwise angle that makes the frame upright.
                pictures[index] = np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture
            if index == last:
                break
        return torch.from_numpy(np.stack([pictures[index] for index in indices])).permute(0, 3, 1, 2)

    def close(self) -> None:
        """Do nothing: the file is open only while frames are decoded."""

    def _decoded(self) -> Iterator[Any]:
        try:
            with self._av.open(_as_input(self._source), metadata_errors="replace") as container:
                stream = container.streams.best("video")
                if stream is None:
                    raise RuntimeError("PyAV: there is no video stream in it.")
                self.average_fps = float(stream.average_rate or stream.guessed_rate or 0)
                yield from container.decode(stream)
        except (self._av.error.FFmpegError, OSError) as error:
            raise RuntimeError(f"PyAV: {_first_line(error)}.") from error


def _fetched(url: str) -> bytes:
    try:
        request = urllib.request.Request(url, headers={"User-Agent": "mme_hf"})  # some refuse urllib's own
        with urllib.request.urlopen(request, timeout=_SECONDS_TO_WAIT_FOR_A_SERVER) as response:
            return response.read()
    except (OSError, HTTPException) as error:  # urllib's own errors are of the first kind
        raise OSError(f"the video {url} cannot be fetched: {error}.") from error


def _as_input(source: Any) -> Any:
    """Return a source as decoders take it: a path as str, anything else as a file object at its beginning."""
    if isinstance(source, str | Path):
        return str(source)
    if hasattr(source, "read"):
        source.seek(0)
        return source
    return io.BytesIO(source)


def _first_bytes(source: Any) -> bytes:
    if isinstance(source, str) and "://" in source:
        return b""
    if isinstance(source, str | Path):
        with open(source, "rb") as file:
            return file.read(5)
    return _as_input(source).read(5)


def _name_of(source: Any) -> str:
    return str(source) if isinstance(source, str | Path) else f"<{type(source).__name__}>"


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")
