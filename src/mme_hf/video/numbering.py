"""Files whose frames decord or torchcodec number otherwise than decoding them from the start does, without an error.

Found by comparing with sequential decoding: both are off by one or more after a seek in AVI with B-frames and in MPEG
program and transport streams (no display times, or no index); decord 0.6 also where frames shown before a key frame
are stored after it (open GOP), and where an edit list hides frames.
"""

from collections.abc import Callable

from .pyav_index import NOT_VIDEO_FORMATS, needs_counting
from .sources import VideoSource, as_ffmpeg_input, rewind, source_header

_AVI = b"RIFF"
_PROGRAM_STREAM = b"\x00\x00\x01\xba"
# In the first byte of each packet; cameras (.mts, .m2ts) put a time of four bytes before it.
_TRANSPORT_STREAM = b"\x47"
_BYTES_OF_TIME = 4
_SEEKS_ARE_WRONG = "seeking in this kind of file gives other frames than decoding it in order; use backend='pyav'."
_IS_CUT = (
    "it is truncated: it holds fewer frames than its header announces; backend='pyav' reads it if few are missing."
)


def reason_not_to_seek(source: VideoSource) -> str | None:
    """Return why frames of `source` found by time are not the right ones, None if they are; cheap except for AVI."""
    header = source_header(source)
    if header.startswith(_AVI):
        return _reason(source, _reason_in_avi)
    is_of_packets = header.startswith((_PROGRAM_STREAM, _TRANSPORT_STREAM))
    return _SEEKS_ARE_WRONG if is_of_packets or header.startswith(_TRANSPORT_STREAM, _BYTES_OF_TIME) else None


def reason_against_decord(source: VideoSource) -> str | None:
    """Return why decord would give wrong frames of `source`, None if it would not; reads every packet once."""
    return reason_not_to_seek(source) or _reason(source, _reason_in_packets)


def _reason(source: VideoSource, find: Callable) -> str | None:
    import av

    try:
        with av.open(as_ffmpeg_input(source), metadata_errors="replace") as container:
            stream = container.streams.best("video")
            if container.format.name in NOT_VIDEO_FORMATS or stream is None or stream.codec_context is None:
                return "it holds no video."
            return find(container, stream)
    except (av.error.FFmpegError, OSError) as error:
        return f"FFmpeg cannot read it ({error}). It may be damaged, or not a video."
    finally:
        rewind(source)


def _reason_in_avi(container, stream) -> str | None:
    if needs_counting(container, stream):
        return _SEEKS_ARE_WRONG
    return _IS_CUT if len(stream.index_entries) < stream.frames else None


def _reason_in_packets(container, stream) -> str | None:
    key_pts, num_packets = None, 0
    for packet in container.demux(stream):
        if packet.is_discard:
            return "decord ignores the edit list that hides some of its frames; use backend='pyav'."
        num_packets += bool(packet.size)
        if packet.is_keyframe:
            key_pts = packet.pts
        elif key_pts is not None and packet.pts is not None and packet.pts < key_pts:
            return "decord misplaces frames after a seek in it (open GOP); use backend='pyav'."
    return _IS_CUT if num_packets < stream.frames else None
