"""Scenes whose motion is known: real frames moved by fields that we choose, so that every track can be checked."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import av
import cv2
import numpy as np
import torch

from mme_hf import Trajectories, grid_points, open_video
from mme_hf.data.records import load_sample_records

HEIGHT, WIDTH = 256, 340
CELL_SIZE_PX = 8
NUM_STEPS = 8
# Points whose true track comes closer to the frame's border than this are not judged: what lies beyond is unknown.
MARGIN_PX = 4.0
# Motions of a smooth scene, each alone and all together.
SMOOTH_KINDS = ("translation", "rotation", "zoom", "deformation", "all")


@dataclass(frozen=True)
class KnownMotion:
    """A scene and the truth about it.

    Attributes:
        name: What it shows.
        frames: uint8 RGB, shape (T, 3, H, W).
        points_xy: Points of the regular grid in the first frame, in pixels, shape (P, 2), a multiple of 8 in height.
        truth: True positions and visibility, one start at frame 0, T - 1 steps.
        is_near_border: Points within 8 px of the border of a moving object in the first frame, shape (P,).
    """

    name: str
    frames: torch.Tensor
    points_xy: torch.Tensor
    truth: Trajectories
    is_near_border: torch.Tensor

    def is_judged(self) -> torch.Tensor:
        """Return which positions (T, P) are visible and far enough from the frame's border, from the start on."""
        x, y = self.truth.points_xy[0].unbind(-1)
        inside = (x >= MARGIN_PX) & (x <= WIDTH - 1 - MARGIN_PX) & (y >= MARGIN_PX) & (y <= HEIGHT - 1 - MARGIN_PX)
        return (inside & self.truth.is_visible[0]).long().cummin(0).values.bool()


def grid() -> torch.Tensor:
    """Return the points of the 8 px grid; the frame's last columns, which fill no cell, have none."""
    return grid_points(HEIGHT, WIDTH // CELL_SIZE_PX * CELL_SIZE_PX, CELL_SIZE_PX)


def source_images(folder: Path | None) -> list[np.ndarray]:
    """Return real frames of HEIGHT x WIDTH, uint8 RGB (H, W, 3): of the sample clips, and of the clips in `folder`."""
    records = load_sample_records()
    paths = [record["video"]["path"] for record in records.dataset if "distorted" not in record["video"]["path"]]
    if folder is not None and folder.is_dir():
        own = {Path(path).name for path in paths}
        paths += sorted(str(path) for path in folder.iterdir() if path.name not in own)
    images = []
    for path in paths:
        with open_video(path) as reader:
            for index in (reader.num_frames // 4, 3 * reader.num_frames // 4):
                images.append(_covering(reader.frames_at([index])[0].permute(1, 2, 0).numpy()))
    return images


def _covering(image: np.ndarray) -> np.ndarray:
    scale = max(HEIGHT / image.shape[0], WIDTH / image.shape[1])
    size = (max(WIDTH, round(image.shape[1] * scale)), max(HEIGHT, round(image.shape[0] * scale)))
    image = cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
    top, left = (image.shape[0] - HEIGHT) // 2, (image.shape[1] - WIDTH) // 2
    return np.ascontiguousarray(image[top : top + HEIGHT, left : left + WIDTH])


def smooth_scene(image: np.ndarray, *, kind: str, mean_px: float, num_steps: int, seed: int) -> KnownMotion:
    """Return an image that moves smoothly: `mean_px` per frame on average over the points in the first step.

    Args:
        image: uint8 (H, W, 3).
        kind: One of `SMOOTH_KINDS`.
        mean_px: Mean displacement from frame 0 to 1; 0 for a static scene.
        num_steps: Frames after the first.
        seed: Of directions, phases and wavelengths.
    """
    forward = _field(kind, mean_px, seed)
    points = grid().numpy().astype(np.float64)
    positions = np.stack([forward(points, step) for step in range(num_steps + 1)])
    sources = [lambda x, step=step: _inverse(forward, x, step) for step in range(1, num_steps + 1)]
    frames = [image, *(_warp(image, source) for source in sources)]
    return _scene(f"{kind} {mean_px:g} px", frames, positions, None, np.zeros(len(points), dtype=bool))


def _field(kind: str, mean_px: float, seed: int) -> Callable[[np.ndarray, int], np.ndarray]:
    """Return where a point (..., 2) of frame 0 is in frame t."""
    random = np.random.default_rng(seed)
    centre = np.array([(WIDTH - 1) / 2, (HEIGHT - 1) / 2])
    angle, spin, growth = random.uniform(0, 2 * np.pi), random.choice([-1, 1]), random.choice([-1, 1])
    waves = random.uniform(0, 2 * np.pi, (2, 2))
    lengths = random.uniform(130, 220, (2, 2))

    def move(points: np.ndarray, step: int, amount: float) -> np.ndarray:
        moved = points
        if kind in ("deformation", "all"):
            # Swings, so that it stays invertible however many steps are taken.
            swing = amount * np.sin(np.pi * step / 4) / np.sin(np.pi / 4)
            phase = 2 * np.pi * points[..., None, ::-1] / lengths + waves
            moved = moved + swing * np.sin(phase).sum(-1) * (1.0 if kind == "deformation" else 0.4)
        if kind in ("rotation", "all"):
            turn = spin * step * amount / 100 * (1.0 if kind == "rotation" else 0.4)
            moved = (moved - centre) @ np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) + centre
        if kind in ("zoom", "all"):
            moved = (moved - centre) * np.exp(growth * step * amount / 100 * (1.0 if kind == "zoom" else 0.4)) + centre
        if kind in ("translation", "all"):
            moved = moved + step * amount * np.array([np.cos(angle), np.sin(angle)])
        return moved

    points = grid().numpy().astype(np.float64)
    amount = mean_px
    for _ in range(20):  # the mean displacement is nearly proportional to the amount
        mean = np.linalg.norm(move(points, 1, amount) - points, axis=-1).mean()
        amount = amount * mean_px / mean if mean_px else 0.0
    return lambda x, step: move(x, step, amount)


def _inverse(forward: Callable, positions: np.ndarray, step: int) -> np.ndarray:
    points = positions
    for _ in range(200):
        error = positions - forward(points, step)
        points = points + 0.7 * error
        if np.abs(error).max() < 1e-4:
            break
    return points


def _pixels() -> np.ndarray:
    y, x = np.mgrid[:HEIGHT, :WIDTH].astype(np.float64)
    return np.stack([x, y], axis=-1)


def _warp(image: np.ndarray, source_of: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    source = source_of(_pixels()).astype(np.float32)
    return cv2.remap(image, source[..., 0], source[..., 1], cv2.INTER_CUBIC, borderMode=cv2.BORDER_REFLECT_101)


def occlusion_scene(image: np.ndarray, object_image: np.ndarray, *, num_steps: int, seed: int) -> KnownMotion:
    """Return an elliptic textured object that crosses a moving background and hides parts of it."""
    random = np.random.default_rng(seed)
    angle = random.uniform(0, 2 * np.pi)
    direction = np.array([np.cos(angle), np.sin(angle)])
    pan = random.uniform(-1.5, 1.5, 2)
    speed = pan + direction * random.uniform(3, 6)
    radii = random.uniform(40, 65, 2)
    centre = np.array([WIDTH / 2, HEIGHT / 2]) + random.uniform(-30, 30, 2) - speed * num_steps / 2

    def depth(x: np.ndarray, step: int) -> np.ndarray:
        """Return the distance in px (about) inside the object's border, negative outside."""
        return (1 - np.linalg.norm((x - centre - step * speed) / radii, axis=-1)) * radii.mean()

    frames = []
    for step in range(num_steps + 1):
        behind = _warp(image, lambda x, step=step: x - step * pan)
        before = _warp(object_image, lambda x, step=step: x - step * speed)
        cover = np.clip(depth(_pixels(), step) + 0.5, 0, 1)[..., None]
        frames.append((behind * (1 - cover) + before * cover).round().astype(np.uint8))
    points = grid().numpy().astype(np.float64)
    is_object = depth(points, 0) > 0
    positions = np.stack([points + step * np.where(is_object[:, None], speed, pan) for step in range(num_steps + 1)])
    hidden = np.stack([~is_object & (depth(positions[step], step) > 0) for step in range(num_steps + 1)])
    return _scene("occlusion", frames, positions, hidden, np.abs(depth(points, 0)) < CELL_SIZE_PX)


def _scene(
    name: str, frames: list[np.ndarray], positions: np.ndarray, hidden: np.ndarray | None, near: np.ndarray
) -> KnownMotion:
    points_xy = torch.from_numpy(positions).float()[None]
    x, y = points_xy.unbind(-1)
    visible = (x >= 0) & (x <= WIDTH - 1) & (y >= 0) & (y <= HEIGHT - 1)
    if hidden is not None:
        visible &= ~torch.from_numpy(hidden)[None]
    # "once lost a point stays lost"
    truth = Trajectories(points_xy, visible.long().cummin(1).values.bool(), (HEIGHT, WIDTH))
    planes = torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous()
    return KnownMotion(name, planes, grid(), truth, torch.from_numpy(near))


def noisy(scene: KnownMotion, sigma: float = 6.0) -> KnownMotion:
    """Return the scene with Gaussian noise of `sigma` grey values, independent in every frame."""
    random = np.random.default_rng(0)
    frames = scene.frames.numpy() + random.normal(0, sigma, scene.frames.shape)
    return replace(scene, frames=torch.from_numpy(frames.round().clip(0, 255).astype(np.uint8)))


def blurred(scene: KnownMotion, sigma_px: float = 1.5) -> KnownMotion:
    """Return the scene out of focus."""
    frames = [cv2.GaussianBlur(frame.permute(1, 2, 0).numpy(), (0, 0), sigma_px) for frame in scene.frames]
    return replace(scene, frames=torch.from_numpy(np.stack(frames)).permute(0, 3, 1, 2).contiguous())


def compressed(scene: KnownMotion, crf: int = 32) -> KnownMotion:
    """Return the scene after H.264 at a low quality."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=25, options={"crf": str(crf)})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in scene.frames:
            image = av.VideoFrame.from_ndarray(np.ascontiguousarray(frame.permute(1, 2, 0).numpy()), format="rgb24")
            container.mux(stream.encode(image))
        container.mux(stream.encode())
    with open_video(file.getvalue()) as reader:
        return replace(scene, frames=reader.frames_at(range(reader.num_frames)))


def one_step_scenes(images: list[np.ndarray], mean_px: float) -> Iterator[KnownMotion]:
    """Yield one pair of frames per image, the kinds of motion in turn."""
    for index, image in enumerate(images):
        kind = SMOOTH_KINDS[index % len(SMOOTH_KINDS)]
        yield smooth_scene(image, kind=kind, mean_px=mean_px, num_steps=1, seed=index)


def long_scenes(images: list[np.ndarray], mean_px: float = 2.0) -> Iterator[KnownMotion]:
    """Yield scenes of `NUM_STEPS` steps, the kinds of motion in turn."""
    for index, image in enumerate(images):
        kind = SMOOTH_KINDS[(index + 1) % len(SMOOTH_KINDS)]
        yield smooth_scene(image, kind=kind, mean_px=mean_px, num_steps=NUM_STEPS, seed=100 + index)


def occlusion_scenes(images: list[np.ndarray]) -> Iterator[KnownMotion]:
    """Yield one scene per image, with the next image on the object."""
    for index, image in enumerate(images):
        yield occlusion_scene(image, images[(index + 3) % len(images)], num_steps=NUM_STEPS, seed=200 + index)
