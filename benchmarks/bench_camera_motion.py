"""Camera motion against cameras that are known. Writes benchmarks/results/camera_motion.md.

    python benchmarks/bench_camera_motion.py [--clips FOLDER] [--seeds 4]

Real frames (of the sample clips, and of the videos in FOLDER) are seen by a camera that pans, zooms, rolls or shakes:
two views of the middle of a frame, the second through a known homography, so that nothing at the border is invented.
An object, which is a piece of another real frame, may move over it. The flow is that of the tracker "dis". One thread.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import torch
from known_motion import source_images

from mme_hf import build_tracker, compensate_camera_motion, grid_points
from mme_hf.motion import estimate_camera_of_flow
from mme_hf.motion.camera_motion import camera_displacements, is_textured

RESULTS = Path(__file__).parent / "results" / "camera_motion.md"
HEIGHT, WIDTH = 192, 256
CENTER = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
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
    """Two frames, and the truth about them.

    Attributes:
        frames: uint8 RGB, shape (2, 3, H, W).
        camera: Displacement of the background in pixels, shape (2, H, W).
        own: Displacement of the object against the background in pixels, shape (2, H, W).
        is_background: Background in the first frame that stays in the frame and is not near the object, (H, W).
        is_object: Object in the first frame that stays in the frame, not near its border, (H, W).
    """

    frames: torch.Tensor
    camera: torch.Tensor
    own: torch.Tensor
    is_background: torch.Tensor
    is_object: torch.Tensor


def homography(kind: str, random: np.random.Generator) -> np.ndarray:
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
        about_center[2, :2] = random.normal(0, 0.02, 2) / WIDTH
    shift = np.eye(3)
    shift[:2, 2] = CENTER
    return shift @ about_center @ np.linalg.inv(shift)


def pixels() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    return np.stack([x, y], axis=-1)


def moved(matrix: np.ndarray, points: np.ndarray) -> np.ndarray:
    mapped = points @ matrix[:, :2].T + matrix[:, 2]
    return mapped[..., :2] / mapped[..., 2:]


def seen(image: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return an image at places (H, W, 2) counted from the corner of its middle HEIGHT x WIDTH."""
    corner = np.array([(image.shape[1] - WIDTH) // 2, (image.shape[0] - HEIGHT) // 2])
    places = (places + corner).astype(np.float32)
    return cv2.remap(image, places[..., 0], places[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def distance_inside(shape: str, cover: float, points: np.ndarray) -> np.ndarray:
    """Return about how far inside an object's border points are, in pixels, for an object that covers a share."""
    if shape == "middle":
        radii = np.sqrt(cover * WIDTH * HEIGHT / np.pi) * np.array([1.15, 1 / 1.15])
        return (1 - np.linalg.norm((points - CENTER) / radii, axis=-1)) * radii.min()
    # Upright, four fifths of the height, with the feet below the lower border.
    width = cover * WIDTH / 0.8
    return np.minimum(width / 2 - np.abs(points[..., 0] - CENTER[0]), points[..., 1] - 0.2 * HEIGHT)


def make_view(
    image: np.ndarray, object_image: np.ndarray, kind: str, *, seed: int, cover: float = 0.0, shape: str = "middle"
) -> View:
    random = np.random.default_rng(seed)
    matrix = homography(kind, random)
    angle, speed = random.uniform(0, 2 * np.pi), random.uniform(3, 6)
    step = np.zeros(2) if kind == "follow" else speed * np.array([np.cos(angle), np.sin(angle)])
    grid = pixels()
    first, second = seen(image, grid), seen(image, moved(np.linalg.inv(matrix), grid))
    inside = distance_inside(shape, cover, grid) if cover else np.full(grid.shape[:2], -np.inf)
    if cover:
        first = over(first, seen(object_image, grid), inside)
        second = over(second, seen(object_image, grid - step), distance_inside(shape, cover, grid - step))
    camera = moved(matrix, grid) - grid
    own = step - camera
    frames = torch.from_numpy(np.stack([first, second])).permute(0, 3, 1, 2).contiguous()
    truth = [torch.from_numpy(np.moveaxis(field, -1, 0)).float() for field in (camera, own)]
    is_background = stays(grid + camera) & (inside < -NEAR_OBJECT_PX - speed)
    is_object = stays(grid + step) & (inside > NEAR_OBJECT_PX)
    return View(frames, *truth, torch.from_numpy(is_background), torch.from_numpy(is_object))


def over(behind: np.ndarray, before: np.ndarray, inside: np.ndarray) -> np.ndarray:
    opacity = np.clip(inside + 0.5, 0, 1)[..., None]
    return (behind * (1 - opacity) + before * opacity).round().astype(np.uint8)


def stays(points: np.ndarray) -> np.ndarray:
    return ((points >= 4) & (points <= np.array([WIDTH, HEIGHT]) - 5)).all(-1)


class Tally:
    """What came of the pairs of one kind."""

    def __init__(self):
        self.found, self.wrong = [], []
        self.residuals, self.camera_errors, self.own_errors = [], [], []

    def add(self, view: View, flow: torch.Tensor, backend: str) -> None:
        """Take out the camera's motion of a pair with flow (2, H, W), and compare."""
        compensated = compensate_camera_motion(flow[None], view.frames, backend=backend)[0]
        homographies, accepted = estimate_camera_of_flow(flow[None], view.frames, backend=backend)
        camera = camera_displacements(homographies[0], grid_points(HEIGHT, WIDTH, 1)).T.view(2, HEIGHT, WIDTH)
        error = (camera - view.camera).norm(dim=0)
        found = bool(accepted[0]) or float(view.camera.abs().max()) < 1e-6
        self.found.append(found)
        self.wrong.append(found and float(error.mean()) > WRONG_PX)
        if not found:
            return
        textured = is_textured(view.frames[0]).repeat_interleave(4, 0).repeat_interleave(4, 1)[:HEIGHT, :WIDTH]
        self.camera_errors.append(error[view.is_background])
        self.residuals.append(compensated.norm(dim=0)[view.is_background & textured])
        self.own_errors.append((compensated - view.own).norm(dim=0)[view.is_object & textured])

    def cells(self) -> list[str]:
        """Return the row of a table."""
        columns = [words(self.residuals), words(self.camera_errors), words(self.own_errors)]
        return [percent(self.found), percent(self.wrong), *columns]


def words(errors: list[torch.Tensor]) -> str:
    values = torch.cat(errors) if errors else torch.empty(0)
    if not values.numel():
        return "-"
    # numpy: torch's quantile refuses more than 16 million values
    return f"{float(values.mean()):.2f} / {np.quantile(values.numpy(), 0.99):.2f}"


def percent(flags: list[bool]) -> str:
    return f"{100 * sum(flags) / len(flags):.0f} %"


def table(first: str, rows: list[tuple[str, Tally]]) -> str:
    header = [first, "accepted", "wrong", "background left", "camera off by", "object off by"]
    lines = [f"| {' | '.join(header)} |", f"|{'---|' * len(header)}"]
    return "\n".join([*lines, *(f"| {name} | {' | '.join(tally.cells())} |" for name, tally in rows)])


def measure(images: list[np.ndarray], num_seeds: int) -> tuple[dict, dict]:
    """Return tallies by (backend, camera), and by (backend, cover, camera)."""
    tracker = build_tracker("dis")
    plain = {(backend, kind): Tally() for backend in BACKENDS for kind in CAMERAS}
    covered = {(backend, cover, kind): Tally() for backend in BACKENDS for cover in COVERS for kind in OVER_OBJECTS}
    for index, image in enumerate(images):
        other = images[(index + 3) % len(images)]
        for seed in range(num_seeds):
            scenes = [(plain, (kind,), {"kind": kind, "cover": 0.06}) for kind in CAMERAS]
            scenes += [
                (covered, (cover, kind), {"kind": kind, "cover": cover, "shape": SHAPES[(index + seed) % 2]})
                for cover in COVERS
                for kind in OVER_OBJECTS
            ]
            for tallies, key, options in scenes:
                view = make_view(image, other, seed=1000 * index + seed, **options)
                flow = tracker.flow(view.frames, [(0, 1)])[0]
                for backend in BACKENDS:
                    tallies[(backend, *key)].add(view, flow, backend)
    return plain, covered


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


def report(arguments: argparse.Namespace, images: list[np.ndarray]) -> str:
    plain, covered = measure(images, arguments.seeds)
    extra = f" --clips {arguments.clips.name}" if arguments.clips else ""
    sections = [
        "# Camera motion against cameras that are known\n\n"
        f"Written by `python benchmarks/bench_camera_motion.py{extra} --seeds {arguments.seeds}`. "
        f"{platform.machine()}, one thread; torch {torch.__version__}, OpenCV {cv2.__version__}. {len(images)} real "
        f"frames, {arguments.seeds} motions of each kind for each, {HEIGHT} x {WIDTH} px; flow of the tracker dis.\n\n"
        "Errors are mean / 99th percentile in px, over accepted pairs. Background left: what is left of the motion of "
        "textured background, the flow's own error included. Camera off by: the estimated camera's displacement "
        "against the true one, all background. Object off by: what is left of the motion of the object against its "
        f"true motion over the background. Wrong: accepted, and off by more than {WRONG_PX:g} px on average over the "
        "frame. Rest: a camera that does not move, where accepting and refusing are the same."
    ]
    for backend in BACKENDS:
        sections.append(f"## Backend {backend}, an object that covers 6 %")
        sections.append(table("camera", [(kind, plain[backend, kind]) for kind in CAMERAS]))
    for backend in BACKENDS:
        sections.append(
            f"## Backend {backend}, an object that fills much of the frame\n\n"
            "It is in the middle, or upright like a person with the feet below the frame, in turns. Follow: the camera "
            "pans with the object, which stays where it is in the frame."
        )
        rows = [(f"{cover:.0%}, {kind}", covered[backend, cover, kind]) for cover in COVERS for kind in OVER_OBJECTS]
        sections.append(table("object, camera", rows))
    sections.append(f"## Time\n\n32 pairs of {HEIGHT} x {WIDTH} at once.\n\n{timing(images)}")
    return "\n\n".join(sections) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=Path, help="Folder of more videos to take frames from.")
    parser.add_argument("--seeds", type=int, default=4, help="Motions of each kind for each frame.")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    RESULTS.write_text(report(arguments, source_images(arguments.clips)), encoding="utf-8")
    print(RESULTS.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
