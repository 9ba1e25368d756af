"""How much of held-out motion a run explains: trains it, then writes the table and the README's picture.

    python benchmarks/explained_share.py                 # runs examples/configs/tiny-cpu.yaml, at most 30 minutes
    python benchmarks/explained_share.py --run_dir DIR   # of any run that is there already

The picture is made from Big Buck Bunny, the one sample clip that may be distributed (CC BY 3.0, Blender Foundation).
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path

from mme_hf import MMEForPreTraining, MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader, load_sample_records
from mme_hf.visualization import draw_motion_prediction, liveliest_clip

ROOT = Path(__file__).parents[1]
COMMAND = "accelerate launch examples/pretrain.py --config examples/configs/tiny-cpu.yaml"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run_dir", type=Path, help="Output folder of a finished run; trains one if not given.")
    run_dir = parser.parse_args().run_dir
    if run_dir is None:
        run_dir = ROOT / "outputs" / "pretrain-tiny-cpu"
        launcher = [sys.executable, "-m", "accelerate.commands.launch"]
        subprocess.run([*launcher, *COMMAND.split()[2:], "--output_dir", str(run_dir)], cwd=ROOT, check=True)
    write_table(run_dir)
    draw(run_dir)


def write_table(run_dir: Path) -> None:
    card = (run_dir / "README.md").read_text(encoding="utf-8")
    table = re.search(r"\| target \| explained share \|.*?(?=\n\n)", card, re.DOTALL).group()
    run = re.search(r"## Run\n\n(.*?)\n\n```", card, re.DOTALL).group(1).replace("\n", " ")
    command = re.search(r"## Run\n.*?```\n(.*?)\n```", card, re.DOTALL).group(1)
    text = f"""# Explained share of held-out motion

1 - squared error / squared error of always predicting the training mean, over masked tokens that count, on the last
fifth of each sample clip, which training never touches. 0 is no better than the mean.

{table}

{run}

```
{command}
python benchmarks/explained_share.py --run_dir outputs/{run_dir.name}
```
"""
    path = ROOT / "benchmarks" / "results" / "explained_share.md"
    path.write_text(text, encoding="utf-8")
    print(text)


def draw(run_dir: Path) -> None:
    model = MMEForPreTraining.from_pretrained(run_dir)
    processor = MMEVideoProcessor.from_pretrained(run_dir)
    records = load_sample_records()
    loader = build_clip_loader(
        records,
        processor,
        batch_size=4,
        sampling=ClipSampling(samples_per_video=4, is_random=False, part="held_out"),
        shuffle=False,
        num_epochs=1,
    )
    batches = [batch for batch in loader if "bigbuckbunny" in batch["sources"][0]]
    inputs, _ = liveliest_clip(batches, model.config.motion_targets)
    path = ROOT / "docs" / "motion.png"
    draw_motion_prediction(
        model, processor, inputs, path, title="Held-out clip of Big Buck Bunny (c) Blender Foundation"
    )
    print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
