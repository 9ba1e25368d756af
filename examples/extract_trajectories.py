"""Track every video of a data set once and store the tracks: `accelerate launch examples/extract_trajectories.py`.

    accelerate launch examples/extract_trajectories.py --train_dir my_videos --output_dir my_tracks
    accelerate launch examples/pretrain.py --train_dir my_videos --stored_tracks my_tracks

The result is an HF data set of Parquet shards that serves every crop, flip, frame stride and track length. A run that
was killed goes on where it was: finished shards are kept, whatever the number of processes. On a CPU start as many
processes as there are cores: `ACCELERATE_USE_CPU=true torchrun --nproc_per_node 16 ...`, as `accelerate launch --cpu`
starts only one. Without data: the sample clips.
"""

from __future__ import annotations

import logging
import sys
import time
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm import tqdm

from mme_hf import __version__
from mme_hf.data import BadVideoLog, TooManyBadVideosError
from mme_hf.data.extraction import extract_shard, shards_of, start_or_continue
from mme_hf.data.stored_tracks import TracksTotals, write_shard
from mme_hf.hub import PushError, create_repository, push_folder
from mme_hf.model_card import public_settings
from mme_hf.motion import MotionParameters, build_ready_tracker
from mme_hf.training import ExtractionArguments, parse_arguments, set_up_logging
from mme_hf.training.processes import LONG_WAITS, use_all_cores
from mme_hf.training.setup import check_output_dir, load_training_records

logger = logging.getLogger("extract_trajectories")

CARD = """---
configs:
- config_name: default
  data_files:
  - split: train
    path: data/*.parquet
tags:
- video
- motion
- mme_hf
---
# Motion of {name}

{totals}.

Every row holds the motion of one video from each frame to the next, at the centres of {cell_size_px} px cells of frames
resized to a short side of {short_side_px} px, in steps of 1/64 px. No frames, no paths. Made by mme_hf {version} with
tracker `{tracker}`, `{tracker_options}`.

| column | what |
|---|---|
| `video_hash`, `video` | BLAKE2b (16 bytes) of the video file, and its name |
| `num_frames`, `average_fps`, `height`, `width` | of the video |
| `motion` | displacements of 32 pairs of frames each, coded as `mme_hf.motion.grid_codec` says |
| `error` | why the video could not be read; it then has no motion |
| `parameters`, `parameters_hash` | tracker, all its options and the grid, as JSON |
| `package_version`, `format_version` | of mme_hf, which refuses tracks of a version whose trackers give others |

Pre-train with them: `accelerate launch examples/pretrain.py --stored_tracks FOLDER_OR_THIS_NAME ...`. Videos are
recognised by the hash of their bytes, so files may be moved and renamed, but not re-encoded. In Python:

```python
from mme_hf.data import StoredTracks
from mme_hf.motion import StoredTracker

tracks = StoredTracks("FOLDER_OR_THIS_NAME")
tracker = StoredTracker(tracks.motion_of("video.mp4"))
batch = processor("video.mp4", tracker=tracker, return_targets=True, return_tensors="pt")
```
"""


class Extraction:
    """One run, or what is left of one. All is built and checked before the first video is opened."""

    def __init__(self, args: ExtractionArguments):
        self.args = args
        self.output_dir = Path(args.output_dir)
        check_output_dir(args.output_dir)
        self.repository = args.hub_dataset_id or self.output_dir.resolve().name
        self.tracker = build_ready_tracker(args.tracker, **args.tracker_options)
        self.parameters = MotionParameters.of(self.tracker)
        self.records = load_training_records(args)
        self.accelerator = Accelerator(kwargs_handlers=[LONG_WAITS])
        is_main = self.accelerator.is_main_process
        set_up_logging(is_main_process=is_main)
        self._share_cores()
        settings = {
            "data": self.records.identity,
            "num_videos_per_shard": args.num_videos_per_shard,
            "parameters": self.parameters.to_json(),
        }
        start_or_continue(self.output_dir, settings, is_main=is_main)
        if args.push_to_hub and is_main:
            self.repository = create_repository(self.repository, kind="dataset", **args.hub_options)
        self.accelerator.wait_for_everyone()
        self.bad_videos = self._bad_video_log()
        self.num_done = 0

    def run(self) -> None:
        """Write the shards of this process that are not there yet."""
        self.started = time.perf_counter()
        options = {
            "tracker": self.tracker,
            "parameters": self.parameters,
            "reader": self.args.reader,
            "device": self.accelerator.device,
        }
        num_seen = 0
        with tqdm(total=self._num_own_videos(), unit="video", disable=not self.accelerator.is_main_process) as bar:
            for shard in self._shards():
                if shard.records is None:
                    bar.update(shard.num_videos)
                    continue
                rows = []
                for row, bad_video in extract_shard(shard, self.records.name, **options):
                    num_seen += 1
                    if bad_video is not None:
                        self.bad_videos.record([bad_video], num_seen=num_seen)
                    if row is not None:
                        rows.append(row)
                    bar.update()
                write_shard(rows, shard.path)
                self.num_done += shard.num_videos
        self.seconds = time.perf_counter() - self.started

    def finish(self) -> None:
        """Wait for all processes, say what there is now, and push it."""
        num_done = sum(gather_object([self.num_done]))
        seconds = max(gather_object([self.seconds]))
        if not self.accelerator.is_main_process:
            return
        totals = TracksTotals.of_folder(self.output_dir)
        parameters = vars(self.parameters)
        name = public_settings({"name": self.records.name})["name"]
        card = CARD.format(name=name, totals=totals, version=__version__, **parameters)
        (self.output_dir / "README.md").write_text(card, encoding="utf-8")
        logger.info("%s in %s", totals, self.output_dir)
        logger.info("%d videos in this run, %.2f videos/s", num_done, num_done / max(seconds, 1e-9))
        for listing in sorted(self.output_dir.glob("bad_videos*.jsonl")):
            logger.info("bad videos are listed in %s", listing)
        if self.args.push_to_hub:
            address = push_folder(self.output_dir, self.repository, kind="dataset", **self.args.hub_options)
            logger.info("pushed to %s", address)

    def _shards(self):
        return shards_of(
            self.records,
            self.output_dir,
            size=self.args.num_videos_per_shard,
            process_index=self.accelerator.process_index,
            num_processes=self.accelerator.num_processes,
        )

    def _num_own_videos(self) -> int | None:
        return None if self.records.num_records is None else sum(shard.num_videos for shard in self._shards())

    def _bad_video_log(self) -> BadVideoLog:
        return BadVideoLog.for_share(
            self.records,
            self.output_dir,
            process_index=self.accelerator.process_index,
            own_places=None if self.records.num_records is None else [shard.places for shard in self._shards()],
            max_bad_fraction=self.args.max_bad_fraction,
            on_bad_video=self.args.on_bad_video,
        )

    def _share_cores(self) -> None:
        import cv2

        use_all_cores()
        cv2.setNumThreads(torch.get_num_threads())


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    try:
        extraction = Extraction(parse_arguments(ExtractionArguments))
    except (ValueError, TooManyBadVideosError, PushError) as error:
        sys.exit(f"extract_trajectories.py: error: {error}")
    try:
        extraction.run()
        extraction.finish()
    except (ValueError, OSError, TooManyBadVideosError, PushError) as error:  # OSError: the disk is full, for one
        sys.exit(f"extract_trajectories.py: stopped: {error}")
    extraction.accelerator.end_training()


if __name__ == "__main__":
    main()
