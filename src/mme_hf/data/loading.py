"""DataLoaders of clips."""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from multiprocessing.context import BaseContext
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import DataLoader

from .clips import ClipCollator, ClipDataset, ClipResult, ClipSampling, TargetsOn, VideoDataset
from .ordering import ClipBatchSampler, RecordRequest

if TYPE_CHECKING:
    from ..video_processing_mme import MMEVideoProcessor
    from .records import VideoRecords
    from .stored_tracks import StoredTracks


def build_clip_loader(
    records: VideoRecords,
    processor: MMEVideoProcessor,
    *,
    batch_size: int,
    sampling: ClipSampling | None = None,
    num_workers: int = 0,
    return_targets: bool = True,
    targets_on: TargetsOn = "workers",
    pin_memory: bool = False,
    stored_tracks: StoredTracks | None = None,
    **order_options,
) -> DataLoader:
    """Return a loader of batches as `ClipCollator` makes them.

    Args:
        records: The videos.
        processor: Makes model inputs from raw frames.
        batch_size: Clips in a batch of this process; a multiple of `sampling.samples_per_video`.
        sampling: How clips are cut from a video.
        num_workers: Processes that decode; 0 decodes in the calling process.
        return_targets: Whether to make masks, labels and target masks.
        targets_on: Where these are made: by the "workers", or on the model's "device" by `training.BatchInputs`, of the
            raw clips that workers then send.
        pin_memory: Whether batches are copied to pinned memory, for a GPU.
        stored_tracks: Where tracks are read; None to track on line.
        **order_options: Passed to `ClipBatchSampler`: seed, shuffle, cursor, process_index, ...

    Raises:
        ValueError: If `batch_size` does not divide by `samples_per_video`.
    """
    sampling = sampling or ClipSampling()
    if batch_size % sampling.samples_per_video:
        raise ValueError(
            f"batch_size ({batch_size}) does not divide by samples_per_video ({sampling.samples_per_video}). "
            "Choose a multiple: it counts clips, not videos."
        )
    targets = {"return_targets": return_targets, "targets_on": targets_on}
    return video_loader(
        ClipDataset(records, processor, sampling, stored_tracks=stored_tracks, **targets),
        ClipBatchSampler(records, batch_size=batch_size // sampling.samples_per_video, **order_options),
        ClipCollator(processor, **targets),
        num_workers=num_workers,
        pin_memory=pin_memory,
    )


def video_loader(
    dataset: VideoDataset,
    batch_sampler: Iterable[list[RecordRequest]],
    collator: Callable[[Sequence[ClipResult]], dict[str, Any]],
    *,
    num_workers: int = 0,
    pin_memory: bool = False,
) -> DataLoader:
    """Return a loader whose workers decode and do nothing else, and end with the run.

    Args:
        dataset: Makes samples of videos.
        batch_sampler: Says which.
        collator: Makes a batch of what came of them.
        num_workers: Processes that decode; 0 decodes in the calling process.
        pin_memory: Whether batches are copied to pinned memory, for a GPU.
    """
    return DataLoader(
        dataset,
        batch_sampler=batch_sampler,
        num_workers=num_workers,
        collate_fn=collator,
        pin_memory=pin_memory,
        worker_init_fn=_start_worker,
        multiprocessing_context=_worker_context() if num_workers else None,
        # The loader seeds its workers from this generator; left to itself it draws from torch's default one, and a
        # resumed run would no longer equal an uninterrupted one.
        generator=torch.Generator().manual_seed(0),
    )


def _worker_context() -> BaseContext:
    # Not "fork": a worker forked after OpenCV or OpenMP has started threads waits for them for ever.
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    # The server imports once what every worker needs, which would else take each of them seconds.
    context.set_forkserver_preload(["mme_hf.data", "mme_hf.video_processing_mme", "datasets", "av", "cv2"])
    return context


def _start_worker(worker_id: int) -> None:
    import cv2

    # One worker, one thread: more only fight over the cores that the other workers use.
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    sys.excepthook = _print_fault
    # A worker keeps its fork server alive and, seeing it alive, goes on for ever after the run has been killed.
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _print_fault(kind: type[BaseException], error: BaseException, traceback: TracebackType | None) -> None:
    # The thread that hands a batch over prints what it meets, also where the run was stopped while it took the batch:
    # that is no fault, and the run has said that it was stopped. What goes wrong in a sample does not come by here.
    if not issubclass(kind, ConnectionError | EOFError):
        sys.__excepthook__(kind, error, traceback)


def _end_with_parent() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)
