"""Features of videos as Parquet shards that `datasets.load_dataset` opens: one row for each clip."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .stored_tracks import SHARD_FOLDER
from .track_shards import write_whole

if TYPE_CHECKING:
    import torch
    from datasets import Features

DTYPES = ("float32", "float16")
# In the metadata of each Parquet file.
METADATA_KEY = "mme_hf"
_ROWS_PER_GROUP = 256


def feature_columns(label_names: Sequence[str], hidden_size: int, *, pool: str, dtype: str) -> Features:
    """Return the columns of a data set of features.

    Args:
        label_names: Of the classes; without any there is no label.
        hidden_size: Values of a feature.
        pool: "mean" for one feature of each clip, "none" for one of each token.
        dtype: One of `DTYPES`.
    """
    from datasets import ClassLabel, Features, List, Value

    feature = List(Value(dtype), length=hidden_size)
    labels = {"label": ClassLabel(names=list(label_names))} if label_names else {}
    return Features(
        {
            "video": Value("string"),
            **labels,
            "segment": Value("int32"),
            "crop": Value("int32"),
            "features": feature if pool == "mean" else List(feature),
        }
    )


def feature_rows(source: str, label: int | None, values: torch.Tensor, num_crops: int) -> list[dict[str, Any]]:
    """Return the rows of one video.

    Args:
        source: Its name.
        label: Its class; None where there is none.
        values: Features of its clips, those of a segment together, shape (clips, ...).
        num_crops: Clips of a segment.
    """
    rows = []
    for clip, features in enumerate(values):
        row = {"video": source, "segment": clip // num_crops, "crop": clip % num_crops, "features": features.numpy()}
        rows.append(row if label is None else {**row, "label": label})
    return rows


def write_feature_shard(
    rows: Sequence[Mapping[str, Any]], columns: Features, path: Path, *, metadata: Mapping[str, Any]
) -> None:
    """Write rows as one Parquet file, which appears whole or not at all.

    Args:
        rows: As `feature_rows` makes them; there may be none.
        columns: Of the data set.
        path: The file.
        metadata: What the features are of; kept in the file as JSON, under `METADATA_KEY`.
    """
    from datasets import Dataset

    # A test part may have classes and no labels: such rows have none.
    dataset = Dataset.from_dict({name: [row.get(name) for row in rows] for name in columns}, features=columns)
    table = dataset.with_format("arrow")[:]
    # Of its columns datasets reads from here what Parquet does not know, such as the names of classes.
    schema = columns.arrow_schema.metadata
    table = table.replace_schema_metadata({**schema, METADATA_KEY.encode(): json.dumps(dict(metadata)).encode()})
    write_whole(table, path, rows_per_group=_ROWS_PER_GROUP)


def num_rows_of(folder: str | Path) -> int:
    """Return how many rows the shards of a folder hold."""
    import pyarrow.parquet as pq

    return sum(pq.read_metadata(shard).num_rows for shard in (Path(folder) / SHARD_FOLDER).glob("*.parquet"))
