import pytest
import torch

from mme_hf.data import sliding_windows
from mme_hf.data.sliding_windows import SlidingWindows
from mme_hf.video.stream import StreamedFrame


class CountedFrames:
    """A video whose frame i has the value i, and which tells how many frames were asked for at once."""

    average_fps = 10.0

    def __init__(self, num_frames):
        self.num_frames = num_frames
        self.largest_read = 0

    def frames_at(self, indices):
        assert all(0 <= index < self.num_frames for index in indices)
        self.largest_read = max(self.largest_read, len(indices))
        return torch.tensor(indices, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 2, 2)


def streamed(num_frames):
    return (StreamedFrame(torch.full((3, 2, 2), index, dtype=torch.uint8), 10.0) for index in range(num_frames))


def clips(windows):
    return [
        (round(clip.start_seconds * 10), round(clip.end_seconds * 10), clip.frames[:, 0, 0, 0].tolist())
        for clip in windows
    ]


@pytest.mark.parametrize(
    ("options", "num_frames", "expected"),
    [
        # A clip of 3 frames 2 apart spans 6; the last window ends with the video. 5 frames lie in the middle of 6.
        ({}, 15, [(0, 6, [0, 2, 4]), (6, 12, [6, 8, 10]), (9, 15, [9, 11, 13])]),
        ({"step": 0.5}, 12, [(0, 6, [0, 2, 4]), (3, 9, [3, 5, 7]), (6, 12, [6, 8, 10])]),
        ({"seconds": 0.9}, 9, [(0, 9, [2, 4, 6])]),
        # Thirds of 9 frames; their middles.
        ({"seconds": 0.9, "frame_sampling": "segments"}, 18, [(0, 9, [1, 4, 7]), (9, 18, [10, 13, 16])]),
        ({"frame_sampling": "segments"}, 18, [(0, 18, [3, 9, 15])]),
        # Too short: a smaller stride, then the last frame again.
        ({}, 3, [(0, 3, [0, 1, 2])]),
        ({}, 2, [(0, 2, [0, 1, 1])]),
    ],
)
def test_windows_cover_a_video(options, num_frames, expected):
    assert clips(SlidingWindows(3, 2, **options).of_video(CountedFrames(num_frames))) == expected


@pytest.mark.parametrize(
    ("options", "num_frames", "expected"),
    [
        ({}, 12, [(0, 6, [0, 2, 4]), (6, 12, [6, 8, 10])]),
        ({"step": 0.5}, 9, [(0, 6, [0, 2, 4]), (3, 9, [3, 5, 7]), (6, 9, [6, 8, 8])]),
        # Two frames of six do not make a window, three do; what is missing is the last frame.
        ({}, 8, [(0, 6, [0, 2, 4])]),
        ({}, 9, [(0, 6, [0, 2, 4]), (6, 9, [6, 8, 8])]),
        ({}, 1, [(0, 1, [0, 0, 0])]),
        # Each that is half full is told, not the first of them alone.
        ({"step": 1 / 3}, 8, [(0, 6, [0, 2, 4]), (2, 8, [2, 4, 6]), (4, 8, [4, 6, 7])]),
    ],
)
def test_windows_of_a_stream_come_as_it_goes(options, num_frames, expected):
    assert clips(SlidingWindows(3, 2, **options).of_stream(streamed(num_frames))) == expected


def test_a_window_of_a_stream_is_there_before_the_next_frame_is():
    seen = []

    def frames():
        for index, frame in enumerate(streamed(100)):
            seen.append(index)
            yield frame

    next(SlidingWindows(3, 2).of_stream(frames()))
    assert seen[-1] == 5


def test_a_long_video_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(sliding_windows, "MAX_BYTES_AT_ONCE", 5 * 3 * 12)  # of five clips of three frames of 12 bytes
    reader = CountedFrames(240)
    assert len(list(SlidingWindows(3, 2).of_video(reader))) == 40
    assert reader.largest_read == 15


def test_a_window_shorter_than_a_clip_is_an_error_unless_the_video_is_as_short():
    windows = SlidingWindows(3, 2, seconds=0.4)
    fault = r"window_seconds \(0.4\) is 4 of a video's frames at 10 fps, fewer than the 5 of a clip.* at least 0.5, or"
    with pytest.raises(ValueError, match=fault):
        list(windows.of_video(CountedFrames(9)))
    with pytest.raises(ValueError, match=fault):
        list(windows.of_stream(streamed(9)))
    assert clips(windows.of_video(CountedFrames(4))) == [(0, 4, [0, 1, 2])]
    assert clips(SlidingWindows(3, 2, "segments", seconds=0.4).of_video(CountedFrames(4))) == [(0, 4, [0, 2, 3])]


def test_a_stream_without_end_needs_a_window():
    with pytest.raises(ValueError, match="a stream has no end. Give --window_seconds"):
        next(SlidingWindows(3, 2, "segments").of_stream(streamed(5)))
