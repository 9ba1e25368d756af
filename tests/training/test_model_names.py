"""Which names of models are refused before anything is asked of the Hub."""

import pytest

from mme_hf.training.model_names import check_model_name


@pytest.mark.parametrize(
    "name", ["runs/pretrian", "./runs/pretrian", "runs/pretrian/last", "../here/runs/pretrian", "runs/../runs/pretrian"]
)
def test_a_misspelt_folder_is_told_at_once_with_those_of_like_names(tmp_path, monkeypatch, name):
    for folder in ("pretrain", "pretrain-2", "other", ".pretrian"):
        (tmp_path / "here" / "runs" / folder).mkdir(parents=True)
    (tmp_path / "here" / "runs" / "pretrian.txt").touch()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(ValueError, match=r"there is no such folder\. Did you mean \S*/pretrain or \S*/pretrain-2\?$"):
        check_model_name("model_name_or_path", name)


@pytest.mark.parametrize("name", ["/nowhere/at/all", "~/runs/pretrain", "outputs/pretrain", "./x", "..x", "a/b/c"])
def test_what_looks_like_a_path_is_no_name_on_the_hub(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"model_name_or_path \('.*'\): there is no such folder\. Name the folder"):
        check_model_name("model_name_or_path", name)


def test_names_on_the_hub_pass(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").mkdir()
    for name in ("user/model", "bert-base"):
        check_model_name("model_name_or_path", name)
