"""Fine-tuning as a user runs it: what it learns, what it leaves, and how it says no."""

import json
import logging
import shutil

import pytest
import runs
import torch
from accelerate import Accelerator

from mme_hf import MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor, preset_config
from mme_hf.data import load_folder_records
from mme_hf.data.labelled_clips import build_labelled_loader
from mme_hf.model_card import render_model_card
from mme_hf.training.prediction import predict_videos

MODEL = json.loads(runs.SMALL_CLASSIFIER["model_options"])
# No recipe: clips as they are.
PLAIN = {
    "rand_augment_num_ops": 0,
    "random_erasing_probability": 0,
    "mixup_alpha": 0,
    "cutmix_alpha": 0,
    "drop_path_rate": 0,
    "layer_decay": 1,
}


@pytest.fixture
def data(direction_videos):
    return direction_videos


def assert_card_runs(folder, data, start, monkeypatch):
    """Run the code of a card as its reader does: from the folder that the run was started in."""
    monkeypatch.chdir(start)
    code = (folder / "README.md").read_text().split("```python")[1].split("```")[0]
    video = next((data["validation_dir"] / "left").iterdir())
    names = {}
    exec(code.replace("video.mp4", str(video)).replace("path/to/", ""), names)
    assert names["logits"].shape == (1, 2)


def test_it_learns_a_direction_and_leaves_all_that_it_promises(data, tmp_path, monkeypatch):
    videos = tmp_path / "train"
    shutil.copytree(data["train_dir"], videos)
    (videos / "right" / "broken.mp4").write_bytes(b"no video")
    flags = {"train_dir": videos, "validation_dir": data["validation_dir"], "max_bad_fraction": 0.1, **PLAIN}
    flags |= {"num_train_epochs": 18, "per_device_train_batch_size": 16, "learning_rate": 0.2, "with_remote_code": True}
    output = runs.finish(runs.start(tmp_path / "run", script=runs.FINETUNE, **flags))
    folder = tmp_path / "run"
    assert (folder / "modeling_mme.py").is_file()
    assert "AutoModelForVideoClassification" in json.loads((folder / "config.json").read_text())["auto_map"]

    results = json.loads((folder / "eval_results.json").read_text())
    assert results["top1"] >= 0.9
    known = {"top5": 1.0, "num_videos": 10, "views": "1 x 1", "dataset": "validation"}
    assert results == {**known, "top1": results["top1"]}
    for words in ("validation: validation (10 videos)", "the best so far", "1 bad video listed in", "epoch 18.4"):
        assert words in output
    tops = runs.logged(folder, "validation/top1", "mme_finetuning")
    # 34 clips an epoch, 16 an update: epochs 1 to 18 end within updates 3, 5, 7, 9, 11, 13, 15, 17, 20, ..., 39.
    assert list(tops)[:9] == [3, 5, 7, 9, 11, 13, 15, 17, 20] and list(tops)[-1] == 39 and len(tops) == 18
    assert max(tops.values()) == pytest.approx(results["top1"])

    # The saved model is the one that was measured.
    model, report = MMEForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and model.config.id2label == {0: "left", 1: "right"}
    records = load_folder_records(data["validation_dir"])
    loader = build_labelled_loader(
        records, MMEVideoProcessor.from_pretrained(folder), videos_per_batch=5, shuffle=False, num_epochs=1
    )
    predictions = predict_videos(Accelerator(cpu=True), model, loader, clips_per_forward=5)
    assert (predictions.scores.argmax(1) == predictions.labels).float().mean().item() == pytest.approx(results["top1"])
    MMEForVideoClassification.from_pretrained(folder / "last")

    card = (folder / "README.md").read_text()
    assert f"| {results['top1']:.3f} | 1.000 |" in card and str(tmp_path) not in card
    assert "model-index" in card and 'MMEForVideoClassification.from_pretrained("run")' in card
    assert_card_runs(folder, data, tmp_path, monkeypatch)
    assert render_model_card(folder).read_text() == card
    (bad,) = [json.loads(line) for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    assert bad["source"] == str(videos / "right" / "broken.mp4")


def test_the_average_is_what_is_judged_and_saved(data, tmp_path):
    own = runs.finetune_here(tmp_path / "run", **data, max_train_steps=3, ema_decay=0.5, learning_rate=0.2)
    saved = runs.weights(tmp_path / "run" / "last")
    averaged, trained = own.average.module.state_dict(), own.model.state_dict()
    assert all(torch.equal(saved[name], averaged[name]) for name in saved)
    assert not torch.equal(saved["classifier.weight"], trained["classifier.weight"])


def test_low_rank_changes_are_merged_so_that_nobody_needs_peft(data, tmp_path):
    pytest.importorskip("peft")
    flags = {"max_train_steps": 3, "lora_rank": 2, "learning_rate": 0.2, "use_attentive_pooling": "true"}
    own = runs.finetune_here(tmp_path / "run", **data, **flags)
    merged, report = MMEForVideoClassification.from_pretrained(tmp_path / "run" / "last", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    clips = torch.randn(2, 4, 3, 16, 16)
    own.model.eval()
    with torch.no_grad():
        assert torch.allclose(merged(clips).logits, own.model(clips).logits, atol=1e-5)
    changes = [tensor for name, tensor in own.model.named_parameters() if "lora_B" in name]
    assert len(changes) == 2 * 2 and all(tensor.abs().sum() > 0 for tensor in changes)


def test_without_validation_the_last_model_is_saved_and_nothing_is_claimed(data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        own = runs.finetune_here(tmp_path / "run", train_dir=data["train_dir"], max_train_steps=1)
    assert "no best model is chosen: the last one is saved" in caplog.text
    assert not (tmp_path / "run" / "last").exists() and not (tmp_path / "run" / "eval_results.json").exists()
    saved, trained = runs.weights(tmp_path / "run"), own.model.state_dict()
    assert all(torch.equal(saved[name], trained[name]) for name in saved)
    assert "so nothing is claimed" in (tmp_path / "run" / "README.md").read_text()


def test_it_stops_early_and_keeps_the_best(data, tmp_path, caplog):
    # With no learning rate to speak of, no evaluation is better than the first.
    flags = {"learning_rate": 1e-9, "min_learning_rate": 0, "eval_steps": 1, "early_stopping_patience": 2}
    with caplog.at_level(logging.INFO):
        own = runs.finetune_here(tmp_path / "run", **data, **flags)
    assert "stopped early: not better in 2 evaluations" in caplog.text
    assert (own.state.step, own.best.step) == (3, 1)


def test_other_kinds_of_data_train_too(data, tmp_path, caplog, monkeypatch):
    # A data set of two splits, as a stream: judged at its end alone.
    root = data["train_dir"].parent
    stream = {"dataset_name": root, "validation_split": "validation", "streaming": "true", "max_train_steps": 3}
    with caplog.at_level(logging.INFO):
        own = runs.finetune_here(tmp_path / "stream", **stream, frame_sampling="segments")
    assert "validation: validation (a stream)" in caplog.text
    judged = [line for line in caplog.messages if "validation top-1" in line]
    assert len(judged) == 1 and judged[0].startswith("update 3: ")
    assert (own.best.step, own.best.result.num_videos) == (3, 10)
    assert_card_runs(tmp_path / "stream", data, tmp_path, monkeypatch)
    # A manifest; three crops of two clips of each video to judge by.
    for split, name in (("train_dir", "train.txt"), ("validation_dir", "validation.txt")):
        files = sorted(data[split].rglob("*.mp4"))
        (tmp_path / name).write_text("".join(f"{path} {path.parent.name}\n" for path in files))
    manifests = {"train_manifest": tmp_path / "train.txt", "validation_manifest": tmp_path / "validation.txt"}
    views = {"num_eval_segments": 2, "num_eval_crops": 3}
    runs.finetune_here(tmp_path / "manifest", **manifests, **views, max_train_steps=1)
    results = json.loads((tmp_path / "manifest" / "eval_results.json").read_text())
    assert (results["views"], results["num_videos"]) == ("2 x 3", 10)


def test_a_head_is_kept_where_it_knows_the_classes_and_new_where_not(data, tmp_path, caplog):
    # The same classes in another order, as a model that was trained elsewhere may have them.
    known = {"id2label": {0: "right", 1: "left"}, "label2id": {"right": 0, "left": 1}}
    sizes = {"image_size": 16, "num_frames": 4}
    MMEForVideoClassification(preset_config("tiny", **sizes, **MODEL, **known)).save_pretrained(tmp_path / "known")
    other = {"id2label": {0: "up", 1: "down"}, "label2id": {"up": 0, "down": 1}}
    stranger = MMEForVideoClassification(preset_config("tiny", **sizes, **MODEL, **other))
    stranger.classifier.weight.data.fill_(1.0)
    stranger.save_pretrained(tmp_path / "stranger")
    MMEForPreTraining(preset_config("tiny", **sizes, **MODEL)).save_pretrained(tmp_path / "pretrained")
    flags = {**data, "max_train_steps": 1, "learning_rate": 1e-9, "min_learning_rate": 0, "model_options": "{}"}
    messages = {}
    for name in ("known", "stranger", "pretrained"):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            own = runs.finetune_here(tmp_path / f"{name}_run", model_name_or_path=tmp_path / name, **flags)
        messages[name] = [line for line in caplog.messages if line.startswith("head:")]
        before, after = runs.weights(tmp_path / name), own.model.state_dict()
        shared = {key for key in before if key in after and not key.startswith(("classifier", "fc_norm"))}
        assert len(shared) > 20 and all(torch.allclose(before[key], after[key], atol=1e-6) for key in shared)
        assert own.model.config.id2label == ({0: "right", 1: "left"} if name == "known" else {0: "left", 1: "right"})
        if name == "known":
            assert torch.allclose(before["classifier.weight"], after["classifier.weight"], atol=1e-6)
        if name == "stranger":
            assert after["classifier.weight"].abs().max() < 0.01
    assert messages == {
        "known": [],
        "stranger": ["head: new, for 2 classes; the checkpoint tells 2 other classes apart, such as 'up'"],
        "pretrained": ["head: new, for 2 classes; the checkpoint has no head"],
    }


def test_classes_that_say_a_direction_are_a_loud_reminder(data, tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        runs.finetune_here(tmp_path / "run", train_dir=data["train_dir"], max_train_steps=1, no_flip="false")
    reminder = "classes such as 'left' tell left from right: MIRRORED CLIPS HAVE THE WRONG LABEL. Use --no_flip."
    assert reminder in caplog.text


def test_data_that_cannot_be_learnt_from_end_the_run_with_one_line(data, tmp_path):
    one = tmp_path / "one"
    shutil.copytree(data["train_dir"] / "left", one / "left")
    unlabelled = data["train_dir"] / "left"
    other = tmp_path / "other"
    shutil.copytree(data["train_dir"] / "left", other / "up")
    for flags, words in (
        ({"train_dir": one}, "error: one has one class, 'left': there is nothing to tell apart."),
        ({"train_dir": unlabelled}, "error: left has no labels. Give class folders"),
        (
            {**data, "validation_dir": other},
            "error: other has classes that the model does not know, 1 in all",
        ),
        ({**data, "freeze": "5"}, "error: freeze (5) is more than the 2 blocks of the model."),
        ({**data, "model_name_or_path": tmp_path}, "has no config.json"),
    ):
        assert words in runs.last_words_of_finetuning(tmp_path / "run", **flags)
        assert not (tmp_path / "run").exists()


def test_a_run_that_cannot_go_on_ends_with_one_line(data, tmp_path):
    flags = {**data, "learning_rate": 1e30, "max_train_steps": 5}
    words = runs.last_words_of_finetuning(tmp_path / "wild", **flags)
    assert "stopped: step 2: loss" in words and "Videos of the batch: " in words
    # The first update still has a finite loss and gradient; it is what comes of it that has not.
    words = runs.last_words_of_finetuning(tmp_path / "judged", **{**flags, "learning_rate": 1e38}, eval_steps=1)
    assert "stopped: update 1: the model's scores of the validation videos are not finite" in words
    videos = tmp_path / "validation"
    shutil.copytree(data["validation_dir"], videos)
    (videos / "left" / "broken.mp4").write_bytes(b"no video")
    words = runs.last_words_of_finetuning(tmp_path / "bad", **{**data, "validation_dir": videos}, max_train_steps=1)
    assert "stopped: 1 of 11 videos are bad, more than max_bad_fraction (5%) allows" in words
