"""Parquet shards: how they are written, where those of stored tracks are, and what is read of them.

Shards are read where they lie. `datasets.load_dataset` would first copy them to its cache, another 130 GB of Kinetics.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..hub import download_tracks
from ..motion import StoredTracksError

if TYPE_CHECKING:
    from pyarrow import Table
    from pyarrow.parquet import ParquetFile


def find_shards(source: str) -> list[Path]:
    """Return the shards of a folder (and of all folders in it), or of a data set on the Hub, which is fetched.

    Raises:
        ValueError: If there are none.
    """
    folder = Path(source)
    if not folder.is_dir():
        try:
            folder = download_tracks(source)
        except OSError as error:
            raise ValueError(f"stored_tracks ({source!r}) is no folder, and none on the Hub: {error}") from error
    shards = sorted(path for path in folder.rglob("*.parquet") if not path.name.startswith("."))
    if not shards:
        raise ValueError(
            f"stored_tracks ({source!r}) holds no Parquet shard. Make them with examples/extract_trajectories.py."
        )
    return shards


def write_whole(table: Table, path: Path, *, rows_per_group: int) -> None:
    """Write a table as one Parquet file, which appears whole or not at all.

    Args:
        table: The table.
        path: The file; folders above it are made.
        rows_per_group: Rows that are read together.
    """
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with unfinished.open("wb") as file:
            options = {"compression": "zstd", "write_page_checksum": True}
            with pq.ParquetWriter(file, table.schema, **options) as writer:
                if table.num_rows:  # datasets cannot read a group of no rows
                    writer.write_table(table, row_group_size=rows_per_group)
            file.flush()
            os.fsync(file.fileno())
        os.replace(unfinished, path)
    finally:
        unfinished.unlink(missing_ok=True)


def read_columns(shard: Path, columns: Collection[str], *, needed: Collection[str]) -> dict[str, list[Any]]:
    """Return some columns of a shard.

    Args:
        shard: The file.
        columns: Columns to read.
        needed: Columns that it must have, whether they are read or not.

    Raises:
        StoredTracksError: If it is damaged, or lacks a column.
    """
    import pyarrow as pa

    try:
        with _open(shard) as file:
            missing = sorted(set(needed) - set(file.schema_arrow.names))
            if not missing:
                return file.read(columns=list(columns), use_threads=False).to_pydict()
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error
    raise StoredTracksError(
        f"shard {shard.name} has no column {', '.join(missing)}: these are no stored tracks. Make them with "
        "examples/extract_trajectories.py."
    )


def read_row(shard: Path, row: int) -> dict[str, Any]:
    """Return a row of a shard; only the group of rows that it is in is read.

    Raises:
        StoredTracksError: If the shard is damaged, or has fewer rows.
    """
    import pyarrow as pa

    first = 0
    try:
        with _open(shard) as file:
            for group in range(file.num_row_groups):
                num_rows = file.metadata.row_group(group).num_rows
                if row < first + num_rows:
                    return file.read_row_group(group, use_threads=False).slice(row - first, 1).to_pylist()[0]
                first += num_rows
    except (pa.ArrowException, OSError) as error:
        raise _damaged(shard, error) from error
    raise StoredTracksError(
        f"shard {shard.name} has {first} rows and no row {row}: it has changed since it was opened."
    )


def _open(shard: Path) -> ParquetFile:
    import pyarrow.parquet as pq

    return pq.ParquetFile(shard, page_checksum_verification=True)


def _damaged(shard: Path, error: Exception) -> StoredTracksError:
    return StoredTracksError(
        f"shard {shard.name} is damaged or incomplete ({error}). Remove it and run examples/extract_trajectories.py "
        f"again: it makes only what is missing. It lies in {shard.parent}."
    )
