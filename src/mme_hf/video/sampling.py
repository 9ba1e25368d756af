"""Which frames of a video make a clip: arithmetic on frame indices, no video is read here.

A window is a run of consecutive raw frames. `num_available` is how many frames of the video may be used and
`first` is where they begin, so a sub-range [first, first + num_available) of a video is sampled like a whole one.
"""

import torch


def _num_starts(num_available: int, window: int) -> int:
    if window < 1:
        raise ValueError(f"window ({window}) must be at least 1 frame.")
    if num_available < 1:
        raise ValueError(f"num_available ({num_available}) must be at least 1 frame.")
    # A video shorter than the window is read from its first frame; making up for the rest is the processor's task.
    return max(num_available - window, 0) + 1


def random_start(num_available: int, window: int, generator: torch.Generator, *, first: int = 0) -> int:
    """Return the first frame of a window drawn uniformly from all windows that lie inside the available frames.

    Args:
        num_available: Number of frames that may be used.
        window: Length of the window in frames. If it exceeds `num_available`, the start is `first`.
        generator: Source of randomness, on the CPU. Exactly one number is drawn.
        first: Index of the first available frame.

    Raises:
        ValueError: If `window` or `num_available` is less than 1.
    """
    num_starts = _num_starts(num_available, window)
    return first + int(torch.randint(num_starts, (1,), generator=generator))


def evenly_spaced_starts(num_available: int, window: int, num_clips: int, *, first: int = 0) -> list[int]:
    """Return the first frames of `num_clips` windows spread evenly over the available frames.

    One window sits in the middle; more reach from the first possible start to the last, rounded down. Windows repeat
    where there are fewer starts than clips.

    Args:
        num_available: Number of frames that may be used.
        window: Length of a window in frames. If it exceeds `num_available`, every start is `first`.
        num_clips: Number of windows.
        first: Index of the first available frame.

    Raises:
        ValueError: If an argument is less than 1.
    """
    if num_clips < 1:
        raise ValueError(f"num_clips ({num_clips}) must be at least 1.")
    last_start = _num_starts(num_available, window) - 1
    if num_clips == 1:
        return [first + last_start // 2]
    return [first + clip * last_start // (num_clips - 1) for clip in range(num_clips)]


def window_indices(start: int, window: int, num_available: int, *, first: int = 0, stride: int = 1) -> list[int]:
    """Return the frames of the window at `start`, every `stride`-th, that exist.

    Args:
        start: First frame of the window, as the functions above give it.
        window: Length of the window in frames.
        num_available: Number of frames that may be used.
        first: Index of the first available frame.
        stride: Step between the frames returned.

    Raises:
        ValueError: If `start` is not an available frame, or `window`, `num_available` or `stride` is less than 1.
    """
    _num_starts(num_available, window)
    if stride < 1:
        raise ValueError(f"stride ({stride}) must be at least 1 frame.")
    end = first + num_available
    if not first <= start < end:
        raise ValueError(f"start ({start}) must be an available frame, in [{first}, {end}).")
    return list(range(start, min(start + window, end), stride))
