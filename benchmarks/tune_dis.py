"""Tracker `dis` with each of its settings changed by itself. Writes benchmarks/results/dis_settings.md.

    python benchmarks/tune_dis.py [--clips FOLDER] [--num_images 8] [--repeats 5]

Scenes, errors and times are those of bench_motion.py: one step of 4 px on average, one pair in a call. One thread.
"""

from __future__ import annotations

import argparse
import platform
from pathlib import Path

import cv2
import torch
from bench_motion import PLAIN, YARDSTICK, errors, seconds_in_turns
from known_motion import HEIGHT, WIDTH, noisy, occlusion_scenes, one_step_scenes, source_images

from mme_hf import build_tracker
from mme_hf.motion.flow_tracker import median_filter_3x3

RESULTS = Path(__file__).parent / "results" / "dis_settings.md"
SETTINGS = {
    "default": {},
    "finest scale 1, not 2": {"finest_scale": 1},
    "finest scale 3": {"finest_scale": 3},
    "patch stride 3 px, not 4": {"patch_stride": 3},
    "patch stride 5 px": {"patch_stride": 5},
    "8 steps of search, not 16": {"gradient_descent_iterations": 8},
    "12 steps of search": {"gradient_descent_iterations": 12},
    "24 steps of search": {"gradient_descent_iterations": 24},
    "smoothing 0 times, not 3": {"variational_refinement_iterations": 0},
    "smoothing 5 times": {"variational_refinement_iterations": 5},
    "3 x 3 median over the flow": {"median_filter_size": 3},
    "refined once at full size": {"refinement_levels": [0]},
    "refined twice at full size": {"refinement_levels": [0, 0]},
    "refined at half size, once at full size": {"refinement_levels": [1, 0]},
    "refined at half size, three times at full size": {"refinement_levels": [1, 0, 0, 0]},
    "not refined": {"refinement_levels": []},
    YARDSTICK: {**PLAIN, "preset": "medium"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="Folder of more videos to take frames from.")
    parser.add_argument("--num_images", type=int, default=8, help="Frames to move, spread over those there are.")
    parser.add_argument("--repeats", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    images = source_images(arguments.clips)
    images = images[:: max(1, len(images) // arguments.num_images)][: arguments.num_images]
    text = report(arguments, images)
    RESULTS.write_text(text, encoding="utf-8")
    print(text)


def report(arguments: argparse.Namespace, images: list) -> str:
    trackers = {label: build_tracker("dis", **options) for label, options in SETTINGS.items()}
    slow, fast = list(one_step_scenes(images, 4.0)), list(one_step_scenes(images, 8.0))
    moving, spoilt = list(occlusion_scenes(images)), [noisy(scene) for scene in slow]
    seconds = time_per_pair(trackers, slow, arguments.repeats)
    extra = f" --clips {arguments.clips.name}" if arguments.clips else ""
    lines = [
        "# Settings of tracker `dis`, each changed by itself",
        "",
        f"Written by `python benchmarks/tune_dis.py{extra} --num_images {arguments.num_images} --repeats "
        f"{arguments.repeats}`. {platform.machine()}, one thread; torch {torch.__version__}, OpenCV {cv2.__version__}. "
        f"{len(images)} real frames of {WIDTH} x {HEIGHT} moved by known fields; mean end-point errors in px after one "
        "step, as in [motion.md](motion.md). Time is of the flow of one pair alone, in the same run as that of preset "
        "medium.",
        "",
        "| setting | 4 px | 8 px | 4 px, noise of sigma 6 | at borders of moving objects | time, of medium's |",
        "|---|---|---|---|---|---|",
    ]
    for label, tracker in trackers.items():
        means = [
            torch.cat([errors(tracker, scene, 1)[part] for scene in scenes]).mean().item()
            for scenes, part in ((slow, 0), (fast, 0), (spoilt, 0), (moving, 1))
        ]
        cells = " | ".join(f"{mean:.3f}" for mean in means)
        lines.append(f"| {label} | {cells} | {seconds[label] / seconds[YARDSTICK]:.2f} |")
    return "\n".join(lines) + "\n"


def time_per_pair(trackers: dict, scenes: list, repeats: int) -> dict[str, float]:
    """Return seconds of the thread's own, the median over the flow included where a setting has one."""

    def call(tracker, frames: torch.Tensor) -> None:
        flow = tracker.flow(frames, [(0, 1)])
        if tracker.median_filter_size:
            median_filter_3x3(flow)

    calls = {
        label: [lambda tracker=tracker, scene=scene: call(tracker, scene.frames) for scene in scenes]
        for label, tracker in trackers.items()
    }
    return seconds_in_turns(calls, repeats)


if __name__ == "__main__":
    main()
