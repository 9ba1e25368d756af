"""Scripts that publish what they made: tracks, a pre-trained model, a classifier; each is then used by its name."""

import io
import json
import shutil
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import runs
import scripts
from datasets import load_dataset
from huggingface_hub import HfApi

from mme_hf import MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor

MODEL_FILES = {
    ".gitattributes",
    "README.md",
    "config.json",
    "model.safetensors",
    "model_card.json",
    "video_preprocessor_config.json",
}


@pytest.fixture
def videos(video_folder, tmp_path):
    """Three videos, and a broken one."""
    folder = tmp_path / "videos"
    folder.mkdir()
    for path in sorted(video_folder.rglob("*.mp4"))[:3]:
        shutil.copy(path, folder)
    (folder / "broken.mp4").write_bytes(b"no video")
    return folder


@pytest.fixture
def assert_public(tmp_path_factory):
    """Expect no pushed file to hold a token, or where something lies on this machine."""
    private = ["hf_mine", str(tmp_path_factory.getbasetemp()), str(Path.home()), str(runs.SCRIPT.parents[1])]

    def check(repository):
        for path, file in repository.files().items():
            content = file.content
            if path.endswith(".parquet"):
                table = pq.read_table(io.BytesIO(content))
                content += repr((table.schema.metadata, table.drop_columns("motion").to_pylist())).encode()
            found = [words for words in private if words.encode() in content]
            assert not found, f"{path} of {repository.name} holds {found}"

    return check


def test_tracks_and_what_was_trained_on_them_are_pushed_and_found_by_name(
    hub, videos, tmp_path, monkeypatch, assert_public, caplog, capfd
):
    common = {"train_dir": videos, "max_bad_fraction": 0.5, "push_to_hub": "true", "hub_token": "hf_mine"}
    scripts.run_script("extract_trajectories", **common, output_dir=tmp_path / "tracks")
    tracks = hub.repositories["dataset", "me/tracks"]
    assert set(tracks.files()) == {".gitattributes", "README.md", "data/train-00000.parquet"}
    assert_public(tracks)
    for name, value in {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": False}.items():
        monkeypatch.setattr(f"datasets.config.{name}", value)
    stream = load_dataset("me/tracks", split="train", streaming=True)
    assert [row["video"] for row in stream] == sorted(path.name for path in videos.iterdir())
    assert hub.asked("GET /[0-9a-f]{64} bytes=")

    flags = {"stored_tracks": "me/tracks", "hub_model_id": "learned", "hub_private_repo": "true"}
    flags |= {"max_train_steps": 2, "per_device_train_batch_size": 3, "held_out_fraction": 0.3}
    with caplog.at_level("INFO"), runs.new_accelerator():
        scripts.run_script("pretrain", **{**runs.SMALL, **common, **flags}, output_dir=tmp_path / "run")
    output = "".join([caplog.text, *capfd.readouterr()])
    assert f"pushed to {hub.url}/me/learned" in output
    assert "hf_mine" not in output and "Signature=" not in output
    learned = hub.repositories["model", "me/learned"]
    assert learned.is_private and set(learned.files()) == MODEL_FILES | {"eval_results.json", "motion.png"}
    assert_public(learned)
    assert 'MMEModel.from_pretrained("me/learned")' in learned.content("README.md").decode()

    monkeypatch.setenv("HF_TOKEN", "hf_mine")  # as one is who is logged in
    model = MMEForPreTraining.from_pretrained("me/learned")
    assert model.config.image_size == MMEVideoProcessor.from_pretrained("me/learned").crop_size["height"] == 32
    assert (learned.content("model.safetensors")) == (tmp_path / "run" / "model.safetensors").read_bytes()


def test_a_classifier_is_fine_tuned_from_a_name_and_pushed_with_what_it_scored(
    hub, direction_videos, tmp_path, monkeypatch, assert_public
):
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    start = MMEForVideoClassification.config_class(image_size=16, **json.loads(runs.SMALL_CLASSIFIER["model_options"]))
    MMEForPreTraining(start).push_to_hub("me/learned", private=True)
    MMEVideoProcessor(size={"shortest_edge": 16}, crop_size=16, patch_size=8).push_to_hub("me/learned")
    flags = {"max_train_steps": 1, "per_device_train_batch_size": 4, "push_to_hub": "true"}
    flags |= {"model_name_or_path": "me/learned", "model_options": "{}", "hub_model_id": "me/directions"}
    run = runs.finetune_here(tmp_path / "run", **direction_videos, **flags)
    pushed = hub.repositories["model", "me/directions"]
    assert set(pushed.files()) == MODEL_FILES | {"eval_results.json"}
    assert_public(pushed)
    assert "from the weights of `me/learned`" in pushed.content("README.md").decode()
    card = HfApi().model_info("me/directions").card_data
    assert card.pipeline_tag == "video-classification"
    assert card.eval_results[0].metric_value == run.best.result.top1
    assert MMEForVideoClassification.from_pretrained("me/directions").config.id2label == {0: "left", 1: "right"}


def test_a_push_that_fails_after_training_keeps_the_model_and_its_logs(hub, direction_videos, tmp_path, monkeypatch):
    hub.fail("POST .*/commit/", 413)
    closed = []
    monkeypatch.setattr("accelerate.tracking.TensorBoardTracker.finish", lambda tracker: closed.append(tracker))
    flags = {"max_train_steps": 1, "per_device_train_batch_size": 4, "push_to_hub": "true", "hub_token": "hf_mine"}
    folder = tmp_path / "run"
    words = runs.last_words_of_finetuning(folder, **direction_videos, **flags)
    assert words.startswith("finetune.py: stopped: pushing to me/run failed: ") and "\n" not in words
    assert f"Everything is still in {folder}; push it later with: hf upload me/run {folder} --include " in words
    assert "hf_mine" not in words
    assert MMEForVideoClassification.from_pretrained(folder).config.num_labels == 2
    assert runs.logged(folder, run="mme_finetuning").keys() == {1} and len(closed) == 1


def test_a_run_that_may_not_push_ends_before_it_begins(hub, direction_videos, tmp_path):
    flags = {"max_train_steps": 1, "push_to_hub": "true", "hub_token": "hf_reads", "hub_model_id": "me/old"}
    HfApi(token="hf_mine").create_repo("me/old")
    words = runs.last_words_of_finetuning(tmp_path / "run", **direction_videos, **flags)
    assert words.startswith("finetune.py: error: hub_model_id ('me/old') cannot be pushed to: ")
    assert not (tmp_path / "run" / "model.safetensors").exists()
