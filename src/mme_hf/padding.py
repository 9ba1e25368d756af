"""Clips of unequal length in one batch."""

from collections.abc import Sequence

import torch
from torch import nn


def pad_clips(clips: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return clips of unequal length as one batch, padded at the end, as inputs of a model.

    Example:
        >>> batch = pad_clips([torch.randn(8, 3, 224, 224), torch.randn(16, 3, 224, 224)])
        >>> logits = MMEForVideoClassification(MMEConfig())(**batch).logits

    Args:
        clips: Normalised frames, each of shape (num_frames, num_channels, height, width). All but the number of frames,
            which must be a multiple of the model's `tubelet_size`, is the same for all.

    Returns:
        "pixel_values", of the longest clip's number of frames and with zeros for padding, shape (batch_size,
        num_frames, num_channels, height, width), and "frame_mask", True where a frame is real, bool, shape
        (batch_size, num_frames).

    Raises:
        ValueError: If there is no clip, one has no frame, or their frames are not of one shape.
    """
    shapes = [tuple(clip.shape) for clip in clips]
    if not shapes or any(len(shape) != 4 or shape[0] == 0 or shape[1:] != shapes[0][1:] for shape in shapes):
        raise ValueError(
            f"clips have the shapes {shapes}, expected (frames, channels, height, width), at least one frame in each, "
            "equal but for the number of frames. Resize or crop them to one size: MMEVideoProcessor does."
        )
    num_frames = torch.tensor([shape[0] for shape in shapes], device=clips[0].device)
    return {
        "pixel_values": nn.utils.rnn.pad_sequence(list(clips), batch_first=True),
        "frame_mask": torch.arange(max(shape[0] for shape in shapes), device=clips[0].device) < num_frames[:, None],
    }
