"""Features as Parquet shards."""

import torch
from datasets import load_dataset

from mme_hf.data.feature_shards import feature_columns, feature_rows, write_feature_shard


def test_videos_without_labels_have_rows_without_labels(tmp_path):
    """As in the test part of a data set whose labels are not published, though its classes are."""
    columns = feature_columns(("jump", "run"), 3, pool="mean", dtype="float32")
    rows = feature_rows("a.mp4", None, torch.ones(2, 3), 1) + feature_rows("b.mp4", 1, torch.zeros(1, 3), 1)
    write_feature_shard(rows, columns, tmp_path / "data" / "train-00000.parquet", metadata={})
    table = load_dataset(str(tmp_path), split="train", cache_dir=str(tmp_path / "cache"))
    assert table["label"][:] == [None, None, 1] and table.features["label"].names == ["jump", "run"]
