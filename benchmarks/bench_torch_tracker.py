"""Time tracker `torch` on the device found, beside a training step on a GPU; write results/torch_tracker.md.

The clips are those of pre-training by default: 8 tubelets, 4 steps from each, so 32 pairs of frames of 224 x 224 px.
Time of the flow alone, and of the tracker with reading the flow and judging what is visible. On a GPU also the share
that this takes of a pre-training step of ViT-B on as many clips (bf16, see bench_training_step.py), memory, and how far
its flow is from the CPU's. On any device, the operations that eager mode runs and the memory they read and write, which
on a GPU is what limits it.

    python benchmarks/bench_torch_tracker.py                    # GPU: 64 clips; CPU: 1 clip, one thread
    python benchmarks/bench_torch_tracker.py --device cpu --batch_size 2
"""

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F
from bench_training_step import build_variant, machine, synchronize, write_section
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mme_hf import MMEVideoProcessor, build_tracker, grid_points
from mme_hf.motion import FlowTracker

PROCESSOR = MMEVideoProcessor()
SIZE_PX = PROCESSOR.crop_size["height"]
BETWEEN_STARTS = PROCESSOR.tubelet_size * PROCESSOR.frame_stride
START_FRAMES = tuple(range(0, PROCESSOR.num_frames * PROCESSOR.frame_stride, BETWEEN_STARTS))
NUM_STEPS = PROCESSOR.trajectory_num_steps
PAIRS = [(start + step, start + step + 1) for start in START_FRAMES for step in range(NUM_STEPS)]
NUM_FRAMES = START_FRAMES[-1] + NUM_STEPS + 1
RESULTS = Path(__file__).parent / "results" / "torch_tracker.md"
MODES = {"eager": {}, "compiled": {"is_compiled": True}}


def moving_clips(num_clips: int, device: str) -> torch.Tensor:
    """Return smooth noise that moves up to 3 px a frame, uint8 (clips, T, 3, 224, 224)."""
    generator = torch.Generator().manual_seed(0)
    clips = []
    for _ in range(num_clips):
        scene = torch.randint(0, 256, (3, 160, 160), dtype=torch.uint8, generator=generator).float()
        scene = F.interpolate(scene[None], scale_factor=4, mode="bicubic").clamp(0, 255).to(torch.uint8)[0].to(device)
        dx, dy = torch.randint(-3, 4, (2,), generator=generator).tolist()
        places = [(208 + dy * frame, 208 + dx * frame) for frame in range(NUM_FRAMES)]
        clips.append(torch.stack([scene[:, top : top + SIZE_PX, left : left + SIZE_PX] for top, left in places]))
    return torch.stack(clips)


def median_seconds(work: Callable[[], object], repeats: int, device: str) -> float:
    for _ in range(2):
        work()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        work()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def first_call_seconds(tracker: FlowTracker, clips: torch.Tensor, device: str) -> float:
    synchronize(device)
    start = time.perf_counter()
    tracker.flow(clips, PAIRS)
    synchronize(device)
    return time.perf_counter() - start


def tracker_table(clips: torch.Tensor, repeats: int, device: str) -> tuple[list[str], dict[str, float]]:
    """Return the table, and the seconds a batch of each mode of the tracker."""
    points = grid_points(SIZE_PX, SIZE_PX).to(device)
    num_pairs = len(clips) * len(PAIRS)
    lines = [
        "| mode | flow: pairs a second | ms a pair | tracker: ms a batch | pairs a second | peak memory, MiB a pair | "
        "first batch, s |",
        "|---|---|---|---|---|---|---|",
    ]
    seconds = {}
    for mode, options in MODES.items():
        tracker = build_tracker("torch", **options)
        start_up = first_call_seconds(tracker, clips, device)
        memory = "-"
        if device == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        flow_seconds = median_seconds(lambda tracker=tracker: tracker.flow(clips, PAIRS), repeats, device)
        if device == "cuda":
            memory = f"{(torch.cuda.max_memory_allocated() - before) / num_pairs / 2**20:.2f}"
        seconds[mode] = median_seconds(
            lambda tracker=tracker: tracker(clips, points, start_frames=START_FRAMES, num_steps=NUM_STEPS),
            repeats,
            device,
        )
        lines.append(
            f"| {mode} | {num_pairs / flow_seconds:,.0f} | {1e3 * flow_seconds / num_pairs:.3f} | "
            f"{1e3 * seconds[mode]:.1f} | {num_pairs / seconds[mode]:,.0f} | {memory} | {start_up:.1f} |"
        )
    return lines, seconds


class MemoryTraffic(TorchDispatchMode):
    """Counts the operations that make new memory, and the bytes that they read and write."""

    def __init__(self):
        super().__init__()
        self.num_operations, self.num_bytes = 0, 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        outcome = function(*args, **(kwargs or {}))
        read, made = (
            [x for x in tree_leaves(tree) if isinstance(x, torch.Tensor)] for tree in ((args, kwargs), outcome)
        )
        places = {tensor.untyped_storage().data_ptr() for tensor in read}
        if any(tensor.untyped_storage().data_ptr() not in places for tensor in made):  # a view moves nothing
            self.num_operations += 1
            self.num_bytes += sum(map(held_bytes, read + made))
        return outcome


def held_bytes(tensor: torch.Tensor) -> int:
    """Return the size of a tensor in memory, where what is repeated by `expand` is there once."""
    lengths = (length for length, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride)
    return tensor.element_size() * math.prod(lengths)


def memory_traffic(clips: torch.Tensor) -> str:
    with MemoryTraffic() as traffic:
        build_tracker("torch").flow(clips[:1], PAIRS)
    megabytes = traffic.num_bytes / len(PAIRS) / 1e6
    return (
        f"Eager: {traffic.num_operations:,} operations a batch, which read and write {megabytes:.0f} MB a pair. At the "
        f"4.8 TB/s of an H200's memory that alone would allow {4.8e6 / megabytes:,.0f} pairs a second."
    )


def share_of_a_training_step(seconds: dict[str, float], batch_size: int, repeats: int) -> list[str]:
    lines = [
        "",
        f"| ViT-B pre-training step, {batch_size} clips, bf16 | ms | tracker eager, of it | compiled, of it |",
        "|---|---|---|---|",
    ]
    for compiled in (False, True):
        variant = build_variant(
            "mme_hf", preset="base", batch_size=batch_size, device="cuda", autocast=True, compiled=compiled
        )
        step = median_seconds(variant.step, repeats, "cuda")
        shares = " | ".join(f"{seconds[mode] / step:.0%}" for mode in MODES)
        lines.append(f"| {'compiled' if compiled else 'eager'} | {1e3 * step:.1f} | {shares} |")
        del variant
        torch.cuda.empty_cache()
    return lines


def agreement_with_cpu(clips: torch.Tensor) -> list[str]:
    pairs = PAIRS[:8]
    expected = build_tracker("torch").flow(clips[:2].cpu(), pairs)
    lines = [""]
    for mode, options in MODES.items():
        flow = build_tracker("torch", **options).flow(clips[:2], pairs).cpu()
        distance = (flow - expected).norm(dim=-3)
        lines.append(
            f"{mode}: from the CPU's flow by {distance.mean():.1e} px on average, {distance.max():.1e} at most; by "
            f"over 0.01 px at {(distance > 0.01).float().mean():.3%} of the pixels."
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--batch_size", type=int, help="Clips at a time; by default 64 on a GPU, 1 on a CPU.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    batch_size = arguments.batch_size or (64 if device == "cuda" else 1)
    clips = moving_clips(batch_size, device)
    lines, seconds = tracker_table(clips, arguments.repeats, device)
    lines += ["", memory_traffic(clips)]
    if device == "cuda":
        lines += share_of_a_training_step(seconds, batch_size, arguments.repeats)
        lines += agreement_with_cpu(clips)
    heading = [
        f"## {device.upper()}: {batch_size} clips of {len(PAIRS)} pairs ({len(START_FRAMES)} starts of {NUM_STEPS} "
        f"steps), {SIZE_PX} x {SIZE_PX} px",
        "",
        f"{machine(device)}; torch {torch.__version__}, Python {platform.python_version()}; medians of "
        f"{arguments.repeats}.",
        "",
    ]
    title = "# Tracker `torch`\n\nWritten by benchmarks/bench_torch_tracker.py."
    write_section(RESULTS, title, device, heading + lines)
    print("\n".join(heading + lines))


if __name__ == "__main__":
    main()
