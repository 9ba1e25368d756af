import io

import numpy as np
import pytest
import torch
from conftest import write_video

from mme_hf import VideoReadError, open_video
from mme_hf.video.stream import stream_frames


def test_frames_of_a_pipe_are_those_of_the_file(tmp_path):
    path = write_video(tmp_path / "a.avi", np.random.default_rng(0).integers(0, 255, (9, 32, 48, 3), dtype=np.uint8))

    class Pipe:
        """A file that cannot be gone back in."""

        def __init__(self, file):
            self.read = file.read

    with open(path, "rb") as file:
        frames = list(stream_frames(Pipe(file), "a pipe"))
    with open_video(path) as reader:
        assert torch.equal(torch.stack([frame.pixels for frame in frames]), reader.frames_at(range(9)))
    assert frames[0].average_fps == 30
    (tmp_path / "b.avi").write_bytes(b"no video")
    with pytest.raises(VideoReadError, match="b.avi"):
        next(stream_frames(str(tmp_path / "b.avi"), "b.avi"))


def test_a_stream_that_breaks_off_ends_there_with_a_warning(tmp_path, caplog):
    noise = np.random.default_rng(0).integers(0, 255, (20, 64, 96, 3), dtype=np.uint8)
    data = io.BytesIO(write_video(tmp_path / "a.avi", noise).read_bytes())

    class Broken:
        """A file whose disk fails at three quarters of it."""

        def read(self, size):
            if data.tell() > 0.75 * len(data.getbuffer()):
                raise OSError("the disk failed")
            return data.read(min(size, 4096))

    with caplog.at_level("WARNING"):
        num_frames = len(list(stream_frames(Broken(), "a disk")))
    assert 0 < num_frames < 20 and "a disk breaks off: the disk failed" in caplog.text


def test_a_pipe_that_cannot_be_read_is_told_what_mp4_files_need():
    with pytest.raises(VideoReadError, match="piped mp4 must have its index at its beginning"):
        next(stream_frames(io.BytesIO(b"no video"), "a pipe"))


def test_a_stream_whose_frames_change_size_is_a_read_error_that_names_the_frame(tmp_path):
    pipe = io.BytesIO()
    for height, width in ((32, 32), (48, 64)):
        frames = np.random.default_rng(0).integers(0, 255, (12, height, width, 3), dtype=np.uint8)
        pipe.write(write_video(tmp_path / "part.ts", frames).read_bytes())
    pipe.seek(0)
    with pytest.raises(VideoReadError, match="a pipe: its frames change size from 32x32 to 64x48 by frame 12"):
        list(stream_frames(pipe, "a pipe"))
