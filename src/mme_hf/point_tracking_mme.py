"""Points carried along by a dense flow: from motion at every pixel to tracks."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, Literal

import torch

from .trajectories_mme import Trajectories, is_inside


@torch.no_grad()
def track_points(
    flow: torch.Tensor,
    points_xy: torch.Tensor,
    *,
    num_steps: int,
    start_frames: Sequence[int] = (0,),
    interpolation: Literal["bilinear", "nearest"] = "bilinear",
    border: Literal["free", "clamp"] = "free",
) -> Trajectories:
    """Return the tracks of points carried along by a dense flow, from each start frame.

    Args:
        flow: Motion from each raw frame to the next in pixels, x then y, shape (..., T, 2, H, W).
        points_xy: Points to follow, in pixels, shape (P, 2).
        num_steps: Number of displacements per track.
        start_frames: Raw frames that a track of every point starts at.
        interpolation: How flow is read between pixel centres. Beyond the frame the nearest border value is read.
        border: "free" lets points move out of the frame; "clamp" moves the place where flow is read next back to the
            border, as the published code does. Either way positions are sums of the displacements read, and a point
            that has left the frame is invisible from then on.

    Returns:
        Trajectories with S = len(start_frames), on the device of `flow`.

    Raises:
        ValueError: If shapes disagree, a value is not finite, or a track needs more frames than `flow` has. On a CUDA
            device a value that is not finite fails an assertion there instead: an error here would have to wait for it.

    Source: Masked Motion Encoding, equation 2: p_{t+1} = p_t + w_t(p_t). Differs from the published code in reading
        sub-pixel flow; see `border`, `interpolation` and the tracker's `flow_precision` for its numerics.
    """
    check_flow(flow)
    check_points(points_xy)
    if interpolation not in ("bilinear", "nearest"):
        raise ValueError(f"interpolation ({interpolation!r}) is unknown. Choose 'bilinear' or 'nearest'.")
    if border not in ("free", "clamp"):
        raise ValueError(f"border ({border!r}) is unknown. Choose 'free' or 'clamp'.")
    check_tracked_frames(flow.shape[-4] + 1, start_frames, num_steps)
    for name, values in (("flow", flow), ("points_xy", points_xy)):
        check_finite(name, values)

    frame_size = (flow.shape[-2], flow.shape[-1])
    flow_rows = flow.to(torch.float32).movedim(-3, -1).flatten(-4, -2)  # (..., T * H * W, 2)
    starts = constant_on(flow.device, start_frames)[:, None]
    shape = (*flow.shape[:-4], len(start_frames), *points_xy.shape)
    # Only onto a GPU: what is fetched from one may not be there yet.
    position = points_xy.to(flow.device, torch.float32, non_blocking=flow.is_cuda).expand(shape)  # (..., S, P, 2)
    read_at, visible = position, is_inside(position, frame_size)
    positions, visibles = [position], [visible]
    for step in range(num_steps):
        motion = _read_flow(flow_rows, starts + step, _clamp(read_at, frame_size), frame_size, interpolation)
        position, read_at = position + motion, read_at + motion
        visible = visible & is_inside(read_at, frame_size)
        if border == "clamp":
            read_at = _clamp(read_at, frame_size)
        positions.append(position)
        visibles.append(visible)
    return Trajectories(torch.stack(positions, dim=-3), torch.stack(visibles, dim=-2), frame_size)


def check_flow(flow: torch.Tensor) -> None:
    """Raise ValueError unless flow is a tensor of shape (..., T, 2, H, W); what OpenCV returns is none."""
    if not isinstance(flow, torch.Tensor):
        raise ValueError(
            f"flow is a {type(flow).__name__}; it must be a tensor of shape (..., frames, 2, height, width)."
        )
    if flow.ndim < 4 or flow.shape[-3] != 2:
        raise ValueError(f"flow has shape {tuple(flow.shape)}; it must be (..., frames, 2, height, width).")


def check_points(points_xy: torch.Tensor) -> None:
    """Raise ValueError unless points are a tensor of shape (P, 2)."""
    if not isinstance(points_xy, torch.Tensor):
        raise ValueError(f"points_xy is a {type(points_xy).__name__}; it must be a tensor of shape (points, 2).")
    if points_xy.ndim != 2 or points_xy.shape[-1] != 2:
        raise ValueError(f"points_xy has shape {tuple(points_xy.shape)}; it must be (points, 2).")


def check_finite(name: str, values: torch.Tensor) -> None:
    """Raise ValueError if a value is not finite; on a CUDA device fail an assertion there instead, without waiting."""
    is_finite = values.sum(dtype=torch.float32).isfinite()  # a sum, as it needs no memory: nan and inf stay in it
    message = f"{name} holds values that are not finite (nan or inf). Replace them, for example by 0."
    if values.is_cuda:
        torch._assert_async(is_finite, message)
    elif not is_finite:
        raise ValueError(message)


def constant_on(device: torch.device, values: Sequence[Any]) -> torch.Tensor:
    """Return a few numbers as a tensor on a device, without waiting until that has done what it was given before.

    Args:
        device: Where the tensor is to be.
        values: Numbers, or sequences of numbers.
    """
    # CUDA copies pageable memory before it goes on; elsewhere the numbers could be gone when they are read.
    return torch.tensor(values).to(device, non_blocking=device.type == "cuda")


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Compute float32 as float32: without autocast, and without TF32 or bfloat16 inside of products and convolutions.

    What a model is to predict does not depend on how it is trained. The settings are those of the process: other
    threads compute so too meanwhile.

    Args:
        device: Where it is computed.
    """
    # What is as it should be is not touched: written once, a setting no longer follows more general ones.
    changed = [(write, read(), full) for read, write, full in _precision_settings() if read() != full]
    try:
        for write, _, full in changed:
            write(full)
        with torch.autocast(device.type, enabled=False):
            yield
    finally:
        for write, before, _ in changed:
            write(before)


def _precision_settings() -> list[tuple[Callable[[], Any], Callable[[Any], None], Any]]:
    """Return what says how float32 is computed: how to read and to write it, and the value that keeps all digits.

    Torch has had two ways to say so since 2.9, and refuses to read the older one where the newer one was used.
    """
    cudnn = torch.backends.cudnn
    older = [
        (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision, "highest"),
        (partial(getattr, cudnn, "allow_tf32"), partial(setattr, cudnn, "allow_tf32"), False),
    ]
    try:
        for read, _, _ in older:
            read()
    except RuntimeError:
        mkldnn, name = torch.backends.mkldnn, "fp32_precision"
        owners = (torch.backends.cuda.matmul, cudnn.conv, cudnn.rnn, mkldnn.matmul, mkldnn.conv, mkldnn.rnn)
        return [(partial(getattr, owner, name), partial(setattr, owner, name), "ieee") for owner in owners]
    return older


def check_tracked_frames(num_frames: int, start_frames: Sequence[int], num_steps: int) -> None:
    """Raise ValueError unless tracks of `num_steps` from each of `start_frames` stay within `num_frames` frames."""
    if num_steps < 1:
        raise ValueError(f"num_steps ({num_steps}) must be at least 1.")
    if len(start_frames) == 0 or min(start_frames) < 0:
        raise ValueError(f"start_frames ({list(start_frames)}) must hold at least one frame, none negative.")
    if max(start_frames) + num_steps >= num_frames:
        raise ValueError(
            f"a track from frame {max(start_frames)} over num_steps ({num_steps}) needs "
            f"{max(start_frames) + num_steps + 1} frames; there are {num_frames}. Give more frames or fewer steps."
        )


def _clamp(points_xy: torch.Tensor, frame_size: tuple[int, int]) -> torch.Tensor:
    height, width = frame_size
    x, y = points_xy.unbind(-1)
    return torch.stack([x.clamp(0, width - 1), y.clamp(0, height - 1)], dim=-1)


def _read_flow(
    flow_rows: torch.Tensor,
    frames: torch.Tensor,
    points_xy: torch.Tensor,
    frame_size: tuple[int, int],
    interpolation: str,
) -> torch.Tensor:
    """Return flow (..., S, P, 2) at points (..., S, P, 2) inside frames (S, 1) of `flow_rows` (..., T * H * W, 2)."""
    height, width = frame_size

    def read(column: torch.Tensor, row: torch.Tensor) -> torch.Tensor:
        index = ((frames * height + row) * width + column).flatten(-2)  # (..., S * P)
        values = flow_rows.gather(-2, index[..., None].expand(*index.shape, 2))
        return values.unflatten(-2, points_xy.shape[-3:-1])

    if interpolation == "nearest":
        x, y = points_xy.round().long().unbind(-1)
        return read(x, y)
    x0, y0 = points_xy.long().unbind(-1)
    x1, y1 = (x0 + 1).clamp(max=width - 1), (y0 + 1).clamp(max=height - 1)
    right, down = points_xy.frac().split(1, dim=-1)
    upper = torch.lerp(read(x0, y0), read(x1, y0), right)
    lower = torch.lerp(read(x0, y1), read(x1, y1), right)
    return torch.lerp(upper, lower, down)
