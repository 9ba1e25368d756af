"""Where targets are made changes nothing of a run."""

import json

import pytest
import runs
from conftest import moving_texture, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Long videos, one that is too short for the full stride, one of a single frame, and one that is broken."""
    folder = tmp_path_factory.mktemp("videos")
    for index, length in enumerate((40, 40, 7, 40, 1)):
        frames = moving_texture(length, 48, 64, velocity=(1.0 - index, 0.5), seed=index)
        write_video(folder / f"clip_{index}.mp4", frames)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


def test_a_run_is_the_same_wherever_its_targets_are_made(videos, tmp_path):
    # Batches of one, so that in some updates the only batch of its kind has no clip at all.
    flags = {
        "train_dir": videos,
        "max_train_steps": 6,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "max_bad_fraction": 0.5,
        "held_out_fraction": 0.2,
        "mask_type": "motion",
        "camera_motion": "remove",
        "dataloader_num_workers": 1,
    }
    told = runs.finish(runs.start(tmp_path / "workers", tracker="torch", **flags))
    assert "targets: made on the data workers; points are followed by torch" in told
    told = runs.finish(runs.start(tmp_path / "device", targets_on="device", **flags))
    assert "targets: made on cpu, inside the step; points are followed by torch" in told
    workers, device = tmp_path / "workers", tmp_path / "device"
    names = ("loss", "loss_shape", "loss_position", "grad_norm", "bad_videos")
    for name in (*(f"train/{name}" for name in names), "held_out/explained_shape", "held_out/explained_position"):
        first, second = runs.logged(workers, name), runs.logged(device, name)
        assert first == pytest.approx(second, rel=1e-4, abs=1e-6) and first
    assert len(runs.logged(device)) == 6
    for name in ("motion.png", "motion_tracks.png"):
        assert (device / name).read_bytes().startswith(b"\x89PNG")
    health = [json.loads((folder / "motion_health.json").read_text()) for folder in (workers, device)]
    for numbers in health:
        numbers.pop("tracker_ms_per_clip")
    assert health[0] == health[1]
