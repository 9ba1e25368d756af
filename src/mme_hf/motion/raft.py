"""torchvision's RAFT (Teed and Deng, 2020): a trained flow, for comparison and where a GPU has time to spare."""

import pickle
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from http.client import HTTPException
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F

from ..point_tracking_mme import full_precision

# RAFT's correlation pyramid has four levels of 1/8 of the frame; torchvision refuses smaller frames.
MIN_FRAME_SIZE_PX = 128
# Frame pairs in one call: the all-pairs correlation of a 224 px pair takes 10 MB and more.
PAIRS_PER_CALL = 16
# A download that hears nothing for this long is given up; torchvision itself would wait without end.
DOWNLOAD_TIMEOUT_SECONDS = 20.0


@dataclass(frozen=True)
class RAFTFlow:
    """Dense flow by a network, on the device of the frames, in float32.

    Attributes:
        size: "small" or "large".
        weights: A file with torchvision's state dict; None for torchvision's own, from its cache or downloaded into it.
        num_updates: Recurrent updates.
    """

    name: ClassVar[str] = "raft"
    size: Literal["small", "large"] = "small"
    weights: str | None = None
    num_updates: int = 12

    def __post_init__(self):
        if self.size not in ("small", "large"):
            raise ValueError(f"tracker 'raft': size ({self.size!r}) must be 'small' or 'large'.")
        if self.num_updates < 1:
            raise ValueError(f"tracker 'raft': num_updates ({self.num_updates}) must be at least 1.")
        if self.weights is not None and not Path(self.weights).is_file():
            raise ValueError(f"tracker 'raft': weights ({self.weights!r}) is no file.")

    def prepare(self) -> None:
        """Load the weights, onto the CPU. Raises what a call would raise without them."""
        _model(self.size, self.weights, "cpu")

    @torch.no_grad()
    def __call__(self, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        """Return flow in pixels for every pair of frames, see `OpticalFlow`.

        Frames are enlarged to 128 px where they are smaller, and padded to multiples of 8 by repeating their border.

        Raises:
            ValueError: If `weights` is no state dict of this size of RAFT.
            RuntimeError: If torchvision's weights are neither in its cache nor can be downloaded.
        """
        model = _model(self.size, self.weights, str(frames.device))
        with full_precision(frames.device):
            return self._flow(model, frames, pairs)

    def _flow(self, model: torch.nn.Module, frames: torch.Tensor, pairs: Sequence[tuple[int, int]]) -> torch.Tensor:
        height, width = frames.shape[-2:]
        scale = max(1.0, MIN_FRAME_SIZE_PX / min(height, width))
        size = (round(height * scale), round(width * scale))
        right, below = -size[1] % 8, -size[0] % 8
        first, second = (frames[..., list(index), :, :, :].flatten(0, -4) for index in zip(*pairs, strict=True))
        flows = []
        for images in zip(first.split(PAIRS_PER_CALL), second.split(PAIRS_PER_CALL), strict=True):
            # Contiguous, or convolutions take other paths for other memory layouts and the last digits differ.
            planes = [image.contiguous().float() / 127.5 - 1 for image in images]
            if scale > 1:
                planes = [F.interpolate(plane, size, mode="bilinear", align_corners=False) for plane in planes]
            planes = [F.pad(plane, (0, right, 0, below), mode="replicate") for plane in planes]
            flow = model(*planes, num_flow_updates=self.num_updates)[-1][..., : size[0], : size[1]]
            if scale > 1:
                flow = F.interpolate(flow, (height, width), mode="bilinear", align_corners=False)
                flow = flow * flow.new_tensor([width / size[1], height / size[0]])[:, None, None]
            flows.append(flow)
        return torch.cat(flows).unflatten(0, (*frames.shape[:-4], len(pairs)))


@lru_cache(maxsize=2)
def _model(size: str, weights: str | None, device: str) -> torch.nn.Module:
    from torchvision.models import optical_flow

    model = getattr(optical_flow, f"raft_{size}")(weights=None)
    if weights is None:
        model.load_state_dict(_torchvision_weights(size))
    else:
        _load_file(model, weights, size)
    return model.to(device).eval().requires_grad_(False)


def _load_file(model: torch.nn.Module, path: str, size: str) -> None:
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no pickle makes the unpickler fail in any way
        raise ValueError(
            f"tracker 'raft': weights ({path!r}) cannot be read: it must be a state dict that torch.save wrote."
        ) from error
    try:
        model.load_state_dict(state)
    except (RuntimeError, TypeError) as error:  # PyTorch's own message has a line for every name
        raise ValueError(
            f"tracker 'raft': weights ({path!r}) do not fit torchvision's raft_{size}. Give the state dict of that "
            "model, or the other size: tracker_options={'size': ...}."
        ) from error


def _torchvision_weights(size: str) -> Mapping[str, Any]:
    """Return torchvision's own weights, from its cache or downloaded into it."""
    from torchvision.models import optical_flow

    default = getattr(optical_flow, f"Raft_{size.capitalize()}_Weights").DEFAULT
    timeout = socket.getdefaulttimeout()
    socket.setdefaulttimeout(DOWNLOAD_TIMEOUT_SECONDS)
    try:
        return default.get_state_dict(progress=False, check_hash=True)
    # urllib's errors and a cache that cannot be written; a broken connection; a file that is cut short.
    except (OSError, HTTPException, RuntimeError, pickle.UnpicklingError, EOFError) as error:
        raise RuntimeError(
            f"tracker 'raft': torchvision's weights could not be had ({error}). Download {default.url} on a "
            "machine that can, and give its path: tracker_options={'weights': 'FILE'}."
        ) from error
    finally:
        socket.setdefaulttimeout(timeout)
