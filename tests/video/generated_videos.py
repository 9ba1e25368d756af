"""Small videos made on the spot with the encoders inside the `av` wheel, for the tests of the readers."""

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import torch

av.logging.set_level(None)

H264_WITH_B_FRAMES = {"x264-params": "keyint=12:bframes=3:b-pyramid=normal:scenecut=0"}
# Sizes without chroma subsampling trouble, long enough for several groups of pictures.
WIDTH, HEIGHT, NUM_FRAMES = 96, 64, 40


def picture(index: int, height: int = HEIGHT, width: int = WIDTH) -> np.ndarray:
    """A smooth picture, different for every index: a moving ramp under a brightness that steps with the index."""
    y, x = np.mgrid[:height, :width]
    ramp = 127 + 90 * np.sin((x + 2 * index) / 17)
    planes = np.stack([ramp, 2 * y % 256 * 0.5 + 60, np.full((height, width), (index * 37) % 200 + 20)], axis=-1)
    return planes.astype(np.uint8)


def write_video(
    path: Path,
    codec: str = "libx264",
    *,
    num_frames: int = NUM_FRAMES,
    size: tuple[int, int] = (HEIGHT, WIDTH),
    pix_fmt: str = "yuv420p",
    options: dict[str, str] | None = None,
    gop_size: int | None = None,
    max_b_frames: int | None = None,
    times: list[int] | None = None,
) -> Path:
    """Encode `picture(0)`, `picture(1)`, ... at 30 fps; `times` gives display times in frames for a variable rate."""
    options = H264_WITH_B_FRAMES if options is None and codec == "libx264" else options
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=30, options=options or {})
        stream.height, stream.width = size
        stream.pix_fmt = pix_fmt
        if gop_size is not None:
            stream.codec_context.gop_size = gop_size
        if max_b_frames is not None:
            stream.codec_context.max_b_frames = max_b_frames
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(index, *size), format="rgb24")
            frame.pts = index if times is None else times[index]
            frame.time_base = Fraction(1, 30)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def remux(source: Path, target: Path, *, shift: int = 0, container_options: dict[str, str] | None = None) -> Path:
    """Copy the packets of `source` into `target`, their times moved by `shift` frames of 1/30 s."""
    with av.open(str(source)) as given, av.open(str(target), "w", container_options=container_options or {}) as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        ticks = int(shift * Fraction(1, 30) / stream.time_base)
        for packet in given.demux(stream):
            if packet.dts is not None:
                packet.pts += ticks
                packet.dts += ticks
                packet.stream = copy
                made.mux(packet)
    return target


def write_packed_avi(plain: Path, target: Path) -> Path:
    """Repack `plain`, MPEG-4 with at most one B-frame in a row, the way DivX and Xvid write it into AVI.

    Each B-frame moves into the packet of the P-frame before it; a picture marked "not coded" takes its place.
    """
    user_data = b"\x00\x00\x01\xb2DivX503b1393p"
    # P, modulo 0, marker, 5 bits of time (30 ticks a second), marker, coded = 0, stuffing.
    not_coded = b"\x00\x00\x01\xb6\x50\x4f"
    with av.open(str(plain)) as given, av.open(str(target), "w") as made:
        stream = given.streams.video[0]
        copy = made.add_stream_from_template(stream)
        packets = [(bytes(packet), packet.is_keyframe) for packet in given.demux(stream) if packet.size]
        packed: list[tuple[bytes, bool]] = []
        for data, is_keyframe in packets:
            picture_start = data.index(b"\x00\x00\x01\xb6")
            is_b_frame = data[picture_start + 4] >> 6 == 2
            if not packed:
                data = data[:picture_start] + user_data + data[picture_start:]
            if is_b_frame:
                packed[-1] = (packed[-1][0] + data, packed[-1][1])
                data, is_keyframe = not_coded, False
            packed.append((data, is_keyframe))
        for number, (data, is_keyframe) in enumerate(packed):
            packet = av.Packet(data)
            packet.pts = packet.dts = number
            packet.time_base = Fraction(1, 30)
            packet.is_keyframe = is_keyframe
            packet.stream = copy
            made.mux(packet)
    return target


def write_rotated(source: Path, target: Path) -> Path:
    """Copy an MP4 with a display matrix that asks players to turn it by a quarter, clockwise."""
    data = bytearray(source.read_bytes())
    # The 3 x 3 matrix begins 40 bytes into a version 0 track header, after the box name.
    matrix = data.index(b"tkhd") + 4 + 40
    clockwise = (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    data[matrix : matrix + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in clockwise)
    target.write_bytes(data)
    return target


def write_audio(path: Path) -> Path:
    """A quarter of a second of silence and no video."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 2000), dtype=np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def has_encoder(name: str) -> bool:
    """Say whether the `av` wheel can encode with `name`."""
    try:
        av.codec.Codec(name, "w")
    except av.error.FFmpegError:
        return False
    except ValueError:
        return False
    return True


def decoded_in_order(path: Path) -> torch.Tensor:
    """All frames, by plain PyAV decoding from the start, which is what defines frame numbers; uint8 (T, 3, H, W)."""
    with av.open(str(path)) as container:
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    return torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2)
