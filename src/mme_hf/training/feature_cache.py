"""Features on disk, found again only for the same model, videos and clips."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from ..data import BadVideo, VideoRecords
from ..data.undecoded import is_missing
from ..wording import counted

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FeatureTable:
    """Features of the videos of a data set that could be read, in its order.

    Attributes:
        values: Shape (videos, clips, hidden_size) or (videos, clips, tokens, hidden_size).
        places: Which record each video is, int64, shape (videos,).
        bad_videos: Those that could not be read.
    """

    values: torch.Tensor
    places: torch.Tensor
    bad_videos: tuple[BadVideo, ...] = ()


class FeatureCache:
    """A folder of features, a file for each key, which is there whole or not at all.

    Args:
        folder: Made when the first features are kept.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)

    def path_of(self, key: Mapping[str, Any]) -> Path:
        """Return where features with this key are, if there are any."""
        digest = blake2b(_text_of(key).encode(), digest_size=12).hexdigest()
        return self.folder / f"features-{digest}.safetensors"

    def read(self, key: Mapping[str, Any]) -> FeatureTable | None:
        """Return the features kept under a key, None where there are none.

        Args:
            key: All that the features depend on, as JSON can hold it.

        Raises:
            ValueError: If the file is damaged.
        """
        path = self.path_of(key)
        if not path.is_file():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                kept = file.metadata()
                bad_videos = tuple(BadVideo(**video) for video in json.loads(kept["bad_videos"]))
                return FeatureTable(file.get_tensor("values"), file.get_tensor("places"), bad_videos)
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{path} is damaged ({error}). Remove it; it is made again.") from error

    def write(self, key: Mapping[str, Any], table: FeatureTable) -> None:
        """Keep features under a key."""
        path = self.path_of(key)
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
        metadata = {"key": _text_of(key), "bad_videos": json.dumps([vars(video) for video in table.bad_videos])}
        try:
            save_file({"values": table.values.contiguous(), "places": table.places}, unfinished, metadata=metadata)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)


def cached_tables(
    accelerator: Accelerator,
    cache: FeatureCache,
    keys: Mapping[str, Mapping[str, Any]],
    compute: Callable[[Sequence[str]], Mapping[str, FeatureTable]],
) -> tuple[dict[str, FeatureTable], list[str]]:
    """Return the features of each name, and the names of those that were found; on the main process, else nothing.

    Args:
        accelerator: Its main process alone reads and writes; the others help to compute.
        cache: Where features may be, and are kept.
        keys: What those of each name depend on.
        compute: Makes those that are missing, in one pass, on all processes alike.
    """
    found: dict[str, FeatureTable] = {}
    if accelerator.is_main_process:
        found = {name: table for name, key in keys.items() if (table := cache.read(key)) is not None}
    for name in (name for name, table in found.items() if table.bad_videos):
        # What failed may have been the disk, or a reader that there is now.
        lost, path = counted(len(found[name].bad_videos), "video"), cache.path_of(keys[name])
        logger.warning("%s could not be read when features were kept; to try again remove %s", lost, path)
    (missing,) = broadcast_object_list([[name for name in keys if name not in found]])
    made = compute(missing) if missing else {}
    if accelerator.is_main_process:
        for name, table in made.items():
            cache.write(keys[name], table)
    return {**found, **made}, list(found)


def videos_identity(records: VideoRecords) -> str:
    """Return a hash of which videos there are, in their order: of a file its path, size and time of change.

    Raises:
        ValueError: If the videos are a stream, which is not known before it has been read.
    """
    if records.num_records is None:
        raise ValueError(f"{records.name} is a stream, whose videos are not known. Leave --streaming out.")
    digest = blake2b(digest_size=16)
    for row in records.dataset.select_columns("video"):
        digest.update(_identity_of(row["video"]).encode())
    return digest.hexdigest()


def _identity_of(video: Mapping[str, Any] | None) -> str:
    if is_missing(video):
        return "\n"
    path, content = video["path"], video["bytes"]
    if content is not None:
        return f"{blake2b(content, digest_size=16).hexdigest()}\n"
    if "://" in path or not Path(path).exists():  # a server's; or gone since it was listed, which is for readers to say
        return f"{path}\n"
    status = os.stat(path)
    return f"{os.path.abspath(path)} {status.st_size} {status.st_mtime_ns}\n"


def _text_of(key: Mapping[str, Any]) -> str:
    return json.dumps(key, sort_keys=True)
