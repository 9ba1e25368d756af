"""A published checkpoint as a folder to load from: `python examples/convert_checkpoint.py FILE --output_dir DIR`.

    python examples/convert_checkpoint.py mme_k400_finetuned.pth --output_dir outputs/mme-k400 --id2label labels.txt
    python examples/convert_checkpoint.py pretrained.pth --output_dir outputs/mme --config_overrides '{"num_frames": 8}'
    python examples/convert_checkpoint.py mp_rank_00_model_states.pt --output_dir outputs/ssv2 --published finetune-ssv2

It reads the published pre-training checkpoints and classifiers of MME and VideoMAE (.pth, .pt, .safetensors, and
DeepSpeed's mp_rank_00_model_states.pt), and writes the model, the MMEVideoProcessor that makes its inputs, and a model
card. No file says which of the published ones it is: with `--published` the card has its figures, and the processor
its input.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import NoReturn

from huggingface_hub.errors import StrictDataclassError

from mme_hf import REFERENCE_MOTION, MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor
from mme_hf.checkpoints import Conversion, convert_and_report
from mme_hf.hub import PushError, create_repository, push_folder
from mme_hf.model_card import ConversionFacts, local_name, public_command, write_model_card
from mme_hf.published_models import published_model, published_models
from mme_hf.training.checkpointing import save_result
from mme_hf.training.parsing import mapping_of
from mme_hf.training.setup import check_output_dir


class OneLineParser(argparse.ArgumentParser):
    """Reports a mistake as this script reports all others."""

    def error(self, message: str) -> NoReturn:
        """Raise ValueError; argparse's own way prints the usage first."""
        raise ValueError(message)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = OneLineParser(description=__doc__.splitlines()[0], allow_abbrev=False)
    parser.add_argument("checkpoint", metavar="FILE", help="The published file.")
    parser.add_argument("--output_dir", required=True, help="Folder for the model and its processor.")
    parser.add_argument(
        "--config_overrides", help="Fields of MMEConfig as JSON, where the file does not tell: '{\"image_size\": 288}'."
    )
    parser.add_argument(
        "--processor_options", help="Options of MMEVideoProcessor as JSON: '{\"frame_stride\": 2}'. Default: published."
    )
    parser.add_argument(
        "--id2label", help='Names of a classifier\'s classes: JSON, {"0": "name"}, or text with one in each line.'
    )
    parser.add_argument(
        "--published", metavar="NAME", help=f"Which of the authors' checkpoints it is: {', '.join(published_models())}."
    )
    parser.add_argument(
        "--with_remote_code",
        action="store_true",
        help="Save the code beside the model, so that it loads without mme_hf (trust_remote_code=True).",
    )
    parser.add_argument("--push_to_hub", action="store_true", help="Push the folder to the Hub.")
    parser.add_argument("--hub_model_id", help="Repository to push to. Default: the output folder's name.")
    parser.add_argument("--hub_private_repo", action="store_true", help="Push to a private repository.")
    parser.add_argument("--hub_token", help="Token for the Hub. Default: the one you are logged in with.")
    return parser.parse_args(argv)


def read_label_names(path: Path) -> list[str]:
    """Return the names of classes in the order of their numbers, from JSON or from lines of text."""
    if not path.is_file():
        raise ValueError(f"id2label ({str(path)!r}) is not a file.")
    try:
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        by_number = {int(number): str(name) for number, name in json.loads(text).items()}
    except (ValueError, AttributeError) as error:
        raise ValueError(
            f'id2label ({str(path)!r}) is no JSON object of class numbers and names, as in {{"0": "name"}}, and no '
            "UTF-8 text with one name in each line."
        ) from error
    if sorted(by_number) != list(range(len(by_number))):
        raise ValueError(f"id2label ({str(path)!r}) must number its {len(by_number)} classes from 0 without gaps.")
    return [by_number[number] for number in range(len(by_number))]


def set_label_names(config: MMEConfig, names: list[str]) -> None:
    if len(names) != config.num_labels:
        raise ValueError(f"id2label names {len(names)} classes; the checkpoint has {config.num_labels}.")
    if len(set(names)) < len(names):
        twice = sorted({name for name in names if names.count(name) > 1})
        raise ValueError(f"id2label has the names {twice} twice. Each class needs a name of its own.")
    config.id2label = dict(enumerate(names))
    config.label2id = {name: number for number, name in enumerate(names)}


def processor_for(conversion: Conversion, options: dict) -> MMEVideoProcessor:
    """Return the processor whose pixels, and for pre-training labels, the checkpoint was made with."""
    config = conversion.model.config
    height, width = config.frame_size
    fitting = {
        "size": {"shortest_edge": min(height, width)},
        "crop_size": {"height": height, "width": width},
        "num_frames": config.num_frames,
        "patch_size": config.patch_size,
        "tubelet_size": config.tubelet_size,
    }
    is_pretraining = isinstance(conversion.model, MMEForPreTraining)
    processor = MMEVideoProcessor(**{**fitting, **(REFERENCE_MOTION if is_pretraining else {}), **options})
    for name in ("patch_size", "tubelet_size"):
        if getattr(processor, name) != fitting[name]:
            raise ValueError(f"processor_options: {name} ({options[name]}) differs from the model's ({fitting[name]}).")
    if is_pretraining and processor.motion_target_config() != config.motion_targets:
        raise ValueError(
            f"the published targets have the sizes and weights {processor.motion_target_config()}, the checkpoint "
            f"{config.motion_targets}. Give --processor_options that fit, such as trajectory_num_steps."
        )
    return processor


def convert(args: argparse.Namespace) -> tuple[Conversion, MMEVideoProcessor]:
    """Return what the checkpoint was, and the processor of its inputs; nothing is written."""
    overrides = mapping_of("config_overrides", args.config_overrides)
    published = published_model(args.published) if args.published else None
    options = {**(published.processor_options if published else {})}
    options |= mapping_of("processor_options", args.processor_options)
    names = read_label_names(Path(args.id2label)) if args.id2label else None
    check_output_dir(args.output_dir)
    conversion = convert_and_report(args.checkpoint, **overrides)
    if published:
        published.check_fits(conversion.model.config, task=task_of(conversion))
    if names is not None:
        if not isinstance(conversion.model, MMEForVideoClassification):
            raise ValueError(
                f"id2label is for classifiers; {args.checkpoint} is a {conversion.layout.name} checkpoint."
            )
        set_label_names(conversion.model.config, names)
    return conversion, processor_for(conversion, options)


def task_of(conversion: Conversion) -> str:
    tasks = {MMEForPreTraining: "pretraining", MMEForVideoClassification: "classification"}
    return tasks.get(type(conversion.model), "encoder")


def facts_of(args: argparse.Namespace, argv: list[str], conversion: Conversion, repository: str) -> ConversionFacts:
    return ConversionFacts(
        task=task_of(conversion),
        repository=repository,
        layout=conversion.layout.name,
        source=Path(args.checkpoint).name,
        published=args.published,
        left_out=len(conversion.left_out),
        command=f"python examples/convert_checkpoint.py {public_command(argv)}",
    )


def summary(conversion: Conversion, output_dir: str) -> str:
    model, left_out = conversion.model, conversion.left_out
    names = f"{len(left_out)} tensors: {', '.join(left_out)}" if left_out else "nothing"
    lines = [
        f"layout      {conversion.layout.name}",
        f"class       {type(model).__name__}",
        f"parameters  {sum(parameter.numel() for parameter in model.parameters()):,}",
        f"left out    {names}",
        f"written to  {output_dir}",
    ]
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    try:
        argv = sys.argv[1:] if argv is None else argv
        args = parse_arguments(argv)
        conversion, processor = convert(args)
        repository = local_name(args.output_dir)
        hub_options = {"token": args.hub_token, "private": args.hub_private_repo}
        if args.push_to_hub:
            name = args.hub_model_id or Path(args.output_dir).resolve().name
            repository = create_repository(name, **hub_options)
        save_result(conversion.model, processor, args.output_dir, with_remote_code=args.with_remote_code)
        write_model_card(args.output_dir, facts_of(args, argv, conversion, repository))
        print(summary(conversion, args.output_dir))
        if args.push_to_hub:
            print(f"pushed to   {push_folder(args.output_dir, repository, **hub_options)}")
    except (ValueError, TypeError, OSError, PushError, StrictDataclassError) as error:
        sys.exit(f"convert_checkpoint.py: error: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main()
