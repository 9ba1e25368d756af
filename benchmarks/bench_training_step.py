"""Time one training step of MMEForPreTraining beside transformers' VideoMAEForPreTraining; write the table.

CPU: ViT-S/16, 16 x 224 x 224, batch 2, 2 threads, float32 and bf16 autocast. GPU: ViT-B, batch 64, bf16 autocast, each
model eager and compiled. Both models have the same encoder, the same number of masked tokens and decoders of the same
depth and width; a step is forward, backward and AdamW. The variants take turns, so that whatever else the machine does
falls on all of them.

    python benchmarks/bench_training_step.py --device cpu --repeats 7
"""

import argparse
import dataclasses
import json
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import torch
import transformers
from torch.utils.flop_counter import FlopCounterMode
from transformers import VideoMAEConfig, VideoMAEForPreTraining

from mme_hf.masking_mme import build_mask
from mme_hf.modeling_mme import MMEForPreTraining
from mme_hf.presets import preset_config

MASK_RATIO = 0.7
MODELS = {"mme_hf": "MMEForPreTraining", "transformers": "VideoMAEForPreTraining"}
# The sizes that both models must have in common.
VIDEOMAE_FIELDS = (
    *("image_size", "patch_size", "num_channels", "num_frames", "tubelet_size", "hidden_size", "num_hidden_layers"),
    *("num_attention_heads", "intermediate_size", "hidden_act", "layer_norm_eps", "decoder_num_attention_heads"),
    *("decoder_hidden_size", "decoder_num_hidden_layers", "decoder_intermediate_size"),
)
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}


@dataclasses.dataclass
class Variant:
    """One model with its optimiser and inputs, ready to take steps."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    inputs: dict[str, torch.Tensor]
    run: Callable
    autocast: bool
    device: str

    def step(self) -> None:
        """Train on the inputs once."""
        with self.autocast_context():
            loss = self.run(**self.inputs).loss
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def autocast_context(self):
        """Return the precision that forward runs in."""
        return torch.autocast(self.device, torch.bfloat16) if self.autocast else nullcontext()

    def seconds(self) -> float:
        """Return the time of one step."""
        synchronize(self.device)
        start = time.perf_counter()
        self.step()
        synchronize(self.device)
        return time.perf_counter() - start


def synchronize(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def build_variant(
    name: str, *, preset: str, batch_size: int, device: str, autocast: bool, compiled: bool = False
) -> Variant:
    torch.manual_seed(0)
    config = preset_config(preset)
    for target in config.motion_targets.values():
        target["visible_weight"] = 0.0  # masked tokens alone, as VideoMAE
    masks = [build_mask("tube", config.token_grid, MASK_RATIO, torch.Generator().manual_seed(i)) for i in range(64)]
    bool_masked_pos = torch.stack([masks[index % len(masks)] for index in range(batch_size)])
    inputs = {
        "pixel_values": torch.randn(batch_size, config.num_frames, config.num_channels, *config.frame_size),
        "bool_masked_pos": bool_masked_pos,
    }
    if name == "mme_hf":
        model = MMEForPreTraining(config)
        num_values = sum(target["size"] for target in config.motion_targets.values())
        inputs["masked_indices"] = bool_masked_pos.nonzero()[:, 1].unflatten(0, (batch_size, -1))
        inputs["labels"] = torch.rand(batch_size, config.num_tokens, num_values)
        inputs["target_mask"] = torch.rand(batch_size, config.num_tokens, len(config.motion_targets)) > 0.1
    else:
        shared = {field: getattr(config, field) for field in VIDEOMAE_FIELDS}
        # Without mean pooling VideoMAE's encoder ends in a LayerNorm too.
        model = VideoMAEForPreTraining(VideoMAEConfig(**shared, use_mean_pooling=False))
    model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=device == "cuda")
    inputs = {key: value.to(device) for key, value in inputs.items()}
    run = torch.compile(model) if compiled else model
    return Variant(model, optimizer, inputs, run, autocast, device)


def flops_of_step(variant: Variant) -> int:
    """Count floating point operations of forward and backward; attention is counted in its eager form."""
    variant.model.set_attn_implementation("eager")
    with FlopCounterMode(display=False) as counter:
        variant.model(**variant.inputs).loss.backward()
    variant.optimizer.zero_grad(set_to_none=True)
    variant.model.set_attn_implementation("sdpa")
    return counter.get_total_flops()


def matmul_flops_per_second(dtype: torch.dtype, device: str) -> float:
    """Measure the speed of one large matrix product, the most that a step could reach."""
    size = 8192 if device == "cuda" else 2048
    left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    torch.matmul(left, right)
    synchronize(device)
    start = time.perf_counter()
    num_products = 10 if device == "cuda" else 2
    for _ in range(num_products):
        torch.matmul(left, right)
    synchronize(device)
    return num_products * 2 * size**3 / (time.perf_counter() - start)


def peak_memory_mib_in_subprocess(name: str, dtype: str) -> float:
    """Return what three steps add to a fresh process's peak resident memory, in MiB."""
    command = [sys.executable, __file__, "--peak_memory_of", name, "--dtype", dtype]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    return json.loads(result.stdout.splitlines()[-1])["added_mib"]


def print_peak_memory(name: str, dtype: str) -> None:
    # A step of the smallest model first: libraries that load on first use belong to the base line.
    build_variant(name, preset="tiny", batch_size=1, device="cpu", autocast=dtype == "bf16").step()
    base_line_mib = peak_resident_mib()
    variant = build_variant(name, preset="small", batch_size=2, device="cpu", autocast=dtype == "bf16")
    for _ in range(3):
        variant.step()
    print(json.dumps({"added_mib": peak_resident_mib() - base_line_mib}))


def peak_resident_mib() -> float:
    """Return this process's peak resident set. getrusage would start from the parent's peak at the fork."""
    return int(re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text())[1]) / 1024


def pixel_label_seconds(pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor) -> float:
    """Time VideoMAE's label arithmetic alone (normalised pixels of masked tubelets), which its forward contains."""
    mean = torch.tensor([0.485, 0.456, 0.406], device=pixel_values.device)[:, None, None]
    synchronize(pixel_values.device.type)
    start = time.perf_counter()
    frames = pixel_values * 0.225 + mean
    tubelets = frames.unflatten(4, (-1, 16)).unflatten(3, (-1, 16)).unflatten(1, (-1, 2))
    tubelets = tubelets.permute(0, 1, 4, 6, 2, 5, 7, 3).flatten(4, 6).flatten(1, 3)  # (B, N, pixels, C)
    tubelets = (tubelets - tubelets.mean(-2, keepdim=True)) / (tubelets.var(-2, keepdim=True).sqrt() + 1e-6)
    tubelets.flatten(2)[bool_masked_pos]
    synchronize(pixel_values.device.type)
    return time.perf_counter() - start


def median_pixel_label_seconds(variant: Variant) -> float:
    inputs = (variant.inputs["pixel_values"], variant.inputs["bool_masked_pos"])
    return statistics.median(pixel_label_seconds(*inputs) for _ in range(5))


def motion_label_seconds_per_clip() -> float:
    """Time what targets add to the processor for one clip, on one host thread as in a data worker."""
    from mme_hf import MMEVideoProcessor

    processor = MMEVideoProcessor()
    frames = torch.randint(0, 256, (processor.raw_window(), 3, 256, 340), dtype=torch.uint8)
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    times = {True: [], False: []}
    for _ in range(3):
        for with_targets, seconds in times.items():
            start = time.perf_counter()
            processor(frames, return_targets=with_targets, return_tensors="pt")
            seconds.append(time.perf_counter() - start)
    torch.set_num_threads(num_threads)
    return statistics.median(times[True]) - statistics.median(times[False])


def interleaved_seconds(variants: dict[str, Variant], repeats: int, after_each_round: Callable) -> dict[str, float]:
    """Return each variant's median step in seconds; the order turns round by round."""
    for variant in variants.values():
        for _ in range(2):
            variant.step()
    times = {name: [] for name in variants}
    order = list(variants)
    for _ in range(repeats):
        for name in order:
            times[name].append(variants[name].seconds())
        order.reverse()
        after_each_round()
    return {name: statistics.median(values) for name, values in times.items()}


def cpu_section(repeats: int) -> list[str]:
    lines = [
        "| precision | model | step, s | clips/s | GFLOP a step | GFLOP/s | of matmul peak | peak memory, MiB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    ratios, pixel_labels = [], []
    for dtype_name, dtype in DTYPES.items():
        autocast = dtype_name == "bf16"
        variants = {
            name: build_variant(name, preset="small", batch_size=2, device="cpu", autocast=autocast) for name in MODELS
        }
        flops = {name: flops_of_step(variant) for name, variant in variants.items()}
        peaks = []
        seconds = interleaved_seconds(
            variants, repeats, lambda dtype=dtype, peaks=peaks: peaks.append(matmul_flops_per_second(dtype, "cpu"))
        )
        pixel_labels.append(median_pixel_label_seconds(variants["transformers"]))
        del variants
        memory = {name: peak_memory_mib_in_subprocess(name, dtype_name) for name in MODELS}
        for name, label in MODELS.items():
            speed = flops[name] / seconds[name]
            lines.append(
                f"| {dtype_name} | {label} | {seconds[name]:.3f} | {2 / seconds[name]:.2f} | {flops[name] / 1e9:.0f} "
                f"| {speed / 1e9:.0f} | {speed / max(peaks):.0%} of {max(peaks) / 1e9:.0f} | {memory[name]:.0f} |"
            )
        ratios.append(
            f"{dtype_name}: our step takes {seconds['mme_hf'] / seconds['transformers']:.2f} of the time and "
            f"{memory['mme_hf'] / memory['transformers']:.2f} of the memory of transformers'."
        )
    return [
        *lines,
        "",
        *ratios,
        "",
        f"Labels: VideoMAE makes its pixel labels inside forward, {min(pixel_labels) * 1e3:.0f} ms of each step "
        "(measured alone, float32). Ours arrive with the batch, made by data workers.",
        "",
        "Memory is what model, inputs and three steps add to the peak resident set of a process of their own (VmHWM, "
        "Linux). FLOPs: `torch.utils.flop_counter`, forward and backward. The peak is the fastest 2048 x 2048 matrix "
        "product measured between the steps.",
    ]


def gpu_section(repeats: int) -> list[str]:
    batch_size = 64
    options = {"preset": "base", "batch_size": batch_size, "device": "cuda", "autocast": True}
    lines = [
        "| model | mode | step, ms | clips/s | model FLOP utilisation | peak memory, MiB |",
        "|---|---|---|---|---|---|",
    ]
    variants, flops, memory, peaks = {}, {}, {}, []
    for name in MODELS:
        for compiled in (False, True):
            variant = build_variant(name, **options, compiled=compiled)
            flops[name] = flops.get(name) or flops_per_clip(name) * batch_size
            variant.step()
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            variant.step()
            parameters = 4 * 3 * sum(parameter.numel() for parameter in variant.model.parameters())
            memory[name, compiled] = (torch.cuda.max_memory_allocated() - before + parameters) / 2**20
            variants[name, compiled] = variant
    seconds = interleaved_seconds(
        variants, repeats, lambda: peaks.append(matmul_flops_per_second(torch.bfloat16, "cuda"))
    )
    for (name, compiled), value in seconds.items():
        lines.append(
            f"| {MODELS[name]} | {'compiled' if compiled else 'eager'} | {value * 1e3:.1f} | {batch_size / value:.0f} "
            f"| {flops[name] / value / max(peaks):.1%} | {memory[name, compiled]:.0f} |"
        )
    best = min(seconds["mme_hf", False], seconds["mme_hf", True])
    pixel_labels = median_pixel_label_seconds(variants["transformers", False])
    return [
        *lines,
        "",
        f"The faster of ours does {seconds['transformers', False] / best:.2f} times the clips per second of "
        f"transformers' eager step. Matrix-product peak measured: {max(peaks) / 1e12:.0f} TFLOP/s (bf16, 8192 wide).",
        "",
        f"Labels: VideoMAE makes its pixel labels inside forward, {pixel_labels * 1e3:.1f} ms of each step (measured "
        "alone, eager). Ours arrive with the batch; making them costs a data worker "
        f"{motion_label_seconds_per_clip() * 1e3:.0f} ms of one host core for each clip.",
    ]


def flops_per_clip(name: str) -> int:
    return flops_of_step(build_variant(name, preset="base", batch_size=1, device="cpu", autocast=False))


def machine(device: str) -> str:
    if device == "cuda":
        return torch.cuda.get_device_name()
    cpu_info = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.*)", cpu_info.read_text()) if cpu_info.exists() else []
    return f"{names[0] if names else platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def write_section(path: Path, heading: str, section: str, lines: list[str]) -> None:
    """Write `heading` and one section of the results file, keeping the other one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    old = path.read_text() if path.exists() else ""
    sections = dict(re.findall(r"<!-- begin (\w+) -->\n(.*?)<!-- end \1 -->", old, flags=re.DOTALL))
    sections[section] = "\n".join(lines) + "\n"
    text = heading + "\n"
    for name in sorted(sections):
        text += f"\n<!-- begin {name} -->\n{sections[name]}<!-- end {name} -->\n"
    path.write_text(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["auto", "cpu", "cuda"], default="auto")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results/training_step.md")
    parser.add_argument("--peak_memory_of", choices=list(MODELS), help=argparse.SUPPRESS)
    parser.add_argument("--dtype", choices=list(DTYPES), default="float32", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    torch.set_num_threads(2)
    if arguments.peak_memory_of:
        print_peak_memory(arguments.peak_memory_of, arguments.dtype)
        return
    device = arguments.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    title = "CPU: ViT-S/16, batch 2" if device == "cpu" else "GPU: ViT-B/16, batch 64, bf16 autocast"
    table = cpu_section(arguments.repeats) if device == "cpu" else gpu_section(arguments.repeats)
    lines = [
        f"## {title}",
        "",
        f"{machine(device)}; torch {torch.__version__}, transformers {transformers.__version__}, Python "
        f"{platform.python_version()}; 16 frames of 224 x 224 px, {MASK_RATIO:.0%} masked, decoder of 1 block, 192 "
        f"wide; medians of {arguments.repeats} interleaved steps.",
        "",
        f"    python {shlex.join([Path(sys.argv[0]).as_posix(), *sys.argv[1:]])}",
        "",
        *table,
    ]
    heading = "# Training step\n\nWritten by benchmarks/bench_training_step.py."
    write_section(arguments.output, heading, device, lines)
    print("\n".join(lines))


if __name__ == "__main__":
    main()
