"""Does predicting motion teach a video transformer more about time than rebuilding pixels? One command.

    python benchmarks/study/study.py --data ACTIONS --size cpu

ACTIONS holds sets of class folders, SET/train/CLASS/*.mp4 and SET/test/CLASS/*.mp4, and may hold manifest.csv with the
columns path, group: groups (scene, actor) are never divided between what is trained on and what is chosen by. The
training parts of all sets are pre-trained on together, without labels; every set's test part is judged by, and nothing
is chosen on it. The real scripts are run (`examples/pretrain.py`, `probe.py`, `finetune.py`, `evaluate.py`).

The work is a list of pieces. What a piece found is a JSON file in benchmarks/study/results/SIZE, and a piece that has
one is not run again; one that was stopped goes on from its last checkpoint in --work_dir. Results of other videos, or
of other settings, are an error: give --results_dir to begin anew. `--minutes 60` begins no piece after an hour,
`--rows`, `--num_seeds` and `--kinds` choose some of them. Tables and plots are made anew after every piece.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from action_sets import ActionSet, facts_of, read_lines, thinned, write_manifests
from handmade import NUM_HANDMADE_SEEDS, judge_handmade
from measured_tracks import judge_tracks
from motion_readout import judge_readout
from objectives import BY_NAME, FRAME_STRIDE, ROWS, SIZES, Row
from pieces import Piece, begin, check_configuration, is_of
from study_tables import write_all

from mme_hf import MMEConfig, MMEModel, preset_config
from mme_hf.model_card_facts import current_machine, current_versions
from mme_hf.training.optimization import check_optimizer
from mme_hf.training.probes import PROBES, ProbeProtocol

STUDY = Path(__file__).resolve().parent
REPOSITORY = STUDY.parents[1]
# Of pieces: folders of the results.
KINDS = ("handmade", "tracks", "rates", "pretraining", "probes", "readout", "finetuning", "curves", "pictures")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="Folder of action sets.")
    parser.add_argument("--size", choices=SIZES, default="cpu")
    parser.add_argument("--rows", nargs="+", choices=BY_NAME, default=list(BY_NAME), help="Default: all, in order.")
    parser.add_argument("--num_seeds", type=int, default=3, help="Of the rows that are run with several.")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=KINDS, help="Of pieces. Default: all.")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="Begin no piece after so many.")
    parser.add_argument("--work_dir", type=Path, default=REPOSITORY / "outputs" / "study", help="Weights, features.")
    parser.add_argument("--results_dir", type=Path, default=STUDY / "results")
    Study(parser.parse_args()).run()


class MissingWeightsError(Exception):
    """A piece needs weights that are not in the working folder."""


class Study:
    """All pieces of one size, in the order in which they are worth most."""

    def __init__(self, args: argparse.Namespace):
        self.args = args
        self.size = SIZES[args.size]
        try:
            check_optimizer(self.size.pretraining["optimizer"])
        except ValueError as error:
            sys.exit(f"study.py: error: {error}")
        self.results_dir = args.results_dir / args.size
        self.work_dir = args.work_dir.resolve() / args.size
        self.sets, self.all = write_manifests(args.data.resolve(), args.work_dir.resolve() / "data")
        self._check_sets()
        self.deadline = time.monotonic() + 60 * args.minutes

    def run(self) -> None:
        """Run every piece that has no result yet, while there is time; fail at the end if one could not be run."""
        left_out = []
        for piece in self.pieces():
            name, path = piece.name, self.results_dir / f"{piece.name}.json"
            if path.exists():
                check_configuration(path, piece.configuration)
                continue
            if time.monotonic() > self.deadline:
                print("out of time; the same command goes on from here")
                break
            print(f"{name} ...", flush=True)
            started = time.perf_counter()
            try:
                computed = piece.compute()
            except MissingWeightsError as error:  # made on another machine, maybe; the rest can still be done
                print(f"{name}: left out, {error}", flush=True)
                left_out.append(name)
                continue
            found = {
                **computed,
                "configuration": piece.configuration,
                "seconds": round(time.perf_counter() - started, 1),
                "machine": current_machine(),
                "versions": current_versions(),
            }
            path.parent.mkdir(parents=True, exist_ok=True)
            unfinished = path.with_suffix(".part")
            unfinished.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
            unfinished.rename(path)
            write_all(self.args.results_dir, self.args.size)
            print(f"{name}: {found['seconds'] / 60:.1f} min", flush=True)
        if left_out:
            sys.exit(f"left out for want of weights: {', '.join(left_out)}")

    def _check_sets(self) -> None:
        """Write which videos the results are of, and what tables need of them.

        Raises:
            SystemExit: If there are results of other videos.
        """
        facts, path = {actions.name: facts_of(actions) for actions in self.sets}, self.results_dir / "sets.json"
        has_results = any(self.results_dir.glob("*/*.json"))
        if has_results and path.exists() and (known := json.loads(path.read_text())) != facts:
            differing = sorted(name for name in {*known, *facts} if known.get(name) != facts.get(name))
            sys.exit(
                f"study.py: error: the results in {self.results_dir} are of other videos of {', '.join(differing)}. "
                "Give --results_dir a folder of their own."
            )
        self.results_dir.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(facts) + "\n", encoding="utf-8")
        self.videos = {name: own["videos"] for name, own in facts.items()}

    def pieces(self) -> Iterator[Piece]:
        """Yield each piece of the kinds asked for: rates, the rows that have all seeds, seed by seed, then the rest."""
        rows = [BY_NAME[name] for name in self.args.rows]
        for actions in self.sets:
            yield from self._pieces_without_model(actions)
        for row in (row for row in ROWS if row.flags is not None and row.rate_of is None):
            if "rates" in self.args.kinds and any(row.name in (chosen.name, chosen.rate_of) for chosen in rows):
                for rate in self.rates_to_try(row):
                    compute = partial(self.judge_rate, row, rate)
                    yield Piece(f"rates/{row.name}-{rate:g}", self.configuration_of_rate(row, rate), compute)
        all_seeds = range(self.args.num_seeds)
        yield from self._pieces_of([row for row in rows if row.has_all_seeds], all_seeds)
        yield from self._pieces_of([row for row in rows if not row.has_all_seeds], all_seeds[:1])
        if "readout" in self.args.kinds:
            for seed in all_seeds:
                for row in (row for row in rows if row.has_all_seeds or seed == 0):
                    configuration = self.of_weights(row, seed) | self.probing()
                    configuration |= {"num_views": self.size.num_readout_views, "num_crops": 1}
                    yield Piece(f"readout/{row.name}-{seed}", configuration, partial(self.judge_readout, row, seed))
        if "curves" in self.args.kinds:
            for row in (row for row in rows if row.has_curve):
                configuration = self.of_weights(row, 0) | self.probing()
                yield Piece(f"curves/{row.name}-0", configuration, partial(self.probe_checkpoints, row))
        if "pictures" in self.args.kinds:
            for row in (row for row in rows if row.is_drawn):
                yield Piece(f"pictures/{row.name}-0", self.of_weights(row, 0), partial(self.draw, row))

    def _pieces_without_model(self, actions: ActionSet) -> Iterator[Piece]:
        protocol = asdict(ProbeProtocol())
        if "handmade" in self.args.kinds:
            configuration = {"protocol": protocol, "num_seeds": NUM_HANDMADE_SEEDS}
            yield Piece(f"handmade/{actions.name}", configuration, partial(judge_handmade, actions))
        if "tracks" in self.args.kinds:
            yield Piece(f"tracks/{actions.name}", self.probing(), partial(self.judge_tracks, actions))

    def _pieces_of(self, rows: list[Row], seeds: range) -> Iterator[Piece]:
        """Yield the pre-trainings and the probes of all rows, seed by seed, then the fine-tunings."""
        for seed in seeds:
            for row in rows:
                if row.flags is not None and "pretraining" in self.args.kinds:
                    configuration = self.size.configuration(row, seed, self.learning_rate(row))
                    compute = partial(self.pretrain_and_judge, row, seed)
                    yield Piece(f"pretraining/{row.name}-{seed}", configuration, compute)
                if "probes" in self.args.kinds:
                    configuration = self.of_weights(row, seed) | self.probing()
                    yield Piece(f"probes/{row.name}-{seed}", configuration, partial(self.probe_row, row, seed))
        if "finetuning" in self.args.kinds:
            for seed in seeds[: self.size.num_finetuning_seeds]:
                for row in rows:
                    configuration = self.of_weights(row, seed) | self.size.finetuning | self.views()
                    for actions in self.sets:
                        name = f"finetuning/{row.name}-{seed}-{actions.name}"
                        yield Piece(name, configuration, partial(self.finetune, row, seed, actions))

    def of_weights(self, row: Row, seed: int) -> dict[str, Any]:
        """Return how the weights were made that a piece is of."""
        if row.flags is None:
            return {"pretraining": None}
        return {"pretraining": self.size.configuration(row, seed, self.learning_rate(row))}

    def settings(self, configuration: Mapping[str, Any]) -> dict[str, Any]:
        """Return what a working folder depends on: a configuration, and the videos."""
        return {"configuration": configuration, "videos": self.videos}

    def views(self) -> dict[str, int]:
        """Return which clips of a video are judged by."""
        return {"num_views": self.size.num_views, "num_crops": self.size.num_crops}

    def probing(self) -> dict[str, Any]:
        """Return what probes of clips depend on beside weights."""
        return {
            "protocol": asdict(ProbeProtocol()),
            "frame_stride": FRAME_STRIDE,
            **self.views(),
            **self.encoder_flags(),
        }

    def judge_tracks(self, actions: ActionSet) -> dict[str, Any]:
        """Return what probes of the measured motion are right about, in clips like those of the models."""
        return judge_tracks(actions, self.size.num_views, self.size.num_crops, self.encoder_config())

    def encoder_flags(self) -> dict[str, Any]:
        """Return the flags of all pre-trainings that say how large encoder and clips are."""
        names = ("preset", "image_size", "num_frames")
        return {name: self.size.pretraining[name] for name in names if name in self.size.pretraining}

    def encoder_config(self) -> MMEConfig:
        """Return the configuration that these flags give."""
        sizes = self.encoder_flags()
        return preset_config(sizes.pop("preset"), **sizes)

    def judge_rate(self, row: Row, rate: float) -> dict[str, Any]:
        """Return how much of its targets a short pre-training explains, on training videos that it is kept from."""
        folder = self.work_dir / "rates" / f"{row.name}-{rate:g}"
        self.pretrain(row, 0, rate, folder, ("fit", "validation"), self.size.shortened())
        shares = json.loads((folder / "eval_results.json").read_text())["explained_share"]
        return {
            "row": row.name,
            "learning_rate": rate,
            "explained_shares": shares,
            "score": statistics.mean(shares.values()),
        }

    def learning_rate(self, row: Row) -> float:
        """Return the rate that left most of a row's targets explained, the mean over targets."""
        name = row.rate_of or row.name
        tried = list(self.rates_to_try(BY_NAME[name]))
        scores = self.scores_of_rates(BY_NAME[name], tried)
        if len(scores) < len(tried):
            sys.exit(f"not all learning rates of {name} were tried yet: run its pieces of the kind rates before.")
        return max(scores, key=scores.get)

    def scores_of_rates(self, row: Row, rates: Iterable[float]) -> dict[float, float]:
        """Return, for those of the learning rates that were tried, how much of a row's targets they left explained."""
        paths = {rate: self.results_dir / "rates" / f"{row.name}-{rate:g}.json" for rate in rates}
        found = {rate: json.loads(path.read_text()) for rate, path in paths.items() if path.exists()}
        for rate in found:
            check_configuration(paths[rate], self.configuration_of_rate(row, rate))
        return {rate: one["score"] for rate, one in found.items()}

    def configuration_of_rate(self, row: Row, rate: float) -> dict[str, Any]:
        """Return all flags of the short pre-training that a rate is judged by, but those that name files."""
        return self.size.configuration(row, 0, rate) | self.size.shortened()

    def rates_to_try(self, row: Row) -> Iterator[float]:
        """Yield the learning rates of the size, then one beyond them if the best of them is the first or the last."""
        rates = self.size.learning_rates
        yield from rates
        scores = self.scores_of_rates(row, rates)
        if len(rates) > 1 and len(scores) == len(rates):
            best = max(rates, key=scores.get)
            if best in (rates[0], rates[-1]):
                yield best / 2 if best == rates[0] else best * 2

    def pretrain_and_judge(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what a pre-training was, and what it explains of its targets on the test videos."""
        folder = self.work_dir / "pretraining" / f"{row.name}-{seed}"
        rate = self.learning_rate(row)
        self.pretrain(row, seed, rate, folder)
        facts, results = (json.loads((folder / name).read_text()) for name in ("model_card.json", "eval_results.json"))
        return {
            "row": row.name,
            "seed": seed,
            "facts": facts,
            "motion_targets": MMEConfig.from_pretrained(folder).motion_targets,
            "explained_shares": results["explained_share"],
        }

    def probe_row(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what all probes make of a row's features on every set."""
        if row.flags is None:
            words = [word for name, value in self.encoder_flags().items() for word in (f"--{name}", str(value))]
        else:
            words = ["--model_name_or_path", str(self.weights_of(row, seed))]
        folder = self.work_dir / "probes" / f"{row.name}-{seed}"
        return {"row": row.name, "seed": seed, "probes": self.probe(words, folder, seed, list(PROBES))}

    def weights_of(self, row: Row, seed: int) -> Path:
        """Return the folder of a pre-trained model.

        Raises:
            MissingWeightsError: If it has none.
        """
        folder = self.work_dir / "pretraining" / f"{row.name}-{seed}"
        is_there = is_of(folder, self.settings(self.of_weights(row, seed)))
        if not is_there or not (folder / "model.safetensors").exists():
            # Not the pre-training's alone: results of two sets of weights would stand side by side.
            patterns = (f"*/{row.name}-{seed}.json", f"finetuning/{row.name}-{seed}-*.json")
            results = sorted(path for pattern in patterns for path in self.results_dir.glob(pattern))
            names = " ".join(path.relative_to(self.results_dir).as_posix() for path in results)
            raise MissingWeightsError(
                f"there are no weights of these settings in {folder}: to train them again, remove {names}"
            )
        return folder

    def judge_readout(self, row: Row, seed: int) -> dict[str, Any]:
        """Return what a linear map reads of the motion in all sets from a row's features."""
        if row.flags is None:
            torch.manual_seed(seed)
            model = MMEModel(self.encoder_config())
        else:
            model = MMEModel.from_pretrained(self.weights_of(row, seed))
        model, num_views = model.eval(), self.size.num_readout_views
        found = {actions.name: judge_readout(actions, model, num_views, seed) for actions in self.sets}
        return {"row": row.name, "seed": seed, "readout": found}

    def probe_checkpoints(self, row: Row) -> dict[str, Any]:
        """Return what the attentive probe makes of the checkpoints of a row's first seed."""
        folder = self.weights_of(row, 0)
        num_steps, every = (self.size.lengths(row)[name] for name in ("max_train_steps", "checkpointing_steps"))
        found = {}
        for step in range(every, num_steps + 1, every):
            weights, model = folder / f"checkpoint-{step}" / "model.safetensors", folder / f"model-{step}"
            if not weights.exists():
                raise MissingWeightsError(f"there is no {weights}; empty its folder to train it again")
            model.mkdir(exist_ok=True)
            for path in (weights, *folder.glob("*config.json")):
                shutil.copy(path, model)
            found[step] = self.probe(["--model_name_or_path", str(model)], model, 0, ["attentive"])
        return {"row": row.name, "seed": 0, "num_steps": num_steps, "probes": found}

    def draw(self, row: Row) -> dict[str, Any]:
        """Draw what a row's first seed predicts of a clip that it has not seen."""
        folder = self.weights_of(row, 0)
        picture = self.args.results_dir.resolve() / f"{self.args.size}-predicted-by-{row.name}.png"
        words = [str(folder), str(picture), "--what", f"What {row.name} predicts of a clip"]
        call("benchmarks/study/draw_prediction.py", {}, folder / "draw.log", words)
        return {"row": row.name, "seed": 0, "picture": picture.name}

    def pretrain(
        self,
        row: Row,
        seed: int,
        rate: float,
        folder: Path,
        parts: tuple[str, str] = ("train", "test"),
        changes: Mapping[str, Any] | None = None,
    ) -> None:
        """Pre-train into `folder` on one part, from the last checkpoint if there is one, and judge by the other."""
        train, held_out = (self.all[part] for part in parts)
        if row.frame_step > 1:
            train, held_out = (thinned(manifest, row.frame_step) for manifest in (train, held_out))
        configuration = {**self.size.configuration(row, seed, rate), **(changes or {})}
        begin(folder, self.settings({"pretraining": configuration}))
        flags = {**configuration, "train_manifest": train}
        flags |= {"validation_manifest": held_out, "output_dir": folder, "resume_from_checkpoint": "latest"}
        call("examples/pretrain.py", flags, folder / "pretrain.log")

    def probe(self, model: list[str], folder: Path, seed: int, probes: list[str]) -> dict[str, Any]:
        """Return, by set, what the probes of an encoder came to."""
        found = {}
        for actions in self.sets:
            output = folder / f"probe-{actions.name}"
            flags = {"train_manifest": actions.train, "validation_manifest": actions.test, "output_dir": output}
            flags |= {"seed": seed, "num_seeds": 1, "frame_stride": FRAME_STRIDE}
            # No tokens are averaged: small things move too.
            flags |= {"num_train_views": self.size.num_views, "num_train_crops": self.size.num_crops}
            flags |= {"num_eval_segments": self.size.num_views, "num_eval_crops": self.size.num_crops}
            flags |= {"max_tokens": self.encoder_config().num_tokens}
            call("examples/probe.py", flags, output / "probe.log", [*model, "--probes", *probes])
            found[actions.name] = json.loads((output / "results.json").read_text())["probes"]
        return found

    def finetune(self, row: Row, seed: int, actions: ActionSet) -> dict[str, Any]:
        """Return what the last weights of a fine-tuning are right about, frames in order and not."""
        folder = self.work_dir / "finetuning" / f"{row.name}-{seed}-{actions.name}"
        begin(folder, self.settings(self.of_weights(row, seed) | self.size.finetuning))
        flags = {**self.size.finetuning, "train_manifest": actions.train, "output_dir": folder, "seed": seed}
        flags |= {"checkpointing_steps": 100, "resume_from_checkpoint": "latest"}
        if row.flags is not None:
            flags["model_name_or_path"] = start = self.weights_of(row, seed)
            # A resumed run would go on from other weights than those that were trained since.
            if folder.exists() and folder.stat().st_mtime < (start / "model.safetensors").stat().st_mtime:
                shutil.rmtree(folder)
        call("examples/finetune.py", flags, folder / "finetune.log")
        judged = folder / "evaluation"
        flags = {"model_name_or_path": folder, "validation_manifest": actions.test, "output_dir": judged}
        flags |= {"num_eval_segments": self.size.num_views, "num_eval_crops": self.size.num_crops}
        flags |= {"motion_sensitivity": "true"}
        call("examples/evaluate.py", flags, judged / "evaluate.log")
        report = json.loads((judged / "eval_results.json").read_text())
        correct = [line["label"] == line["prediction"] for line in read_lines(judged / "predictions.csv")]
        kept = ("top1", "top1_interval", "mean_class_accuracy", "motion_sensitivity", "num_videos")
        return {
            "row": row.name,
            "seed": seed,
            "set": actions.name,
            **{name: report[name] for name in kept},
            "test_is_right": correct,
        }


def call(script: str, flags: Mapping[str, Any], log: Path, words: list[str] | None = None) -> None:
    """Run a script to its end; what it prints is in `log`, whose end is shown if it fails."""
    command = [sys.executable, str(REPOSITORY / script), *(words or [])]
    for name, value in flags.items():
        command += [f"--{name}", str(value)]
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, "a", encoding="utf-8") as file:
        code = subprocess.run(command, cwd=REPOSITORY, stdout=file, stderr=subprocess.STDOUT, check=False).returncode
    if code:
        sys.exit(f"{script} failed, see {log}:\n" + log.read_text(encoding="utf-8")[-3000:])


if __name__ == "__main__":
    main()
