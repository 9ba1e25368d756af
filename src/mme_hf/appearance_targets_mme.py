"""What a token looks like: its pixels, or what a frozen image model says of them."""

from dataclasses import dataclass
from functools import lru_cache
from inspect import signature
from math import isqrt
from os.path import isdir
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoConfig, AutoImageProcessor, AutoModel
from transformers.utils.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD

from .motion_clip_mme import MotionClip, TargetConfig, check_choice, check_head
from .point_tracking_mme import constant_on, full_precision
from .trajectories_mme import Trajectories

# Added to the standard deviation of a patch's pixels, as VideoMAE does.
_PIXEL_EPSILON = 1e-6


@dataclass(frozen=True)
class PixelsTarget:
    """The pixels of a token, as VideoMAE predicts them.

    Index of a value: ((frame * patch + row) * patch + column) * channels + channel.

    Attributes:
        normalization: "patch" takes off the mean of the token's pixels, channel by channel, and divides by their
            standard deviation (unbiased) + 1e-6; "none" leaves them in [0, 1].
        activation: Head activation. Normalised pixels are of both signs and leave (-1, 1), so "linear".
        weight: Default weight in the loss: the error of a predictor of the mean is close to 1 by construction.
        visible_weight: How much its error at visible tokens counts beside that at masked ones: 0, as in VideoMAE;
            pixels that are seen need only be copied.

    Source: VideoMAE, `norm_pix_loss`; equal to the labels of transformers' `VideoMAEForPreTraining`.
    """

    name: ClassVar[str] = "pixels"
    needs_trajectories: ClassVar[bool] = False
    normalization: Literal["patch", "none"] = "patch"
    activation: str = "linear"
    weight: float = 0.5
    visible_weight: float = 0.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        check_choice(self.name, "normalization", self.normalization, ("patch", "none"))

    def size(self, config: TargetConfig) -> int:
        """Return frames * rows * columns * channels per token."""
        return config.tubelet_size * config.patch_size**2 * config.num_channels

    def __call__(self, clip: MotionClip, trajectories: Trajectories | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return pixels per token, float32 (..., N, size), and True for every token, bool (..., N).

        Raises:
            ValueError: If the clip has no raw frames.
        """
        frames = clip.raw_frames_at(self.name, clip.input_frames).float() / 255  # (..., T, C, H, W)
        tubelets = frames.unflatten(-4, (-1, clip.tubelet_size)).unflatten(-1, (-1, clip.patch_size))
        tubelets = tubelets.unflatten(-3, (-1, clip.patch_size))  # (..., T', t, C, R, y, columns, x)
        order = (-7, -4, -2, -6, -3, -1, -5)
        lead = tubelets.ndim - 7
        pixels = tubelets.permute(*range(lead), *(axis % tubelets.ndim for axis in order))
        pixels = pixels.flatten(-4, -2).flatten(-5, -3)  # (..., N, t * y * x, C)
        if self.normalization == "patch":
            pixels = (pixels - pixels.mean(-2, keepdim=True)) / (pixels.std(-2, keepdim=True) + _PIXEL_EPSILON)
        return pixels.flatten(-2), torch.ones(pixels.shape[:-2], dtype=torch.bool, device=pixels.device)


@dataclass(frozen=True)
class FeaturesTarget:
    """What a frozen image model says of a token: its features at the token's place, in the frame that `shape` uses.

    The frame is resized to the teacher's own input size and normalised as its image processor does; the features of
    the patches (no class token, no registers) are resampled from the teacher's grid to the tokens' and normalised to
    mean 0 and variance 1 over the values of a token, as in a LayerNorm without parameters.

    The teacher is loaded when the first labels are made, once in each process that makes some: every data worker, or
    the training process alone where it makes the targets. The target itself holds only its name.

    Attributes:
        teacher: Folder or Hub name of any vision model that `AutoModel` loads: ViT, DINO, DINOv2, CLIP, SigLIP, ...;
            of a model of images and text the image half is used.
        image_size_px: Side that frames are resized to; None for that of the teacher's image processor, else of its
            configuration. Another one needs a teacher that interpolates its positions.
        activation: Head activation. Normalised features are of both signs and leave (-1, 1), so "linear".
        weight: Default weight in the loss: the error of a predictor of the mean is at most 1.
        visible_weight: How much its error at visible tokens, which the published method has not, counts beside that at
            masked ones.

    Source: Masked Video Distillation and TrackMAE, which predict features of a frozen image model.
    """

    name: ClassVar[str] = "features"
    needs_trajectories: ClassVar[bool] = False
    teacher: str | None = None
    image_size_px: int | None = None
    activation: str = "linear"
    weight: float = 0.5
    visible_weight: float = 1.0

    def __post_init__(self):
        check_head(self.name, self.activation, self.weight, self.visible_weight)
        if not self.teacher or not isinstance(self.teacher, str):
            raise ValueError(
                f"features: teacher ({self.teacher!r}) must be the folder or Hub name of a vision model, such as "
                "'facebook/dinov2-base' (--teacher on the command line)."
            )
        size = self.image_size_px
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(f"features: image_size_px ({size!r}) must be a whole number of pixels, such as 224.")

    def size(self, config: TargetConfig) -> int:
        """Return the width of the teacher's features, from its configuration alone.

        Raises:
            ValueError: If there is no such model, or its configuration does not say its width.
        """
        return _teacher_width(self.teacher)

    @torch.no_grad()
    def __call__(self, clip: MotionClip, trajectories: Trajectories | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features per token, float32 (..., N, size), and True for every token, bool (..., N).

        Raises:
            ValueError: If the clip has no raw frames, or the teacher cannot be loaded or used.
        """
        frames = clip.seen_frames(self.name)  # (..., S, C, H, W)
        lead = frames.shape[:-4]
        teacher = _load_teacher(self.teacher, frames.device)
        size = [self.image_size_px] * 2 if self.image_size_px else teacher.image_size
        if isinstance(teacher.patch_size, int) and min(size) < teacher.patch_size:
            raise ValueError(
                f"features: image_size_px ({self.image_size_px}) must be at least {teacher.patch_size}, a patch of the "
                f"teacher ({self.teacher!r})."
            )
        images = tvF.resize(frames.flatten(0, -4).float() / 255, size, antialias=True)
        mean, std = (constant_on(images.device, values)[:, None, None] for values in (teacher.mean, teacher.std))
        images = (images - mean) / std
        with full_precision(images.device):
            hidden_states = teacher.model(pixel_values=images, **teacher.options).last_hidden_state
        maps = _feature_maps(hidden_states, teacher, size)  # (images, D, rows, columns)
        maps = F.interpolate(maps, clip.token_grid[1:], mode="bilinear", antialias=True)
        features = maps.flatten(2).transpose(1, 2).unflatten(0, (*lead, -1)).flatten(-3, -2)  # (..., N, D)
        values = F.layer_norm(features, features.shape[-1:])
        return values, torch.ones(values.shape[:-1], dtype=torch.bool, device=values.device)


@lru_cache(maxsize=8)
def _teacher_config(teacher: str) -> Any:
    """Return the configuration of the half of a teacher that sees images."""
    try:
        config = AutoConfig.from_pretrained(teacher)
    except (OSError, ValueError) as error:
        what = "cannot be opened" if isdir(teacher) else "is no folder, and cannot be opened from the Hub"
        raise ValueError(f"features: teacher ({teacher!r}) {what}: {error}") from error
    return getattr(config, "vision_config", config)


def _teacher_width(teacher: str) -> int:
    config = _teacher_config(teacher)
    width = getattr(config, "hidden_size", None) or (getattr(config, "hidden_sizes", None) or [None])[-1]
    if not isinstance(width, int):
        raise ValueError(
            f"features: teacher ({teacher!r}) is a {type(config).__name__}, which has no hidden_size. Choose a vision "
            "model such as ViT, DINOv2 or CLIP."
        )
    return width


@lru_cache(maxsize=2)
def _load_teacher(teacher: str, device: torch.device) -> SimpleNamespace:
    """Return a frozen model and how to feed it: image_size, mean, std, and options of its call."""
    config = _teacher_config(teacher)
    try:
        model = AutoModel.from_pretrained(teacher, dtype=torch.float32)
    except Exception as error:  # damaged weights fail in the way of their format
        raise ValueError(f"features: teacher ({teacher!r}) cannot be loaded: {error}") from error
    model = getattr(model, "vision_model", model).eval().requires_grad_(False).to(device)
    if "pixel_values" not in signature(model.forward).parameters:
        raise ValueError(
            f"features: teacher ({teacher!r}) is a {type(model).__name__}, which takes no images. Choose a vision "
            "model such as ViT, DINOv2 or CLIP."
        )
    try:
        processor = AutoImageProcessor.from_pretrained(teacher)
    except (OSError, ValueError):  # weights saved alone
        processor = None
    takes_any_size = "interpolate_pos_encoding" in signature(model.forward).parameters
    return SimpleNamespace(
        name=teacher,
        model=model,
        mean=getattr(processor, "image_mean", None) or IMAGENET_DEFAULT_MEAN,
        std=getattr(processor, "image_std", None) or IMAGENET_DEFAULT_STD,
        image_size=_input_size(processor, config, teacher),
        patch_size=getattr(config, "patch_size", None),
        options={"interpolate_pos_encoding": True} if takes_any_size else {},
    )


def _input_size(processor: Any, config: Any, teacher: str) -> list[int]:
    """Return (height, width) that a teacher sees: what its processor cuts out, else resizes to, else its own size."""
    for size in (getattr(processor, "crop_size", None), getattr(processor, "size", None)):
        sides = dict(size or {})
        if sides.get("height") and sides.get("width"):
            return [sides["height"], sides["width"]]
        if sides.get("shortest_edge"):
            return [sides["shortest_edge"]] * 2
    size = getattr(config, "image_size", None)
    if size is None:
        raise ValueError(
            f"features: teacher ({teacher!r}) does not say its input size. Give image_size_px, such as 224."
        )
    return [size, size] if isinstance(size, int) else list(size)


def _feature_maps(hidden_states: torch.Tensor, teacher: SimpleNamespace, size: list[int]) -> torch.Tensor:
    """Return features (images, D, rows, columns) from a teacher's output, a map already or tokens (images, K, D)."""
    if hidden_states.ndim == 4:  # convolutional: (images, D, rows, columns)
        return hidden_states
    num_tokens = hidden_states.shape[1]
    patch = teacher.patch_size
    rows, columns = (side // patch for side in size) if isinstance(patch, int) else (0, 0)
    if not 0 < rows * columns <= num_tokens:
        rows = columns = isqrt(num_tokens)  # stages that merge patches
        if rows * columns != num_tokens:
            raise ValueError(
                f"features: teacher ({teacher.name!r}) gives {num_tokens} tokens for images of {size[0]}x{size[1]}, "
                "which are no grid of patches. Choose a vision model such as ViT, DINOv2 or CLIP."
            )
    # Class token and registers come first in every such model of transformers.
    patches = hidden_states[:, num_tokens - rows * columns :]
    return patches.transpose(1, 2).unflatten(-1, (rows, columns))
