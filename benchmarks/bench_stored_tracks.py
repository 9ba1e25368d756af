"""Stored tracks: their size, their error, their cost. Writes benchmarks/results/stored_tracks.md.

    python benchmarks/bench_stored_tracks.py [--clips FOLDER] [--crops 3]

The tracks of the sample clips, and of the videos in FOLDER, are extracted with tracker "dis" and written as the Parquet
shards that examples/extract_trajectories.py writes. One thread; times are processor time, so that other work on the
machine adds nothing to them (but a cache that is shared).
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch

from mme_hf import build_tracker, open_video
from mme_hf.data import StoredTracks, load_sample_records
from mme_hf.data.augmentation import multi_scale_crop_box
from mme_hf.data.records import VIDEO_EXTENSIONS
from mme_hf.data.stored_tracks import motion_row, shard_path, video_hash, write_shard
from mme_hf.motion import StoredMotion, extract_motion
from mme_hf.trajectories_mme import ClipGeometry, Trajectories, grid_points

RESULTS = Path(__file__).parent / "results" / "stored_tracks.md"
BAR_MB = 1.2
REFERENCE_MB = 3.2
KINETICS_GRID = (256 // 8, 340 // 8)
OUT_PX, NUM_STEPS = 224, 4
# A default sample: 16 frames, stride 4, two to a tubelet; tracks start at every second frame.
STARTS = tuple(range(0, 64, 8))
WINDOW_FRAMES = 61
# As tests/motion/test_stored.py states them.
STORAGE_PX, OTHER_SIZE_SHARE = 0.05, 0.25


@dataclass(frozen=True)
class Clip:
    """A video whose tracks are stored.

    Attributes:
        path: The file.
        motion: Its motion, as it is read again.
        average_fps: Frames per second.
        num_bytes: Size of the shard with this video alone.
        extraction_seconds: Processor time of decoding and tracking.
    """

    path: Path
    motion: StoredMotion
    average_fps: float
    num_bytes: int
    extraction_seconds: float

    @property
    def bytes_per_pair(self) -> float:
        """Size for two successive frames."""
        return self.num_bytes / (self.motion.num_frames - 1)

    @property
    def grid_size(self) -> tuple[int, int]:
        """Rows and columns of the grid."""
        return self.motion.parameters.grid_size(self.motion.source_size)

    def megabytes(self, fps: float) -> float:
        """Size of 10 s at a frame rate, from the mean size of a pair of successive frames."""
        return self.bytes_per_pair * 10 * fps / 1e6


def seconds_of(run: Callable[[], object], repeats: int = 5) -> float:
    """Return the median processor time of a call, after one that is not counted."""
    taken = []
    for _ in range(repeats + 1):
        started = time.process_time()
        run()
        taken.append(time.process_time() - started)
    return statistics.median(taken[1:])


def extracted(path: Path, folder: Path) -> Clip:
    started = time.process_time()
    with open_video(path) as reader:
        motion = extract_motion(reader, build_tracker("dis"))
        average_fps = reader.average_fps
    seconds = time.process_time() - started
    shard = shard_path(folder / path.stem, 0)
    write_shard([motion_row(str(path), path.name, motion, average_fps)], shard)
    stored = StoredTracks(folder / path.stem).motion_of(str(path))
    if stored != motion:
        raise RuntimeError(f"{path.name}: what was read is not what was written.")
    return Clip(path, stored, average_fps, shard.stat().st_size, seconds)


class Errors:
    """Distances between two ways to the same tracks, in px per step, of points that both see at every step."""

    def __init__(self):
        self.distances, self.motion, self.agreement = [], [], []

    def add(self, ours: Trajectories, others: Trajectories) -> None:
        """Compare tracks of the same points over the same frames."""
        is_seen = (ours.is_visible & others.is_visible)[:, 1:]
        num_steps = torch.arange(1, ours.num_steps + 1)[:, None]
        distance = (ours.points_xy - others.points_xy)[:, 1:].norm(dim=-1) / num_steps
        self.distances.append(distance[is_seen])
        self.motion.append(others.displacements.norm(dim=-1)[is_seen])
        self.agreement.append((ours.is_visible == others.is_visible).float().mean())

    @property
    def mean(self) -> float:
        """Mean distance in px per step."""
        return float(torch.cat(self.distances).mean())

    @property
    def mean_motion(self) -> float:
        """Mean displacement in px per step, of the second way."""
        return float(torch.cat(self.motion).mean())

    def cells(self) -> list[str]:
        """Return the row of a table."""
        percentile = np.quantile(torch.cat(self.distances).numpy(), 0.99)
        share = self.mean / max(self.mean_motion, 1e-6)
        agreement = float(torch.stack(self.agreement).mean())
        return [f"{self.mean:.3f}", f"{percentile:.3f}", f"{self.mean_motion:.2f}", f"{share:.2f}", f"{agreement:.1%}"]


def random_geometry(source_size: tuple[int, int], seed: int) -> ClipGeometry:
    """Return a crop, resize and flip as training draws them; every second one is mirrored."""
    left, top, width, height = multi_scale_crop_box(*source_size, torch.Generator().manual_seed(seed))
    return ClipGeometry(left, top, width, height, OUT_PX, OUT_PX, is_flipped=bool(seed % 2))


def compare(clip: Clip, num_crops: int, seed: int) -> dict[str, Errors]:
    """Return the errors of one clip: over the middle of the video, in pixels of 224 px crops (grid: of the frame)."""
    tracker, motion = build_tracker("dis"), clip.motion
    num_frames = min(motion.num_frames, 25)
    first = (motion.num_frames - num_frames) // 2
    with open_video(clip.path) as reader:
        frames = reader.frames_at(range(first, first + num_frames))
    source_size = motion.source_size
    size = motion.parameters.frame_size(source_size)
    whole_geometry = ClipGeometry(0, 0, source_size[1], source_size[0], *size)
    whole = whole_geometry.apply_to_frames(frames)
    scale = torch.tensor([size[1] / source_size[1], size[0] / source_size[0]])
    errors = {"quantisation": Errors(), "storage": Errors(), "stored": Errors(), "other size": Errors()}
    grid_xy = grid_points(*(8 * side for side in clip.grid_size))
    every = {"start_frames": tuple(range(num_frames - 1)), "num_steps": 1}
    numbers = range(first, first + num_frames)
    errors["quantisation"].add(
        motion.tracker(whole_geometry, numbers)(whole, grid_xy, **every), tracker(whole, grid_xy, **every)
    )
    points = grid_points(OUT_PX, OUT_PX)
    tracked = {"start_frames": range(0, num_frames - NUM_STEPS, 8), "num_steps": NUM_STEPS}
    for crop in range(num_crops):
        geometry = random_geometry(source_size, 100 * seed + crop)
        cut = geometry.apply_to_frames(frames)
        stored = motion.tracker(geometry, numbers)(cut, points, **tracked)
        computed = tracker(cut, points, **tracked)
        dense = tracker(whole, (geometry.source_points(points) + 0.5) * scale - 0.5, **tracked)
        dense = Trajectories((dense.points_xy + 0.5) / scale - 0.5, dense.is_visible, source_size)
        never_stored = geometry.apply_to_trajectories(dense)
        errors["storage"].add(stored, never_stored)
        errors["stored"].add(stored, computed)
        errors["other size"].add(never_stored, computed)
    return errors


def times_of_a_sample(clip: Clip, folder: Path) -> dict[str, float]:
    """Return milliseconds of processor time of what a sample of 16 frames, stride 4, needs of tracks."""
    tracks, motion = StoredTracks(folder / clip.path.stem), clip.motion
    geometry = random_geometry(motion.source_size, 0)
    with open_video(clip.path) as reader:
        frames = reader.frames_at(range(WINDOW_FRAMES))
    cut, points = geometry.apply_to_frames(frames), grid_points(OUT_PX, OUT_PX)
    tracked = {"start_frames": STARTS, "num_steps": NUM_STEPS}
    stored, computed = motion.tracker(geometry, range(WINDOW_FRAMES)), build_tracker("dis")
    runs = {
        "hash of the file, once in a worker's life": lambda: video_hash(str(clip.path)),
        "row": lambda: tracks.motion_of(str(clip.path)),
        "tracks from it": lambda: stored(cut, points, **tracked),
        "on line": lambda: computed(cut, points, **tracked),
    }
    return {name: 1e3 * seconds_of(run) for name, run in runs.items()}


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {' | '.join(row)} |" for row in rows)])


def size_section(clips: list[Clip]) -> str:
    rows = []
    for clip in clips:
        seconds = clip.motion.num_frames / clip.average_fps
        height, width = clip.motion.source_size
        rows.append(
            [
                f"{clip.path.name}{' *' if clip.grid_size == KINETICS_GRID else ''}",
                f"{height} x {width}",
                f"{clip.grid_size[0]} x {clip.grid_size[1]}",
                f"{seconds:.1f} s at {clip.average_fps:.1f}",
                f"{clip.num_bytes / 1e6:.3f}",
                f"{clip.bytes_per_pair / 1e3:.2f}",
                *(f"{clip.megabytes(fps):.2f}" for fps in (clip.average_fps, 25, 30)),
            ]
        )
    header = ["clip", "frames", "grid", "length", "shard, MB", "kB a pair", "10 s, MB", "at 25", "at 30"]
    return table(header, rows)


def verdict(clips: list[Clip]) -> str:
    kinetics = [clip for clip in clips if clip.grid_size == KINETICS_GRID]
    if not kinetics:
        return f"No clip here has the grid of 256 x 340; the bar of {BAR_MB} MB is not judged."
    largest = max(clip.megabytes(30) for clip in kinetics)
    return (
        f"Bar, on the grid of 256 x 340 (*): at most {BAR_MB} MB for 10 s; the largest takes {largest:.2f} MB at 30 "
        f"frames per second ({'met' if largest <= BAR_MB else 'MISSED'}). Whole pixels of one length, as published: "
        f"{REFERENCE_MB} MB."
    )


def tolerances(clips: list[Clip], per_clip: list[dict[str, Errors]]) -> str:
    """Say what the tests promise, and which clips here do not keep to it."""
    storage = [
        clip.path.name for clip, errors in zip(clips, per_clip, strict=True) if errors["storage"].mean > STORAGE_PX
    ]
    share = [
        f"{clip.path.name} ({errors['stored'].mean:.3f} px of {errors['stored'].mean_motion:.2f})"
        for clip, errors in zip(clips, per_clip, strict=True)
        if errors["stored"].mean > OTHER_SIZE_SHARE * errors["stored"].mean_motion
    ]
    return (
        f"The tests hold, on the sample clips, a mean of {STORAGE_PX} px a step for what storage changes, and "
        f"{OTHER_SIZE_SHARE} of the motion against cut, then tracked. Here the first is exceeded by "
        f"{', '.join(storage) or 'no clip'}, the second by {', '.join(share) or 'no clip'}. What is between the two is "
        "the tracker's own, on frames of another size: the last table is without any storage. The 99th percentile is "
        "where the tracker finds another match at the two sizes. Stored points are lost where one step loses them; on "
        "line they are compared with their start too, which is why visibility agrees less in fast clips."
    )


WAYS = {
    "quantisation": "stored against computed motion of the whole frame, at the grid points, one step",
    "storage": "stored, then cut, against tracked over whole frames, then cut: grid and rounding",
    "stored": "stored, then cut, against cut, then tracked",
    "other size": "tracked over whole frames, then cut, against cut, then tracked: nothing stored",
}


def report(arguments: argparse.Namespace, paths: list[Path], folder: Path) -> str:
    clips = [extracted(path, folder) for path in paths]
    per_clip = [compare(clip, arguments.crops, seed) for seed, clip in enumerate(clips)]
    header = ["mean", "99 %", "motion", "mean / motion", "visibility agrees"]
    sections = [
        "# Stored tracks\n\n"
        f"Written by `python benchmarks/bench_stored_tracks.py"
        f"{f' --clips {arguments.clips.name}' if arguments.clips else ''} --crops {arguments.crops}`. "
        f"{platform.machine()}, one thread; torch {torch.__version__}, OpenCV {cv2.__version__}. Tracker dis.",
        "## Size\n\nThe whole Parquet shard of one video. What is stored serves every length L, L = 4 too. Sizes for "
        "10 s are bytes per pair of successive frames times the pairs in 10 s: at the clip's own rate, and as if it "
        "were 25 or 30 a second. Clips of 10 s and more at their own rate are measured, the rest is an estimate: "
        "shorter clips are taken for typical of 10 s; at 25 a clip of 30 is a little understated, at 30 one of 25 "
        "overstated, for frames that are farther apart in time move more.\n\n"
        f"{size_section(clips)}\n\n{verdict(clips)}",
        "## Error\n\nDistance in px per step, of points that both ways see. Quantisation in pixels of the frame with a "
        f"short side of 256; the others in pixels of {OUT_PX} px clips cut and mirrored as training does "
        f"({arguments.crops} crops a clip), over {NUM_STEPS} steps. Motion: mean displacement of the second way per "
        "step.",
    ]
    for name, words in WAYS.items():
        rows = [[clip.path.name, *errors[name].cells()] for clip, errors in zip(clips, per_clip, strict=True)]
        sections.append(f"{words[0].upper()}{words[1:]}:\n\n{table(['clip', *header], rows)}")
    sections.append(tolerances(clips, per_clip))
    long = [clip for clip in clips if clip.motion.num_frames >= WINDOW_FRAMES]
    times = [times_of_a_sample(clip, folder) for clip in long]
    rows = [
        [
            clip.path.name,
            f"{clip.extraction_seconds:.1f}",
            f"{1e3 * clip.extraction_seconds / (clip.motion.num_frames - 1):.1f}",
            *(f"{value:.1f}" for value in taken.values()),
            f"{taken['on line'] / (taken['row'] + taken['tracks from it']):.1f}",
        ]
        for clip, taken in zip(long, times, strict=True)
    ]
    header = ["clip", "extraction, s", "ms a pair", *(f"{name}, ms" for name in times[0]), "on line / stored"]
    sections.append(
        "## Time\n\nExtraction holds decoding. A sample has 16 frames, stride 4: 8 tracks of 4 steps for each of 784 "
        f"points. Decoding and cutting are the same on both ways and left out.\n\n{table(header, rows)}"
    )
    return "\n\n".join(sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="Folder of more videos.")
    parser.add_argument("--crops", type=int, default=3, help="Crops of each clip that tracks are compared on.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    paths = [Path(row["video"]["path"]) for row in load_sample_records().dataset]
    if arguments.clips:
        more = (path for path in arguments.clips.iterdir() if path.suffix.lower() in VIDEO_EXTENSIONS)
        names = {path.name for path in paths}
        paths += sorted(path for path in more if path.name not in names)
    folder = Path(tempfile.mkdtemp())
    try:
        RESULTS.write_text(report(arguments, paths, folder), encoding="utf-8")
    finally:
        shutil.rmtree(folder)
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
