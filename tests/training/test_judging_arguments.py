"""Flags of evaluate.py and predict.py."""

import pytest

from mme_hf.training import ExtractionArguments, parse_arguments
from mme_hf.training.judging_arguments import EvaluationArguments, PredictionArguments


def test_words_without_a_flag_go_to_the_field_that_takes_them():
    def videos(*argv):
        return parse_arguments(PredictionArguments, ["--model_name_or_path=m", *argv], positional="videos").videos

    assert videos("a.mp4", "--top_k", "3", "b c.mp4") == ["a.mp4", "b c.mp4"]
    assert videos("--json", "a.mp4", "-", "a.mp4") == ["-", "a.mp4"]  # the first is the value of a flag
    assert videos("--videos", "a.mp4", "b.mp4", "--top_k", "3", "c.mp4") == ["a.mp4", "b.mp4", "c.mp4"]
    with pytest.raises(ValueError, match=r"-x is no flag"):
        videos("a.mp4", "-x")
    with pytest.raises(ValueError, match=r"a.mp4 is no flag. Name videos with --train_dir"):
        parse_arguments(ExtractionArguments, ["a.mp4"])


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        ([], "no videos to judge by are named. Give --validation_dir"),
        (["--dataset_name", "d"], r"dataset_name \('d'\) needs --validation_split"),
        (["--train_dir", "a", "--train_manifest", "b"], "train_dir and train_manifest name different data"),
        (["--train_dir", "a", "--num_eval_crops", "0"], r"num_eval_crops \(0\) must be at least 1"),
        (["--train_dir", "a", "--mixed_precision", "int8"], r"mixed_precision \('int8'\)"),
        (["--train_dir", "a", "--model_name_or_path", ""], "model_name_or_path is not given"),
    ],
)
def test_what_cannot_be_judged_is_refused(argv, message):
    with pytest.raises(ValueError, match=message):
        parse_arguments(EvaluationArguments, ["--model_name_or_path", "m", *argv])
