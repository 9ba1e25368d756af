"""Small real videos, made by the tests themselves."""

from __future__ import annotations

import os
from pathlib import Path

# Before huggingface_hub reads it: a name that is looked up on the Hub shall fail at once, also without a network.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
if "PYTEST_XDIST_WORKER" in os.environ:
    # Before torch is loaded, here and in what tests start: threads of several workers would wait for each other.
    os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
import torch
from hub_server import HubServer
from hub_storage import User


def moving_texture(num_frames: int, height: int, width: int, *, velocity=(1.0, 0.5), seed: int = 0) -> np.ndarray:
    """Return a smooth random texture that moves by `velocity` (x, y) px per frame, uint8 (T, H, W, 3)."""
    generator = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float64)
    waves = [(generator.uniform(-0.5, 0.5, 2), generator.uniform(0, 6.3, 3)) for _ in range(12)]
    frames = np.empty((num_frames, height, width, 3))
    for t in range(num_frames):
        for channel in range(3):
            frames[t, ..., channel] = sum(
                np.sin(wave[0] * (x - velocity[0] * t) + wave[1] * (y - velocity[1] * t) + phases[channel])
                for wave, phases in waves
            )
    return np.clip(128 + 22 * frames, 0, 255).astype(np.uint8)


def write_video(path: Path, frames: np.ndarray, *, codec: str = "mpeg4", fps: int = 30, **options: str) -> Path:
    """Encode `frames` (T, H, W, 3) and return `path`."""
    import av

    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=fps, options={"qscale": "2", **options})
        stream.height, stream.width = frames.shape[1:3]
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    return path


@pytest.fixture(scope="session")
def video_folder(tmp_path_factory) -> Path:
    """Six short videos in two class folders: 40 frames of 64 x 48."""
    root = tmp_path_factory.mktemp("videos")
    for index in range(6):
        folder = root / ("left", "right")[index % 2]
        folder.mkdir(exist_ok=True)
        speed = (-1.0, 1.0)[index % 2]
        write_video(folder / f"clip_{index}.mp4", moving_texture(40, 48, 64, velocity=(speed, 0.0), seed=index))
    return root


@pytest.fixture(scope="session")
def direction_videos(tmp_path_factory) -> dict[str, Path]:
    """Flags of 16 videos to train on and 10 to judge by: 12 frames, whose direction is all that tells their class."""
    root = tmp_path_factory.mktemp("directions")
    for split, num_videos, first_seed in (("train", 16, 0), ("validation", 10, 100)):
        for index in range(num_videos):
            folder = root / split / ("left", "right")[index % 2]
            folder.mkdir(parents=True, exist_ok=True)
            velocity = ((-1.5, 1.5)[index % 2], 0.0)
            frames = moving_texture(12, 32, 32, velocity=velocity, seed=first_seed + index)
            write_video(folder / f"clip_{index}.mp4", frames)
    return {"train_dir": root / "train", "validation_dir": root / "validation"}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub of the test's own, for the client in this process and in those that it starts; nobody is logged in.

    "hf_mine" is the token of user "me", "hf_reads" one of the same that may only read, "hf_yours" that of "you".
    """
    users = {"hf_mine": User("me"), "hf_reads": User("me", may_write=False), "hf_yours": User("you")}
    home = tmp_path / "hf_home"
    with HubServer(users) as server:
        environment = {"HF_ENDPOINT": server.url, "HF_HUB_OFFLINE": "0", "HF_HOME": str(home)}
        for name, value in {**environment, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}.items():
            monkeypatch.setenv(name, value)
        for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HF_HUB_CACHE", "HF_TOKEN_PATH"):
            monkeypatch.delenv(name, raising=False)
        # What the client has read from its environment when it was imported.
        constants = {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(home / "hub"),
            "HF_TOKEN_PATH": str(home / "token"),
        }
        for name, value in constants.items():
            monkeypatch.setattr(f"huggingface_hub.constants.{name}", value)
        monkeypatch.setattr("huggingface_hub.hf_api.api.endpoint", server.url)
        monkeypatch.setattr("transformers.utils.hub._hf_api", None)
        yield server


@pytest.fixture(autouse=True)
def _keep_torch_state():
    """Stop one test's random draws and thread count from deciding another's."""
    state, num_threads = torch.get_rng_state(), torch.get_num_threads()
    yield
    torch.set_rng_state(state)
    torch.set_num_threads(num_threads)
