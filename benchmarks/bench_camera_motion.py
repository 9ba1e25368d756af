"""Camera motion against cameras that are known. Writes benchmarks/results/camera_motion.md.

    python benchmarks/bench_camera_motion.py [--clips FOLDER] [--seeds 4] [--only_tracks]

Real frames (of the sample clips, and of the videos in FOLDER) are seen by a camera that pans, zooms, rolls or shakes:
views of the middle of a frame, the later ones through known homographies, so that nothing at the border is invented. An
object, which is a piece of another real frame, may move over it. Two views are compensated by their flow, five by
tracks of the grid, as in training. Flow and tracks are those of the tracker "dis". One thread.
"""

from __future__ import annotations

import argparse
import platform
import re
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import torch
from known_motion import source_images

from mme_hf import MMEVideoProcessor, Trajectories, build_tracker, compensate_camera_motion, grid_points
from mme_hf.motion import estimate_camera_of_flow, remove_camera_motion
from mme_hf.motion.appearance import is_textured
from mme_hf.motion.camera_motion import estimate_camera_of_tracks

RESULTS = Path(__file__).parent / "results" / "camera_motion.md"
# (height, width) of frames: of pairs, and of those that the small presets are trained on.
PAIR_SIZE, TRACKS_SIZE = (192, 256), (112, 112)
NUM_STEPS = MMEVideoProcessor().trajectory_num_steps
TRACKS_TITLE = f"## Tracks of {NUM_STEPS} steps, as in training"
BACKENDS = ("torch", "opencv")
CAMERAS = ("rest", "pan 2 px", "pan 6 px", "pan 15 px", "zoom 1 %", "zoom 4 %", "roll 1 deg", "roll 3 deg", "shake")
# What the camera does while an object fills much of the frame. "follow": the object stays where it is in the frame.
OVER_OBJECTS = ("rest", "pan 2 px", "pan 6 px", "zoom 1 %", "shake", "follow")
COVERS = (0.2, 0.4, 0.6)
SHAPES = ("middle", "person")
# A camera motion that is accepted and off by more than this on average is nonsense.
WRONG_PX = 1.0
NEAR_OBJECT_PX = 8


@dataclass(frozen=True)
class View:
    """Frames, and the truth about them.

    Attributes:
        frames: uint8 RGB, shape (L + 1, 3, H, W).
        cameras: Where each step moves pixels of the background, L arrays of (3, 3).
        step: What the object moves by in each step, in pixels, (2,).
        reach_px: How far an object of the scene goes in a step, at least.
        shape: One of `SHAPES`.
        cover: Share of the frame that the object covers, 0 for no object.
    """

    frames: torch.Tensor
    cameras: list[np.ndarray]
    step: np.ndarray
    reach_px: float
    shape: str
    cover: float

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the frames."""
        return tuple(self.frames.shape[-2:])

    def camera_path(self, points: np.ndarray) -> list[np.ndarray]:
        """Return where background that is at points (..., 2) at first is in each frame."""
        path = [points]
        for camera in self.cameras:
            path.append(moved(camera, path[-1]))
        return path

    def own_motion(self, points: np.ndarray) -> np.ndarray:
        """Return how far an object at points (..., 2) moves against the background, over all steps."""
        of_camera = 0.0
        for number, camera in enumerate(self.cameras):
            places = points + number * self.step
            of_camera = of_camera + moved(camera, places) - places
        return len(self.cameras) * self.step - of_camera

    def is_background(self, points: np.ndarray) -> np.ndarray:
        """Return which points are background that stays in the frame and does not come near the object."""
        path = self.camera_path(points)
        if len(path) == 2:
            is_clear = self.inside(points) < -NEAR_OBJECT_PX - self.reach_px
        else:  # as much room for each of several steps would be most of the frame
            is_clear = np.all(
                [self.inside(places - number * self.step) < -NEAR_OBJECT_PX for number, places in enumerate(path)],
                axis=0,
            )
        return is_clear & stays(path[-1], self.size)

    def is_object(self, points: np.ndarray) -> np.ndarray:
        """Return which points are of the object, not near its border, and stay in the frame."""
        return stays(points + len(self.cameras) * self.step, self.size) & (self.inside(points) > NEAR_OBJECT_PX)

    def inside(self, points: np.ndarray) -> np.ndarray:
        """Return about how far inside the border of the object, as it is at first, points are, in pixels."""
        return distance_inside(self.shape, self.cover, points, self.size)


def homography(kind: str, random: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Return where a camera motion of a kind moves pixels, (3, 3)."""
    angle, sign = random.uniform(0, 2 * np.pi), random.choice([-1, 1])
    amount = float(kind.split()[1]) if " " in kind else 0.0
    about_center = np.eye(3)
    if kind.startswith("pan") or kind == "follow":
        about_center[:2, 2] = (amount or 4.0) * np.array([np.cos(angle), np.sin(angle)])
    elif kind.startswith("zoom"):
        about_center[:2, :2] *= 1 + sign * amount / 100
    elif kind.startswith("roll"):
        turn = sign * np.deg2rad(amount)
        about_center[:2, :2] = [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
    elif kind == "shake":
        # All at once, with the perspective of a camera that turns by a degree.
        turn = np.deg2rad(random.normal(0, 0.5))
        about_center[:2, :2] = (1 + random.normal(0, 0.01)) * np.array(
            [[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]
        )
        about_center[:2, 2] = random.normal(0, 4, 2)
        about_center[2, :2] = random.normal(0, 0.02, 2) / size[1]
    shift = np.eye(3)
    shift[:2, 2] = center(size)
    return shift @ about_center @ np.linalg.inv(shift)


def center(size: tuple[int, int]) -> np.ndarray:
    return (np.array(size[::-1]) - 1) / 2


def pixels(size: tuple[int, int]) -> np.ndarray:
    y, x = np.mgrid[: size[0], : size[1]].astype(np.float64)
    return np.stack([x, y], axis=-1)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def seen(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return an image at places (H, W, 2) counted from the corner of its middle H x W."""
    corner = np.array([(image.shape[1] - places.shape[1]) // 2, (image.shape[0] - places.shape[0]) // 2])
    places = (places + corner).astype(np.float32)
    return cv2.remap(image, places[..., 0], places[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def distance_inside(shape: str, cover: float, points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return about how far inside an object's border points are, in pixels, for an object that covers a share."""
    height, width = size
    if not cover:
        return np.full(points.shape[:-1], -np.inf)
    if shape == "middle":
        radii = np.sqrt(cover * width * height / np.pi) * np.array([1.15, 1 / 1.15])
        return (1 - np.linalg.norm((points - center(size)) / radii, axis=-1)) * radii.min()
    # Upright, four fifths of the height, with the feet below the lower border.
    half_width = cover * width / 0.8 / 2
    return np.minimum(half_width - np.abs(points[..., 0] - center(size)[0]), points[..., 1] - 0.2 * height)


def make_view(
    image: np.ndarray,
    object_image: np.ndarray,
    kind: str,
    *,
    seed: int,
    cover: float = 0.0,
    shape: str = "middle",
    size: tuple[int, int] = PAIR_SIZE,
    num_steps: int = 1,
) -> View:
    random = np.random.default_rng(seed)
    cameras = [homography(kind, random, size)]
    angle, speed = random.uniform(0, 2 * np.pi), random.uniform(3, 6)
    step = np.zeros(2) if kind == "follow" else speed * np.array([np.cos(angle), np.sin(angle)])
    # A camera goes on as it began, but for one that shakes.
    while len(cameras) < num_steps:
        cameras.append(homography(kind, random, size) if kind == "shake" else cameras[0])
    grid, to_first, frames = pixels(size), np.eye(3), []
    for number in range(num_steps + 1):
        frame = seen(image, moved(to_first, grid))
        if cover:
            places = grid - number * step
            frame = over(frame, seen(object_image, places), distance_inside(shape, cover, places, size))
        frames.append(frame)
        if number < num_steps:
            to_first = to_first @ np.linalg.inv(cameras[number])
    planes = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return View(planes, cameras, step, speed, shape, cover)


def over(behind: np.ndarray, before: np.ndarray, inside: np.ndarray) -> np.ndarray:
    opacity = np.clip(inside + 0.5, 0, 1)[..., None]
    return (behind * (1 - opacity) + before * opacity).round().astype(np.uint8)


def stays(points: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    return ((points >= 4) & (points <= np.array(size[::-1]) - 5)).all(-1)


class Tally:
    """What came of the views of one kind."""

    def __init__(self):
        self.found, self.wrong = [], []
        self.residuals, self.camera_errors, self.own_errors = [], [], []

    def add_flow(self, view: View, flow: torch.Tensor, backend: str) -> None:
        """Take out the camera's motion of a pair with flow (2, H, W), and compare."""
        compensated = compensate_camera_motion(flow[None], view.frames, backend=backend)[0]
        homographies, accepted = estimate_camera_of_flow(flow[None], view.frames, backend=backend)
        left = compensated.permute(1, 2, 0).flatten(0, 1).numpy().astype(np.float64)
        self._add(view, homographies, bool(accepted[0]), pixels(view.size).reshape(-1, 2), left)

    def add_tracks(self, view: View, tracks: Trajectories) -> None:
        """Take out the camera's motion of the tracks of a view, of one start, and compare over all their steps."""
        removed = remove_camera_motion(tracks, view.frames, (0,))
        homographies, accepted = estimate_camera_of_tracks(tracks, view.frames, (0,))
        valid = tracks.is_visible[0].all(0)
        way = (removed.points_xy[0, -1] - removed.points_xy[0, 0])[valid].numpy().astype(np.float64)
        points = tracks.points_xy[0, 0][valid].numpy().astype(np.float64)
        self._add(view, homographies[0], bool(accepted.all()), points, way)

    def _add(
        self, view: View, homographies: torch.Tensor, accepted: bool, points: np.ndarray, left: np.ndarray
    ) -> None:
        """Note what is left (P, 2) of the motion of points (P, 2), and the camera's homographies (L, 3, 3)."""
        grid = pixels(view.size)
        truth = view.camera_path(grid)[-1]
        estimate = grid
        for matrix in homographies.numpy().astype(np.float64):
            estimate = moved(matrix, estimate)
        error = np.linalg.norm(estimate - truth, axis=-1)
        found = accepted or float(np.abs(truth - grid).max()) < 1e-6
        self.found.append(found)
        self.wrong.append(found and float(error.mean()) > WRONG_PX)
        if not found:
            return
        row, column = (points[:, ::-1] / 4).astype(int).T
        textured = is_textured(view.frames[0]).numpy()[row, column]
        is_background, is_object = view.is_background(points) & textured, view.is_object(points) & textured
        self.camera_errors.append(error[view.is_background(grid)])
        self.residuals.append(np.linalg.norm(left[is_background], axis=-1))
        self.own_errors.append(np.linalg.norm((left - view.own_motion(points))[is_object], axis=-1))

    def cells(self) -> list[str]:
        """Return the row of a table."""
        columns = [words(self.residuals), words(self.camera_errors), words(self.own_errors)]
        return [percent(self.found), percent(self.wrong), *columns]


def words(errors: list[np.ndarray]) -> str:
    values = np.concatenate(errors) if errors else np.empty(0)
    return f"{values.mean():.2f} / {np.quantile(values, 0.99):.2f}" if values.size else "-"


def percent(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.0f} %"


def table(first: str, rows: list[tuple[str, Tally]], accepted: str = "accepted") -> str:
    header = [first, accepted, "wrong", "background left", "camera off by", "object off by"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(tally.cells())} |" for name, tally in rows)])


def scenes(images: list[np.ndarray], num_seeds: int) -> Iterator[tuple[tuple, Callable[..., View]]]:
    """Yield (cover, camera) of every scene, cover None for the small object, and what makes a view of it."""
    for index, image in enumerate(images):
        for seed in range(num_seeds):
            make = partial(make_view, image, images[(index + 3) % len(images)], seed=1000 * index + seed)
            for kind in CAMERAS:
                yield (None, kind), partial(make, kind, cover=0.06)
            for cover in COVERS:
                for kind in OVER_OBJECTS:
                    yield (cover, kind), partial(make, kind, cover=cover, shape=SHAPES[(index + seed) % 2])


def measure_flow(images: list[np.ndarray], num_seeds: int) -> dict[tuple, Tally]:
    """Return tallies by (backend, cover, camera)."""
    tracker, tallies = build_tracker("dis"), defaultdict(Tally)
    for key, make in scenes(images, num_seeds):
        view = make()
        flow = tracker.flow(view.frames, [(0, 1)])[0]
        for backend in BACKENDS:
            tallies[backend, *key].add_flow(view, flow, backend)
    return tallies


def measure_tracks(images: list[np.ndarray], num_seeds: int) -> dict[tuple, Tally]:
    """Return tallies by (cover, camera)."""
    tracker, tallies = build_tracker("dis"), defaultdict(Tally)
    points = grid_points(*TRACKS_SIZE, MMEVideoProcessor().cell_size_px)
    for key, make in scenes(images, num_seeds):
        view = make(size=TRACKS_SIZE, num_steps=NUM_STEPS)
        tallies[key].add_tracks(view, tracker(view.frames, points, num_steps=NUM_STEPS))
    return tallies


def timing(images: list[np.ndarray], num_pairs: int = 32, repeats: int = 5) -> str:
    """Return milliseconds per pair, the contenders taking turns."""
    tracker = build_tracker("dis")
    view = make_view(images[0], images[3], "shake", seed=0, cover=0.1)
    frames = view.frames.repeat(num_pairs // 2 + 1, 1, 1, 1)[: num_pairs + 1]
    flow = tracker.flow(view.frames, [(0, 1)]).repeat(num_pairs, 1, 1, 1)
    contenders = {
        "flow of the tracker dis": lambda: tracker.flow(frames, [(n, n + 1) for n in range(num_pairs)]),
        "torch, without frames": lambda: compensate_camera_motion(flow),
        "torch": lambda: compensate_camera_motion(flow, frames),
        "opencv, without frames": lambda: compensate_camera_motion(flow, backend="opencv"),
        "opencv": lambda: compensate_camera_motion(flow, frames, backend="opencv"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(repeats + 1):
        for name, run in contenders.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    lines = ["| | ms per pair |", "|---|---|"]
    for name, values in seconds.items():
        lines.append(f"| {name} | {1e3 * statistics.median(values[1:]) / num_pairs:.2f} |")
    return "\n".join(lines)


def heading(arguments: argparse.Namespace, num_images: int) -> str:
    extra = f" --clips {arguments.clips.name}" if arguments.clips else ""
    return (
        "# Camera motion against cameras that are known\n\n"
        f"Written by `python benchmarks/bench_camera_motion.py{extra} --seeds {arguments.seeds}`. "
        f"{platform.machine()}, one thread; torch {torch.__version__}, OpenCV {cv2.__version__}. {num_images} real "
        f"frames, {arguments.seeds} motions of each kind for each, {PAIR_SIZE[0]} x {PAIR_SIZE[1]} px; flow of the "
        "tracker dis.\n\n"
        "Errors are mean / 99th percentile in px, over accepted pairs. Background left: what is left of the motion of "
        "textured background, the flow's own error included. Camera off by: the estimated camera's displacement "
        "against the true one, all background. Object off by: what is left of the motion of the object against its "
        f"true motion over the background. Wrong: accepted, and off by more than {WRONG_PX:g} px on average over the "
        "frame, as a share of all pairs. Rest: a camera that does not move, where accepting and refusing are the same."
    )


def rows_of_tables() -> tuple[list[tuple[str, tuple]], list[tuple[str, tuple]]]:
    """Return the rows of scenes with a small object, and of those with a large one: words, and (cover, camera)."""
    small = [(kind, (None, kind)) for kind in CAMERAS]
    return small, [(f"{cover:.0%}, {kind}", (cover, kind)) for cover in COVERS for kind in OVER_OBJECTS]


def flow_sections(images: list[np.ndarray], num_seeds: int) -> list[str]:
    tallies, (small, large), sections = measure_flow(images, num_seeds), rows_of_tables(), []
    for backend in BACKENDS:
        sections.append(f"## Backend {backend}, an object that covers 6 %")
        sections.append(table("camera", [(name, tallies[backend, *key]) for name, key in small]))
    for backend in BACKENDS:
        sections.append(
            f"## Backend {backend}, an object that fills much of the frame\n\n"
            "It is in the middle, or upright like a person with the feet below the frame, in turns. Follow: the camera "
            "pans with the object, which stays where it is in the frame."
        )
        sections.append(table("object, camera", [(name, tallies[backend, *key]) for name, key in large]))
    return sections


def tracks_section(images: list[np.ndarray], num_seeds: int) -> str:
    tallies, (small, large) = measure_tracks(images, num_seeds), rows_of_tables()
    rows = [(f"6%, {name}", tallies[key]) for name, key in small] + [(name, tallies[key]) for name, key in large]
    height, width = TRACKS_SIZE
    return (
        f"{TRACKS_TITLE}\n\n"
        f"The same scenes seen in {height} x {width} px, so that objects and motions are larger beside the frame; the "
        f"camera goes on as it began over {NUM_STEPS} steps (shake: anew in each). Tracks of the tracker dis from the "
        "points of the 8 px grid, backend torch. The camera's motion is removed from all steps of a start or from "
        f"none. Wrong and errors are of the way over all {NUM_STEPS} steps, of tracks seen from end to end.\n\n"
        + table("object, camera", rows, accepted="removed")
    )


def report(arguments: argparse.Namespace, images: list[np.ndarray]) -> str:
    first = heading(arguments, len(images))
    tracks = tracks_section(images, arguments.seeds)
    if arguments.only_tracks:
        # Whatever else is in the file stays as it is.
        sections = re.split(r"\n\n(?=## )", RESULTS.read_text(encoding="utf-8").rstrip())[1:]
        sections = [part for part in sections if not part.startswith(TRACKS_TITLE)]
        return "\n\n".join([first, *sections[:-1], tracks, sections[-1]]) + "\n"
    time_section = f"## Time\n\n32 pairs of {PAIR_SIZE[0]} x {PAIR_SIZE[1]} at once.\n\n{timing(images)}"
    return "\n\n".join([first, *flow_sections(images, arguments.seeds), tracks, time_section]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="Folder of more videos to take frames from.")
    parser.add_argument("--seeds", type=int, default=4, help="Motions of each kind for each frame.")
    parser.add_argument("--only_tracks", action="store_true", help="Measure tracks again, and keep the other tables.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    RESULTS.write_text(report(arguments, source_images(arguments.clips)), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
