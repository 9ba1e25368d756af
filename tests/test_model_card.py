"""What a card says, what it says to the Hub, and what it must not say."""

import configparser
import dataclasses
import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, ModelCardData

from mme_hf import MMEVideoProcessor, preset_config
from mme_hf.data import VideoRecords
from mme_hf.model_card import (
    TEMPLATE,
    ConversionFacts,
    TrainingFacts,
    local_name,
    main,
    model_card,
    public_command,
    public_settings,
    render_model_card,
    training_facts,
    write_model_card,
)
from mme_hf.model_card_facts import hub_id, license_of
from mme_hf.model_card_results import ResultSection
from mme_hf.published_models import published_model, published_models
from mme_hf.training.classification_report import hub_results
from mme_hf.training.finetuning_arguments import FinetuningArguments

SHARES = {"dataset": "the same", "explained_share": {"position": 0.0512}}
SCORES = {"top1": 0.75, "top5": 1.0, "num_videos": 8, "views": "2 x 3", "dataset": "others"}
CLASSES = {"id2label": {0: "wave", 1: "point"}, "label2id": {"wave": 0, "point": 1}}
PROCESSOR = {"num_frames": 8, "crop_size": {"height": 112, "width": 112}}


def facts(**changes) -> TrainingFacts:
    values = {
        "task": "pretraining",
        "repository": "user/name",
        "data_name": "some videos",
        "dataset": None,
        "num_videos": 4,
        "start": None,
        "base_model": None,
        "license": "apache-2.0",
        "num_steps": 60,
        "global_batch_size": 16,
        "seconds": 90.0,
        "command": "accelerate launch examples/pretrain.py",
        "settings": {"seed": 0, "train_dir": None},
    }
    return TrainingFacts(**{**values, **changes})


def conversion(**changes) -> ConversionFacts:
    values = {
        "task": "classification",
        "repository": "outputs/name",
        "layout": "MME or VideoMAE classifier",
        "source": "model.pt",
        "published": None,
        "left_out": 0,
        "command": "python examples/convert_checkpoint.py model.pt",
    }
    return ConversionFacts(**{**values, **changes})


def card(results=SHARES, evaluation=None, config=None, processor=None, **changes) -> ModelCard:
    known = facts(**changes)
    config = config or preset_config("tiny", **(CLASSES if known.is_classifier else {}))
    processor = processor or MMEVideoProcessor(**PROCESSOR)
    made = model_card(config=config, processor=processor, facts=known, results=results, evaluation=evaluation)
    return ModelCard(str(made))


def evaluation(**changes) -> dict:
    report = {
        **{"dataset": "third", "split": "test", "views": "5 x 3", "num_videos": 40},
        **{"top1": 0.625, "top5": 0.9, "mean_class_accuracy": 0.6, "ece": 0.125, "top1_interval": [0.47, 0.758]},
        "per_class": [{"label": "wave"}, {"label": "point"}],
        "motion_sensitivity": {"forwards": {"top1": 0.625}, "frozen": {"top1": 0.35}},
    }
    return {**report, "eval_results": hub_results(report, dataset="third", split="test"), **changes}


@pytest.fixture
def folder(tmp_path) -> Path:
    """A classifier's folder as a script leaves it, but for the weights, which a card does not look at."""
    preset_config("tiny", **CLASSES).save_pretrained(tmp_path)
    MMEVideoProcessor(**PROCESSOR).save_pretrained(tmp_path)
    write_model_card(tmp_path, facts(task="finetuning"), SCORES)
    return tmp_path


def test_the_card_is_valid_and_states_what_was_run():
    parsed = card()
    assert (parsed.data.license, parsed.data.library_name) == ("apache-2.0", "transformers")
    assert parsed.data.pipeline_tag == "feature-extraction" and "mme_hf" in parsed.data.tags
    for fact in (
        "| position | 0.051 |",
        "60 updates of 16 clips in 1.5 minutes",
        "4 videos",
        "| `seed` | `0` |",
        "70% of the patches hidden",
        "8 frames, 4 raw frames apart, 112 x 112 pixels",
        'MMEModel.from_pretrained("user/name")',
        "Training started from random weights.",
    ):
        assert fact in parsed.text
    assert "train_dir" not in parsed.text
    (figure,) = parsed.data.eval_results
    assert (figure.metric_type, figure.metric_value, figure.dataset_type) == ("explained_share", 0.0512, "the-same")
    assert parsed.data.metrics is None  # "explained_share" is none that the Hub knows


@pytest.mark.parametrize("task", ["pretraining", "finetuning"])
def test_where_nothing_was_measured_nothing_is_claimed(task):
    parsed = card(results=None, task=task)
    assert "so nothing is claimed" in parsed.text and parsed.data.eval_results is None and parsed.data.metrics is None
    assert "a stream of videos" in card(num_videos=None).text


@pytest.mark.parametrize(
    ("visible_weight", "words"), [(0.5, "values, those of visible patches too)"), (0.0, "values)")]
)
def test_the_card_says_whether_visible_patches_were_predicted(visible_weight, words):
    target = {"size": 32, "activation": "linear", "weight": 1.0, "visible_weight": visible_weight}
    assert (
        f"targets `position` (32 {words}, from points"
        in card(config=preset_config("tiny", motion_targets={"position": target})).text
    )


def test_further_figures_stand_below_those_of_the_run():
    section = ResultSection("Probes", "Of frozen features.", ("set", "linear"), [("walks", "61.0")])
    options = {"config": preset_config("tiny"), "processor": MMEVideoProcessor(**PROCESSOR), "facts": facts()}
    text = str(model_card(**options, results=SHARES, more_sections=[section]))
    assert (
        text.index("| position | 0.051 |")
        < text.index("## Probes\n\nOf frozen features.")
        < text.index("| walks | 61.0 |")
    )


def test_a_figure_that_is_none_is_shown_but_not_given_to_the_hub():
    parsed = card(results={"dataset": "x", "explained_share": {"shape": float("nan"), "position": 0.25}})
    assert [figure.metric_value for figure in parsed.data.eval_results] == [0.25] and "| shape | nan |" in parsed.text


def test_a_classifiers_card_carries_its_results_to_the_hub():
    parsed = card(results=SCORES, task="finetuning", start="outputs/pretrain")
    figures = {result.metric_name: (result.metric_value, result.dataset_name) for result in parsed.data.eval_results}
    assert figures == {"top-1 accuracy": (0.75, "others"), "top-5 accuracy": (1.0, "others")}
    assert (parsed.data.model_name, parsed.data.pipeline_tag) == ("name", "video-classification")
    assert parsed.data.metrics == ["accuracy"]
    for fact in (
        "On others, 8 videos, 2 x 3 views",
        "| 0.750 | 1.000 |",
        "Classes: wave, point.",
        "`outputs/pretrain`",
    ):
        assert fact in parsed.text
    segments = MMEVideoProcessor(**PROCESSOR, frame_sampling="segments")
    assert "equal parts" in card(results=SCORES, task="finetuning", processor=segments).text


def test_what_is_on_the_hub_is_linked_and_what_is_not_is_none():
    linked = card(task="finetuning", results=SCORES, dataset="me/clips", base_model="me/base", start="me/base").data
    assert (linked.datasets, linked.base_model) == (["me/clips"], "me/base")
    assert linked.to_dict()["base_model_relation"] == "finetune"
    bare = card().data.to_dict()
    assert not {"datasets", "base_model", "base_model_relation"} & bare.keys()


def test_only_names_of_the_hub_are_taken_for_some(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "me" / "here").mkdir(parents=True)
    assert hub_id("me/clips") == "me/clips" and hub_id("ucf101") == "ucf101"
    for name in (None, "me/here", "a/b/c", "/data/clips", "./clips", "../clips", "-clips", "two words"):
        assert hub_id(name) is None, name


def test_the_licence_of_other_weights_is_theirs(tmp_path):
    def base(content: str) -> str:
        (tmp_path / "README.md").write_text(content)
        return str(tmp_path)

    assert license_of(base("---\nlicense: cc-by-nc-4.0\n---\n")) == "cc-by-nc-4.0"
    for unreadable in ("---\nlicense: [\n---\n", "---\n- a\n---\n", "no card", "---\nmodel-index: 3\n---\n"):
        assert license_of(base(unreadable)) is None
    assert license_of("user/on-the-hub") is None
    unknown = card(task="finetuning", results=SCORES, start="user/base", license=None)
    assert unknown.data.license is None and "it is not known here" in unknown.text


def test_facts_of_a_run_are_those_of_its_arguments(tmp_path, monkeypatch):
    base = tmp_path / "base"
    base.mkdir()
    (base / "README.md").write_text(f"---\n{ModelCardData(license='mit').to_yaml()}\n---\n")
    argv = ["finetune.py", "--dataset_name", "me/clips", "--hub_token", "hf_secret"]
    monkeypatch.setattr("sys.argv", argv)
    monkeypatch.chdir(tmp_path)
    args = FinetuningArguments(dataset_name="me/clips", model_name_or_path=str(base), hub_token="hf_secret")
    of_run = {"repository": "run", "num_steps": 3, "global_batch_size": 4, "seconds": 5.0}
    made = training_facts("finetuning", args, VideoRecords(None, "me/clips", 7), **of_run)
    assert (made.start, made.base_model, made.license) == ("base", None, "mit")
    assert (made.dataset, made.data_name, made.num_videos) == ("me/clips", "me/clips", 7)
    assert made.command == "accelerate launch examples/finetune.py --dataset_name me/clips"
    assert "hf_secret" not in json.dumps(dataclasses.asdict(made))
    own = training_facts("finetuning", FinetuningArguments(), VideoRecords(None, str(base), 7), **of_run)
    assert (own.license, own.data_name, own.dataset, own.start) == ("apache-2.0", "base", None, None)


def test_a_card_can_be_rendered_again_from_its_folder(folder):
    first = (folder / "README.md").read_bytes()
    (folder / "README.md").unlink()
    main([str(folder)])
    assert (folder / "README.md").read_bytes() == first and b"| 0.750 | 1.000 |" in first
    # From the files, not from memory.
    (folder / "eval_results.json").write_text(json.dumps({**SCORES, "top1": 0.5}))
    main([str(folder)])
    parsed = ModelCard.load(folder / "README.md")
    assert parsed.data.eval_results[0].metric_value == 0.5 and "| 0.500 | 1.000 |" in parsed.text
    write_model_card(folder, facts(task="finetuning"), None)
    assert not (folder / "eval_results.json").exists() and "nothing is claimed" in (folder / "README.md").read_text()


def test_an_evaluation_takes_the_place_of_the_results_of_training(folder, capsys):
    (folder / "found.json").write_text(json.dumps(evaluation()))
    main([str(folder), "--evaluation", str(folder / "found.json")])
    assert capsys.readouterr().out == f"wrote {folder / 'README.md'}\n"
    parsed = ModelCard.load(folder / "README.md")
    found = {result.metric_name: result.metric_value for result in parsed.data.eval_results}
    assert found["top-1 accuracy, 5 x 3 views"] == 0.625 and len(found) == 4 and "0.750" not in parsed.text
    assert parsed.data.eval_results[0].dataset_split == "test"
    for line in (
        "third, split test, 40 videos, 5 x 3 views",
        "| top-1 accuracy | 0.625 |",
        "0.470 to 0.758",
        "frozen | 0.350 |",
    ):
        assert line in parsed.text
    assert "frames forwards" not in parsed.text


def test_an_evaluation_written_into_the_folder_is_taken_for_one(folder):
    (folder / "eval_results.json").write_text(json.dumps(evaluation()))
    main([str(folder)])
    text = (folder / "README.md").read_text()
    assert "## Evaluation" in text and "judged during training" not in text


def test_a_folder_may_be_given_its_name_on_the_hub_later(folder):
    main([str(folder), "--repository", "me/mine"])
    main([str(folder)])  # which keeps it
    card = ModelCard.load(folder / "README.md")
    assert card.data.model_name == "mine" and 'from_pretrained("me/mine")' in card.text


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "model_card.json").unlink(), "has no model_card.json"),
        (lambda folder: (folder / "model_card.json").write_text("{"), "model_card.json cannot be read"),
        (lambda folder: (folder / "model_card.json").write_text('{"task": "x"}'), "model_card.json cannot be read"),
        (lambda folder: (folder / "model_card.json").write_text("[]"), "model_card.json cannot be read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "eval_results.json").write_text("3"), "eval_results.json holds no JSON object"),
        (lambda folder: (folder / "eval_results.json").write_text("{}"), "lacks 'top1'"),
    ],
)
def test_a_folder_that_is_none_is_named_in_one_line(folder, damage, message):
    damage(folder)
    with pytest.raises(SystemExit, match=message) as stop:
        main([str(folder)])
    assert str(stop.value).startswith("model_card: error: ") and "\n" not in str(stop.value)


def test_a_name_is_kept_only_with_a_card_that_can_be_rendered(folder):
    before = (folder / "model_card.json").read_bytes()
    with pytest.raises(ValueError, match="lacks 'per_class'"):
        render_model_card(folder, evaluation=SCORES, repository="me/mine")
    assert (folder / "model_card.json").read_bytes() == before


def test_an_evaluation_of_another_model_is_refused(folder):
    others = evaluation(per_class=[{"label": "wave"}, {"label": "jump"}])
    with pytest.raises(ValueError, match="'jump'.*Give the evaluation of this model"):
        render_model_card(folder, evaluation=others)
    with pytest.raises(ValueError, match="lacks 'per_class'"):
        render_model_card(folder, evaluation=SCORES)  # of finetune.py
    with pytest.raises(ValueError, match="of a classifier, the model is none"):
        card(evaluation=evaluation())


def test_names_that_mean_something_to_yaml_markdown_or_the_template_do_no_harm():
    name = "a: b #c\n---\n{{ x }} 'é\" | end"
    classes = {"id2label": {0: name, 1: "b"}, "label2id": {name: 0, "b": 1}}
    config = preset_config("tiny", **classes)
    hostile = {"data_name": name, "settings": {"train_dir": "a|b\nc", "x": 1}, "repository": "user/--- a: b"}
    parsed = card(results={**SCORES, "dataset": name}, task="finetuning", config=config, **hostile)
    assert parsed.data.eval_results[0].dataset_name == name and parsed.data.model_name == "--- a: b"
    assert "{{ x }}" in parsed.text and "| `train_dir` | `a\\|b c` |" in parsed.text and parsed.data.license


def test_the_published_models_say_what_they_are():
    published = published_model("finetune-ssv2")
    facts_of_it = conversion(published="finetune-ssv2")
    made = model_card(config=published.config(), processor=published.processor(), facts=facts_of_it)
    parsed = ModelCard(str(made))
    (figure,) = parsed.data.eval_results
    assert (figure.metric_value, figure.dataset_name) == (0.715, "Something-Something V2")
    assert figure.source_url.startswith("https://github.com/XinyuSun/MME/")
    assert parsed.data.license == "unknown" and "ask the authors" in parsed.text and "equal parts" in parsed.text
    # What was measured since stands beside what was published.
    report = evaluation(per_class=[{"label": label} for label in published.config().id2label.values()])
    both = model_card(config=published.config(), processor=published.processor(), facts=facts_of_it, evaluation=report)
    assert {figure.metric_value for figure in ModelCard(str(both)).data.eval_results} >= {0.715, 0.625}


def test_of_a_file_of_which_nothing_is_said_nothing_is_claimed():
    for task, words in (("encoder", "The encoder of a video transformer"), ("classification", "tells classes")):
        options = {"config": preset_config("tiny", **CLASSES), "processor": MMEVideoProcessor(**PROCESSOR)}
        parsed = ModelCard(str(model_card(**options, facts=conversion(task=task, left_out=3))))
        assert "nothing is claimed" in parsed.text and words in parsed.text and "3 tensors" in parsed.text
        assert parsed.data.license == "unknown" and parsed.data.eval_results is None
    with pytest.raises(ValueError, match="is unknown. Known: base-k400"):
        model_card(**options, facts=conversion(published="mme"))


def test_a_file_that_cannot_be_the_published_one_is_refused():
    published = published_models()["finetune-ucf101"]
    published.check_fits(preset_config("base", num_labels=101), task="classification")
    with pytest.raises(ValueError, match="num_labels 101, the checkpoint 51"):
        published.check_fits(preset_config("base", num_labels=51), task="classification")
    with pytest.raises(ValueError, match="hidden_size 768, the checkpoint 384"):
        published.check_fits(preset_config("small", num_labels=101), task="classification")
    with pytest.raises(ValueError, match="has the task classification, the checkpoint pretraining"):
        published.check_fits(preset_config("base", num_labels=101), task="pretraining")
    # VideoMAE's pre-training has the same encoder, and a decoder that is left out.
    with pytest.raises(ValueError, match="has the task pretraining, the checkpoint encoder"):
        published_models()["base-k400"].check_fits(preset_config("base"), task="encoder")


def test_what_cards_are_made_of_is_in_the_wheel():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[1] / "setup.cfg")
    listed = setup["options.package_data"]["mme_hf"].split()
    made_of = [path for path in TEMPLATE.parent.iterdir() if path.suffix in (".md", ".json")]
    assert TEMPLATE in made_of and {path.name for path in made_of} <= set(listed)


def test_a_folder_is_named_for_who_stands_where_the_run_was_started(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert local_name("outputs/run/") == "outputs/run"
    assert local_name("../run") == "../run"
    assert local_name(tmp_path / "outputs" / "run") == "outputs/run"
    assert local_name("/somewhere/else/run") == "path/to/run"
    # Metadata need a name.
    assert card(results=SCORES, task="finetuning", repository=".").data.model_name == "mme"


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
