"""examples/extract_features.py as a user runs it: alone, again, and on two processes."""

import json
import logging

import numpy as np
import pyarrow.parquet as pq
import pytest
from datasets import load_dataset
from scripts import run_on_two_processes, run_script, stop_of_script

from mme_hf import MMEConfig, MMEModel, MMEVideoProcessor, open_video

FLAGS = {"max_bad_fraction": 0.5, "dataloader_num_workers": 0, "num_videos_per_shard": 2, "num_crops": 3}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    MMEModel(MMEConfig(image_size=32, num_frames=4, **sizes)).save_pretrained(folder)
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    MMEVideoProcessor(num_frames=4, frame_stride=2, **size).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def videos(video_folder, tmp_path_factory):
    """The six videos, and first of all two that are none: a shard without any row."""
    root = tmp_path_factory.mktemp("videos")
    (root / "broken").mkdir()
    for name in ("a", "b"):
        (root / "broken" / f"{name}.mp4").write_bytes(b"no video")
    for folder in video_folder.iterdir():
        (root / folder.name).symlink_to(folder)
    return root


def rows(folder, cache):
    return load_dataset(str(folder), split="train", cache_dir=str(cache))


def test_features_are_those_of_the_model_and_open_as_a_data_set(model, videos, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    folder = tmp_path / "features"
    run_script("extract_features", model_name_or_path=model, train_dir=videos, output_dir=folder, **FLAGS)
    table = rows(folder, tmp_path / "cache")
    assert table.num_rows == 18 and table.features["label"].names == ["broken", "left", "right"]
    row = table[4]
    assert row["video"].endswith("left/clip_2.mp4") and row["label"] == 1 and (row["segment"], row["crop"]) == (0, 1)
    # 40 frames, 4 of stride 2: the middle window starts at 16.
    with open_video(row["video"]) as reader:
        frames = reader.frames_at([16, 18, 20, 22])
    processor = MMEVideoProcessor.from_pretrained(model)
    clip = processor(frames, do_sample_frames=False, return_tensors="pt")["pixel_values"]
    expected = MMEModel.from_pretrained(model).eval().get_video_features(clip).pooler_output[0]
    np.testing.assert_allclose(row["features"], expected.detach().numpy(), atol=1e-5)
    shard = folder / "data" / "train-00001.parquet"
    metadata = json.loads(pq.read_schema(shard).metadata[b"mme_hf"])
    assert (metadata["layer"], metadata["pool"], metadata["num_crops"]) == (2, "mean", 3) and metadata["model"]
    listed = [json.loads(line)["source"] for line in (folder / "bad_videos.jsonl").read_text().splitlines()]
    assert len(listed) == 2 and "bad videos are listed in" in caplog.text
    assert "pooling `mean`" in (folder / "README.md").read_text()

    # A run that was killed: what is there is kept, what is missing is made.
    kept = {path.name: path.stat().st_mtime_ns for path in folder.glob("data/*") if path != shard}
    shard.unlink()
    run_script("extract_features", model_name_or_path=model, train_dir=videos, output_dir=folder, **FLAGS)
    assert "2 videos in this run" in caplog.text and shard.is_file()
    assert {path.name: path.stat().st_mtime_ns for path in folder.glob("data/*") if path != shard} == kept
    message = r"holds features made with layer 2; this run has 1. Use the same, or name another --output_dir\.$"
    flags = {"model_name_or_path": model, "train_dir": videos, "output_dir": folder, **FLAGS}
    stop_of_script("extract_features", message, **flags, layer=1)


def test_two_processes_write_what_one_writes_and_tokens_are_kept(model, videos, tmp_path):
    flags = {"model_name_or_path": model, "train_dir": videos, "pool": "none", "dtype": "float16", **FLAGS}
    run_script("extract_features", output_dir=tmp_path / "one", **flags)
    output = run_on_two_processes("extract_features", output_dir=tmp_path / "two", **flags)
    assert "features of 18 clips" in output and "6 videos in this run" in output
    one, two = (rows(tmp_path / name, tmp_path / "cache") for name in ("one", "two"))
    assert one["video"][:] == two["video"][:] and one["label"][:] == two["label"][:]
    tokens = [np.array(table["features"][:], np.float32) for table in (one, two)]
    assert tokens[0].shape == (18, 8, 16)  # two tubelets of 2 x 2 tokens
    np.testing.assert_allclose(*tokens, atol=2e-3)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"pool": "max"}, r"pool \('max'\) must be 'mean' or 'none'"),
        ({"dtype": "int8"}, r"dtype \('int8'\) must be one of float32, float16"),
        ({"layer": 9}, r"layer \(9\) must be from -7 to 6"),
        ({"validation_dir": "x"}, r"validation_dir is given, but only"),
        ({"num_videos_per_shard": 0}, r"num_videos_per_shard \(0\) must be at least 1"),
    ],
)
def test_a_mistake_is_one_line(videos, tmp_path, flags, message):
    given = {"preset": "tiny", "train_dir": videos, "output_dir": tmp_path / "features", **flags}
    stop_of_script("extract_features", rf"^extract_features\.py: error: .*{message}", **given)
    assert not (tmp_path / "features").exists()
