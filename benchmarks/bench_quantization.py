r"""Measure what int8 costs a classifier: accuracy, logits, size and time on a CPU; write the table.

    OMP_NUM_THREADS=1 python benchmarks/bench_quantization.py \
        --train_dir SET/train --validation_dir SET/test --classifier_dir FOLDER

FOLDER is where `examples/finetune.py` fine-tunes the tiny preset from random weights, for minutes, unless a classifier
is there already. Its last weights are judged (nothing is chosen by the test videos), on one clip of each video, the
same for all. Weights are rounded once, activations as they come ("dynamic"): by torchao, which transformers loads and
saves, and by onnxruntime. `torch.ao.quantization.quantize_dynamic` is left out: it is deprecated. The variants take
turns where time is measured. Writes benchmarks/results/quantization.md.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import torch
from bench_training_step import interleaved_seconds, machine
from onnxruntime import InferenceSession, SessionOptions
from onnxruntime.quantization import QuantType, quantize_dynamic
from torchao.quantization import Int8DynamicActivationInt8WeightConfig
from transformers import TorchAoConfig

from mme_hf import MMEForVideoClassification, MMEVideoProcessor
from mme_hf.training.metrics import wilson_interval
from mme_hf.training.motion_sensitivity import sign_test

REPOSITORY = Path(__file__).resolve().parents[1]
TRAINING = ["--config", "examples/configs/finetune-tiny.yaml", "--max_train_steps", "280", "--warmup_epochs", "0.5"]
PACKAGES = ("torch", "transformers", "torchao", "onnxruntime")


@dataclasses.dataclass
class Variant:
    """A classifier in one form, with the clip that its time is measured on."""

    run: Callable[[torch.Tensor], torch.Tensor]
    size_bytes: int
    clip: torch.Tensor

    @torch.inference_mode()
    def logits(self, clips: torch.Tensor) -> torch.Tensor:
        """Return the logits of clips, one by one, as a server would be asked, shape (clips, classes)."""
        return torch.cat([self.run(clip[None]) for clip in clips])

    def step(self) -> torch.Tensor:
        """Return the logits of one clip."""
        return self.logits(self.clip)

    def seconds(self) -> float:
        """Return the time of one clip."""
        start = time.perf_counter()
        self.step()
        return time.perf_counter() - start


def fine_tuned(folder: Path, train_dir: Path, validation_dir: Path) -> Path:
    """Return the folder of the last weights, fine-tuning first where there are none."""
    if not (folder / "last" / "config.json").is_file():
        data = ["--train_dir", str(train_dir), "--validation_dir", str(validation_dir), "--output_dir", str(folder)]
        command = [sys.executable, "examples/finetune.py", *TRAINING, *data]
        subprocess.run(command, cwd=REPOSITORY, check=True, stdout=subprocess.DEVNULL)
    return folder / "last"


def test_clips(validation_dir: Path, folder: Path, label2id: dict[str, int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return one clip of each video, (videos, frames, channels, height, width), and the right classes."""
    processor = MMEVideoProcessor.from_pretrained(folder)
    paths = sorted(path for path in validation_dir.glob("*/*") if path.is_file())
    clips = [processor(str(path), return_tensors="pt")["pixel_values"] for path in paths]
    return torch.cat(clips), torch.tensor([label2id[path.parent.name] for path in paths])


def torch_variants(folder: Path, work_dir: Path, clip: torch.Tensor) -> dict[str, Variant]:
    """Return the classifier as it is, and by torchao, saved and loaded again."""
    int8 = TorchAoConfig(Int8DynamicActivationInt8WeightConfig())
    quantized = MMEForVideoClassification.from_pretrained(folder, quantization_config=int8)
    quantized.save_pretrained(work_dir / "torchao")
    folders = {"float32, torch": folder, "int8, torchao": work_dir / "torchao"}
    variants = {}
    for name, saved in folders.items():
        model = MMEForVideoClassification.from_pretrained(saved).eval()
        size = (saved / "model.safetensors").stat().st_size
        variants[name] = Variant(lambda clips, model=model: model(pixel_values=clips).logits, size, clip)
    return variants


def onnx_variants(folder: Path, work_dir: Path, clip: torch.Tensor) -> dict[str, Variant]:
    """Return the classifier in onnxruntime, as exported and in int8."""
    model = MMEForVideoClassification.from_pretrained(folder).eval()
    path, path_of_int8 = work_dir / "model.onnx", work_dir / "model_int8.onnx"
    program = torch.onnx.export(
        model,
        (),
        kwargs={"pixel_values": clip},
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(path)
    quantize_dynamic(path, path_of_int8, weight_type=QuantType.QInt8, per_channel=True)
    options = SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    variants = {}
    for name, file in {"float32, onnxruntime": path, "int8, onnxruntime": path_of_int8}.items():
        session = InferenceSession(file, options, providers=["CPUExecutionProvider"])

        def run(clips: torch.Tensor, session: InferenceSession = session) -> torch.Tensor:
            return torch.from_numpy(session.run(["logits"], {"pixel_values": clips.numpy()})[0])

        variants[name] = Variant(run, file.stat().st_size, clip)
    return variants


def table(variants: dict[str, Variant], clips: torch.Tensor, labels: torch.Tensor, repeats: int) -> list[str]:
    """Return the lines of the table: the first variant is what the others are compared with."""
    logits = {name: variant.logits(clips) for name, variant in variants.items()}
    seconds = interleaved_seconds(variants, repeats, lambda: None)
    first, *_ = variants
    is_right = {name: values.argmax(1) == labels for name, values in logits.items()}
    spread = logits[first].std(dim=1).mean().item()
    lines = [
        "| form | top-1 | 95 % interval | lost, won | p | same guess | logits off: mean, largest | size, MB | time |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, values in logits.items():
        top1 = is_right[name].double().mean().item()
        low, high = wilson_interval(top1, len(labels))
        lost = int((is_right[first] & ~is_right[name]).sum())
        won = int((~is_right[first] & is_right[name]).sum())
        difference = (values - logits[first]).abs()
        same = (values.argmax(1) == logits[first].argmax(1)).double().mean().item()
        lines.append(
            f"| {name} | {top1:.3f} | {low:.3f} to {high:.3f} | {lost}, {won} | {sign_test(lost, won):.2f} "
            f"| {same:.1%} | {difference.mean():.1e}, {difference.max():.1e} | {variants[name].size_bytes / 1e6:.1f} "
            f"| {seconds[name] / seconds[first]:.2f} |"
        )
    return [*lines, "", f"The logits of a clip have a standard deviation of {spread:.2f}."]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train_dir", type=Path, required=True, help="Class folders to train on.")
    parser.add_argument("--validation_dir", type=Path, required=True, help="Class folders to judge by.")
    parser.add_argument("--classifier_dir", type=Path, required=True, help="Where the classifier is, or will be.")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=REPOSITORY / "benchmarks/results/quantization.md")
    args = parser.parse_args()
    train_dir, validation_dir, classifier_dir = (
        path.resolve() for path in (args.train_dir, args.validation_dir, args.classifier_dir)
    )
    folder = fine_tuned(classifier_dir, train_dir, validation_dir)
    work_dir = classifier_dir / "quantized"
    work_dir.mkdir(exist_ok=True)
    label2id = MMEForVideoClassification.from_pretrained(folder).config.label2id
    clips, labels = test_clips(validation_dir, folder, label2id)
    variants = {**torch_variants(folder, work_dir, clips[:1]), **onnx_variants(folder, work_dir, clips[:1])}
    shape = " x ".join(str(size) for size in clips.shape[1:])
    train, data = (f"{path.parent.name}/{path.name}" for path in (train_dir, validation_dir))
    lines = [
        "# int8",
        "",
        "Written by benchmarks/bench_quantization.py.",
        "",
        f"{machine('cpu')}; {', '.join(f'{name} {version(name)}' for name in PACKAGES)}.",
        f"The classifier: `examples/finetune.py {shlex.join(TRAINING)}`, random weights at the start, trained on "
        f"{train}. Judged on {data}: {len(labels)} videos, {len(label2id)} classes, "
        f"one clip of {shape} each.",
        "",
        *table(variants, clips, labels, args.repeats),
        "",
        "Lost, won: videos that only float32 in torch, or only this form, is right about; p is that of an exact sign "
        "test on them. "
        f"Time is that of one clip, the median of {args.repeats} interleaved ones, as a multiple of float32 in torch. "
        "torchao runs eagerly. Only linear layers are rounded; the embedding of patches stays float32 in torch.",
        "",
        f"    OMP_NUM_THREADS=1 python benchmarks/bench_quantization.py --train_dir {train} "
        f"--validation_dir {data} --classifier_dir FOLDER --repeats {args.repeats}",
    ]
    args.output.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
