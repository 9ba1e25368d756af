"""Stored tracks as an HF data set: Parquet shards of one row per video, looked up by what is in the video's file."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .._version import __version__
from ..motion import MotionParameters, StoredMotion, StoredTracksError
from ..motion.motion_parameters import file_hash
from ..motion.stored import FORMAT_VERSION
from ..video import VideoReadError
from .track_shards import find_shards, read_columns, read_row, write_whole

if TYPE_CHECKING:
    from datasets import Features

SHARD_FOLDER = "data"
# The first version of this package whose trackers, options left at their defaults and frames of a video give the tracks
# that they give now. Who changes any of them raises the version, and this to it; a test holds the numbers.
SAME_TRACKS_SINCE = "0.1.0.dev2"
# A row is read alone: half a megabyte of Kinetics, beside which a group's description of 2 kB is nothing.
_ROWS_PER_GROUP = 1


class MissingTracksError(StoredTracksError):
    """A video has no stored tracks, in a run that takes its tracks from there."""


def makes_the_same_tracks(package_version: str | None) -> bool:
    """Return whether that version of this package makes the tracks that this one makes, so that both may be mixed."""
    from packaging.version import InvalidVersion, Version

    try:
        return Version(SAME_TRACKS_SINCE) <= Version(str(package_version)) <= Version(__version__)
    except InvalidVersion:
        return False


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
    return blake2b(video, digest_size=16).hexdigest() if isinstance(video, bytes) else file_hash(video)


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
    """Return the row of a video that cannot be read: a run then knows it for a bad one, not for one left out.

    Of a path that `cause` names only the last part is kept: tracks may be published.
    """
    if isinstance(video, str):
        cause = cause.replace(video, Path(video).name)
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

    schema = stored_tracks_features().arrow_schema
    complete = [{name: row.get(name) for name in schema.names} for row in rows]
    write_whole(pa.Table.from_pylist(complete, schema=schema), path, rows_per_group=_ROWS_PER_GROUP)


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


_MADE_BY = ("format_version", "package_version", "parameters", "parameters_hash")


class StoredTracks:
    """The stored tracks of a data set, checked to be those that a run wants. Picklable, for DataLoader workers.

    Args:
        source: Folder of Parquet shards (as `examples/extract_trajectories.py` writes it) or of such folders, or the
            name of a data set on the Hub.
        wanted: How the tracks must have been made; None takes any.

    Raises:
        ValueError: If there are no tracks, a shard is damaged, or the tracks were made otherwise.
    """

    def __init__(self, source: str | Path, wanted: MotionParameters | None = None):
        self.name = str(source)
        self._shards = find_shards(self.name)
        self._rows: dict[str, tuple[int, int]] = {}
        found: dict[str, set] = {name: set() for name in _MADE_BY}
        for number, shard in enumerate(self._shards):
            columns = self._columns(shard, ("video_hash", "error", *_MADE_BY))
            for row, (key, error) in enumerate(zip(columns["video_hash"], columns["error"], strict=True)):
                # What one extraction could not read, another one may have.
                if error is None or key not in self._rows:
                    self._rows[key] = (number, row)
            for name, values in found.items():
                values.update(columns[name])
        if not self._rows:
            raise ValueError(f"stored_tracks ({self.name!r}) has no row. Run examples/extract_trajectories.py again.")
        self._check_versions(found["format_version"], found["package_version"])
        self.parameters = self._checked_parameters(found["parameters"], found["parameters_hash"], wanted)
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
            StoredTracksError: If it is damaged, or no longer what was opened.
            VideoReadError: If extraction could not read the video.
            OSError: If the file cannot be read.
        """
        key = self._hash(video)
        source = source or (video if isinstance(video, str) else f"<bytes, {len(video)} bytes>")
        if key not in self._rows:
            raise MissingTracksError(
                f"no tracks for video {source} (hash {key}) in stored_tracks ({self.name!r}), which has {len(self)} "
                f"videos{self._namesake(source)}. Run examples/extract_trajectories.py over the same videos to its "
                "end; extract videos that changed or came later to a folder beside it, and give the folder above "
                "both. Or track on line without stored_tracks."
            )
        number, place = self._rows[key]
        shard = self._shards[number]
        row = read_row(shard, place)
        change = self._change_of(row, key)
        if change:
            raise StoredTracksError(
                f"shard {shard.name} of {self.name} has changed since it was opened: its row of {source} {change}. "
                "Start the run again with tracks of one kind, and extract others to another folder."
            )
        if row["error"] is not None:
            raise VideoReadError(source, f"extraction of its tracks could not read it: {row['error']}")
        return StoredMotion(
            self.parameters, (row["height"], row["width"]), row["num_frames"], tuple(row["motion"]), source
        )

    def _change_of(self, row: Mapping[str, Any], key: str) -> str:
        """Say what makes a row another one than was found when the shards were opened; nothing if it is that one."""
        if row["video_hash"] != key:
            return f"is now of another video (hash {row['video_hash']})"
        if row["format_version"] != FORMAT_VERSION:
            return f"is of format {row['format_version']}, not {FORMAT_VERSION}"
        if not makes_the_same_tracks(row["package_version"]):
            version = row["package_version"]
            return f"was made by mme_hf {version}, whose tracks may be others than those of mme_hf {__version__}"
        if row["parameters_hash"] != self.parameters.hash:
            found = MotionParameters.from_json(row["parameters"])
            return (
                f"has the parameters_hash {row['parameters_hash']}, not {self.parameters.hash}: it was made with "
                f"{_in_words(found, self.parameters)}, not with {_in_words(self.parameters, found)}"
            )
        return ""

    def _columns(self, shard: Path, columns: Collection[str]) -> dict[str, list[Any]]:
        try:
            return read_columns(shard, columns, needed=stored_tracks_features())
        except StoredTracksError as error:
            raise StoredTracksError(f"stored_tracks ({self.name!r}): {error}") from error

    def _namesake(self, source: str) -> str:
        """Say whether there are tracks of another file of that name; looked up only where there is none to read."""
        name = Path(source).name
        for shard in self._shards:
            columns = self._columns(shard, ("video", "video_hash"))
            for other, key in zip(columns["video"], columns["video_hash"], strict=True):
                if other == name:
                    return f", and those of another file of the name {name} (hash {key}): perhaps this one has changed"
        return ""

    def _check_versions(self, formats: set[int], versions: set[str]) -> None:
        if formats != {FORMAT_VERSION}:
            raise ValueError(
                f"stored_tracks ({self.name!r}) has format {sorted(formats, key=str)} (made by mme_hf "
                f"{', '.join(sorted(map(str, versions)))}); mme_hf {__version__} reads format {FORMAT_VERSION}. "
                "Extract the tracks again."
            )
        others = sorted(str(version) for version in versions if not makes_the_same_tracks(version))
        if others:
            raise ValueError(
                f"tracks in stored_tracks ({self.name!r}) were made by mme_hf {', '.join(others)}; this "
                f"run has mme_hf {__version__}, whose tracks are those of {SAME_TRACKS_SINCE} to {__version__}. "
                "Extract the tracks again, or install the version that made them."
            )

    def _checked_parameters(
        self, texts: set[str], hashes: set[str], wanted: MotionParameters | None
    ) -> MotionParameters:
        found = [MotionParameters.from_json(text) for text in sorted(texts, key=str)]
        if {parameters.hash for parameters in found} != hashes:
            raise ValueError(
                f"stored_tracks ({self.name!r}): parameters do not have the hash that is kept with them. Extract the "
                "tracks again."
            )
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
