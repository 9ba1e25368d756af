"""A data set of videos read row by row, in whatever order someone else chooses, as transformers' Trainer does."""

from __future__ import annotations

import logging
from operator import index

import torch

from .bad_videos import BadVideo, TooManyBadVideosError
from .ordering import RecordCursor, RecordRequest, record_seed

logger = logging.getLogger(__name__)


class RowReading:
    """What reading by row numbers needs beside the rows: a seed, the epoch, and which rows could not be read.

    The last two lie in memory that this process shares with its DataLoader workers: workers that live on from epoch to
    epoch learn of a new one, and what each of them cannot read counts together.

    Args:
        num_rows: Videos of the data set.
        seed: Of everything that is random about samples.
        max_bad_fraction: Largest share of unreadable videos that is put up with, in [0, 1].
    """

    def __init__(self, num_rows: int, *, seed: int = 0, max_bad_fraction: float = 0.05):
        if not 0.0 <= max_bad_fraction <= 1.0:
            raise ValueError(f"max_bad_fraction ({max_bad_fraction}) must lie in [0, 1], such as 0.05.")
        self.num_rows = num_rows
        self.seed = seed
        self.max_bad_fraction = max_bad_fraction
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        self._is_bad = torch.zeros(num_rows, dtype=torch.bool).share_memory_()

    @property
    def epoch(self) -> int:
        """The epoch that rows are read for, from 0."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def request(self, row: int) -> RecordRequest:
        """Return the request for a row in the present epoch; what is random about it depends on seed, epoch and row.

        Raises:
            IndexError: If there is no such row.
        """
        row = index(row)
        if not 0 <= row < self.num_rows:
            raise IndexError(f"row {row} is outside [0, {self.num_rows}).")
        epoch = self.epoch
        return RecordRequest(
            row,
            epoch,
            row,
            record_seed(self.seed, epoch, row),
            RecordCursor(epoch, row + 1, epoch * self.num_rows + row + 1),
        )

    def report(self, row: int, bad_video: BadVideo) -> None:
        """Count a row that could not be read, and say so the first time.

        Raises:
            TooManyBadVideosError: If more than `max_bad_fraction` of the rows, or all, could not be read by now.
        """
        if not self._is_bad[row]:
            logger.warning("skipped a bad video: %s: %s", bad_video.source, bad_video.cause)
        self._is_bad[row] = True
        num_bad = int(self._is_bad.sum())
        if num_bad > self.max_bad_fraction * self.num_rows or num_bad == self.num_rows:
            raise TooManyBadVideosError(
                f"{num_bad} of {self.num_rows} videos are bad, more than max_bad_fraction "
                f"({self.max_bad_fraction:.0%}) allows. The last one is {bad_video.source}: "
                f"{bad_video.cause.rstrip('.')}. Mend or remove them, or raise max_bad_fraction."
            )
