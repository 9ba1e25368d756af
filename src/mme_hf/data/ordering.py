"""Which record goes where: a pure function of seed, epoch and position, so that any run can be resumed exactly.

The records of all epochs form one endless sequence, cut into batches without a remainder. With P processes the record
at place n of the sequence belongs to process n % P, so P processes of batch size B see what one process of batch size
P * B sees. The main process orders *undecoded* records (row numbers, or a stream's records as they are); workers only
decode what they are handed. So a stream with fewer shards than workers idles none of them. One exception: a stream
whose shards divide among the processes is read shard by shard, each record by one process alone, and then its order
depends on the number of processes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

if TYPE_CHECKING:
    from .records import VideoRecords


@dataclass(frozen=True)
class RecordCursor:
    """How far one process has come in the endless sequence of records.

    Attributes:
        epoch: Epoch of the next record, from 0.
        index: Place of the next record within that epoch.
        count: Place of the next record in the whole sequence.
    """

    epoch: int = 0
    index: int = 0
    count: int = 0

    def to_dict(self) -> dict[str, int]:
        """Return the fields as a dictionary, for JSON."""
        return asdict(self)


@dataclass(frozen=True)
class RecordRequest:
    """One video to decode.

    Attributes:
        record: Row number of a data set in memory, or the undecoded record of a stream.
        epoch: Epoch it belongs to.
        index: Place within that epoch.
        seed: Seed for everything that is random in this video's samples.
        next_cursor: Where to go on once this record has been used.
    """

    record: int | dict[str, Any]
    epoch: int
    index: int
    seed: int
    next_cursor: RecordCursor


def record_seed(seed: int, epoch: int, index: int) -> int:
    """Return the seed of one record's randomness, in [0, 2**63): well mixed, and the same on every machine."""
    return int(np.random.SeedSequence((seed, epoch, index)).generate_state(1, np.uint64)[0] >> 1)


def batches_of_rows(rows: Sequence[int], batch_size: int) -> list[list[RecordRequest]]:
    """Return requests for some rows of a data set in memory, each once and in this order.

    Args:
        rows: Their numbers.
        batch_size: Records in a batch; the last may have fewer.
    """
    requests = [RecordRequest(row, 0, row, record_seed(0, 0, row), RecordCursor(0, row + 1, row + 1)) for row in rows]
    return [requests[first : first + batch_size] for first in range(0, len(requests), batch_size)]


class ClipBatchSampler:
    """Yields lists of `RecordRequest`, a batch each, for one process; endless unless `num_epochs` is given.

    Args:
        records: The videos.
        batch_size: Records in a batch of this process.
        seed: Seed of the order and of each record's randomness.
        shuffle: Whether each epoch has its own order.
        shuffle_buffer_size: Records held to shuffle a stream; also decides what order comes out.
        process_index: Which process this is, from 0.
        num_processes: How many there are.
        cursor: Where to start, as a `RecordRequest.next_cursor` of an earlier run of the same settings.
        num_epochs: Stop after so many epochs; the last batch may then be smaller.
    """

    def __init__(
        self,
        records: VideoRecords,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        shuffle_buffer_size: int = 256,
        process_index: int = 0,
        num_processes: int = 1,
        cursor: RecordCursor | None = None,
        num_epochs: int | None = None,
    ):
        if batch_size < 1:
            raise ValueError(f"batch_size ({batch_size}) must be at least 1.")
        self.batch_size = batch_size
        self.seed = seed
        self.process_index = process_index
        self.num_processes = num_processes
        self.cursor = cursor or RecordCursor()
        self.num_epochs = num_epochs
        # A stream that is split by shards holds this process' records alone; of others each keeps every n-th.
        is_stream = records.num_records is None
        is_split = is_stream and num_processes > 1 and records.dataset.num_shards % num_processes == 0
        self._keeps_every = 1 if is_split else num_processes
        if is_stream:
            share = (process_index, num_processes) if is_split else None
            self._epoch_records = _streamed_records(records.dataset, seed, shuffle, shuffle_buffer_size, share)
        else:
            self._epoch_records = _rows_in_order(records.num_records, seed, shuffle)

    def __iter__(self) -> Iterator[list[RecordRequest]]:
        """Yield batches from the cursor on."""
        batch: list[RecordRequest] = []
        for request in self._requests():
            batch.append(request)
            if len(batch) == self.batch_size:
                yield batch
                batch = []
        if batch:
            yield batch

    def _requests(self) -> Iterator[RecordRequest]:
        cursor = self.cursor
        while self.num_epochs is None or cursor.epoch < self.num_epochs:
            start = cursor
            for record in self._epoch_records(cursor.epoch, cursor.index):
                following = RecordCursor(cursor.epoch, cursor.index + 1, cursor.count + 1)
                if self._keeps_every == 1 or cursor.count % self._keeps_every == self.process_index:
                    seed = record_seed(self.seed, cursor.epoch, self._global_index(cursor.index))
                    yield RecordRequest(record, cursor.epoch, cursor.index, seed, following)
                cursor = following
            if cursor == start and cursor.index == 0 and self.num_epochs is None:
                raise ValueError(f"epoch {cursor.epoch} of the data set yields no record. Is the stream empty?")
            cursor = RecordCursor(cursor.epoch + 1, 0, cursor.count)

    def _global_index(self, index: int) -> int:
        # Processes that read shards of their own count alike; keep their records' seeds apart.
        return index * self.num_processes + self.process_index if self._keeps_every < self.num_processes else index


EpochRecords = Callable[[int, int], Iterator[Any]]


def _rows_in_order(num_records: int, seed: int, shuffle: bool) -> EpochRecords:
    def rows(epoch: int, start: int) -> Iterator[int]:
        if not shuffle:
            return iter(range(start, num_records))
        generator = torch.Generator().manual_seed(record_seed(seed, epoch, num_records))
        return iter(torch.randperm(num_records, generator=generator)[start:].tolist())

    return rows


def _streamed_records(
    dataset: Any, seed: int, shuffle: bool, buffer_size: int, share: tuple[int, int] | None
) -> EpochRecords:
    from datasets.distributed import split_dataset_by_node

    if shuffle:
        dataset = dataset.shuffle(seed=seed, buffer_size=buffer_size)
    if share is not None:
        dataset = split_dataset_by_node(dataset, rank=share[0], world_size=share[1])

    def replayed(epoch: int, start: int) -> Iterator[dict[str, Any]]:
        # datasets loses its shuffle buffer when a stream's state is restored, so the undecoded records up to the
        # start are read again: the only way to get the same order.
        dataset.set_epoch(epoch)
        for index, record in enumerate(dataset):
            if index >= start:
                yield record

    return replayed
