"""Charts of what a classifier says: which classes it takes for which, and what it sees when. Nothing of ours."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Names fit beside a matrix of so many classes, numbers into its cells of so many.
MAX_NAMED_CLASSES, MAX_NUMBERED_CLASSES = 60, 20
NUM_LISTED_MISTAKES = 30
NUM_TIMELINE_LABELS = 8
_DOTS_PER_INCH = 110
_MAX_NAME_LENGTH = 28


def draw_confusion(path: str | Path, counts: np.ndarray, label_names: Sequence[str], *, title: str) -> None:
    """Write a picture of a confusion matrix; of many classes also the list of its most frequent mistakes.

    Args:
        path: File to write.
        counts: Videos of each class (row) taken for each class (column), shape (classes, classes).
        label_names: Class names in label order.
        title: Line at the top.
    """
    num_classes = len(label_names)
    is_named, is_numbered = num_classes <= MAX_NAMED_CLASSES, num_classes <= MAX_NUMBERED_CLASSES
    side = 2.5 + (0.4 if is_numbered else 0.2) * num_classes if is_named else 8
    figure = _figure(side if is_named else side + 5.5, side)
    axes, beside = (figure.subplots(), None) if is_named else figure.subplots(1, 2, width_ratios=(side, 5.5))
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    # The root lets rare mistakes be seen beside a diagonal that holds nearly everything.
    picture = axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set(xlabel="taken for", ylabel="class")
    figure.suptitle(title, fontsize=11)
    if is_named:
        names, size = [_shortened(name) for name in label_names], 9 if is_numbered else 7
        axes.set_xticks(range(num_classes), names, rotation=90, fontsize=size)
        axes.set_yticks(range(num_classes), names, fontsize=size)
    else:
        _list_mistakes(beside, counts, label_names)
    if is_numbered:
        for row, column in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[row, column] > 0.3 else "black"
            axes.text(column, row, str(counts[row, column]), ha="center", va="center", color=color, fontsize=9)
    else:
        bar = figure.colorbar(picture, ax=axes, shrink=0.7, ticks=np.sqrt([0, 0.05, 0.25, 0.5, 1]))
        bar.ax.set_yticklabels(["0", "5 %", "25 %", "50 %", "100 %"])
        bar.set_label("share of the videos of a class")
    _save(figure, path, bbox_inches="tight")


def _list_mistakes(axes, counts: np.ndarray, label_names: Sequence[str]) -> None:
    mistakes = counts * (1 - np.eye(len(counts), dtype=counts.dtype))
    order = np.argsort(-mistakes, axis=None, kind="stable")[:NUM_LISTED_MISTAKES]
    lines = [
        f"{mistakes[row, column]:>4} of {counts[row].sum():<4} {_shortened(label_names[row])} [{row}] as "
        f"{_shortened(label_names[column])} [{column}]"
        for row, column in zip(*np.unravel_index(order, counts.shape), strict=True)
        if mistakes[row, column]
    ]
    axes.set_axis_off()
    axes.set_title("most frequent mistakes", loc="left", fontsize=10)
    axes.text(0, 1, "\n".join(lines) or "none", va="top", fontsize=7.5, family="monospace", transform=axes.transAxes)


def _figure(width: float, height: float) -> Figure:
    # Not pyplot, whose figures stay in memory until someone closes them.
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), dpi=_DOTS_PER_INCH, layout="constrained")


def _shortened(name: str) -> str:
    return name if len(name) <= _MAX_NAME_LENGTH else name[: _MAX_NAME_LENGTH - 3] + "..."


def draw_timeline(
    path: str | Path,
    times: Sequence[tuple[float, float]],
    scores: np.ndarray,
    label_names: Sequence[str],
    *,
    title: str,
    pictures: Sequence[np.ndarray] = (),
) -> None:
    """Write a picture of which labels a video has when: a row for each label, darker where its score is higher.

    The labels that win somewhere are shown, most frequent first, and then those with the highest mean, up to
    `NUM_TIMELINE_LABELS`.

    Args:
        path: File to write.
        times: Where each window begins and ends, in seconds.
        scores: Of each window, shape (windows, classes).
        label_names: Class names in label order.
        title: Line at the top.
        pictures: Frames evenly spaced over the video, each uint8 (H, W, 3), shown above.
    """
    wins = np.bincount(scores.argmax(1), minlength=scores.shape[1])
    rows = sorted(range(len(label_names)), key=lambda label: (-wins[label], -scores[:, label].mean()))
    rows = rows[:NUM_TIMELINE_LABELS]
    height = 1.2 + 0.3 * len(rows)
    if pictures:
        strip = np.concatenate(pictures, axis=1)
        strip_height = 9.0 * strip.shape[0] / strip.shape[1]
        figure = _figure(12, height + strip_height)
        above, axes = figure.subplots(2, 1, height_ratios=(strip_height, height))
        above.imshow(strip, aspect="auto")
        above.set_axis_off()
    else:
        figure = _figure(12, height)
        axes = figure.subplots()
    # Overlapping windows stand for the time around their middle.
    middles = np.array([(start + end) / 2 for start, end in times])
    edges = np.concatenate([[times[0][0]], (middles[1:] + middles[:-1]) / 2, [times[-1][1]]])
    mesh = axes.pcolormesh(edges, np.arange(len(rows) + 1), scores[:, rows].T, cmap="Blues", vmin=0, vmax=1)
    place = {label: row for row, label in enumerate(rows)}
    shown = [(window, place[label]) for window, label in enumerate(scores.argmax(1)) if label in place]
    windows, own_rows = np.array(shown, int).reshape(-1, 2).T
    axes.hlines(own_rows + 0.94, edges[windows], edges[windows + 1], color="darkorange", linewidth=2)
    axes.invert_yaxis()
    axes.set_yticks(np.arange(len(rows)) + 0.5, [_shortened(label_names[row]) for row in rows], fontsize=9)
    axes.xaxis.set_major_formatter(lambda seconds, _: clock(seconds))
    axes.set_xlabel("time; the best label is underlined")
    figure.suptitle(title, fontsize=11)
    figure.colorbar(mesh, ax=axes, label="score", pad=0.01)
    _save(figure, path)


def _save(figure: Figure, path: str | Path, **options: Any) -> None:
    for text in figure.findobj(lambda artist: hasattr(artist, "set_parse_math")):
        text.set_parse_math(False)  # names may have dollar signs
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph .* missing")  # boxes stand for what the font lacks
        figure.savefig(path, **options)


def clock(seconds: float, *, tenths: bool = False) -> str:
    """Return a time as "1:05" or "1:05.0", with hours if there are any; without tenths these are shown if not zero."""
    minutes, rest = divmod(round(10 * seconds), 600)
    shown = f"{rest // 10:02d}" + (f".{rest % 10}" if tenths or rest % 10 else "")
    return f"{minutes // 60}:{minutes % 60:02d}:{shown}" if minutes >= 60 else f"{minutes}:{shown}"
