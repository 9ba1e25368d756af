"""Render every card of this folder, its index and the copy of the template: `python model_cards/render.py`.

The figures come from files: those of the authors from src/mme_hf/published_models.json, our own from
benchmarks/results/explained_share.json and finetuning.json, which the benchmarks write, and from the results of
benchmarks/study. Sizes and inputs come from the recipes in examples/configs. Nothing is typed into a card; `--check`
says which cards are not what their sources give.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

import yaml

from mme_hf import MMEConfig, MMEVideoProcessor, preset_config
from mme_hf.model_card import TEMPLATE, ConversionFacts, TrainingFacts, model_card
from mme_hf.model_card_facts import public_settings
from mme_hf.model_card_results import ResultSection
from mme_hf.published_models import PublishedModel, published_models, published_source
from mme_hf.training import PretrainingArguments, parse_arguments
from mme_hf.training.finetuning_arguments import FinetuningArguments
from mme_hf.training.labelled_data import new_processor
from mme_hf.training.setup import build_model_and_processor

FOLDER = Path(__file__).resolve().parent
ROOT = FOLDER.parent
STUDY = ROOT / "benchmarks" / "study"
sys.path.append(str(STUDY))
from evidence import Evidence  # noqa: E402
from objectives import BY_NAME, SIZES  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
_LAYOUTS = {"pretraining": "MME pre-training", "classification": "MME or VideoMAE classifier"}
_INDEX = """# Model cards

A card for each recipe whose figures are known: those that its authors published, or our own. No weights are in this
repository. Rendered by `python model_cards/render.py` with [one template](template.md), a copy of the one in the
package that `pretrain.py`, `finetune.py` and `convert_checkpoint.py` write their cards with; do not edit them by hand.

The authors' checkpoints, converted with `examples/convert_checkpoint.py FILE --published NAME`. Top-1 as published
([{name}]({url})):

| card | trained on | recipe | top-1 |
|---|---|---|---|
{published}

The authors have not published the pre-training on Something-Something V2 that `finetune-ssv2-from-ssv2` started from;
`base-ssv2.yaml` is its recipe.

Our own, small, made on two CPU cores, with measured figures:

| card | trained on | recipe | measured |
|---|---|---|---|
{own}
{study}
"""


def rendered() -> dict[str, str]:
    """Return what each file of this folder has to hold, by its name."""
    files = {"template.md": TEMPLATE.read_text(encoding="utf-8")}
    published_rows, own_rows = [], []
    for name, published in published_models().items():
        files[f"{name}.md"] = published_card(published)
        top1 = "of its classifiers: below" if published.top1_percent is None else f"{published.top1_percent:.1f} %"
        published_rows.append((name, published.data, published.recipe, top1))
    files["tiny-cpu.md"], data, shares = pretraining_card("tiny-cpu")
    own_rows.append(("tiny-cpu", data, "tiny-cpu.yaml", f"explained share: {shares}"))
    for name, start in (("finetune-tiny", "random weights"), ("finetune-tiny-pretrained", "pre-training")):
        files[f"{name}.md"], data, top1 = finetuning_card("finetune-tiny", start)
        own_rows.append((name, f"{data}, from {start}", "finetune-tiny.yaml", f"top-1: {top1}"))
    files["study-mme.md"], study_row = study_card("mme")
    tables = {"published": _rows(published_rows), "own": _rows(own_rows), "study": study_row}
    files["README.md"] = _INDEX.format(**tables, **published_source())
    return files


def published_card(published: PublishedModel) -> str:
    """Return the card of one of the authors' checkpoints after conversion."""
    facts = ConversionFacts(
        task=published.task,
        repository=f"outputs/{published.name}",
        layout=_LAYOUTS[published.task],
        source="FILE",
        published=published.name,
        left_out=0,
        command="python examples/convert_checkpoint.py FILE "
        f"--output_dir outputs/{published.name} --published {published.name}",
        versions={},
    )
    return str(model_card(config=published.config(), processor=published.processor(), facts=facts))


def pretraining_card(recipe: str) -> tuple[str, str, str]:
    """Return the card of our own pre-training, its data and its figures in words."""
    contents = json.loads((RESULTS / "explained_share.json").read_text(encoding="utf-8"))
    facts, results = TrainingFacts(**contents["facts"]), contents["results"]
    _check_recipe(recipe, facts)
    model, processor = build_model_and_processor(parse_arguments(PretrainingArguments, ["--config", _path(recipe)]))
    card = model_card(config=model.config, processor=processor, facts=facts, results=results)
    shares = ", ".join(f"{name} {share:.3f}" for name, share in results["explained_share"].items())
    return str(card), facts.data_name, shares


def finetuning_card(recipe: str, start: str) -> tuple[str, str, str]:
    """Return the card of our own classifiers of one start, their data and their top-1 in words."""
    contents = json.loads((RESULTS / "finetuning.json").read_text(encoding="utf-8"))["starts"][start]
    facts, evaluation = TrainingFacts(**contents["facts"]), contents["evaluation"]
    _check_recipe(recipe, facts)
    args = parse_arguments(FinetuningArguments, ["--config", _path(recipe), "--train_dir", facts.data_name])
    labels = [row["label"] for row in evaluation["per_class"]]
    config, processor = _classifier_of(args, labels)
    card = model_card(config=config, processor=processor, facts=facts, evaluation=evaluation)
    return str(card), facts.data_name, f"{evaluation['top1']:.3f}"


def study_card(row: str) -> tuple[str, str]:
    """Return the card of a row of the study, seed 0, and its line in the index."""
    evidence = Evidence(STUDY / "results" / "cpu")
    found = evidence.pretrainings[row, 0]
    names = f"{', '.join(evidence.sets[:-1])} and {evidence.sets[-1]}"
    facts = TrainingFacts(**{**found["facts"], "data_name": f"{names}, training parts"})
    words = ["--train_manifest", facts.settings["train_manifest"]]
    # The optimizer is said by the row, no default; cards are to be rendered with a torch too that does not have it.
    for name, value in found["configuration"].items():
        words += [f"--{name}", str(value)] if name != "optimizer" else []
    if found["configuration"] != SIZES["cpu"].configuration(BY_NAME[row], 0, found["configuration"]["learning_rate"]):
        raise ValueError(f"the study's row {row} is told otherwise since its figures were measured. Run it again.")
    args = parse_arguments(PretrainingArguments, words)
    model, processor = build_model_and_processor(args)
    today = {**public_settings(asdict(args)), "motion_targets": model.config.motion_targets}
    then = {**facts.settings, "motion_targets": found["motion_targets"]}
    own = ("output_dir", "validation_manifest", "resume_from_checkpoint", "optimizer")
    if changed := sorted(name for name, value in today.items() if name not in own and then.get(name) != value):
        raise ValueError(
            f"the study's row {row} is another one since its figures were measured: {changed}. Run it again."
        )
    results = {"dataset": f"{names}, test parts", "explained_share": found["explained_shares"]}
    options = {"facts": facts, "results": results, "more_sections": [_study_section(evidence, row)]}
    card = str(model_card(config=model.config, processor=processor, **options))
    shares = ", ".join(f"{name} {share:.3f}" for name, share in found["explained_shares"].items())
    line = f"| [study-{row}](study-{row}.md) | {facts.data_name} | [study](../benchmarks/study/README.md) | {shares} |"
    return card, line


def _study_section(evidence: Evidence, row: str) -> ResultSection:
    """Return what models of a row are right about, those of its rivals beside it."""
    rows = []
    for name in (name for name in (row, "pixels", "random") if (name, 0) in evidence.probes):
        for probe, words in (("linear", "linear"), ("attentive", "attentive"), ("knn", "kNN")):
            figures = [evidence.probe(name, probe, actions) for actions in evidence.sets]
            num_seeds = str(len(figures[0].values))
            rows.append((BY_NAME[name].about, f"{words} probe", *map(str, figures), num_seeds))
        figures = [evidence.finetuning(name, actions) for actions in evidence.sets]
        if any(figure.values for figure in figures):
            rows.append(
                (BY_NAME[name].about, "fine-tuned", *map(str, figures), str(max(len(f.values) for f in figures)))
            )
    text = (
        "Percent of the test videos that are right, where there are several seeds of pre-training with the standard "
        "deviation; this model is the first seed. `benchmarks/study` of mme_hf has the protocol, "
        "intervals and all rows."
    )
    return ResultSection("Actions", text, ("pre-trained to predict", "judged by", *evidence.sets, "seeds"), rows)


def _classifier_of(args: FinetuningArguments, labels: list[str]) -> tuple[MMEConfig, MMEVideoProcessor]:
    sizes = {"image_size": args.image_size, "num_frames": args.num_frames}
    names = {"id2label": dict(enumerate(labels)), "label2id": {name: number for number, name in enumerate(labels)}}
    config = preset_config(args.preset, **sizes, **names)
    return config, new_processor(config, args)


def _check_recipe(recipe: str, facts: TrainingFacts) -> None:
    """Raise ValueError if the recipe says something else today than when the figures were measured."""
    own = ("output_dir",)
    wanted = {name: value for name, value in yaml.safe_load(Path(_path(recipe)).read_text()).items() if name not in own}
    changed = [name for name, value in wanted.items() if facts.settings.get(name) != value]
    if changed:
        raise ValueError(f"{recipe}.yaml has changed since its figures were measured: {changed}. Measure again.")


def _path(recipe: str) -> str:
    return str(ROOT / "examples" / "configs" / f"{recipe}.yaml")


def _rows(rows: list[tuple[str, str, str, str]]) -> str:
    return "\n".join(
        f"| [{name}]({name}.md) | {data} | [{recipe}](../examples/configs/{recipe}) | {figure} |"
        for name, data, recipe, figure in rows
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="Write nothing; fail if a file is not up to date.")
    args = parser.parse_args()
    files = rendered()
    present = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.glob("*.md")}
    if args.check:
        stale = sorted(name for name in files.keys() | present.keys() if files.get(name) != present.get(name))
        sys.exit(f"not what the sources give: {', '.join(stale)}" if stale else None)
    for name in present.keys() - files.keys():
        (FOLDER / name).unlink()
    for name, text in files.items():
        (FOLDER / name).write_text(text, encoding="utf-8")
    print(f"wrote {len(files)} files to {FOLDER}")


if __name__ == "__main__":
    main()
