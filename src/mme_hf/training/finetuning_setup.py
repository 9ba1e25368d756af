"""From arguments to the things a fine-tuning run works with: videos, classifier, what of it is trained."""

from __future__ import annotations

import logging
import re
from dataclasses import fields
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from transformers import PretrainedConfig

from ..configuration_mme import MMEConfig
from ..data import VideoRecords
from ..modeling_mme import CLASSIFIER_STD, MMEForVideoClassification
from ..names_mme import check_names
from ..presets import preset_config
from ..video_processing_mme import MMEVideoProcessor
from ..wording import counted
from .labelled_data import check_every_video_is_labelled, label_mappings, new_processor, processor_of
from .mixing import MixedInputs
from .model_names import NOT_LOADED, check_model_name
from .progress import announce_run
from .setup import input_size, load_training_records, load_validation_records

if TYPE_CHECKING:
    from .finetuning_arguments import FinetuningArguments

logger = logging.getLogger(__name__)

LORA_MODULES = ("q_proj", "v_proj")
_HEAD = ("pooler.", "fc_norm.", "classifier.")
# A classifier that averages tokens has no LayerNorm before its pooling.
_MAY_BE_NEW = (*_HEAD, "mme.layernorm.")
_SAYS_A_DIRECTION = re.compile(r"left|right|clockwise", re.IGNORECASE)
# What decides the batches, the model, or is brought back by the saved states whatever a resumed run asks for.
_SETTINGS = (
    "seed",
    "per_device_train_batch_size",
    "gradient_accumulation_steps",
    "streaming",
    "shuffle_buffer_size",
    "mixup_alpha",
    "cutmix_alpha",
    "label_smoothing",
    "preset",
    "model_options",
    "use_attentive_pooling",
    "drop_path_rate",
    "freeze",
    "lora_rank",
    "lora_alpha",
    "layer_decay",
    "learning_rate",
    "weight_decay",
    "adam_beta1",
    "adam_beta2",
    "ema_decay",
    "eval_steps",
)


def load_labelled_records(args: FinetuningArguments) -> tuple[VideoRecords, VideoRecords | None]:
    """Return the training videos and those to judge by, if any, with classes numbered alike: as the model's are.

    A model that knows the same classes in another order keeps its order.

    Raises:
        ValueError: If there are no videos, no or only one class, a video without a class, or a class to judge by that
            there is none of to train on.
    """
    train = load_training_records(args)
    train.check_classes(at_least=2)
    known = known_label_names(args.model_name_or_path)
    if set(known) == set(train.label_names):
        train = train.relabelled(known)
    validation = load_validation_records(args, train)
    if validation is not None:
        validation = validation.relabelled(train.label_names)
    for records in filter(None, (train, validation)):
        check_every_video_is_labelled(records)
    return train, validation


def known_label_names(model_name_or_path: str | None) -> tuple[str, ...]:
    """Return the names of the classes that a checkpoint tells apart, in its order; none of one without a head."""
    if model_name_or_path is None:
        return ()
    check_model_name("model_name_or_path", model_name_or_path)
    try:
        contents, _ = PretrainedConfig.get_config_dict(model_name_or_path)
    except OSError as error:
        raise ValueError(f"model_name_or_path ({model_name_or_path!r}) cannot be opened: {error}") from error
    names = {int(number): name for number, name in (contents.get("id2label") or {}).items()}
    return tuple(names[number] for number in sorted(names))


def build_classifier(
    args: FinetuningArguments, records: VideoRecords
) -> tuple[MMEForVideoClassification, MMEVideoProcessor]:
    """Return a classifier of the classes of `records`, and the processor that makes its inputs.

    Raises:
        ValueError: If an option is unknown or out of range, or there is no such checkpoint.
    """
    check_names("model_options", args.model_options, {field.name for field in fields(MMEConfig)})
    options = {
        **label_mappings(records),
        "problem_type": "single_label_classification",
        "drop_path_rate": args.drop_path_rate,
        **args.model_options,
    }
    if args.use_attentive_pooling:  # else as the checkpoint has it
        options["use_attentive_pooling"] = True
    if args.model_name_or_path:
        model = _load_classifier(args.model_name_or_path, records.label_names, options)
        processor = processor_of(args.model_name_or_path, model.config, args)
        model.config.update(input_size(processor))
    else:
        sizes = {name: getattr(args, name) for name in ("image_size", "num_frames") if getattr(args, name) is not None}
        model = MMEForVideoClassification(preset_config(args.preset, **sizes, **options))
        processor = new_processor(model.config, args)
    if args.gradient_checkpointing:
        # The name in newer versions of transformers; the older one warns there.
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    return model, processor


def _load_classifier(name: str, label_names: tuple[str, ...], options: dict[str, Any]) -> MMEForVideoClassification:
    known = known_label_names(name)
    try:
        model, report = MMEForVideoClassification.from_pretrained(
            name, **options, ignore_mismatched_sizes=True, output_loading_info=True
        )
    except NOT_LOADED as error:
        raise ValueError(f"model_name_or_path ({name!r}) cannot be opened: {error}") from error
    strange = [tensor[0] for tensor in report["mismatched_keys"] if not tensor[0].startswith(_HEAD)]
    lost = [tensor for tensor in report["missing_keys"] if not tensor.startswith(_MAY_BE_NEW)]
    if strange or lost:
        raise ValueError(
            f"model_name_or_path ({name!r}) is no checkpoint of this model: {', '.join([*strange, *lost][:3])} would "
            "be new. Leave --model_options as in its training."
        )
    is_missing = any(tensor.startswith("classifier.") for tensor in report["missing_keys"])
    if not is_missing and known == label_names:
        return model
    # Also where as many other classes fit into the old head.
    nn.init.trunc_normal_(model.classifier.weight, std=CLASSIFIER_STD)
    nn.init.zeros_(model.classifier.bias)
    others = f"tells {len(known)} other classes apart, such as {known[0]!r}" if known else "does not name its classes"
    told = "has no head" if is_missing else others
    logger.info("head: new, for %d classes; the checkpoint %s", len(label_names), told)
    return model


def build_mixed_inputs(args: FinetuningArguments, num_classes: int, device: torch.device) -> MixedInputs:
    """Return what makes a classifier's inputs of a batch, mixed as the flags say."""
    return MixedInputs(
        device,
        num_classes=num_classes,
        mixup_alpha=args.mixup_alpha,
        cutmix_alpha=args.cutmix_alpha,
        label_smoothing=args.label_smoothing,
        clips_per_video=args.samples_per_video,
        seed=args.seed,
    )


def choose_what_is_trained(args: FinetuningArguments, model: MMEForVideoClassification) -> None:
    """Freeze what `freeze` says, or add `lora_rank`'s changes to a frozen encoder; the head is trained in any case.

    Raises:
        ValueError: If there are fewer blocks than are to be frozen, or peft is missing.
    """
    if args.lora_rank:
        add_lora(model, args.lora_rank, args.lora_alpha or args.lora_rank)
    elif args.freeze == "encoder":
        model.mme.requires_grad_(False)
    elif args.freeze is not None:
        num_blocks = 0 if args.freeze == "patch_embed" else int(args.freeze)
        if num_blocks > len(model.mme.layers):
            raise ValueError(f"freeze ({num_blocks}) is more than the {len(model.mme.layers)} blocks of the model.")
        for module in (model.mme.embeddings, *model.mme.layers[:num_blocks]):
            module.requires_grad_(False)


def add_lora(model: MMEForVideoClassification, rank: int, alpha: float) -> None:
    """Freeze the encoder, and give its queries and values low-rank changes that are trained.

    Args:
        model: Changed in place.
        rank: Of the changes.
        alpha: They are multiplied by alpha / rank.

    Raises:
        ValueError: If peft is missing.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise ValueError(
            f"lora_rank ({rank}) needs peft, which is not installed: pip install 'mme_hf[lora]'."
        ) from error
    modules = [f"mme.layers.{n}.attention.{name}" for n in range(len(model.mme.layers)) for name in LORA_MODULES]
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=alpha, target_modules=modules), model)
    for name, parameter in model.named_parameters():
        if name.startswith(_HEAD):
            parameter.requires_grad_(True)


@torch.no_grad()
def exported_weights(model: MMEForVideoClassification) -> dict[str, torch.Tensor]:
    """Return a copy of a classifier's parameters on the CPU, low-rank changes merged: what `from_pretrained` takes."""
    weights = {
        name.replace(".base_layer.", "."): tensor.detach().to("cpu", copy=True)
        for name, tensor in model.state_dict().items()
        if ".lora_" not in name
    }
    for name, module in model.named_modules():
        if hasattr(module, "get_delta_weight"):  # a layer of peft's
            weights[f"{name}.weight"] += module.get_delta_weight("default").to("cpu")
    return weights


def announce_finetuning(
    args: FinetuningArguments,
    model: MMEForVideoClassification,
    records: VideoRecords,
    validation_records: VideoRecords | None,
    **where: Any,
) -> None:
    """Say what is about to be trained, on what, and what it is judged by.

    Args:
        args: Of the run.
        model: The classifier.
        records: To train on.
        validation_records: To judge by, if any.
        **where: `output_dir`, `where` and `what` of `announce_run`.
    """
    announce_run(records, model, model_name=args.model_name_or_path or f"{args.preset} (random weights)", **where)
    if args.freeze or args.lora_rank:
        num_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        num_parameters = sum(parameter.numel() for parameter in model.parameters())
        logger.info("trained: %s of %s parameters", f"{num_trained:,}", f"{num_parameters:,}")
    remind_of_directions(records.label_names, args.flip_probability)
    if validation_records is None:
        logger.info("validation: none, so no best model is chosen: the last one is saved")
        return
    num_videos = validation_records.num_records
    videos = "a stream" if num_videos is None else counted(num_videos, "video")
    logger.info("validation: %s (%s); the best model is saved", validation_records.name, videos)


def remind_of_directions(label_names: tuple[str, ...], flip_probability: float) -> None:
    """Say that clips are mirrored: loudly if a class tells left from right, for its label would become wrong."""
    told = [name for name in label_names if _SAYS_A_DIRECTION.search(name)]
    if flip_probability and told:
        logger.warning(
            "WARNING: clips are mirrored with probability %s, but classes such as %r tell left from right: MIRRORED "
            "CLIPS HAVE THE WRONG LABEL. Use --no_flip.",
            flip_probability,
            told[0],
        )
    elif flip_probability:
        logger.info("clips are mirrored with probability %s; --no_flip where left and right differ", flip_probability)


def settings_of_finetuning(
    args: FinetuningArguments,
    processor: MMEVideoProcessor,
    records: VideoRecords,
    validation_records: VideoRecords | None,
    num_processes: int,
) -> dict[str, Any]:
    """Return all that decides what a run sees and which of its states is the best, for a resumed run to insist on."""
    return {
        **{name: getattr(args, name) for name in _SETTINGS},
        "num_processes": num_processes,
        "data": f"{records.identity}, {_classes_identity(records)}",
        "validation data": None if validation_records is None else validation_records.identity,
        "training clips": str(args.training_views),
        "validation views": str(args.validation_views),
        **{f"processor {name}": value for name, value in processor.to_dict().items()},
    }


def _classes_identity(records: VideoRecords) -> str:
    names = blake2b("\n".join(records.label_names).encode(), digest_size=8).hexdigest()
    return f"{len(records.label_names)} classes whose names in order hash to {names}"
