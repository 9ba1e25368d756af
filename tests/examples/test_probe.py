"""examples/probe.py as a user runs it, on two classes that move to the left and to the right."""

import json
import logging

import pytest
from conftest import moving_texture, write_video
from datasets import ClassLabel, Dataset, Features, Video
from scripts import run_on_two_processes, run_script, stop_of_script

from mme_hf import MMEConfig, MMEForPreTraining, MMEVideoProcessor

FLAGS = {"preset": "tiny", "image_size": 32, "num_frames": 2, "frame_stride": 2, "dataloader_num_workers": 0}
FLAGS |= {"probes": ["linear", "knn"], "num_seeds": 2, "num_train_views": 1, "num_train_crops": 2}
FLAGS |= {"num_eval_segments": 1}


@pytest.fixture(scope="module")
def held_out_videos(tmp_path_factory):
    root = tmp_path_factory.mktemp("held_out_videos")
    for index, name in enumerate(("left", "right")):
        (root / name).mkdir()
        write_video(root / name / "a.mp4", moving_texture(8, 48, 64, velocity=(2.0 * index - 1, 0.0), seed=index))
    return root


def test_a_table_results_and_features_that_are_computed_once(video_folder, held_out_videos, tmp_path, caplog):
    flags = {**FLAGS, "train_dir": video_folder, "validation_dir": held_out_videos, "output_dir": tmp_path / "probe"}
    caplog.set_level(logging.INFO)
    run_script("probe", **flags)
    first = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert (first["num_train_videos"], first["num_test_videos"], first["chance"]) == (6, 2, 0.5)
    assert set(first["probes"]) == {"linear", "knn"}
    for summary in first["probes"].values():
        assert [result["seed"] for result in summary["seeds"]] == [0, 1]
        assert all(result["chosen"] and result["num_train_videos"] == 6 for result in summary["seeds"])
    assert "features of 6 training videos, 2 clips each: computed" in caplog.text
    assert "features of 2 test videos, 3 clips each: computed" in caplog.text
    assert str(tmp_path.parent) not in (tmp_path / "probe" / "results.json").read_text()

    caplog.clear()
    run_script("probe", **flags)
    assert caplog.text.count("read from the cache") == 2 and "computed" not in caplog.text
    again = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert again["probes"] == first["probes"]

    caplog.clear()  # the test videos are written anew, then the weights are others
    (held_out_videos / "left" / "a.mp4").touch()
    run_script("probe", **{**flags, "shots": 2, "probes": ["knn"]})
    assert "training videos, 2 clips each: read from the cache" in caplog.text
    assert "test videos, 3 clips each: computed" in caplog.text
    few = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert few["probes"]["knn"]["seeds"][0]["num_train_videos"] == 4
    caplog.clear()
    run_script("probe", **{**flags, "seed": 1, "probes": ["knn"]})
    assert caplog.text.count("computed") == 2


def test_an_attentive_probe_of_a_saved_model_leaves_bad_videos_out(video_folder, held_out_videos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    MMEForPreTraining(MMEConfig(image_size=32, num_frames=4, **sizes)).save_pretrained(tmp_path / "model")
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    MMEVideoProcessor(num_frames=4, frame_stride=2, **size).save_pretrained(tmp_path / "model")
    (tmp_path / "broken.mp4").write_bytes(b"no video")
    videos = sorted(video_folder.rglob("*.mp4"))
    lines = [f"{path},{path.parent.name},{number % 3}" for number, path in enumerate(videos)]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,group", "broken.mp4,left,3", *lines]))
    run_script(
        "probe",
        model_name_or_path=tmp_path / "model",
        train_manifest=tmp_path / "train.csv",
        validation_dir=held_out_videos,
        probes="attentive",
        num_seeds=1,
        max_bad_fraction=0.5,
        dataloader_num_workers=0,
        output_dir=tmp_path / "probe",
    )
    results = json.loads((tmp_path / "probe" / "results.json").read_text())
    assert results["num_train_videos"] == 6 and results["probes"]["attentive"]["test_top1_std"] is None
    (bad,) = [json.loads(line) for line in (tmp_path / "probe" / "bad_training_videos.jsonl").read_text().splitlines()]
    assert bad["source"].endswith("broken.mp4") and "features of 6 training videos" in caplog.text


def test_two_processes_share_the_videos_and_one_judges_them(video_folder, held_out_videos, tmp_path):
    flags = {**FLAGS, "train_dir": video_folder, "validation_dir": held_out_videos, "num_seeds": 1, "probes": "knn"}
    run_script("probe", **flags, output_dir=tmp_path / "one")
    output = run_on_two_processes("probe", **flags, output_dir=tmp_path / "two")
    one, two = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("one", "two"))
    assert (two["num_train_videos"], two["num_test_videos"]) == (6, 2)
    assert one["probes"] == two["probes"] and output.count("written to") == 1


@pytest.mark.parametrize("is_divided", [True, False])
def test_groups_that_cannot_be_left_out_are_told(video_folder, held_out_videos, tmp_path, caplog, is_divided):
    videos = sorted(video_folder.rglob("*.mp4"))
    lines = [f"{path},{path.parent.name},{path.name if is_divided else path.parent.name}" for path in videos]
    (tmp_path / "train.csv").write_text("\n".join(["path,label,group", *lines]))
    flags = {"train_manifest": tmp_path / "train.csv", "validation_dir": held_out_videos, "probes": "knn"}
    run_script("probe", **{**FLAGS, **flags, "num_seeds": 1, "output_dir": tmp_path / "probe"})
    assert ("most classes are of one group alone" in caplog.text) is not is_divided


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"validation_dir": None}, "No videos to test by are named"),
        ({"probes": "svm"}, r"probes \(svm\) must be of linear, attentive, knn"),
        ({"shots": 1}, r"shots \(1\) must be at least 2"),
        ({"preset": None}, "Give --model_name_or_path, or --preset"),
        ({"streaming": True, "train_dir": None, "dataset_name": "x"}, "Leave --streaming out"),
        ({"num_seed": 3}, r"--num_seed is no flag. Did you mean --num_seeds"),
    ],
)
def test_a_mistake_is_one_line(video_folder, tmp_path, flags, message):
    given = {**FLAGS, "train_dir": video_folder, "validation_dir": video_folder, "output_dir": tmp_path / "probe"}
    given = {name: value for name, value in {**given, **flags}.items() if value is not None}
    stop_of_script("probe", rf"^probe\.py: error: .*{message}", **given)
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize("num_videos", [1, 3])
def test_one_class_or_one_video_is_refused_before_features_are_computed(video_folder, tmp_path, num_videos):
    videos = sorted((video_folder / "left").glob("*.mp4"))[:num_videos]
    features = Features({"video": Video(), "label": ClassLabel(names=["left", "right"])})
    (tmp_path / "set" / "data").mkdir(parents=True)
    columns = {"video": list(map(str, videos)), "label": [0] * num_videos}  # another class has a name, but no video
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    (tmp_path / "list.csv").write_text("\n".join(f"{video},left" for video in videos))
    for source in ({"dataset_name": tmp_path / "set"}, {"train_manifest": tmp_path / "list.csv"}):
        flags = {**FLAGS, **source, "validation_dir": video_folder, "output_dir": tmp_path / "probe"}
        stop_of_script("probe", r"^probe\.py: error: .* has one class, 'left': there is nothing to tell apart", **flags)
    assert not (tmp_path / "probe").exists()


@pytest.mark.parametrize("unknown", [None, -1])
def test_a_video_without_a_label_is_one_line(video_folder, held_out_videos, tmp_path, unknown):
    videos = sorted(map(str, video_folder.rglob("*.mp4")))
    features = Features({"video": Video(), "label": ClassLabel(names=["left", "right"])})
    columns = {"video": videos[-2:], "label": [1, unknown]}
    (tmp_path / "set" / "data").mkdir(parents=True)
    Dataset.from_dict(columns, features=features).to_parquet(tmp_path / "set" / "data" / "train-0.parquet")
    flags = {
        **FLAGS,
        "dataset_name": tmp_path / "set",
        "validation_dir": held_out_videos,
        "output_dir": tmp_path / "probe",
    }
    stop_of_script("probe", r"^probe\.py: error: .* has videos without a label\. Leave them out", **flags)


def test_more_shots_than_videos_is_one_line(video_folder, held_out_videos, tmp_path):
    flags = {**FLAGS, "train_dir": video_folder, "validation_dir": held_out_videos, "output_dir": tmp_path / "probe"}
    stop_of_script("probe", r"^probe\.py: error: shots \(4\) is more than the 3 training", **flags, shots=4)
