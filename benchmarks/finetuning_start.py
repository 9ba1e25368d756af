"""Fine-tune the tiny preset from random weights and from pre-training, judge both, and write the table.

    python benchmarks/finetuning_start.py --train_dir SET/train --validation_dir SET/test --checkpoint FOLDER

The real scripts are run: `examples/finetune.py` with the recipe `finetune-tiny`, whose last weights are judged (nothing
is chosen by the test videos), then `examples/evaluate.py` with 3 views in time and `--motion_sensitivity`. Writes
benchmarks/results/finetuning.json, which model cards are rendered from, and finetuning.md from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
import transformers

from mme_hf.model_card import load_facts
from mme_hf.training.classification_report import hub_results

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "finetuning.json"
RECIPE = "examples/configs/finetune-tiny.yaml"
ORDERS = ("forwards", "reversed", "shuffled", "frozen")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", type=Path, required=True, help="Class folders to train on.")
    parser.add_argument("--validation_dir", type=Path, required=True, help="Class folders to judge by.")
    parser.add_argument("--checkpoint", type=Path, required=True, help="Folder of a finished pre-training.")
    parser.add_argument("--num_seeds", type=int, default=2)
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    starts = {"random weights": [], "pre-training": ["--model_name_or_path", str(args.checkpoint.resolve())]}
    runs: dict[str, list[dict]] = {name: [] for name in starts}
    for seed in range(args.num_seeds):
        for name, flags in starts.items():
            runs[name].append(run(args, seed, flags))
            print(f"{name}, seed {seed}: top-1 {runs[name][-1]['top1']:.3f}", flush=True)
    contents = results(args, runs)
    args.output.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    args.output.with_suffix(".md").write_text("\n".join(table(contents)) + "\n", encoding="utf-8")
    print(f"wrote {args.output} and {args.output.with_suffix('.md').name}")


def run(args: argparse.Namespace, seed: int, flags: list[str]) -> dict:
    """Return what the evaluation of one fine-tuning found, with its facts and the seconds that training took."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        data = ["--train_dir", str(args.train_dir), "--output_dir", folder, "--seed", str(seed)]
        call("finetune.py", "--config", str(REPOSITORY / RECIPE), *data, *flags)
        seconds = time.perf_counter() - start
        call(
            "evaluate.py",
            *("--model_name_or_path", folder, "--validation_dir", str(args.validation_dir)),
            *("--output_dir", folder, "--motion_sensitivity", "true"),
            *("--num_eval_segments", "3", "--num_eval_crops", "1"),
        )
        found = json.loads((Path(folder) / "eval_results.json").read_text())
        return {**found, "facts": dataclasses.asdict(load_facts(folder)), "seconds": seconds}


def call(script: str, *flags: str) -> None:
    """Run an example to its end."""
    command = [sys.executable, str(REPOSITORY / "examples" / script), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def results(args: argparse.Namespace, runs: dict[str, list[dict]]) -> dict:
    """Return what the table and the model cards are made of."""
    first = runs["random weights"][0]
    seconds = statistics.mean(run["seconds"] for found in runs.values() for run in found)
    return {
        "train": f"{args.train_dir.parent.name}/{args.train_dir.name}",
        "validation": f"{args.validation_dir.parent.name}/{args.validation_dir.name}",
        "checkpoint": args.checkpoint.name,
        "minutes": seconds / 60,
        "machine": f"{platform.machine()}, {os.cpu_count()} CPU cores",
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "first_run": {name: first[name] for name in ("top1", "top1_interval")},
        "starts": {
            name: {"facts": public_facts(args, found), "evaluation": mean(found)} for name, found in runs.items()
        },
    }


def public_facts(args: argparse.Namespace, found: list[dict]) -> dict:
    """Return the facts of a start's runs, without what is of one run alone: its folder and seed."""
    facts = found[0]["facts"]
    start = None if facts["start"] is None else f"outputs/{args.checkpoint.name}"
    repository = "outputs/finetune-tiny-pretrained" if start else "outputs/finetune-tiny"
    flags = f"--train_dir {args.train_dir.parent.name}/{args.train_dir.name} --output_dir {repository}"
    if start:
        flags += f" --model_name_or_path {start}"
    own = ("output_dir", "seed")
    return {
        **facts,
        "repository": repository,
        "data_name": args.train_dir.parent.name,
        "start": start,
        "seconds": statistics.mean(run["facts"]["seconds"] for run in found),
        "command": f"accelerate launch examples/finetune.py --config {RECIPE} {flags}",
        "settings": {name: value for name, value in facts["settings"].items() if name not in own},
    }


def mean(found: list[dict]) -> dict:
    """Return a report of evaluation whose figures are means over runs."""
    first = found[0]
    kept = {name: first[name] for name in ("dataset", "split", "views", "num_videos")}
    figures = ("top1", "top5", "mean_class_accuracy", "ece", "most_frequent_class")
    report = {**kept, **{name: statistics.mean(run[name] for run in found) for name in figures}}
    return {
        **report,
        "top1_by_seed": [run["top1"] for run in found],
        "per_class": [{"label": row["label"]} for row in first["per_class"]],
        "motion_sensitivity": {
            order: {"top1": statistics.mean(run["motion_sensitivity"][order]["top1"] for run in found)}
            for order in ORDERS
        },
        "eval_results": hub_results(report, dataset=report["dataset"], split=report["split"]),
    }


def table(contents: dict) -> list[str]:
    """Return the lines of the page of a file of results."""
    evaluations = {name: start["evaluation"] for name, start in contents["starts"].items()}
    some = next(iter(evaluations.values()))
    num_classes, num_seeds = len(some["per_class"]), len(some["top1_by_seed"])
    train, validation = contents["train"], contents["validation"]
    versions = ", ".join(f"{name} {version}" for name, version in contents["versions"].items())
    lines = [
        "# The tiny preset, fine-tuned for minutes",
        "",
        f"Data: {train.replace('/', ': ')}, judged by {Path(validation).name} ({some['num_videos']} videos, "
        f"{num_classes} classes, chance {1 / num_classes:.0%}). Recipe `{RECIPE}`: {contents['minutes']:.1f} minutes "
        f"each on {contents['machine']}, {versions}. Mean over {num_seeds} seeds of fine-tuning, and each seed's; the "
        "pre-training is one run. The last weights are judged, by 3 views in time of each video.",
        "",
        "| start | top-1 | by seed | clips reversed | shuffled | frozen |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in evaluations.items():
        orders = [found["motion_sensitivity"][order]["top1"] for order in ORDERS[1:]]
        columns = [f"{found['top1']:.3f}", ", ".join(f"{value:.3f}" for value in found["top1_by_seed"])]
        lines.append("| " + " | ".join([name, *columns, *(f"{value:.3f}" for value in orders)]) + " |")
    first, (low, high) = contents["first_run"], contents["first_run"]["top1_interval"]
    return [
        *lines,
        "",
        f"With so few videos one top-1 of {first['top1']:.3f} has a 95 % interval of {low:.3f} to {high:.3f}: smaller "
        "differences say nothing.",
        "",
        "```",
        f"python benchmarks/finetuning_start.py --train_dir {train} --validation_dir {validation} "
        f"--checkpoint {contents['checkpoint']} --num_seeds {num_seeds}",
        "```",
    ]


if __name__ == "__main__":
    main()
