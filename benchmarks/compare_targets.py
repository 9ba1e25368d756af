"""Compare what a model can be asked to predict: labels and a short training of every target; write the tables.

    python benchmarks/compare_targets.py                        # 160 updates each, about 20 minutes on one core
    python benchmarks/compare_targets.py --teacher facebook/dinov2-small --sets features "shape position:2"

The tiny preset on the sample clips, every other crop moving. Every run sees the same clips, crops, masks and first
weights. Masked tokens alone are predicted, as published, unless a set has a visible_weight.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from collections.abc import Sequence
from itertools import cycle, islice
from pathlib import Path

import torch
from accelerate import Accelerator
from transformers import ViTConfig, ViTModel, get_cosine_schedule_with_warmup

from mme_hf import MMEForPreTraining, MMEVideoProcessor, open_video, preset_config
from mme_hf.data import ClipSampling, build_clip_loader, load_sample_records
from mme_hf.position_target_mme import NORMALIZATIONS
from mme_hf.training.evaluation import MeanPredictor, explained_share
from mme_hf.training.target_flags import parse_motion_targets

RESULT = Path(__file__).parent / "results" / "compare_targets.md"
SETS = (
    "shape",
    "position",
    *(f'{{"position": {{"normalization": "{name}"}}}}' for name in NORMALIZATIONS[1:]),  # the first is the default
    "shape_along_track",
    "flow",
    "flow_histogram",
    "pixels",
    "features",
    "shape position",
    "shape:15 position",
    "pixels position",
    "shape position flow_histogram",
    "shape position shape_along_track flow flow_histogram pixels features",
)
BATCH_SIZE = 16
NUM_TRAINING_BATCHES = 16
NUM_HELD_OUT_CLIPS = 4
LEARNING_RATE = 1e-3
MOVING_CROP_SPEED = 0.01


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_steps", type=int, default=160, help="Updates of each run.")
    parser.add_argument("--sets", nargs="+", default=SETS, help="Targets of each run, as --motion_targets takes them.")
    parser.add_argument("--teacher", help="Of the target 'features'. Default: a small ViT with random weights.")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        teacher = args.teacher or save_random_teacher(folder)
        runs = [run(words, teacher, args.num_steps) for words in args.sets]
    args.output.write_text(report(runs, args), encoding="utf-8")
    print(f"wrote {args.output}")


def save_random_teacher(folder: str) -> str:
    torch.manual_seed(0)
    sizes = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "intermediate_size": 768}
    ViTModel(ViTConfig(**sizes, image_size=112)).save_pretrained(folder)
    return folder


def run(words: str, teacher: str, num_steps: int) -> dict:
    """Return what there is to say about one set of targets."""
    targets = parse_motion_targets([words] if words.startswith("{") else words.split())
    if "features" in targets:
        targets["features"] = {"teacher": teacher, **targets["features"]}
    names = {name: label_of(name, options) for name, options in targets.items()}
    targets = {name: {"visible_weight": 0.0, **options} for name, options in targets.items()}
    config = preset_config("tiny")
    side = config.image_size
    processor = MMEVideoProcessor(
        size={"shortest_edge": side},
        crop_size={"height": side, "width": side},
        num_frames=config.num_frames,
        motion_targets=targets,
    )
    sampling = ClipSampling(samples_per_video=8, part="train", moving_crop_speed=MOVING_CROP_SPEED)
    train = batches_of(processor, sampling, NUM_TRAINING_BATCHES)
    held_out = batches_of(processor, ClipSampling(NUM_HELD_OUT_CLIPS, is_random=False, part="held_out"), 1)
    torch.manual_seed(0)
    model = MMEForPreTraining(preset_config("tiny", motion_targets=processor.motion_target_config()))
    train_for(model, train, num_steps)
    sizes = {name: target["size"] for name, target in model.config.motion_targets.items()}
    accelerator = Accelerator(cpu=True)
    baseline = MeanPredictor.fit(train, sizes, accelerator)
    seen, shares = (explained_share(model, batches, baseline, accelerator) for batches in (train, held_out))
    result = {
        "names": names,
        "weights": {name: target["weight"] for name, target in model.config.motion_targets.items()},
        "labels": {name: statistics_of(train, sizes, name) for name in sizes},
        "seen": seen,
        "shares": shares,
        "milliseconds": label_milliseconds(processor),
    }
    print(words, {name: f"{share:+.4f}" for name, share in shares.items()}, flush=True)
    return result


def label_of(name: str, options: dict) -> str:
    words = [name]
    if "normalization" in options:
        words.append(options["normalization"])
    for option in ("weight", "visible_weight"):
        if option in options:
            words.append(f"{option} {options[option]:g}")
    return ", ".join(words)


def batches_of(processor: MMEVideoProcessor, sampling: ClipSampling, num_batches: int) -> list[dict]:
    loader = build_clip_loader(
        load_sample_records(),
        processor,
        batch_size=BATCH_SIZE,
        sampling=sampling,
        shuffle=sampling.is_random,
        seed=0,
    )
    return list(islice(loader, num_batches))


def train_for(model: MMEForPreTraining, batches: Sequence[dict], num_steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, betas=(0.9, 0.95), weight_decay=0.05)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_steps // 6, num_steps)
    model.train()
    for batch in islice(cycle(batches), num_steps):
        model(**batch["inputs"]).loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()


def statistics_of(batches: Sequence[dict], sizes: dict[str, int], name: str) -> dict[str, float]:
    """Return the range and spread of one target's labels, over the tokens that count."""
    column = list(sizes).index(name)
    labels = [batch["inputs"]["labels"].split(list(sizes.values()), dim=-1)[column] for batch in batches]
    counts = [batch["inputs"]["target_mask"][..., column] for batch in batches]
    values = torch.cat([label[count] for label, count in zip(labels, counts, strict=True)])
    return {
        "size": values.shape[-1],
        "counts": torch.cat(counts).float().mean().item(),
        "least": values.min().item(),
        "largest": values.max().item(),
        "outside_tanh": (values.abs() >= 1).float().mean().item(),
        "outside_sigmoid": ((values < 0) | (values >= 1)).float().mean().item(),
        "variance": values.var().item(),
        "mean_predictor": values.var(dim=0, correction=0).mean().item(),
    }


def label_milliseconds(processor: MMEVideoProcessor) -> float:
    """Return what labels add to a clip, tracking included: the least of three times, median over the videos."""
    least = []
    for record in load_sample_records().dataset:
        with open_video(record["video"]["path"]) as reader:
            raw = reader.frames_at(range(processor.raw_window()))
        frames = raw[:: processor.frame_stride][: processor.num_frames]
        added = []
        for _ in range(3):
            start = time.perf_counter()
            processor(raw, return_targets=True, return_tensors="pt")
            middle = time.perf_counter()
            processor(frames, return_tensors="pt")
            added.append(2 * middle - start - time.perf_counter())
        least.append(min(added))
    return 1000 * statistics.median(least)


def report(runs: Sequence[dict], args: argparse.Namespace) -> str:
    labels, training = [], []
    for result in runs:
        if len(result["labels"]) == 1:
            (name, item), label = next(iter(result["labels"].items())), *result["names"].values()
            extent = f"{item['least'] + 0.0:.2f} to {item['largest']:.2f}"
            labels.append(
                f"| {label} | {item['size']} | {item['counts']:.3f} | {extent} | "
                f"{item['outside_tanh']:.1%} | {item['outside_sigmoid']:.1%} | {item['variance']:.3f} | "
                f"{item['mean_predictor']:.3f} | {result['weights'][name]:g} | {result['milliseconds']:.1f} |"
            )
        trained_on = " + ".join(result["names"].values())
        for name, label in result["names"].items():
            first, seen = result["labels"][name]["mean_predictor"], result["seen"][name]
            losses = f"{first:.3f} | {first * (1 - seen):.3f}"
            training.append(f"| {trained_on} | {label} | {losses} | {seen:+.4f} | {result['shares'][name]:+.4f} |")
    line_break = "\n"
    return f"""# Targets compared

The tiny preset (112 px, 8 frames, stride 4, tracks of 4 steps) on the sample clips, every other crop moving at up to
{MOVING_CROP_SPEED:.0%} of its side a frame. {args.num_steps} updates of {BATCH_SIZE} clips, {NUM_TRAINING_BATCHES}
batches over and over. One thread, {platform.machine()}, torch {torch.__version__}. Every run sees the same clips,
masks and first weights, and predicts masked tokens alone unless its name says otherwise.
Features are those of {args.teacher or "a small ViT with random weights"}.

## Labels

Of tokens that count. Tanh can express (-1, 1) and sigmoid (0, 1): where labels are outside, only a linear head can meet
them. The mean predictor's loss is that of always predicting the mean label. Milliseconds are what the labels add to a
clip, tracking included.

| target | values per token | tokens that count | range | outside (-1, 1) | outside (0, 1) | variance | \
loss of the mean predictor | default weight | ms per clip |
|---|---|---|---|---|---|---|---|---|---|
{line_break.join(labels)}

## Training

Losses are those of training clips, without their weights. The explained share is 1 - squared error / squared error of
the mean predictor, on the training clips and on the last fifth of each clip, which training never touches.

| trained on | target | loss of the mean predictor | loss after {args.num_steps} updates | explained, training clips | \
explained, held out |
|---|---|---|---|---|---|
{line_break.join(training)}
"""


if __name__ == "__main__":
    main()
