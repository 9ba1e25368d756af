"""What MME models are made of besides attention: patch embedding, tokens with positions, MLP, drop path.

Shapes: B clips, T frames, C channels, H W pixels, N tokens of a clip, V of them wanted, D features.
"""

import math

import torch
from torch import nn
from transformers.activations import ACT2FN

from .configuration_mme import MMEConfig
from .tokens_mme import MMESinusoidPositions


def cast_once_for_autocast(hidden_states: torch.Tensor) -> torch.Tensor:
    """Return what autocast would feed to each linear layer, so that layers with one input share one copy of it."""
    device_type = hidden_states.device.type
    # Shapes alone, on the device "meta", have no autocast.
    if device_type != "meta" and torch.is_autocast_enabled(device_type):
        return hidden_states.to(torch.get_autocast_dtype(device_type))
    return hidden_states


class MMETubeletProjection(nn.Conv3d):
    """A convolution whose kernel is its stride, applied to tubelets that are cut out already: one matrix product.

    Its weight is as published checkpoints and VideoMAE have it.
    """

    def __init__(self, config: MMEConfig):
        kernel_size = (config.tubelet_size, config.patch_size, config.patch_size)
        super().__init__(config.num_channels, config.hidden_size, kernel_size, stride=kernel_size)

    def forward(self, tubelets: torch.Tensor) -> torch.Tensor:
        """Return tokens (..., hidden_size) of tubelets (..., C * frames * height * width)."""
        return nn.functional.linear(tubelets.to(self.weight.dtype), self.weight.flatten(1), self.bias)

    def with_differences_amplified(self, gain: float) -> torch.Tensor:
        """Return the weight with what it makes of differences between the frames of a tubelet multiplied by `gain`."""
        shared = self.weight.mean(2, keepdim=True)
        return shared + gain * (self.weight - shared)


class MMEPatchEmbeddings(nn.Module):
    """Turns each wanted tubelet of a clip into a token by one matrix product.

    A Conv3d whose kernel is its stride is this product, but it computes every token; here masked tubelets are not
    even copied.
    """

    def __init__(self, config: MMEConfig):
        super().__init__()
        self.patch_size = config.patch_size
        self.tubelet_size = config.tubelet_size
        self.num_channels = config.num_channels
        self.projection = MMETubeletProjection(config)

    def token_grid(self, pixel_values: torch.Tensor) -> tuple[int, int, int]:
        """Return the numbers of tubelets, rows and columns of tokens in a clip.

        Raises:
            ValueError: If the clip's shape or type is not what the model takes.
        """
        if pixel_values.dim() != 5 or pixel_values.shape[2] != self.num_channels:
            raise ValueError(
                f"pixel_values has shape {tuple(pixel_values.shape)}, expected (batch, frames, "
                f"{self.num_channels} channels, height, width). MMEVideoProcessor makes this shape."
            )
        if not pixel_values.is_floating_point():
            raise ValueError(
                f"pixel_values has dtype {pixel_values.dtype}, expected normalised floating point frames. "
                "MMEVideoProcessor rescales and normalises."
            )
        _, num_frames, _, height, width = pixel_values.shape
        if num_frames % self.tubelet_size or num_frames == 0:
            raise ValueError(
                f"pixel_values has {num_frames} frames, expected a positive multiple of tubelet_size "
                f"({self.tubelet_size}). Sample another number of frames."
            )
        if height % self.patch_size or width % self.patch_size or height == 0 or width == 0:
            raise ValueError(
                f"pixel_values has frames of {height} x {width} px, expected positive multiples of patch_size "
                f"({self.patch_size}). Resize or crop the frames."
            )
        return num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    def forward(self, pixel_values: torch.Tensor, token_indices: torch.Tensor | None = None) -> torch.Tensor:
        """Return tokens without positions.

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            token_indices: The tokens wanted, int64, shape (batch_size, num_wanted); None for all.

        Returns:
            Embeddings, shape (batch_size, num_wanted, hidden_size).
        """
        num_tubelets, num_rows, num_columns = self.token_grid(pixel_values)
        tubelets = pixel_values.unflatten(4, (num_columns, self.patch_size)).unflatten(3, (num_rows, self.patch_size))
        tubelets = tubelets.unflatten(1, (num_tubelets, self.tubelet_size))
        tubelets = tubelets.permute(0, 1, 4, 6, 3, 2, 5, 7)  # (B, tubelets, rows, columns, C, frames, height, width)
        if token_indices is None:
            tubelets = tubelets.flatten(1, 3)  # (B, N, C, frames, height, width)
        else:
            row_and_column = token_indices % (num_rows * num_columns)
            tubelets = tubelets[
                torch.arange(token_indices.shape[0], device=token_indices.device)[:, None],
                token_indices // (num_rows * num_columns),
                row_and_column // num_columns,
                row_and_column % num_columns,
            ]  # (B, V, C, frames, height, width)
        return self.projection(tubelets.flatten(2))


class MMEEmbeddings(nn.Module):
    """Tokens with positions, of the visible tubelets only."""

    def __init__(self, config: MMEConfig):
        super().__init__()
        self.patch_embeddings = MMEPatchEmbeddings(config)
        self.position_embeddings = MMESinusoidPositions(config.num_tokens, config.hidden_size)
        self.dropout = nn.Dropout(config.hidden_dropout_prob)

    def forward(
        self,
        pixel_values: torch.Tensor,
        visible_indices: torch.Tensor | None = None,
        position_indices: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Return embeddings of the visible tokens, shape (batch_size, num_visible, hidden_size).

        Args:
            pixel_values: Normalised frames, shape (batch_size, num_frames, num_channels, height, width).
            visible_indices: Which tokens are visible, shape (batch_size, num_visible); None for all.
            position_indices: Where these are in the clip, as tokens are numbered, of that shape; None for where
                `visible_indices` says.
        """
        embeddings = self.patch_embeddings(pixel_values, visible_indices)
        positions = self.position_embeddings(math.prod(self.patch_embeddings.token_grid(pixel_values)))
        # The weights' type, not the embeddings': under autocast the residual stream then stays float32.
        positions = positions.to(self.patch_embeddings.projection.weight.dtype)
        position_indices = visible_indices if position_indices is None else position_indices
        if position_indices is not None:
            positions = positions[position_indices]  # (B, V, D)
        return self.dropout(embeddings + positions)


class MMEMLP(nn.Module):
    """Two linear layers with an activation between."""

    def __init__(self, config: MMEConfig, hidden_size: int, intermediate_size: int, output_size: int):
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, intermediate_size)
        self.activation_fn = ACT2FN[config.hidden_act]
        self.fc2 = nn.Linear(intermediate_size, output_size)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return shape (..., output_size) from shape (..., hidden_size)."""
        return self.fc2(self.activation_fn(self.fc1(hidden_states)))


class MMEDropPath(nn.Module):
    """Stochastic depth: drops what a block adds, for whole clips, and scales what is kept to the same mean."""

    def __init__(self, drop_rate: float):
        super().__init__()
        self.drop_rate = drop_rate

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        """Return the same shape, (batch_size, ...), with some clips zero while training."""
        if self.drop_rate == 0.0 or not self.training:
            return hidden_states
        keep_rate = 1.0 - self.drop_rate
        shape = (hidden_states.shape[0],) + (1,) * (hidden_states.dim() - 1)
        return hidden_states * (hidden_states.new_empty(shape).bernoulli_(keep_rate) / keep_rate)

    def extra_repr(self) -> str:
        """Return the rate for printing."""
        return f"drop_rate={self.drop_rate}"
