"""Where the frames of a file are, without decoding it: from the container's index, else from one pass over packets."""

from bisect import bisect_right
from dataclasses import dataclass

from .mpeg4_pictures import count_shown_pictures

# Fewer frames than this share of what the header announces means a damaged file.
MIN_SHARE_OF_HEADER = 0.9

# FFmpeg opens text as terminal art and images as one-frame videos.
NOT_VIDEO_FORMATS = ("tty", "image2")

# Containers whose packets carry no display time: FFmpeg then makes one up, which is wrong where pictures are reordered.
_WITHOUT_DISPLAY_TIMES = ("avi",)

# In those, codecs that reorder only where FFmpeg's `has_b_frames` says so; it is a guess for the others.
_REORDERING_IS_KNOWN = ("mpeg4", "mjpeg", "msmpeg4v1", "msmpeg4v2", "msmpeg4v3", "ffv1", "huffyuv", "rawvideo", "wmv1")

# A picture that is "not coded" (a repeat, or the place of a B-frame packed into the packet before) is at most so long.
_MAX_NOT_CODED_BYTES = 19


@dataclass(frozen=True)
class FrameIndex:
    """What is known of a stream before decoding.

    Attributes:
        num_frames: Frames that decoding gives.
        num_header_frames: Frames that the header announces, 0 if it does not say.
        key_positions: For each key frame, how many shown frames come before it in decoding order, ascending.
        key_timestamps: For each key frame, its dts or pts in the stream's time base; empty if seeking is unsafe, so
            that frames can only be counted from the start.
        timestamp_name: "dts" or "pts", what `key_timestamps` are.
        display_delay: From the first dts to the first frame shown, in the stream's time base; 0 if times are pts.
    """

    num_frames: int
    num_header_frames: int
    key_positions: list[int]
    key_timestamps: list[int]
    timestamp_name: str
    display_delay: int = 0

    @property
    def can_seek(self) -> bool:
        """Say whether frames can be found by key frame and time instead of by counting from the start."""
        return bool(self.key_timestamps)

    def key_before(self, index: int) -> int:
        """Return the last key frame whose decoding starts at or before frame `index`."""
        return max(bisect_right(self.key_positions, index) - 1, 0)


def build_index(container, stream, *, size_bytes: int | None) -> FrameIndex:
    """Index the video `stream` of an open PyAV `container`; may leave the container read to its end.

    Args:
        container: PyAV input container, at its start.
        stream: Its video stream.
        size_bytes: Size of the file, None if unknown; an index that points past it belongs to a truncated file.
    """
    if needs_counting(container, stream):
        return _index_for_counting(container, stream)
    entries = _container_entries(container, stream)
    if entries:
        return _index_from_entries(stream, entries, size_bytes)
    return _index_from_packets(container, stream)


def _container_entries(container, stream) -> list:
    """Return the container's index, one entry per packet in decoding order, or [] where it is absent or partial."""
    format_name = container.format.name
    entries = list(getattr(stream, "index_entries", None) or [])
    # Only these two list every packet; elsewhere, and in AVI cut off before its index, it is what was read so far.
    if format_name == "avi":
        return entries if len(entries) == stream.frames else []
    # Fragmented MP4 announces no frame count; edit lists may drop entries, never more than the header counts.
    is_whole = "mp4" in format_name.split(",") and 0 < len(entries) <= stream.frames
    return entries if is_whole else []


def needs_counting(container, stream) -> bool:
    """Say whether packets do not tell which frame they hold, so that only counting from the start is right."""
    if container.format.name not in _WITHOUT_DISPLAY_TIMES:
        return False
    context = stream.codec_context
    if context.name not in _REORDERING_IS_KNOWN or context.has_b_frames:
        return True
    return context.name == "mpeg4" and any(
        entry.size <= _MAX_NOT_CODED_BYTES for entry in _container_entries(container, stream)
    )


def _index_from_entries(stream, entries: list, size_bytes: int | None) -> FrameIndex:
    positions, timestamps, num_frames, num_missing = [], [], 0, 0
    for entry in entries:
        if size_bytes is not None and entry.pos + entry.size > size_bytes:
            num_missing += not entry.is_discard
            continue
        if entry.is_keyframe:
            positions.append(num_frames)
            timestamps.append(entry.timestamp)
        num_frames += not (entry.is_discard or not entry.size)
    delay = max((stream.start_time or 0) - entries[0].timestamp, 0)
    return _checked(num_frames, num_frames + num_missing, positions, timestamps, "dts", delay)


def _index_from_packets(container, stream) -> FrameIndex:
    """Read every packet once. Frames that come before the first key frame cannot be decoded and do not count."""
    positions, timestamps, num_frames, first_pts = [], [], 0, None
    has_times = True
    for packet in container.demux(stream):
        if not packet.size:
            continue
        has_times = has_times and packet.pts is not None
        if packet.is_keyframe:
            first_pts = packet.pts if first_pts is None else first_pts
            positions.append(num_frames)
            timestamps.append(packet.pts)
        is_decodable = first_pts is not None and not (has_times and packet.pts < first_pts)
        num_frames += is_decodable and not packet.is_discard
    return _checked(num_frames, stream.frames, positions, timestamps if has_times else [], "pts")


def _index_for_counting(container, stream) -> FrameIndex:
    has_all_packets = bool(_container_entries(container, stream))
    packets = (packet for packet in container.demux(stream) if packet.size)
    if stream.codec_context.name == "mpeg4":
        num_frames = count_shown_pictures(packets, stream.codec_context.extradata or b"")
    else:
        num_frames = sum(1 for _ in packets)
    # The header counts packets, and pictures may be fewer in a sound file: it says something of cut files only.
    return _checked(num_frames, num_frames if has_all_packets else stream.frames, [], [], "pts")


def _checked(
    num_frames: int, num_header_frames: int, positions: list, timestamps: list, name: str, delay: int = 0
) -> FrameIndex:
    # Two key frames at one time could not be told apart after a seek.
    if len(set(timestamps)) != len(timestamps):
        positions, timestamps = [], []
    return FrameIndex(num_frames, num_header_frames, positions, timestamps, name, delay)
