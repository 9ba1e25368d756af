"""`modeling_mme.py`: the classifier, padded clips, features of a layer. `test_modeling_mme.py` has the rest of it."""

import pytest
import torch
from torch import nn
from transformers import AutoModel, AutoModelForVideoClassification, Trainer, TrainingArguments

import mme_hf
from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEVideoProcessor

NEW_HEAD = {"fc_norm.weight", "fc_norm.bias", "classifier.weight", "classifier.bias"}
POOLINGS = {
    "mean": {},
    "attentive": {"use_attentive_pooling": True},
    "first": {"use_mean_pooling": False},
}


def small_config(**overrides) -> MMEConfig:
    fields = {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 8,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 12,
        "motion_head_hidden_size": 10,
        "num_labels": 3,
    }
    return MMEConfig(**{**fields, **overrides})


def small_model(model_class=MMEForVideoClassification, seed=0, **overrides):
    """A model whose weights are all far from their start, so that none can be mixed up with another or left out."""
    torch.manual_seed(seed)
    model = model_class(small_config(**overrides)).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def clips(num_frames=4, batch_size=2, seed=1, size=(8, 8)) -> torch.Tensor:
    return torch.randn(batch_size, num_frames, 3, *size, generator=torch.Generator().manual_seed(seed))


# --- loading ---


@pytest.mark.parametrize("source", [MMEForPreTraining, MMEModel])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_only_the_head_is_new_after_pretraining(tmp_path, source, pooling):
    pretrained = small_model(source)
    pretrained.save_pretrained(tmp_path)
    model, report = MMEForVideoClassification.from_pretrained(
        tmp_path, num_labels=5, output_loading_info=True, **POOLINGS[pooling]
    )
    new = NEW_HEAD if pooling != "first" else {"classifier.weight", "classifier.bias"}
    missing = set(report["missing_keys"])
    assert {key for key in missing if not key.startswith("pooler.")} == new
    of_the_pooler = {f"pooler.{name}" for name, _ in model.pooler.named_parameters()} if model.pooler else set()
    assert missing - new == of_the_pooler
    assert not report["unexpected_keys"] and not report["mismatched_keys"]
    assert model.classifier.weight.shape == (5, 16)
    encoder = pretrained if source is MMEModel else pretrained.mme
    for name, tensor in model.mme.state_dict().items():
        assert torch.equal(tensor, encoder.state_dict()[name]), name
    # As published, the new head starts so small that the first logits are all but equal.
    assert 0 < model.classifier.weight.abs().max() < 1e-3


def test_names_of_classes_travel_with_the_model(tmp_path):
    names = {0: "left", 1: "right", 2: "still"}
    small_model(MMEForPreTraining).save_pretrained(tmp_path / "pretrained")
    model = MMEForVideoClassification.from_pretrained(
        tmp_path / "pretrained", id2label=names, label2id={name: number for number, name in names.items()}
    )
    assert model.num_labels == 3
    model.save_pretrained(tmp_path / "classifier")
    loaded = AutoModelForVideoClassification.from_pretrained(tmp_path / "classifier")
    assert type(loaded) is MMEForVideoClassification
    assert loaded.config.id2label == names and loaded.config.label2id["right"] == 1


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_save_and_load_is_exact(tmp_path, pooling):
    model = small_model(**POOLINGS[pooling])
    model.save_pretrained(tmp_path)
    loaded, report = MMEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert torch.equal(loaded(clips()).logits, model(clips()).logits)


def test_other_classes_need_a_new_head_and_say_so(tmp_path):
    small_model().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match=r"ignore_mismatched_sizes"):
        MMEForVideoClassification.from_pretrained(tmp_path, num_labels=7)
    model, report = MMEForVideoClassification.from_pretrained(
        tmp_path, num_labels=7, ignore_mismatched_sizes=True, output_loading_info=True
    )
    assert {entry[0] for entry in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert model(clips()).logits.shape == (2, 7)


@torch.no_grad()
def test_encoder_of_an_averaging_classifier_gives_the_tokens_that_it_averages(tmp_path, caplog):
    classifier = small_model()
    classifier.save_pretrained(tmp_path / "classifier")
    encoder, report = AutoModel.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert "has no final LayerNorm" in caplog.text
    assert type(encoder) is MMEModel and encoder.layernorm is None
    assert not report["missing_keys"] and not report["unexpected_keys"]
    expected = classifier.mme(clips()).last_hidden_state
    assert torch.equal(encoder(clips()).last_hidden_state, expected)
    encoder.save_pretrained(tmp_path / "encoder")
    again = MMEModel.from_pretrained(tmp_path / "encoder")
    assert torch.equal(again(clips()).last_hidden_state, expected)


def test_what_a_model_leaves_out_is_reported(tmp_path):
    small_model(use_attentive_pooling=True).save_pretrained(tmp_path / "attentive")
    _, report = MMEForVideoClassification.from_pretrained(
        tmp_path / "attentive", use_attentive_pooling=False, output_loading_info=True
    )
    assert any(key.startswith("pooler.") for key in report["unexpected_keys"])
    # Heads of other targets are not these targets' heads.
    small_model(MMEForPreTraining).save_pretrained(tmp_path / "pretrained")
    flow = {"flow": {"size": 2, "activation": "linear", "weight": 1.0}}
    _, report = MMEForPreTraining.from_pretrained(
        tmp_path / "pretrained", motion_targets=flow, output_loading_info=True
    )
    assert any(key.startswith("decoder.heads.shape.") for key in report["unexpected_keys"])
    assert {key.split(".")[2] for key in report["missing_keys"]} == {"flow"}


# --- losses ---


def test_losses_by_hand():
    pixel_values = clips()
    logits = small_model()(pixel_values).logits.detach().double()
    log_shares = logits - logits.exp().sum(1, keepdim=True).log()

    def loss(labels, **config):
        return small_model(**config)(pixel_values, labels=labels).loss.item()

    classes = torch.tensor([2, 0])
    expected = -(log_shares[0, 2] + log_shares[1, 0]).item() / 2
    assert loss(classes) == pytest.approx(expected)
    assert loss(classes, problem_type="single_label_classification") == pytest.approx(expected)
    shares = torch.tensor([[0.7, 0.0, 0.3], [0.2, 0.5, 0.3]])
    expected = -(shares * log_shares).sum().item() / 2
    assert loss(shares, problem_type="single_label_classification") == pytest.approx(expected)
    present = torch.tensor([[1.0, 0.0, 1.0], [0.0, 0.0, 1.0]])
    chances = 1 / (1 + (-logits).exp())
    expected = -(present * chances.log() + (1 - present) * (1 - chances).log()).mean().item()
    assert loss(present) == pytest.approx(expected)
    assert loss(present, problem_type="multi_label_classification") == pytest.approx(expected)
    values = torch.tensor([[0.5, -2.0, 3.0], [1.0, 1.0, 0.0]])
    expected = (values - logits).square().mean().item()
    assert loss(values, problem_type="regression") == pytest.approx(expected)


@pytest.mark.parametrize("shape", [(2,), (2, 1)])
def test_regression_of_one_value(shape):
    model = small_model(num_labels=1)
    outputs = model(clips(), labels=torch.tensor([1.5, -0.5]).view(shape))
    first, second = outputs.logits.flatten().tolist()
    assert outputs.loss.item() == pytest.approx(((first - 1.5) ** 2 + (second + 0.5) ** 2) / 2)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_no_clips_give_loss_0_and_zero_gradients(pooling):
    # A process whose videos could not be read keeps step with the others, so every parameter must have a gradient.
    model = small_model(problem_type="single_label_classification", **POOLINGS[pooling])
    loss = model(clips()[:0], labels=torch.zeros(0, 3)).loss
    loss.backward()
    assert loss == 0 and all(parameter.grad is not None for parameter in model.parameters())
    assert not any(parameter.grad.any() for parameter in model.parameters())


def test_half_precision_gives_a_float32_loss():
    model = small_model().bfloat16()
    assert model(clips().bfloat16(), labels=torch.tensor([0, 1])).loss.dtype == torch.float32


PROBLEMS = {
    "classes": ("single_label_classification", torch.tensor([0, 2, 1, 1])),
    "mixed": ("single_label_classification", torch.rand(4, 3, generator=torch.Generator().manual_seed(3))),
    "multi_label": ("multi_label_classification", torch.eye(4, 3)),
    "regression": ("regression", torch.arange(12.0).view(4, 3)),
}


@pytest.mark.parametrize("problem", PROBLEMS)
def test_trainer_gives_the_same_step_for_accumulated_batches(tmp_path, problem):
    problem_type, labels = PROBLEMS[problem]
    examples = [
        {"pixel_values": clip, "labels": label} for clip, label in zip(clips(batch_size=4), labels, strict=True)
    ]
    weights = []
    # 3 does not divide 4: the last update's batches are not equal in size.
    for batch_size, accumulation in ((4, 1), (1, 4), (3, 2)):
        model = small_model(problem_type=problem_type)
        arguments = TrainingArguments(
            output_dir=str(tmp_path),
            per_device_train_batch_size=batch_size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            learning_rate=0.1,
            optim="sgd",
            max_grad_norm=0.0,
            report_to=[],
            save_strategy="no",
            use_cpu=True,
            disable_tqdm=True,
        )
        Trainer(model, arguments, train_dataset=examples).train()
        weights.append([parameter.detach().clone() for parameter in model.parameters()])
    assert not torch.equal(weights[0][0], small_model().mme.embeddings.patch_embeddings.projection.weight)
    torch.testing.assert_close(weights[1], weights[0])
    torch.testing.assert_close(weights[2], weights[0])


# --- inputs of other sizes ---


@torch.no_grad()
def test_other_frame_counts_and_sizes():
    # Patches of 16 px, trained with 16 frames of 224 px.
    config = {"image_size": 224, "patch_size": 16, "num_frames": 16, "num_hidden_layers": 1}
    model = small_model(**config)
    for num_frames, size in [(8, 224), (16, 224), (32, 224), (4, 288), (4, (160, 256))]:
        height, width = size if isinstance(size, tuple) else (size, size)
        pixel_values = clips(num_frames, 1, size=(height, width))
        logits = model(pixel_values).logits
        # One that was configured for this input has its whole position table from the start.
        other = small_model(**{**config, "image_size": [height, width], "num_frames": num_frames})
        torch.testing.assert_close(logits, other(pixel_values).logits, rtol=0, atol=1e-5)


# --- padded clips ---

# Where the real frames of two clips are, in a batch of 8 frames; tubelets have 2.
PLACES = {
    "end": [[0, 1, 2, 3], [0, 1, 2, 3, 4, 5, 6, 7]],
    "start": [[4, 5, 6, 7], [0, 1, 2, 3, 4, 5, 6, 7]],
    "middle": [[0, 1, 6, 7], [0, 1, 2, 3, 4, 5]],
}


def padded_batch(place, filling=0.0):
    """Return two clips, and both padded to 8 frames with `filling`."""
    alone = [clips(len(frames), 1, seed=index) for index, frames in enumerate(PLACES[place])]
    pixel_values = torch.full((2, 8, 3, 8, 8), filling)
    frame_mask = torch.zeros(2, 8, dtype=torch.bool)
    for index, frames in enumerate(PLACES[place]):
        pixel_values[index, frames] = alone[index][0]
        frame_mask[index, frames] = True
    return alone, {"pixel_values": pixel_values, "frame_mask": frame_mask}


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("place", PLACES)
@torch.no_grad()
def test_padding_changes_no_logits(attention, pooling, place):
    model = small_model(**POOLINGS[pooling])
    model.set_attn_implementation(attention)
    for filling in (0.0, 1e30, torch.nan, -torch.inf):
        alone, batch = padded_batch(place, filling)
        expected = torch.cat([model(clip).logits for clip in alone])
        torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)
    # Without the mask it would.
    assert not torch.allclose(model(padded_batch(place)[1]["pixel_values"]).logits, expected, atol=1e-2)


@pytest.mark.slow  # flex attention compiles itself, for a minute and with a C compiler
@torch.no_grad()
def test_padding_changes_no_logits_with_flex_attention():
    model = small_model(use_attentive_pooling=True, hidden_size=32)
    model.set_attn_implementation("flex_attention")
    alone, batch = padded_batch("middle")
    expected = torch.cat([model(clip).logits for clip in alone])
    torch.testing.assert_close(model(**batch).logits, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("checkpointing", [False, True])
def test_padding_changes_no_gradients(pooling, checkpointing):
    model = small_model(**POOLINGS[pooling]).train()
    if checkpointing:
        getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
    alone, batch = padded_batch("start", torch.nan)
    labels = torch.tensor([1, 2])
    losses = [model(clip, labels=label[None]).loss for clip, label in zip(alone, labels, strict=True)]
    (sum(losses) / 2).backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    model.zero_grad()
    model(**batch, labels=labels).loss.backward()
    torch.testing.assert_close([parameter.grad for parameter in model.parameters()], expected, rtol=1e-4, atol=1e-5)


def test_padded_half_precision_does_not_overflow():
    model = small_model().half()
    tokens = torch.full((1, 16, 16), 30000.0, dtype=torch.half)
    pooled = model.pool(tokens, torch.ones(1, 16, dtype=torch.bool))
    assert pooled.isfinite().all() and pooled.dtype == torch.half


@torch.no_grad()
def test_frame_mask_of_real_frames_only_changes_nothing():
    model = small_model(use_attentive_pooling=True)
    logits = model(clips(), frame_mask=torch.ones(2, 4, dtype=torch.bool)).logits
    torch.testing.assert_close(logits, model(clips()).logits)
    empty = model(clips()[:0], frame_mask=torch.ones(0, 4, dtype=torch.bool))
    assert empty.logits.shape == (0, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"frame_mask": torch.ones(2, 3, dtype=torch.bool)}, r"frame_mask has shape \(2, 3\).*\(2, 4\)"),
        ({"frame_mask": torch.ones(2, 4)}, r"dtype torch.float32, expected torch.bool"),
        ({"frame_mask": [[True] * 4] * 2}, r"frame_mask is a list, expected a tensor"),
        ({"frame_mask": torch.tensor([[True, False, True, True]] * 2)}, r"\[3, 3\] real frames.*all real or all pad"),
        ({"frame_mask": torch.tensor([[True] * 4, [False] * 4])}, r"\[4, 0\] real frames.*needs some"),
        (
            {"frame_mask": torch.ones(2, 4, dtype=torch.bool), "masked_indices": torch.tensor([[0], [1]])},
            r"frame_mask cannot be combined with masked tokens",
        ),
        ({"frame_masks": torch.ones(2, 4, dtype=torch.bool)}, r"no option frame_masks. Did you mean frame_mask"),
        ({"labels": torch.tensor([0, 1, 2])}, r"labels has shape \(3,\) and dtype torch.int64.*\(2,\)"),
        ({"labels": torch.zeros(3)}, r"labels has shape \(3,\) and dtype torch.float32.*\(2, 3\)"),
        ({"labels": torch.eye(2, 3).long()}, r"labels has shape \(2, 3\) and dtype torch.int64.*floating"),
        ({"pixel_values": None}, r"pixel_values is a NoneType"),
    ],
)
def test_wrong_input_names_what_is_expected(change, message):
    with pytest.raises(ValueError, match=message):
        small_model()(**{"pixel_values": clips(), **change})


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pooling", ["mean", "attentive"])
def test_compiles_as_one_graph(pooling, padded):
    torch.compiler.reset()
    model = small_model(**POOLINGS[pooling])
    batch = padded_batch("middle")[1] if padded else {"pixel_values": clips()}
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    outputs = compiled(**batch, labels=torch.tensor([0, 2]))
    expected = model(**batch, labels=torch.tensor([0, 2]))
    torch.testing.assert_close(outputs.logits, expected.logits)
    torch.testing.assert_close(outputs.loss, expected.loss)


# --- features ---


@torch.no_grad()
def test_features_of_a_layer_are_its_hidden_states():
    model = small_model(MMEModel)
    outputs = model(clips(), output_hidden_states=True)
    for layer, expected in [
        (0, outputs.hidden_states[0]),
        (1, outputs.hidden_states[1]),
        (-2, outputs.hidden_states[1]),
        (-3, outputs.hidden_states[0]),
        (-1, outputs.last_hidden_state),
        (2, outputs.last_hidden_state),
    ]:
        features = model.get_video_features(clips(), layer=layer)
        assert torch.equal(features.last_hidden_state, expected)
        torch.testing.assert_close(features.pooler_output, expected.mean(1))
        assert features.hidden_states is None or layer not in (-1, 2)
    with pytest.raises(ValueError, match=r"layer \(3\) must be from -3 to 2"):
        model.get_video_features(clips(), layer=3)


@pytest.mark.parametrize("layer", [1, -1])
@torch.no_grad()
def test_features_of_padded_clips_are_those_of_the_clips(layer):
    model = small_model(MMEModel)
    alone, batch = padded_batch("start", torch.nan)
    features = model.get_video_features(**batch, layer=layer)
    expected = [model.get_video_features(clip, layer=layer) for clip in alone]
    torch.testing.assert_close(features.pooler_output, torch.cat([clip.pooler_output for clip in expected]))
    token_mask = model(**batch).token_mask
    assert token_mask.sum(1).tolist() == [2 * 4, 4 * 4]
    torch.testing.assert_close(features.last_hidden_state[0, token_mask[0]][None], expected[0].last_hidden_state)


@torch.no_grad()
def test_outputs_of_layers_and_tuples():
    model = small_model(use_attentive_pooling=True)
    model.set_attn_implementation("eager")
    outputs = model(clips(), output_hidden_states=True, output_attentions=True)
    # The encoder's: the pooler's block is no layer of it.
    assert [tuple(state.shape) for state in outputs.hidden_states] == [(2, 8, 16)] * 3
    assert [tuple(weights.shape) for weights in outputs.attentions] == [(2, 2, 8, 8)] * 2
    assert torch.equal(model(clips(), return_dict=False)[0], outputs.logits)
    model.config.return_dict = False
    assert torch.equal(model(clips())[0], outputs.logits)
    tokens, pooled = model.mme.get_video_features(clips())
    assert (tokens.shape, pooled.shape) == ((2, 8, 16), (2, 16))


@pytest.mark.parametrize("pooling", POOLINGS)
@torch.no_grad()
def test_attention_implementations_agree(pooling):
    model = small_model(**POOLINGS[pooling])
    assert model.config._attn_implementation == "sdpa"
    sdpa = model(clips()).logits
    model.set_attn_implementation("eager")
    torch.testing.assert_close(model(clips()).logits, sdpa)


def test_drop_path_is_of_training_alone_and_gradient_reaches_every_parameter():
    model = small_model(drop_path_rate=0.5, use_attentive_pooling=True)
    assert torch.equal(model(clips()).logits, model(clips()).logits)
    assert not torch.equal(model.train()(clips()).logits, model(clips()).logits)
    model = small_model(use_attentive_pooling=True).train()
    model(clips(), labels=torch.tensor([0, 1])).loss.backward()
    assert [name for name, parameter in model.named_parameters() if not parameter.grad.any()] == []


@torch.no_grad()
def test_processor_to_logits():
    processor = MMEVideoProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, num_frames=4, frame_stride=1
    )
    video = torch.randint(0, 256, (9, 3, 20, 24), dtype=torch.uint8)
    model = small_model()
    assert model(**processor([video, video], return_tensors="pt")).logits.shape == (2, 3)


@torch.no_grad()
def test_clips_of_unequal_length_in_one_batch():
    model = small_model()
    unequal = [clips(num_frames, 1, seed=num_frames)[0] for num_frames in (2, 6, 4)]
    expected = torch.cat([model(clip[None]).logits for clip in unequal])
    torch.testing.assert_close(model(**mme_hf.pad_clips(unequal)).logits, expected, rtol=0, atol=1e-5)
