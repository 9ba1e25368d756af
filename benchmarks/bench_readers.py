"""Time opening a video and reading 16 frames, stride 4, from its middle, for each reader, one decoding thread.

Usage: python benchmarks/bench_readers.py FILE_OR_FOLDER... [--repeats 5] [--output benchmarks/results/readers.md]
"""

import argparse
import statistics
import time
from pathlib import Path

import torch

from mme_hf.video import VideoReadError, open_video

BACKENDS = ("pyav", "decord", "torchcodec")
SUFFIXES = {".avi", ".mkv", ".mov", ".mp4", ".webm"}


def middle_indices(num_frames: int, num_samples: int = 16, stride: int = 4) -> list[int]:
    """Return `num_samples` indices around the middle; the stride shrinks where the video is too short for it."""
    while stride > 1 and (num_samples - 1) * stride + 1 > num_frames:
        stride -= 1
    start = max(num_frames - (num_samples - 1) * stride - 1, 0) // 2
    return [min(start + sample * stride, num_frames - 1) for sample in range(num_samples)]


def read_milliseconds(path: Path, backend: str, indices: list[int]) -> float:
    start = time.perf_counter()
    with open_video(path, backend) as reader:
        reader.frames_at(indices)
    return 1000 * (time.perf_counter() - start)


def measure(path: Path, repeats: int) -> dict[str, str]:
    """Return the median milliseconds of each backend as text; backends take turns so that load hits all alike."""
    with open_video(path, "pyav") as reader:
        indices = middle_indices(reader.num_frames)
    times: dict[str, list[float]] = {backend: [] for backend in BACKENDS}
    refused = set()
    for _ in range(repeats + 1):
        for backend in BACKENDS:
            if backend in refused:
                continue
            try:
                times[backend].append(read_milliseconds(path, backend, indices))
            except (VideoReadError, ImportError):
                refused.add(backend)
    # The first round warms the file cache.
    return {b: "refused" if b in refused else f"{statistics.median(times[b][1:]):.1f}" for b in BACKENDS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("paths", nargs="+", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = [f"| file | {' | '.join(f'{backend} ms' for backend in BACKENDS)} |", "|---" * 4 + "|"]
    for root in arguments.paths:
        for path in sorted(root.rglob("*")) if root.is_dir() else [root]:
            if path.suffix in SUFFIXES:
                result = measure(path, arguments.repeats)
                lines.append(f"| {path.name} | {' | '.join(result[backend] for backend in BACKENDS)} |")
                print(lines[-1], flush=True)
    if arguments.output:
        arguments.output.parent.mkdir(parents=True, exist_ok=True)
        arguments.output.write_text("\n".join(["Open + 16 frames, stride 4, middle; one thread.", "", *lines, ""]))


if __name__ == "__main__":
    main()
