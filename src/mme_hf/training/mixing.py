"""From a batch of labelled clips to what a classifier trains on: clips mixed with each other, labels as shares."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.nn.functional import one_hot
from torchvision import tv_tensors
from torchvision.transforms import v2


class UnlabelledVideoError(ValueError):
    """A video to train on has no class."""


class MixedInputs:
    """Makes a classifier's keyword arguments of a batch: pixel values, and a share of each class for each clip.

    One batch in two is blended (MixUp) and one has rectangles pasted (CutMix), each clip with a clip of another video,
    if the batch has more than one; then labels are smoothed. What is drawn depends on the seed and on the batch's place
    in the run alone.

    Args:
        device: Where the model is.
        num_classes: Of the model.
        mixup_alpha: Of MixUp's Beta distribution; 0 for none of it.
        cutmix_alpha: Of CutMix'.
        label_smoothing: Share of each label that is spread over all classes.
        clips_per_video: Clips of each video in a batch.
        seed: Of the run.

    Source: the fine-tuning recipe of Masked Motion Encoding, which is VideoMAE's. It pairs the first clip with the
        last; here a clip's partner is the next one, of another video.
    """

    def __init__(
        self,
        device: torch.device | str,
        *,
        num_classes: int,
        mixup_alpha: float = 0.8,
        cutmix_alpha: float = 1.0,
        label_smoothing: float = 0.1,
        clips_per_video: int = 1,
        seed: int = 0,
    ):
        self.device = torch.device(device)
        self.num_classes = num_classes
        self.label_smoothing = label_smoothing
        self.clips_per_video = clips_per_video
        self.seed = seed
        mixers = [
            mixer(alpha=alpha, num_classes=num_classes)
            for mixer, alpha in ((v2.MixUp, mixup_alpha), (v2.CutMix, cutmix_alpha))
            if alpha
        ]
        self.mixer = v2.RandomChoice(mixers) if mixers else None

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return `pixel_values`, as they are or mixed, and `labels`, float32, shape (clips, classes), rows of sum 1.

        Args:
            batch: As `LabelledCollator` makes it; one without clips gives tensors of zero clips.

        Raises:
            UnlabelledVideoError: If a clip has no class of the model.
        """
        for source, label in zip(batch["sources"], batch["labels"].tolist(), strict=True):
            if label < 0:
                raise UnlabelledVideoError(f"{source} has no label, so it cannot be trained on. Leave it out.")
        pixel_values = batch["pixel_values"].to(self.device, non_blocking=True)
        labels = one_hot(batch["labels"].to(self.device, non_blocking=True), self.num_classes).float()
        if self.mixer is not None and len(labels) > 1:
            pixel_values, labels = self._mixed(pixel_values, labels, batch["next_cursor"].count)
        labels = labels * (1 - self.label_smoothing) + self.label_smoothing / self.num_classes
        return {"pixel_values": pixel_values, "labels": labels}

    def _mixed(self, pixel_values: torch.Tensor, labels: torch.Tensor, place: int) -> tuple[torch.Tensor, torch.Tensor]:
        # A clip's partner is its neighbour: first clips of all videos, then second ones, not the clips of one video.
        order = torch.arange(len(labels), device=self.device).unflatten(0, (-1, self.clips_per_video)).T.flatten()
        seed = int(np.random.SeedSequence((self.seed, place)).generate_state(1, np.uint64)[0] >> 1)
        # torchvision draws from torch's default generator; what the model draws must not depend on it.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            clips, labels = self.mixer(tv_tensors.Video(pixel_values[order]), labels[order])
        return clips.as_subclass(torch.Tensor), labels
