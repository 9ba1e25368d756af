"""How much of held-out motion a run explains: trains it, then writes figures and table.

    python benchmarks/explained_share.py                 # runs examples/configs/tiny-cpu.yaml, at most 30 minutes
    python benchmarks/explained_share.py --run_dir DIR   # of any run that is there already

Writes benchmarks/results/explained_share.json, which model cards are rendered from, and explained_share.md from it.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
from pathlib import Path

from mme_hf.model_card import TrainingFacts, load_facts

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "explained_share.json"
COMMAND = "accelerate launch examples/pretrain.py --config examples/configs/tiny-cpu.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="Output folder of a finished run; trains one if not given.")
    run_dir = parser.parse_args().run_dir
    if run_dir is None:
        run_dir = ROOT / "outputs" / "pretrain-tiny-cpu"  # as the recipe has it
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        subprocess.run([*launcher, *COMMAND.split()[2:]], cwd=ROOT, check=True)
    write_results(run_dir)


def write_results(run_dir: Path) -> None:
    facts = dataclasses.replace(load_facts(run_dir), repository=f"outputs/{run_dir.name}")
    results = json.loads((run_dir / "eval_results.json").read_text(encoding="utf-8"))
    contents = {"facts": dataclasses.asdict(facts), "results": results}
    RESULT.write_text(json.dumps(contents, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    RESULT.with_suffix(".md").write_text(table(contents), encoding="utf-8")
    print(table(contents))


def table(contents: dict) -> str:
    """Return the page of a file of results."""
    facts = TrainingFacts(**contents["facts"])
    rows = "\n".join(f"| {name} | {share:.3f} |" for name, share in contents["results"]["explained_share"].items())
    return f"""# Explained share of held-out motion

1 - squared error / squared error of always predicting the training mean, over masked tokens that count, on the last
fifth of each sample clip, which training never touches. 0 is no better than the mean.

| target | explained share |
|---|---|
{rows}

{facts.in_words()}

```
{facts.command}
python benchmarks/explained_share.py --run_dir {facts.repository}
```
"""


if __name__ == "__main__":
    main()
