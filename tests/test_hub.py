"""Pushing, as far as it goes without a Hub."""

import pytest
from huggingface_hub import HfApi, RepoUrl
from huggingface_hub.utils import filter_repo_objects

from mme_hf.hub import PushError, create_repository, download_tracks, push_folder


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch):
    """Send every request to a port of this machine at which nobody listens."""
    monkeypatch.setattr("huggingface_hub.hf_api.ENDPOINT", "http://127.0.0.1:9", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")


def test_a_hub_that_cannot_be_reached_leaves_the_folder_and_says_how_to_push_later(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(
        PushError, match=rf"pushing to me/mine failed: .*push it later with: hf upload me/mine {tmp_path}"
    ):
        push_folder(tmp_path, "me/mine", token="hf_secret")
    assert (tmp_path / "config.json").exists()


def test_a_repository_is_called_by_its_full_name(monkeypatch):
    def create_repo(self, name, **options):
        return RepoUrl(f"https://huggingface.co/me/{name}")

    monkeypatch.setattr("mme_hf.hub.HfApi.create_repo", create_repo)
    assert create_repository("mine") == "me/mine"


@pytest.mark.parametrize("repository", ["me/mine", "no/such/name"])
def test_a_name_that_cannot_be_pushed_to_is_an_error_before_the_run(repository):
    with pytest.raises(
        PushError, match=rf"hub_model_id \('{repository}'\) cannot be pushed to: .*leave push_to_hub out"
    ):
        create_repository(repository, token="hf_secret")


def test_a_data_set_of_tracks_is_pushed_without_what_names_this_machine(tmp_path, monkeypatch):
    (tmp_path / "data").mkdir()
    for name in ("README.md", "data/train-00000.parquet", "data/.x.tmp", "extraction.json", "bad_videos.jsonl"):
        (tmp_path / name).write_text("")
    pushed = []

    def upload(self, *, repo_id, repo_type, folder_path, allow_patterns):
        files = (str(path.relative_to(folder_path)) for path in folder_path.rglob("*") if path.is_file())
        pushed.append((repo_id, repo_type, sorted(filter_repo_objects(files, allow_patterns=allow_patterns))))

    monkeypatch.setattr(
        HfApi, "create_repo", lambda self, name, **_: RepoUrl(f"https://huggingface.co/datasets/{name}")
    )
    monkeypatch.setattr(HfApi, "upload_folder", upload)
    assert push_folder(tmp_path, "me/tracks", kind="dataset").endswith("/datasets/me/tracks")
    assert pushed == [("me/tracks", "dataset", ["README.md", "data/train-00000.parquet"])]


def test_a_data_set_that_cannot_be_pushed_or_fetched_says_so(tmp_path):
    with pytest.raises(PushError, match=r"hub_dataset_id \('me/tracks'\) cannot be pushed to"):
        create_repository("me/tracks", kind="dataset")
    with pytest.raises(PushError, match=r"hf upload me/tracks .* --include 'data/\*\.parquet' --repo-type dataset"):
        push_folder(tmp_path, "me/tracks", kind="dataset")
    with pytest.raises(OSError, match="me/tracks"):
        download_tracks("me/tracks")
