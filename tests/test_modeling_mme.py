import copy

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModel, AutoModelForPreTraining
from transformers import initialization as init

from mme_hf.configuration_mme import MMEConfig
from mme_hf.layers_mme import MMEDropPath
from mme_hf.modeling_mme import MMEForPreTraining, MMEModel
from mme_hf.tokens_mme import masked_indices_from, sinusoid_table, visible_indices_from

# 2 tubelets x 2 rows x 2 columns = 8 tokens, of which 5 are masked.
NUM_TOKENS, NUM_MASKED = 8, 5
TARGETS = {
    "shape": {"size": 3, "activation": "sigmoid", "weight": 54.0},
    "position": {"size": 2, "activation": "linear", "weight": 16.0, "visible_weight": 1.0},
}


def small_config(**overrides) -> MMEConfig:
    fields = {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 8,
        "decoder_num_hidden_layers": 2,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
        "motion_head_hidden_size": 10,
        "motion_targets": TARGETS,
    }
    return MMEConfig(**{**fields, **overrides})


def small_model(model_class=MMEForPreTraining, seed=0, **overrides):
    torch.manual_seed(seed)
    return model_class(small_config(**overrides)).eval()


def small_batch(batch_size=2, seed=1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    order = torch.rand(batch_size, NUM_TOKENS, generator=generator).argsort(1)
    masked_indices = order[:, :NUM_MASKED].sort(1).values
    return {
        "pixel_values": torch.randn(batch_size, 4, 3, 8, 8, generator=generator),
        "bool_masked_pos": torch.zeros(batch_size, NUM_TOKENS, dtype=torch.bool).scatter(1, masked_indices, True),
        "masked_indices": masked_indices,
        "labels": torch.randn(batch_size, NUM_TOKENS, 5, generator=generator),
        "target_mask": torch.rand(batch_size, NUM_TOKENS, 2, generator=generator) > 0.3,
    }


# --- tokens and positions ---


def test_position_table_is_the_published_formula():
    # One entry at a time in Python's float64.
    table = sinusoid_table(1568, 6)
    for n in (0, 1, 777, 1567):
        for j in range(6):
            angle = n / 10000 ** (2 * (j // 2) / 6)
            assert table[n, j].item() == pytest.approx(np.sin(angle) if j % 2 == 0 else np.cos(angle), abs=1e-7)


def test_masked_and_visible_indices_are_ascending_and_complete():
    is_masked = torch.tensor([[1, 0, 0, 1], [0, 1, 1, 0]], dtype=torch.bool)
    masked = masked_indices_from(is_masked)
    assert masked.tolist() == [[0, 3], [1, 2]]
    assert visible_indices_from(masked, 4).tolist() == [[1, 2], [0, 3]]


@pytest.mark.parametrize("masked", [False, True])
def test_patch_embedding_is_a_strided_convolution_of_the_visible_tubelets(masked):
    embeddings = small_model(MMEModel).embeddings
    batch = small_batch()
    weight = embeddings.patch_embeddings.projection.weight
    bias = embeddings.patch_embeddings.projection.bias
    every = nn.functional.conv3d(batch["pixel_values"].transpose(1, 2), weight, bias, stride=(2, 4, 4))
    every = every.flatten(2).transpose(1, 2) + sinusoid_table(NUM_TOKENS, 16)
    if masked:
        visible = visible_indices_from(batch["masked_indices"], NUM_TOKENS)
        expected = every[~batch["bool_masked_pos"]].unflatten(0, (2, -1))
        torch.testing.assert_close(embeddings(batch["pixel_values"], visible), expected)
    else:
        torch.testing.assert_close(embeddings(batch["pixel_values"]), every)


def test_masked_pixels_do_not_reach_the_model():
    model, batch = small_model(), small_batch()
    is_masked = batch["bool_masked_pos"].view(2, 2, 1, 1, 2, 1, 2, 1)
    tubelets = batch["pixel_values"].view(2, 2, 2, 3, 2, 4, 2, 4)
    poisoned = torch.where(is_masked, torch.nan, tubelets).view_as(batch["pixel_values"])
    inputs = {"masked_indices": batch["masked_indices"]}
    torch.testing.assert_close(model(poisoned, **inputs).logits, model(batch["pixel_values"], **inputs).logits)


def test_features_are_of_the_visible_tokens_in_ascending_order():
    model, batch = small_model(MMEModel), small_batch()
    outputs = model(batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"])
    assert outputs.last_hidden_state.shape == (2, NUM_TOKENS - NUM_MASKED, 16)
    for clip in range(2):
        assert outputs.visible_indices[clip].tolist() == (~batch["bool_masked_pos"][clip]).nonzero().flatten().tolist()
    assert model(batch["pixel_values"]).last_hidden_state.shape == (2, NUM_TOKENS, 16)


def test_masked_indices_and_bool_masked_pos_say_the_same():
    model, batch = small_model(), small_batch()
    from_indices = model(batch["pixel_values"], masked_indices=batch["masked_indices"]).logits
    from_bool = model(batch["pixel_values"], bool_masked_pos=batch["bool_masked_pos"]).logits
    torch.testing.assert_close(from_indices, from_bool, rtol=0, atol=0)


@pytest.mark.parametrize(("num_frames", "height", "width"), [(2, 8, 8), (4, 4, 12), (8, 12, 8), (6, 16, 16)])
def test_clips_of_other_sizes_than_the_configuration_work(num_frames, height, width):
    model = small_model()
    pixel_values = torch.randn(1, num_frames, 3, height, width)
    num_tokens = num_frames // 2 * (height // 4) * (width // 4)
    is_masked = (torch.arange(num_tokens) % 2 == 0)[None]
    labels = torch.zeros(1, num_tokens, 5)
    outputs = model(pixel_values, bool_masked_pos=is_masked, labels=labels)
    assert outputs.logits.shape == (1, int(is_masked.sum()), 5)
    # A model configured for this size agrees: the table is no limit and no special case.
    other = small_model(image_size=[height, width], num_frames=num_frames)
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(pixel_values, bool_masked_pos=is_masked).logits, outputs.logits)


# --- attention ---


@torch.no_grad()
def test_eager_equals_sdpa():
    model, batch = small_model(), small_batch()
    model.set_attn_implementation("eager")
    eager = model(**batch)
    model.set_attn_implementation("sdpa")
    sdpa = model(**batch)
    torch.testing.assert_close(eager.logits, sdpa.logits)
    torch.testing.assert_close(eager.loss, sdpa.loss)


@pytest.mark.slow  # flex attention compiles itself, for a minute and with a C compiler
@torch.no_grad()
def test_flex_attention_equals_sdpa():
    model, batch = small_model(hidden_size=32, decoder_hidden_size=32), small_batch()
    sdpa = model(**batch).logits
    model.set_attn_implementation("flex_attention")
    torch.testing.assert_close(model(**batch).logits, sdpa)


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_attention_is_not_causal(attention):
    # Without positions the encoder cannot know the order of its tokens.
    model = small_model(MMEModel)
    model.set_attn_implementation(attention)
    model.embeddings.position_embeddings.table.zero_()
    pixel_values = small_batch()["pixel_values"]
    turned = torch.cat([pixel_values[:, 2:], pixel_values[:, :2]], dim=1)
    features, turned_features = model(pixel_values).last_hidden_state, model(turned).last_hidden_state
    torch.testing.assert_close(turned_features, features.roll(4, dims=1))


@torch.no_grad()
def test_hidden_states_and_attentions_are_the_encoders():
    model, batch = small_model(), small_batch()
    model.set_attn_implementation("eager")
    outputs = model(**batch, output_hidden_states=True, output_attentions=True)
    num_visible = NUM_TOKENS - NUM_MASKED
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, num_visible, 16)] * 4
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, num_visible, num_visible)] * 3
    torch.testing.assert_close(outputs.attentions[0].sum(-1), torch.ones(2, 2, num_visible))
    encoded = model.mme(batch["pixel_values"], masked_indices=batch["masked_indices"])
    torch.testing.assert_close(model.mme.layernorm(outputs.hidden_states[-1]), encoded.last_hidden_state)
    assert model(**batch).hidden_states is None


@pytest.mark.parametrize("model_class", [MMEModel, MMEForPreTraining])
@torch.no_grad()
def test_tuple_equals_dict_output(model_class):
    model, batch = small_model(model_class), small_batch()
    if model_class is MMEModel:
        batch = {"pixel_values": batch["pixel_values"]}
    named = model(**batch)
    plain = model(**batch, return_dict=False)
    assert isinstance(plain, tuple)
    for ours, other in zip(plain, named.to_tuple(), strict=True):
        torch.testing.assert_close(ours, other)


# --- loss ---


def loss_by_hand(logits, labels, masked_indices, target_mask):
    """METHOD.md section 3 in loops: a token's mean over its values, summed over masked tokens, over their number."""
    losses = {"shape": 0.0, "position": 0.0}
    columns = {"shape": slice(0, 3), "position": slice(3, 5)}
    count = 0
    for clip, tokens in enumerate(masked_indices.tolist()):
        for row, token in enumerate(tokens):
            count += 1
            for target, name in enumerate(losses):
                if target_mask[clip, token, target]:
                    difference = logits[clip, row, columns[name]] - labels[clip, token, columns[name]]
                    losses[name] += float((difference.double() ** 2).mean())
    return {name: value / count for name, value in losses.items()}


def test_loss_of_two_tokens_by_hand():
    model = small_model()
    # Token 1 and token 3 are masked; what stands at 0 and 2 must not count.
    logits = torch.tensor([[[1.0, 2.0, 3.0, 0.5, 0.5], [0.0, 0.0, 0.0, 1.0, -1.0]]])
    labels = torch.tensor([[[9.0] * 5, [1.0, 2.0, 0.0, 0.5, 2.5], [9.0] * 5, [3.0, 0.0, 0.0, 0.0, 0.0]]])
    losses = model.target_losses(model.split_targets(logits), labels, torch.tensor([[1, 3]]))
    # shape: (0 + 0 + 9) / 3 = 3 and (9 + 0 + 0) / 3 = 3, over 2 tokens; position: (0 + 4) / 2 = 2 and (1 + 1) / 2 = 1.
    assert losses["shape"].item() == pytest.approx((3 + 3) / 2)
    assert losses["position"].item() == pytest.approx((2 + 1) / 2)
    # An invalid token adds nothing and still counts in the number.
    mask = torch.tensor([[[True, True], [True, False], [True, True], [True, True]]])
    losses = model.target_losses(model.split_targets(logits), labels, torch.tensor([[1, 3]]), mask)
    assert losses["shape"].item() == pytest.approx(3)
    assert losses["position"].item() == pytest.approx(1 / 2)


def test_loss_is_the_weighted_sum_of_target_losses():
    model, batch = small_model(), small_batch()
    outputs = model(**batch)
    expected = loss_by_hand(outputs.logits.detach(), batch["labels"], batch["masked_indices"], batch["target_mask"])
    losses = {name: value.item() for name, value in outputs.target_losses.items()}
    # Of visible tokens: test_visible_tokens_are_predicted_from_the_encoder_alone.
    visible = losses.pop("visible_position")
    assert losses == pytest.approx(expected)
    assert outputs.loss.item() == pytest.approx(54 * expected["shape"] + 8 * expected["position"] + 8 * visible)


def test_visible_tokens_are_predicted_from_the_encoder_alone():
    weights = {"shape": 0.5, "position": 3}
    targets = {name: {**target, "visible_weight": weights[name]} for name, target in TARGETS.items()}
    model, batch = small_model(motion_targets=targets), small_batch()
    outputs = model(**batch)
    encoded = model.mme(batch["pixel_values"], masked_indices=batch["masked_indices"])
    shape, position = (
        encoded.last_hidden_state @ model.visible_heads[name].weight.T + model.visible_heads[name].bias
        for name in ("shape", "position")
    )
    predicted = torch.cat([shape.sigmoid(), position], dim=-1).detach()
    where = [batch[key] for key in ("labels", "masked_indices", "target_mask")]
    masked = loss_by_hand(outputs.logits.detach(), *where)
    where[1] = encoded.visible_indices
    visible = loss_by_hand(predicted, *where)
    expected = masked | {f"visible_{name}": value for name, value in visible.items()}
    assert {name: value.item() for name, value in outputs.target_losses.items()} == pytest.approx(expected)
    # A visible error counts half as much as a masked one, or thrice as much; together they count 54, or 16.
    parts = (36 * masked["shape"], 4 * masked["position"], 18 * visible["shape"], 12 * visible["position"])
    assert outputs.loss.item() == pytest.approx(sum(parts))
    assert model.loss_weights == {"shape": 36, "position": 4, "visible_shape": 18, "visible_position": 12}


def test_a_target_without_visible_weight_has_no_layer_for_visible_tokens():
    assert list(small_model().visible_heads) == ["position"]
    # Files from before there was such a weight: they mean what they meant.
    targets = {name: {**target, "visible_weight": 0.0} for name, target in TARGETS.items()}
    none = {name: {key: target[key] for key in ("size", "activation", "weight")} for name, target in TARGETS.items()}
    for without in (small_model(motion_targets=targets), small_model(motion_targets=none)):
        assert not without.visible_heads and list(without(**small_batch()).target_losses) == ["shape", "position"]
        assert without.loss_weights == {"shape": 54, "position": 16}


def test_mask_of_all_targets_equals_the_same_mask_for_each():
    model, batch = small_model(), small_batch()
    token_mask = batch["target_mask"][..., 0]
    for_all = model(**{**batch, "target_mask": token_mask})
    for_each = model(**{**batch, "target_mask": token_mask[..., None].expand(-1, -1, 2)})
    torch.testing.assert_close(for_all.loss, for_each.loss)
    assert for_all.loss != model(**batch).loss


def test_labels_that_do_not_count_may_be_nan():
    model, batch = small_model(), small_batch()
    counts = batch["target_mask"].repeat_interleave(torch.tensor([3, 2]), dim=-1)
    # Of visible tokens position counts, shape does not.
    counts = counts & (batch["bool_masked_pos"][..., None] | torch.tensor([False] * 3 + [True] * 2))
    poisoned = batch["labels"].masked_fill(~counts, torch.nan)
    clean = model(**batch).loss
    loss = model(**{**batch, "labels": poisoned}).loss
    torch.testing.assert_close(loss, clean)
    loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


def test_activations_bound_the_predictions():
    batch = small_batch()
    targets = {"a": {**TARGETS["shape"]}, "b": {**TARGETS["position"], "activation": "tanh"}}
    model = small_model(motion_targets=targets)
    with torch.no_grad():
        for head in model.decoder.heads.values():
            head.fc2.weight.mul_(10)  # far beyond what either activation passes on
    predictions = model.split_targets(model(batch["pixel_values"], masked_indices=batch["masked_indices"]).logits)
    assert list(predictions) == ["a", "b"]
    assert predictions["a"].shape == (2, NUM_MASKED, 3) and predictions["a"].aminmax().min >= 0
    assert predictions["b"].aminmax().min < 0 and predictions["b"].abs().max() <= 1


def test_only_pretraining_without_labels_has_no_loss():
    batch = small_batch()
    outputs = small_model()(batch["pixel_values"], batch["bool_masked_pos"])
    assert outputs.loss is None and outputs.target_losses is None


# --- training ---


def test_gradient_reaches_every_parameter():
    model, batch = small_model().train(), small_batch()
    model(**batch).loss.backward()
    # The last decoder block's queries and every other parameter; a key has no bias.
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []
    assert not any("k_proj.bias" in name for name, _ in model.named_parameters())


def test_gradient_stops_at_targets_without_weight():
    targets = copy.deepcopy(TARGETS)
    targets["shape"]["weight"] = 0.0
    model = small_model(motion_targets=targets)
    model(**small_batch()).loss.backward()
    assert not model.decoder.heads["shape"].fc1.weight.grad.any()
    assert model.decoder.heads["position"].fc1.weight.grad.any()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("with_indices", [True, False])
def test_batch_of_no_clips_gives_zero_gradients_to_every_parameter(attention, with_indices):
    model = small_model().train()
    model.set_attn_implementation(attention)
    batch = {name: value[:0] for name, value in small_batch().items()}
    if not with_indices:
        del batch["masked_indices"]
    outputs = model(**batch)
    outputs.loss.backward()
    assert outputs.loss == 0
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert not parameter.grad.any(), name


def test_activation_checkpointing_gives_the_same_gradients():
    model, batch = small_model(drop_path_rate=0.3).train(), small_batch()
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
            enable()
            assert model.decoder.layers[-1].gradient_checkpointing
        model.zero_grad()
        torch.manual_seed(7)
        model(**batch).loss.backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_drop_path_drops_whole_clips_and_keeps_the_mean():
    torch.manual_seed(0)
    drop_path = MMEDropPath(0.25).train()
    dropped = drop_path(torch.ones(20000, 2, 3))
    # Each clip is all 0 or all 1 / 0.75; 5 standard deviations of the share are 0.015.
    torch.testing.assert_close(dropped.flatten(1).unique(dim=0), torch.tensor([[0.0] * 6, [4 / 3] * 6]))
    assert (dropped[:, 0, 0] == 0).float().mean().item() == pytest.approx(0.25, abs=0.015)
    torch.testing.assert_close(drop_path.eval()(torch.ones(2, 3)), torch.ones(2, 3))


def test_drop_path_rates_grow_from_zero():
    model = small_model(MMEModel, drop_path_rate=0.2)
    assert [layer.drop_path.drop_rate for layer in model.layers] == pytest.approx([0.0, 0.1, 0.2])


def test_bf16_autocast_runs_with_a_float32_loss():
    model, batch = small_model().train(), small_batch()
    expected = model(**batch)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = model(**batch)
    assert outputs.loss.dtype == torch.float32
    torch.testing.assert_close(outputs.loss, expected.loss, rtol=0.05, atol=0)
    outputs.loss.backward()
    assert all(parameter.grad.isfinite().all() for parameter in model.parameters())


# --- compiling ---


@pytest.mark.parametrize(("labelled", "autocast"), [(True, False), (False, True)])
def test_forward_compiles_as_one_graph_for_any_batch_size(labelled, autocast):
    torch.compiler.reset()
    model = small_model().train()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that no other dimension has: the compiler would take equal sizes for one.
    for batch_size in (6, 7, 9):
        batch = small_batch(batch_size)
        if not labelled:
            del batch["labels"], batch["target_mask"]
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            outputs, expected = compiled(**batch), model(**batch)
        torch.testing.assert_close(outputs.logits, expected.logits)
        if labelled:
            torch.testing.assert_close(outputs.loss, expected.loss)
    assert len(graphs) == 1


def test_compiled_gradients_equal_eager_ones():
    torch.compiler.reset()
    model, batch = small_model().train(), small_batch()
    model(**batch).loss.backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    torch.compile(model, fullgraph=True, backend="aot_eager")(**batch).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected)


# --- saving ---


def test_save_and_load_is_exact(tmp_path):
    model, batch = small_model(), small_batch()
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    loaded, report = MMEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    # Buffers too: from_pretrained builds on the meta device and must fill the position tables again.
    for named in ("named_parameters", "named_buffers"):
        ours, theirs = dict(getattr(model, named)()), dict(getattr(loaded, named)())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    torch.testing.assert_close(loaded(**batch).loss, model(**batch).loss, rtol=0, atol=0)


def test_positions_need_no_initialisation():
    with init.no_init_weights():
        model = small_model()
    for positions, width in ((model.mme.embeddings.position_embeddings, 16), (model.decoder.position_embeddings, 8)):
        assert torch.equal(positions.table, sinusoid_table(NUM_TOKENS, width))


def test_loading_in_bf16_rounds_the_position_table_once(tmp_path):
    small_model().save_pretrained(tmp_path)
    loaded = MMEForPreTraining.from_pretrained(tmp_path, dtype=torch.bfloat16)
    table = loaded.mme.embeddings.position_embeddings.table
    assert torch.equal(table.bfloat16(), sinusoid_table(NUM_TOKENS, 16).bfloat16())
    batch = small_batch()
    outputs = loaded(batch["pixel_values"], masked_indices=batch["masked_indices"], labels=batch["labels"])
    assert outputs.logits.dtype == torch.bfloat16 and outputs.loss.dtype == torch.float32


def test_auto_classes_open_a_saved_model(tmp_path):
    AutoConfig.register("mme", MMEConfig, exist_ok=True)
    AutoModel.register(MMEConfig, MMEModel, exist_ok=True)
    AutoModelForPreTraining.register(MMEConfig, MMEForPreTraining, exist_ok=True)
    model = small_model()
    model.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MMEConfig
    assert type(AutoModelForPreTraining.from_pretrained(tmp_path)) is MMEForPreTraining
    encoder, report = AutoModel.from_pretrained(tmp_path, output_loading_info=True)
    assert type(encoder) is MMEModel
    assert not report["missing_keys"]
    assert all(torch.equal(tensor, model.mme.state_dict()[name]) for name, tensor in encoder.state_dict().items())


def test_weights_start_as_configured():
    model = small_model(hidden_size=64, intermediate_size=192, decoder_hidden_size=64, initializer_range=0.02)
    # Xavier-uniform: within, and nearly at, +-sqrt(6 / (inputs + outputs)).
    assert model.mme.layers[0].mlp.fc1.weight.abs().max().item() == pytest.approx((6 / (64 + 192)) ** 0.5, rel=0.01)
    assert model.decoder.mask_token.std().item() == pytest.approx(0.02, rel=0.3)
    assert not model.mme.layers[0].mlp.fc1.bias.any()
    assert torch.equal(model.mme.layernorm.weight, torch.ones(64))
    assert 0 < model.decoder.mask_token.abs().max() < 0.2


@pytest.mark.parametrize("gain", [1.0, 5.0])
def test_patch_embedding_starts_with_the_difference_of_frames_amplified(gain):
    model = small_model(MMEModel, frame_difference_gain=gain, hidden_size=64)
    projection = model.embeddings.patch_embeddings.projection
    first, second = torch.randn(2, 1, 3, 4 * 4, generator=torch.Generator().manual_seed(0)).unbind(0)
    with torch.no_grad():
        of_equal_frames = projection(torch.stack([first, first], dim=2).flatten(1))
        of_opposite_frames = projection(torch.stack([second, -second], dim=2).flatten(1))
    # Xavier-uniform weights have variance 2 / (96 + 64) = 0.0125. Equal frames meet w1 + w2, of twice that variance;
    # opposite ones meet gain * (w1 - w2), of 2 * gain ** 2 times it. 64 outputs of 48 pixels scatter by about 10 %.
    assert of_equal_frames.std() == pytest.approx((0.025 * float(first.square().sum())) ** 0.5, rel=0.3)
    assert of_opposite_frames.std() == pytest.approx(gain * (0.025 * float(second.square().sum())) ** 0.5, rel=0.3)


def test_loaded_patch_embeddings_are_not_amplified_again(tmp_path):
    model = small_model(MMEModel, frame_difference_gain=5.0)
    model.save_pretrained(tmp_path)
    weights = [
        owner.embeddings.patch_embeddings.projection.weight for owner in (model, MMEModel.from_pretrained(tmp_path))
    ]
    assert torch.equal(*weights)


def test_trainer_and_data_parallel_attributes():
    assert MMEForPreTraining.main_input_name == "pixel_values"
    assert MMEForPreTraining._no_split_modules == ["MMEEmbeddings", "MMELayer"]
    assert MMEConfig().keys_to_ignore_at_inference == ["target_losses"]


# --- bad input ---


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_values": None}, r"pixel_values is a NoneType, expected a tensor.*MMEVideoProcessor makes it"),
        ({"pixel_values": np.zeros((2, 4, 3, 8, 8))}, r"pixel_values is a ndarray, expected a tensor"),
        ({"bool_maskd_pos": None}, r"MMEForPreTraining has no option bool_maskd_pos. Did you mean bool_masked_pos"),
        ({"label": None}, r"MMEForPreTraining has no option label. Did you mean labels"),
        ({"output_hiden_states": True}, r"Did you mean output_hidden_states"),
        ({"pixel_values": torch.zeros(2, 3, 4, 8, 8)}, r"pixel_values has shape \(2, 3, 4, 8, 8\).*3 channels"),
        ({"pixel_values": torch.zeros(4, 3, 8, 8)}, r"pixel_values has shape \(4, 3, 8, 8\), expected \(batch, frames"),
        ({"pixel_values": torch.zeros(2, 4, 3, 8, 8, dtype=torch.uint8)}, r"dtype torch.uint8.*normalised"),
        ({"pixel_values": torch.zeros(2, 3, 3, 8, 8)}, r"has 3 frames, expected a positive multiple of tubelet_size"),
        ({"pixel_values": torch.zeros(2, 4, 3, 8, 9)}, r"frames of 8 x 9 px.*multiples of patch_size \(4\)"),
        ({"bool_masked_pos": torch.zeros(2, 9, dtype=torch.bool)}, r"bool_masked_pos has shape \(2, 9\).*\(2, 8\)"),
        ({"bool_masked_pos": torch.zeros(2, 8)}, r"bool_masked_pos has dtype torch.float32, expected torch.bool"),
        ({"masked_indices": torch.zeros(3, 5, dtype=torch.int64)}, r"masked_indices has shape \(3, 5\).*batch of 2"),
        ({"masked_indices": torch.arange(8).expand(2, 8)}, r"8 of 8 tokens are masked, which leaves none to see"),
        ({"masked_indices": torch.zeros(2, 0, dtype=torch.int64)}, r"0 of 8 tokens are masked.*nothing to predict"),
        (
            {"labels": torch.zeros(2, 8, 4)},
            r"labels has shape \(2, 8, 4\).*\(2, 8, 5\) for the targets shape",
        ),
        ({"labels": torch.zeros(2, 5, 5)}, r"labels has shape \(2, 5, 5\), expected \(batch, tokens, values\)"),
        ({"target_mask": torch.zeros(2, 8, 3)}, r"target_mask has shape \(2, 8, 3\), expected \(2, 8\) or \(2, 8, 2\)"),
        ({"masked_indices": None, "bool_masked_pos": None}, r"needs bool_masked_pos or masked_indices"),
    ],
)
def test_wrong_input_names_what_is_expected(change, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**{**small_batch(), **change})


@pytest.mark.parametrize("model_class", [MMEModel, MMEForPreTraining])
def test_options_of_attention_and_of_transformers_pass_and_misspelt_inputs_do_not(model_class):
    model, batch = small_model(model_class), small_batch()
    inputs = {name: batch[name] for name in ("pixel_values", "bool_masked_pos")}
    for option in ({"num_items_in_batch": 2}, {"return_dict": True}, {"output_attentions": False}, {"softcap": None}):
        model(**inputs, **option)
    with pytest.raises(ValueError, match="has no option bool_mask_pos. Did you mean bool_masked_pos"):
        model(batch["pixel_values"], bool_mask_pos=batch["bool_masked_pos"])
    with pytest.raises(ValueError, match="pixel_values is a NoneType"):
        model(None)


@pytest.mark.parametrize("model_class", [MMEModel, MMEForPreTraining])
def test_unequal_mask_counts_are_named(model_class):
    is_masked = torch.zeros(2, NUM_TOKENS, dtype=torch.bool)
    is_masked[0, :3] = True
    is_masked[1, :4] = True
    with pytest.raises(ValueError, match=r"hides \[3, 4\] tokens in the clips of this batch"):
        small_model(model_class)(small_batch()["pixel_values"], is_masked)


@pytest.mark.parametrize("model_class", [MMEModel, MMEForPreTraining])
def test_mask_of_everything_is_an_error(model_class):
    is_masked = torch.ones(2, NUM_TOKENS, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"8 of 8 tokens are masked"):
        small_model(model_class)(small_batch()["pixel_values"], is_masked)


def test_shapes_are_found_without_numbers():
    model = MMEModel(small_config()).to("meta")
    clip = torch.zeros(2, model.config.num_frames, 3, *model.config.frame_size, device="meta")
    features = model(clip).last_hidden_state
    assert features.device.type == "meta" and features.shape[:2] == (2, model.config.num_tokens)
