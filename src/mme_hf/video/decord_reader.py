"""Frames through decord, which has no wheel for some machines (ARM) and no release since 2021."""

import io
from collections.abc import Sequence

import torch

from .errors import VideoReadError
from .numbering import reason_against_decord
from .sources import VideoSource, as_ffmpeg_input, check_indices, check_open, describe_source


class DecordReader:
    """A `VideoReader` on decord.

    Refuses files in which decord 0.6 gives wrong frames without an error; finding them takes a pass over the packets.

    Args:
        source: Path, bytes, or binary file object. A file object is read into memory whole, as decord does.
        num_threads: Decoding threads.

    Raises:
        ImportError: If decord is not installed.
        VideoReadError: If decord cannot open the video.
    """

    def __init__(self, source: VideoSource, *, num_threads: int = 1):
        import decord

        self._name = describe_source(source)
        reason = reason_against_decord(source)
        if reason is not None:
            raise VideoReadError(self._name, reason)
        self._errors = (decord.DECORDError, RuntimeError)
        given = as_ffmpeg_input(source)
        if not isinstance(given, (str, io.BytesIO)):
            given = io.BytesIO(given.read())
        try:
            self._reader = decord.VideoReader(given, ctx=decord.cpu(0), num_threads=num_threads)
            self.num_frames = len(self._reader)
            self.average_fps = float(self._reader.get_avg_fps())
        except self._errors as error:
            raise self._read_error(error) from error

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, RGB, uint8, shape (len(indices), 3, H, W); see `VideoReader.frames_at`."""
        check_open(self._reader, self._name)
        indices = check_indices(indices, self.num_frames, self._name)
        wanted = sorted(set(indices))
        try:
            # In ascending order, each once: decord seeks backwards for every index below the last.
            frames = torch.from_numpy(self._reader.get_batch(wanted or [0]).asnumpy())[: len(wanted)]  # (T, H, W, 3)
        except self._errors as error:
            raise self._read_error(error) from error
        if indices != wanted:
            frames = frames[[wanted.index(index) for index in indices]]
        return frames.permute(0, 3, 1, 2)

    def close(self) -> None:
        """Release the decoder and the file."""
        self._reader = None

    def __enter__(self) -> "DecordReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _read_error(self, error: Exception) -> VideoReadError:
        # decord's messages end in a C++ stack trace.
        return VideoReadError(self._name, f"decord cannot read it ({str(error).splitlines()[0]}).")
