"""Which tokens a model sees, and where they are: indices of masked and visible tokens, fixed position embeddings.

Tokens are numbered by tubelet, then row, then column.
"""

import math

import torch
from torch import nn
from torch.fx.experimental.symbolic_shapes import statically_known_true


def sinusoid_table(num_positions: int, width: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Return the fixed position table, float32 in [-1, 1], shape (num_positions, width).

    Position n has angle n / 10000 ** (2 * (j // 2) / width) in column j, its sine where j is even, its cosine where j
    is odd. Angles reach thousands, where float32 is off by 1e-4, so they are float64 until the end.

    Source: Masked Motion Encoding, the encoder's 1-D position table over the flattened token index.
    """
    # Apple's devices have no float64.
    compute_device = "cpu" if device is not None and torch.device(device).type == "mps" else device
    positions = torch.arange(num_positions, dtype=torch.float64, device=compute_device)
    even_columns = torch.arange(0, width, 2, dtype=torch.float64, device=compute_device)
    angles = positions[:, None] * torch.exp(even_columns * (-math.log(10000.0) / width))
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float().to(device)


@torch.compiler.disable
def masked_indices_from(bool_masked_pos: torch.Tensor) -> torch.Tensor:
    """Return the numbers of the masked tokens, ascending, int64, shape (batch_size, num_masked).

    The count becomes a tensor's size, so it is read back from the device: one synchronisation, and a break in a
    compiled graph. Passing `masked_indices` to the model avoids both.

    Args:
        bool_masked_pos: True where a token is hidden, shape (batch_size, num_tokens).

    Raises:
        ValueError: If the clips of the batch hide different numbers of tokens.
    """
    counts = bool_masked_pos.sum(dim=1).tolist()
    if len(set(counts)) > 1:
        raise ValueError(
            f"bool_masked_pos hides {counts} tokens in the clips of this batch. Hide the same number in each clip, or "
            "pass padded masked_indices and silence the padding with target_mask."
        )
    num_masked = counts[0] if counts else 0
    return bool_masked_pos.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :num_masked]


def visible_indices_from(masked_indices: torch.Tensor, num_tokens: int) -> torch.Tensor:
    """Return the numbers of the tokens that are not in `masked_indices`, ascending, shape (batch_size, num_visible).

    Args:
        masked_indices: Numbers of the masked tokens, each once, int64, shape (batch_size, num_masked).
        num_tokens: Tokens of a clip.
    """
    batch_size, num_masked = masked_indices.shape
    is_masked = torch.zeros(batch_size, num_tokens, dtype=torch.uint8, device=masked_indices.device)
    is_masked = is_masked.scatter(1, masked_indices, 1)
    # A stable sort keeps its size static, which boolean indexing cannot.
    return is_masked.argsort(dim=1, stable=True)[:, : num_tokens - num_masked]


def take_tokens(tokens: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    """Return the tokens at `indices`: from shape (B, N, ...) and (B, K) to (B, K, ...)."""
    rows = torch.arange(indices.shape[0], device=indices.device)[:, None]
    return tokens[rows, indices]


def check_num_masked(num_masked: int, num_tokens: int) -> None:
    """Raise a ValueError if no token is left to see."""
    if num_masked >= num_tokens:
        raise ValueError(
            f"{num_masked} of {num_tokens} tokens are masked, which leaves none to see. Lower the mask ratio."
        )


def token_mask_from(
    frame_mask: torch.Tensor, tubelet_size: int, tokens_per_tubelet: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return which tokens of padded clips are real, and where they would be without the padding.

    Args:
        frame_mask: True where a frame is real, shape (batch_size, num_frames).
        tubelet_size: Frames of a token.
        tokens_per_tubelet: Tokens of one point in time.

    Returns:
        Bool and int64, both of shape (batch_size, num_tokens). Places of tokens that pad are any in the clip.

    Raises:
        ValueError: If a tubelet is part real and part padding, or a clip has no real frame.
    """
    tubelets = frame_mask.unflatten(1, (-1, tubelet_size))
    is_real = tubelets.all(-1)
    # Reads values back from the device, which a compiled graph cannot.
    if not torch.compiler.is_compiling() and not (is_real.any(1).all() and (is_real == tubelets.any(-1)).all()):
        raise ValueError(
            f"frame_mask has {frame_mask.sum(1).tolist()} real frames in its clips. Each clip needs some, and tubelets "
            f"of {tubelet_size} frames must be all real or all padding: pad after a multiple of {tubelet_size}."
        )
    place = (is_real.cumsum(1) - 1).clamp(min=0)
    within = torch.arange(tokens_per_tubelet, device=frame_mask.device)
    return (
        is_real.repeat_interleave(tokens_per_tubelet, dim=1),
        (place[..., None] * tokens_per_tubelet + within).flatten(1),
    )


def mean_of_tokens(tokens: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return the mean over a clip's tokens, those that are real, shape (batch_size, hidden_size)."""
    if token_mask is None:
        return tokens.mean(1)
    # In float32, as mean() adds up: half precision overflows.
    total = tokens.masked_fill(~token_mask[..., None], 0.0).sum(1, dtype=torch.float32)
    return (total / token_mask.sum(1, keepdim=True)).to(tokens.dtype)


def first_of_tokens(tokens: torch.Tensor, token_mask: torch.Tensor | None = None) -> torch.Tensor:
    """Return a clip's first token, of those that are real, shape (batch_size, hidden_size)."""
    if token_mask is None:
        return tokens[:, 0]
    return take_tokens(tokens, token_mask.to(torch.uint8).argmax(1, keepdim=True))[:, 0]


class MMESinusoidPositions(nn.Module):
    """Fixed position embeddings for any number of tokens.

    The table of a longer clip begins with that of a shorter one, so one table serves every clip up to the
    configuration's size; longer ones are computed when they come. Keeping it saves 5 to 10 ms of CPU time a call.
    """

    def __init__(self, num_positions: int, width: int):
        super().__init__()
        # Not in checkpoints. MMEPreTrainedModel._init_weights fills it again after loading on the meta device.
        self.table = nn.Buffer(sinusoid_table(num_positions, width), persistent=False)

    def forward(self, num_tokens: int) -> torch.Tensor:
        """Return the positions of tokens 0 to `num_tokens` - 1, shape (num_tokens, width)."""
        num_positions, width = self.table.shape
        # A program exported for any number of frames must not take the branch of the clip that it was traced with.
        if (
            statically_known_true(num_tokens <= num_positions)
            if torch.compiler.is_exporting()
            else num_tokens <= num_positions
        ):
            return self.table[:num_tokens]
        return sinusoid_table(num_tokens, width, device=self.table.device)
