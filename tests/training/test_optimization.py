"""Parameter groups and schedule."""

import copy

import pytest
import torch
from torch import nn

from mme_hf import MMEForPreTraining, MMEForVideoClassification, preset_config
from mme_hf.training import build_average, build_optimizer, build_scheduler, parameter_groups, scaled_learning_rate
from mme_hf.training.optimization import check_optimizer

SMALL = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 1, "intermediate_size": 16}
needs_muon = pytest.mark.skipif(not hasattr(torch.optim, "Muon"), reason="Muon came with torch 2.9")


def test_vectors_take_no_weight_decay_and_every_parameter_is_in_one_group():
    model = nn.Module()
    model.linear, model.norm = nn.Linear(2, 3), nn.LayerNorm(3)
    model.mask_token = nn.Parameter(torch.zeros(1, 1, 4))
    decayed, plain = parameter_groups(model, 0.05)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.05, 0.0)
    assert [tuple(parameter.shape) for parameter in decayed["params"]] == [(3, 2)]
    assert sorted(tuple(parameter.shape) for parameter in plain["params"]) == [(1, 1, 4), (3,), (3,), (3,)]


def test_layers_nearer_to_the_input_have_lower_rates():
    model = MMEForVideoClassification(preset_config("tiny", **SMALL, use_attentive_pooling=True))
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


@needs_muon
def test_muon_moves_the_matrices_of_blocks_alike_in_all_directions_and_adamw_the_rest():
    torch.manual_seed(0)
    model = MMEForPreTraining(preset_config("tiny", **SMALL))
    optimizer = build_optimizer(model, name="muon", learning_rate=0.01, weight_decay=0.5, betas=(0.9, 0.95))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    blocks = [*model.mme.layers, *model.decoder.layers]
    matrices = {parameter for block in blocks for parameter in block.parameters() if parameter.ndim == 2}
    assert len(matrices) == 3 * 6  # q, k, v, o, fc1, fc2, in two blocks and the decoder's
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter).sign()
        if parameter in matrices:  # a tenth as large in its last direction as in its first
            left, sizes, right = torch.linalg.svd(torch.randn_like(parameter), full_matrices=False)
            parameter.grad = left * torch.logspace(0, -1, len(sizes)) @ right
    optimizer.step()
    for name, parameter in model.named_parameters():
        is_vector = parameter.squeeze().ndim <= 1
        rate = 0.1 if parameter in matrices else 0.01
        step = (parameter.detach() - before[name] * (1.0 if is_vector else 1 - rate * 0.5)) / rate
        if parameter in matrices:
            # Its iteration brings singular values near 1, more where a matrix makes more values than it takes.
            rows, columns = parameter.shape
            sizes = torch.linalg.svdvals(step) / max(1, rows / columns) ** 0.5
            assert sizes.min() > 0.6 and sizes.max() < 1.3, name
        else:  # the first step of Adam is the sign of the gradient
            torch.testing.assert_close(step, -parameter.grad, msg=name, rtol=0, atol=1e-4)


@needs_muon
def test_muon_goes_on_from_a_saved_state_and_follows_the_schedule(tmp_path):
    def updated(optimizer, model):
        for number, parameter in enumerate(model.parameters()):
            parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
        optimizer.step()
        return [parameter.detach().clone() for parameter in model.parameters()]

    model = MMEForPreTraining(preset_config("tiny", **SMALL))
    options = {"name": "muon", "learning_rate": 0.1, "weight_decay": 0.5, "betas": (0.9, 0.95)}
    optimizer = build_optimizer(model, **options)
    scheduler = build_scheduler(optimizer, num_warmup_steps=0, num_training_steps=2, min_learning_rate=0.0)
    middle = updated(optimizer, model)
    scheduler.step()
    torch.save(optimizer.state_dict(), tmp_path / "optimizer.bin")
    # Cosine: half of the way, half of the rate, of both kinds.
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.05, 0.05, 0.5])
    whole = updated(optimizer, model)
    with torch.no_grad():
        for parameter, value in zip(model.parameters(), middle, strict=True):
            parameter.copy_(value)
    other = build_optimizer(model, **options)
    assert not other.state
    other.load_state_dict(torch.load(tmp_path / "optimizer.bin"))
    assert len(other.state) == len(middle)
    assert all(map(torch.equal, updated(other, model), whole))


@needs_muon
def test_muon_can_be_copied_and_given_more_to_train():
    model = nn.Module()
    model.layers = nn.ModuleList([nn.Linear(4, 4, bias=False)])
    optimizer = build_optimizer(model, name="muon", learning_rate=0.1, weight_decay=0.0, betas=(0.9, 0.95))
    weight, more = model.layers[0].weight, nn.Parameter(torch.zeros(3))
    optimizer.add_param_group({"params": [more]})
    weight.grad, more.grad = torch.eye(4), torch.ones(3)
    copied, before = copy.deepcopy(optimizer), weight.detach().clone()
    optimizer.step()
    assert not torch.equal(weight, before)
    assert more.tolist() == pytest.approx([-0.1] * 3)
    (of_copy,) = (one for group in copied.param_groups for one in group["params"] if one.ndim == 2)
    assert torch.equal(of_copy, before)
    of_copy.grad = torch.eye(4)
    copied.step()
    assert torch.equal(of_copy, weight)


def test_optimizers_that_there_are_not_are_refused(monkeypatch):
    model, options = nn.Linear(1, 1), {"learning_rate": 0.1, "weight_decay": 0.0, "betas": (0.9, 0.95)}
    with pytest.raises(ValueError, match="'moun'.*adamw, muon"):
        build_optimizer(model, name="moun", **options)
    with pytest.raises(ValueError, match="'sgd'.*adamw, muon"):
        check_optimizer("sgd")
    if hasattr(torch.optim, "Muon"):
        with pytest.raises(ValueError, match=r"layer_decay \(0.5\) needs optimizer 'adamw'"):
            build_optimizer(model, name="muon", layer_decay=0.5, **options)
    monkeypatch.delattr(torch.optim, "Muon", raising=False)
    with pytest.raises(ValueError, match="needs torch 2.9 or newer.*Use 'adamw'"):
        check_optimizer("muon")


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
