"""examples/evaluate.py as a user runs it: alone, on two processes, and with what it cannot judge."""

import csv
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import runs
import torch
from conftest import moving_texture, write_video
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from PIL import Image
from small_classifiers import load_script, save_small_classifier

from mme_hf import MMEForVideoClassification, MMEModel, MMEVideoProcessor, open_video
from mme_hf.model_card import ConversionFacts, main
from mme_hf.model_card_facts import save_facts

SCRIPT = Path(__file__).parents[2] / "examples" / "evaluate.py"
NUM_FILES = 3 + 2  # a prime number: does not divide among two processes
FLAGS = {"num_eval_segments": 2, "num_eval_crops": 1, "dataloader_num_workers": 0, "max_bad_fraction": 0.5}


def start(output_dir, *, launcher=(), **flags):
    merged = {**FLAGS, "output_dir": output_dir, **flags}
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(
        [sys.executable, *launcher, str(SCRIPT), *(f"--{name}={value}" for name, value in merged.items())],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=output_dir.parent,
    )


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    """Folder with classes "run" and "walk": five videos of which one is broken."""
    root = tmp_path_factory.mktemp("videos") / "mine" / "test"
    for index in range(NUM_FILES):
        folder = root / ("run", "walk")[index % 2]
        folder.mkdir(parents=True, exist_ok=True)
        write_video(folder / f"clip_{index}.mp4", moving_texture(12, 32, 40, velocity=(3.0, 0.0), seed=index))
    (root / "run" / "clip_4.mp4").write_bytes(b"no video")
    return root


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    """A classifier whose classes are numbered otherwise than the videos', and are one more."""
    return save_small_classifier(tmp_path_factory.mktemp("model") / "classifier", ("walk", "sit", "run"))


@pytest.fixture(scope="module")
def evaluated(videos, model_dir, tmp_path_factory):
    folder = tmp_path_factory.mktemp("alone") / "results"
    flags = {"model_name_or_path": model_dir, "validation_dir": videos, "motion_sensitivity": True}
    return folder, runs.finish(start(folder, **flags))


def predictions(folder):
    with open(folder / "predictions.csv", newline="") as file:
        return list(csv.DictReader(file))


def results(folder):
    return json.loads((folder / "eval_results.json").read_text())


def test_scores_are_means_over_views_of_what_the_model_says(videos, model_dir, evaluated):
    """Each video once, and its score as the processor and the model give it when used by hand."""
    rows = predictions(evaluated[0])
    assert [Path(row["video"]).name for row in rows] == ["clip_0.mp4", "clip_2.mp4", "clip_1.mp4", "clip_3.mp4"]
    assert [row["label"] for row in rows] == ["run", "run", "walk", "walk"]
    model, processor = (
        MMEForVideoClassification.from_pretrained(model_dir),
        MMEVideoProcessor.from_pretrained(model_dir),
    )
    for row in rows:
        with open_video(row["video"]) as reader:  # windows of 7 of 12 frames: the first and the last
            views = [reader.frames_at(range(first, first + 7, 2)) for first in (0, 5)]
        inputs = processor(views, do_sample_frames=False, return_tensors="pt")
        with torch.no_grad():
            scores = model(**inputs).logits.softmax(-1).mean(0)
        assert row["prediction"] == model.config.id2label[int(scores.argmax())]
        assert float(row["score"]) == pytest.approx(float(scores.max()), abs=1e-5)


def test_figures_are_those_of_the_predictions(evaluated):
    folder, output = evaluated
    found, rows = results(folder), predictions(folder)
    is_right = [row["label"] == row["prediction"] for row in rows]
    assert found["top1"] == sum(is_right) / 4 and found["top5"] == 1.0
    assert found["mean_class_accuracy"] == (sum(is_right[:2]) / 2 + sum(is_right[2:]) / 2) / 2
    assert (found["num_videos"], found["num_bad_videos"], found["views"]) == (4, 1, "2 x 1")
    assert (found["dataset"], found["split"]) == ("mine", "test")
    assert {row["label"]: row["num_videos"] for row in found["per_class"]} == {"walk": 2, "sit": 0, "run": 2}
    assert found["top1_interval"][0] <= found["top1"] <= found["top1_interval"][1]
    assert list(found["motion_sensitivity"]) == ["forwards", "reversed", "shuffled", "frozen"]
    assert found["motion_sensitivity"]["forwards"]["top1"] == found["top1"]
    (bad,) = (json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines())
    assert bad["source"].endswith("clip_4.mp4")
    for words in (f"{100 * found['top1']:.1f} %", "unreadable videos    1 of 5", "videos/s", "it is right on"):
        assert words in output
    with Image.open(folder / "confusion.png") as picture:
        assert min(picture.size) > 200


def test_a_model_card_can_carry_the_results(evaluated):
    found = results(evaluated[0])
    card = ModelCardData(model_name="mine", eval_results=[EvalResult(**entry) for entry in found["eval_results"]])
    (entry,) = card.to_dict()["model-index"][0]["results"]
    assert entry["dataset"] == {"type": "mine", "name": "mine", "split": "test"}
    values = {metric["name"]: metric["value"] for metric in entry["metrics"]}
    assert values["top-1 accuracy, 2 x 1 views"] == found["top1"] and len(values) == 4


def test_a_model_card_is_rendered_with_the_results(evaluated, model_dir, tmp_path):
    folder = shutil.copytree(model_dir, tmp_path / "model")
    facts = ConversionFacts(
        task="classification", repository="mine", layout="", source="", published=None, left_out=0, command=""
    )
    save_facts(folder, facts)
    found = results(evaluated[0])
    main([str(folder), "--evaluation", str(evaluated[0] / "eval_results.json")])
    card = ModelCard.load(folder / "README.md")
    values = {figure.metric_name: figure.metric_value for figure in card.data.eval_results}
    assert values["top-1 accuracy, 2 x 1 views"] == found["top1"] and len(values) == 4
    assert f"| top-1 accuracy | {found['top1']:.3f} |" in card.text and "mine, split test, 4 videos" in card.text
    assert f"| top-1, frames frozen | {found['motion_sensitivity']['frozen']['top1']:.3f} |" in card.text


def test_two_processes_count_every_video_once(videos, model_dir, evaluated, tmp_path):
    launcher = ("-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(runs.free_port()))
    flags = {"model_name_or_path": model_dir, "validation_dir": videos}
    output = runs.finish(start(tmp_path / "two", launcher=launcher, **flags))
    alone, two = predictions(evaluated[0]), predictions(tmp_path / "two")
    assert [(row["video"], row["prediction"]) for row in two] == [(row["video"], row["prediction"]) for row in alone]
    figures = ("top1", "ece", "num_videos", "num_bad_videos", "per_class")
    expected = results(evaluated[0])
    assert {name: results(tmp_path / "two")[name] for name in figures} == {
        name: pytest.approx(expected[name]) if name == "ece" else expected[name] for name in figures
    }
    assert output.count("top-1") == 1


@pytest.fixture(scope="module")
def script():
    return load_script(SCRIPT)


@pytest.mark.parametrize("kind", ["no classifier", "unknown class", "no data"])
def test_what_cannot_be_judged_is_one_line(kind, script, videos, model_dir, tmp_path, monkeypatch):
    flags = {"model_name_or_path": model_dir, "validation_dir": videos, "output_dir": tmp_path / "out"}
    if kind == "no classifier":
        encoder = MMEModel(MMEForVideoClassification.from_pretrained(model_dir).config)
        encoder.save_pretrained(tmp_path / "encoder")
        flags["model_name_or_path"] = tmp_path / "encoder"
        words = "is no trained classifier: it has no 'classifier.bias'"
    elif kind == "unknown class":
        (tmp_path / "other" / "jump").mkdir(parents=True)
        (tmp_path / "other" / "jump" / "a.mp4").symlink_to(videos / "run" / "clip_0.mp4")
        flags["validation_dir"] = tmp_path / "other"
        words = "such as 'jump'; the model knows 3, such as 'walk'"
    else:
        flags["validation_dir"], words = "", "no videos to judge by are named. Give --validation_dir"
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *(f"--{name}={value}" for name, value in flags.items())])
    with pytest.raises(SystemExit, match=f"evaluate.py: error: .*{re.escape(words)}"):
        script.main()
    assert not (tmp_path / "out").exists()
