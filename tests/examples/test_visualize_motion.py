"""examples/visualize_motion.py as a user runs it."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import moving_texture, write_video
from scripts import run_script
from small_classifiers import save_small_classifier
from torchvision.models import optical_flow

from mme_hf import MMEConfig, MMEForPreTraining, MMEVideoProcessor, open_video

SCRIPT = Path(__file__).parents[2] / "examples" / "visualize_motion.py"


def run(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, SCRIPT, *map(str, arguments)], capture_output=True, text=True, timeout=240)


@pytest.fixture
def checkpoint(tmp_path):
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = MMEVideoProcessor(**size, num_frames=4, frame_stride=2)
    config = MMEConfig(
        image_size=32,
        num_frames=4,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=32,
        decoder_hidden_size=16,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=32,
        motion_targets=processor.motion_target_config(),
    )
    MMEForPreTraining(config).save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def test_it_writes_what_it_prints(video_folder, checkpoint, tmp_path):
    video = next(video_folder.rglob("*.mp4"))
    result = run(video, "--checkpoint", checkpoint, "--output_dir", tmp_path / "out", "--start", "0.2")
    assert result.returncode == 0, result.stderr
    paths = [Path(line) for line in result.stdout.splitlines()]
    names = ("tracks.mp4", "tracks.gif", "tracks.png", "health.md", "prediction.png")
    assert [path.name for path in paths] == [f"{video.stem}_{name}" for name in names]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    with open_video(paths[0]) as reader:
        assert reader.num_frames == 9  # 2 tubelets, followed over the 4 raw frames to the next


@pytest.mark.parametrize(
    ("frame_stride", "trajectory_num_steps", "expected"),
    [
        # Tracks from inputs 0 and 6 to 9. Those of the picture are of 6 steps: at stride 1 they end at frame 8.
        (3, 3, [0, 3, 6, 9]),
        # Tracks from inputs 0 and 4, of 5 steps: to 9. Those of the picture are of 4 steps: to 8.
        (2, 5, [0, 2, 4, 6]),
    ],
)
def test_a_prediction_is_of_a_clip_as_fast_as_the_models_own(
    checkpoint, tmp_path, monkeypatch, frame_stride, trajectory_num_steps, expected
):
    options = {"frame_stride": frame_stride, "trajectory_num_steps": trajectory_num_steps}
    processor = MMEVideoProcessor.from_pretrained(checkpoint, **options)
    processor.save_pretrained(checkpoint)
    video = write_video(tmp_path / "clip.mp4", moving_texture(10, 32, 32))
    drawn = []
    monkeypatch.setattr("mme_hf.visualization.draw_motion_prediction", lambda *args, **_: drawn.append(args[2]))
    # The video has no flag: it is a word after the last one.
    run_script("visualize_motion", checkpoint=checkpoint, output_dir=[tmp_path / "out", video])
    with open_video(video) as reader:
        frames = reader.frames_at(expected)
    own = processor(frames, do_sample_frames=False, return_tensors="pt")
    assert torch.equal(drawn[0]["pixel_values"], own["pixel_values"])


def test_raft_takes_its_weights_from_a_file(video_folder, tmp_path):
    torch.save(optical_flow.raft_small(weights=None).state_dict(), tmp_path / "raft.pt")
    options = json.dumps({"weights": str(tmp_path / "raft.pt"), "num_updates": 1})
    clip = ("--num_frames", 4, "--frame_stride", 2, "--image_size", 32, "--width", 320)
    video = next(video_folder.rglob("*.mp4"))
    result = run(video, *clip, "--tracker", "raft", "--tracker_options", options, "--output_dir", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_options_that_are_no_mapping_are_refused_and_stored_tracks_not_offered(video_folder, tmp_path):
    result = run(next(video_folder.rglob("*.mp4")), "--tracker_options", "[1]", "--output_dir", tmp_path / "out")
    assert result.returncode == 1 and "tracker_options ('[1]') must be a JSON object" in result.stderr
    assert "Traceback" not in result.stderr
    words = run("--help").stdout
    assert "raft" in words and "stored" not in words


def test_a_start_that_is_too_late_is_refused_in_one_line(video_folder, tmp_path):
    result = run(next(video_folder.rglob("*.mp4")), "--num_frames", 4, "--start", 60, "--output_dir", tmp_path / "out")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert "Start between 0 and" in result.stderr


def test_a_start_that_is_no_number_is_refused_in_one_line(tmp_path):
    result = run(tmp_path / "any.mp4", "--start", "inf", "--output_dir", tmp_path / "out")
    assert result.returncode == 1 and "start (inf) must be a number of seconds" in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "flag, name, words",
    [
        ("--checkpoint", "none", "there is no such folder"),
        ("--checkpoint", "", "has no config.json"),
        ("--output_dir", "file", "file is a file. Name a folder."),
    ],
)
def test_places_that_will_not_do_are_refused_in_one_line(video_folder, tmp_path, flag, name, words):
    (tmp_path / "file").touch()
    places = {"--output_dir": tmp_path / "out", flag: tmp_path / name}
    result = run(next(video_folder.rglob("*.mp4")), *(part for place in places.items() for part in place))
    assert result.returncode == 1 and words in result.stderr and "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_classifier_is_refused_before_anything_is_drawn(video_folder, tmp_path):
    classifier = save_small_classifier(tmp_path / "classifier", ("walk", "run"))
    video = next(video_folder.rglob("*.mp4"))
    result = run(video, "--checkpoint", classifier, "--output_dir", tmp_path / "out")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    assert f"checkpoint ({str(classifier)!r}) is no pre-trained model: it has no 'decoder." in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_single_frame_is_refused_in_one_line(tmp_path):
    write_video(tmp_path / "photo.mp4", np.zeros((1, 64, 64, 3), np.uint8))
    result = run(tmp_path / "photo.mp4", "--output_dir", tmp_path / "out")
    assert result.returncode == 1 and "has one frame, in which nothing can move" in result.stderr
