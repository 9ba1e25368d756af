"""Parameter groups and schedule."""

import pytest
import torch
from torch import nn

from mme_hf.training import build_scheduler, parameter_groups, scaled_learning_rate


def test_vectors_take_no_weight_decay_and_every_parameter_is_in_one_group():
    model = nn.Module()
    model.linear, model.norm = nn.Linear(2, 3), nn.LayerNorm(3)
    model.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 2)]
    assert sorted(tuple(parameter.shape) for parameter in plain["params"]) == [(1, 1, 4), (3,), (3,), (3,)]


def test_learning_rates_are_per_256_clips():
    assert scaled_learning_rate(1.5e-4, 1024) == pytest.approx(6e-4)


def test_warm_up_is_linear_from_zero_and_the_cosine_ends_at_the_floor():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_scheduler(optimizer, num_warmup_steps=4, num_training_steps=12, min_learning_rate=0.2)
    rates = []
    for _ in range(13):
        rates.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    assert rates[:5] == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0])
    assert rates[8] == pytest.approx(0.6)  # half-way down: (1 + 0.2) / 2
    assert rates[12] == pytest.approx(0.2)
