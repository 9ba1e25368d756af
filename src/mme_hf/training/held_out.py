"""The last word of a run: how much it explains of clips it has not seen."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING

from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data import BadVideoLog, TooManyBadVideosError
from .evaluation import MeanPredictor, NothingToExplainError, explained_share

if TYPE_CHECKING:
    from ..modeling_mme import MMEForPreTraining

logger = logging.getLogger(__name__)


def report_explained_share(
    accelerator: Accelerator,
    model: MMEForPreTraining,
    training_batches: Iterable[Mapping],
    held_out_batches: Iterable[Mapping],
    bad_videos: BadVideoLog,
) -> dict[str, float] | None:
    """Measure, print and return each target's explained share, or None, saying why, where it cannot be measured.

    Args:
        accelerator: Adds up over processes.
        model: Not wrapped for distribution.
        training_batches: What the mean predictor is the mean of.
        held_out_batches: What is to be explained.
        bad_videos: Takes the held-out videos that could not be read; too many are a warning here, for the model is
            trained and may as well be measured on the rest.
    """
    sizes = {name: target["size"] for name, target in model.config.motion_targets.items()}
    try:
        baseline = MeanPredictor.fit(training_batches, sizes, accelerator)
        shares = explained_share(model, _put_up_with(watched(held_out_batches, bad_videos)), baseline, accelerator)
    except NothingToExplainError as error:
        logger.warning("explained share not measured: %s", error)
        return None
    logger.info("explained share on held-out clips (1 - error / error of predicting the training mean):")
    for name, share in shares.items():
        logger.info("  %-10s %+.4f", name, share)
    return shares


def watched(batches: Iterable[Mapping], bad_videos: BadVideoLog) -> Iterator[Mapping]:
    """Yield the batches, and at their end tell `bad_videos` which videos of all processes could not be read.

    Raises:
        TooManyBadVideosError: At the end, on every process alike.
    """
    bad, num_seen = [], 0
    for batch in batches:
        bad += batch["bad_videos"]
        num_seen += batch["num_records"]
        yield batch
    bad_videos.record(gather_object(bad), num_seen=sum(gather_object([num_seen])))


def _put_up_with(batches: Iterable[Mapping]) -> Iterator[Mapping]:
    try:
        yield from batches
    except TooManyBadVideosError as error:
        logger.warning("held-out clips: %s", error)
