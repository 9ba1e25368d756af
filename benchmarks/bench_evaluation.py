"""Time the test by many views, and what augmentation costs the loader; write the table.

Many views: every video is judged by 5 segments x 3 crops, in two ways that take turns on each video, in one process:

* shared: as `examples/evaluate.py` does, a video opened once for all its views;
* apart: 15 passes of one view each, which open, decode, resize and crop for themselves.

Both go the whole way, from the file through the loader to the scores of `predict_videos`, and their scores are
compared. Each is timed with a model and with the input path alone.

Augmentation: one data worker makes batches of training clips, each step of the recipe on top of those before it, taking
turns; and what mixup adds, which is done to a batch outside the worker.

    python benchmarks/bench_evaluation.py --num_videos 24 --repeats 3
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import cv2
import torch
from accelerate import Accelerator
from torch.utils.data import DataLoader
from torchvision import tv_tensors
from torchvision.transforms import v2

from mme_hf import MMEForVideoClassification, MMEVideoProcessor, preset_config
from mme_hf.data import ClipBatchSampler, VideoRecords, load_folder_records, load_sample_records
from mme_hf.data.clips import OpenedVideo
from mme_hf.data.labelled_clips import (
    Augmentation,
    LabelledClipDataset,
    LabelledCollator,
    LabelledSample,
    ViewSampling,
    build_labelled_loader,
    crop_corners,
)
from mme_hf.data.loading import video_loader
from mme_hf.training.prediction import VideoPredictions, predict_videos
from mme_hf.video import VideoReader

REPOSITORY = Path(__file__).resolve().parents[1]
VIEWS = ViewSampling(num_segments=5, num_crops=3)
NUM_CLASSES = 10
MIN_RATIO = 3.0
CLOCKS: dict[str, Callable[[], float]] = {"wall": time.perf_counter, "cpu": time.process_time}
NO_AUGMENTATION = {"flip_probability": 0.0, "rand_augment_num_ops": 0, "random_erasing_probability": 0.0}
# Each on top of those before it, and always done, to show what it costs when it happens; mixup comes last.
STEPS: dict[str, Augmentation | None] = {
    "none": None,
    "+ random resized crop": Augmentation(**NO_AUGMENTATION),
    "+ flip": Augmentation(**{**NO_AUGMENTATION, "flip_probability": 0.5}),
    "+ RandAugment": Augmentation(random_erasing_probability=0.0),
    "+ erasing": Augmentation(),
}
MIXUP = "+ mixup or cutmix"


class OneView(LabelledClipDataset):
    """Makes one of the views of `VIEWS`, and reads nothing else.

    Args:
        records: The videos.
        processor: Resizes and normalises.
        number: Of the view: segment x crops + crop.
    """

    def __init__(self, records: VideoRecords, processor: MMEVideoProcessor, number: int):
        super().__init__(records, processor, VIEWS)
        self.segment, self.crop = divmod(number, VIEWS.num_crops)

    def samples_of(self, reader: VideoReader, opened: OpenedVideo) -> Sequence[LabelledSample]:
        """Return the view of one video."""
        processor = self.processor
        plan = (reader.num_frames, processor.num_frames, processor.frame_stride, opened.generator)
        frames = reader.frames_at(VIEWS.clip_frames(*plan)[self.segment])
        options = {"do_sample_frames": False, "do_center_crop": False, "return_tensors": "pt"}
        whole = processor(frames, **options)["pixel_values"][0]
        height, width = processor.crop_size["height"], processor.crop_size["width"]
        top, left = crop_corners(tuple(whole.shape[-2:]), (height, width), VIEWS.num_crops)[self.crop]
        return [LabelledSample(whole[None, ..., top : top + height, left : left + width], opened.record["label"])]


class NoModel(torch.nn.Module):
    """Stands for a model that takes no time: what is left is the input path."""

    def __init__(self, config):
        super().__init__()
        self.config = config

    def forward(self, pixel_values: torch.Tensor):
        """Return logits of zeros."""
        return argparse.Namespace(logits=torch.zeros(len(pixel_values), self.config.num_labels))


def find_records(folder: Path, num_videos: int) -> VideoRecords:
    """Return so many videos, evenly spread over the folder; the sample clips, repeated, where there is none."""
    records = load_folder_records(folder) if folder.is_dir() else load_sample_records()
    rows = [place * records.num_records // num_videos for place in range(num_videos)]
    dataset = records.dataset.select(rows)
    if "label" not in dataset.column_names:
        dataset = dataset.add_column("label", [0] * num_videos)
    return replace(records, dataset=dataset, num_records=num_videos)


def shared(records: VideoRecords, processor: MMEVideoProcessor) -> list[DataLoader]:
    options = {"videos_per_batch": 1, "sampling": VIEWS, "shuffle": False, "num_epochs": 1}
    return [build_labelled_loader(records, processor, **options)]


def apart(records: VideoRecords, processor: MMEVideoProcessor) -> list[DataLoader]:
    loaders = []
    for number in range(VIEWS.clips_per_video):
        order = ClipBatchSampler(records, batch_size=1, shuffle=False, num_epochs=1)
        loaders.append(video_loader(OneView(records, processor, number), order, LabelledCollator(processor)))
    return loaders


def measure_views(
    records: VideoRecords, processor: MMEVideoProcessor, model: torch.nn.Module, repeats: int, clock: Callable
) -> tuple[dict[str, float], float]:
    """Return way -> seconds for all videos, and the largest difference of scores."""
    accelerator = Accelerator(cpu=True)

    def predict(batches) -> VideoPredictions:
        return predict_videos(accelerator, model, batches, clips_per_forward=8)

    seconds = defaultdict(lambda: defaultdict(list))
    ways, difference = {"shared": shared, "apart": apart}, 0.0
    for repeat in range(repeats + 1):
        for row in range(records.num_records):
            one = replace(records, dataset=records.dataset.select([row]), num_records=1)
            scores = {}
            for name, way in list(ways.items())[:: 1 if (repeat + row) % 2 else -1]:
                loaders = way(one, processor)  # once for all videos of a real run, so before the clock
                start = clock()
                scores[name] = torch.stack([predict(loader).scores for loader in loaders]).mean(0)
                seconds[name][row].append(clock() - start)
            difference = max(difference, float((scores["shared"] - scores["apart"]).abs().max()))
    # The first round warms up.
    totals = {name: sum(statistics.median(taken[1:]) for taken in rows.values()) for name, rows in seconds.items()}
    return totals, difference


def batches_of(
    records: VideoRecords,
    processor: MMEVideoProcessor,
    augmentation: Augmentation | None,
    arguments: argparse.Namespace,
) -> Iterator[dict]:
    clips = arguments.samples_per_video
    sampling = ViewSampling(augmentation=augmentation, samples_per_video=clips, num_segments=clips)
    options = {"videos_per_batch": arguments.videos_per_batch, "sampling": sampling, "seed": 0, "shuffle": False}
    return iter(build_labelled_loader(records, processor, **options))


def measure_augmentation(
    records: VideoRecords, processor: MMEVideoProcessor, arguments: argparse.Namespace
) -> dict[str, float]:
    """Return step -> milliseconds of a clip: mean over batches of the same videos."""
    clock = CLOCKS[arguments.clock]
    loaders = {name: batches_of(records, processor, augmentation, arguments) for name, augmentation in STEPS.items()}
    mix = v2.RandomChoice([v2.MixUp(alpha=0.8, num_classes=NUM_CLASSES), v2.CutMix(alpha=1.0, num_classes=NUM_CLASSES)])
    taken = defaultdict(list)
    num_batches = max(1, records.num_records // arguments.videos_per_batch) * arguments.repeats
    for number in range(num_batches + 1):
        for name in list(loaders)[:: 1 if number % 2 else -1]:
            start = clock()
            batch = next(loaders[name])
            taken[name].append((clock() - start) / len(batch["labels"]))
            if name == "+ erasing":
                start = clock()
                mix(tv_tensors.Video(batch["pixel_values"]), batch["labels"] % NUM_CLASSES)
                taken[MIXUP].append((clock() - start) / len(batch["labels"]))
    result = {name: 1000 * statistics.fmean(values[1:]) for name, values in taken.items()}
    result[MIXUP] += result["+ erasing"]
    return result


def view_rows(found: dict[str, tuple[dict[str, float], float]], num_videos: int) -> list[str]:
    rows = [
        "| | shared, videos/s | apart, videos/s | shared, views/s | shared / apart | largest difference of scores |",
        "|---|---|---|---|---|---|",
    ]
    for name, (seconds, difference) in found.items():
        ratio = seconds["apart"] / seconds["shared"]
        speed = {way: num_videos / taken for way, taken in seconds.items()}
        rows.append(
            f"| {name} | {speed['shared']:.2f} | {speed['apart']:.2f} | {speed['shared'] * VIEWS.clips_per_video:.1f} "
            f"| **{ratio:.2f}** | {difference:.1e} |"
        )
    return rows


def augmentation_rows(milliseconds: dict[str, float]) -> list[str]:
    rows = ["| augmentation | ms a clip | clips/s per worker | share of the speed lost to it |", "|---|---|---|---|"]
    before = None
    for name in (*STEPS, MIXUP):
        now = milliseconds[name]
        lost = "" if before is None else f"{1 - before / now:.0%}"
        rows.append(f"| {name} | {now:.1f} | {1000 / now:.1f} | {lost} |")
        before = now
    return rows


def report(arguments: argparse.Namespace) -> list[str]:
    records = find_records(arguments.videos, arguments.num_videos)
    config = preset_config(arguments.preset, num_labels=NUM_CLASSES)
    side = {
        "size": {"shortest_edge": config.image_size},
        "crop_size": {"height": config.image_size, "width": config.image_size},
    }
    processor = MMEVideoProcessor(num_frames=config.num_frames, **side)
    torch.manual_seed(0)
    model = MMEForVideoClassification(config).eval()
    # A new head gives all classes the same score, and there would be nothing to compare.
    torch.nn.init.normal_(model.classifier.weight)
    measure = partial(measure_views, records, processor, repeats=arguments.repeats, clock=CLOCKS[arguments.clock])
    found = {
        "input path alone": measure(model=NoModel(config)),
        f"with preset {arguments.preset}": measure(model=model),
    }
    libraries = ("torch", "torchvision", "transformers", "av", "opencv-python-headless")
    return [
        "# Test by many views, and the cost of augmentation",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, one thread used; Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in libraries)
        + f". {arguments.clock} time, files in the page cache. {records.num_records} videos of {records.name}, clips "
        f"of {processor.num_frames} frames, stride {processor.frame_stride}, {config.image_size} px.",
        "",
        f"Command: `python {shlex.join(['benchmarks/' + Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        "",
        f"{VIEWS.num_segments} segments x {VIEWS.num_crops} crops. Shared: a video is opened once for all its views. "
        f"Apart: {VIEWS.clips_per_video} passes of one view each. In turns on each video, median of "
        f"{arguments.repeats} rounds after a warm-up.",
        "",
        *view_rows(found, records.num_records),
        "",
        f"Bar: {MIN_RATIO:.0f} times, of the input path; a model takes the same time both ways.",
        "",
        "## Augmentation",
        "",
        f"One worker, batches of {arguments.videos_per_batch} videos x {arguments.samples_per_video} clips, each step "
        "on top of those before; in turns, mean over batches after a warm-up. Mixup is done to the batch by the "
        "training process.",
        "",
        *augmentation_rows(measure_augmentation(records, processor, arguments)),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--videos", type=Path, default=REPOSITORY.parent / "shared/actions/ucf101_5/test")
    parser.add_argument("--num_videos", type=int, default=24)
    parser.add_argument("--preset", default="tiny")
    parser.add_argument("--samples_per_video", type=int, default=2)
    parser.add_argument("--videos_per_batch", type=int, default=4)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--clock", choices=list(CLOCKS), default="wall", help="cpu: for ratios on a busy machine")
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/evaluation.md")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    lines = report(arguments)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text("\n".join([*lines, ""]), encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
