"""Which videos are said to be trained on and judged by."""

import pytest
from datasets import Dataset, Features, Video

from mme_hf.data import load_dataset_records, load_folder_records, load_manifest_records
from mme_hf.data.shared_videos import shared_videos


@pytest.fixture
def train(tmp_path):
    for name in ("a.mp4", "b.mp4", "c.mp4"):
        (tmp_path / "train").mkdir(exist_ok=True)
        (tmp_path / "train" / name).write_bytes(b"x")
    return load_folder_records(tmp_path / "train")


def test_videos_are_the_same_under_whatever_name_their_file_is_reached(tmp_path, train):
    assert len(shared_videos(train, train)) == 3
    (tmp_path / "linked").symlink_to(tmp_path / "train")
    assert len(shared_videos(train, load_folder_records(tmp_path / "linked"))) == 3
    (tmp_path / "test").mkdir()
    (tmp_path / "test" / "a.mp4").write_bytes(b"x")  # another file of the same name
    (tmp_path / "test" / "z.mp4").symlink_to(tmp_path / "train" / "b.mp4")
    assert shared_videos(train, load_folder_records(tmp_path / "test")) == [str(tmp_path / "test" / "z.mp4")]
    (tmp_path / "test.txt").write_text("train/../train/c.mp4\ntest/a.mp4\n")
    shared = shared_videos(train, load_manifest_records(tmp_path / "test.txt"))
    assert shared == [f"{tmp_path}/train/../train/c.mp4"]


def test_what_would_have_to_be_read_is_passed_over(tmp_path, train):
    rows = [{"bytes": b"x", "path": "a.mp4"}, None]
    Dataset.from_dict({"video": rows}, features=Features({"video": Video()})).to_parquet(tmp_path / "set" / "t.parquet")
    inside = load_dataset_records(str(tmp_path / "set"))
    assert shared_videos(inside, inside) == shared_videos(train, inside) == []
    assert shared_videos(train, train.streamed()) == []
    assert len(shared_videos(train.limited(2), train)) == 2
