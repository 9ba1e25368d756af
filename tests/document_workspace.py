"""A folder with everything that the documents name: small real videos, small models, a small published data set."""

from __future__ import annotations

from pathlib import Path

import torch
from conftest import moving_texture, write_video
from documents import ROOT
from runs import new_accelerator
from scripts import run_script
from small_classifiers import save_small_classifier
from teachers import save_teacher
from test_checkpoints import published_block
from transformers import VideoMAEConfig, VideoMAEForVideoClassification, VideoMAEImageProcessor

from mme_hf import MMEConfig, MMEForPreTraining, MMEVideoProcessor
from mme_hf.model_card import TrainingFacts
from mme_hf.model_card_facts import save_facts

CLASSES = ("left", "right")
# The folders that commands of the documents start at.
FROM_THE_REPOSITORY = ("examples", "benchmarks", "docs", "setup.cfg")


def make_workspace(root: Path) -> Path:
    """Fill the new folder `root` and return it."""
    root.mkdir()
    for name in FROM_THE_REPOSITORY:
        (root / name).symlink_to(ROOT / name)
    _write_videos(root)
    for name in ("pretrain", "pretrain-tiny-cpu", "pretrain-small", "pretrain-base-k400"):
        _save_pretraining(root / "outputs" / name)
    for name in ("finetune", "finetune-tiny"):
        save_small_classifier(root / "outputs" / name, CLASSES)
        save_facts(root / "outputs" / name, _facts_of(name))
    _save_videomae(root / "MCG-NJU" / "videomae-base-finetuned-kinetics")
    save_teacher(root / "facebook" / "dinov2-base", "vit")
    _judge(root)
    torch.save({"model": _published_pretraining()}, root / "mme_pretrained.pth")
    return root


def _write_videos(root: Path) -> None:
    for name in ("video.mp4", "other.mp4"):
        write_video(root / name, moving_texture(70, 48, 64, velocity=(1.0, 0.5)))
    counts = {"my_videos": 4, "my_actions/train": 12, "my_actions/validation": 4, "my_actions/test": 6}
    for folder, num_videos in counts.items():
        for index in range(num_videos):
            video = root / folder / CLASSES[index % 2] / f"clip_{index}.mp4"
            video.parent.mkdir(parents=True, exist_ok=True)
            velocity = ((-1.5, 1.5)[index % 2], 0.0)
            write_video(video, moving_texture(40, 48, 64, velocity=velocity, seed=index + len(folder)))
    _write_ucf101(root)


def _facts_of(name: str) -> TrainingFacts:
    return TrainingFacts(
        task="finetuning",
        repository=f"outputs/{name}",
        data_name="my_actions",
        dataset=None,
        num_videos=12,
        start=None,
        base_model=None,
        license="apache-2.0",
        num_steps=1,
        global_batch_size=4,
        seconds=60.0,
        command="accelerate launch examples/finetune.py",
        settings={},
    )


def _judge(root: Path) -> None:
    """Leave what evaluate.py finds of the classifier beside it."""
    flags = {"model_name_or_path": root / "outputs" / "finetune", "validation_dir": root / "my_actions" / "test"}
    with new_accelerator():
        run_script("evaluate", **flags, num_eval_segments=1, num_eval_crops=1, dataloader_num_workers=0)


def _write_ucf101(root: Path) -> None:
    """Lay out one video of each of two classes for each part, and the lists that name them, as UCF101 is."""
    lists = root / "ucf" / "ucfTrainTestlist"
    lists.mkdir(parents=True)
    (lists / "classInd.txt").write_text("1 Archery\n2 Biking\n")
    names = {"train": [], "test": []}
    for number, class_name in enumerate(("Archery", "Biking"), start=1):
        for group, part in enumerate(names, start=1):
            name = f"{class_name}/v_{class_name}_g{group:02}_c01.avi"
            path = root / "ucf" / "UCF-101" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            write_video(path, moving_texture(12, 32, 32, seed=10 * number + group))
            names[part].append(f"{name} {number}" if part == "train" else name)
    for part, lines in names.items():
        (lists / f"{part}list01.txt").write_text("\n".join(lines) + "\n")


def _save_pretraining(folder: Path) -> None:
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    MMEVideoProcessor(num_frames=4, frame_stride=2, **size).save_pretrained(folder)
    torch.manual_seed(0)
    narrow = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    MMEForPreTraining(
        MMEConfig(image_size=32, num_frames=4, **narrow, **{f"decoder_{name}": narrow[name] for name in narrow})
    ).save_pretrained(folder)


def _save_videomae(folder: Path) -> None:
    torch.manual_seed(0)
    config = VideoMAEConfig(
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=24,
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    VideoMAEForVideoClassification(config).save_pretrained(folder)
    VideoMAEImageProcessor().save_pretrained(folder)


def _published_pretraining() -> dict[str, torch.Tensor]:
    """Return a published pre-training's tensors: one block of width 128, one of width 64 in the decoder."""
    generator = torch.Generator().manual_seed(0)

    def draw(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator) * 0.1

    width, decoder_width, hidden = 128, 64, 32
    tensors = {
        "mask_token": draw(1, 1, decoder_width),
        "encoder.patch_embed.proj.weight": draw(width, 3, 2, 16, 16),
        "encoder.patch_embed.proj.bias": draw(width),
        "encoder.norm.weight": draw(width),
        "encoder.norm.bias": draw(width),
        "encoder_to_decoder.0.weight": draw(decoder_width, width),
        "decoder.0.norm.weight": draw(decoder_width),
        "decoder.0.norm.bias": draw(decoder_width),
        **published_block("encoder.blocks.0", width, draw),
        **published_block("decoder.0.blocks.0", decoder_width, draw),
    }
    for head, size in enumerate((108, 32)):
        tensors |= {
            f"decoder.0.head.{head}.0.weight": draw(hidden, decoder_width),
            f"decoder.0.head.{head}.0.bias": draw(hidden),
            f"decoder.0.head.{head}.2.weight": draw(size, hidden),
            f"decoder.0.head.{head}.2.bias": draw(size),
        }
    return tensors
