"""Processes of a run: the cores of each, how long one waits for another, and what all give to the main one."""

from __future__ import annotations

import os
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import InitProcessGroupKwargs, gather_object
from torch import distributed

# For an Accelerator whose processes meet only at the end: the last one may be hours behind the first.
LONG_WAITS = InitProcessGroupKwargs(timeout=timedelta(days=30))


def num_decoding_workers(wanted: int | None) -> int:
    """Return `wanted`, or what suits each training process: the cores, shared out, but at most 8."""
    if wanted is not None:
        return wanted
    return max(1, min(8, _num_cores() // _num_local_processes()))


def use_all_cores() -> None:
    """Give torch its cores back: `accelerate launch` and `torchrun` leave each process one thread."""
    torch.set_num_threads(max(1, _num_cores() // _num_local_processes()))


def group_of_cpus() -> distributed.ProcessGroup | None:
    """Return all processes as a group that talks through the memory of CPUs; None for one process alone.

    To be made before long work: a machine that cannot be reached so is an error at once.
    """
    return distributed.new_group(backend="gloo") if PartialState().num_processes > 1 else None


def gather_on_main(values: Sequence[Any], group: distributed.ProcessGroup | None, num_at_once: int = 64) -> list[Any]:
    """Return the values of all processes on the main one, those of the first process first, and none on the others.

    Some at a time; with Accelerate's `gather_object` every device would hold those of all processes.

    Args:
        values: Of this process: objects that can be pickled.
        group: What `group_of_cpus` returned.
        num_at_once: Of each process.
    """
    if group is None:
        return list(values)
    state = PartialState()
    most = max(gather_object([len(values)]))
    parts: list[list[Any]] = [[] for _ in range(state.num_processes)]
    for start in range(0, most, num_at_once):
        received = [None] * state.num_processes if state.is_main_process else None
        distributed.gather_object(list(values[start : start + num_at_once]), received, dst=0, group=group)
        for part, own in zip(parts, received or [], strict=False):
            part.extend(own)
    return [value for part in parts for value in part]


def _num_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _num_local_processes() -> int:
    # Set by torchrun and accelerate launch: the processes on this machine, which share its cores.
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
