"""What a card says, and what it must not."""

from types import SimpleNamespace

import pytest
from huggingface_hub import ModelCard

from mme_hf import MMEVideoProcessor
from mme_hf.model_card import finetuning_card, local_name, pretraining_card, public_command, public_settings


def card(**changes):
    processor = SimpleNamespace(
        mask_ratio=0.7, num_frames=8, frame_stride=4, crop_size={"height": 112, "width": 112},
        trajectory_num_steps=4, tracker="dis",
    )  # fmt: skip
    options = {
        "config": SimpleNamespace(motion_targets={"position": {"size": 32}}),
        "processor": processor,
        "data_name": "some videos",
        "num_videos": 4,
        "steps": 60,
        "global_batch_size": 16,
        "seconds": 90.0,
        "explained_shares": {"position": 0.0512},
        "command": "accelerate launch examples/pretrain.py",
        "settings": {"seed": 0, "train_dir": None},
        "repository": "user/name",
    }
    return pretraining_card(**{**options, **changes})


def test_the_card_is_valid_and_states_what_was_run():
    parsed = ModelCard(card())
    assert parsed.data.license == "apache-2.0"
    assert parsed.data.library_name == "transformers"
    for fact in ("| position | 0.051 |", "60 updates of 16 clips in 1.5 minutes", "4 videos", "| `seed` | `0` |"):
        assert fact in parsed.text
    assert "train_dir" not in parsed.text


def test_where_nothing_was_measured_nothing_is_claimed():
    assert "nothing is claimed" in card(explained_shares=None)
    assert "a stream of videos" in card(num_videos=None)


def classifier_card(**changes):
    processor = MMEVideoProcessor(num_frames=8, crop_size={"height": 112, "width": 112})
    options = {
        "config": SimpleNamespace(id2label={0: "wave", 1: "point"}),
        "processor": processor,
        "start": "/home/me/pretrained",
        "data_name": "some videos",
        "num_videos": 4,
        "steps": 60,
        "global_batch_size": 16,
        "seconds": 90.0,
        "results": {"top1": 0.75, "top5": 1.0, "num_videos": 8, "views": "2 x 3", "dataset": "others"},
        "command": "accelerate launch examples/finetune.py",
        "settings": {"seed": 0, "train_dir": None},
        "repository": "user/name",
    }
    return finetuning_card(**{**options, **changes})


def test_a_classifiers_card_carries_its_results_to_the_hub():
    parsed = ModelCard(classifier_card())
    figures = {result.metric_name: (result.metric_value, result.dataset_name) for result in parsed.data.eval_results}
    assert figures == {"top-1 accuracy": (0.75, "others"), "top-5 accuracy": (1.0, "others")}
    assert (parsed.data.model_name, parsed.data.pipeline_tag) == ("name", "video-classification")
    for fact in (
        "On others, 8 videos, 2 x 3 views",
        "| 0.750 | 1.000 |",
        "Classes: wave, point.",
        "4 raw frames apart",
    ):
        assert fact in parsed.text
    assert "/home/me" not in parsed.content and "pretrained`" in parsed.text
    bare = classifier_card(results=None, start=None, processor=MMEVideoProcessor(frame_sampling="segments"))
    assert "nothing is claimed" in bare and "started from random weights" in bare and "equal parts" in bare
    assert ModelCard(bare).data.eval_results is None


def test_a_folder_is_named_for_who_stands_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_name("outputs/run/") == "outputs/run"
    assert local_name("../run") == "../run"
    assert local_name(tmp_path / "outputs" / "run") == "outputs/run"
    assert local_name("/somewhere/else/run") == "path/to/run"
    assert 'MMEModel.from_pretrained("outputs/run")' in card(repository="outputs/run")


def test_tokens_and_folders_of_the_machine_stay_out():
    settings = {"hub_token": "hf_secret", "train_dir": "/home/me/videos", "preset": "tiny", "more": {"a": "/home/b"}}
    assert public_settings(settings) == {"train_dir": "videos", "preset": "tiny", "more": {"a": "b"}}
    assert public_settings({"motion_targets": ['{"a": "/home/b"}', "/home/c"]}) == {
        "motion_targets": ['{"a": "b"}', "c"]
    }
    assert public_command(["--model_options", '{"a": "/home/b"}']) == """--model_options '{"a": "b"}'"""
    assert public_command(["--train_dir", "{clips}"]) == "--train_dir '{clips}'"


@pytest.mark.parametrize("secret", [["--hub_token", "hf_secret"], ["--hub_token=hf_secret"]])
def test_commands_are_shown_without_them_too(secret):
    command = public_command(["--train_dir", "/home/me/videos", *secret, "--output_dir=/home/me/run", "--seed", "1"])
    assert command == "--train_dir videos --output_dir=run --seed 1"
