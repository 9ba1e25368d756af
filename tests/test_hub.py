"""Pushing, as far as it goes without a Hub."""

import pytest

from mme_hf.hub import PushError, create_repository, push_folder


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


@pytest.mark.parametrize("repository", ["me/mine", "no/such/name"])
def test_a_name_that_cannot_be_pushed_to_is_an_error_before_the_run(repository):
    with pytest.raises(PushError, match=rf"hub_model_id \('{repository}'\) cannot be pushed to"):
        create_repository(repository, token="hf_secret")
