"""Judge a classifier on labelled videos: `accelerate launch examples/evaluate.py --model_name_or_path MODEL ...`.

    accelerate launch examples/evaluate.py --model_name_or_path outputs/finetune --validation_dir my_videos/test
    accelerate launch examples/evaluate.py --model_name_or_path outputs/finetune --dataset_name me/clips \
        --validation_split test --motion_sensitivity

Every video is seen in several views, segments of its time x crops of its frames, whose mean score counts. What is
judged by is what `--validation_*` names; where only `--train_dir` or `--train_manifest` is given, these. Classes are
matched to the model's by name. `--help` lists every flag.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from mme_hf import __version__
from mme_hf.charts import draw_confusion
from mme_hf.data import BadVideoLog, TooManyBadVideosError
from mme_hf.data.labelled_clips import FRAME_ORDERS, NO_LABEL, ViewSampling, build_labelled_loader
from mme_hf.model_card import local_name, public_value
from mme_hf.training import parse_arguments, set_up_logging
from mme_hf.training.classification_report import (
    class_table,
    classification_report,
    figures_table,
    hub_results,
    write_predictions,
)
from mme_hf.training.classifiers import load_classifier
from mme_hf.training.judging_arguments import EvaluationArguments
from mme_hf.training.labelled_data import label_names_of
from mme_hf.training.metrics import NUM_CALIBRATION_BINS, confusion_counts
from mme_hf.training.motion_sensitivity import motion_sensitivity, motion_words, sensitivity_table
from mme_hf.training.prediction import VideoPredictions, predict_videos
from mme_hf.training.processes import LONG_WAITS, num_decoding_workers, use_all_cores
from mme_hf.training.setup import check_output_dir, load_training_records, load_validation_records
from mme_hf.wording import counted, percent

logger = logging.getLogger("evaluate")

SPLITS = ("train", "val", "validation", "dev", "test")


class Evaluation:
    """One run. All is built and checked before the first video is opened."""

    def __init__(self, args: EvaluationArguments):
        self.args = args
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[LONG_WAITS])
        set_up_logging(is_main_process=self.accelerator.is_main_process)
        use_all_cores()
        self.model, self.processor = load_classifier(args)
        if self.model.config.problem_type == "multi_label_classification":
            raise ValueError(f"model_name_or_path ({args.model_name_or_path!r}) gives videos several labels, not one.")
        is_folder = Path(args.model_name_or_path).is_dir()
        default_dir = Path(args.model_name_or_path, "evaluation") if is_folder else Path("outputs/evaluate")
        self.output_dir = Path(args.output_dir or default_dir)
        check_output_dir(self.output_dir)
        self.label_names = label_names_of(self.model.config)
        self.records = (load_validation_records(args) or load_training_records(args)).relabelled(self.label_names)
        self.num_workers = num_decoding_workers(args.dataloader_num_workers)
        self.model.to(self.accelerator.device)
        self.bad_videos = BadVideoLog.for_records(
            self.records,
            self.output_dir / "bad_videos.jsonl",
            max_bad_fraction=args.max_bad_fraction,
            on_bad_video=args.on_bad_video,
            is_writer=self.accelerator.is_main_process,
        )

    def run(self) -> None:
        """Judge the model, and have the main process write and print what came of it."""
        self._announce()
        started = time.perf_counter()
        forwards = self._predictions("forwards")
        seconds = time.perf_counter() - started
        orders = FRAME_ORDERS[1:] if self.args.motion_sensitivity else ()
        guesses = {"forwards": forwards.scores.argmax(1)}
        for order in orders:
            found = self._predictions(order)
            if found.sources == forwards.sources:
                guesses[order] = found.scores.argmax(1)
            else:
                logger.warning("%s: left out, for other videos could be read than forwards", order)
        if self.accelerator.is_main_process:
            report = {**self._settings(), **classification_report(forwards, self.label_names)}
            report["num_bad_videos"] = self.bad_videos.num_bad
            report["clips_per_second"] = forwards.num_views / seconds
            report["videos_per_second"] = len(forwards.sources) / seconds
            if orders:
                report["motion_sensitivity"] = motion_sensitivity(guesses, forwards.labels)
            self._write(report, forwards)
            self._print(report)
        self.accelerator.end_training()

    def _predictions(self, order: str) -> VideoPredictions:
        views = self.args.num_eval_segments * self.args.num_eval_crops
        loader = build_labelled_loader(
            self.records,
            self.processor,
            videos_per_batch=max(1, self.args.per_device_eval_batch_size // views),
            sampling=ViewSampling(
                num_segments=self.args.num_eval_segments,
                num_crops=self.args.num_eval_crops,
                frame_order=order,
                reader=self.args.reader,
            ),
            num_workers=self.num_workers,
            pin_memory=self.accelerator.device.type == "cuda",
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
            seed=self.args.seed,
            shuffle=False,
            num_epochs=1,
        )
        clips_per_forward = self.args.per_device_eval_batch_size
        return predict_videos(
            self.accelerator, self.model, self._watched(loader, order), clips_per_forward=clips_per_forward
        )

    def _watched(self, loader, order: str) -> Iterator[dict]:
        bad, num_seen = [], 0
        num_own = self.records.num_records and -(-self.records.num_records // self.accelerator.num_processes)
        with tqdm(
            total=num_own, desc=order, unit="video", disable=not self.accelerator.is_main_process, leave=False
        ) as bar:
            for batch in loader:
                if (batch["labels"] == NO_LABEL).any():
                    source = batch["sources"][int((batch["labels"] == NO_LABEL).int().argmax())]
                    raise ValueError(f"{source} has no label, so it cannot be judged by. Leave it out.")
                bad += batch["bad_videos"]
                num_seen += batch["num_records"]
                if self.accelerator.num_processes == 1:
                    self.bad_videos.record(bad, num_seen=num_seen)
                yield batch
                bar.update(batch["num_records"])
        # All processes stop alike, or those that go on would wait for the others.
        self.bad_videos.record(gather_object(bad), num_seen=sum(gather_object([num_seen])))

    def _settings(self) -> dict:
        args, processor = self.args, self.processor
        dataset, split = self._data_names()
        size = processor.crop_size
        return {
            "model": local_name(args.model_name_or_path),
            "dataset": dataset,
            "split": split,
            "views": f"{args.num_eval_segments} x {args.num_eval_crops}",
            "frame_sampling": processor.frame_sampling,
            "num_frames": processor.num_frames,
            "frame_stride": processor.frame_stride if processor.frame_sampling == "dense" else None,
            "image_size": [size["height"], size["width"]],
            "mixed_precision": self.accelerator.mixed_precision,
            "seed": args.seed,
            "num_calibration_bins": NUM_CALIBRATION_BINS,
            "device": f"{self.accelerator.num_processes} x {self.accelerator.device.type}",
            "mme_hf_version": __version__,
        }

    def _data_names(self) -> tuple[str, str | None]:
        """Return what the data set is called, and its split: of a folder 'ucf101/test' these two names."""
        args = self.args
        folder = args.validation_dir or (None if args.validation_manifest or args.dataset_name else args.train_dir)
        if folder:
            path = Path(folder).resolve()
            return (path.parent.name, path.name) if path.name in SPLITS else (path.name, None)
        return public_value(self.records.name), None if args.validation_manifest else args.validation_split

    def _announce(self) -> None:
        settings, records = self._settings(), self.records
        videos = "a stream" if records.num_records is None else counted(records.num_records, "video")
        apart = f", {settings['frame_stride']} apart" if settings["frame_stride"] else ""
        logger.info("model: %s, %d classes", self.args.model_name_or_path, len(self.label_names))
        split = f", split {settings['split']}" if settings["split"] else ""
        logger.info("data: %s%s (%s)", settings["dataset"], split, videos)
        logger.info(
            "views: %s (segments x crops) of %d frames%s, sampled %s, %d x %d px, on %s",
            *(settings["views"], settings["num_frames"], apart, settings["frame_sampling"]),
            *(*settings["image_size"], settings["device"]),
        )

    def _write(self, report: dict, predictions: VideoPredictions) -> None:
        self.output_dir.mkdir(parents=True, exist_ok=True)
        report["eval_results"] = hub_results(report, dataset=report["dataset"], split=report["split"])
        text = json.dumps(report, indent=2, ensure_ascii=False)
        (self.output_dir / "eval_results.json").write_text(text + "\n", encoding="utf-8")
        write_predictions(self.output_dir / "predictions.csv", predictions, self.label_names)
        title = f"{report['dataset']}: top-1 {percent(report['top1'])} of {counted(report['num_videos'], 'video')}"
        counts = confusion_counts(predictions.scores, predictions.labels)
        draw_confusion(self.output_dir / "confusion.png", counts, self.label_names, title=title)

    def _print(self, report: dict) -> None:
        speed = f"{report['clips_per_second']:.1f} clips/s, {report['videos_per_second']:.2f} videos/s"
        num_tried = report["num_videos"] + report["num_bad_videos"]
        print("", *figures_table(report), sep="\n")
        print(f"  {'speed':<20} {speed}, decoding included, on {report['device']}")
        print(f"  {'unreadable videos':<20} {report['num_bad_videos']} of {num_tried}")
        print("", *class_table(report), sep="\n")
        if "motion_sensitivity" in report:
            sensitivity = report["motion_sensitivity"]
            print("", *sensitivity_table(sensitivity), "", sep="\n")
            print(*motion_words(sensitivity, report["num_videos"]), sep="\n")
        if self.bad_videos.num_bad:
            print(f"\nunreadable videos are listed in {self.bad_videos.path}")
        print(f"\nsaved in {self.output_dir}: eval_results.json, predictions.csv, confusion.png")


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    try:
        evaluation = Evaluation(parse_arguments(EvaluationArguments))
    except (ValueError, TooManyBadVideosError) as error:
        sys.exit(f"evaluate.py: error: {error}")
    try:
        evaluation.run()
    except (ValueError, OSError, TooManyBadVideosError) as error:  # OSError: the disk is full, for one
        sys.exit(f"evaluate.py: stopped: {error}")


if __name__ == "__main__":
    main()
