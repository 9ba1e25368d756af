"""What is said of motion, against counts by hand and scipy's test."""

import pytest
import torch
from scipy.stats import binomtest

from mme_hf.training.motion_sensitivity import motion_sensitivity, motion_words, sensitivity_table, sign_test

LABELS = torch.zeros(10, dtype=torch.int64)


def guesses(num_right, first=0):
    """Guesses of ten videos of class 0, right for `num_right` of them, from `first` on."""
    guess = torch.ones(10, dtype=torch.int64)
    guess[first : first + num_right] = 0
    return guess


@pytest.mark.parametrize(("num_lost", "num_won"), [(0, 0), (1, 0), (9, 1), (4, 6), (30, 55), (700, 600)])
def test_the_sign_test_is_the_exact_one(num_lost, num_won):
    total = num_lost + num_won
    expected = binomtest(num_lost, total).pvalue if total else 1.0
    assert sign_test(num_lost, num_won) == pytest.approx(expected, rel=1e-9)


def test_videos_are_compared_one_by_one():
    # Forwards right on 0 to 7, frozen on 6 to 9: 0 to 5 are lost, 8 and 9 won, and only 6 and 7 have the same guess.
    found = motion_sensitivity({"forwards": guesses(8), "frozen": guesses(4, first=6)}, LABELS)
    assert found["forwards"] == {"top1": 0.8}
    assert found["frozen"] == {
        "top1": 0.4,
        "same_guess": 0.2,
        "lost": 6,
        "won": 2,
        "p_value": pytest.approx(2 * (1 + 8 + 28) / 2**8),
    }
    lines = sensitivity_table(found)
    assert len(lines) == 3 and lines[2].split() == ["frozen", "40.0", "%", "20.0", "%", "6", "2"]


def test_words_claim_no_more_than_the_counts_show():
    clear = motion_sensitivity({"forwards": guesses(10), "frozen": guesses(1)}, LABELS)
    (sentence, caveat) = motion_words(clear, 10)
    assert sentence == (
        "With each clip frozen at its middle frame it is right on 10 % of the videos, forwards on 100 % (9 lost, 0 "
        "won, p = 0.0039): a sign that it uses what changes over a clip."
    )
    assert "not among those it was trained on" in caveat
    unclear = motion_sensitivity({"forwards": guesses(8), "frozen": guesses(4, first=6)}, LABELS)
    (sentence,) = motion_words(unclear, 10)
    assert sentence.endswith("p = 0.29): 10 videos do not show that it uses what changes over a clip.")
    better = motion_sensitivity({"forwards": guesses(1), "reversed": guesses(10)}, LABELS)
    (sentence,) = motion_words(better, 10)
    assert sentence.endswith("what it makes of the direction of time does not help it here.")
