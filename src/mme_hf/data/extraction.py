"""From the videos of a data set to shards of their tracks or features, each by one process, whole or not at all."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from .._version import __version__
from ..motion import MotionParameters, Tracker, extract_motion
from ..motion.stored import FORMAT_VERSION
from ..video import VideoReadError, open_video
from .bad_videos import BadVideo
from .stored_tracks import SHARD_FOLDER, bad_video_row, makes_the_same_tracks, motion_row, shard_path
from .undecoded import openable, source_name

if TYPE_CHECKING:
    from .records import VideoRecords

SETTINGS_FILE = "extraction.json"
# A shard is written in seconds: what is unfinished for this long is left from a run that was killed, not another run's.
_ABANDONED_SECONDS = 3600


@dataclass(frozen=True)
class Shard:
    """Some videos of which one file is made.

    Attributes:
        path: The file.
        first_place: Place of the first video in the data set.
        records: Undecoded records, read when they are needed; None where the file is there already.
        num_videos: Number of videos; None in a stream that was not read to here.
    """

    path: Path
    first_place: int
    records: Iterator[Mapping[str, Any]] | None
    num_videos: int

    @property
    def places(self) -> range:
        """Places of the videos in the data set."""
        return range(self.first_place, self.first_place + self.num_videos)


def shards_of(
    records: VideoRecords, folder: str | Path, *, size: int, process_index: int, num_processes: int
) -> Iterator[Shard]:
    """Yield the shards of one process. Which videos are in a shard depends on nothing but its number.

    Args:
        records: The videos.
        folder: Where the data set is written.
        size: Videos in a shard.
        process_index: Which process this is, from 0.
        num_processes: How many there are; may differ from an earlier run's.
    """
    if records.num_records is None:
        stream = iter(records.dataset)
        groups = enumerate(iter(lambda: list(islice(stream, size)), []))
    else:
        starts = range(0, records.num_records, size)
        groups = ((number, range(first, min(first + size, records.num_records))) for number, first in enumerate(starts))
    for number, group in groups:
        if number % num_processes != process_index:
            continue
        path = shard_path(folder, number)
        is_there = path.is_file()
        rows = (records.dataset[place] for place in group) if isinstance(group, range) else iter(group)
        yield Shard(path, number * size, None if is_there else rows, len(group))


def extract_tracks(
    video: Mapping[str, Any],
    source: str,
    tracker: Tracker,
    parameters: MotionParameters,
    *,
    reader: str = "auto",
    device: torch.device | str = "cpu",
) -> tuple[dict[str, Any] | None, BadVideo | None]:
    """Return the row of a video, and the cause if it cannot be read.

    Args:
        video: Undecoded video of a record.
        source: What messages call it.
        tracker: Tracks the grid.
        parameters: Those of `tracker`.
        reader: Backend of `open_video`.
        device: Where frames are resized and tracked.

    Returns:
        The row, which names the cause in place of tracks where there is one; None where there is no file to hash.

    Raises:
        ValueError: If the tracker cannot track the video; the message names it.
    """
    try:
        opened = openable(video)
        try:
            with open_video(opened, backend=reader) as frames:
                motion = extract_motion(frames, tracker, parameters, device=device)
                return motion_row(opened, source, motion, frames.average_fps), None
        except VideoReadError as error:
            cause = str(error.cause)
            return bad_video_row(opened, source, parameters, cause), BadVideo(source, cause)
        except ValueError as error:
            raise ValueError(f"video {source} cannot be tracked: {error}") from error
    except OSError as error:  # no such file, a folder, a disk or server that fails
        return None, BadVideo(source, f"{type(error).__name__}: {error}")


def extract_shard(shard: Shard, name: str, **options: Any) -> Iterator[tuple[dict[str, Any] | None, BadVideo | None]]:
    """Yield what `extract_tracks` returns for each video of a shard.

    Args:
        shard: One that is not there yet.
        name: Name of the data set.
        **options: Passed to `extract_tracks`.
    """
    for place, record in enumerate(shard.records, start=shard.first_place):
        yield extract_tracks(record["video"], source_name(record["video"], name, place), **options)


def start_or_continue(
    folder: str | Path, settings: Mapping[str, Any], *, is_main: bool, what: Literal["tracks", "features"] = "tracks"
) -> None:
    """Note what the data set in `folder` is made of, or insist that an unfinished one is made of the same.

    Args:
        folder: Where the data set is written.
        settings: What every shard depends on.
        is_main: Whether this process writes.
        what: The data set is of. Tracks may go on with those of another version that makes the same; of features
            `settings` says all.

    Raises:
        ValueError: If the folder holds some made with other settings or by a version whose tracks may differ, or
            shards from elsewhere, or cannot be written.
    """
    root = Path(folder)
    path = root / SETTINGS_FILE
    # As JSON keeps them, to be comparable.
    version = {"format_version": FORMAT_VERSION} if what == "tracks" else {}
    present = json.loads(json.dumps({**settings, **version}, default=str))
    written = _written_settings(path)
    if written is None and any(root.glob(f"{SHARD_FOLDER}/*.parquet")):
        raise ValueError(f"output_dir ({str(root)!r}) holds Parquet files but no {SETTINGS_FILE}. Name another folder.")
    if written is not None:
        _check_same(present, written, root, what)
    if is_main:
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            if written is None:
                whole = path.with_suffix(".tmp")
                whole.write_text(json.dumps({**present, "package_version": __version__}, indent=2), encoding="utf-8")
                os.replace(whole, path)
        except OSError as error:
            raise ValueError(f"output_dir ({str(root)!r}) cannot be written: {error}. Name another folder.") from error


def _written_settings(path: Path) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        written = json.loads(path.read_text(encoding="utf-8"))
    except ValueError:  # no JSON, or no text
        written = None
    if not isinstance(written, dict):
        raise ValueError(
            f"{path} is damaged, so that what the shards beside it were made with is not known. Remove the folder, or "
            "name another --output_dir."
        )
    return written


def _check_same(present: Mapping[str, Any], written: Mapping[str, Any], root: Path, what: str) -> None:
    remedy = "Use the same, or name another --output_dir"
    if what == "tracks":
        remedy += "; --stored_tracks takes the folder above several"
    for name, value in present.items():
        if written.get(name) != value:
            raise ValueError(
                f"output_dir ({str(root)!r}) holds {what} made with {name} {written.get(name)!r}; this run has "
                f"{value!r}. {remedy}."
            )
    version = written.get("package_version")
    if what == "tracks" and not makes_the_same_tracks(version):
        raise ValueError(
            f"output_dir ({str(root)!r}) holds tracks made by mme_hf {version}; this run has mme_hf {__version__}, "
            "whose tracks may differ. Use the same version, or name another --output_dir."
        )


def _remove_abandoned(root: Path) -> None:
    for unfinished in root.glob(f"{SHARD_FOLDER}/.*.tmp"):
        if time.time() - unfinished.stat().st_mtime > _ABANDONED_SECONDS:
            unfinished.unlink(missing_ok=True)
