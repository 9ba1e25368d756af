"""Undecoded videos, as records hold them: what they are opened by, and what messages call them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any
from zipfile import BadZipFile


def is_missing(video: Mapping[str, Any] | None) -> bool:
    """Return whether a record has no video: its column is empty there."""
    return video is None or (video["bytes"] is None and video["path"] is None)


def openable(video: Mapping[str, Any] | None) -> str | bytes:
    """Return what `open_video` is given for the undecoded video of a record: its path, or its bytes.

    Raises:
        OSError: If the record has none, or it has to be fetched and is not there or damaged.
    """
    if is_missing(video):
        raise FileNotFoundError("the record has no video: its column is empty there")
    if video["bytes"] is not None:
        return video["bytes"]
    path = video["path"]
    if "://" not in path:
        return path
    # A streamed record's path may be a URL, also of a file inside an archive ("zip://a.mp4::https://..."). It is read
    # whole: a clip's many small reads would each cost a round trip, and not every server can seek.
    from datasets.utils.file_utils import xopen

    try:
        with xopen(path, "rb") as file:
            return file.read()
    except BadZipFile as error:
        raise OSError(f"the archive is damaged: {error}") from error


def source_name(video: Mapping[str, Any] | None, dataset_name: str, record: int | Mapping[str, Any]) -> str:
    """Return how messages name the undecoded video of a record.

    Args:
        video: The video; None where the record has none.
        dataset_name: Name of its data set.
        record: Its row number, or a stream's whole record.
    """
    if is_missing(video):
        return f"{dataset_name}[{record if isinstance(record, int) else 'a record without a video'}]"
    if video["path"] and (video["bytes"] is None or "://" in video["path"]):
        return video["path"]
    # Embedded videos often share a file name, or have none; the place in the data set tells them apart.
    # A stream's order differs from epoch to epoch, so there the content has to name it.
    place = record if isinstance(record, int) else blake2b(video["bytes"], digest_size=6).hexdigest()
    return f"{dataset_name}[{place}]" + (f" ({video['path']})" if video["path"] else "")
