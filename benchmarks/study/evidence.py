"""What the pieces found, put together: means and spreads over seeds, and paired comparisons."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

NUM_RESAMPLES = 10_000
# What judges a row beside the probes.
FINETUNED = "fine-tuned"


@dataclass(frozen=True)
class Measured:
    """A figure over seeds.

    Attributes:
        values: One a seed.
    """

    values: tuple[float, ...]

    def __str__(self) -> str:
        """Return percent with the deviation of a sample; "-" where nothing was measured."""
        if not self.values:
            return "-"
        mean = f"{100 * statistics.mean(self.values):.1f}"
        return f"{mean} ± {100 * statistics.stdev(self.values):.1f}" if len(self.values) > 1 else mean


class Evidence:
    """All results of a size.

    Args:
        folder: Of the JSON files.
    """

    def __init__(self, folder: Path):
        self.pretrainings = _by_row_and_seed(folder / "pretraining")
        self.probes = _by_row_and_seed(folder / "probes")
        self.finetunings = [json.loads(path.read_text()) for path in sorted((folder / "finetuning").glob("*.json"))]
        self.rates = [json.loads(path.read_text()) for path in sorted((folder / "rates").glob("*.json"))]
        handmade = [json.loads(path.read_text()) for path in sorted((folder / "handmade").glob("*.json"))]
        self.handmade = {found["set"]: found["handmade"] for found in handmade}
        tracks = [json.loads(path.read_text()) for path in sorted((folder / "tracks").glob("*.json"))]
        self.tracks = {found["set"]: found["tracks"] for found in tracks}
        self.readouts = _by_row_and_seed(folder / "readout")
        self.curves = _by_row_and_seed(folder / "curves")
        self.pictures = _by_row_and_seed(folder / "pictures")
        sets = json.loads((folder / "sets.json").read_text()) if (folder / "sets.json").exists() else {}
        self.groups = {
            name: {part: found[f"{part}_groups"] for part in ("train", "test")} for name, found in sets.items()
        }
        self.chances = {name: 1 / found["num_classes"] for name, found in sets.items()}
        probed = {name for found in self.probes.values() for name in found["probes"]}
        self.sets = sorted(probed | set(self.handmade))

    def probe(self, row: str, probe: str, actions: str, figure: str = "test_top1") -> Measured:
        """Return what a probe was right about, over the seeds of pre-training."""
        keys = [key for key in sorted(self.probes) if key[0] == row]
        found = [self.probes[key]["probes"].get(actions, {}) for key in keys]
        return Measured(tuple(probes[probe]["seeds"][0][figure] for probes in found if probe in probes))

    def curve(self, row: str, actions: str) -> list[tuple[int, float]]:
        """Return (updates, top-1 of the attentive probe) of a row's first seed; random weights are update 0."""
        points = [(0, self.probe("random", "attentive", actions).values[0])] if ("random", 0) in self.probes else []
        for step, found in self.curves[row, 0]["probes"].items():
            if actions in found:
                points.append((int(step), found[actions]["attentive"]["seeds"][0]["test_top1"]))
        return sorted(points)

    def finetuning(self, row: str, actions: str, order: str = "forwards") -> Measured:
        """Return what fine-tuned models were right about, with the frames of clips in some order."""
        return Measured(tuple(one["motion_sensitivity"][order]["top1"] for one in self._finetuned(row, actions)))

    def same_guess(self, row: str, actions: str, order: str) -> Measured:
        """Return how many guesses of fine-tuned models are what they are with the frames of clips in order."""
        return Measured(tuple(one["motion_sensitivity"][order]["same_guess"] for one in self._finetuned(row, actions)))

    def _finetuned(self, row: str, actions: str) -> list[dict[str, Any]]:
        return [one for one in self.finetunings if (one["row"], one["set"]) == (row, actions)]

    def explained(self, row: str) -> dict[str, Measured]:
        """Return the explained share of each target that a row was trained on, on clips of the test videos."""
        shares: dict[str, list[float]] = {}
        for key in sorted(self.pretrainings):
            for target, share in self.pretrainings[key]["explained_shares"].items():
                if key[0] == row:
                    shares.setdefault(target, []).append(share)
        return {target: Measured(tuple(values)) for target, values in shares.items()}

    def readout(self, row: str, actions: str) -> tuple[Measured, Measured]:
        """Return how much motion is read from features, and what it is right about, over the seeds of pre-training."""
        keys = [key for key in sorted(self.readouts) if key[0] == row]
        found = [self.readouts[key]["readout"][actions] for key in keys]
        return (
            Measured(tuple(one["explained"] for one in found)),
            Measured(tuple(one["read"]["test_top1"] for one in found)),
        )

    def is_right(self, row: str, judge: str, actions: str, part: str = "test") -> dict[int, np.ndarray]:
        """Return, by seed, which videos of a set a row is right about, as 1 and 0; nan for those not judged.

        Args:
            row: Its name.
            judge: A probe, or "fine-tuned".
            actions: The set.
            part: "test", or "train": those videos that a probe is chosen by, when they were left out.
        """
        if judge == FINETUNED:
            return {one["seed"]: np.array(one["test_is_right"], float) for one in self._finetuned(row, actions)}
        name = {"test": "test_is_right", "train": "validation_is_right"}[part]
        return {
            seed: np.array(found["probes"][actions][judge]["seeds"][0][name], float)  # None becomes nan
            for (own, seed), found in sorted(self.probes.items())
            if own == row and judge in found["probes"].get(actions, {})
        }

    def shared_seeds(self, row: str, other: str, judge: str, actions: str) -> list[int]:
        """Return the seeds with which both rows have been judged on a set; `judge` is as in `is_right`."""
        ours, theirs = (self.is_right(name, judge, actions) for name in (row, other))
        return sorted(seed for seed in ours if seed in theirs)

    def difference(
        self, row: str, other: str, judge: str, sets: Sequence[str], part: str = "test"
    ) -> tuple[float, float, float] | None:
        """Return by how much a row is better than another, the mean over sets, and its 95 % interval.

        None without a seed that both were run with. `judge` and `part` are as in `is_right`.
        """
        means, draws = [], []
        for number, actions in enumerate(sets):
            ours, theirs = (self.is_right(name, judge, actions, part) for name in (row, other))
            gains = [ours[seed] - theirs[seed] for seed in sorted(ours) if seed in theirs]
            if not gains:
                return None
            means.append(np.nanmean(gains))
            draws.append(bootstrap_means(np.array(gains), self.groups.get(actions, {}).get(part), number))
        if not means:
            return None
        return float(np.mean(means)), *map(float, np.nanquantile(np.mean(draws, axis=0), (0.025, 0.975)))


def bootstrap_means(gains: np.ndarray, groups: Sequence[int] | None = None, number: int = 0) -> np.ndarray:
    """Return means of gains with seeds and groups of videos drawn anew, with replacement, shape (NUM_RESAMPLES,).

    Args:
        gains: 1 where only the first model is right, -1 where only the second is, 0, or nan for a video that was not
            judged; shape (seeds, videos).
        groups: Group of each video, from 0: of one scene or actor, so right or wrong together. Default: each its own.
        number: Of the set. All sets are given the same draws of seeds, as these are the same, and their own of videos.

    Source: Efron, Bootstrap methods: another look at the jackknife (percentile interval), on both factors; whole groups
    as in Davison and Hinkley, Bootstrap Methods and Their Application, section 3.8.
    """
    num_seeds, num_videos = gains.shape
    groups = np.arange(num_videos) if groups is None else np.asarray(groups)
    # How often each seed, and each group, is drawn.
    seeds, drawn = (
        np.random.default_rng(entropy).multinomial(size, np.full(size, 1 / size), NUM_RESAMPLES)
        for entropy, size in ((0, num_seeds), ((1, number), groups.max() + 1))
    )
    videos = drawn[:, groups]
    sums, counts = (((seeds @ values) * videos).sum(1) for values in (np.nan_to_num(gains), ~np.isnan(gains)))
    return sums / counts


def _by_row_and_seed(folder: Path) -> dict[tuple[str, int], dict[str, Any]]:
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))]
    return {(one["row"], one["seed"]): one for one in found}
