"""The batched flow in PyTorch: what it promises beyond the contract of all trackers."""

import math
import os
import pickle

import pytest
import torch

from mme_hf.motion import build_tracker
from mme_hf.motion.torch_flow import TorchFlow
from mme_hf.trajectories_mme import grid_points

needs_cuda = pytest.mark.skipif(
    not torch.cuda.is_available() and not os.environ.get("FAIL_WITHOUT_CUDA"), reason="needs a CUDA device"
)


def moving(dx, dy, size, num_frames=3, num_clips=1):
    """Waves that move by (dx, dy) px a frame: every sub-pixel shift is exact. uint8 (clips, T, 3, H, W)."""
    generator = torch.Generator().manual_seed(0)
    frequency = (torch.rand(num_clips, 60, 2, generator=generator, dtype=torch.float64) - 0.5) * 1.6
    phase = torch.rand(num_clips, 60, generator=generator, dtype=torch.float64) * 2 * math.pi
    y, x = (torch.arange(length, dtype=torch.float64) for length in size)
    clips = []
    for waves, phases in zip(frequency, phase, strict=True):
        frames = [
            sum(
                torch.sin(along * (x - dx * step) + down * (y[:, None] - dy * step) + start)
                for (along, down), start in zip(waves, phases, strict=True)
            )
            for step in range(num_frames)
        ]
        clips.append((127 + 22 * torch.stack(frames)).clamp(0, 255).round())
    return torch.stack(clips)[:, :, None].expand(-1, -1, 3, -1, -1).to(torch.uint8)


@pytest.mark.parametrize("size", [(100, 132), (97, 61), (224, 224), (40, 240)])
def test_odd_sizes_are_followed_to_their_last_column(size):
    flow = TorchFlow()(moving(1.25, -0.5, size), [(0, 1)])
    assert flow.shape == (1, 1, 2, *size) and flow.dtype == torch.float32
    # 4 px off the border, half of a patch is known.
    error = (flow[0, 0] - torch.tensor([1.25, -0.5])[:, None, None]).norm(dim=0)[4:-4, 4:-4]
    assert error.mean() < 0.06 and error.max() < 1.0


@pytest.mark.parametrize("size", [(16, 16), (8, 24), (5, 7)])
def test_small_frames_give_finite_flow(size):
    frames = moving(0.5, 0.25, size)
    flow = TorchFlow()(frames, [(0, 1), (1, 2)])
    assert flow.shape == (1, 2, 2, *size) and flow.isfinite().all() and flow.abs().max() < 8
    assert TorchFlow()(frames, [(1, 1)]).abs().max() < 1e-3


@pytest.mark.parametrize("size", [(5, 7), (33, 70)])
@pytest.mark.parametrize("values", [(0, 0), (255, 255), (0, 255)])
def test_uniform_frames_do_not_move(size, values):
    frames = torch.tensor(values, dtype=torch.uint8)[:, None, None, None].expand(2, 3, *size)
    assert torch.equal(TorchFlow()(frames, [(0, 1)]), torch.zeros(1, 2, *size))


def test_any_number_of_leading_dimensions_is_a_batch():
    clips = moving(1.25, -0.5, (24, 40), num_frames=4, num_clips=6)
    flow = TorchFlow()(clips.unflatten(0, (2, 3)), [(0, 2), (3, 1)])
    assert flow.shape == (2, 3, 2, 2, 24, 40)
    for clip, expected in zip(clips, flow.flatten(0, 1), strict=True):
        torch.testing.assert_close(TorchFlow()(clip, [(0, 2), (3, 1)]), expected, atol=1e-4, rtol=0)


def test_frames_of_16_px_are_tracked():
    points = grid_points(16, 16)
    tracks = build_tracker("torch")(moving(0.5, 0.25, (16, 16))[0], points, num_steps=1)
    assert (tracks.displacements[0, 0] - torch.tensor([0.5, 0.25])).norm(dim=-1).mean() < 0.15


def test_pairs_are_of_the_frames_named():
    frames = moving(1.0, 0.5, (64, 80), num_frames=5)
    flow = TorchFlow()(frames, [(4, 2), (0, 1), (2, 2)])
    inner = flow[0, :, :, 8:-8, 8:-8].mean((-2, -1))
    torch.testing.assert_close(inner, torch.tensor([[-2.0, -1.0], [1.0, 0.5], [0.0, 0.0]]), atol=0.05, rtol=0)


def test_a_brighter_scene_does_not_move():
    frames = (moving(0, 0, (64, 80), num_frames=1).float() * 0.6).round()
    brighter = torch.cat([frames, frames + 40], dim=1).to(torch.uint8)
    assert TorchFlow()(brighter, [(0, 1)]).abs().max() < 0.01


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_changes_no_number(dtype):
    frames = moving(1.3, 0.6, (72, 88))
    expected = TorchFlow()(frames, [(0, 1)])
    with torch.autocast("cpu", dtype):
        flow = TorchFlow()(frames, [(0, 1)])
    assert flow.dtype == torch.float32 and torch.equal(flow, expected)


def test_reduced_matmul_precision_changes_no_number():
    frames = moving(1.3, 0.6, (72, 88))
    expected = TorchFlow()(frames, [(0, 1)])
    precision = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("medium")
    try:
        assert torch.equal(TorchFlow()(frames, [(0, 1)]), expected)
    finally:
        torch.set_float32_matmul_precision(precision)


def test_compiles_as_one_graph():
    frames = moving(1.3, 0.6, (48, 56), num_clips=2)
    flow = TorchFlow()
    compiled = torch.compile(lambda frames: flow(frames, [(0, 1), (1, 2)]), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(frames), flow(frames, [(0, 1), (1, 2)]), atol=1e-4, rtol=0)


def test_the_number_of_operations_does_not_grow_with_points_or_frames():
    class Count(torch.utils._python_dispatch.TorchDispatchMode):
        number = 0

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            self.number += 1
            return function(*args, **(kwargs or {}))

    def operations(frames, pairs):
        with Count() as count:
            TorchFlow(num_levels=3)(frames, pairs)
        return count.number

    small = torch.zeros(1, 2, 3, 64, 64, dtype=torch.uint8)
    large = torch.zeros(3, 6, 3, 128, 128, dtype=torch.uint8)
    assert operations(small, [(0, 1)]) == operations(large, [(index, index + 1) for index in range(5)])


def test_options_are_checked_and_kept():
    with pytest.raises(ValueError, match=r"num_levels \(0\) must be a whole number, at least 1"):
        build_tracker("torch", num_levels=0)
    tracker = build_tracker("torch", num_levels=3, is_compiled=True, visibility="inside_frame")
    again = pickle.loads(pickle.dumps(tracker))
    assert again == tracker and again.flow == TorchFlow(num_levels=3, is_compiled=True)


@pytest.mark.slow
def test_the_compiled_option_gives_the_same_flow():
    device = "cuda" if torch.cuda.is_available() else "cpu"
    frames = moving(1.3, 0.6, (72, 88)).to(device)
    expected = TorchFlow()(frames, [(0, 1)])
    compiled = TorchFlow(is_compiled=True)(frames, [(0, 1)])
    # Rounding may tip a choice between two motions that match alike, at a patch here or there.
    difference = (compiled - expected).abs()
    assert difference.mean() < 1e-3 and difference.median() < 1e-4


@needs_cuda
def test_gpu_and_cpu_agree():
    frames = moving(1.3, 0.6, (120, 160), num_clips=2)
    noise = torch.randint(0, 30, frames.shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    frames = frames // 2 + noise
    flow, expected = TorchFlow()(frames.cuda(), [(0, 1), (1, 2)]).cpu(), TorchFlow()(frames, [(0, 1), (1, 2)])
    difference = (flow - expected).norm(dim=-3)
    assert difference.mean() < 1e-3 and (difference > 0.01).float().mean() < 0.005
    assert torch.equal(flow, TorchFlow()(frames.cuda(), [(0, 1), (1, 2)]).cpu())


@needs_cuda
def test_tracking_never_waits_for_the_gpu():
    frames, points = moving(1.3, 0.6, (64, 80), num_clips=2).cuda(), grid_points(64, 80)
    expected = build_tracker("torch")(frames, points, start_frames=(0, 1), num_steps=1)
    torch.cuda.set_sync_debug_mode("error")
    try:
        tracks = build_tracker("torch")(frames, points, start_frames=(0, 1), num_steps=1)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert torch.equal(tracks.points_xy, expected.points_xy)
