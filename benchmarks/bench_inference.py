"""Time MMEForVideoClassification beside transformers' VideoMAEForVideoClassification; write the table.

CPU: ViT-S/16 and ViT-B/16, 16 x 224 x 224, batches of 1 and 8, float32 and bf16, 2 threads. GPU: the same in bf16, each
model eager and compiled. Both models have the same weights, those of one random VideoMAE, and both attend by sdpa;
before anything is timed, their float32 logits are compared. The variants take turns, so that whatever else the machine
does falls on all of them.

    python benchmarks/bench_inference.py --device cpu --repeats 7
"""

import argparse
import dataclasses
import platform
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
import transformers
from bench_training_step import (
    DTYPES,
    VIDEOMAE_FIELDS,
    interleaved_seconds,
    machine,
    matmul_flops_per_second,
    synchronize,
    write_section,
)
from torch.utils.flop_counter import FlopCounterMode
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mme_hf import MMEForVideoClassification, preset_config

NUM_LABELS = 400
MODELS = {"mme_hf": "MMEForVideoClassification", "transformers": "VideoMAEForVideoClassification"}
LARGEST_DIFFERENCE = 1e-5


@dataclasses.dataclass
class Variant:
    """One model with its input, ready to classify."""

    run: Callable
    pixel_values: torch.Tensor

    @torch.inference_mode()
    def step(self) -> torch.Tensor:
        """Return the logits of the batch."""
        return self.run(pixel_values=self.pixel_values).logits

    def seconds(self) -> float:
        """Return the time of one batch."""
        device = self.pixel_values.device.type
        synchronize(device)
        start = time.perf_counter()
        self.step()
        synchronize(device)
        return time.perf_counter() - start


def build_models(preset: str) -> dict[str, torch.nn.Module]:
    """Return both models with the same weights, after checking that they give the same logits."""
    config = preset_config(preset, num_labels=NUM_LABELS)
    torch.manual_seed(0)
    shared = {field: getattr(config, field) for field in VIDEOMAE_FIELDS}
    theirs = VideoMAEForVideoClassification(VideoMAEConfig(**shared, num_labels=NUM_LABELS)).eval()
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(folder)
        ours = MMEForVideoClassification.from_pretrained(folder)
    models = {"mme_hf": ours, "transformers": theirs}
    logits = [Variant(model, clips(preset, 1)).step() for model in models.values()]
    difference = (logits[0] - logits[1]).abs().max().item()
    sizes = [sum(parameter.numel() for parameter in model.parameters()) for model in models.values()]
    if difference > LARGEST_DIFFERENCE or sizes[0] != sizes[1]:
        raise RuntimeError(f"{preset}: logits differ by {difference}, parameters are {sizes}: not the same model.")
    return models


def clips(preset: str, batch_size: int) -> torch.Tensor:
    config = preset_config(preset)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch_size, config.num_frames, config.num_channels, *config.frame_size, generator=generator)


def flops_of_clip(model: torch.nn.Module, preset: str) -> int:
    """Count floating point operations of one clip; attention is counted in its eager form."""
    model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        Variant(model, clips(preset, 1)).step()
    model.set_attn_implementation("sdpa")
    return counter.get_total_flops()


def section(presets: list[str], batch_sizes: list[int], device: str, repeats: int) -> list[str]:
    """Return the table and what it says."""
    lines = [
        "| size | precision | batch | model | mode | batch, ms | clips/s | GFLOP/s | of matmul peak |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ratios = []
    for preset in presets:
        models = build_models(preset)
        flops = flops_of_clip(models["mme_hf"], preset)
        for dtype_name, dtype in DTYPES.items():
            if device == "cuda" and dtype != torch.bfloat16:
                continue
            for batch_size in batch_sizes:
                pixel_values = clips(preset, batch_size).to(device, dtype)
                variants = {}
                for name, model in models.items():
                    model.to(device, dtype)
                    variants[name, "eager"] = Variant(model, pixel_values)
                    if device == "cuda":
                        torch.compiler.reset()
                        variants[name, "compiled"] = Variant(torch.compile(model, dynamic=False), pixel_values)
                peaks = []
                seconds = interleaved_seconds(
                    variants, repeats, lambda dtype=dtype, p=peaks: p.append(matmul_flops_per_second(dtype, device))
                )
                setting = f"{preset} | {dtype_name} | {batch_size}"
                for (name, mode), value in seconds.items():
                    speed = flops * batch_size / value
                    lines.append(
                        f"| {setting} | {MODELS[name]} | {mode} | {value * 1e3:.1f} | {batch_size / value:.2f} "
                        f"| {speed / 1e9:.0f} | {speed / max(peaks):.0%} of {max(peaks) / 1e9:.0f} |"
                    )
                ratios.append(ratio_line(preset, dtype_name, batch_size, seconds))
    return [*lines, "", *ratios]


def ratio_line(preset: str, dtype_name: str, batch_size: int, seconds: dict[tuple[str, str], float]) -> str:
    ours = seconds["mme_hf", "eager"]
    text = (
        f"* {preset}, {dtype_name}, batch {batch_size}: {seconds['transformers', 'eager'] / ours:.2f} times the clips "
    )
    text += "per second of transformers'"
    if ("mme_hf", "compiled") in seconds:
        compiled = seconds["mme_hf", "compiled"]
        text += f"; compiled {ours / compiled:.2f} times its own eager, "
        text += f"{seconds['transformers', 'compiled'] / compiled:.2f} times transformers' compiled"
    return text + "."


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--presets", nargs="+", choices=["tiny", "small", "base"], default=["small", "base"])
    parser.add_argument("--batch_sizes", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/inference.md")
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    lines = [
        f"## {device.upper()}",
        "",
        f"{machine(device)}; torch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}; {NUM_LABELS} classes; bf16 is `model.to(torch.bfloat16)`; medians of "
        f"{arguments.repeats} interleaved batches.",
        "",
        f"    python {shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}",
        "",
        *section(arguments.presets, arguments.batch_sizes, device, arguments.repeats),
        "",
        f"Both models have the same weights; their float32 logits differ by less than {LARGEST_DIFFERENCE}. FLOPs: "
        "`torch.utils.flop_counter`. The peak is the fastest large matrix product measured between the batches "
        f"({8192 if device == 'cuda' else 2048} wide).",
    ]
    heading = "# Inference\n\nWritten by benchmarks/bench_inference.py."
    write_section(arguments.output, heading, device, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
