import os
from dataclasses import replace

import pytest
import torch
from accelerate import Accelerator

from mme_hf.data import BadVideo, load_folder_records
from mme_hf.training.feature_cache import FeatureCache, FeatureTable, cached_tables, videos_identity

TABLE = FeatureTable(torch.arange(6.0).reshape(2, 1, 3), torch.tensor([0, 2]), (BadVideo("b.mp4", "no video"),))


def test_features_are_found_under_their_key_alone(tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    key = {"weights": "abc", "processor": {"size": 112}}
    assert cache.read(key) is None and not (tmp_path / "cache").exists()
    cache.write(key, TABLE)
    found = cache.read({"processor": {"size": 112}, "weights": "abc"})
    assert torch.equal(found.values, TABLE.values) and torch.equal(found.places, TABLE.places)
    assert found.bad_videos == TABLE.bad_videos
    for other in ({**key, "weights": "abd"}, {**key, "processor": {"size": 128}}, {**key, "pool": "grid"}):
        assert cache.read(other) is None
    assert [path.name for path in cache.folder.iterdir()] == [cache.path_of(key).name]


def test_a_damaged_file_is_an_error_that_names_it(tmp_path):
    cache = FeatureCache(tmp_path)
    cache.write({}, TABLE)
    whole = cache.path_of({}).read_bytes()
    for content in (whole[: len(whole) // 2], b""):
        cache.path_of({}).write_bytes(content)
        with pytest.raises(ValueError, match=r"features-\w+\.safetensors is damaged .* Remove it"):
            cache.read({})


def test_a_loss_that_is_kept_says_how_to_try_again(tmp_path, caplog):
    cache = FeatureCache(tmp_path)
    cache.write({}, TABLE)
    cached_tables(Accelerator(cpu=True), cache, {"mean": {}}, lambda names: {})
    assert f"1 video could not be read when features were kept; to try again remove {cache.path_of({})}" in caplog.text


def test_only_what_is_missing_is_computed(tmp_path):
    cache, asked = FeatureCache(tmp_path), []

    def compute(names):
        asked.append(list(names))
        return {name: replace(TABLE, values=TABLE.values + len(name)) for name in names}

    keys = {"mean": {"pool": "mean"}}
    assert cached_tables(Accelerator(cpu=True), cache, keys, compute)[1] == []
    keys["grid_4"] = {"pool": "grid"}
    tables, found = cached_tables(Accelerator(cpu=True), cache, keys, compute)
    assert found == ["mean"] and asked == [["mean"], ["grid_4"]]
    assert [tables[name].values[0, 0, 0].item() for name in keys] == [4, 6]
    assert cached_tables(Accelerator(cpu=True), cache, keys, compute)[1] == ["mean", "grid_4"] and len(asked) == 2


def test_videos_that_changed_are_others(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.mp4").write_bytes(b"content")
    records = load_folder_records(tmp_path)
    same = videos_identity(records)
    assert videos_identity(load_folder_records(tmp_path)) == same
    identities = {same, videos_identity(replace(records, dataset=records.dataset.select([1, 0])))}
    (tmp_path / "a.mp4").write_bytes(b"contents")
    identities.add(videos_identity(records))
    os.utime(tmp_path / "b.mp4", (0, 0))
    identities.add(videos_identity(records))
    embedded = records.dataset.map(lambda video: {"video": {"bytes": b"content", "path": None}})
    identities.add(videos_identity(replace(records, dataset=embedded)))
    empty = records.dataset.map(lambda video: {"video": None})
    identities.add(videos_identity(replace(records, dataset=empty)))
    assert len(identities) == 6
    with pytest.raises(ValueError, match="is a stream, whose videos are not known"):
        videos_identity(records.streamed())
