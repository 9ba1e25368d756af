"""What transformers' Trainer needs to be told for our data sets."""

from __future__ import annotations

from typing import Any

from torch.utils.data import DataLoader
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments


class ClipEpochCallback(TrainerCallback):
    """Tells a data set of clips which epoch it is read for, so that each epoch has other crops, times and masks.

    On one process Accelerate does so of its own accord; on several it tells the sampler alone, and without this
    callback every epoch would show the clips of the first.
    """

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        train_dataloader: DataLoader,
        **kwargs: Any,
    ) -> None:
        """Set the epoch of the training data set; in a run resumed within an epoch that one."""
        # A sum of fractions that is meant to be a whole number may fall short of it by rounding.
        train_dataloader.dataset.set_epoch(int(state.epoch + 1e-6))
