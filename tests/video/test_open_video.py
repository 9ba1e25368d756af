"""What users may hand to `open_video`, good and bad."""

import gc
import io
import pickle
import subprocess
import sys
import tracemalloc
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from generated_videos import (
    NUM_FRAMES,
    decoded_in_order,
    picture,
    write_audio,
    write_packed_avi,
    write_rotated,
    write_video,
)

import mme_hf.video
from mme_hf.video import AutoReader, VideoReadError, open_video
from mme_hf.video.decord_reader import DecordReader
from mme_hf.video.pyav_reader import PyAVReader

BACKENDS = ["auto", "pyav", "decord", "torchcodec"]


@pytest.fixture(scope="module")
def mp4(tmp_path_factory):
    return write_video(tmp_path_factory.mktemp("open") / "clip.mp4")


@pytest.fixture(scope="module")
def expected(mp4):
    return decoded_in_order(mp4)


def open_or_skip(source, backend):
    try:
        return open_video(source, backend)
    except ImportError as error:
        pytest.skip(str(error))


def refusal(source, backend="auto") -> VideoReadError:
    with pytest.raises(VideoReadError) as error:
        open_or_skip(source, backend)
    return error.value


# Sources


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("form", [str, Path, Path.read_bytes, lambda path: io.BytesIO(path.read_bytes()), open])
def test_every_form_of_source_gives_the_same_frames(mp4, expected, backend, form):
    source = mp4.open("rb") if form is open else form(mp4)
    with open_or_skip(source, backend) as reader:
        assert reader.num_frames == NUM_FRAMES
        assert torch.equal(reader.frames_at([3, 20, 11]), expected[[3, 20, 11]])
    if form is open:
        assert not source.closed
        source.close()


def test_a_file_object_is_read_from_its_beginning_wherever_it_stands(mp4, expected):
    file = io.BytesIO(mp4.read_bytes())
    file.seek(1000)
    with open_video(file) as reader:
        assert torch.equal(reader.frames_at([5]), expected[[5]])


def test_frames_lie_in_memory_as_height_width_rgb(mp4):
    with open_video(mp4) as reader:
        assert reader.frames_at([0, 1]).permute(0, 2, 3, 1).is_contiguous()


def test_importing_the_package_loads_no_backend():
    code = "import sys, mme_hf.video; print([m for m in ('av', 'cv2', 'decord', 'torchcodec') if m in sys.modules])"
    # A stand-in for the parent package, so that this tests `mme_hf.video` alone.
    package = str(Path(mme_hf.video.__file__).parents[1])
    stub = f"import sys, types; p = types.ModuleType('mme_hf'); p.__path__ = [{package!r}]; sys.modules['mme_hf'] = p"
    code = f"{stub}; {code}"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_an_unknown_backend_names_the_choices(mp4):
    with pytest.raises(ValueError, match=r"backend \('opencv'\) must be one of 'auto', 'decord', 'pyav', 'torchcodec'"):
        open_video(mp4, "opencv")


@pytest.mark.parametrize("source", [None, 3, ["a.mp4"]])
def test_a_source_of_another_type_is_a_type_error(source):
    with pytest.raises(TypeError, match="must be a path, bytes, or a seekable binary file object"):
        open_video(source)


# Bad files


@pytest.mark.parametrize("backend", BACKENDS)
class TestBadFiles:
    def test_missing(self, tmp_path, backend):
        error = refusal(tmp_path / "gone.mp4", backend)
        assert error.source == str(tmp_path / "gone.mp4")
        assert error.cause == "there is no such file."

    def test_folder(self, tmp_path, backend):
        assert "it is a folder" in str(refusal(tmp_path, backend))

    def test_empty(self, tmp_path, backend):
        (tmp_path / "empty.mp4").touch()
        assert "it is empty (0 bytes)" in str(refusal(tmp_path / "empty.mp4", backend))
        assert str(refusal(b"", backend)) == "Cannot read video <bytes, 0 bytes>: it is empty (0 bytes)."

    def test_text(self, tmp_path, backend):
        path = tmp_path / "notes.txt"
        path.write_text("no video here\n" * 50)
        assert refusal(path, backend).source == str(path)
        assert refusal(path.read_bytes(), backend).source == "<bytes, 700 bytes>"

    def test_text_called_mp4(self, tmp_path, backend):
        path = tmp_path / "notes.mp4"
        path.write_text("no video here\n" * 50)
        assert refusal(path, backend).cause

    def test_still_image(self, tmp_path, backend):
        path = tmp_path / "still.png"
        av.VideoFrame.from_ndarray(picture(0), format="rgb24").save(str(path))
        assert "it is a still image (PNG), not a video." in str(refusal(path, backend))

    def test_audio_only(self, tmp_path, backend):
        assert refusal(write_audio(tmp_path / "speech.wav"), backend).cause

    def test_mp4_that_ends_before_its_index(self, tmp_path, mp4, backend):
        path = tmp_path / "cut.mp4"
        path.write_bytes(mp4.read_bytes()[:3000])
        assert refusal(path, backend).source == str(path)

    def test_random_bytes(self, backend):
        data = np.random.default_rng(0).integers(0, 256, 5000, dtype=np.uint8).tobytes()
        assert refusal(data, backend).source == "<bytes, 5000 bytes>"


def test_audio_only_is_told_in_words(tmp_path):
    assert "no video stream (it holds: audio)" in str(refusal(write_audio(tmp_path / "speech.wav"), "pyav"))


@pytest.mark.parametrize("max_b_frames", [0, 1])
def test_a_truncated_avi_is_bad_below_nine_tenths_of_its_frames(tmp_path, max_b_frames):
    whole = write_video(tmp_path / "whole.avi", "mpeg4", gop_size=12, max_b_frames=max_b_frames)
    if max_b_frames:
        whole = write_packed_avi(whole, tmp_path / "packed.avi")
    path = tmp_path / "cut.avi"
    path.write_bytes(whole.read_bytes()[: whole.stat().st_size * 6 // 10])
    for backend in ("auto", "pyav"):
        error = refusal(path, backend)
        assert "it is truncated" in error.cause
        assert "of the 40 frames" in error.cause


def test_an_avi_that_lacks_its_last_frames_is_read_without_them(tmp_path):
    whole = write_video(tmp_path / "whole.avi", "mpeg4", gop_size=12)
    with av.open(str(whole)) as container:
        starts = [packet.pos for packet in container.demux(video=0) if packet.size]
    path = tmp_path / "cut.avi"
    path.write_bytes(whole.read_bytes()[: starts[-2]])
    with open_video(path, "pyav") as reader:
        assert reader.num_frames == NUM_FRAMES - 2
        frames = reader.frames_at(range(reader.num_frames))
    assert torch.equal(frames, decoded_in_order(whole)[: NUM_FRAMES - 2])


def test_a_truncated_mp4_with_its_index_in_front_is_bad(tmp_path):
    with av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as container:
        stream = container.add_stream("libx264", rate=30)
        stream.height, stream.width = 64, 96
        for index in range(40):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture(index), format="rgb24")))
        container.mux(stream.encode(None))
    data = (tmp_path / "front.mp4").read_bytes()
    error = refusal(data[: len(data) * 7 // 10], "pyav")
    assert "it is truncated" in error.cause
    assert "of the 40 frames" in error.cause
    assert refusal(data[: len(data) * 7 // 10], "auto").source.startswith("<bytes")


def test_a_file_damaged_in_the_middle_fails_only_where_it_is_read(tmp_path):
    path = write_video(tmp_path / "damaged.mp4", "mpeg4", gop_size=10)
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    data = bytearray(path.read_bytes())
    for position, size in packets[20:]:
        data[position : position + size] = bytes(size)
    path.write_bytes(data)
    with open_video(path, "pyav") as reader:
        assert reader.frames_at([3, 8]).shape[0] == 2
        with pytest.raises(VideoReadError) as error:
            reader.frames_at([3, 30])
        assert reader.frames_at([3, 8]).shape[0] == 2
    assert error.value.source == str(path)


@pytest.mark.parametrize("backend", ["auto", "pyav"])
@pytest.mark.parametrize("codec", ["mpeg4", "libx264", "mpeg2video"])
def test_frames_that_change_size_are_a_read_error_with_both_sizes(tmp_path, backend, codec):
    parts = [write_video(tmp_path / f"{size}.ts", codec, num_frames=12, size=size) for size in ((32, 32), (48, 64))]
    joined = tmp_path / "joined.ts"
    joined.write_bytes(b"".join(part.read_bytes() for part in parts))
    with open_video(joined, backend) as reader:
        assert reader.frames_at([0, 5]).shape == (2, 3, 32, 32)
        for indices in (range(reader.num_frames), [0, 16], [16]):  # the last: of another size than those read before
            with pytest.raises(VideoReadError, match=r"its frames change size from 32x32 to 64x48 by frame 1\d\."):
                reader.frames_at(indices)
        assert reader.frames_at([0]).shape == (1, 3, 32, 32)


def test_the_error_survives_pickling():
    error = VideoReadError("a.mp4", "it is empty (0 bytes).")
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is VideoReadError
    assert (copy.source, copy.cause, str(copy)) == (error.source, error.cause, str(error))


class _UnreadableVideos(torch.utils.data.Dataset):
    def __len__(self):
        return 1

    def __getitem__(self, index):
        return open_video("gone.mp4")


def test_the_error_leaves_a_data_loading_worker():
    with pytest.raises(VideoReadError, match=r"gone\.mp4"):
        # Forked workers may hang here: the backends that the tests above loaded leave threads in this process.
        next(iter(torch.utils.data.DataLoader(_UnreadableVideos(), num_workers=1, multiprocessing_context="spawn")))


# Unusual videos


@pytest.mark.parametrize("backend", BACKENDS)
def test_one_frame_only(tmp_path, backend):
    path = write_video(tmp_path / "one.mp4", num_frames=1)
    with open_or_skip(path, backend) as reader:
        assert reader.num_frames == 1
        assert torch.equal(reader.frames_at([0, 0]), decoded_in_order(path)[[0, 0]])


@pytest.mark.parametrize("backend", BACKENDS)
def test_odd_sizes(tmp_path, backend):
    # FFV1 keeps odd sizes; yuv444 needs no chroma rounding.
    path = write_video(tmp_path / "odd.mkv", "ffv1", num_frames=6, size=(143, 175), pix_fmt="yuv444p")
    with open_or_skip(path, backend) as reader:
        frames = reader.frames_at([0, 5])
    assert frames.shape == (2, 3, 143, 175)
    source = torch.from_numpy(np.stack([picture(0, 143, 175), picture(5, 143, 175)])).permute(0, 3, 1, 2)
    assert (frames.int() - source.int()).abs().max() <= 4


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_rotation_tag_gives_upright_frames(tmp_path, mp4, expected, backend):
    path = write_rotated(mp4, tmp_path / "portrait.mp4")
    with open_or_skip(path, backend) as reader:
        frames = reader.frames_at([0, 17])
    # A quarter turn clockwise: the left column from the bottom up becomes the top row.
    assert torch.equal(frames, expected[[0, 17]].flip(-2).transpose(-1, -2))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("pix_fmt", ["gray", "yuv444p", "yuv420p10le"])
def test_grey_444_and_ten_bit_videos_give_rgb(tmp_path, backend, pix_fmt):
    path = write_video(tmp_path / "pixels.mp4", num_frames=6, pix_fmt=pix_fmt, options={"crf": "5"})
    with open_or_skip(path, backend) as reader:
        frames = reader.frames_at([4]).float()[0]
    assert frames.shape == (3, 64, 96)
    source = torch.from_numpy(picture(4)).permute(2, 0, 1).float()
    if pix_fmt == "gray":
        source = (torch.tensor([0.299, 0.587, 0.114])[:, None, None] * source).sum(0).expand(3, -1, -1)
    assert (frames - source).abs().mean() < 4


def test_average_fps_of_a_variable_rate(tmp_path):
    # Frames last 1, 1, 1, 4 thirtieths in turn: 4 frames in 7 / 30 s.
    times = [7 * (index // 4) + index % 4 for index in range(40)]
    path = write_video(tmp_path / "uneven.mp4", times=times)
    with open_video(path, "pyav") as reader:
        assert reader.average_fps == pytest.approx(40 / (67 / 30), rel=0.02)


# The change from one backend to the next


@pytest.fixture
def broken_decord(monkeypatch):
    """A decord that opens every file and fails on reads other than the first frames in order, as on SSv2's webm."""
    pytest.importorskip("decord")
    read = DecordReader.frames_at

    def frames_at(self, indices):
        if list(indices) != list(range(len(indices))):
            raise VideoReadError(self._name, "decord cannot read it (broken).")
        return read(self, indices)

    monkeypatch.setattr(DecordReader, "frames_at", frames_at)


@pytest.mark.parametrize("form", [str, Path.read_bytes, lambda path: io.BytesIO(path.read_bytes())])
def test_auto_changes_to_pyav_on_a_failed_read_and_gives_the_same_frames(mp4, expected, broken_decord, form):
    with AutoReader(form(mp4), backends=("decord", "pyav")) as reader:
        assert torch.equal(reader.frames_at([0, 1, 2]), expected[:3])
        assert reader.backend == "decord"
        assert torch.equal(reader.frames_at([30, 2, 17]), expected[[30, 2, 17]])
        assert reader.backend == "pyav"
        assert reader.num_frames == NUM_FRAMES
        assert torch.equal(reader.frames_at([0, 1, 2]), expected[:3])


def test_vp9_webm_with_strided_backward_and_random_reads(tmp_path):
    path = write_video(tmp_path / "clip.webm", "libvpx-vp9", options={"deadline": "realtime", "cpu-used": "8"})
    expected = decoded_in_order(path)
    with open_video(path) as reader:
        for indices in (range(2, 40, 4), range(39, 0, -5), [17, 3, 33, 3]):
            assert (reader.frames_at(indices).int() - expected[list(indices)].int()).abs().max() <= 2


def test_auto_does_without_decord_where_it_is_missing(mp4, expected, monkeypatch):
    monkeypatch.setitem(sys.modules, "decord", None)
    with AutoReader(mp4, backends=("decord", "pyav")) as reader:
        assert reader.backend == "pyav"
        assert torch.equal(reader.frames_at([7]), expected[[7]])
    with pytest.raises(ImportError):
        open_video(mp4, "decord")


def test_an_index_error_is_no_reason_to_change(mp4):
    pytest.importorskip("decord")
    with AutoReader(mp4, backends=("decord", "pyav")) as reader:
        with pytest.raises(IndexError):
            reader.frames_at([NUM_FRAMES])
        assert reader.backend == "decord"


def test_torchcodec_that_cannot_load_is_a_clear_import_error(mp4, monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcodec.decoders", None)
    with pytest.raises(ImportError, match="backend 'torchcodec' cannot be loaded"):
        open_video(mp4, "torchcodec")


# Work done


def test_only_wanted_frames_are_converted_and_decoding_begins_at_the_key_frame_before(mp4, monkeypatch):
    fed = []
    numbered = PyAVReader._numbered_packets
    monkeypatch.setattr(
        PyAVReader, "_numbered_packets", lambda self, key: (fed.append(item[0]) or item for item in numbered(self, key))
    )
    converted = []
    convert = PyAVReader._convert
    monkeypatch.setattr(PyAVReader, "_convert", lambda self, frame: converted.append(frame.pts) or convert(self, frame))
    with open_video(mp4, "pyav") as reader:
        reader.frames_at([26, 28])
    # Key frames lie at 0, 12, 24, 36: nothing before 24 and, beyond reordering, nothing after 28 is decoded.
    assert len(converted) == 2
    assert min(fed) == 24
    assert max(fed) < 36


def test_memory_does_not_grow_with_the_length_of_the_video(tmp_path):
    short, long = (
        write_video(tmp_path / f"{count}.mp4", num_frames=count, options={"x264-params": "keyint=500:bframes=2"})
        for count in (40, 400)
    )

    def peak_bytes(path, index):
        with open_video(path, "pyav") as reader:
            tracemalloc.start()
            reader.frames_at([index])
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        return peak

    # One frame is 18 kB; 360 more of them would be 6.6 MB.
    assert peak_bytes(long, 399) < peak_bytes(short, 39) + 100_000


def test_frames_that_are_not_wanted_are_let_go(tmp_path, monkeypatch):
    # The pixels are FFmpeg's, which Python's own account of memory leaves out; so the objects that hold them count.
    path = write_video(tmp_path / "clip.mp4", num_frames=80, options={"x264-params": "keyint=500:bframes=2"})
    held, convert = [], PyAVReader._convert

    def counting(self, frame):
        held.append(sum(type(each) is av.VideoFrame for each in gc.get_objects()))
        return convert(self, frame)

    monkeypatch.setattr(PyAVReader, "_convert", counting)
    with open_video(path, "pyav") as reader:
        reader.frames_at([20, 50, 79])
    assert len(held) == 3 and max(held) < 10


def test_closing_twice_is_harmless_and_reading_after_it_is_an_error(mp4):
    reader = open_video(mp4, "pyav")
    reader.close()
    reader.close()
    with pytest.raises(ValueError, match="closed"):
        reader.frames_at([0])
