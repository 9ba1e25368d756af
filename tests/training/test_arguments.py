"""Flags and recipes."""

from pathlib import Path

import pytest
import torch

from mme_hf.training import ExtractionArguments, PretrainingArguments, parse_arguments
from mme_hf.training.target_flags import parse_motion_targets

CONFIGS = sorted(
    path
    for path in (Path(__file__).parents[2] / "examples" / "configs").glob("*.yaml")
    if not path.stem.startswith("finetune-")
)


def parse(*argv):
    return parse_arguments(PretrainingArguments, list(argv))


def test_flags_win_over_the_recipe_which_wins_over_the_defaults(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "preset: small\nlearning_rate: 1.0e-3\nwith_tracking: false\nmodel_options: {drop_path_rate: 0.1}\n"
    )
    args = parse("--config", str(recipe), "--preset", "base")
    assert (args.preset, args.learning_rate, args.with_tracking) == ("base", 1e-3, False)
    assert args.model_options == {"drop_path_rate": 0.1}
    assert args.weight_decay == 0.05


def test_a_preset_and_a_model_are_two_answers_of_which_the_typed_one_wins_over_the_recipe(tmp_path):
    assert parse().preset == "tiny"
    with pytest.raises(ValueError, match=r"preset \('small'\) and model_name_or_path \('me/tiny'\) both say what is"):
        parse("--preset", "small", "--model_name_or_path", "me/tiny")
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("preset: small\nseed: 3\n")
    args = parse("--config", str(recipe), "--model_name_or_path", "me/tiny")
    assert (args.preset, args.model_name_or_path, args.seed) == (None, "me/tiny", 3)
    recipe.write_text("model_name_or_path: me/tiny\n")
    args = parse("--config", str(recipe), "--preset=base")
    assert (args.preset, args.model_name_or_path) == ("base", None)


def test_targets_are_words_in_a_command_and_a_list_or_a_mapping_in_a_recipe(tmp_path):
    assert parse("--motion_targets", "shape", "position:0.5", "--seed", "1").motion_targets == ["shape", "position:0.5"]
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("motion_targets: [shape, position:0.5]\n")
    assert parse("--config", str(recipe)).motion_targets == ["shape", "position:0.5"]
    assert parse("--config", str(recipe), "--motion_targets", "flow").motion_targets == ["flow"]
    recipe.write_text("motion_targets: {pixels: {weight: 2.0}, flow: {}}\n")
    words = parse("--config", str(recipe)).motion_targets
    assert list(parse_motion_targets(words).items()) == [("pixels", {"weight": 2.0}), ("flow", {})]


def test_the_sample_recipe_holds_only_where_nothing_else_is_named(tmp_path):
    recipe = tmp_path / "samples.yaml"
    recipe.write_text("max_train_steps: 60\n")

    def steps(*argv):
        return parse_arguments(PretrainingArguments, list(argv), sample_recipe=recipe).max_train_steps

    assert steps() == 60
    assert steps("--max_train_steps", "3") == 3
    assert steps("--train_dir", "videos") is None
    other = tmp_path / "other.yaml"
    other.write_text("preset: small\n")
    assert steps("--config", str(other)) is None


def test_a_recipe_with_a_name_that_is_no_flag_is_an_error(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match="sets 'learning_rat', which is no flag"):
        parse("--config", str(recipe))
    with pytest.raises(ValueError, match="Did you mean learning_rate"):
        parse("--config", str(recipe))
    for text, message in (
        ("train_dir: [a, b]\n", r"sets train_dir to the list \['a', 'b'\]. It takes one value"),
        ("config: other.yaml\n", "sets 'config', which is no flag"),
    ):
        recipe.write_text(text)
        with pytest.raises(ValueError, match=message):
            parse("--config", str(recipe))
    with pytest.raises(ValueError, match="is not a file"):
        parse("--config", str(tmp_path / "none.yaml"))


@pytest.mark.parametrize("content", [b"path,label\n1.mp4,2\n", b"- a\n", b"a: b: c\n", b"\xff\xfe\x00"])
def test_a_file_that_is_no_recipe_is_named(tmp_path, content):
    recipe = tmp_path / "bad.csv"
    recipe.write_bytes(content)
    with pytest.raises(ValueError, match=r"config \('.*bad.csv'\) is not a YAML recipe") as error:
        parse("--config", str(recipe))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--max_train_step", "5"], "^--max_train_step is no flag. Did you mean --max_train_steps?"),
        (["--max_train_step=5"], "^--max_train_step is no flag. Did you mean --max_train_steps?"),
        (["--zzz"], "^--zzz is no flag. See --help.$"),
        (["videos"], "^videos is no flag. Name videos with --train_dir.$"),
        (["my_videos"], "^my_videos is no flag. Name videos with --train_dir.$"),
        (["--seed", "x"], "^argument --seed: invalid int value: 'x'$"),
    ],
)
def test_what_is_no_flag_is_named_in_one_line(argv, message, capsys):
    with pytest.raises(ValueError, match=message):
        parse(*argv)
    assert capsys.readouterr().err == ""


def test_help_is_short_where_it_can_be_and_tells_each_default_once(capsys):
    with pytest.raises(SystemExit):
        parse("--help")
    usage, _, flags = capsys.readouterr().out.partition("\noptions:\n")
    assert usage.count("\n") == 1 and usage.endswith("[--config FILE.yaml] [--flag value ...]\n")
    flags = " ".join(flags.split())
    assert (
        "hidden. Default: 0.7, or the model's. --motion" in flags
        and "once at most. (default: 128)" in flags
        and "Default: by cores. --targets_on" in flags
    )
    assert "default: None" not in flags


def test_a_mistake_that_a_recipe_has_part_in_names_the_recipe():
    samples = next(path for path in CONFIGS if path.stem == "samples")

    def error_of(*argv):
        with pytest.raises(ValueError) as error:
            parse_arguments(PretrainingArguments, list(argv), sample_recipe=samples)
        return str(error.value)

    batch = error_of("--per_device_train_batch_size", "3")
    assert "samples_per_video (8)" in batch and "(samples_per_video is set by the recipe" in batch
    assert str(samples) in batch and "where no data is named" in batch
    assert "warmup_steps is set by the recipe" in error_of("--max_train_steps", "5")
    assert "set by the recipe" not in error_of("--per_device_train_batch_size", "3", "--samples_per_video=2")
    assert "no data is named" not in error_of("--config", str(samples), "--per_device_train_batch_size", "3")


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_shipped_recipe_is_read(path):
    if "optimizer: muon" in path.read_text() and not hasattr(torch.optim, "Muon"):
        pytest.skip("this torch has no Muon")
    assert parse("--config", str(path)).config == str(path)


def test_the_published_recipe_is_met():
    args = parse("--config", str(next(path for path in CONFIGS if path.stem == "base-k400")))
    assert (args.preset, args.num_train_epochs, args.learning_rate, args.min_learning_rate) == (
        "base",
        1600,
        1.5e-4,
        1e-5,
    )
    assert (args.adam_beta1, args.adam_beta2, args.weight_decay, args.warmup_epochs) == (0.9, 0.95, 0.05, 40)
    assert (args.frame_stride, args.trajectory_num_steps, args.mask_type, args.mask_ratio) == (4, 4, "tube", 0.7)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--per_device_train_batch_size", "0"], r"per_device_train_batch_size \(0\) must be at least 1"),
        (["--learning_rate", "0"], r"learning_rate \(0.0\) must be above 0"),
        (["--learning_rate", "nan"], r"learning_rate \(nan\) must be above 0"),
        (["--min_learning_rate", "nan"], r"min_learning_rate \(nan\) must be at least 0"),
        (["--weight_decay", "nan"], r"weight_decay \(nan\) must be at least 0"),
        (["--num_train_epochs", "inf"], r"num_train_epochs \(inf\) must be at least 0, and finite"),
        (["--warmup_epochs", "inf"], r"warmup_epochs \(inf\) must be at least 0, and finite"),
        (["--seed", "4294967296"], r"seed \(4294967296\) must be below 4294967296"),
        (["--report_to", "tensorbord"], r"report_to \('tensorbord'\) is no tracker of accelerate.*tensorboard"),
        (["--report_to", "clearml"], r"report_to \('clearml'\) is not installed.*tensorboard.*--no_with_tracking"),
        (["--min_learning_rate", "1"], r"min_learning_rate \(1.0\) is above learning_rate"),
        (["--optimizer", "sgd"], r"optimizer \('sgd'\) must be one of adamw, muon"),
        (["--adam_beta1", "1"], r"adam_beta1 \(1.0\) must lie in \[0, 1\)"),
        (["--adam_beta2", "-0.1"], r"adam_beta2 \(-0.1\) must lie in \[0, 1\)"),
        (["--image_size", "0"], r"image_size \(0\) must be at least 1"),
        (["--warmup_steps", "9", "--max_train_steps", "7"], r"warmup_steps \(9\) is above max_train_steps \(7\)"),
        (["--max_grad_norm", "0"], r"max_grad_norm \(0.0\) must be above 0"),
        (["--held_out_fraction", "1"], r"held_out_fraction \(1.0\) must lie in"),
        (["--samples_per_video", "3"], r"batch_size \(8\) does not divide by samples_per_video \(3\)"),
        (["--mixed_precision", "int8"], r"mixed_precision \('int8'\)"),
        (["--targets_on", "gpu"], r"targets_on \('gpu'\) must be 'workers' or 'device'"),
        (["--train_dir", "a", "--dataset_name", "b"], "dataset_name and train_dir name different data"),
        (["--streaming", "true"], r"streaming \(True\) needs --dataset_name"),
        (["--streaming", "true", "--dataset_name", "b"], "Give --max_train_steps"),
        (["--validation_dir", "a", "--validation_manifest", "b"], "validation_dir and validation_manifest"),
        (["--validation_dir", "a", "--held_out_fraction", "0.1"], "both say what is held out"),
        (["--model_options", "{"], "model_options .* is not JSON"),
        (["--processor_options", "[1]"], "processor_options .* must be a JSON object"),
    ],
)
def test_wrong_values_are_named_with_a_remedy(argv, message):
    with pytest.raises(ValueError, match=message):
        parse(*argv)


def test_an_unknown_reader_is_refused_before_extraction_begins():
    with pytest.raises(ValueError, match=r"reader \('cv2'\) must be one of 'auto', 'decord', 'pyav', 'torchcodec'"):
        parse_arguments(ExtractionArguments, ["--reader", "cv2"])
