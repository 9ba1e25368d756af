"""Figures of a classifier, against numbers by hand and scipy's."""

import socket

import pytest
import torch
from scipy.stats import binomtest

from mme_hf.metrics import METRICS, load_metric
from mme_hf.training.metrics import classification_metrics, confusion_counts, wilson_interval

# Five videos of three classes. Guesses: 0, 0, 1, 2, 0; right are the first, third and fourth.
SCORES = torch.tensor(
    [[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.2, 0.7, 0.1], [0.05, 0.35, 0.6], [0.5, 0.1, 0.4]], dtype=torch.float32
)
LABELS = torch.tensor([0, 2, 1, 2, 2])


def test_figures_are_those_worked_out_by_hand():
    metrics = classification_metrics(SCORES, LABELS)
    # Class 0: 1 of 1, class 1: 1 of 1, class 2: 1 of 3. Bins of 1/15: 0.9 and 0.7 are alone with their right guess, 0.5
    # with its wrong one; 0.6 (twice, up to float32 the upper edge of a bin) is right once.
    error = (0.1 + 0.3 + 0.5 + abs(1 - 2 * 0.6)) / 5
    expected = {"top1": 3 / 5, "top5": 1.0, "mean_class_accuracy": 7 / 9, "ece": error}
    assert metrics == pytest.approx(expected, abs=1e-6)
    assert confusion_counts(SCORES, LABELS).tolist() == [[1, 0, 0], [0, 1, 0], [2, 0, 1]]


def test_one_of_the_best_k_counts_and_of_equal_scores_the_first():
    # The second best of video 1 is class 1, of video 4 class 2: three are right at once, one more with two guesses.
    compute = load_metric("top_k_accuracy").compute
    assert compute(predictions=SCORES.numpy(), references=LABELS.numpy(), k=2)["top_k_accuracy"] == 4 / 5
    same = torch.full((2, 6), 1 / 6)
    metrics = classification_metrics(same, torch.tensor([0, 5]))
    assert metrics["top1"] == 0.5 and metrics["top5"] == 0.5


def test_metrics_load_without_the_network(monkeypatch):
    def refuse(*_):
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    load_metric.cache_clear()
    assert all(load_metric(name).features.keys() == {"predictions", "references"} for name in METRICS)
    assert classification_metrics(SCORES, LABELS)["top1"] == 3 / 5
    with pytest.raises(ValueError, match=r"metric 'bleu' is none of the package: calibration_error, "):
        load_metric("bleu")


@pytest.mark.parametrize(("num_right", "num_trials"), [(0, 7), (5, 10), (41, 100), (10, 10)])
def test_the_interval_is_wilsons(num_right, num_trials):
    expected = binomtest(num_right, num_trials).proportion_ci(method="wilson")
    assert wilson_interval(num_right / num_trials, num_trials) == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        (SCORES, LABELS - 1, r"a label \(-1\) is outside \[0, 3\)"),
        (SCORES[:2], LABELS, r"scores \(2, 3\) and labels \(5,\) must be"),
        (SCORES[:0], LABELS[:0], r"at least one video"),
        (SCORES * torch.nan, LABELS, r"not all finite"),
    ],
)
def test_what_has_no_figures_is_refused(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        classification_metrics(scores, labels)
