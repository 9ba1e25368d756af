"""Convert a published MME or VideoMAE checkpoint: `python examples/convert_checkpoint.py checkpoint.pth`.

What is saved opens with `from_pretrained`: the model, under this package's names, and the processor that goes with it.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError

from mme_hf import REFERENCE_MOTION, MMEConfig, MMEForPreTraining, MMEVideoProcessor
from mme_hf.checkpoints import ConvertedCheckpoint, read_checkpoint
from mme_hf.hub import PushError, create_repository, push_folder
from mme_hf.training import set_up_logging
from mme_hf.training.parsing import mapping_of
from mme_hf.training.setup import check_output_dir
from mme_hf.wording import counted

logger = logging.getLogger("convert_checkpoint")

# Values that a displacement label has for each step: x and y of the 2 x 2 points of a token.
VALUES_PER_STEP = 8


def main() -> None:
    """Run the script; a mistake in the arguments ends it with one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=Path, help="A .pth, .pt or .safetensors file.")
    parser.add_argument("--output_dir", type=Path, help="Default: outputs/ and the checkpoint's name.")
    parser.add_argument(
        "--config_overrides", help='MMEConfig fields that no tensor tells, as JSON: {"image_size": 288}.'
    )
    parser.add_argument("--labels", type=Path, help='Class names in their order, one a line, or JSON {"0": name, ...}.')
    parser.add_argument("--frame_stride", type=int, default=4, help="Raw frames between the frames of a clip.")
    parser.add_argument("--push_to_hub", action="store_true", help="Push the result to the Hub.")
    parser.add_argument("--hub_model_id", help="Repository to push to. Default: the output folder's name.")
    parser.add_argument("--hub_token", help="Token for the Hub. Default: the one you are logged in with.")
    args = parser.parse_args()
    set_up_logging(is_main_process=True)
    try:
        convert(args)
    except (ValueError, OSError, StrictDataclassError, PushError) as error:
        sys.exit(f"convert_checkpoint.py: error: {error}")


def convert(args: argparse.Namespace) -> None:
    """Convert, save and say what was done."""
    output_dir = args.output_dir or Path("outputs") / args.checkpoint.stem
    check_output_dir(output_dir)
    overrides = mapping_of("config_overrides", args.config_overrides)
    if args.labels:
        overrides["id2label"] = label_names(args.labels)
        overrides["label2id"] = {name: number for number, name in overrides["id2label"].items()}
    converted = read_checkpoint(args.checkpoint, **overrides)
    processor = processor_for(converted.model.config, args.frame_stride, isinstance(converted.model, MMEForPreTraining))
    converted.model.save_pretrained(output_dir)
    processor.save_pretrained(output_dir)
    announce(args.checkpoint, converted, output_dir)
    if args.push_to_hub:
        repository = create_repository(args.hub_model_id or output_dir.resolve().name, token=args.hub_token)
        logger.info("pushed to %s", push_folder(output_dir, repository, token=args.hub_token))


def label_names(path: Path) -> dict[int, str]:
    """Return number -> name of the classes in a file.

    Raises:
        ValueError: If it does not name the classes 0, 1, 2, ... each once.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json":
        names = json.loads(text)
        names = dict(enumerate(names)) if isinstance(names, list) else {int(key): name for key, name in names.items()}
    else:
        names = dict(enumerate(line.strip() for line in text.splitlines() if line.strip()))
    if sorted(names) != list(range(len(names))) or len(set(names.values())) != len(names):
        raise ValueError(f"labels ({str(path)!r}) must name the classes 0 to {len(names) - 1}, each once.")
    return dict(sorted(names.items()))


def processor_for(config: MMEConfig, frame_stride: int, predicts_motion: bool) -> MMEVideoProcessor:
    """Return the processor of a published model; for pre-training with the published targets."""
    height, width = config.frame_size
    options: dict[str, Any] = {
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
        "num_frames": config.num_frames,
        "patch_size": config.patch_size,
        "tubelet_size": config.tubelet_size,
        "frame_stride": frame_stride,
    }
    if predicts_motion:
        num_steps = config.motion_targets["position"]["size"] // VALUES_PER_STEP
        options |= {"trajectory_num_steps": num_steps, **REFERENCE_MOTION}
    return MMEVideoProcessor(**options)


def announce(checkpoint: Path, converted: ConvertedCheckpoint, output_dir: Path) -> None:
    """Say what the checkpoint was, and what has become of it."""
    model, config = converted.model, converted.model.config
    num_parameters = sum(parameter.numel() for parameter in model.parameters())
    logger.info("%s: %s", checkpoint, converted.layout)
    logger.info(
        "%s, %.1f M parameters, %d layers of width %d with %d heads, %d frames of %d x %d",
        type(model).__name__,
        num_parameters / 1e6,
        config.num_hidden_layers,
        config.hidden_size,
        config.num_attention_heads,
        config.num_frames,
        *config.frame_size,
    )
    if converted.left_out:
        logger.info("left out: the decoder, %s", counted(len(converted.left_out), "tensor"))
    logger.info("saved in %s: config.json, model.safetensors, video_preprocessor_config.json", output_dir)


if __name__ == "__main__":
    main()
