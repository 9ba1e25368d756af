import subprocess
import sys

import numpy as np
import pytest
import torch

from mme_hf.point_tracking_mme import track_points
from mme_hf.trajectories_mme import ClipGeometry, Trajectories, build_tracker, grid_points, is_inside


def constant_flow(dx, dy, num_frames=3, height=16, width=24):
    return torch.tensor([dx, dy]).view(1, 2, 1, 1).expand(num_frames, 2, height, width)


def affine_flow(num_frames, height, width):
    """Analytic motion, linear in x and y, so bilinear reads of it are exact; returns flow and a point-wise function."""

    def motion(xy):
        x, y = xy[..., 0], xy[..., 1]
        return torch.stack([0.4 + 0.02 * x - 0.01 * y, -0.3 + 0.015 * y], dim=-1)

    y, x = torch.meshgrid(torch.arange(height).float(), torch.arange(width).float(), indexing="ij")
    return motion(torch.stack([x, y], -1)).permute(2, 0, 1).expand(num_frames, 2, height, width), motion


def track_by_loop(flow, points, num_steps, start):
    """Point by point, written from the definition: bilinear reads, position += flow."""
    flow, tracks = flow.numpy().astype(np.float64), np.zeros((num_steps + 1, len(points), 2))
    for p, (x, y) in enumerate(points.numpy().astype(np.float64)):
        tracks[0, p] = x, y
        for step in range(num_steps):
            w = flow[start + step]
            cx, cy = np.clip(x, 0, w.shape[2] - 1), np.clip(y, 0, w.shape[1] - 1)
            x0, y0 = min(int(cx), w.shape[2] - 2), min(int(cy), w.shape[1] - 2)
            a, b = cx - x0, cy - y0
            corners = (1 - a) * (1 - b) * w[:, y0, x0] + a * (1 - b) * w[:, y0, x0 + 1]
            corners = corners + (1 - a) * b * w[:, y0 + 1, x0] + a * b * w[:, y0 + 1, x0 + 1]
            x, y = x + corners[0], y + corners[1]
            tracks[step + 1, p] = x, y
    return tracks


def test_grid_points_are_cell_centers_row_by_row():
    points = grid_points(16, 24)
    assert points.tolist() == [[3.5, 3.5], [11.5, 3.5], [19.5, 3.5], [3.5, 11.5], [11.5, 11.5], [19.5, 11.5]]
    assert grid_points(16, 16, layout="reference").tolist() == [[4, 4], [12, 4], [4, 12], [12, 12]]


def test_flip_maps_cell_centers_onto_the_grid_but_not_the_reference_layout():
    for layout, maps_to_itself in (("cell_center", True), ("reference", False)):
        points = grid_points(16, 24, layout=layout)
        tracks = Trajectories(points.expand(1, 1, 6, 2), torch.ones(1, 1, 6, dtype=torch.bool), (16, 24)).flip()
        same = set(map(tuple, tracks.points_xy.view(6, 2).tolist())) == set(map(tuple, points.tolist()))
        assert same is maps_to_itself


def test_sub_pixel_tracks_equal_a_loop_over_points():
    generator = torch.Generator().manual_seed(0)
    flow = torch.randn(6, 2, 16, 24, generator=generator) * 2
    points = grid_points(16, 24)
    tracks = track_points(flow, points, num_steps=3, start_frames=(0, 2))
    assert tracks.points_xy.shape == (2, 4, 6, 2)
    for index, start in enumerate((0, 2)):
        expected = track_by_loop(flow, points, 3, start)
        np.testing.assert_allclose(tracks.points_xy[index].numpy(), expected, atol=1e-4)


def test_displacements_are_pixels_per_raw_frame():
    tracks = track_points(constant_flow(0.25, -0.5), grid_points(16, 24), num_steps=3)
    assert tracks.num_steps == 3
    torch.testing.assert_close(tracks.displacements, torch.tensor([0.25, -0.5]).expand(1, 3, 6, 2))


def test_batched_tracks_equal_single_ones():
    flow = torch.randn(2, 5, 4, 2, 16, 24)
    both = track_points(flow, grid_points(16, 24), num_steps=2, start_frames=(0, 1))
    assert both.points_xy.shape == (2, 5, 2, 3, 6, 2)
    one = track_points(flow[1, 3], grid_points(16, 24), num_steps=2, start_frames=(0, 1))
    assert torch.equal(both.points_xy[1, 3], one.points_xy) and torch.equal(both.is_visible[1, 3], one.is_visible)


@pytest.mark.parametrize(
    ("step", "leaves", "stays"),
    [
        ((10.0, 0.0), 2, 0),  # from (19.5, 3.5), of 24 columns
        ((-10.0, 0.0), 0, 2),  # from (3.5, 3.5)
        ((0.0, 10.0), 3, 0),  # from (3.5, 11.5), of 16 rows
        ((0.0, -10.0), 0, 3),
    ],
    ids=["right", "left", "down", "up"],
)
def test_points_that_leave_stay_invisible_and_unclamped(step, leaves, stays):
    there_and_back = [constant_flow(*step, 1), constant_flow(*(-length for length in step), 1)]
    points = grid_points(16, 24)
    tracks = track_points(torch.cat(there_and_back), points, num_steps=2)
    expected = torch.stack([points[leaves], points[leaves] + torch.tensor(step), points[leaves]])
    assert torch.equal(tracks.points_xy[0, :, leaves], expected)
    assert tracks.is_visible[0, :, leaves].tolist() == [True, False, False]
    assert tracks.is_visible[0, :, stays].all()


@pytest.mark.parametrize("axis", [0, 1], ids=["x", "y"])
def test_a_frame_ends_at_the_centres_of_its_first_and_last_pixels(axis):
    # A frame of 16 x 24: the last centres are at x = 23 and y = 15.
    last = (23.0, 15.0)[axis]
    points = torch.full((6, 2), 5.0)
    points[:, axis] = torch.tensor([0.0, -0.01, last, last + 0.01, last + 0.99, last + 1])
    assert is_inside(points, (16, 24)).tolist() == [True, False, True, False, False, False]


def test_the_nearest_pixel_is_read_and_not_the_one_before():
    # Every pixel's flow is its own place; (3.6, 2.4) lies nearest to (4, 2), and (1.2, 5.7) to (1, 6).
    y, x = torch.meshgrid(torch.arange(8.0), torch.arange(8.0), indexing="ij")
    points = torch.tensor([[3.6, 2.4], [1.2, 5.7]])
    tracks = track_points(torch.stack([x, y])[None], points, num_steps=1, interpolation="nearest")
    torch.testing.assert_close(tracks.displacements[0, 0], torch.tensor([[4.0, 2.0], [1.0, 6.0]]))


def test_clamped_border_reads_flow_where_the_published_code_does():
    # The point leaves at x = 29.5, is put back to 23 and reads -3 there; positions stay sums of the flow read.
    flow = torch.zeros(2, 2, 16, 24)
    flow[0, 0], flow[1, 0, :, 23] = 10.0, -3.0
    tracks = track_points(flow, grid_points(16, 24), num_steps=2, border="clamp", interpolation="nearest")
    assert tracks.displacements[0, :, 2, 0].tolist() == [10.0, -3.0]


def test_crop_resize_and_flip_move_points_as_pixels():
    points = torch.tensor([[2.0, 3.0], [9.0, 1.0]]).view(1, 1, 2, 2)
    tracks = Trajectories(points, torch.ones(1, 1, 2, dtype=torch.bool), (8, 12))
    cropped = tracks.crop(left=1, top=2, width=6, height=4)
    assert cropped.points_xy.view(2, 2).tolist() == [[1, 1], [8, -1]]
    assert cropped.is_visible.flatten().tolist() == [True, False] and cropped.frame_size == (4, 6)
    resized = cropped.resize(8, 18)  # x times 3, y times 2
    assert resized.points_xy.view(2, 2)[0].tolist() == [4.0, 2.5]
    assert resized.flip().points_xy.view(2, 2)[0].tolist() == [13.0, 2.5]
    assert not resized.flip().resize(80, 80).is_visible[..., 1].any()


def test_a_point_that_leaves_a_crop_stays_lost_when_it_comes_back():
    points = torch.tensor([5.0, 20.0, 6.0]).view(1, 3, 1, 1).expand(1, 3, 1, 2)
    tracks = Trajectories(points, torch.ones(1, 3, 1, dtype=torch.bool), (32, 32))
    assert tracks.crop(left=0, top=0, width=10, height=10).is_visible.flatten().tolist() == [True, False, False]


@pytest.mark.parametrize("is_flipped", [False, True])
def test_track_then_augment_equals_augment_then_track(is_flipped):
    flow, motion = affine_flow(3, 48, 64)
    geometry = ClipGeometry(left=8, top=4, width=40, height=32, out_height=48, out_width=40, is_flipped=is_flipped)
    source_xy = torch.rand(50, 2, generator=torch.Generator().manual_seed(0)) * torch.tensor([30.0, 22.0]) + 12
    tracked = geometry.apply_to_trajectories(track_points(flow, source_xy, num_steps=3))

    # The same motion written in the coordinates of the augmented frame: x scales by 1, y by 1.5, flip negates x.
    out_x, out_y = torch.meshgrid(torch.arange(40.0), torch.arange(48.0), indexing="xy")
    x = (39 - out_x if is_flipped else out_x) + 8
    w = motion(torch.stack([x, (out_y + 0.5) / 1.5 - 0.5 + 4], -1)) * torch.tensor([-1.0 if is_flipped else 1.0, 1.5])
    augmented = track_points(w.permute(2, 0, 1).expand(3, 2, 48, 40), tracked.points_xy[0, 0], num_steps=3)
    both = tracked.is_visible & augmented.is_visible
    assert both.float().mean() > 0.8
    torch.testing.assert_close(tracked.points_xy[both], augmented.points_xy[both], atol=1e-3, rtol=0)


def test_geometry_keeps_a_bright_spot_under_its_point():
    frame = torch.zeros(3, 40, 60)
    frame[:, 20:24, 30:34] = 1.0  # centre at (31.5, 21.5)
    geometry = ClipGeometry(10, 8, 40, 24, out_height=48, out_width=60, is_flipped=True, resized_size=(48, 80))
    pixels = geometry.apply_to_frames(frame)[0]
    points = torch.tensor([31.5, 21.5]).view(1, 1, 1, 2)
    tracks = geometry.apply_to_trajectories(Trajectories(points, torch.ones(1, 1, 1, dtype=torch.bool), (40, 60)))
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(60.0), indexing="ij")
    centre = torch.stack([(pixels * x).sum(), (pixels * y).sum()]) / pixels.sum()
    torch.testing.assert_close(tracks.points_xy.flatten(), centre, atol=1e-3, rtol=0)


def test_points_of_the_outermost_pixels_of_an_enlarged_box_are_inside():
    geometry = ClipGeometry(left=8, top=4, width=10, height=10, out_height=20, out_width=20)
    # The first and the last pixel of the result, a quarter of a source pixel beyond the centres of the box's.
    ends = geometry.source_points(torch.tensor([[0.0, 0.0], [19.0, 19.0], [19.1, 19.0]]))
    torch.testing.assert_close(ends[:2], torch.tensor([[7.75, 3.75], [17.25, 13.25]]))
    tracks = geometry.apply_to_trajectories(Trajectories(ends.view(1, 1, 3, 2), torch.ones(1, 1, 3).bool(), (32, 32)))
    assert tracks.is_visible.flatten().tolist() == [True, True, False]


def test_geometry_is_the_same_for_any_memory_layout_and_batch_shape():
    frames = torch.randint(0, 256, (2, 4, 3, 40, 60), dtype=torch.uint8)
    geometry = ClipGeometry(3, 5, 50, 30, out_height=32, out_width=32)
    planar = geometry.apply_to_frames(frames)
    assert planar.shape == (2, 4, 3, 32, 32) and planar.dtype == torch.uint8
    interleaved = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert torch.equal(planar, geometry.apply_to_frames(interleaved))
    assert torch.equal(planar[1, 2], geometry.apply_to_frames(frames[1, 2]))


def test_hidden_positions_never_come_back():
    tracks = track_points(constant_flow(0.0, 0.0), grid_points(16, 24), num_steps=2)
    hidden = tracks.hide(torch.tensor([False, True, True]).view(1, 3, 1))
    assert hidden.is_visible[0, 0].all() and not hidden.crop(0, 0, 24, 16).resize(9, 9).flip().is_visible[0, 1:].any()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: grid_points(16, 20), r"16x20 does not divide into cells of cell_size_px \(8\)"),
        (lambda: grid_points(16, 16, layout="middle"), "point_layout \\('middle'\\) is unknown"),
        (lambda: track_points(torch.zeros(3, 3, 8, 8), torch.zeros(1, 2), num_steps=1), "flow has shape"),
        (lambda: track_points(constant_flow(0.0, 0.0), torch.zeros(2), num_steps=1), "points_xy has shape"),
        (lambda: track_points(constant_flow(float("nan"), 0.0), torch.zeros(1, 2), num_steps=1), "flow holds values"),
        (
            lambda: track_points(constant_flow(0.0, 0.0), torch.tensor([[0.0, float("inf")]]), num_steps=1),
            "points_xy holds values that are not finite",
        ),
        (
            lambda: track_points(constant_flow(0.0, 0.0).numpy(), torch.zeros(1, 2), num_steps=1),
            "flow is a ndarray; it must be a tensor",
        ),
        (lambda: track_points(constant_flow(0.0, 0.0), torch.zeros(1, 2), num_steps=0), r"num_steps \(0\)"),
        (
            lambda: track_points(constant_flow(0.0, 0.0), torch.zeros(1, 2), num_steps=2, start_frames=(2,)),
            "needs 5 frames; there are 4",
        ),
        (
            lambda: track_points(constant_flow(0.0, 0.0), torch.zeros(1, 2), num_steps=1, interpolation="cubic"),
            "interpolation \\('cubic'\\)",
        ),
        (
            lambda: track_points(constant_flow(0.0, 0.0), torch.zeros(1, 2), num_steps=1, border="wrap"),
            "border \\('wrap'\\)",
        ),
        (lambda: Trajectories(torch.zeros(3, 2), torch.ones(3, dtype=torch.bool), (8, 8)), "points_xy has shape"),
        (lambda: Trajectories(torch.zeros(1, 1, 3, 2), torch.ones(1, 1, 3), (8, 8)), "is_visible has shape"),
        (lambda: ClipGeometry(-1, 0, 4, 4, 8, 8), "must not be negative"),
        (lambda: ClipGeometry(0, 0, 0, 4, 8, 8), "width 0 and height 4 is empty"),
        (lambda: ClipGeometry(0, 0, 4, 4, 8, 0), r"out_height \(8\) and out_width \(0\) must be at least 1"),
        (lambda: ClipGeometry(0, 0, 9, 4, 8, 8).apply_to_frames(torch.zeros(3, 8, 8)), "outside the frame of 8x8"),
        (lambda: ClipGeometry(0, 0, 4, 4, 8, 8, resized_size=(4, 9)), "smaller than the crop"),
        (lambda: build_tracker("lucas"), "tracker \\('lucas'\\) is unknown. Choose one of"),
        (lambda: build_tracker("dis", speed=3), "tracker 'dis' has no option speed"),
    ],
)
def test_wrong_input_names_field_value_and_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


PRODUCTS = """
import sys
import torch
from mme_hf.point_tracking_mme import full_precision

backends = torch.backends
first, second = (torch.randn(64, 64, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
exact = (first.double() @ second.double()).float()
if sys.argv[1] == "older":
    torch.set_float32_matmul_precision("medium")
    settings = lambda: (torch.get_float32_matmul_precision(), backends.cudnn.allow_tf32)
    full = ("highest", False)
else:
    backends.cudnn.conv.fp32_precision = backends.cuda.matmul.fp32_precision = "tf32"
    backends.mkldnn.matmul.fp32_precision = "bf16"
    owners = (backends.cuda.matmul, backends.cudnn.conv, backends.cudnn.rnn, backends.mkldnn.matmul)
    settings = lambda: tuple(owner.fp32_precision for owner in owners)
    full = ("ieee",) * 4
before = settings()
assert before != full
with torch.autocast("cpu", torch.bfloat16), full_precision(torch.device("cpu")):
    assert settings() == full, settings()
    product = first @ second
assert settings() == before, settings()
torch.testing.assert_close(product, exact, atol=1e-4, rtol=0)
"""


@pytest.mark.parametrize("how", ["older", "newer"])
def test_float32_is_multiplied_as_float32(how):
    # In a process of its own: torch does not forget which way it was asked in. Rounded to bfloat16, on CPUs that can,
    # these products are wrong by 0.1.
    if how == "newer" and not hasattr(torch.backends, "fp32_precision"):
        pytest.skip("torch has the newer way from 2.9 on")
    done = subprocess.run([sys.executable, "-c", PRODUCTS, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
