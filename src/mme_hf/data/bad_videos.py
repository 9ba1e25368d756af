"""The report of videos that could not be read: counted, named with their cause, and limited."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from .records import VideoRecords

logger = logging.getLogger(__name__)

# A stream's length is unknown, so its limit is judged as if it had at least this many records.
MIN_STREAM_RECORDS = 100


class TooManyBadVideosError(RuntimeError):
    """More videos were unreadable than the run allows."""


@dataclass(frozen=True)
class BadVideo:
    """One video that could not be used.

    Attributes:
        source: Path, URL or record name.
        cause: Why, in words.
    """

    source: str
    cause: str


class BadVideoLog:
    """Counts unreadable videos, lists them in a JSON Lines file, and stops a run that has too many.

    A video that is met again in a later epoch counts once. The file is written once there is something to list.

    Args:
        path: File to append to: one object with `source` and `cause` a line.
        num_records: Number of videos of the data set; None for a stream.
        max_bad_fraction: Largest share of bad videos that is put up with, in [0, 1].
        on_bad_video: "skip" goes on up to that share, "error" stops at the first.
        is_continued: Whether to go on with the file of an earlier run, as a resumed run does, or begin anew.
        is_writer: Whether this process writes the file; every process counts, so that all stop alike.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        num_records: int | None,
        max_bad_fraction: float = 0.05,
        on_bad_video: Literal["skip", "error"] = "skip",
        is_continued: bool = False,
        is_writer: bool = True,
    ):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction ({max_bad_fraction}) must lie in [0, 1], such as 0.05.")
        if on_bad_video not in ("skip", "error"):
            raise ValueError(f"on_bad_video ({on_bad_video!r}) must be 'skip' or 'error'.")
        self.path = Path(path)
        self.num_records = num_records
        self.max_bad_fraction = max_bad_fraction
        self.on_bad_video = on_bad_video
        self.is_writer = is_writer
        # A resumed run counts anew what it meets, for a listed video may have been mended, but lists nothing twice.
        self._bad_sources: set[str] = set()
        self._listed = {json.loads(line)["source"] for line in self._complete_lines()} if is_continued else set()
        if is_writer and not is_continued:
            self.path.unlink(missing_ok=True)

    @classmethod
    def for_records(cls, records: VideoRecords, path: str | Path, **options) -> BadVideoLog:
        """Return the log of a run over `records`, whose missing files are listed at once.

        Args:
            records: The videos.
            path: File to append to.
            **options: As the class takes them.
        """
        missing = [BadVideo(path, cause) for path, cause in records.missing_files]
        num_records = None if records.num_records is None else records.num_records + len(missing)
        log = cls(path, num_records=num_records, **options)
        log.record(missing, num_seen=len(missing))
        return log

    @classmethod
    def for_share(
        cls,
        records: VideoRecords,
        folder: str | Path,
        *,
        process_index: int,
        own_places: Sequence[range] | None,
        **options,
    ) -> BadVideoLog:
        """Return the log of one of several processes that meet only at their end, and each list and judge their share.

        Args:
            records: The videos of all. Missing files are dealt out in proportion to the shares, so that they weigh
                nowhere more than among all.
            folder: Where the list is written: `bad_videos.jsonl`, those of further processes with their number.
            process_index: Which process this is, from 0.
            own_places: Places of its videos among all; None in a stream, which has no missing files.
            **options: As the class takes them.
        """
        missing, num_own = [], None
        if own_places is not None:
            num_missing, num_own = len(records.missing_files), sum(map(len, own_places))
            for places in own_places:
                first, end = (place * num_missing // records.num_records for place in (places.start, places.stop))
                missing += [BadVideo(*missing) for missing in records.missing_files[first:end]]
        name = f"bad_videos_{process_index}.jsonl" if process_index else "bad_videos.jsonl"
        num_records = None if num_own is None else num_own + len(missing)
        log = cls(Path(folder) / name, num_records=num_records, is_continued=True, **options)
        log.record(missing, num_seen=len(missing))
        return log

    @property
    def num_bad(self) -> int:
        """Number of different videos that were bad so far."""
        return len(self._bad_sources)

    def record(self, bad_videos: Iterable[BadVideo], *, num_seen: int) -> None:
        """List `bad_videos` and stop the run if there are too many.

        Args:
            bad_videos: What the last batches could not read.
            num_seen: Number of records tried so far; only a stream's limit depends on it.

        Raises:
            TooManyBadVideosError: If the limit is passed, or at once with `on_bad_video="error"`.
        """
        new = {bad.source: bad for bad in bad_videos if bad.source not in self._bad_sources}
        if not new:
            return
        self._bad_sources.update(new)
        if self.is_writer:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                unlisted = (asdict(bad) for source, bad in new.items() if source not in self._listed)
                # As ASCII: a name may hold what is no character, or what ends a line to readers of text.
                file.writelines(json.dumps(bad) + "\n" for bad in unlisted)
        what = "skipped a bad video" if self.on_bad_video == "skip" else "a bad video"
        for bad in new.values():
            logger.warning("%s: %s: %s", what, printable(bad.source), bad.cause)
        self._stop_if_too_many(list(new.values()), num_seen)

    def _stop_if_too_many(self, new: list[BadVideo], num_seen: int) -> None:
        first = f"{printable(new[0].source)}: {new[0].cause.rstrip('.')}"
        if self.on_bad_video == "error":
            raise TooManyBadVideosError(f"A video could not be read: {first}. (on_bad_video is 'error'.)")
        num_records = self.num_records or max(num_seen, MIN_STREAM_RECORDS)
        if self.num_bad >= num_records:
            raise TooManyBadVideosError(
                f"All of {num_records} videos are bad: there is nothing to train on. One of them is {first}. All are "
                f"listed in {self.path}."
            )
        if self.num_bad > self.max_bad_fraction * num_records:
            raise TooManyBadVideosError(
                f"{self.num_bad} of {num_records} videos are bad, more than max_bad_fraction "
                f"({self.max_bad_fraction:.0%}) allows. One of them is {first}. All are listed in {self.path}. "
                "Mend or remove them, or raise --max_bad_fraction."
            )

    def _complete_lines(self) -> list[str]:
        # A run that was killed while it wrote may have left half a line; cut it, so that the next one starts clean.
        if not self.path.is_file():
            return []
        text = self.path.read_text(encoding="utf-8")
        complete = text[: text.rfind("\n") + 1]
        if complete != text and self.is_writer:
            self.path.write_text(complete, encoding="utf-8")
        return complete.splitlines()


def printable(name: str) -> str:
    """Return a name with its bytes that are no text, which files of logs refuse, as escapes."""
    return name.encode(errors="backslashreplace").decode()
