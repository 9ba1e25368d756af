"""Time the whole input path, video files to batches on the model's device, by who makes the targets; write the table.

Ways, taking turns round by round, each over the same clips (`build_clip_loader`, then `BatchInputs`):

* workers: masks and labels by the data workers, with the default CPU tracker and with `torch`;
* device: raw frames by the workers, all else in batches on the device (tracker `torch`);
* stored: tracks read from a data set that this script extracts first; labels by the workers, or on the device;
* none: pixels alone.

Beside the whole path, the part of the device alone: raw clips that are already there, to inputs, synchronised.

    python benchmarks/bench_targets_on_device.py --repeats 3
"""

import argparse
import os
import platform
import shlex
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from importlib.metadata import version
from itertools import islice
from pathlib import Path

import torch

from mme_hf import MMEVideoProcessor, build_tracker
from mme_hf.data import StoredTracks, VideoRecords, build_clip_loader, load_folder_records, load_sample_records
from mme_hf.data.extraction import extract_shard, shards_of
from mme_hf.data.stored_tracks import write_shard
from mme_hf.motion import MotionParameters
from mme_hf.training import BatchInputs

REPOSITORY = Path(__file__).resolve().parents[1]
RESULT = Path(__file__).parent / "results" / "targets_on_device.md"
TINY = {"size": 112, "crop_size": 112, "num_frames": 8}
# Way -> where targets are made, tracker, whether tracks are stored; None for pixels alone.
WAYS = {
    "workers, dis": ("workers", "dis", False),
    "workers, torch": ("workers", "torch", False),
    "device, torch": ("device", "torch", False),
    "workers, stored tracks": ("workers", "dis", True),
    "device, stored tracks": ("device", "dis", True),
    "no targets": None,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", help="Videos. Default: the sample clips.")
    parser.add_argument("--repeats", type=int, default=3, help="Rounds that count, after one to warm up.")
    parser.add_argument("--num_batches", type=int, help="Batches of a round. Default: 4 for each worker.")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--num_workers", type=int, default=max(1, (os.cpu_count() or 2) - 1))
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tiny", action="store_true", help="112 px and 8 frames in place of 224 px and 16.")
    parser.add_argument("--output", type=Path, default=RESULT)
    args = parser.parse_args()
    # More than workers have ready when the clock starts.
    args.num_batches = args.num_batches or 4 * max(1, args.num_workers)
    records = load_folder_records(args.train_dir) if args.train_dir else load_sample_records()
    with tempfile.TemporaryDirectory() as folder:
        tracks = extract(records, Path(folder))
        runs = {way: prepare(records, way, tracks, args) for way in WAYS}
        seconds = defaultdict(list)
        order = list(runs)
        for number in range(args.repeats + 1):
            for way in order:
                seconds[way].append(runs[way]())
                print(f"round {number}, {way}: {args.num_batches * args.batch_size / seconds[way][-1]:.1f} clips/s")
            order.reverse()
    args.output.write_text("\n".join(report(records, seconds, args)) + "\n", encoding="utf-8")
    print(f"wrote {args.output}")


def extract(records: VideoRecords, folder: Path) -> StoredTracks:
    """Return the stored tracks of all videos."""
    tracker = build_tracker("dis")
    parameters = MotionParameters.of(tracker)
    for shard in shards_of(records, folder, size=64, process_index=0, num_processes=1):
        found = extract_shard(shard, records.name, tracker=tracker, parameters=parameters)
        write_shard([row for row, _ in found], shard.path)
    return StoredTracks(folder, parameters)


def processor_of(way: str, args: argparse.Namespace) -> MMEVideoProcessor:
    tracker = "dis" if WAYS[way] is None else WAYS[way][1]
    return MMEVideoProcessor(**(TINY if args.tiny else {}), tracker=tracker)


def prepare(records: VideoRecords, way: str, tracks: StoredTracks, args: argparse.Namespace) -> Callable[[], float]:
    """Return a function that passes one round of batches through and returns the seconds, start of workers left out."""
    processor = processor_of(way, args)
    targets_on, _, is_stored = WAYS[way] or ("workers", None, False)
    loader = build_clip_loader(
        records,
        processor,
        batch_size=args.batch_size,
        num_workers=args.num_workers,
        return_targets=WAYS[way] is not None,
        targets_on=targets_on,
        stored_tracks=tracks if is_stored else None,
        pin_memory=torch.device(args.device).type == "cuda",
    )
    inputs_of = BatchInputs(processor, args.device)

    def run() -> float:
        batches = iter(loader)
        # Workers start, and fill what they may have ready, before the clock does.
        for batch in islice(batches, 1 + 2 * args.num_workers):
            inputs_of(batch)
        synchronize(args.device)
        started = time.perf_counter()
        for batch in islice(batches, args.num_batches):
            inputs_of(batch)
        synchronize(args.device)
        return time.perf_counter() - started

    return run


def synchronize(device: str) -> None:
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)


def device_milliseconds(records: VideoRecords, args: argparse.Namespace) -> float:
    """Return what the device part alone takes for one clip, in batches: median of the rounds."""
    processor = processor_of("device, torch", args)
    loader = build_clip_loader(records, processor, batch_size=args.batch_size, targets_on="device")
    clips = [own.to(args.device) for own in next(iter(loader))["raw_clips"]]
    seconds = []
    for _ in range(args.repeats + 1):
        synchronize(args.device)
        started = time.perf_counter()
        processor.inputs_from_raw_clips(clips)
        synchronize(args.device)
        seconds.append(time.perf_counter() - started)
    return 1000 * statistics.median(seconds[1:]) / sum(map(len, clips))


def report(records: VideoRecords, seconds: dict[str, list[float]], args: argparse.Namespace) -> list[str]:
    num_clips = args.num_batches * args.batch_size
    rates = {way: num_clips / statistics.median(values[1:]) for way, values in seconds.items()}
    is_cuda = torch.device(args.device).type == "cuda"
    device = torch.cuda.get_device_name(args.device) if is_cuda else "the CPU, shared with the workers"
    size = "112 px, 8 frames" if args.tiny else "224 px, 16 frames"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("torch", "av", "opencv-python-headless"))
    return [
        "# Input path by who makes the targets",
        "",
        f"{platform.machine()}, {os.cpu_count()} cores, {args.num_workers} data workers; device: {device}; {libraries}."
        f" {records.name}, {size}, batches of {args.batch_size}; targets shape and position. Median of {args.repeats} "
        f"rounds of {args.num_batches} batches after a warm-up, video files to inputs on the device.",
        "",
        f"Command: `python {shlex.join(['benchmarks/' + Path(sys.argv[0]).name, *sys.argv[1:]])}`",
        "",
        "| targets made by | clips/s | of the rate without targets |",
        "|---|---|---|",
        *(f"| {way} | {rate:.2f} | {rate / rates['no targets']:.2f} |" for way, rate in rates.items()),
        "",
        f"The device part alone (normalise, track, label, mask; tracker torch): "
        f"{device_milliseconds(records, args):.2f} ms a clip.",
        "",
        "Where device and workers are the same cores, as on a machine without an accelerator, nothing is gained by "
        "moving work from one to the other: there the table says what the work costs.",
    ]


if __name__ == "__main__":
    main()
