"""How much of the measured motion a linear map reads from frozen features, and whether that is enough to tell actions.

Probes that learn classes from a hundred videos may miss what features hold. Motion is measured at every token of every
clip, so a map to it is fitted to tens of thousands of tokens and more, without a label of a class.
"""

from __future__ import annotations

from collections.abc import Mapping
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


def judge_readout(actions: ActionSet, model: MMEModel, num_views: int, seed: int) -> dict[str, Any]:
    """Return how much of the motion of test clips is read from features, and what it tells of the actions in them.

    The motion of a token is what the displacements of its points add to a histogram of directions, `direction_votes`,
    each value in units of its deviation in the training clips. Tokens with a lost point are left out throughout. A
    ridge regression from features to motion is fitted to the training clips. A linear probe learns the classes from the
    *measured* motion of the training clips, averaged in 3 x 3 parts of the frame, and judges the test clips twice: by
    what is read of their motion, and by their measured motion. So features cannot pass on anything about a class but
    what they say of motion.

    Args:
        actions: The set.
        model: Whose features of all tokens, none masked, are read.
        num_views: Clips of a video, evenly spaced in time, of the middle of the frame.
        seed: Of the probe.

    Returns:
        `explained`: 1 - squared error / squared error of always predicting the mean of the training clips; `read` and
        `measured`: what `run_probe` found.

    Raises:
        VideoReadError: If a video cannot be read.
    """
    tokens, motion, counts = {}, {}, {}
    for part in ("train", "test"):
        clips_of_videos = measured_clips(getattr(actions, part), num_views, 1, model.config)
        found = [_features_and_motion(model, clips) for clips in clips_of_videos]
        tokens[part], motion[part], counts[part] = (torch.stack(values) for values in zip(*found, strict=True))
    standardise = Standardisation.of(tokens["train"])
    known = {part: (standardise(tokens[part][own]), motion[part][own]) for part, own in counts.items()}
    units = Standardisation.of(known["train"][1][None])
    weights = ridge(known["train"][0], units(known["train"][1]))
    inputs, wanted = known["test"]
    error = (inputs @ weights - units(wanted)).square().sum() / units(wanted).square().sum()
    judged = {"read": standardise(tokens["test"]) @ weights, "measured": units(motion["test"])}
    train = in_parts(units(motion["train"]), counts["train"], model.config)
    probes = {}
    for name, values in judged.items():
        probes[name] = _probe(actions, {"train": train, "test": in_parts(values, counts["test"], model.config)}, seed)
    return {"set": actions.name, "explained": 1 - error.item(), **probes}


@torch.no_grad()
def _features_and_motion(
    model: MMEModel, clips: Mapping[str, torch.Tensor]
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return features (clips, N, D), motion (clips, N, 9) and whether all points of a token are seen (clips, N)."""
    features = model(clips["pixel_values"]).last_hidden_state
    config = model.config
    num_steps = clips["labels"].shape[-1] // (2 * (config.patch_size // PositionTarget().cell_size_px) ** 2)
    displacements = PositionTarget().displacements(clips["labels"], num_steps, config.frame_size)
    return features, direction_votes(displacements).flatten(-3, -2).mean(-2), clips["target_mask"][..., 0]


@torch.no_grad()
def ridge(inputs: torch.Tensor, outputs: torch.Tensor) -> torch.Tensor:
    """Return the map (D, values) from standardised inputs (tokens, D) to centred outputs (tokens, values)."""
    products, targets = torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64), 0.0
    for some, wanted in zip(inputs.split(100_000), outputs.split(100_000), strict=True):
        products += (some.T @ some).double()
        targets = targets + (some.T @ wanted).double()
    penalty = _RIDGE * len(inputs) * torch.eye(len(products), dtype=torch.float64)
    return torch.linalg.solve(products + penalty, targets).float()


def in_parts(values: torch.Tensor, counts: torch.Tensor, config: MMEConfig) -> torch.Tensor:
    """Return the means of the tokens that count in 3 x 3 parts of the frame, shape (videos, clips, values * 9).

    Args:
        values: Shape (videos, clips, N, values).
        counts: Which tokens count, bool, shape (videos, clips, N).
        config: Sizes of clips and tokens.
    """
    rows, columns = (side // config.patch_size for side in config.frame_size)
    sums = []
    for own in (values * counts[..., None], counts[..., None].float()):
        grid = own.unflatten(2, (-1, rows, columns)).mean(2).movedim(-1, 2)  # (videos, clips, values, rows, columns)
        sums.append(torch.nn.functional.adaptive_avg_pool2d(grid.flatten(0, 1), _PARTS))
    # A part without a token that counts says 0: the mean.
    return (sums[0] / sums[1].clamp(min=1e-6)).flatten(1).unflatten(0, counts.shape[:2])


def _probe(actions: ActionSet, parts: Mapping[str, torch.Tensor], seed: int) -> dict[str, Any]:
    train, test, classes = labelled(actions, parts)
    # A configuration has an even width, and there are 9 values in 9 parts.
    train, test = (replace(own, values=torch.nn.functional.pad(own.values, (0, 1))) for own in (train, test))
    head = MMEConfig(hidden_size=train.values.shape[-1], num_attention_heads=1, num_labels=len(classes))
    return vars(run_probe("linear", train, test, head, seed=seed))
