"""examples/predict.py as a user runs it: files, folders, a pipe, and what cannot be read."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import moving_texture, write_video
from PIL import Image
from small_classifiers import load_script, save_small_classifier

from mme_hf import MMEForVideoClassification, MMEVideoProcessor, VideoReadError, open_video

SCRIPT = Path(__file__).parents[2] / "examples" / "predict.py"
NAMES = ("walk", "sit", "run")


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return save_small_classifier(tmp_path_factory.mktemp("model") / "classifier", NAMES)


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """A video of three windows of 8 frames at 30 a second, one of a single window, one that is none."""
    root = tmp_path_factory.mktemp("videos")
    write_video(root / "long.avi", moving_texture(24, 32, 48, velocity=(3.0, 0.0)))
    (root / "more" / "deep").mkdir(parents=True)
    write_video(root / "more" / "short.mp4", moving_texture(8, 32, 48, seed=1))
    write_video(root / "more" / "deep" / "long.mp4", moving_texture(16, 32, 48, seed=2))
    (root / "broken.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.fixture
def predict(script, model_dir, tmp_path, monkeypatch, capsys):
    """Function that runs the script on words of a command line and returns (exit status, output, errors, results)."""

    def run(*words):
        places = ["--output_dir", tmp_path / "out", "--json", tmp_path / "new" / "results.json"]
        line = ["predict.py", "--model_name_or_path", model_dir, *places, *words]
        monkeypatch.setattr(sys, "argv", [str(word) for word in line])
        status = 0
        try:
            script.main()
        except SystemExit as stop:
            status = stop.code
        path = tmp_path / "new" / "results.json"
        return status, *capsys.readouterr(), json.loads(path.read_text()) if path.exists() else None

    return run


def scores_by_hand(model_dir, path, starts):
    """Return the mean over windows that begin at `starts` of the softmax, (classes,)."""
    model, processor = (
        MMEForVideoClassification.from_pretrained(model_dir),
        MMEVideoProcessor.from_pretrained(model_dir),
    )
    with open_video(path) as reader:
        clips = [reader.frames_at(range(start, start + 8, 2)) for start in starts]
    with torch.no_grad():
        return model(**processor(clips, do_sample_frames=False, return_tensors="pt")).logits.softmax(-1)


def test_a_video_has_the_mean_of_its_windows(predict, videos, model_dir, tmp_path):
    status, output, _, (result,) = predict(videos / "long.avi", "--top_k", 2)
    scores = scores_by_hand(model_dir, videos / "long.avi", (0, 8, 16))
    assert status == 0 and result["seconds"] == pytest.approx(0.8)
    best = scores.mean(0).sort(descending=True)
    assert [entry["label"] for entry in result["predictions"]] == [NAMES[label] for label in best.indices[:2]]
    assert [entry["score"] for entry in result["predictions"]] == pytest.approx(best.values[:2].tolist(), abs=1e-5)
    times = [(window["start_seconds"], window["end_seconds"]) for window in result["windows"]]
    assert times == [(0.0, 0.267), (0.267, 0.533), (0.533, 0.8)]
    for window, own in zip(result["windows"], scores, strict=True):
        assert window["predictions"][0]["label"] == NAMES[own.argmax()]
        assert window["predictions"][0]["score"] == pytest.approx(float(own.max()), abs=1e-5)
    assert f"{100 * best.values[0]:.1f} %" in output and "█" in output and "3 windows" in output
    with Image.open(tmp_path / "out" / "long_timeline.png") as picture:
        assert picture.width > 800 and result["timeline"] == str(tmp_path / "out" / "long_timeline.png")


def test_what_cannot_be_read_is_told_and_the_rest_is_done(predict, videos, tmp_path):
    status, output, errors, results = predict(
        videos / "broken.mp4", tmp_path / "none.mp4", videos / "more", videos / "long.avi"
    )
    assert status == 1
    assert [Path(result["video"]).name for result in results if "error" not in result] == [
        "long.mp4",
        "short.mp4",
        "long.avi",
    ]
    assert [Path(result["video"]).name for result in results if "error" in result] == ["broken.mp4", "none.mp4"]
    assert "none.mp4: not read: there is no such file" in errors and "Traceback" not in errors
    # Two of one name, and none of a single window.
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["long_2_timeline.png", "long_timeline.png"]
    assert "1 window\n" in output


def test_a_link_in_a_folder_that_leads_nowhere_is_told(predict, videos, tmp_path):
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "a.avi").symlink_to(videos / "long.avi")
    (tmp_path / "linked" / "b.mp4").symlink_to(tmp_path / "gone.mp4")
    (tmp_path / "linked" / os.fsdecode(b"caf\xe9.mp4")).touch()
    status, _, errors, results = predict(tmp_path / "linked")
    assert status == 1 and "b.mp4: not read: no such file: it is a link to" in errors
    assert "its name is no UTF-8 text: rename it" in errors
    assert [Path(result["video"]).name for result in results if "error" not in result] == ["a.avi"]


def test_what_was_found_is_kept_where_the_picture_fails(predict, script, videos, monkeypatch):
    def fails(self, name):
        raise VideoReadError(name, "frame 23 does not decode.")

    monkeypatch.setattr(script.Prediction, "_pictures", fails)
    status, _, errors, (found,) = predict(videos / "long.avi")
    assert status == 1 and len(found["windows"]) == 3 and found["predictions"] and "error" not in found
    assert found["timeline_error"] == "frame 23 does not decode." and "long.avi: not drawn: frame 23" in errors


def test_a_place_that_cannot_be_written_to_is_refused_before_a_video_is_read(predict, videos, tmp_path):
    (tmp_path / "file").touch()
    for flag, place, words in (
        ("--json", tmp_path, "is a folder. Name a file."),
        ("--json", tmp_path / "file" / "x.json", "cannot be made: .*file is a file"),
        ("--output_dir", tmp_path / "file", "cannot be made: .*file is a file"),
    ):
        status, output, _, _ = predict(videos / "long.avi", flag, place)
        assert re.match(rf"predict.py: error: {flag[2:]} \('.*'\) {words}", status) and "windows" not in output


def test_a_stream_whose_frames_change_size_is_told_and_the_rest_is_done(predict, videos, tmp_path):
    parts = [write_video(tmp_path / "part.ts", moving_texture(12, *size)).read_bytes() for size in ((32, 32), (48, 64))]
    (tmp_path / "joined.ts").write_bytes(b"".join(parts))
    status, _, errors, results = predict((tmp_path / "joined.ts").as_uri(), tmp_path / "joined.ts", videos / "long.avi")
    assert status == 1 and errors.count("not read: its frames change size from 32x32 to 64x48 by frame") == 2
    assert ["error" in result for result in results] == [True, True, False]


def test_a_pipe_is_read_as_the_file_is(videos, model_dir, tmp_path):
    line = [sys.executable, SCRIPT, "-", "--model_name_or_path", model_dir, "--json", tmp_path / "results.json"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "CUDA_VISIBLE_DEVICES": ""}
    process = subprocess.Popen(
        list(map(str, line)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=False, cwd=tmp_path, env=environment
    )
    output, _ = process.communicate((videos / "long.avi").read_bytes(), timeout=240)
    assert process.returncode == 0
    (result,) = json.loads((tmp_path / "results.json").read_text())
    expected = scores_by_hand(model_dir, videos / "long.avi", (0, 8, 16)).mean(0)
    found = {entry["label"]: entry["score"] for entry in result["predictions"]}
    assert found == pytest.approx(dict(zip(NAMES, expected.tolist(), strict=True)), abs=1e-5)
    assert result["video"] == "standard input" and b"as it comes" in output
    assert (tmp_path / "outputs" / "predict" / "stream_timeline.png").is_file()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--top_k", "2"], "no video is named. Give files, folders, URLs"),
        (["a.mp4", "--window_step", "0"], "window_step (0.0) must lie in (0, 1]"),
        (["a.mp4", "--topk", "3"], "--topk is no flag. Did you mean --top_k?"),
        (["a.mp4", "--image_size", "40"], "image_size (40) does not divide by patch_size (16)"),
    ],
)
def test_wrong_flags_are_one_line(predict, words, message):
    status, _, _, results = predict(*words)
    assert re.fullmatch(f"predict.py: error: {re.escape(message)}.*", status) and results is None


def test_bars_are_exact_to_an_eighth_of_a_character(script):
    # 30 characters are 240 eighths: 0.5 is 15 whole ones, 0.0125 is 3 eighths.
    assert script.bar(0.5) == "█" * 15 + " " * 15
    assert script.bar(0.0125) == "▍" + " " * 29
    assert script.bar(1.0) == "█" * 30 and script.bar(0.0) == " " * 30
