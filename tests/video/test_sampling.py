"""Windows of frames: every expected number is worked out by hand."""

from collections import Counter

import pytest
import torch

from mme_hf.video import evenly_spaced_starts, random_start, window_indices


def test_random_starts_are_uniform_over_all_windows_that_fit():
    generator = torch.Generator().manual_seed(0)
    counts = Counter(random_start(10, 7, generator) for _ in range(4000))
    # Windows of 7 in 10 frames start at 0, 1, 2, 3; 1000 draws each expected, standard deviation 27.
    assert sorted(counts) == [0, 1, 2, 3]
    assert all(abs(count - 1000) < 140 for count in counts.values())


def test_random_starts_in_a_sub_range_lie_in_it():
    generator = torch.Generator().manual_seed(0)
    assert {random_start(5, 4, generator, first=100) for _ in range(50)} == {100, 101}


def test_a_random_start_is_a_function_of_the_generator_and_draws_once():
    first, second = (torch.Generator().manual_seed(3) for _ in range(2))
    assert [random_start(1000, 10, first) for _ in range(5)] == [random_start(1000, 10, second) for _ in range(5)]
    random_start(4, 10, first)
    random_start(1000, 10, second)
    assert torch.equal(first.get_state(), second.get_state())


@pytest.mark.parametrize(
    ("num_available", "window", "num_clips", "first", "expected"),
    [
        (100, 61, 1, 0, [19]),  # 40 starts, 0 to 39; the middle one rounded down
        (100, 60, 5, 0, [0, 10, 20, 30, 40]),
        (100, 60, 5, 7, [7, 17, 27, 37, 47]),
        (62, 60, 5, 0, [0, 0, 1, 1, 2]),  # fewer starts than clips
        (10, 60, 3, 2, [2, 2, 2]),  # shorter than the window
        (1, 1, 2, 0, [0, 0]),
    ],
)
def test_evenly_spaced_starts(num_available, window, num_clips, first, expected):
    assert evenly_spaced_starts(num_available, window, num_clips, first=first) == expected


def test_window_indices_stop_where_the_range_ends():
    assert window_indices(3, 7, 20) == [3, 4, 5, 6, 7, 8, 9]
    assert window_indices(3, 7, 20, stride=3) == [3, 6, 9]
    assert window_indices(3, 7, 5) == [3, 4]
    assert window_indices(12, 4, 5, first=10) == [12, 13, 14]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: random_start(5, 0, torch.Generator()), r"window \(0\)"),
        (lambda: random_start(0, 5, torch.Generator()), r"num_available \(0\)"),
        (lambda: evenly_spaced_starts(5, 1, 0), r"num_clips \(0\)"),
        (lambda: window_indices(5, 1, 5), r"start \(5\) must be an available frame, in \[0, 5\)"),
        (lambda: window_indices(0, 1, 5, stride=0), r"stride \(0\)"),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
