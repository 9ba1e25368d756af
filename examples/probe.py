"""Judge frozen features by linear, attentive and kNN probes: `accelerate launch examples/probe.py`.

    accelerate launch examples/probe.py --model_name_or_path my_run --train_dir set/train --validation_dir set/test
    accelerate launch examples/probe.py --preset tiny --train_dir set/train --validation_dir set/test   # random weights

One protocol for all models, in `mme_hf/training/probes.py`: what is chosen is chosen by training videos that were left
out, the videos of validation_* are only judged by. Features are computed once and kept. `--shots 5` draws five videos
of each class. The table and results.json have mean and standard deviation over seeds.
"""

from __future__ import annotations

import copy
import json
import logging
import os
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in pretrain.py

import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError

from mme_hf import __version__
from mme_hf.data import BadVideoLog, TooManyBadVideosError, VideoRecords
from mme_hf.data.labelled_clips import ViewSampling
from mme_hf.data.records import GROUP_FIELD
from mme_hf.model_card import public_settings
from mme_hf.training import parse_arguments, set_up_logging, stopping_in_one_line
from mme_hf.training.feature_cache import FeatureCache, cached_tables, videos_identity
from mme_hf.training.frozen_encoder import FrozenEncoder
from mme_hf.training.labelled_data import check_every_video_is_labelled, label_mappings
from mme_hf.training.labelled_features import LabelledFeatures, draw_shots, groups_can_be_left_out
from mme_hf.training.probe_arguments import ProbeArguments
from mme_hf.training.probes import ProbeProtocol, run_probe, summary_of
from mme_hf.training.processes import LONG_WAITS, use_all_cores
from mme_hf.training.setup import check_output_dir, load_training_records, load_validation_records
from mme_hf.wording import counted

logger = logging.getLogger("probe")

# Which features a probe is of.
POOL_OF = {"linear": "mean", "knn": "mean", "attentive": "grid"}


class Probing:
    """One run. All of it is built and checked before the first video is opened."""

    def __init__(self, args: ProbeArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(args.output_dir)
        self.cache = FeatureCache(args.cache_dir or self.output_dir / "feature_cache")
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[LONG_WAITS])
        set_up_logging(is_main_process=self.accelerator.is_main_process)
        use_all_cores()
        self.train = load_training_records(args)
        self.train.check_classes(at_least=2)
        test = load_validation_records(args, self.train)
        if test is None:
            raise ValueError("No videos to test by are named. Give --validation_dir, _manifest or _split.")
        self.test = test.relabelled(self.train.label_names)
        for records in (self.train, self.test):
            check_every_video_is_labelled(records)
        if args.shots is not None:
            labels = torch.as_tensor(self.train.dataset["label"][:])
            draw_shots(labels, args.shots, torch.Generator(), dict(enumerate(self.train.label_names)))
        self.encoder = FrozenEncoder(args, self.accelerator)
        self.train_views = self.encoder.sampling(args.num_train_views, args.num_train_crops)
        self.head_config = copy.deepcopy(self.encoder.model.config)
        for name, mapping in label_mappings(self.train).items():
            setattr(self.head_config, name, mapping)

    def run(self) -> None:
        """Compute features, or find them, and report what the probes make of them."""
        args = self.args
        train = self._features("training", self.train, self.train_views)
        views = self.encoder.sampling(args.num_eval_segments, args.num_eval_crops)
        test = self._features("test", self.test, views)
        if self.accelerator.is_main_process:
            self._report(train, test)
        self.accelerator.wait_for_everyone()
        self.accelerator.end_training()

    def _features(self, part: str, records: VideoRecords, views: ViewSampling) -> dict[str, LabelledFeatures]:
        """Return the features of a part by pooling, on the main process; cached ones where they are of this model."""
        started = time.perf_counter()
        common = {**self.encoder.identity(views), "videos": videos_identity(records)}
        keys: dict[str, dict[str, Any]] = {POOL_OF[probe]: dict(common) for probe in self.args.probes}
        for pool, key in keys.items():
            key |= {"pool": pool, "max_tokens": self.args.max_tokens if pool == "grid" else None}
        bad_videos = BadVideoLog.for_records(
            records,
            self.output_dir / f"bad_{part}_videos.jsonl",
            max_bad_fraction=self.args.max_bad_fraction,
            on_bad_video=self.args.on_bad_video,
            is_writer=self.accelerator.is_main_process,
        )

        def compute(pools: list[str]) -> dict:
            return self.encoder.tables(records, views, bad_videos, pools, self.args.max_tokens)

        tables, found = cached_tables(self.accelerator, self.cache, keys, compute)
        if not self.accelerator.is_main_process:
            return {}
        labels = records.dataset.with_format("torch", columns=["label"])["label"][:]
        for table in tables.values():
            bad_videos.record(table.bad_videos, num_seen=len(table.places))
        origin = (
            "computed" if not found else "read from the cache" if len(found) == len(keys) else "partly from the cache"
        )
        logger.info(
            "features of %s, %s each: %s (%.0f s); %s",
            counted(len(next(iter(tables.values())).places), f"{part} video"),
            counted(views.clips_per_video, "clip"),
            origin,
            time.perf_counter() - started,
            self.cache.folder,
        )
        groups = _groups_of(records)
        return {
            pool: LabelledFeatures(table.values, labels[table.places], None if groups is None else groups[table.places])
            for pool, table in tables.items()
        }

    def _report(self, train: Mapping[str, LabelledFeatures], test: Mapping[str, LabelledFeatures]) -> None:
        args = self.args
        own = next(iter(train.values()))
        if own.groups is not None and not groups_can_be_left_out(own.labels, own.groups):
            logger.warning("most classes are of one group alone: what is left out to choose by is single videos")
        protocol = ProbeProtocol()
        summaries = {}
        logger.info("%-10s %-14s %-16s %-14s %s", "probe", "test top-1", "mean class acc.", "validation", "chosen")
        for probe in args.probes:
            pool = POOL_OF[probe]
            seeds = range(args.seed, args.seed + args.num_seeds)
            options = {"shots": args.shots, "protocol": protocol, "device": self.accelerator.device}
            results = [
                run_probe(probe, train[pool], test[pool], self.head_config, seed=seed, **options) for seed in seeds
            ]
            summaries[probe] = summary_of(results)
            logger.info("%s", _line_of(probe, summaries[probe]))
        chance = 1 / len(self.train.label_names)
        logger.info("%-10s %.1f %%", "chance", 100 * chance)
        (some_train, some_test) = (next(iter(part.values())) for part in (train, test))
        results = {
            "probes": summaries,
            "chance": chance,
            "num_classes": len(self.train.label_names),
            "num_train_videos": len(some_train.labels),
            "num_test_videos": len(some_test.labels),
            "protocol": asdict(protocol),
            "model": self.encoder.identity(self.train_views),
            "arguments": public_settings(asdict(args)),
            "package_version": __version__,
        }
        self.output_dir.mkdir(parents=True, exist_ok=True)
        path = self.output_dir / "results.json"
        path.write_text(json.dumps(results, indent=2), encoding="utf-8")
        logger.info("written to %s", path)


def _groups_of(records: VideoRecords) -> torch.Tensor | None:
    if GROUP_FIELD not in records.dataset.column_names:
        return None
    names = records.dataset[GROUP_FIELD][:]
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return torch.tensor([number_of[name] for name in names])


def _line_of(probe: str, summary: Mapping[str, Any]) -> str:
    def percent(name: str) -> str:
        deviation = summary[f"{name}_std"]
        return f"{100 * summary[f'{name}_mean']:.1f}" + (
            f" +- {100 * deviation:.1f} %" if deviation is not None else " %"
        )

    chosen = "; ".join(
        ", ".join(f"{name} {value:g}" for name, value in seed["chosen"].items()) for seed in summary["seeds"]
    )
    columns = [percent(name) for name in ("test_top1", "test_mean_class_accuracy", "validation_top1")]
    return f"{probe:10} {columns[0]:14} {columns[1]:16} {columns[2]:14} {chosen}"


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    try:
        run = Probing(parse_arguments(ProbeArguments))
    except (ValueError, StrictDataclassError) as error:
        sys.exit(f"probe.py: error: {error}")
    with stopping_in_one_line("probe.py", run, ValueError, TooManyBadVideosError):
        run.run()


if __name__ == "__main__":
    main()
