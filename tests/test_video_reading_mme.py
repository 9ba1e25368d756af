"""Reading files without the readers of mme_hf: the same frames, by whichever decoder there is."""

import io
import subprocess
import sys

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video

from mme_hf import open_video
from mme_hf.video_reading_mme import PyAVVideo, TorchCodecVideo, open_plainly, read_frames

INDICES = [3, 0, 29, 29, 14]


CLIPS = ["clip.mp4", "clip.webm", "clip.avi", "clip.ts", "clip.m2ts"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """30 frames in several containers; AVI and MPEG-TS are those that a seek in leads elsewhere."""
    folder = tmp_path_factory.mktemp("reading")
    frames = moving_texture(30, 48, 64, velocity=(2.0, 1.0))
    write_video(folder / "clip.mp4", frames)
    write_video(folder / "clip.webm", frames, codec="libvpx-vp9")
    write_video(folder / "clip.avi", frames, bf="2", g="12")
    write_video(folder / "clip.ts", frames, codec="mpeg2video", bf="2", g="12")
    write_video(folder / "clip.m2ts", frames, bf="2", g="12")
    return folder


@pytest.fixture
def without_torchcodec(monkeypatch):
    for name in ("torchcodec", "torchcodec.decoders"):
        monkeypatch.setitem(sys.modules, name, None)


def has_torchcodec():
    try:
        import torchcodec.decoders  # noqa: F401
    except (ImportError, RuntimeError):
        return False
    return True


@pytest.mark.parametrize("kind", ["path", "bytes", "file"])
@pytest.mark.parametrize("name", CLIPS)
def test_frames_are_those_of_the_package(folder, name, kind):
    path = folder / name
    source = {"path": path, "bytes": path.read_bytes(), "file": io.BytesIO(path.read_bytes())}[kind]
    with open_video(path) as reader:
        expected = reader.frames_at(INDICES).int()
        fps = reader.average_fps
    video = open_plainly(source)
    assert (video.num_frames, round(video.average_fps)) == (30, round(fps))
    frames = video.frames_at(INDICES)
    assert frames.dtype == torch.uint8 and frames.shape == (5, 3, 48, 64)
    # Decoders round colours differently; the frame next door differs by about 20.
    assert (frames.int() - expected).abs().float().mean() < 2
    video.close()


@pytest.mark.parametrize("name", CLIPS)
def test_without_torchcodec_frames_are_exactly_those_of_the_package(folder, name, without_torchcodec):
    with open_video(folder / name) as reader:
        expected = reader.frames_at(INDICES)
    video = open_plainly(folder / name)
    assert type(video) is PyAVVideo
    assert torch.equal(video.frames_at(INDICES), expected)


def test_torchcodec_is_used_where_its_frames_are_right(folder):
    if not has_torchcodec():
        pytest.skip("torchcodec cannot be loaded")
    kinds = {name: type(open_plainly(folder / name)) for name in CLIPS}
    seekable = ("clip.mp4", "clip.webm")
    assert kinds == {name: TorchCodecVideo if name in seekable else PyAVVideo for name in CLIPS}


def test_a_video_lying_on_its_side_is_turned(tmp_path, without_torchcodec):
    import av

    path = tmp_path / "turned.mp4"
    write_video(tmp_path / "plain.mp4", moving_texture(4, 48, 64))
    with av.open(str(tmp_path / "plain.mp4")) as source, av.open(str(path), "w") as container:
        stream = container.add_stream_from_template(source.streams.video[0])
        try:
            stream.set_display_rotation(90)
        except AttributeError:
            pytest.skip("this PyAV cannot write a rotation")
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                container.mux(packet)
    with open_video(path) as reader:
        expected = reader.frames_at([0, 3])
    assert expected.shape == (2, 3, 64, 48)
    assert torch.equal(open_plainly(path).frames_at([0, 3]), expected)


def test_only_what_the_sampler_chooses_is_returned_with_what_is_known(folder, monkeypatch):
    monkeypatch.setattr("mme_hf.video_reading_mme.VIDEO_OPENERS", {})
    frames, video = read_frames(str(folder / "clip.webm"), lambda known: np.array([known.total_num_frames - 1, 2]))
    assert frames.shape == (2, 3, 48, 64)
    assert (video.total_num_frames, video.frames_indices, round(video.fps)) == (30, [29, 2], 30)


@pytest.mark.parametrize("content", [b"", b"no video", b"RIFF and no more", b"\x00\x00\x00\x20ftypisom" + bytes(200)])
@pytest.mark.parametrize("has_torchcodec", [True, False])
def test_what_is_no_video_is_named(tmp_path, content, has_torchcodec, request):
    if not has_torchcodec:
        request.getfixturevalue("without_torchcodec")
    path = tmp_path / "clip.mp4"
    path.write_bytes(content)
    with pytest.raises(RuntimeError, match=r"Cannot read video .*clip\.mp4: .*PyAV: "):
        open_plainly(path)
    with pytest.raises(RuntimeError, match="Cannot read video <bytes>"):
        open_plainly(content)


def test_sound_alone_is_no_video(tmp_path, without_torchcodec):
    import av

    path = tmp_path / "sound.wav"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), format="s16", layout="mono")
        frame.sample_rate = 8000
        container.mux(stream.encode(frame))
    with pytest.raises(RuntimeError, match="there is no video stream in it"):
        open_plainly(path)


def test_a_missing_file_or_decoder_says_so(folder, tmp_path, monkeypatch, without_torchcodec):
    with pytest.raises(FileNotFoundError, match="none.mp4' is not there"):
        open_plainly(tmp_path / "none.mp4")
    with pytest.raises(FileNotFoundError, match="is no file"):
        open_plainly(tmp_path)
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(ImportError, match="Install av or torchcodec"):
        open_plainly(folder / "clip.mp4")
    with pytest.raises(ImportError, match="Install av, or give frames"):  # torchcodec would be no help
        open_plainly(folder / "clip.avi")


_FIRST_FRAMES = """
import logging, sys
import av
from mme_hf.video_reading_mme import PyAVVideo

logging.getLogger("libav").setLevel(logging.CRITICAL)
av.logging.set_level(av.logging.TRACE)  # as others that use PyAV may, less talkative
for _ in range(30):
    PyAVVideo(sys.argv[1]).frames_at([0])
"""


def test_reading_ends_early_though_decoders_have_something_to_log(tmp_path):
    path = write_video(tmp_path / "large.mp4", moving_texture(40, 240, 320), codec="libx264")
    # Threads that decode ahead would wait for Python's lock, and their end be waited for by who holds it, for ever.
    subprocess.run([sys.executable, "-c", _FIRST_FRAMES, path], check=True, timeout=120)
