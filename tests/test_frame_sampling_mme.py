"""Which frames make a clip; `sample_frames` of the processor is tested with the processor."""

import numpy as np
import pytest
from transformers.video_utils import VideoMetadata

from mme_hf.frame_sampling_mme import fitting_stride, middle_clip, segment_frames


@pytest.mark.parametrize(
    ("num_available", "expected"),
    [(1, 1), (4, 1), (7, 2), (9, 2), (10, 3), (100, 3)],  # 4 frames span 3 strides and one frame
)
def test_the_stride_shrinks_where_the_video_is_short(num_available, expected):
    assert fitting_stride(num_available, 4, 3) == expected


@pytest.mark.parametrize(
    ("fps", "num_available", "expected"),
    [
        # 2.5 frames apart, a span of 7.5, begun at (99 - 7.5) // 2 = 45; 47.5 and 52.5 round to the even number.
        (12, 100, [45, 48, 50, 52]),
        (10, 100, [45, 48, 51, 54]),
        (10, 7, [0, 2, 4, 6]),  # three apart they would span ten frames
        (10, 6, [0, 2, 3, 5]),  # 5 / 3 apart
        (10, 3, [0, 1, 2, 2]),
    ],
)
def test_frames_of_a_rate_lie_that_far_apart_where_the_video_is_long_enough(fps, num_available, expected):
    metadata = VideoMetadata(total_num_frames=num_available, fps=30)
    assert middle_clip(metadata, 4, 9, fps, "dense").tolist() == expected


def test_one_frame_has_any_stride():
    assert fitting_stride(1, 1, 3) == 3


def test_a_rate_is_met_as_nearly_as_frames_allow_or_refused():
    video = VideoMetadata(total_num_frames=300, fps=25.0)
    for fps, stride in ((25, 1), (30, 1), (12.5, 2)):
        assert np.diff(middle_clip(video, 4, 5, fps, "dense")).tolist() == [stride] * 3
    for fps in (50, 1000.0):
        with pytest.raises(ValueError, match=rf"fps \({fps:g}\) cannot be met: the video has 25 frames per second"):
            middle_clip(video, 4, 5, fps, "dense")


def test_each_part_gives_the_frame_at_its_place():
    # Parts of 2.5 frames begin at 0, 2.5, 5 and 7.5.
    assert segment_frames(10, 4, [0.0, 0.0, 0.0, 0.0]) == [0, 2, 5, 7]
    assert segment_frames(10, 4, [0.5, 0.0, 0.99, 0.9]) == [1, 2, 7, 9]
    assert segment_frames(2, 4, [0.5] * 4) == [0, 0, 1, 1]
    with pytest.raises(ValueError, match="places has 3 numbers for 4 segments"):
        segment_frames(10, 4, [0.5] * 3)
