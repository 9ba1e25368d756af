"""Draw what a pre-trained model predicts of the one sample clip that may be distributed.

    python benchmarks/study/draw_prediction.py RUN_DIR PICTURE.png

The film is Big Buck Bunny (CC BY 3.0, Blender Foundation), which the study never trains on: of the clips of its last
fifth the one that moves most.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from mme_hf import MMEForPreTraining, MMEVideoProcessor
from mme_hf.data import ClipSampling, build_clip_loader, load_sample_records
from mme_hf.visualization import draw_motion_prediction, liveliest_clip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dir", type=Path, help="Output folder of pretrain.py.")
    parser.add_argument("picture", type=Path, help="PNG to write.")
    parser.add_argument("--what", default="A clip", help="First words of the title.")
    args = parser.parse_args()
    draw_prediction(args.run_dir, args.picture, args.what)


def draw_prediction(run_dir: Path, picture: Path, what: str) -> None:
    """Draw frames, visible patches, true and predicted motion of the clip into a PNG."""
    model = MMEForPreTraining.from_pretrained(run_dir)
    processor = MMEVideoProcessor.from_pretrained(run_dir)
    loader = build_clip_loader(
        load_sample_records(),
        processor,
        batch_size=4,
        sampling=ClipSampling(samples_per_video=4, is_random=False, part="held_out"),
        shuffle=False,
        num_epochs=1,
    )
    batches = [batch for batch in loader if "bigbuckbunny" in batch["sources"][0]]
    inputs, _ = liveliest_clip(batches, model.config.motion_targets)
    title = f"{what} of Big Buck Bunny (c) Blender Foundation"
    draw_motion_prediction(model, processor, inputs, picture, title=title)
    print(f"wrote {picture}")


if __name__ == "__main__":
    main()
