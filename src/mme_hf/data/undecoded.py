"""Undecoded videos, as records hold them: what they are opened by, and what messages call them."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from typing import Any


def openable(video: Mapping[str, Any]) -> str | bytes:
    """Return what `open_video` is given for the undecoded video of a record: its path, or its bytes.

    Raises:
        OSError: If it has to be fetched and is not there.
    """
    if video["bytes"] is not None:
        return video["bytes"]
    path = video["path"]
    if "://" not in path:
        return path
    # A streamed record's path may be a URL, also of a file inside an archive ("zip://a.mp4::https://..."). It is read
    # whole: a clip's many small reads would each cost a round trip, and not every server can seek.
    from datasets.utils.file_utils import xopen

    with xopen(path, "rb") as file:
        return file.read()


def source_name(video: Mapping[str, Any], dataset_name: str, record: int | Mapping[str, Any]) -> str:
    """Return how messages name the undecoded video of a record.

    Args:
        video: The video.
        dataset_name: Name of its data set.
        record: Its row number, or a stream's whole record.
    """
    if video["path"] and (video["bytes"] is None or "://" in video["path"]):
        return video["path"]
    # Embedded videos often share a file name, or have none; the place in the data set tells them apart.
    # A stream's order differs from epoch to epoch, so there the content has to name it.
    place = record if isinstance(record, int) else blake2b(video["bytes"], digest_size=6).hexdigest()
    return f"{dataset_name}[{place}]" + (f" ({video['path']})" if video["path"] else "")
