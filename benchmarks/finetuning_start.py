"""Fine-tune the tiny preset from random weights and from pre-training, judge both, and write the table.

    python benchmarks/finetuning_start.py --train_dir SET/train --validation_dir SET/test --checkpoint FOLDER

The real scripts are run: `examples/finetune.py` with the recipe `finetune-tiny`, whose last weights are judged (nothing
is chosen by the test videos), then `examples/evaluate.py` with 3 views in time and `--motion_sensitivity`. Writes
benchmarks/results/finetuning.md.
"""

from __future__ import annotations

import argparse
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

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = REPOSITORY / "benchmarks" / "results" / "finetuning.md"
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
    args.output.write_text("\n".join(report(args, runs)) + "\n", encoding="utf-8")
    print(f"wrote {args.output}")


def run(args: argparse.Namespace, seed: int, flags: list[str]) -> dict:
    """Return what the evaluation of one fine-tuning found, with the seconds that training took."""
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
        return {**json.loads((Path(folder) / "eval_results.json").read_text()), "seconds": seconds}


def call(script: str, *flags: str) -> None:
    """Run an example to its end."""
    command = [sys.executable, str(REPOSITORY / "examples" / script), *flags]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def report(args: argparse.Namespace, runs: dict[str, list[dict]]) -> list[str]:
    """Return the lines of the table."""
    first = runs["random weights"][0]
    names = f"{args.train_dir.parent.name}: {args.train_dir.name}, judged by {args.validation_dir.name}"
    minutes = statistics.mean(run["seconds"] for found in runs.values() for run in found) / 60
    lines = [
        "# The tiny preset, fine-tuned for minutes",
        "",
        f"Data: {names} ({first['num_videos']} videos, {len(first['per_class'])} classes, chance "
        f"{1 / len(first['per_class']):.0%}). Recipe `{RECIPE}`: {minutes:.1f} minutes each on {platform.machine()}, "
        f"{os.cpu_count()} CPU cores, torch {torch.__version__}, transformers {transformers.__version__}. Mean over "
        f"{args.num_seeds} seeds of fine-tuning, and each seed's; the pre-training is one run. The last weights are "
        "judged, by 3 views in time of each video.",
        "",
        "| start | top-1 | by seed | clips reversed | shuffled | frozen |",
        "|---|---|---|---|---|---|",
    ]
    for name, found in runs.items():
        top1 = [run["top1"] for run in found]
        orders = [statistics.mean(run["motion_sensitivity"][order]["top1"] for run in found) for order in ORDERS[1:]]
        columns = [f"{statistics.mean(top1):.3f}", ", ".join(f"{value:.3f}" for value in top1)]
        lines.append("| " + " | ".join([name, *columns, *(f"{value:.3f}" for value in orders)]) + " |")
    interval = first["top1_interval"]
    return [
        *lines,
        "",
        f"With so few videos one top-1 of {first['top1']:.3f} has a 95 % interval of {interval[0]:.3f} to "
        f"{interval[1]:.3f}: smaller differences say nothing.",
        "",
        "```",
        f"python benchmarks/finetuning_start.py --train_dir {args.train_dir.parent.name}/{args.train_dir.name} "
        f"--validation_dir {args.validation_dir.parent.name}/{args.validation_dir.name} "
        f"--checkpoint {args.checkpoint.name} --num_seeds {args.num_seeds}",
        "```",
    ]


if __name__ == "__main__":
    main()
