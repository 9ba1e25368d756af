import pickle
from dataclasses import make_dataclass
from typing import Any, Literal, Optional

import numpy as np
import pytest
import torch

from mme_hf.motion import MotionParameters, build_tracker
from mme_hf.motion.dis import DISFlow
from mme_hf.motion.flow_tracker import FlowTracker, median_filter_3x3, tracker_builder
from mme_hf.trajectories_mme import grid_points


class RecordedFlow:
    """Moves everything by the number of the frame, and remembers which pairs were asked for."""

    name = "recorded"

    def __init__(self, scale=1.0):
        self.pairs, self.scale = [], scale

    def __call__(self, frames, pairs):
        self.pairs += pairs
        height, width = frames.shape[-2:]
        flow = torch.zeros(*frames.shape[:-4], len(pairs), 2, height, width)
        for index, (first, _) in enumerate(pairs):
            flow[..., index, 0, :, :] = first * self.scale
        return flow


FRAMES = torch.zeros(20, 3, 16, 32, dtype=torch.uint8)


def test_only_pairs_that_a_track_needs_are_computed_each_once():
    flow = RecordedFlow(0.01)
    tracks = FlowTracker(flow)(FRAMES, grid_points(16, 32), start_frames=(0, 2, 9), num_steps=3)
    assert flow.pairs == [(0, 1), (1, 2), (2, 3), (3, 4), (4, 5), (9, 10), (10, 11), (11, 12)]
    expected = torch.tensor([[0.0, 1, 2], [2, 3, 4], [9, 10, 11]]) * 0.01
    torch.testing.assert_close(tracks.displacements[:, :, 0, 0], expected, atol=1e-5, rtol=0)


def test_whole_pixel_flow_is_cut_towards_zero():
    for scale, expected in ((0.9, 0.0), (-0.9, 0.0), (1.9, 1.0), (-1.9, -1.0)):
        tracker = FlowTracker(RecordedFlow(scale), flow_precision="whole_pixel")
        tracks = tracker(FRAMES, grid_points(16, 32), start_frames=(1,), num_steps=1)
        assert tracks.displacements[0, 0, 0, 0] == expected


@pytest.mark.parametrize("shape", [(7, 9), (2, 2, 5, 6)])
def test_median_filter_is_the_median_of_nine(shape):
    flow = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    padded = torch.nn.functional.pad(flow.flatten(0, -3), (1, 1, 1, 1), mode="replicate")
    height, width = shape[-2:]
    windows = torch.stack([padded[:, y : y + height, x : x + width] for y in range(3) for x in range(3)])
    assert torch.equal(median_filter_3x3(flow), windows.median(dim=0).values.reshape(flow.shape))


def test_median_filter_removes_a_lone_outlier_from_tracks():
    class Spike(RecordedFlow):
        def __call__(self, frames, pairs):
            flow = super().__call__(frames, pairs)
            flow[..., 3:5, 3] = 50.0
            return flow

    points = grid_points(16, 32)
    assert FlowTracker(Spike(0.0))(FRAMES, points, num_steps=1).displacements.abs().max() > 20
    assert FlowTracker(Spike(0.0), median_filter_size=3)(FRAMES, points, num_steps=1).displacements.abs().max() == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"preset": "slow"}, "preset \\('slow'\\) must be one of"),
        ({"finest_scale": -1}, "finest_scale \\(-1\\) must be at least 0"),
        ({"refinement_levels": [2]}, r"refinement_levels \(\(2,\)\) must be 0 \(full size\) or 1"),
        ({"finest_scale": "1"}, r"finest_scale \('1'\) must be int \| None"),
        ({"patch_stride": 1.5}, r"patch_stride \(1.5\) must be int \| None"),
        ({"refinement_levels": 1}, r"refinement_levels \(1\) must be Sequence"),
        ({"patch_stride": 0}, "patch_stride \\(0\\) must be at least 1"),
        ({"median_filter_size": 5}, "median_filter_size \\(5\\) must be one of"),
        ({"flow_precision": "half"}, "flow_precision \\('half'\\) must be one of"),
    ],
)
def test_wrong_dis_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        build_tracker("dis", **options)


# Text is what a field's type is in a file with `from __future__ import annotations`.
@pytest.mark.parametrize(
    ("annotation", "good", "bad", "expected"),
    [
        (int, 2, "2", "int"),
        ("int", 2, "2", "int"),
        (Optional[int], None, "2", r"int \| None"),  # noqa: UP045
        ("Optional[int]", 2, 1.5, r"int \| None"),
        ("int | None", None, 1.5, r"int \| None"),
        ("list[int] | None", [2], 2, r"list \| None"),
    ],
)
def test_a_flow_of_any_file_takes_options_of_its_fields_types_alone(annotation, good, bad, expected):
    flow = make_dataclass("Flow", [("levels", annotation, 3)], namespace={"name": "own", "__module__": __name__})
    assert tracker_builder(flow)(levels=good).flow.levels == good
    with pytest.raises(ValueError, match=rf"tracker 'own': levels \({bad!r}\) must be {expected}\."):
        tracker_builder(flow)(levels=bad)


@pytest.mark.parametrize("annotation", [Any, Literal["few"] | None, "Literal['few']"])
def test_choices_are_the_flows_own_to_check(annotation):
    flow = make_dataclass("Flow", [("levels", annotation, "few")], namespace={"name": "own", "__module__": __name__})
    assert tracker_builder(flow)(levels="many").flow.levels == "many"


@pytest.mark.parametrize("size", [(16, 16), (16, 64), (24, 17), (33, 47)])
def test_dis_takes_small_and_odd_frames(size):
    frames = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    tracks = build_tracker("dis")(frames, torch.tensor([[8.0, 8.0]]), num_steps=1)
    assert tracks.points_xy.isfinite().all()


@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((16, 128), {}),
        ((16, 400), {}),
        ((31, 400), {"refinement_levels": ()}),
        ((32, 400), {"finest_scale": 3}),
        ((96, 400), {"finest_scale": 9, "refinement_levels": ()}),
    ],
)
def test_dis_takes_low_and_wide_frames(size, options):
    # OpenCV alone picks its levels by the width there: it crashes, or returns nan.
    frames = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    flow = build_tracker("dis", **options).flow(frames, [(0, 1)])
    assert flow.isfinite().all() and flow.abs().max() < 100


def test_dis_refuses_frames_too_small_for_its_patches():
    with pytest.raises(ValueError, match="frames of 8x32 are too small for 'dis': 16 px at least"):
        build_tracker("dis")(torch.zeros(2, 3, 8, 32, dtype=torch.uint8), torch.zeros(1, 2), num_steps=1)


def test_dis_settings_reach_opencv_and_survive_pickling():
    tracker = pickle.loads(pickle.dumps(build_tracker("dis", preset="ultrafast", finest_scale=2, patch_stride=5)))
    import cv2

    engine = tracker.flow._build_engine(cv2, 64)
    assert engine.getFinestScale() == 2 and engine.getPatchStride() == 5
    assert engine.getVariationalRefinementIterations() == 0


def test_a_tracker_made_by_hand_tells_its_options_like_one_that_was_built():
    by_hand = FlowTracker(DISFlow(preset="medium"), visibility="inside_frame")
    assert by_hand.options == {"preset": "medium", "visibility": "inside_frame"}
    assert build_tracker("dis", **by_hand.options) == by_hand
    built = build_tracker("dis", preset="medium", visibility="inside_frame")
    assert MotionParameters.of(by_hand) == MotionParameters.of(built) != MotionParameters.of(build_tracker("dis"))
    assert FlowTracker(DISFlow()).options == FlowTracker(RecordedFlow()).options == {}


def test_dis_is_not_misled_by_a_change_of_exposure():
    y, x = np.mgrid[:96, :112]
    scene = [127 + 50 * np.sin(0.5 * (x - dx)) * np.cos(0.4 * y + 0.1 * (x - dx)) for dx in (0.0, 1.5)]
    for added in (0, 12):
        grey = np.stack([scene[0], scene[1] + added]).round().astype(np.uint8)
        frames = torch.from_numpy(grey)[:, None].expand(-1, 3, -1, -1)
        flow = build_tracker("dis").flow(frames, [(0, 1)])[0, :, 16:-16, 16:-16]
        # Without the correction 12 grey values cost 0.12 px here, and 0.6 px on real frames.
        error = (flow - torch.tensor([1.5, 0.0])[:, None, None]).norm(dim=0)
        assert error.mean() < 0.02


@pytest.mark.parametrize("size", [(64, 80), (67, 85)])
def test_dis_reads_frames_alike_however_they_lie_in_memory(size):
    planes = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8)
    part = torch.zeros(2, 3, size[0] + 4, size[1] + 6, dtype=torch.uint8)[..., 2:-2, 3:-3]
    interleaved = planes.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2)
    expected = build_tracker("dis").flow(planes, [(0, 1)])
    assert torch.equal(build_tracker("dis").flow(interleaved, [(0, 1)]), expected)
    assert torch.equal(build_tracker("dis").flow(part.copy_(planes), [(0, 1)]), expected)
