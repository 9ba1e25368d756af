"""What a linear map reads of the measured motion from frozen features, and what that alone says of actions.

Probes that learn classes from a hundred videos may miss what features hold. Motion is measured at every token of every
clip, so a map to it is fitted to hundreds of thousands of tokens, without a label of a class.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from action_sets import ActionSet
from handmade import direction_votes, labelled
from measured_tracks import measured_clips

from mme_hf import MMEConfig, MMEModel
from mme_hf.position_target_mme import PositionTarget
from mme_hf.training.probes import Standardisation, run_probe

# Rows and columns of a clip that motion is gathered in, over all of its time.
_PARTS = (3, 3)
# Of the fitted map, as a share of the variance of a feature.
_RIDGE = 0.01


def judge_readout(actions: ActionSet, model: MMEModel, num_views: int) -> dict[str, Any]:
    """Return how much of the motion of test clips is read from features, and what it tells of the actions in them.

    Motion is the histogram of directions of a token's points, as `direction_votes` makes it. A ridge regression from
    features to it is fitted to the training clips. What it reads, and for comparison the measured motion itself, is
    then averaged in 3 x 3 parts of the frame and given to the linear probe of the other features.

    Args:
        actions: The set.
        model: Whose features of all tokens, none masked, are read.
        num_views: Clips of a video, evenly spaced in time.

    Returns:
        `explained`: share of the variance of the test clips' motion, all bins together; `read` and `measured`: what
        `run_probe` found.

    Raises:
        ValueError: If a video cannot be read.
    """
    tokens, motion = {}, {}
    for part in ("train", "test"):
        found = [
            _features_and_motion(model, clips)
            for clips in measured_clips(getattr(actions, part), num_views, model.config)
        ]
        tokens[part], motion[part] = (torch.stack(values) for values in zip(*found, strict=True))
    standardise = Standardisation.of(tokens["train"])
    inputs = {part: standardise(own) for part, own in tokens.items()}
    mean = motion["train"].flatten(0, -2).mean(0)
    weights = ridge(inputs["train"].flatten(0, -2), motion["train"].flatten(0, -2) - mean)
    read = {part: own @ weights + mean for part, own in inputs.items()}
    error, variance = (motion["test"] - read["test"]).square().sum(), (motion["test"] - mean).square().sum()
    probes = {name: _probe(actions, values, model.config) for name, values in (("read", read), ("measured", motion))}
    return {"set": actions.name, "explained": 1 - (error / variance).item(), **probes}


@torch.no_grad()
def _features_and_motion(model: MMEModel, clips: dict[str, torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    features = model(clips["pixel_values"]).last_hidden_state
    config = model.config
    num_steps = clips["labels"].shape[-1] // (2 * (config.patch_size // PositionTarget().cell_size_px) ** 2)
    displacements = PositionTarget().displacements(clips["labels"], num_steps, config.frame_size)
    return features, direction_votes(displacements).flatten(-3, -2).mean(-2)


@torch.no_grad()
def ridge(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the map (D, values) from standardised inputs (tokens, D) to centred outputs (tokens, values)."""
    products, targets = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64), 0.0
    for some, wanted in zip(inputs.split(100_000), outputs.split(100_000), strict=True):
        products += (some.T @ some).double()
        targets = targets + (some.T @ wanted).double()
    penalty = _RIDGE * len(inputs) * torch.eye(len(products), dtype=torch.float64)
    return torch.linalg.solve(products + penalty, targets).float()


def _probe(actions: ActionSet, motion: dict[str, torch.Tensor], config: MMEConfig) -> dict[str, Any]:
    rows, columns = (side // config.patch_size for side in config.frame_size)
    parts = {}
    for name, values in motion.items():
        grid = values.unflatten(2, (-1, rows, columns)).mean(2).movedim(-1, 2)  # (videos, clips, bins, rows, columns)
        parts[name] = (
            torch.nn.functional.adaptive_avg_pool2d(grid.flatten(0, 1), _PARTS).flatten(1).unflatten(0, grid.shape[:2])
        )
    train, test, classes = labelled(actions, parts)
    # A configuration has an even width, and there are 9 bins in 9 parts.
    train, test = (replace(own, values=torch.nn.functional.pad(own.values, (0, 1))) for own in (train, test))
    head = MMEConfig(hidden_size=train.values.shape[-1], num_attention_heads=1, num_labels=len(classes))
    return vars(run_probe("linear", train, test, head, seed=0))
