"""The frames of a video in order, each once: for what has no end or cannot be gone back in, and so has no numbers."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np
import torch

from .errors import VideoReadError
from .sources import check_frame_size

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StreamedFrame:
    """One frame of a stream.

    Attributes:
        pixels: RGB, uint8, shape (3, H, W).
        average_fps: Frames per second that the stream announces.
    """

    pixels: torch.Tensor
    average_fps: float


def stream_frames(source: str | BinaryIO, name: str) -> Iterator[StreamedFrame]:
    """Yield the frames of a video as they arrive; of all that was before, none is kept.

    Args:
        source: Path or URL that FFmpeg can open, or a binary file object that need not seek, such as a pipe.
        name: What messages call it.

    Raises:
        VideoReadError: If it cannot be opened, holds no frame, or its frames change size. One that breaks off later
            ends there, with a warning.
    """
    import av

    first_size = None
    try:
        with av.open(source, metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if stream is None:
                raise VideoReadError(name, "it has no video stream.")
            rate = float(stream.average_rate or stream.guessed_rate or 0)
            for index, frame in enumerate(container.decode(stream)):
                size = (frame.width, frame.height)
                first_size = first_size or size
                check_frame_size(size, first_size, index, name)
                picture = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
                yield StreamedFrame(torch.from_numpy(picture.copy()).permute(2, 0, 1), rate)
    except (av.error.FFmpegError, OSError) as error:
        if first_size is None:
            way_out = "" if isinstance(source, str) else " A piped mp4 must have its index at its beginning."
            raise VideoReadError(name, f"FFmpeg cannot read it ({error}).{way_out}") from error
        logger.warning("%s breaks off: %s", name, error)
    if first_size is None:
        raise VideoReadError(name, "it holds no frame.")
