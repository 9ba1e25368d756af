"""What a run says."""

import logging

import pytest

from mme_hf.training import announce_result


@pytest.mark.parametrize(
    ("report_to", "has_picture"), [("tensorboard", True), ("all", False), ("wandb", False), (None, False)]
)
def test_the_last_words_name_only_what_is_there(tmp_path, caplog, report_to, has_picture):
    if has_picture:
        (tmp_path / "motion.png").touch()
    with caplog.at_level(logging.INFO):
        announce_result(tmp_path, report_to=report_to)
    assert ("motion.png" in caplog.text) == has_picture
    assert ("tensorboard --logdir" in caplog.text) == (report_to in ("tensorboard", "all"))
