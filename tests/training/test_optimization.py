"""Parameter groups and schedule."""

import pytest
import torch
from torch import nn

from mme_hf import MMEForVideoClassification, preset_config
from mme_hf.training import build_average, build_scheduler, parameter_groups, scaled_learning_rate


def test_vectors_take_no_weight_decay_and_every_parameter_is_in_one_group():
    model = nn.Module()
    model.linear, model.norm = nn.Linear(2, 3), nn.LayerNorm(3)
    model.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 2)]
    assert sorted(tuple(parameter.shape) for parameter in plain["params"]) == [(1, 1, 4), (3,), (3,), (3,)]


def test_layers_nearer_to_the_input_have_lower_rates():
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 8}
    model = MMEForVideoClassification(preset_config("tiny", **sizes, use_attentive_pooling=True))
    groups = parameter_groups(model, 0.05, learning_rate=1.0, layer_decay=0.5)
    names = {parameter: name for name, parameter in model.named_parameters()}
    found = {
        names[parameter]: (group["lr"], group["weight_decay"]) for group in groups for parameter in group["params"]
    }
    assert len(found) == len(names) and sum(len(group["params"]) for group in groups) == len(names)
    # Published: decay ** (2 blocks + 1 - layer), the embedding being layer 0, the blocks 1 and 2, the rest 3.
    for name, expected in {
        "mme.embeddings.patch_embeddings.projection.weight": (0.125, 0.05),
        "mme.embeddings.patch_embeddings.projection.bias": (0.125, 0.0),
        "mme.layers.0.mlp.fc1.weight": (0.25, 0.05),
        "mme.layers.1.layernorm_before.weight": (0.5, 0.0),
        "mme.layernorm.weight": (1.0, 0.0),
        "pooler.query": (1.0, 0.0),
        "pooler.layer.mlp.fc1.weight": (1.0, 0.05),
        "classifier.weight": (1.0, 0.05),
        "classifier.bias": (1.0, 0.0),
    }.items():
        assert found[name] == expected, name
    assert groups[0]["lr"] == 1.0  # the one that is reported


def test_what_is_frozen_is_in_no_group():
    model = nn.Linear(2, 3)
    model.weight.requires_grad_(False)
    (group,) = parameter_groups(model, 0.05)
    assert [tuple(parameter.shape) for parameter in group["params"]] == [(3,)]


def test_the_average_begins_with_the_first_update():
    model = nn.Linear(1, 1, bias=False)
    average = build_average(model, 0.5, device=torch.device("cpu"))
    found = []
    for value in (1.0, 2.0, 4.0):
        model.weight.data.fill_(value)
        average.update_parameters(model)
        found.append(average.module.weight.item())
    assert found == [1.0, 1.5, 2.75]  # half of what it was, half of what is new
    assert build_average(model, None, device=torch.device("cpu")) is None


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
