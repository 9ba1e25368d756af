"""The explained share, against numbers worked out by hand."""

from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mme_hf.training import MeanPredictor, NothingToExplainError, explained_share

SIZES = {"position": 2, "shape": 1}


def batch(labels, masked_indices, target_mask):
    """One clip: labels (tokens, 3), target_mask (tokens, 2)."""
    inputs = {
        "pixel_values": torch.zeros(1, 1),
        "labels": torch.tensor([labels], dtype=torch.float32),
        "masked_indices": torch.tensor([masked_indices]),
        "target_mask": torch.tensor([target_mask]),
    }
    return {"inputs": inputs}


class Constant(nn.Module):
    """Predicts the same, and in training, where all is dropped, 0."""

    def __init__(self, values):
        super().__init__()
        self.dropout = nn.Dropout(1.0)
        self.values = torch.tensor(values, dtype=torch.float32)

    def forward(self, pixel_values, masked_indices, **_):
        return SimpleNamespace(logits=self.dropout(self.values).expand(1, masked_indices.shape[1], 3))

    def split_targets(self, values):
        return dict(zip(SIZES, values.split([2, 1], -1), strict=True))


# Tokens 1 and 2 are masked; token 2 does not count for position.
BATCH = batch([[9, 9, 9], [1, 3, 5], [7, 7, 1]], [1, 2], [[True, True], [True, True], [False, True]])


def test_the_mean_is_over_masked_tokens_that_count():
    baseline = MeanPredictor.fit([BATCH], SIZES, Accelerator(cpu=True))
    assert baseline.means["position"].tolist() == [1, 3]
    assert baseline.means["shape"].tolist() == [3]


def test_the_share_is_one_minus_the_ratio_of_the_errors():
    baseline = MeanPredictor({"position": torch.tensor([0.0, 0.0]).double(), "shape": torch.tensor([3.0]).double()})
    model = Constant([1.0, 2.0, 4.0])
    shares = explained_share(model, [BATCH], baseline, Accelerator(cpu=True))
    assert model.training  # as it was
    # position: error (3 - 2)^2 = 1 against 1 + 9 = 10; shape: (5 - 4)^2 + (1 - 4)^2 = 10 against 4 + 4 = 8.
    assert shares == {"position": pytest.approx(0.9), "shape": pytest.approx(-0.25)}


def test_nothing_to_explain_is_an_error():
    still = batch([[0, 0, 0], [0, 0, 0]], [1], [[False, True], [False, True]])
    with pytest.raises(NothingToExplainError, match="'position' has no masked token that counts"):
        MeanPredictor.fit([still], SIZES, Accelerator(cpu=True))
    baseline = MeanPredictor({"position": torch.zeros(2).double(), "shape": torch.ones(1).double()})
    with pytest.raises(NothingToExplainError, match="'position' does not vary"):
        explained_share(Constant([1.0, 2.0, 4.0]), [still], baseline, Accelerator(cpu=True))
