"""Which record goes to which process, epoch and batch."""

from itertools import islice

import pytest
from datasets import Dataset

from mme_hf.data import ClipBatchSampler, RecordCursor, VideoRecords
from mme_hf.data.ordering import batches_of_rows, record_seed


def rows(num_records: int) -> VideoRecords:
    return VideoRecords(Dataset.from_dict({"video": list(range(num_records))}), "numbers", num_records)


def stream(num_records: int, num_shards: int) -> VideoRecords:
    dataset = Dataset.from_dict({"video": list(range(num_records))}).to_iterable_dataset(num_shards=num_shards)
    return VideoRecords(dataset, "numbers", None)


def record_numbers(requests) -> list[int]:
    return [request.record if isinstance(request.record, int) else request.record["video"] for request in requests]


@pytest.mark.parametrize("records", [rows(7), stream(7, 2)], ids=["rows", "stream"])
def test_each_epoch_holds_every_record_once_in_its_own_order(records):
    requests = [request for batch in islice(ClipBatchSampler(records, batch_size=7), 2) for request in batch]
    first, second = record_numbers(requests[:7]), record_numbers(requests[7:])
    assert sorted(first) == sorted(second) == list(range(7))
    assert first != second


@pytest.mark.parametrize("records", [rows(7), stream(7, 2)], ids=["rows", "stream"])
def test_each_record_of_each_epoch_has_a_seed_of_its_own(records):
    requests = [request for batch in islice(ClipBatchSampler(records, batch_size=7), 3) for request in batch]
    assert {request.epoch for request in requests} == {0, 1, 2}
    assert len({request.seed for request in requests}) == 21


@pytest.mark.parametrize("records", [rows(5), stream(5, 1)], ids=["rows", "stream"])
def test_batches_run_on_over_the_end_of_an_epoch(records):
    batches = list(islice(ClipBatchSampler(records, batch_size=3, shuffle=False), 4))
    assert [record_numbers(batch) for batch in batches] == [[0, 1, 2], [3, 4, 0], [1, 2, 3], [4, 0, 1]]
    assert [request.epoch for request in batches[1]] == [0, 0, 1]


@pytest.mark.parametrize("records", [rows(7), stream(7, 1), stream(7, 3)], ids=["rows", "one shard", "three shards"])
def test_two_processes_see_what_one_sees_with_twice_the_batch(records):
    alone = list(islice(ClipBatchSampler(records, batch_size=4), 5))
    parts = [
        list(islice(ClipBatchSampler(records, batch_size=2, process_index=index, num_processes=2), 5))
        for index in range(2)
    ]
    for together, first, second in zip(alone, *parts, strict=True):
        assert {request.seed for request in together} == {request.seed for request in first + second}
        assert sorted(record_numbers(together)) == sorted(record_numbers(first + second))


def test_processes_read_disjoint_shards_where_these_divide():
    samplers = [
        ClipBatchSampler(stream(8, 4), batch_size=4, num_epochs=1, process_index=index, num_processes=2)
        for index in range(2)
    ]
    first, second = ([request for batch in sampler for request in batch] for sampler in samplers)
    assert sorted(record_numbers(first) + record_numbers(second)) == list(range(8))
    assert len({request.seed for request in first + second}) == 8


@pytest.mark.parametrize("num_processes", [1, 2])
@pytest.mark.parametrize("records", [rows(7), stream(7, 1), stream(7, 2)], ids=["rows", "one shard", "two shards"])
@pytest.mark.parametrize("stop_after", [1, 3, 4])
def test_going_on_from_a_cursor_equals_never_having_stopped(records, num_processes, stop_after):
    options = {"batch_size": 2, "seed": 3, "process_index": num_processes - 1, "num_processes": num_processes}
    whole = list(islice(ClipBatchSampler(records, **options), stop_after + 5))
    cursor = whole[stop_after - 1][-1].next_cursor
    resumed = list(islice(ClipBatchSampler(records, **options, cursor=RecordCursor(**cursor.to_dict())), 5))
    assert resumed == whole[stop_after:]


def test_one_epoch_ends_with_a_smaller_batch():
    batches = list(ClipBatchSampler(rows(5), batch_size=2, shuffle=False, num_epochs=1))
    assert [record_numbers(batch) for batch in batches] == [[0, 1], [2, 3], [4]]


def test_seeds_differ_in_each_of_their_parts():
    seeds = {record_seed(seed, epoch, index) for seed in range(3) for epoch in range(3) for index in range(3)}
    assert len(seeds) == 27
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_an_empty_stream_is_an_error_and_not_an_endless_loop():
    with pytest.raises(ValueError, match="epoch 0 of the data set yields no record"):
        next(
            iter(
                ClipBatchSampler(stream(3, 1), batch_size=1, cursor=RecordCursor(epoch=0, index=0)).__class__(
                    VideoRecords(stream(3, 1).dataset.take(0), "nothing", None), batch_size=1
                )
            )
        )


def test_a_batch_needs_a_record():
    with pytest.raises(ValueError, match=r"batch_size \(0\) must be at least 1"):
        ClipBatchSampler(rows(3), batch_size=0)


def test_rows_that_are_named_are_requested_once_and_keep_their_numbers():
    batches = batches_of_rows([7, 2, 5], 2)
    assert [[request.record for request in batch] for batch in batches] == [[7, 2], [5]]
    # Collators count back from the cursor to say which record a clip is of.
    assert [request.next_cursor.index - 1 for batch in batches for request in batch] == [7, 2, 5]
    assert batches_of_rows([], 2) == []
