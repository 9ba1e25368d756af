"""Numbers of the published code, and what it is to agree with them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

GOLDEN = Path(__file__).parents[2].parent / "shared" / "golden"
NEEDS_GOLDEN = pytest.mark.skipif(not GOLDEN.is_dir(), reason="../shared/golden is not here: published numbers")
# Largest difference wanted, as a share of the largest value.
TOLERANCE = 1e-5


def assert_agrees(ours: torch.Tensor, published: torch.Tensor) -> None:
    """Fail unless all values are as near as that."""
    assert ours.shape == published.shape
    assert (ours - published).abs().max() <= TOLERANCE * published.abs().max()
