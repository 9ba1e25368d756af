"""Features of every video of a data set, as Parquet: `accelerate launch examples/extract_features.py`.

    accelerate launch examples/extract_features.py --model_name_or_path my_run --train_dir my_videos

`datasets.load_dataset("outputs/features")` opens the result: a row for each clip, with the video's name, its label
where it has one, and the feature (`--pool none`: one for each token). A run that was killed goes on where it was:
finished shards are kept, whatever the number of processes. Without data: the sample clips.
"""

from __future__ import annotations

import logging
import os
import sys
import time
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # as in pretrain.py

from accelerate import Accelerator
from accelerate.utils import gather_object
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm

from mme_hf.data import BadVideoLog, TooManyBadVideosError
from mme_hf.data.extraction import Shard, shards_of, start_or_continue
from mme_hf.data.feature_shards import feature_columns, feature_rows, num_rows_of, write_feature_shard
from mme_hf.model_card import local_name
from mme_hf.training import parse_arguments, set_up_logging
from mme_hf.training.feature_cache import videos_identity
from mme_hf.training.frozen_encoder import FrozenEncoder
from mme_hf.training.probe_arguments import FeatureExtractionArguments
from mme_hf.training.processes import LONG_WAITS, use_all_cores
from mme_hf.training.setup import check_output_dir, load_training_records
from mme_hf.wording import counted

logger = logging.getLogger("extract_features")

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- video
- mme_hf
---
# Features of {name}

{num_rows} clips, {num_segments} in time x {num_crops} crops of each video. Made by mme_hf {package_version} with the
encoder of `{model}` (hash of its weights {weights}), layer {layer}, pooling `{pool}`.

| column | what |
|---|---|
| `video` | name of the video |
| `label` | its class, where it has one |
| `segment`, `crop` | which clip in time and which crop of it, from 0 |
| `features` | {dtype}, {hidden_size} values{per_token} |

Every Parquet file has all this in its metadata, under `mme_hf`.
"""


class FeatureExtraction:
    """One run, or what is left of one. All is built and checked before the first video is opened."""

    def __init__(self, args: FeatureExtractionArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(args.output_dir)
        self.records = load_training_records(args)
        self.accelerator = Accelerator(mixed_precision=args.mixed_precision, kwargs_handlers=[LONG_WAITS])
        is_main = self.accelerator.is_main_process
        set_up_logging(is_main_process=is_main)
        use_all_cores()
        self.encoder = FrozenEncoder(args, self.accelerator)
        self.views = self.encoder.sampling(args.num_segments, args.num_crops)
        hidden_size = self.encoder.model.config.hidden_size
        self.columns = feature_columns(self.records.label_names, hidden_size, pool=args.pool, dtype=args.dtype)
        self.settings = {
            **self.encoder.identity(self.views),
            **{name: getattr(args, name) for name in ("pool", "dtype", "num_videos_per_shard")},
            "videos": videos_identity(self.records),
        }
        start_or_continue(self.output_dir, self.settings, is_main=is_main, what="features")
        self.accelerator.wait_for_everyone()
        options = {"process_index": self.accelerator.process_index, "num_processes": self.accelerator.num_processes}
        shards = list(shards_of(self.records, self.output_dir, size=args.num_videos_per_shard, **options))
        self.shards = [shard for shard in shards if shard.records is not None]
        self.bad_videos = BadVideoLog.for_share(
            self.records,
            self.output_dir,
            process_index=self.accelerator.process_index,
            own_places=[shard.places for shard in shards],
            max_bad_fraction=args.max_bad_fraction,
            on_bad_video=args.on_bad_video,
        )
        self.metadata = {
            "model": local_name(args.model_name_or_path)
            if args.model_name_or_path
            else f"{args.preset}, random weights",
            **{name: self.settings[name] for name in ("weights", "layer", "pool", "dtype", "package_version")},
            "num_segments": args.num_segments,
            "num_crops": args.num_crops,
        }

    def run(self) -> None:
        """Write the shards of this process that are not there yet."""
        started = time.perf_counter()
        labels = self.records.dataset["label"][:] if self.records.label_names else None
        # One loader for all of them: each start of its workers takes seconds.
        rows = [row for shard in self.shards for row in _rows_of(shard)]
        batches = self.encoder.batches(self.records, self.views, rows)
        shards = iter(self.shards)
        shard, found = next(shards, None), []
        self.num_done = 0
        with tqdm(total=len(rows), unit="video", disable=not self.accelerator.is_main_process) as bar:
            for video in self.encoder.features(batches, self.bad_videos, [self.args.pool]):
                while video.place not in _rows_of(shard):
                    self._write(shard, found)
                    shard, found = next(shards), []
                label = None if labels is None else labels[video.place]
                found += feature_rows(video.source, label, video.values[self.args.pool], self.args.num_crops)
                self.num_done += 1
                bar.update()
        while shard is not None:
            self._write(shard, found)
            shard, found = next(shards, None), []
        self.seconds = time.perf_counter() - started

    def finish(self) -> None:
        """Wait for all processes, and say what there is now."""
        num_done, seconds = sum(gather_object([self.num_done])), max(gather_object([self.seconds]))
        if self.accelerator.is_main_process:
            num_rows = num_rows_of(self.output_dir)
            per_token = " for each token" if self.args.pool == "none" else ""
            hidden_size = self.encoder.model.config.hidden_size
            about = {**self.metadata, "num_rows": num_rows, "per_token": per_token, "hidden_size": hidden_size}
            card = CARD.format(name=local_name(self.records.name), **about)
            (self.output_dir / "README.md").write_text(card, encoding="utf-8")
            logger.info("features of %s in %s", counted(num_rows, "clip"), self.output_dir)
            logger.info("%d videos in this run, %.2f videos/s", num_done, num_done / max(seconds, 1e-9))
            for listing in sorted(self.output_dir.glob("bad_videos*.jsonl")):
                logger.info("bad videos are listed in %s", listing)
        self.accelerator.end_training()

    def _write(self, shard: Shard, rows: list[dict]) -> None:
        write_feature_shard(rows, self.columns, shard.path, metadata=self.metadata)


def _rows_of(shard: Shard) -> range:
    return range(shard.first_place, shard.first_place + shard.num_videos)


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    try:
        extraction = FeatureExtraction(parse_arguments(FeatureExtractionArguments))
    except (ValueError, StrictDataclassError, TooManyBadVideosError) as error:
        sys.exit(f"extract_features.py: error: {error}")
    try:
        extraction.run()
        extraction.finish()
    except (ValueError, OSError, TooManyBadVideosError) as error:  # OSError: the disk is full, for one
        sys.exit(f"extract_features.py: stopped: {error}")


if __name__ == "__main__":
    main()
