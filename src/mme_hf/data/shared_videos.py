"""Videos that are both trained on and judged by, whose scores say nothing of others."""

from __future__ import annotations

import os
from functools import cache

from .records import VideoRecords


def shared_videos(train: VideoRecords, validation: VideoRecords) -> list[str]:
    """Return the files of `validation` that `train` has too, under whatever name.

    Streams, and videos that are no files, are passed over: to compare them they would have to be read.
    """
    real_folder = cache(os.path.realpath)  # most files share theirs

    def real_path(path: str) -> str:
        folder, name = os.path.split(path)
        return os.path.realpath(path) if os.path.islink(path) else os.path.join(real_folder(folder), name)

    trained_on = {real_path(path) for path in _files(train)}
    return [path for path in _files(validation) if real_path(path) in trained_on]


def _files(records: VideoRecords) -> list[str]:
    if records.num_records is None:
        return []
    # As Arrow has it: as Python objects, videos that are inside the data set would all be read.
    table = records.dataset.select_columns("video").with_format("arrow")
    paths = []
    for batch in table.iter(1000):
        video = batch["video"].combine_chunks()
        known = zip(video.field("path").to_pylist(), video.field("bytes").is_null().to_pylist(), strict=True)
        paths += [path for path, is_file in known if path and is_file and "://" not in path]
    return paths
