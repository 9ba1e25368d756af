"""The cards of the repository are what their sources give, and say to the Hub what the Hub understands."""

import importlib.util
import json
import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.repocard import REGEX_YAML_BLOCK
from huggingface_hub.utils import validate_repo_id
from transformers.pipelines import SUPPORTED_TASKS

from mme_hf.model_card_facts import TrainingFacts, save_facts
from mme_hf.published_models import published_models

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "model_cards"
RESULTS = ROOT / "benchmarks" / "results"
CARDS = sorted(path.name for path in FOLDER.glob("*.md") if path.name not in ("README.md", "template.md"))
# Of the Hub's list: https://huggingface.co/docs/hub/repositories-licenses.
LICENSES = ("apache-2.0", "unknown")
# Of the Hub's metrics: https://huggingface.co/metrics.
METRICS = ("accuracy",)


def module_of(path: Path):
    """Return a script as a module; scripts import those beside them."""
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def script():
    return module_of(FOLDER / "render.py")


@pytest.fixture(scope="module")
def rendered(script) -> dict[str, str]:
    return script.rendered()


@pytest.fixture
def other_results(script, tmp_path, monkeypatch) -> Path:
    """The measured figures as files that may be changed, and that cards are rendered from."""
    for path in RESULTS.glob("*.json"):
        (tmp_path / path.name).write_text(path.read_text())
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    return tmp_path


def test_every_file_is_what_its_sources_give(rendered):
    present = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    assert present.keys() == rendered.keys(), "run: python model_cards/render.py"
    for name, text in rendered.items():
        assert present[name] == text, f"{name} is not up to date. Run: python model_cards/render.py"


def test_figures_come_from_the_results(script, other_results):
    shape = json.loads((other_results / "explained_share.json").read_text())["results"]["explained_share"]["shape"]
    changes = (("explained_share", f'"shape": {shape}', '"shape": 0.987'), ("finetuning", "0.425", "0.876"))
    for name, found, new in changes:
        path = other_results / f"{name}.json"
        text = path.read_text()
        assert found in text
        path.write_text(text.replace(found, new))
    card, _, words = script.pretraining_card("tiny-cpu")
    assert "| shape | 0.987 |" in card and "value: 0.987" in card and "shape 0.987" in words
    card, _, words = script.finetuning_card("finetune-tiny", "random weights")
    assert "| top-1 accuracy | 0.876 |" in card and "value: 0.876" in card and words == "0.876"


def test_figures_of_another_recipe_are_refused(script, other_results):
    path = other_results / "explained_share.json"
    contents = json.loads(path.read_text())
    contents["facts"]["settings"]["max_train_steps"] = 60
    path.write_text(json.dumps(contents))
    with pytest.raises(ValueError, match=r"tiny-cpu.yaml has changed.*\['max_train_steps'\]"):
        script.pretraining_card("tiny-cpu")


@pytest.mark.parametrize(
    ("old", "new", "name"),
    [('"mask_ratio": 0.7,', '"mask_ratio": 0.9,', "mask_ratio"), ('"weight": 3.0', '"weight": 5.0', "motion_targets")],
)
def test_a_study_of_other_settings_or_targets_is_refused(script, tmp_path, monkeypatch, old, new, name):
    shutil.copytree(script.STUDY / "results", tmp_path / "results")
    path = tmp_path / "results" / "cpu" / "pretraining" / "mme-0.json"
    text = path.read_text()
    assert text.count(old) == 1
    path.write_text(text.replace(old, new))
    monkeypatch.setattr(script, "STUDY", tmp_path)
    with pytest.raises(ValueError, match=rf"row mme is another one .*\['{name}'\]. Run it again"):
        script.study_card("mme")


@pytest.mark.parametrize("name", CARDS)
def test_metadata_are_such_as_the_hub_takes(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    card = ModelCard(text)
    assert str(card) == text  # read by huggingface_hub and written again
    raw = yaml.safe_load(REGEX_YAML_BLOCK.search(text)[2])
    is_classifier = name.startswith("finetune")
    assert raw["pipeline_tag"] == ("video-classification" if is_classifier else "feature-extraction")
    assert raw["pipeline_tag"] in SUPPORTED_TASKS and raw["library_name"] == "transformers"
    assert raw["license"] in LICENSES and "masked-motion-encoding" in raw["tags"]
    assert set(raw.get("metrics", ())) <= set(METRICS) and ("metrics" in raw) == is_classifier
    for repository in (*raw.get("datasets", ()), *filter(None, [raw.get("base_model")])):
        validate_repo_id(repository)
    for result in card.data.eval_results or ():
        assert result.task_type == raw["pipeline_tag"] and result.dataset_type == result.dataset_type.lower()
        assert 0 < result.metric_value < 1
        shown = f"{100 * result.metric_value:.1f} %" if result.source_url else f"{result.metric_value:.3f}"
        assert f" {shown} |" in card.text
    assert bool(card.data.eval_results) == (name != "base-k400.md")  # which scored nothing itself


@pytest.mark.parametrize("name", CARDS)
def test_a_card_has_code_that_compiles_and_a_licence_in_words(name):
    text = (FOLDER / name).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    compile(code, name, "exec")
    assert len(re.search(r"## Licence\n\n(.*?)\n\n## ", text, re.DOTALL)[1]) > 60
    for recipe in re.findall(r"examples/configs/[\w.-]+", text):
        assert (ROOT / recipe).is_file()
    assert str(ROOT) not in text and "/tmp" not in text and "hf_" not in text.replace("mme_hf", "")


def test_published_figures_are_those_of_the_paper_and_name_their_source():
    method = ROOT.parent / "shared" / "METHOD.md"
    if not method.is_file():
        pytest.skip("the page of published figures is not beside the repository")
    (line,) = (line for line in method.read_text().splitlines() if line.startswith("Top-1 (ViT-B, pre-trained on K400"))
    names = {"Kinetics-400": "K400", "Something-Something V2": "SSv2", "UCF101": "UCF101", "HMDB51": "HMDB51"}
    judged = [model for model in published_models().values() if model.top1_percent is not None]
    assert len(judged) == 5
    for model in judged:
        assert f"{names[model.data]} **{model.top1_percent}**" in line
        card = ModelCard.load(FOLDER / f"{model.name}.md")
        assert card.data.eval_results[0].source_url and f"{model.top1_percent} %" in card.text
        assert f"{model.top1_percent} %" in (FOLDER / "README.md").read_text()


@pytest.mark.parametrize("model", published_models().values(), ids=list(published_models()))
def test_published_inputs_are_those_of_the_recipes(model):
    recipe = yaml.safe_load((ROOT / "examples" / "configs" / model.recipe).read_text())
    assert recipe["num_train_epochs"] == model.num_epochs
    processor, config = model.processor(), model.config()
    assert (processor.num_frames, config.num_frames) == (recipe["num_frames"],) * 2
    assert config.image_size == recipe.get("image_size", 224) == processor.crop_size["height"]
    if "frame_stride" in recipe:
        assert processor.frame_stride == recipe["frame_stride"]
    if model.task == "classification":
        assert processor.frame_sampling == recipe["frame_sampling"]
        segments, crops = model.views.split(" x ")
        assert f"--num_eval_segments {segments} --num_eval_crops {crops};" in (
            (ROOT / "examples" / "configs" / model.recipe).read_text()
        )
    else:
        assert processor.mask_ratio == recipe["mask_ratio"]
        assert processor.trajectory_num_steps == recipe["trajectory_num_steps"]


@pytest.mark.parametrize(
    ("benchmark", "results"), [("explained_share", "explained_share"), ("finetuning_start", "finetuning")]
)
def test_tables_of_results_are_those_of_the_files_that_cards_are_made_of(benchmark, results):
    table = module_of(ROOT / "benchmarks" / f"{benchmark}.py").table(
        json.loads((RESULTS / f"{results}.json").read_text())
    )
    text = table if isinstance(table, str) else "\n".join(table) + "\n"
    assert text == (RESULTS / f"{results}.md").read_text()


def test_links_of_the_index_resolve():
    links = re.findall(r"\]\(([^)]+)\)", (FOLDER / "README.md").read_text())
    relative = [link for link in links if not link.startswith("https://")]
    assert {f"{name}" for name in CARDS} <= set(relative)
    assert not [link for link in relative if not (FOLDER / link).exists()]


def test_new_figures_of_fine_tuning_reach_table_and_card(script, other_results):
    benchmark = module_of(ROOT / "benchmarks" / "finetuning_start.py")
    known = json.loads((RESULTS / "finetuning.json").read_text())["starts"]["pre-training"]
    args = SimpleNamespace(train_dir=Path("/home/me/set/train"), validation_dir=Path("/home/me/set/test"))
    args.checkpoint = Path("/home/me/pretrain-tiny-cpu")

    def run(top1: float, seed: int, start: str | None) -> dict:
        settings = {**known["facts"]["settings"], "output_dir": "tmp1", "seed": seed}
        facts = {**known["facts"], "settings": settings, "start": start, "seconds": 60.0, "repository": "path/to/tmp1"}
        figures = dict.fromkeys(("top1", "top5", "mean_class_accuracy", "ece", "most_frequent_class"), top1)
        data = {"dataset": "set", "split": "test", "views": "3 x 1", "num_videos": 8, "top1_interval": [0.1, 0.9]}
        orders = {order: {"top1": top1 / 2} for order in benchmark.ORDERS}
        rows = [{"label": name, "accuracy": 1.0} for name in ("wave", "point")]
        return {**data, **figures, "per_class": rows, "motion_sensitivity": orders, "facts": facts, "seconds": 120.0}

    starts = {"random weights": None, "pre-training": "path/to/pretrain-tiny-cpu"}
    runs = {name: [run(0.25, 0, start), run(0.75, 1, start)] for name, start in starts.items()}
    contents = json.loads(json.dumps(benchmark.results(args, runs)))
    table = "\n".join(benchmark.table(contents))
    assert "| pre-training | 0.500 | 0.250, 0.750 | 0.250 | 0.250 | 0.250 |" in table
    assert "Data: set: train, judged by test (8 videos, 2 classes, chance 50%)" in table and "2.0 minutes" in table
    (other_results / "finetuning.json").write_text(json.dumps(contents))
    text, data, top1 = script.finetuning_card("finetune-tiny", "pre-training")
    card = ModelCard(text)
    assert (data, top1) == ("set", "0.500") and len(card.data.eval_results) == 4
    assert "top-1 of each: 0.250, 0.750" in card.text and "1.0 minutes" in card.text
    assert "weights of `outputs/pretrain-tiny-cpu`" in card.text and "Classes: wave, point." in card.text
    assert "tmp1" not in text + table and "/home/me" not in text + table and "`seed`" not in text


def test_new_figures_of_pre_training_reach_table_and_card(script, other_results, tmp_path, monkeypatch, capsys):
    benchmark = module_of(ROOT / "benchmarks" / "explained_share.py")
    monkeypatch.setattr(benchmark, "RESULT", other_results / "explained_share.json")
    known = json.loads((RESULTS / "explained_share.json").read_text())
    run = tmp_path / "my-run"
    run.mkdir()
    save_facts(run, TrainingFacts(**{**known["facts"], "repository": "path/to/my-run", "num_steps": 7}))
    shares = {"explained_share": {"shape": 0.5, "position": -0.25}}
    (run / "eval_results.json").write_text(json.dumps({"dataset": "clips", **shares}))
    benchmark.write_results(run)
    table = (other_results / "explained_share.md").read_text()
    assert "| position | -0.250 |" in table and "7 updates of 16 clips" in table and "--run_dir outputs/my-run" in table
    text, _, words = script.pretraining_card("tiny-cpu")
    assert "value: -0.25" in text and words == "shape 0.500, position -0.250"
