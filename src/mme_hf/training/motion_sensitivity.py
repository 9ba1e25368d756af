"""Whether a classifier uses motion: what it is right about when frames are out of order, or all the same."""

from __future__ import annotations

from collections.abc import Mapping
from math import comb

import torch

from ..wording import percent

# What is done to clips in each order, and what is lost by it.
_LOST_BY = {
    "frozen": ("With each clip frozen at its middle frame", "what changes over a clip"),
    "shuffled": ("With the frames of each clip shuffled", "the order of frames"),
    "reversed": ("With each clip played backwards", "the direction of time"),
}
_CAVEAT = (
    "Such clips were not among those it was trained on, so part of a loss may be that they look strange to it, and not "
    "that something is missing."
)
SIGNIFICANCE = 0.05


def sign_test(num_lost: int, num_won: int) -> float:
    """Return how likely a split at least this uneven is if losing and winning are equally likely: an exact p-value."""
    total = num_lost + num_won
    one_side = sum(comb(total, number) for number in range(min(num_lost, num_won) + 1))
    return min(1.0, 2 * one_side / 2**total)


def motion_sensitivity(guesses: Mapping[str, torch.Tensor], labels: torch.Tensor) -> dict[str, dict[str, float]]:
    """Return how a classifier does on clips whose frames are in another order.

    Args:
        guesses: By frame order ("forwards", "reversed", ...) the class of each video, int64, shape (videos,).
        labels: Right class of each video, shape (videos,).

    Returns:
        By frame order `top1`; and but for "forwards" `same_guess`, the share of videos whose guess stays; `lost` and
        `won`, how many were right only forwards and only in this order; `p_value`, of the sign test on these two.
    """
    forwards = guesses["forwards"] == labels
    result = {"forwards": {"top1": float(forwards.double().mean())}}
    for order, guess in guesses.items():
        if order == "forwards":
            continue
        is_right = guess == labels
        lost, won = int((forwards & ~is_right).sum()), int((is_right & ~forwards).sum())
        result[order] = {
            "top1": float(is_right.double().mean()),
            "same_guess": float((guess == guesses["forwards"]).double().mean()),
            "lost": lost,
            "won": won,
            "p_value": sign_test(lost, won),
        }
    return result


def sensitivity_table(sensitivity: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Return the lines of a table of what `motion_sensitivity` returns."""
    lines = [f"  {'frames':<10} {'right':>7}  {'same guess':>10}  {'lost':>5}  {'won':>5}"]
    for order, found in sensitivity.items():
        line = f"  {order:<10} {percent(found['top1']):>7}"
        if "same_guess" in found:
            line += f"  {percent(found['same_guess']):>10}  {found['lost']:>5}  {found['won']:>5}"
        lines.append(line)
    return lines


def motion_words(sensitivity: Mapping[str, Mapping[str, float]], num_videos: int) -> list[str]:
    """Return sentences on what `motion_sensitivity` shows, and what it does not.

    Args:
        sensitivity: As that function returns it.
        num_videos: That it is of.
    """
    forwards = sensitivity["forwards"]["top1"]
    sentences, has_loss = [], False
    for order, (what, lost) in _LOST_BY.items():
        if order not in sensitivity:
            continue
        found = sensitivity[order]
        counts = f"{found['lost']:.0f} lost, {found['won']:.0f} won, p = {found['p_value']:.2g}"
        right, right_forwards = percent(found["top1"], 0), percent(forwards, 0)
        share = f"{what} it is right on {right} of the videos, forwards on {right_forwards} ({counts})"
        if found["p_value"] >= SIGNIFICANCE:
            sentences.append(f"{share}: {num_videos} videos do not show that it uses {lost}.")
        elif found["lost"] > found["won"]:
            sentences.append(f"{share}: a sign that it uses {lost}.")
            has_loss = True
        else:
            sentences.append(f"{share}: what it makes of {lost} does not help it here.")
    return [*sentences, _CAVEAT] if has_loss else sentences
