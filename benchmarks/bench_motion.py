"""Trackers against motion that is known: error, visibility, time. Writes benchmarks/results/motion.md.

    python benchmarks/bench_motion.py [--clips FOLDER] [--repeats 5]
    python benchmarks/bench_motion.py --trackers dis torch "DIS preset medium"    # prints, and writes nothing

Real frames (of the sample clips, and of the videos in FOLDER) are moved by known fields, see known_motion.py. One
thread; trackers take turns on every scene, so that load hits all alike, and time is the thread's own. Trackers that
cannot work here are left out, and the results say which and why.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import statistics
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import cv2
import numpy as np
import torch
from known_motion import (
    CELL_SIZE_PX,
    HEIGHT,
    NUM_STEPS,
    WIDTH,
    KnownMotion,
    blurred,
    compressed,
    long_scenes,
    noisy,
    occlusion_scenes,
    one_step_scenes,
    source_images,
)

from mme_hf import build_tracker, grid_points
from mme_hf.motion import FlowTracker, build_ready_tracker
from mme_hf.motion.opencv_flow import flow_of_grey_pairs

RESULTS = Path(__file__).parent / "results" / "motion.md"
PLAIN = {"refinement_levels": ()}
LUCAS_KANADE = "pyramidal Lucas-Kanade at the grid"
TRACKERS: dict[str, tuple[str, dict]] = {
    "dis": ("dis", {}),
    "DIS preset ultrafast": ("dis", {**PLAIN, "preset": "ultrafast"}),
    "DIS preset fast": ("dis", {**PLAIN, "preset": "fast"}),
    "DIS preset medium": ("dis", {**PLAIN, "preset": "medium"}),
    "DIS medium, finest scale 0": ("dis", {**PLAIN, "preset": "medium", "finest_scale": 0}),
    "torch": ("torch", {}),
    "farneback": ("farneback", {}),
    LUCAS_KANADE: (LUCAS_KANADE, {}),
    "tvl1": ("tvl1", {}),
    "raft": ("raft", {}),
}
YARDSTICK = "DIS preset medium"
SLOW = {"tvl1", "raft"}  # one round of timing is enough
# Why a tracker cannot work here, in fewer words than its own error has.
REASONS = {
    "tvl1": "OpenCV has no contrib modules here",
    "raft": "torchvision's weights are not in its cache and could not be fetched",
}
MEAN_PX = (0.5, 2.0, 4.0, 8.0, 15.0)
CLIP_SIZE_PX, NUM_STARTS, STEPS_PER_START = 224, 8, 4


@dataclass(frozen=True)
class GridLucasKanade:
    """OpenCV's own pyramidal Lucas-Kanade at the centres of the cells, with its own settings."""

    name: ClassVar[str] = LUCAS_KANADE

    def __call__(self, frames: torch.Tensor, pairs: list[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, 0 where a point is lost."""
        rows, columns = (side // CELL_SIZE_PX for side in frames.shape[-2:])
        y, x = np.mgrid[:rows, :columns].astype(np.float32) * CELL_SIZE_PX + (CELL_SIZE_PX - 1) / 2
        centres = np.stack([x, y], axis=-1)

        def write_flow(first: np.ndarray, second: np.ndarray, flow: np.ndarray) -> None:
            arrivals, is_found, _ = cv2.calcOpticalFlowPyrLK(first, second, centres.reshape(-1, 2), None)
            motion = (arrivals.reshape(centres.shape) - centres) * is_found.reshape(rows, columns, 1)
            size = (columns * CELL_SIZE_PX, rows * CELL_SIZE_PX)
            flow[:] = 0
            flow[: size[1], : size[0]] = cv2.resize(motion, size, interpolation=cv2.INTER_LINEAR)

        return flow_of_grey_pairs(self.name, frames, pairs, write_flow)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="Folder of more videos to take frames from.")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--trackers", nargs="+", choices=list(TRACKERS), help="Only these, printed beside what times are compared with."
    )
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = source_images(arguments.clips)
    trackers, left_out = available_trackers(arguments.trackers)
    sections = [
        heading(arguments, len(images), left_out),
        one_step(trackers, images, arguments.repeats),
        by_speed(trackers, images),
        by_quality(trackers, images),
        long_tracks(trackers, images),
        whole_clips(trackers, images, arguments.repeats),
    ]
    if torch.cuda.is_available():
        sections.append(on_gpu(images))
    report = "\n\n".join(sections) + "\n"
    if not arguments.trackers:
        RESULTS.write_text(report, encoding="utf-8")
    print(report)


def available_trackers(wanted: list[str] | None) -> tuple[dict[str, FlowTracker], dict[str, str]]:
    """Return the trackers that work here, and of those that do not why."""
    trackers, left_out = {}, {}
    for label, (name, options) in TRACKERS.items():
        if wanted and label not in (*wanted, YARDSTICK):
            continue
        if name == LUCAS_KANADE:
            trackers[label] = FlowTracker(GridLucasKanade())
            continue
        try:
            trackers[label] = build_ready_tracker(name, **options)
        except ValueError as error:
            left_out[label] = REASONS.get(name, str(error))
    return trackers, left_out


def heading(arguments: argparse.Namespace, num_images: int, left_out: dict[str, str]) -> str:
    extra = f" --clips {arguments.clips.name}" if arguments.clips else ""
    extra += f" --trackers {shlex.join(arguments.trackers)}" if arguments.trackers else ""
    reasons = "; ".join(f"`{label}` ({reason})" for label, reason in left_out.items())
    return (
        "# Motion trackers against known motion\n\n"
        f"Written by `python benchmarks/bench_motion.py{extra} --repeats {arguments.repeats}`. "
        f"{platform.machine()}, one thread; torch {torch.__version__}, OpenCV {cv2.__version__}. "
        f"{num_images} real frames of {WIDTH} x {HEIGHT} "
        "moved by known fields (translation, rotation, zoom, deformation, all together; cubic interpolation). Errors "
        "are end-point errors in px at the centres of 8 px cells whose true track stays 4 px inside the frame."
        + (f" Left out here: {reasons}." if left_out else "")
    )


def errors(tracker: FlowTracker, scene: KnownMotion, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the errors after `step` steps of all judged points, and of those near a moving object's border."""
    tracks = tracker(scene.frames[: step + 1], scene.points_xy, num_steps=step)
    error = (tracks.points_xy[0, step] - scene.truth.points_xy[0, step]).norm(dim=-1)
    judged = scene.is_judged()[step]
    return error[judged], error[judged & scene.is_near_border]


def one_step(trackers: dict[str, FlowTracker], images: list, repeats: int) -> str:
    scenes, moving = list(one_step_scenes(images, 4.0)), list(occlusion_scenes(images))
    seconds_alone = time_per_pair(trackers, scenes, repeats)
    seconds = time_per_pair_of_clips(trackers, images, repeats)
    lines = [
        "## One step, 4 px on average",
        "",
        "| tracker | mean | median | 99 % | over 1 px | at borders of moving objects "
        f"| ms a pair, {NUM_STEPS} in a row | of medium's | ms a pair, alone | of medium's |",
        "|---" * 10 + "|",
    ]
    for label, tracker in trackers.items():
        error = torch.cat([errors(tracker, scene, 1)[0] for scene in scenes])
        border = torch.cat([errors(tracker, scene, 1)[1] for scene in moving])
        lines.append(
            f"| {label} | {error.mean():.3f} | {error.median():.3f} | {error.quantile(0.99):.2f} | "
            f"{(error > 1).float().mean():.1%} | {border.mean():.2f} | {1e3 * seconds[label]:.1f} | "
            f"{seconds[label] / seconds[YARDSTICK]:.2f} | {1e3 * seconds_alone[label]:.1f} | "
            f"{seconds_alone[label] / seconds_alone[YARDSTICK]:.2f} |"
        )
    note = (
        "Time is the thread's own for the flow, grey conversion included: median of the repeats of a scene, mean over "
        f"scenes. In a row: the {NUM_STEPS} pairs of a clip in one call, which is how tracks ask for it. Alone: one "
        "pair in a call, so that neither buffers nor code are in a cache after the tracker before. Trackers take "
        "turns, and take turns in beginning, which finds the frames in no cache."
    )
    return "\n".join(lines) + "\n\n" + note


def time_per_pair_of_clips(trackers: dict[str, FlowTracker], images: list, repeats: int) -> dict[str, float]:
    pairs, scenes = [(index, index + 1) for index in range(NUM_STEPS)], list(long_scenes(images))
    calls = {
        label: [lambda tracker=tracker, scene=scene: tracker.flow(scene.frames, pairs) for scene in scenes]
        for label, tracker in trackers.items()
    }
    return {label: seconds / len(pairs) for label, seconds in seconds_in_turns(calls, repeats).items()}


def time_per_pair(trackers: dict[str, FlowTracker], scenes: list[KnownMotion], repeats: int) -> dict[str, float]:
    calls = {
        label: [lambda tracker=tracker, scene=scene: tracker.flow(scene.frames, [(0, 1)]) for scene in scenes]
        for label, tracker in trackers.items()
    }
    return seconds_in_turns(calls, repeats)


def seconds_in_turns(calls: dict[str, list[Callable[[], object]]], repeats: int) -> dict[str, float]:
    """Return for every label the mean over its calls of each one's median processor time, all labels taking turns.

    Who begins changes with every turn: it finds the frames in no cache.
    """
    times = {label: [[] for _ in own] for label, own in calls.items()}
    labels = list(calls)
    for round_index in range(repeats):
        for index in range(len(calls[labels[0]])):
            first = (round_index + index) % len(labels)
            for label in labels[first:] + labels[:first]:
                if label in SLOW and round_index:
                    continue
                start = time.thread_time()
                calls[label][index]()
                times[label][index].append(time.thread_time() - start)
    return {label: statistics.mean(map(statistics.median, own)) for label, own in times.items()}


def table_of_means(title: str, trackers: dict[str, FlowTracker], columns: dict[str, Iterable[KnownMotion]]) -> str:
    columns = {name: list(scenes) for name, scenes in columns.items()}
    lines = [f"## {title}", "", f"| tracker | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for label, tracker in trackers.items():
        means = [
            torch.cat([errors(tracker, scene, 1)[0] for scene in scenes]).mean().item() for scenes in columns.values()
        ]
        lines.append(f"| {label} | {' | '.join(f'{mean:.3f}' for mean in means)} |")
    return "\n".join(lines)


def by_speed(trackers: dict[str, FlowTracker], images: list) -> str:
    columns = {f"{mean_px:g} px": one_step_scenes(images, mean_px) for mean_px in MEAN_PX}
    return table_of_means("Mean error after one step, by mean motion", trackers, columns)


def by_quality(trackers: dict[str, FlowTracker], images: list) -> str:
    variants: dict[str, Callable[[KnownMotion], KnownMotion]] = {
        "clean": lambda scene: scene,
        "noise, sigma 6": noisy,
        "blur, sigma 1.5 px": blurred,
        "H.264, crf 32": compressed,
    }
    scenes = list(one_step_scenes(images, 4.0))
    columns = {name: [variant(scene) for scene in scenes] for name, variant in variants.items()}
    return table_of_means("Mean error after one step of 4 px, by quality of the frames", trackers, columns)


def long_tracks(trackers: dict[str, FlowTracker], images: list) -> str:
    smooth, hidden = list(long_scenes(images)), list(occlusion_scenes(images))
    lines = [
        f"## {NUM_STEPS} steps: smooth scenes of 2 px a frame, and an object that crosses a moving background",
        "",
        "| tracker | smooth: mean | median | 99 % | over 1 px | crossed: mean | at its border | "
        "visible: precision, recall after 1 step | after 8 | hidden found after 8 |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for label, tracker in trackers.items():
        error = torch.cat([errors(tracker, scene, NUM_STEPS)[0] for scene in smooth])
        pairs = [errors(tracker, scene, NUM_STEPS) for scene in hidden]
        crossed, border = (torch.cat(values) for values in zip(*pairs, strict=True))
        early, late = (visibility(tracker, hidden, step) for step in (1, NUM_STEPS))
        lines.append(
            f"| {label} | {error.mean():.2f} | {error.median():.2f} | {error.quantile(0.99):.1f} | "
            f"{(error > 1).float().mean():.1%} | {crossed.mean():.2f} | {border.mean():.2f} | "
            f"{early[0]:.3f}, {early[1]:.3f} | "
            f"{late[0]:.3f}, {late[1]:.3f} | {late[2]:.2f} |"
        )
    note = (
        "Precision: share of the points called visible that are. Recall: share of the visible points, tracked to "
        "within 2 px, that are called so. Hidden found: share of the points behind the object that are called lost."
    )
    return "\n".join(lines) + "\n\n" + note


def visibility(tracker: FlowTracker, scenes: list[KnownMotion], step: int) -> tuple[float, float, float]:
    """Return precision and recall of visible points, and the share of hidden ones found, after `step` steps."""
    called, visible, good, inside = [], [], [], []
    for scene in scenes:
        tracks = tracker(scene.frames[: step + 1], scene.points_xy, num_steps=step)
        truth = scene.truth
        x, y = truth.points_xy[0, step].unbind(-1)
        inside.append((x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1))
        called.append(tracks.is_visible[0, step])
        visible.append(truth.is_visible[0, step])
        good.append((tracks.points_xy[0, step] - truth.points_xy[0, step]).norm(dim=-1) < 2)
    called, visible, good, inside = (torch.cat(values) for values in (called, visible, good, inside))
    hidden = inside & ~visible
    return (
        (called & visible).sum().item() / max(1, called.sum().item()),
        (called & visible & good).sum().item() / max(1, (visible & good).sum().item()),
        (~called & hidden).sum().item() / max(1, hidden.sum().item()),
    )


def whole_clips(trackers: dict[str, FlowTracker], images: list, repeats: int) -> str:
    """Return what the tracks of a clip cost: flow, following the points through it, and their visibility."""
    num_frames = NUM_STARTS * STEPS_PER_START + 1
    there_and_back = [*range(NUM_STEPS), *range(NUM_STEPS, 0, -1)]
    order = [there_and_back[index % len(there_and_back)] for index in range(num_frames)]
    clips = [scene.frames[order, :, :CLIP_SIZE_PX, :CLIP_SIZE_PX].contiguous() for scene in long_scenes(images[:3])]
    points_xy = grid_points(CLIP_SIZE_PX, CLIP_SIZE_PX, CELL_SIZE_PX)
    starts = range(0, NUM_STARTS * STEPS_PER_START, STEPS_PER_START)
    calls = {
        label: [
            lambda tracker=tracker, clip=clip: tracker(clip, points_xy, start_frames=starts, num_steps=STEPS_PER_START)
            for clip in clips
        ]
        for label, tracker in trackers.items()
        if label not in SLOW
    }
    seconds = seconds_in_turns(calls, repeats)
    lines = [
        f"## A whole clip: {NUM_STARTS} starts of {STEPS_PER_START} steps at {CLIP_SIZE_PX} px, {num_frames - 1} pairs",
        "",
        "| tracker | ms a clip | of medium's |",
        "|---|---|---|",
        *(f"| {label} | {1e3 * value:.0f} | {value / seconds[YARDSTICK]:.2f} |" for label, value in seconds.items()),
    ]
    return "\n".join(lines) + "\n\nFlow, following all points of the 8 px grid, and visibility."


def on_gpu(images: list) -> str:
    frames = torch.stack([scene.frames for scene in one_step_scenes(images, 4.0)]).cuda()
    frames = frames[:, :, :, :224, :224].repeat(max(1, 256 // len(frames)), 1, 1, 1, 1).contiguous()
    tracker = build_tracker("torch")
    times = []
    for _ in range(12):
        torch.cuda.synchronize()
        start = time.perf_counter()
        tracker.flow(frames, [(0, 1)])
        torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    rate = len(frames) / statistics.median(times[2:])
    return f"## GPU\n\n{torch.cuda.get_device_name()}: `torch` {rate:,.0f} pairs a second at 224 x 224."


if __name__ == "__main__":
    main()
