"""Tables and plots of the study, made from its results alone: `python benchmarks/study/study_tables.py --size cpu`."""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
from evidence import FINETUNED, Evidence, Measured
from handmade import HANDMADE
from objectives import BY_NAME, ROWS, SIZES

from mme_hf.training.arguments import PretrainingArguments

RESULTS = Path(__file__).resolve().parent / "results"
PROBES = {"linear": "Linear", "attentive": "Attentive", "knn": "kNN"}
ORDERS = ("forwards", "reversed", "shuffled", "frozen")
DEFAULT_GIVES_WAY = 0.05
PIXELS = (BY_NAME["pixels"], BY_NAME["pixels_long"])
_COLOURS = {"random": "tab:gray", "mme": "tab:orange", "mme_long": "tab:orange"}
_HANDMADE_TEXTS = {
    "hog": "by hand: gradients of the middle frame (HOG)",
    "hof": "by hand: directions of flow (HOF)",
    "hog_hof": "by hand: HOG and HOF",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--results_dir", type=Path, default=RESULTS)
    args = parser.parse_args()
    write_all(args.results_dir, args.size)


def write_all(results_dir: Path, size: str) -> None:
    """Write SIZE.md and the plots of a size beside its results."""
    evidence = Evidence(results_dir / size)
    sections = [
        f"# Study, size {size}",
        "Written by `study_tables.py` from the JSON files in this folder: percent of test videos that are right, mean "
        "and standard deviation (of a sample) over seeds, each of which decides weights, pre-training and probe (of "
        "what is made by hand the probe alone). No choice is made on test videos.",
        "## Frozen features",
        *(f"### {words} probe\n\n{probe_table(evidence, probe)}" for probe, words in PROBES.items()),
        "### Motion that is read from features\n\nBy a linear map to the motion of a token, fitted without labels of "
        "classes. Explained: 1 - squared error / squared error of always predicting the training mean, on test clips. "
        "Right: a linear probe that learnt the classes from measured motion in 3 x 3 parts of the frame, given what is "
        "read.\n\n" + readout_table(evidence),
        "## Fine-tuned\n\nWith the frames of clips in order, and not; and the share of guesses that stay the same "
        "where the middle frame of a clip takes the place of all others.\n\n" + finetuning_table(evidence),
        "## Differences\n\nOf the attentive probe and of fine-tuned models, in points, with the 95 % interval of a "
        "paired bootstrap over the seeds that both rows have and over groups of videos, of one scene or actor, where "
        "these are known. Of one seed the interval says nothing of other seeds.\n\n" + difference_table(evidence),
        "## Defaults\n\nRows that give up a default of the package against those that keep it, in points with "
        "intervals as above, the mean over sets: on the training videos that probes are chosen by, when they were left "
        "out, and on test videos. Where both probes are better without a default by "
        f"{100 * DEFAULT_GIVES_WAY:.0f} points or more on the former, it is in doubt, and gives way if both intervals "
        "of several seeds say so. Nothing is chosen by the latter.\n\n" + default_table(evidence),
        "## Motion of held-out clips that is explained\n\n1 - squared error / squared error of always predicting the "
        "training mean, on clips of test videos: "
        f"{PretrainingArguments.max_eval_videos} of them, evenly spread, if there are more.\n\n"
        + explained_table(evidence),
        *(
            f"## Predicted motion, pre-trained to predict {BY_NAME[row].about}\n\n![Frames of a clip that no row was "
            f"trained on, visible patches, true and predicted motion]({found['picture']})"
            for (row, _), found in evidence.pictures.items()
        ),
        "## Learning rates\n\nWhat a short pre-training with seed 0 explains of its targets on a fifth of the training "
        "videos, kept from it; the mean over targets decides.\n\n" + rate_table(evidence),
        "## Cost\n\nOf the quickest seed. Other work ran beside most of these runs, so rows with more seeds look "
        "quicker, and differences between rows say little.\n\n" + cost_table(evidence),
    ]
    path = results_dir / f"{size}.md"
    path.write_text("\n\n".join(sections) + "\n", encoding="utf-8")
    if evidence.probes:
        draw_probes(evidence, results_dir / f"{size}-probes.png")
    if evidence.curves:
        draw_curves(evidence, results_dir / f"{size}-curves.png")
    if evidence.finetunings:
        draw_orders(evidence, results_dir / f"{size}-motion_sensitivity.png")


def table(head: list[str], lines: list[list[object]]) -> str:
    """Return a Markdown table."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def probe_table(evidence: Evidence, probe: str) -> str:
    lines = [
        [BY_NAME[name].about, *(evidence.probe(name, probe, actions) for actions in evidence.sets), num_seeds]
        for name, num_seeds in _rows_and_seeds(evidence.probes)
    ]
    if probe == "linear":
        for name in HANDMADE if evidence.handmade else ():
            found = [evidence.handmade.get(actions, {}).get(name, []) for actions in evidence.sets]
            figures = [Measured(tuple(result["test_top1"] for result in results)) for results in found]
            lines.append([_HANDMADE_TEXTS[name], *figures, max(map(len, found))])
    found = {actions: tracks[probe]["test_top1"] for actions, tracks in evidence.tracks.items() if probe in tracks}
    if found:
        figures = [Measured((found[actions],) if actions in found else ()) for actions in evidence.sets]
        lines.append(["no model: the measured motion of all tokens", *figures, 1])
    lines += _chance(evidence)
    return table(["pre-trained to predict", *evidence.sets, "seeds"], lines)


def _chance(evidence: Evidence) -> list[list[object]]:
    """Return the last line of a table: what is right by chance, where classes are drawn alike."""
    chances = [Measured((evidence.chances[name],)) if name in evidence.chances else "-" for name in evidence.sets]
    return [["chance", *chances, "-"]] if evidence.chances else []


def readout_table(evidence: Evidence) -> str:
    names = [row.name for row in ROWS if any(name == row.name for name, _ in evidence.readouts)]
    lines = []
    for name in names:
        found = [evidence.readout(name, actions) for actions in evidence.sets]
        lines.append([BY_NAME[name].about, *(cell for pair in found for cell in pair), len(found[0][0].values)])
    if evidence.readouts:
        some = next(iter(evidence.readouts.values()))["readout"]
        right = [Measured((some[actions]["measured"]["test_top1"],)) for actions in evidence.sets]
        lines.append(["no model: the measured motion", *(cell for one in right for cell in (Measured((1.0,)), one)), 1])
    head = [words for actions in evidence.sets for words in (f"{actions} explained", f"{actions} right")]
    return table(["pre-trained to predict", *head, "seeds"], lines)


def finetuning_table(evidence: Evidence) -> str:
    names = [row.name for row in ROWS if any(found["row"] == row.name for found in evidence.finetunings)]
    lines = [
        [
            BY_NAME[name].about,
            actions,
            *(evidence.finetuning(name, actions, order) for order in ORDERS),
            evidence.same_guess(name, actions, "frozen"),
            len(evidence.finetuning(name, actions).values),
        ]
        for name in names
        for actions in evidence.sets
    ]
    return table(["pre-trained to predict", "set", *ORDERS, "same guess, frozen", "seeds"], lines)


def difference_table(evidence: Evidence) -> str:
    lines = []
    for judge in ("attentive", FINETUNED):
        for name, rival in ((row.name, rival) for row in ROWS for rival in _rivals(row.name)):
            cells = [evidence.difference(name, rival, judge, [actions]) for actions in evidence.sets]
            if not any(cells):
                continue
            texts = map(_points, cells)
            num_seeds = max(len(evidence.shared_seeds(name, rival, judge, actions)) for actions in evidence.sets)
            lines.append([judge, BY_NAME[name].about, BY_NAME[rival].about, *texts, num_seeds])
    return table(["judged by", "pre-trained to predict", "against", *evidence.sets, "seeds"], lines)


def _points(difference: tuple[float, float, float] | None) -> str:
    """Return a difference and its interval in points."""
    if difference is None:
        return "-"
    mean, low, high = (100 * value for value in difference)
    return f"{mean:+.1f} ({low:+.1f} to {high:+.1f})"


def _rivals(name: str) -> list[str]:
    """Return the rows that a row is compared with: pixels, as long as it is, random weights, and the defaults."""
    if name == "random":
        return []
    pixels = next(one.name for one in PIXELS if one.times_as_long == BY_NAME[name].times_as_long)
    if name == pixels:
        return ["random"]
    return [pixels, "random"] if name == "mme" else [pixels, "random", "mme"]


def default_table(evidence: Evidence) -> str:
    figures = [(part, probe) for part in ("train", "test") for probe in ("linear", "attentive")]
    lines = []
    for row in (row for row in ROWS if row.default):
        gains = [evidence.difference(row.name, row.base, probe, evidence.sets, part) for part, probe in figures]
        if None in gains:
            lines.append([row.default, row.about, *["-"] * len(gains), 0, "not run"])
            continue
        num_seeds = len(evidence.shared_seeds(row.name, row.base, "attentive", evidence.sets[0]))
        verdict = "stands"
        if min(mean for mean, _, _ in gains[:2]) >= DEFAULT_GIVES_WAY:
            is_shown = num_seeds > 1 and min(low for _, low, _ in gains[:2]) > 0
            verdict = "gives way" if is_shown else "in doubt"
        lines.append([row.default, row.about, *map(_points, gains), num_seeds, verdict])
    head = [f"{probe}, {part}" for part, probe in figures]
    return table(["default", "instead", *head, "seeds", "the default"], lines)


def explained_table(evidence: Evidence) -> str:
    lines = [
        [BY_NAME[name].about, target, share]
        for name, _ in _rows_and_seeds(evidence.pretrainings)
        for target, share in evidence.explained(name).items()
    ]
    return table(["pre-trained to predict", "target", "explained, percent"], lines)


def rate_table(evidence: Evidence) -> str:
    ordered = sorted(evidence.rates, key=lambda found: (list(BY_NAME).index(found["row"]), found["learning_rate"]))
    lines = [
        [
            BY_NAME[found["row"]].about,
            f"{found['learning_rate']:g}",
            ", ".join(f"{target} {100 * share:.1f}" for target, share in found["explained_shares"].items()),
            f"{100 * found['score']:.1f}",
        ]
        for found in ordered
    ]
    return table(["pre-trained to predict", "learning rate for 256 clips", "explained, percent", "mean"], lines)


def cost_table(evidence: Evidence) -> str:
    lines = []
    for name, _ in _rows_and_seeds(evidence.pretrainings):
        runs = [one["facts"] for (row, _), one in evidence.pretrainings.items() if row == name]
        best = min(runs, key=lambda run: run["seconds"])
        num_clips, seconds = best["num_steps"] * best["global_batch_size"], best["seconds"]
        lines.append([BY_NAME[name].about, f"{num_clips / seconds:.1f}", f"{seconds / 60:.1f}", best["machine"]])
    return table(["pre-trained to predict", "clips/s", "minutes", "machine"], lines)


def _rows_and_seeds(results: Mapping[tuple[str, int], Any]) -> list[tuple[str, int]]:
    """Return the rows that have results, in order, and of how many seeds."""
    counts = {row.name: sum(name == row.name for name, _ in results) for row in ROWS}
    return [(name, count) for name, count in counts.items() if count]


def draw_probes(evidence: Evidence, path: Path) -> None:
    """Draw the attentive probe of every row as bars, the spread over seeds as lines."""
    names = [name for name, _ in _rows_and_seeds(evidence.probes)]
    figure, axes = plt.subplots(
        1, len(evidence.sets), figsize=(4 * len(evidence.sets), 0.4 * len(names) + 1.4), sharey=True
    )
    for axis, actions in zip([axes] if len(evidence.sets) == 1 else axes, evidence.sets, strict=True):
        found = [evidence.probe(name, "attentive", actions) for name in names]
        means = [100 * statistics.mean(one.values) for one in found]
        spreads = [100 * statistics.stdev(one.values) if len(one.values) > 1 else 0 for one in found]
        colours = [_COLOURS.get(name, "tab:blue") for name in names]
        axis.barh(range(len(names)), means, xerr=spreads, color=colours, height=0.7)
        if actions in evidence.chances:
            axis.axvline(100 * evidence.chances[actions], color="black", linestyle=":", linewidth=1)
        axis.set_yticks(range(len(names)), [name.replace("_", " ") for name in names])
        axis.invert_yaxis()
        axis.set_title(actions.replace("_", " "))
        axis.set_xlabel("top-1 of the attentive probe, %; dotted: chance")
        axis.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_curves(evidence: Evidence, path: Path) -> None:
    """Draw the attentive probe over the updates of pre-training."""
    figure, axes = plt.subplots(1, len(evidence.sets), figsize=(4 * len(evidence.sets), 3))
    for axis, actions in zip([axes] if len(evidence.sets) == 1 else axes, evidence.sets, strict=True):
        for name, _ in sorted(evidence.curves):
            steps, shares = zip(*evidence.curve(name, actions), strict=True)
            colour = _COLOURS.get(name, "tab:blue")
            axis.plot(steps, [100 * share for share in shares], marker="o", color=colour, label=name.replace("_", " "))
        if actions in evidence.chances:
            axis.axhline(100 * evidence.chances[actions], color="black", linestyle=":", linewidth=1, label="chance")
        axis.set_title(actions.replace("_", " "))
        axis.set_xlabel("updates of pre-training, seed 0")
        axis.spines[["top", "right"]].set_visible(False)
    (axes if len(evidence.sets) == 1 else axes[0]).set_ylabel("top-1 of the attentive probe, %")
    axis.legend(frameon=False)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def draw_orders(evidence: Evidence, path: Path) -> None:
    """Draw what fine-tuned models are right about with the frames of clips in order, and not."""
    names = [row.name for row in ROWS if any(found["row"] == row.name for found in evidence.finetunings)]
    figure, axes = plt.subplots(1, len(evidence.sets), figsize=(4 * len(evidence.sets), 3), sharey=True)
    for axis, actions in zip([axes] if len(evidence.sets) == 1 else axes, evidence.sets, strict=True):
        for name in names:
            found = [evidence.finetuning(name, actions, order) for order in ORDERS]
            values = [100 * statistics.mean(one.values) if one.values else float("nan") for one in found]
            axis.plot(ORDERS, values, marker="o", label=name.replace("_", " "))
        if actions in evidence.chances:
            axis.axhline(100 * evidence.chances[actions], color="black", linestyle=":", linewidth=1, label="chance")
        axis.set_title(actions.replace("_", " "))
        axis.spines[["top", "right"]].set_visible(False)
    (axes if len(evidence.sets) == 1 else axes[0]).set_ylabel("top-1 after fine-tuning, %")
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=6, frameon=False)
    figure.tight_layout(rect=(0, 0.1, 1, 1))
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    main()
