"""Every reader means the same by frame `i`: the i-th frame of decoding the file from its start, in display order."""

import random
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

sys.path.append(str(Path(__file__).parents[1] / "video"))

from generated_videos import (
    decoded_in_order,
    has_encoder,
    remux,
    write_packed_avi,
    write_video,
)

from mme_hf.video import VideoReadError, open_video

BACKENDS = ["auto", "pyav", "decord", "torchcodec"]
# Backends link different FFmpeg versions, whose decoders and colour conversions may differ in the last bits.
MAX_DIFFERENCE = 3

open_gop = {"x264-params": "keyint=12:bframes=3:open-gop=1:scenecut=0"}
long_gop = {"x264-params": "keyint=500:bframes=3:scenecut=0"}
fast_vpx = {"deadline": "realtime", "cpu-used": "8"}
uneven_times = np.cumsum([1 + 3 * (index % 7 == 0) for index in range(40)]).tolist()

MAKERS = {
    "h264.mp4": write_video,
    "h264_long_gop.mp4": partial(write_video, options=long_gop),
    "h264_open_gop.mp4": partial(write_video, options=open_gop),
    "h264_open_gop.mkv": partial(write_video, options=open_gop),
    "h264_variable_rate.mp4": partial(write_video, times=uneven_times),
    "h264.mkv": write_video,
    "h264.ts": write_video,
    "h264.m2ts": write_video,  # with a time before each packet, as cameras write it
    "h264.avi": write_video,
    "hevc.mp4": partial(write_video, codec="libx265", options={"x265-params": "keyint=12:log-level=none"}),
    "vp9.webm": partial(write_video, codec="libvpx-vp9", options=fast_vpx, gop_size=12),
    "av1.mp4": partial(write_video, codec="libsvtav1", options={"preset": "12"}, gop_size=12),
    "mpeg4.avi": partial(write_video, codec="mpeg4", gop_size=12),
    "mpeg4_b_frames.avi": partial(write_video, codec="mpeg4", gop_size=12, max_b_frames=2),
    "mpeg4_b_frames.mp4": partial(write_video, codec="mpeg4", gop_size=12, max_b_frames=2),
    "mpeg2.mpg": partial(write_video, codec="mpeg2video", gop_size=12, max_b_frames=2),
    "mjpeg.avi": partial(write_video, codec="mjpeg", pix_fmt="yuvj420p"),
}


def make_derived(folder: Path, name: str) -> Path:
    """Files that no encoder writes by itself: made from the packets of another."""
    if name == "mpeg4_packed.avi":
        plain = write_video(folder / "plain.avi", "mpeg4", gop_size=12, max_b_frames=1)
        return write_packed_avi(plain, folder / name)
    plain = write_video(folder / "plain.mp4")
    if name == "h264_fragmented.mp4":
        return remux(plain, folder / name, container_options={"movflags": "frag_keyframe+empty_moov"})
    # An edit list: negative times hide the first frames, positive ones begin late.
    return remux(plain, folder / name, shift={"h264_hidden_start.mp4": -7, "h264_late_start.mp4": 20}[name])


DERIVED = ["mpeg4_packed.avi", "h264_fragmented.mp4", "h264_hidden_start.mp4", "h264_late_start.mp4"]
# Where these give other frames without an error, the readers have to refuse. Elsewhere they have to read.
REFUSED = {
    "decord": {
        "av1.mp4",
        "h264.avi",
        "h264.ts",
        "h264.m2ts",
        "h264_hidden_start.mp4",
        "h264_open_gop.mkv",
        "h264_open_gop.mp4",
        "hevc.mp4",
        "mpeg2.mpg",
        "mpeg4_b_frames.avi",
        "mpeg4_b_frames.mp4",
        "mpeg4_packed.avi",
    },
    "torchcodec": {"h264.avi", "h264.ts", "h264.m2ts", "mpeg2.mpg", "mpeg4_b_frames.avi", "mpeg4_packed.avi"},
}
# And where it fails on some reads, it has to say so.
FAILS_ON_READ = {"torchcodec": {"h264_open_gop.mkv", "h264_open_gop.mp4"}}


@pytest.fixture(scope="module", params=[*MAKERS, *DERIVED])
def video(request, tmp_path_factory):
    """(path, all its frames in order)."""
    folder = tmp_path_factory.mktemp("videos")
    if request.param == "av1.mp4" and not has_encoder("libsvtav1"):
        pytest.skip("this PyAV has no AV1 encoder (libsvtav1)")
    if request.param in MAKERS:
        path = MAKERS[request.param](folder / request.param)
    else:
        path = make_derived(folder, request.param)
    return path, decoded_in_order(path)


def open_or_skip(path, backend):
    try:
        return open_video(path, backend)
    except ImportError as error:
        pytest.skip(str(error))
    except VideoReadError:
        if path.name in REFUSED.get(backend, ()):
            pytest.skip(f"{backend} refuses {path.name}, as it should")
        raise


def assert_same(frames: torch.Tensor, expected: torch.Tensor) -> None:
    assert frames.dtype == torch.uint8
    assert frames.shape == expected.shape
    assert (frames.int() - expected.int()).abs().max() <= MAX_DIFFERENCE


@pytest.mark.parametrize("backend", BACKENDS)
def test_frame_numbers_are_those_of_decoding_in_order(video, backend):
    path, expected = video
    last = len(expected) - 1
    random_indices = random.Random(0).choices(range(last + 1), k=8)
    with open_or_skip(path, backend) as reader:
        assert reader.num_frames == len(expected)
        assert reader.average_fps > 0
        for indices in ([last], list(range(5, last, 3)), list(range(last, 0, -7)), random_indices, [9, 9, 2], [0]):
            try:
                frames = reader.frames_at(indices)
            except VideoReadError:
                assert path.name in FAILS_ON_READ.get(backend, ())
                continue
            assert_same(frames, expected[indices])


@pytest.mark.parametrize("backend", BACKENDS)
def test_all_frames_at_once(video, backend):
    path, expected = video
    with open_or_skip(path, backend) as reader:
        assert_same(reader.frames_at(range(len(expected))), expected)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [-1, 40, 10**9])
def test_an_index_outside_the_video_names_the_range(tmp_path, backend, index):
    with open_or_skip(write_video(tmp_path / "h264.mp4"), backend) as reader, pytest.raises(IndexError) as error:
        reader.frames_at([0, index])
    assert f"({index})" in str(error.value)
    assert "[0, 40)" in str(error.value)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("index", [0.5, 2.0, "1", None])
def test_an_index_that_is_no_whole_number_is_named(tmp_path, backend, index):
    with open_or_skip(write_video(tmp_path / "h264.mp4"), backend) as reader:
        with pytest.raises(TypeError) as error:
            reader.frames_at([0, index])
        assert f"frame index ({index!r})" in str(error.value)
        assert reader.frames_at([np.int64(1), torch.tensor(2)]).shape[0] == 2


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_closed_reader_says_so(tmp_path, backend):
    reader = open_or_skip(write_video(tmp_path / "h264.mp4"), backend)
    reader.close()
    with pytest.raises(ValueError, match=r"the reader of .*h264.mp4 is closed\. Open the video again"):
        reader.frames_at([0])


@pytest.mark.parametrize("backend", BACKENDS)
def test_no_indices_give_no_frames(tmp_path, backend):
    with open_or_skip(write_video(tmp_path / "h264.mp4"), backend) as reader:
        assert reader.frames_at([]).shape == (0, 3, 64, 96)


def test_repacked_frames_are_those_of_the_plain_file(tmp_path):
    plain = write_video(tmp_path / "plain.avi", "mpeg4", gop_size=12, max_b_frames=1)
    packed = write_packed_avi(plain, tmp_path / "packed.avi")
    expected = decoded_in_order(plain)
    with open_video(packed) as reader:
        # FFmpeg drops what it still holds at the end of a packed stream; all frames before are those of the plain file.
        assert reader.num_frames in (len(expected) - 1, len(expected))
        assert torch.equal(reader.frames_at(range(reader.num_frames)), expected[: reader.num_frames])
