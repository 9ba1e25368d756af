"""Stored tracks as an HF data set: Parquet shards of one row per video, looked up by what is in the video's file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..motion import MotionParameters, StoredMotion
from ..motion.stored import FORMAT_VERSION
from ..video import VideoReadError

if TYPE_CHECKING:
    from datasets import Dataset, Features

SHARD_FOLDER = "data"
# Rows that a reader of a stream holds at once: about 10 MB of Kinetics.
_ROWS_PER_GROUP = 16
_READ_BYTES = 1 << 20


class MissingTracksError(ValueError):
    """A video has no stored tracks, in a run that takes its tracks from there."""

    def __str__(self) -> str:
        # A DataLoader worker's error comes with its traceback for a message; only what it says is for the user.
        return super().__str__().rsplit(f"{type(self).__name__}: ", 1)[-1].strip()


def stored_tracks_features() -> Features:
    """Return the columns of the data set.

    `video_hash` is of the file's bytes, `parameters_hash` of `parameters` (JSON). `motion` holds the coded chunks of a
    `StoredMotion`; it is empty and `error` says why where the video could not be read.
    """
    from datasets import Features, List, Value

    columns = {
        "video_hash": "string",
        "video": "string",
        "format_version": "int32",
        "package_version": "string",
        "parameters_hash": "string",
        "parameters": "string",
        "num_frames": "int32",
        "average_fps": "float32",
        "height": "int32",
        "width": "int32",
        "error": "string",
    }
    return Features({**{name: Value(kind) for name, kind in columns.items()}, "motion": List(Value("binary"))})


def video_hash(video: str | bytes) -> str:
    """Return what equal video files share wherever they lie, 32 hexadecimal digits.

    Args:
        video: Path or content of the file.

    Raises:
        OSError: If the file cannot be read.
    """
    digest = blake2b(digest_size=16)
    if isinstance(video, bytes):
        digest.update(video)
    else:
        with open(video, "rb") as file:
            while part := file.read(_READ_BYTES):
                digest.update(part)
    return digest.hexdigest()


def motion_row(video: str | bytes, source: str, motion: StoredMotion, average_fps: float) -> dict[str, Any]:
    """Return the row of a video.

    Args:
        video: Path or content of the file.
        source: What the video is called; only the last part of a path is kept.
        motion: Its motion.
        average_fps: Frames per second.
    """
    height, width = motion.source_size
    return {
        **_common(video, source, motion.parameters),
        "num_frames": motion.num_frames,
        "average_fps": average_fps,
        "height": height,
        "width": width,
        "motion": list(motion.chunks),
    }


def bad_video_row(video: str | bytes, source: str, parameters: MotionParameters, cause: str) -> dict[str, Any]:
    """Return the row of a video that cannot be read: a run then knows it for a bad one, not for one left out."""
    return {**_common(video, source, parameters), "error": cause, "motion": []}


def _common(video: str | bytes, source: str, parameters: MotionParameters) -> dict[str, Any]:
    return {
        "video_hash": video_hash(video),
        "video": Path(source).name,
        "format_version": FORMAT_VERSION,
        "package_version": __version__,
        "parameters_hash": parameters.hash,
        "parameters": parameters.to_json(),
    }


def shard_path(folder: str | Path, number: int) -> Path:
    """Return where shard `number` of the data set in `folder` lies."""
    return Path(folder) / SHARD_FOLDER / f"train-{number:05d}.parquet"


def write_shard(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Write rows as one Parquet file, which appears whole or not at all.

    Args:
        rows: As `motion_row` and `bad_video_row` make them; a shard may have none.
        path: The file.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    schema = stored_tracks_features().arrow_schema
    complete = [{name: row.get(name) for name in schema.names} for row in rows]
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            table = pa.Table.from_pylist(complete, schema=schema)
            pq.write_table(table, file, row_group_size=_ROWS_PER_GROUP, compression="zstd")
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


@dataclass(frozen=True)
class TracksTotals:
    """What the shards of a folder hold.

    Attributes:
        num_videos: Videos with tracks.
        num_bad: Videos that could not be read.
        seconds: Length of the videos with tracks.
        num_bytes: Size of the shards.
    """

    num_videos: int
    num_bad: int
    seconds: float
    num_bytes: int

    @classmethod
    def of_folder(cls, folder: str | Path) -> TracksTotals:
        """Return the totals of the data set in `folder`; the tracks themselves are not read."""
        import pyarrow.parquet as pq

        num_videos, num_bad, seconds, num_bytes = 0, 0, 0.0, 0
        for shard in sorted((Path(folder) / SHARD_FOLDER).glob("train-*.parquet")):
            num_bytes += shard.stat().st_size
            for row in pq.ParquetFile(shard).read(columns=["num_frames", "average_fps", "error"]).to_pylist():
                num_bad += row["error"] is not None
                num_videos += row["error"] is None
                seconds += (row["num_frames"] or 0) / (row["average_fps"] or float("inf"))
        return cls(num_videos, num_bad, seconds, num_bytes)

    def __str__(self) -> str:
        size = self.num_bytes / 1e6
        each = f", {10 * size / self.seconds:.2f} MB for 10 s" if self.seconds else ""
        return f"{self.num_videos} videos ({self.num_bad} bad ones beside them), {size:.1f} MB{each}"


class StoredTracks:
    """The stored tracks of a data set, checked to be those that a run wants. Picklable, for DataLoader workers.

    Args:
        source: Folder of Parquet shards (as `examples/extract_trajectories.py` writes it), or an HF data set's name.
        wanted: How the tracks must have been made; None takes any.

    Raises:
        ValueError: If there are no tracks, a shard is damaged, or the tracks were made otherwise.
    """

    def __init__(self, source: str | Path, wanted: MotionParameters | None = None):
        self.name = str(source)
        dataset = _load(self.name)
        missing = sorted(set(stored_tracks_features()) - set(dataset.column_names))
        if missing:
            raise ValueError(
                f"stored_tracks ({self.name!r}) has no column {', '.join(missing)}: these are no stored tracks. "
                "Make them with examples/extract_trajectories.py."
            )
        formats = sorted(dataset.unique("format_version"))
        if formats != [FORMAT_VERSION]:
            made_by = ", ".join(sorted(dataset.unique("package_version"))) or "nobody: it is empty"
            raise ValueError(
                f"stored_tracks ({self.name!r}) has format {formats} (made by mme_hf {made_by}); mme_hf {__version__} "
                f"reads format {FORMAT_VERSION}. Extract the tracks again."
            )
        self.parameters = self._checked_parameters(dataset, wanted)
        self._dataset = dataset
        self._rows = {key: row for row, key in enumerate(dataset["video_hash"])}
        self._hashes: dict[tuple[str, int, int], str] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def __repr__(self) -> str:
        return f"StoredTracks({self.name!r}, {len(self)} videos, {self.parameters})"

    def motion_of(self, video: str | bytes, source: str | None = None) -> StoredMotion:
        """Return the stored motion of a video.

        Args:
            video: Path or content of the video file; only its bytes count, not its name.
            source: What messages call it.

        Raises:
            MissingTracksError: If there is none.
            VideoReadError: If extraction could not read the video.
            OSError: If the file cannot be read.
        """
        key = self._hash(video)
        source = source or (video if isinstance(video, str) else f"<bytes, {len(video)} bytes>")
        if key not in self._rows:
            raise MissingTracksError(
                f"no tracks for video {source} (hash {key}) in stored_tracks ({self.name!r}), which has {len(self)} "
                "videos. Run examples/extract_trajectories.py over the same videos to its end, or track on line "
                "without stored_tracks."
            )
        row = self._dataset[self._rows[key]]
        if row["error"] is not None:
            raise VideoReadError(source, f"extraction of its tracks could not read it: {row['error']}")
        size = (row["height"], row["width"])
        return StoredMotion(self.parameters, size, row["num_frames"], tuple(row["motion"]))

    def _checked_parameters(self, dataset: Dataset, wanted: MotionParameters | None) -> MotionParameters:
        found = [MotionParameters.from_json(text) for text in sorted(dataset.unique("parameters"))]
        if len(found) > 1:
            raise ValueError(
                f"stored_tracks ({self.name!r}) mixes tracks made with {' and '.join(map(_in_words, found))}. Keep "
                "each kind in a folder of its own."
            )
        if wanted is not None and found[0] != wanted:
            raise ValueError(
                f"tracks in stored_tracks ({self.name!r}) were made with {_in_words(found[0], wanted)}; this run needs "
                f"{_in_words(wanted, found[0])}. Run examples/extract_trajectories.py again, or let --tracker and "
                "--processor_options '{\"tracker_options\": ...}' of this run name what the tracks were made with."
            )
        return found[0]

    def _hash(self, video: str | bytes) -> str:
        if isinstance(video, bytes):
            return video_hash(video)
        status = os.stat(video)
        key = (video, status.st_size, status.st_mtime_ns)
        if key not in self._hashes:
            self._hashes[key] = video_hash(video)
        return self._hashes[key]


def _in_words(parameters: MotionParameters, other: MotionParameters | None = None) -> str:
    """Name the tracker, its options (those that `other` has otherwise, where it has the same tracker), and the grid."""
    options = dict(parameters.tracker_options)
    if other is not None and other.tracker == parameters.tracker:
        theirs = other.tracker_options
        options = {name: value for name, value in options.items() if theirs.get(name, "") != value}
    grid = f"short_side_px {parameters.short_side_px}, cell_size_px {parameters.cell_size_px}"
    return f"tracker {parameters.tracker!r} {options} ({grid})"


def _load(source: str) -> Dataset:
    import pyarrow as pa
    import pyarrow.parquet as pq
    from datasets import load_dataset
    from datasets.exceptions import DatasetGenerationError

    folder = Path(source)
    if not folder.is_dir():
        try:
            return load_dataset(source, split="train")
        except (OSError, ValueError, DatasetGenerationError) as error:
            raise ValueError(
                f"stored_tracks ({source!r}) is neither a folder nor a data set that can be opened: {error}"
            ) from error
    shards = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    if not shards:
        raise ValueError(
            f"stored_tracks ({source!r}) holds no Parquet shard. Make them with examples/extract_trajectories.py."
        )
    for shard in shards:
        try:
            pq.read_metadata(shard)
        except (pa.ArrowInvalid, OSError) as error:
            raise ValueError(
                f"stored_tracks ({source!r}): shard {shard.name} is damaged or incomplete ({error}). Remove it and run "
                "examples/extract_trajectories.py again: it makes only what is missing."
            ) from error
    return load_dataset("parquet", data_files={"train": [str(shard) for shard in shards]}, split="train")
