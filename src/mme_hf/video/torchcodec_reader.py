"""Frames through torchcodec, an optional dependency."""

from collections.abc import Sequence

import torch

from .errors import VideoReadError
from .numbering import reason_not_to_seek
from .sources import VideoSource, as_ffmpeg_input, check_indices, check_open, describe_source


class TorchCodecReader:
    """A `VideoReader` on `torchcodec.decoders.VideoDecoder`.

    Refuses files in which torchcodec gives wrong frames without an error: AVI with B-frames, MPEG-PS, MPEG-TS.

    Args:
        source: Path, bytes, or seekable binary file object.
        num_threads: Decoding threads.

    Raises:
        ImportError: If torchcodec, or the FFmpeg libraries it needs, cannot be loaded.
        VideoReadError: If torchcodec cannot open the video.
    """

    def __init__(self, source: VideoSource, *, num_threads: int = 1):
        try:
            from torchcodec.decoders import VideoDecoder
        except (ImportError, RuntimeError, OSError) as error:
            # torchcodec raises RuntimeError where the system has no FFmpeg libraries that it can use.
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ImportError(
                f"backend 'torchcodec' cannot be loaded ({reason}). Install torchcodec and FFmpeg, or use 'auto'."
            ) from error

        self._name = describe_source(source)
        reason = reason_not_to_seek(source)
        if reason is not None:
            raise VideoReadError(self._name, reason)
        try:
            # Frames last in memory as (H, W, 3), like the other readers': resizing is fastest on that layout.
            self._decoder = VideoDecoder(
                as_ffmpeg_input(source), dimension_order="NHWC", num_ffmpeg_threads=num_threads, seek_mode="exact"
            )
            self.num_frames = len(self._decoder)
            self.average_fps = float(self._decoder.metadata.average_fps or 0)
        except (RuntimeError, ValueError) as error:
            raise self._read_error(error) from error
        if self._decoder.metadata.codec == "ansi":
            raise VideoReadError(self._name, "it is text, not a video (FFmpeg takes it for terminal art).")

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, RGB, uint8, shape (len(indices), 3, H, W); see `VideoReader.frames_at`."""
        check_open(self._decoder, self._name)
        indices = check_indices(indices, self.num_frames, self._name)
        try:
            # torchcodec 0.17 fails on an empty list.
            frames = self._decoder.get_frames_at(indices or [0]).data[: len(indices)]  # (T, H, W, 3)
        except (RuntimeError, ValueError) as error:
            raise self._read_error(error) from error
        return frames.permute(0, 3, 1, 2)

    def close(self) -> None:
        """Release the decoder and the file."""
        self._decoder = None

    def __enter__(self) -> "TorchCodecReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_error(self, error: Exception) -> VideoReadError:
        return VideoReadError(self._name, f"torchcodec cannot read it ({str(error).splitlines()[0]}).")
