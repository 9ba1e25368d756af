"""What of a classifier is trained, and what is saved of it."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import VideoMAEConfig, VideoMAEForPreTraining, VideoMAEForVideoClassification

from mme_hf import MMEForVideoClassification, MMEVideoProcessor, preset_config
from mme_hf.training import parse_arguments
from mme_hf.training.finetuning_arguments import FinetuningArguments
from mme_hf.training.finetuning_setup import (
    add_lora,
    build_classifier,
    choose_what_is_trained,
    exported_weights,
    remind_of_directions,
    settings_of_finetuning,
)

SIZES = {"hidden_size": 8, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 8, "image_size": 16}


def model(**options):
    return MMEForVideoClassification(preset_config("tiny", **SIZES, num_frames=2, **options))


def arguments(*argv):
    return parse_arguments(FinetuningArguments, ["--train_dir", "videos", *argv])


def trained_parts(classifier):
    names = [name for name, parameter in classifier.named_parameters() if parameter.requires_grad]
    return {".".join(name.split(".")[: 3 if name.startswith("mme.layers") else 2]) for name in names}


RECIPES = sorted((Path(__file__).parents[2] / "examples" / "configs").glob("finetune-*.yaml"))
HEAD = {"classifier.weight", "classifier.bias", "fc_norm.weight", "fc_norm.bias"}
KNOWN = {0: "jump", 1: "wave"}
BLOCKS = [f"mme.layers.{number}" for number in range(3)]


@pytest.mark.parametrize(
    ("freeze", "expected"),
    [
        (None, {"mme.embeddings", *BLOCKS}),
        ("patch_embed", set(BLOCKS)),
        ("0", set(BLOCKS)),
        ("2", {BLOCKS[2]}),
        ("3", set()),
        ("encoder", set()),
    ],
)
def test_what_is_frozen_is_not_trained_and_the_head_always_is(freeze, expected):
    classifier = model()
    choose_what_is_trained(arguments(*(["--freeze", freeze] if freeze else [])), classifier)
    assert trained_parts(classifier) == HEAD | expected


def test_the_pooler_is_trained_beside_a_frozen_encoder():
    classifier = model(use_attentive_pooling=True)
    choose_what_is_trained(arguments("--freeze", "encoder"), classifier)
    assert trained_parts(classifier) == HEAD | {"pooler.query", "pooler.layer"}


def test_low_rank_changes_of_queries_and_values_are_merged_by_hand_too():
    pytest.importorskip("peft")
    classifier = model()
    before = {name: tensor.clone() for name, tensor in classifier.state_dict().items()}
    add_lora(classifier, 2, 6.0)
    trained = {name for name, parameter in classifier.named_parameters() if parameter.requires_grad}
    changes = {name for name in trained if ".lora_" in name}
    assert trained - changes == HEAD and len(changes) == 3 * 2 * 2
    # They start as no change.
    start = exported_weights(classifier)
    assert start.keys() == before.keys() and all(torch.equal(start[name], before[name]) for name in before)
    attention = classifier.mme.layers[1].attention
    torch.nn.init.normal_(attention.v_proj.lora_B["default"].weight)
    up, down = attention.v_proj.lora_B["default"].weight, attention.v_proj.lora_A["default"].weight
    merged = exported_weights(classifier)
    changed = "mme.layers.1.attention.v_proj.weight"
    assert torch.allclose(merged[changed], before[changed] + 6.0 / 2 * up @ down, atol=1e-6)
    assert all(torch.equal(merged[name], before[name]) for name in before if name != changed)


def test_without_peft_one_line_says_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ValueError, match=r"lora_rank \(4\) needs peft, which is not installed: pip install 'mme_hf\[lora\]'"
    ):
        choose_what_is_trained(arguments("--lora_rank", "4"), model())


def test_a_pooler_is_kept_and_may_be_added(tmp_path):
    records = SimpleNamespace(label_names=("jump", "wave"))
    known = {"id2label": {0: "jump", 1: "wave"}, "label2id": {"jump": 0, "wave": 1}}
    for name, options in (("mean", {}), ("pooled", {"use_attentive_pooling": True})):
        model(**options, **known).save_pretrained(tmp_path / name)
    pooled, _ = build_classifier(arguments("--model_name_or_path", str(tmp_path / "pooled")), records)
    before = MMEForVideoClassification.from_pretrained(tmp_path / "pooled").state_dict()
    assert all(torch.equal(tensor, before[name]) for name, tensor in pooled.state_dict().items())
    flags = ("--model_name_or_path", str(tmp_path / "mean"), "--use_attentive_pooling")
    added, processor = build_classifier(arguments(*flags), records)
    assert added.pooler is not None and (processor.num_frames, processor.crop_size["height"]) == (2, 16)
    assert added.config.drop_path_rate == 0.1


def test_a_new_head_averages_tokens_as_published(tmp_path):
    # VideoMAE's pre-training checkpoints on the Hub have no mean pooling. What a classifier was trained with counts.
    records = SimpleNamespace(label_names=("jump", "wave"))
    sizes = {**SIZES, "num_frames": 2, "decoder_hidden_size": 8, "decoder_num_hidden_layers": 1, "id2label": KNOWN}
    config = VideoMAEConfig(**sizes, decoder_num_attention_heads=2, use_mean_pooling=False)
    for kind, averages in ((VideoMAEForPreTraining, True), (VideoMAEForVideoClassification, False)):
        kind(config).save_pretrained(tmp_path / kind.__name__)
        flags = ("--model_name_or_path", str(tmp_path / kind.__name__))
        classifier, _ = build_classifier(arguments(*flags), records)
        assert (classifier.fc_norm is not None) == classifier.config.use_mean_pooling == averages
        as_told, _ = build_classifier(arguments(*flags, "--model_options", '{"use_mean_pooling": false}'), records)
        assert as_told.fc_norm is None


def test_a_head_whose_classes_have_no_names_makes_way_for_one_of_those_that_there_are(tmp_path):
    model().save_pretrained(tmp_path)
    classifier, _ = build_classifier(
        arguments("--model_name_or_path", str(tmp_path)), SimpleNamespace(label_names=("jump", "wave"))
    )
    assert classifier.config.id2label == KNOWN and classifier.classifier.weight.abs().max() < 0.01


def test_a_classifier_says_how_many_frames_and_pixels_it_now_sees(tmp_path):
    records = SimpleNamespace(label_names=("jump", "wave"))
    model().save_pretrained(tmp_path)
    flags = ("--model_name_or_path", str(tmp_path), "--num_frames", "6", "--image_size", "32")
    classifier, processor = build_classifier(arguments(*flags), records)
    assert processor.num_frames == 6
    assert (classifier.config.num_frames, classifier.config.image_size) == (6, 32)
    with pytest.raises(StrictDataclassError, match=r"drop_path_rate \(1.0\) must be in \[0, 1\)"):
        build_classifier(arguments("--model_name_or_path", str(tmp_path), "--drop_path_rate", "1"), records)


def test_a_resumed_run_insists_on_which_class_has_which_number():
    settings = [
        settings_of_finetuning(
            arguments(), MMEVideoProcessor(), SimpleNamespace(identity="4 videos", label_names=names), None, 1
        )
        for names in (("jump", "wave"), ("wave", "jump"), ("jump", "wave"))
    ]
    assert settings[0] != settings[1] and settings[0] == settings[2]


def test_exported_weights_are_a_copy():
    classifier = model()
    weights = exported_weights(classifier)
    classifier.classifier.bias.data.fill_(7.0)
    assert not weights["classifier.bias"].any()


@pytest.mark.parametrize(
    ("name", "flip_probability", "is_loud"),
    [("Pushing something from left to right", 0.5, True), ("Turning clockwise", 0.1, True), ("wave", 0.5, False)],
)
def test_mirrored_directions_are_warned_of(name, flip_probability, is_loud, caplog):
    with caplog.at_level("INFO"):
        remind_of_directions(("jump", name), flip_probability)
    assert ("WRONG LABEL" in caplog.text) == is_loud and "--no_flip" in caplog.text
    caplog.clear()
    remind_of_directions(("jump", name), 0.0)
    assert not caplog.text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--freeze", "all"], r"freeze \('all'\) must be 'encoder', 'patch_embed' or a number of blocks"),
        (["--freeze", "2", "--lora_rank", "4"], r"lora_rank \(4\) freezes the encoder itself; leave freeze \(2\) out"),
        (["--lora_alpha", "4"], r"lora_alpha \(4.0\) needs --lora_rank"),
        (["--lora_alpha", "0", "--lora_rank", "2"], r"lora_alpha \(0\) must be above 0"),
        (["--layer_decay", "0"], r"layer_decay \(0.0\) must lie in \(0, 1\]"),
        (["--ema_decay", "1"], r"ema_decay \(1.0\) must lie in \[0, 1\)"),
        (["--label_smoothing", "1"], r"label_smoothing \(1.0\) must lie in \[0, 1\)"),
        (["--mixup_alpha", "-1"], r"mixup_alpha \(-1.0\) must be at least 0"),
        (["--early_stopping_patience", "2"], r"early_stopping_patience \(2\) needs videos to judge by"),
        (["--per_device_train_batch_size", "5"], r"does not divide by samples_per_video \(2\)"),
        (["--min_crop_scale", "0"], r"min_crop_scale \(0.0\) must lie in \(0, 1\]"),
        (["--flip_probability", "2"], r"flip_probability \(2.0\) must lie in \[0, 1\]"),
        (["--num_eval_crops", "0"], r"num_eval_crops \(0\) must be at least 1"),
        (["--frame_sampling", "sparse"], r"frame_sampling \('sparse'\) must be one of"),
        (["--model_options", json.dumps({"num_labels": 3})], "which the classes of the videos decide"),
        (["--model_options", json.dumps({"problem_type": "regression"})], "which the classes of the videos decide"),
        (["--model_options", json.dumps({"drop_path_rate": 0.3})], "which has a flag of its own"),
    ],
)
def test_a_flag_with_a_wrong_value_is_named(argv, message):
    with pytest.raises(ValueError, match=message):
        arguments(*argv)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path):
    args = arguments("--config", str(path))
    num_frames = 8 if path.stem == "finetune-tiny" else 16
    assert args.num_frames == num_frames and args.has_validation_data is False


def test_no_flip_wins():
    args = arguments("--no_flip", "--flip_probability", "0.5")
    assert args.training_views.augmentation.flip_probability == 0.0
    assert arguments().training_views.augmentation.flip_probability == 0.5


def test_the_defaults_are_the_published_recipe():
    args = arguments()
    expected = {"layer_decay": 0.75, "drop_path_rate": 0.1, "label_smoothing": 0.1, "mixup_alpha": 0.8}
    expected |= {"cutmix_alpha": 1.0, "weight_decay": 0.05, "adam_beta2": 0.999}
    # Published: 1e-3 for 256 videos of two clips each.
    expected["learning_rate"] = 5e-4
    expected |= {"rand_augment_magnitude": 7, "rand_augment_num_ops": 4, "samples_per_video": 2, "min_crop_scale": 0.25}
    assert {name: getattr(args, name) for name in expected} == expected
