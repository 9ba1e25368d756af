"""What a run says."""

import logging
from types import SimpleNamespace

import pytest

from mme_hf.training import announce_result, describe_updates, put_earlier_run_aside


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


def test_a_new_run_removes_stale_lists_and_keeps_earlier_curves_apart(tmp_path):
    put_earlier_run_aside(tmp_path / "new", "run")  # nothing is there, nothing is made
    assert not (tmp_path / "new").exists()
    for name in ("ignored_files.txt", "bad_videos.jsonl", "model.safetensors", "notes.txt"):
        (tmp_path / name).touch()
    for curves in ("first", "second"):
        (tmp_path / "logs" / "run").mkdir(parents=True)
        (tmp_path / "logs" / "run" / curves).touch()
        put_earlier_run_aside(tmp_path, "run")
    kept = sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file())
    assert kept == ["logs/run_earlier_1/first", "logs/run_earlier_2/second", "model.safetensors", "notes.txt"]


def test_a_run_says_how_long_it_is_and_warns_where_that_is_too_short():
    args = SimpleNamespace(learning_rate=1.5e-4, seed=3)
    expected = "13 updates of 8 clips, peak learning rate 4.69e-06, seed 3"  # 1.5e-4 * 8 / 256
    assert describe_updates(args, 13, 8) == describe_updates(args, 13, 8, 12) == expected
    assert describe_updates(args, 13, 8, 13).startswith(
        f"{expected}\n  THESE ARE TOO FEW TO LEARN MOTION. Take a recipe"
    )
