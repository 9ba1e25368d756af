"""Does a small model find out how pixels move, and how soon: ways to start its weights, side by side.

    python benchmarks/learns_motion.py        # about 5 minutes on two cores

Frames of the sample clips are shifted by a velocity drawn for each clip, up to 3 px a frame in x and y or up to 0.5,
and the model predicts that velocity at every hidden token. Nothing else can be learnt from such clips, so the explained
share of clips never trained on says how well motion is read. Written to `results/learns_motion.md`.
"""

from __future__ import annotations

import argparse
import os
import time
from dataclasses import dataclass
from pathlib import Path

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch.nn.functional as F
from torch import nn

from mme_hf import MMEForPreTraining, open_video, preset_config
from mme_hf.data import load_sample_records
from mme_hf.masking_mme import build_mask

RESULT = Path(__file__).parent / "results" / "learns_motion.md"
GRID, SIDE, NUM_FRAMES, MARGIN = (4, 7, 7), 112, 8, 12
MAX_SPEEDS_PX = (3.0, 0.5)
BATCH_SIZE = 16


@dataclass(frozen=True)
class Start:
    """How weights start: Xavier-uniform or small and normal, and how much stronger for differences between frames."""

    name: str
    gain: float
    is_small: bool = False


STARTS = (
    Start("Xavier-uniform, gain 16 (ours)", 16.0),
    Start("Xavier-uniform, gain 8", 8.0),
    Start("Xavier-uniform, gain 1", 1.0),
    Start("normal of deviation 0.02, gain 1", 1.0, is_small=True),
)


def sample_frames(generator: torch.Generator, num_frames: int) -> torch.Tensor:
    """Return frames of the sample clips at random times, normalised, (num_frames, 3, side, side) with a margin."""
    frames = []
    videos = [row["video"]["path"] for row in load_sample_records().dataset]
    side = SIDE + 2 * MARGIN
    for path in videos:
        with open_video(path) as reader:
            chosen = torch.randint(reader.num_frames, (num_frames // len(videos),), generator=generator)
            raw = reader.frames_at(chosen.tolist()).float() / 255
        frames.append(F.interpolate(raw, size=(side, side), mode="bilinear", antialias=True))
    return (torch.cat(frames) - 0.45) / 0.225


def moving_clips(
    frames: torch.Tensor, max_speed_px: float, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return clips (B, T, 3, H, W) of moving frames (B, 3, side, side), and their velocities in px (B, 2)."""
    velocity = (torch.rand(len(frames), 2, generator=generator) * 2 - 1) * max_speed_px
    side = frames.shape[-1]
    pixel = torch.arange(SIDE) + MARGIN
    clips = []
    for frame in range(NUM_FRAMES):
        offset = (frame - (NUM_FRAMES - 1) / 2) * velocity  # at most 10.5 px, inside the margin
        x = (pixel - offset[:, :1])[:, None, :].expand(-1, SIDE, -1)
        y = (pixel - offset[:, 1:])[:, :, None].expand(-1, -1, SIDE)
        places = torch.stack([x, y], dim=-1) * 2 / (side - 1) - 1
        clips.append(F.grid_sample(frames, places, align_corners=True))
    return torch.stack(clips, dim=1), velocity


def explained_shares(start: Start, max_speed_px: float, args: argparse.Namespace) -> list[float]:
    """Return the explained share of held-out clips every 50 updates."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    frames, held_out = sample_frames(generator, 400), sample_frames(generator, 64)
    test_clips, test_velocity = moving_clips(held_out, max_speed_px, generator)
    # Velocities of any range have variance 1 as labels, so that both ranges ask for updates of one size.
    unit = max_speed_px / 3**0.5
    target = {"velocity": {"size": 2, "activation": "linear", "weight": 1.0}}
    model = MMEForPreTraining(preset_config("tiny", motion_targets=target, frame_difference_gain=start.gain))
    if start.is_small:
        small_normal_(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=args.learning_rate, betas=(0.9, 0.95))
    shares = []
    for step in range(args.steps):
        for group in optimizer.param_groups:
            group["lr"] = args.learning_rate * min(1.0, (step + 1) / 50)
        chosen = torch.randint(len(frames), (BATCH_SIZE,), generator=generator)
        clips, velocity = moving_clips(frames[chosen], max_speed_px, generator)
        loss = model(clips, masks(BATCH_SIZE, generator), labels=labels_of(velocity / unit)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % 50 == 0:
            with torch.no_grad():
                labels = labels_of(test_velocity / unit)
                error = model(test_clips, masks(len(held_out), generator), labels=labels).loss
            shares.append(1 - float(error / labels.square().mean()))
            print(f"{start.name}, up to {max_speed_px} px, update {step + 1}: {shares[-1]:.3f}", flush=True)
    return shares


def labels_of(velocity: torch.Tensor) -> torch.Tensor:
    """Return the same velocity for every token, (B, tokens, 2)."""
    return velocity[:, None].expand(-1, GRID[0] * GRID[1] * GRID[2], -1)


def masks(num_clips: int, generator: torch.Generator) -> torch.Tensor:
    """Return tube masks of 70 %, (B, tokens)."""
    return torch.stack([build_mask("tube", GRID, 0.7, generator=generator).flatten() for _ in range(num_clips)])


def small_normal_(module: nn.Module) -> None:
    """Start linear layers as transformers' vision models do."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.trunc_normal_(layer.weight, std=0.02)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=200, help="Updates of 16 clips.")
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    args = parser.parse_args()
    started = time.perf_counter()
    updates = [50 * (index + 1) for index in range(args.steps // 50)]
    rows = [
        f"| up to {speed:g} px a frame | {start.name} | "
        + " | ".join(f"{share:.3f}" for share in explained_shares(start, speed, args))
        + " |"
        for speed in MAX_SPEEDS_PX
        for start in STARTS
    ]
    lines = [
        "# Explained share of known velocities",
        "",
        f"Preset tiny, batch {BATCH_SIZE}, learning rate {args.learning_rate:g}, {torch.get_num_threads()} threads, "
        f"{(time.perf_counter() - started) / 60:.1f} min in all; clips never trained on. 1 is perfect, 0 the mean. "
        "Gain: `MMEConfig.frame_difference_gain`.",
        "",
        "| velocities | linear layers start | " + " | ".join(f"{number} updates" for number in updates) + " |",
        "|---" * (2 + len(updates)) + "|",
        *rows,
        "",
        "```",
        "python benchmarks/learns_motion.py" + ("" if args.steps == 200 else f" --steps {args.steps}"),
        "```",
    ]
    RESULT.write_text("\n".join(lines) + "\n", encoding="utf-8")
    print(RESULT.read_text(encoding="utf-8"))


if __name__ == "__main__":
    main()
