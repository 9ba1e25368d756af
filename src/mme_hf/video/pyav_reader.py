"""Frames through PyAV, that is FFmpeg: the reader that opens everything, and the reference for frame numbers."""

from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import chain

import numpy as np
import torch

from .errors import VideoReadError
from .pyav_index import MIN_SHARE_OF_HEADER, NOT_VIDEO_FORMATS, build_index
from .sources import (
    VideoSource,
    as_ffmpeg_input,
    check_frame_size,
    check_indices,
    check_open,
    describe_source,
    source_size,
)

# No codec shows a picture later than this many pictures after it was decoded.
_MAX_REORDER = 16

# Codecs in which a picture that no other refers to is marked as such, so that leaving it out changes no other pixel,
# and whose FFmpeg decoder reads `skip_frame` anew for each packet.
_MARKS_DISPOSABLE_PICTURES = ("h264", "mpeg4", "mpeg2video", "mpeg1video")


# Seeking costs about as much as decoding a frame or two: up to a key frame no further than this, reading on is faster.
_MAX_FRAMES_TO_READ_ON = 2


class _LostPositionError(Exception):
    """A seek led to a packet that the index does not know, or a frame did not come out of the decoder."""


class PyAVReader:
    """A `VideoReader` on PyAV.

    Seeks to the key frame at or before the wanted frames, decodes from there with unwanted disposable pictures left
    out, and converts wanted frames only. Rotation that the file asks for is applied.

    Args:
        source: Path, URL, bytes, or seekable binary file object.
        num_threads: Decoding threads.

    Raises:
        VideoReadError: If the source cannot be opened, holds no video, or less than 90 % of the announced frames.
    """

    def __init__(self, source: VideoSource, *, num_threads: int = 1):
        self._source = source
        self._name = describe_source(source)
        self._num_threads = num_threads
        self._container = None
        self._frame_size: tuple[int, int] | None = None  # of the first frame read
        try:
            self._open()
            self._index = build_index(self._container, self._stream, size_bytes=source_size(source))
            self._is_at_start = self._index.timestamp_name == "dts" and self._index.can_seek
        except Exception as error:
            self.close()
            raise self._read_error(error) from error
        self._check_frame_counts()
        self._can_seek = self._index.can_seek
        self.num_frames = self._index.num_frames
        self.average_fps = float(self._stream.average_rate or self._stream.guessed_rate or 0)

    def frames_at(self, indices: Sequence[int]) -> torch.Tensor:
        """Return the frames at `indices`, RGB, uint8, shape (len(indices), 3, H, W); see `VideoReader.frames_at`."""
        check_open(self._container, self._name)
        indices = check_indices(indices, self.num_frames, self._name)
        rows: dict[int, list[int]] = {}
        for row, index in enumerate(indices):
            rows.setdefault(index, []).append(row)
        wanted = sorted(rows)
        try:
            try:
                frames = self._collect(wanted, rows, len(indices))
            except _LostPositionError:
                # The index and the decoder disagree: count from the start, which is what defines frame numbers.
                self._can_seek = False
                frames = self._collect(wanted, rows, len(indices))
        except Exception as error:
            raise self._read_error(error) from error
        return frames.permute(0, 3, 1, 2)  # (T, 3, H, W), a view

    def close(self) -> None:
        """Release the decoder and the file."""
        if self._container is not None:
            self._container.close()
            self._container = None

    def __enter__(self) -> "PyAVReader":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _open(self) -> None:
        import av
        from av.video.reformatter import VideoReformatter

        self._container = av.open(as_ffmpeg_input(self._source), metadata_errors="replace")
        format_name = self._container.format.name
        if format_name in NOT_VIDEO_FORMATS or format_name.endswith("_pipe"):
            raise VideoReadError(self._name, f"it is not a video (FFmpeg takes it for {format_name!r}).")
        self._stream = self._container.streams.best("video")
        if self._stream is None:
            kinds = ", ".join(sorted({stream.type for stream in self._container.streams})) or "nothing"
            raise VideoReadError(self._name, f"it has no video stream (it holds: {kinds}).")
        self._context = self._stream.codec_context
        if self._context is None:
            raise VideoReadError(self._name, "FFmpeg here has no decoder for its video codec.")
        self._context.thread_count = self._num_threads
        self._skips_disposable = self._context.name in _MARKS_DISPOSABLE_PICTURES
        # One converter for all frames: PyAV otherwise sets up a new one, with its own threads, for each frame.
        self._reformatter = VideoReformatter()
        self._is_at_start = True

    def _check_frame_counts(self) -> None:
        num_frames, announced = self._index.num_frames, self._index.num_header_frames
        cause = None
        if num_frames == 0:
            cause = "it holds no frame that can be decoded."
        elif num_frames < MIN_SHARE_OF_HEADER * announced:
            cause = f"it is truncated: it holds {num_frames} of the {announced} frames that its header announces."
        if cause:
            self.close()
            raise VideoReadError(self._name, cause)

    def _read_error(self, error: Exception) -> Exception:
        """Return `error` as a `VideoReadError` in plain words if it comes from FFmpeg; leave faults of ours alone."""
        import av

        if isinstance(error, _LostPositionError):
            return VideoReadError(self._name, str(error))
        if isinstance(error, (av.error.FFmpegError, OSError)):
            return VideoReadError(self._name, f"FFmpeg cannot read it ({error}). It may be damaged, or not a video.")
        return error

    def _collect(self, wanted: list[int], rows: dict[int, list[int]], num_rows: int) -> torch.Tensor:
        frames = None
        missing = set(wanted)
        for index, frame in self._decode(wanted):
            size = (frame.width, frame.height)
            self._frame_size = self._frame_size or size
            check_frame_size(size, self._frame_size, index, self._name)
            picture = self._convert(frame)
            if frames is None:
                frames = np.empty((num_rows, *picture.shape), dtype=np.uint8)
            for row in rows[index]:
                frames[row] = picture
            missing.discard(index)
        if missing:
            raise _LostPositionError(
                f"{len(missing)} of the {len(wanted)} frames wanted do not decode, the first is frame {min(missing)}."
            )
        if frames is None:
            height, width = self._context.height, self._context.width
            frames = np.empty((0, height, width, 3), dtype=np.uint8)
        return torch.from_numpy(frames)

    def _convert(self, frame) -> np.ndarray:
        """Return the frame upright in RGB, uint8, shape (H, W, 3)."""
        # Its own size: the decoder's may already be that of a later frame.
        width, height = frame.width, frame.height
        rgb = self._reformatter.reformat(frame, width=width, height=height, format="rgb24", threads=1)
        plane = rgb.planes[0]
        lines = np.frombuffer(plane, dtype=np.uint8).reshape(height, plane.line_size)
        picture = lines[:, : 3 * width].reshape(height, width, 3)
        # PyAV gives the counter-clockwise angle that makes the frame upright.
        return np.rot90(picture, round(frame.rotation / 90)) if frame.rotation else picture

    def _decode(self, wanted: list[int]) -> Iterator[tuple[int, "object"]]:
        """Yield (index, frame) for each of the ascending frame indices `wanted`, in any order."""
        if not self._can_seek:
            yield from self._decode_counting(wanted)
            return
        for key, indices in self._runs(wanted):
            yield from self._decode_from_key(key, indices)

    def _runs(self, wanted: list[int]) -> list[tuple[int, list[int]]]:
        """Return `wanted` cut into runs to decode in one go, each with the key frame to start at."""
        runs: list[tuple[int, list[int]]] = []
        for index in wanted:
            key = self._index.key_before(index)
            if runs and self._index.key_positions[key] - runs[-1][1][-1] <= _MAX_FRAMES_TO_READ_ON:
                runs[-1][1].append(index)
            else:
                runs.append((key, [index]))
        return runs

    def _decode_counting(self, wanted: list[int]) -> Iterator[tuple[int, "object"]]:
        if not self._is_at_start:
            self.close()
            self._open()
        self._is_at_start = False
        self._context.skip_frame = "DEFAULT"
        remaining = set(wanted)
        for index, frame in enumerate(self._container.decode(self._stream)):
            if index in remaining:
                yield index, frame
                remaining.discard(index)
                if not remaining:
                    return

    def _decode_from_key(self, key: int, wanted: list[int]) -> Iterator[tuple[int, "object"]]:
        index_of_pts: dict[int, int] = {}
        remaining = set(wanted)
        for number, (index, packet) in enumerate(self._numbered_packets(key)):
            if number == 0 and index is not None and wanted[0] < index:
                # Frames shown before a key frame but stored after it need the key frame before that.
                earlier = [early for early in wanted if early < index]
                if key == 0:
                    raise _LostPositionError(f"frame {wanted[0]} comes before the first key frame.")
                yield from self._decode_from_key(key - 1, earlier)
                if len(earlier) < len(wanted):
                    yield from self._decode_from_key(key, wanted[len(earlier) :])
                return
            is_wanted = index in remaining
            if is_wanted:
                index_of_pts[packet.pts] = index
                remaining.discard(index)
            if self._skips_disposable:
                self._context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            for frame in self._context.decode(packet):
                if frame.pts in index_of_pts:
                    yield index_of_pts.pop(frame.pts), frame
            if not remaining:
                break
        # All that is wanted is in the decoder: emptying it is cheaper than decoding on until it comes out.
        for frame in self._context.decode(None):
            if frame.pts in index_of_pts:
                yield index_of_pts.pop(frame.pts), frame

    def _numbered_packets(self, key: int) -> Iterator[tuple[int | None, "object"]]:
        """Yield (frame index, packet) from key frame `key` on, in decoding order; the index is None if never shown."""
        window: deque = deque()
        display_times: list[int] = []
        position, packets = self._packets_from(key)
        for packet in packets:
            pts, dts, is_shown = packet.pts, packet.dts, not packet.is_discard
            if pts is None:
                raise _LostPositionError("it has packets without a display time.")
            window.append((pts, is_shown, packet))
            if is_shown:
                insort(display_times, pts)
            # A number is certain once nothing that is still to come can be shown earlier: packets come in order of dts
            # and are never shown before their dts.
            certain_until = dts if dts is not None and dts <= pts else None
            while window and (
                len(window) > _MAX_REORDER or (certain_until is not None and window[0][0] <= certain_until)
            ):
                pts, is_shown, packet = window.popleft()
                yield (position + bisect_left(display_times, pts) if is_shown else None), packet
        for pts, is_shown, packet in window:
            yield (position + bisect_left(display_times, pts) if is_shown else None), packet

    def _packets_from(self, key: int) -> tuple[int, Iterator]:
        """Seek to key frame `key` or one before it; return its position in the index and the packets from it on."""
        index = self._index
        if self._is_at_start and key == 0:
            self._is_at_start = False
            return self._landed(key)
        self._is_at_start = False
        time = index.key_timestamps[key]
        # MP4 takes the time sought as a display time: without the delay it goes one key frame further back than needed.
        self._container.seek(time + index.display_delay, stream=self._stream)
        try:
            return self._landed(key)
        except _LostPositionError:
            if not index.display_delay:
                raise
        self._container.seek(time, stream=self._stream)
        return self._landed(key)

    def _landed(self, key: int) -> tuple[int, Iterator]:
        """Return the position of the key frame now read, which may not be past `key`, and the packets from it on."""
        index = self._index
        packets = (packet for packet in self._container.demux(self._stream) if packet.size)
        first = next(packets, None)
        time = getattr(first, index.timestamp_name, None)
        landed = bisect_left(index.key_timestamps, time) if time is not None else len(index.key_timestamps)
        if landed > key or index.key_timestamps[landed] != time:
            raise _LostPositionError("seeking led to an unknown place.")
        return index.key_positions[landed], chain([first], packets)
