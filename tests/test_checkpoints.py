"""Conversion of published layouts: pre-training against a NumPy reading of them, classifiers against transformers."""

import math
from argparse import Namespace
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mme_hf import MMEModel
from mme_hf.checkpoints import convert_checkpoint, read_checkpoint

WIDTH, DECODER_WIDTH, HEADS, DECODER_HEADS = 8, 4, 2, 1
TUBELET, PATCH, HEAD_HIDDEN = 2, 4, 6
OVERRIDES = {"image_size": 8, "num_frames": 4, "num_attention_heads": HEADS, "decoder_num_attention_heads": 1}


def published_block(prefix: str, width: int, draw) -> dict[str, torch.Tensor]:
    return {
        f"{prefix}.norm1.weight": draw(width),
        f"{prefix}.norm1.bias": draw(width),
        f"{prefix}.attn.q_bias": draw(width),
        f"{prefix}.attn.v_bias": draw(width),
        f"{prefix}.attn.qkv.weight": draw(3 * width, width),
        f"{prefix}.attn.proj.weight": draw(width, width),
        f"{prefix}.attn.proj.bias": draw(width),
        f"{prefix}.norm2.weight": draw(width),
        f"{prefix}.norm2.bias": draw(width),
        f"{prefix}.mlp.fc1.weight": draw(2 * width, width),
        f"{prefix}.mlp.fc1.bias": draw(2 * width),
        f"{prefix}.mlp.fc2.weight": draw(width, 2 * width),
        f"{prefix}.mlp.fc2.bias": draw(width),
    }


@pytest.fixture
def published() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    tensors = {
        "mask_token": draw(1, 1, DECODER_WIDTH),
        "encoder.patch_embed.proj.weight": draw(WIDTH, 3, TUBELET, PATCH, PATCH),
        "encoder.patch_embed.proj.bias": draw(WIDTH),
        "encoder.norm.weight": draw(WIDTH),
        "encoder.norm.bias": draw(WIDTH),
        "encoder_to_decoder.0.weight": draw(DECODER_WIDTH, WIDTH),
        "decoder.0.norm.weight": draw(DECODER_WIDTH),
        "decoder.0.norm.bias": draw(DECODER_WIDTH),
    }
    for block in range(2):
        tensors |= published_block(f"encoder.blocks.{block}", WIDTH, draw)
        tensors |= published_block(f"decoder.0.blocks.{block}", DECODER_WIDTH, draw)
    for head, size in enumerate((5, 3)):
        tensors |= {
            f"decoder.0.head.{head}.0.weight": draw(HEAD_HIDDEN, DECODER_WIDTH),
            f"decoder.0.head.{head}.0.bias": draw(HEAD_HIDDEN),
            f"decoder.0.head.{head}.2.weight": draw(size, HEAD_HIDDEN),
            f"decoder.0.head.{head}.2.bias": draw(size),
        }
    return tensors


@pytest.fixture
def checkpoint(tmp_path, published):
    def save(tensors=published):
        torch.save({"model": tensors}, tmp_path / "published.pth")
        return tmp_path / "published.pth"

    return save


# --- the NumPy reading; float64, one clip, loops where they are plainest ---


def layer_norm(x, tensors, name):
    normed = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    return normed * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]


def gelu(x):
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def block(x, tensors, name, heads):
    h = layer_norm(x, tensors, f"{name}.norm1")
    q_weight, k_weight, v_weight = np.split(tensors[f"{name}.attn.qkv.weight"], 3)
    q, k, v = h @ q_weight.T + tensors[f"{name}.attn.q_bias"], h @ k_weight.T, h @ v_weight.T
    v = v + tensors[f"{name}.attn.v_bias"]
    size = x.shape[-1] // heads
    output = np.zeros_like(x)
    for head in range(heads):
        columns = slice(head * size, (head + 1) * size)
        scores = np.exp(q[:, columns] @ k[:, columns].T / math.sqrt(size))
        output[:, columns] = scores / scores.sum(-1, keepdims=True) @ v[:, columns]
    x = x + output @ tensors[f"{name}.attn.proj.weight"].T + tensors[f"{name}.attn.proj.bias"]
    h = layer_norm(x, tensors, f"{name}.norm2")
    h = gelu(h @ tensors[f"{name}.mlp.fc1.weight"].T + tensors[f"{name}.mlp.fc1.bias"])
    return x + h @ tensors[f"{name}.mlp.fc2.weight"].T + tensors[f"{name}.mlp.fc2.bias"]


def positions(count, width):
    table = np.zeros((count, width))
    for n in range(count):
        for j in range(width):
            angle = n / 10000 ** (2 * (j // 2) / width)
            table[n, j] = math.sin(angle) if j % 2 == 0 else math.cos(angle)
    return table


def numpy_predictions(tensors, video, is_masked):
    """Published model on one clip: video (frames, 3, height, width), is_masked (tokens,) -> shape, position."""
    tensors = {name: tensor.double().numpy() for name, tensor in tensors.items()}
    tokens = []
    for t in range(0, video.shape[0], TUBELET):
        for y in range(0, video.shape[2], PATCH):
            for x in range(0, video.shape[3], PATCH):
                tubelet = video[t : t + TUBELET, :, y : y + PATCH, x : x + PATCH].swapaxes(0, 1)
                tokens.append(np.einsum("dctyx,ctyx->d", tensors["encoder.patch_embed.proj.weight"], tubelet))
    count = len(tokens)
    x = np.array(tokens) + tensors["encoder.patch_embed.proj.bias"] + positions(count, WIDTH)
    x = x[~is_masked]
    for number in range(2):
        x = block(x, tensors, f"encoder.blocks.{number}", HEADS)
    x = layer_norm(x, tensors, "encoder.norm") @ tensors["encoder_to_decoder.0.weight"].T
    table = positions(count, DECODER_WIDTH)
    x = np.concatenate([x + table[~is_masked], tensors["mask_token"][0] + table[is_masked]])
    for number in range(2):
        x = block(x, tensors, f"decoder.0.blocks.{number}", DECODER_HEADS)
    x = layer_norm(x[(~is_masked).sum() :], tensors, "decoder.0.norm")
    outputs = []
    for head in range(2):
        name = f"decoder.0.head.{head}"
        h = gelu(x @ tensors[f"{name}.0.weight"].T + tensors[f"{name}.0.bias"])
        outputs.append(h @ tensors[f"{name}.2.weight"].T + tensors[f"{name}.2.bias"])
    return 1 / (1 + np.exp(-outputs[0])), np.tanh(outputs[1])


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_converted_model_predicts_what_the_published_formulas_say(checkpoint, published, attention):
    model = convert_checkpoint(checkpoint(), **OVERRIDES)
    model.set_attn_implementation(attention)
    rng = np.random.default_rng(0)
    video = rng.standard_normal((4, 3, 8, 8))
    is_masked = np.array([True, False, False, True, False, True, True, False])
    with torch.no_grad():
        logits = model(torch.from_numpy(video[None]).float(), torch.from_numpy(is_masked[None])).logits
    predictions = model.split_targets(logits[0])
    for ours, reading in zip(predictions.values(), numpy_predictions(published, video, is_masked), strict=True):
        np.testing.assert_allclose(ours.numpy(), reading, atol=2e-6)


def test_sizes_are_read_off_the_tensors(checkpoint):
    config = convert_checkpoint(checkpoint(), **OVERRIDES).config
    assert (config.hidden_size, config.num_hidden_layers, config.intermediate_size) == (WIDTH, 2, 2 * WIDTH)
    assert (config.decoder_hidden_size, config.decoder_num_hidden_layers) == (DECODER_WIDTH, 2)
    assert (config.patch_size, config.tubelet_size, config.motion_head_hidden_size) == (PATCH, TUBELET, HEAD_HIDDEN)
    assert config.motion_targets == {
        "shape": {"size": 5, "activation": "sigmoid", "weight": 54.0},
        "position": {"size": 3, "activation": "tanh", "weight": 16.0},
    }


def test_converted_model_saves_in_our_names(checkpoint, tmp_path):
    model = convert_checkpoint(checkpoint(), **OVERRIDES)
    model.save_pretrained(tmp_path / "ours")
    loaded, report = type(model).from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_checkpoint_without_query_and_value_bias_converts(checkpoint, published):
    tensors = {name: tensor for name, tensor in published.items() if not name.endswith(("q_bias", "v_bias"))}
    assert convert_checkpoint(checkpoint(tensors), **OVERRIDES).config.qkv_bias is False


def test_unknown_tensor_is_an_error_that_names_it(checkpoint, published):
    with pytest.raises(ValueError, match=r"MME pre-training has no place for encoder.cls_token, extra"):
        convert_checkpoint(checkpoint({**published, "encoder.cls_token": torch.ones(1), "extra": torch.ones(1)}))


@pytest.mark.parametrize(
    ("removed", "named"),
    [
        ("encoder.blocks.1.mlp.fc2.bias", r"lacks mme.layers.1.mlp.fc2.bias"),
        ("encoder.patch_embed.proj.weight", r"lacks the tensor encoder.patch_embed.proj.weight"),
        ("mask_token", r"lacks decoder.mask_token"),
    ],
)
def test_missing_tensor_is_an_error_that_names_it(checkpoint, published, removed, named):
    del published[removed]
    with pytest.raises(ValueError, match=named):
        convert_checkpoint(checkpoint(published), **OVERRIDES)


def test_tensor_of_a_wrong_shape_is_an_error_that_names_it(checkpoint, published):
    published["encoder.norm.bias"] = torch.zeros(WIDTH + 1)
    with pytest.raises(ValueError, match=r"encoder.norm.bias gives mme.layernorm.bias the shape \(9,\).*\(8,\)"):
        convert_checkpoint(checkpoint(published), **OVERRIDES)


def test_too_deep_an_override_names_the_missing_block(checkpoint):
    with pytest.raises(ValueError, match=r"lacks mme.layers.2.layernorm_before.weight.*override a size"):
        convert_checkpoint(checkpoint(), **OVERRIDES, num_hidden_layers=3)


def test_unknown_field_is_refused(checkpoint):
    with pytest.raises(ValueError, match="MMEConfig has no option hidden_sizes. Did you mean hidden_size"):
        convert_checkpoint(checkpoint(), **OVERRIDES, hidden_sizes=3)


def test_unknown_layout_lists_the_known_ones(checkpoint):
    with pytest.raises(ValueError, match=r"layout is not known; its first tensors are \['weight'\].*MME pre-training"):
        convert_checkpoint(checkpoint({"weight": torch.ones(1)}))


def test_file_that_holds_no_state_dict_is_an_error(tmp_path):
    torch.save({"model": [1, 2]}, tmp_path / "odd.pth")
    with pytest.raises(ValueError, match=r"odd.pth: expected a state dict of tensors"):
        convert_checkpoint(tmp_path / "odd.pth")


def test_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"absent\.pth"):
        convert_checkpoint(tmp_path / "absent.pth")


def test_a_file_that_is_no_checkpoint_is_refused_in_plain_words(tmp_path):
    path = tmp_path / "model.pth"
    for content in (b"", b"no checkpoint"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
            convert_checkpoint(path)
    with pytest.raises(FileNotFoundError, match="no such checkpoint file"):
        convert_checkpoint(tmp_path / "none.pth")


# --- classifiers, and VideoMAE's pre-training ---


@pytest.fixture
def classifier() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    tensors = {
        "patch_embed.proj.weight": draw(WIDTH, 3, TUBELET, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        "fc_norm.weight": draw(WIDTH),
        "fc_norm.bias": draw(WIDTH),
        "head.weight": draw(3, WIDTH),
        "head.bias": draw(3),
    }
    return tensors | published_block("blocks.0", WIDTH, draw) | published_block("blocks.1", WIDTH, draw)


CLASSIFIER_OVERRIDES = {"image_size": 8, "num_frames": 4, "num_attention_heads": HEADS}


def videomae_of(tensors):
    """Return transformers' VideoMAE with the weights of a published classifier: an independent reading of them."""
    config = VideoMAEConfig(
        image_size=8,
        patch_size=PATCH,
        num_frames=4,
        tubelet_size=TUBELET,
        hidden_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        intermediate_size=2 * WIDTH,
        layer_norm_eps=1e-6,
        num_labels=3,
    )
    model = VideoMAEForVideoClassification(config).eval()
    model.fc_norm.eps = 1e-6  # the published value; transformers leaves torch's
    with torch.no_grad():
        model.videomae.embeddings.patch_embeddings.projection.weight.copy_(tensors["patch_embed.proj.weight"])
        model.videomae.embeddings.patch_embeddings.projection.bias.copy_(tensors["patch_embed.proj.bias"])
        for index, layer in enumerate(model.videomae.encoder.layer):
            own = {name.removeprefix(f"blocks.{index}."): tensor for name, tensor in tensors.items()}
            attention = layer.attention.attention
            for part, rows in zip(["query", "key", "value"], own["attn.qkv.weight"].chunk(3), strict=True):
                getattr(attention, part).weight.copy_(rows)
            attention.query.bias.copy_(own["attn.q_bias"])
            attention.value.bias.copy_(own["attn.v_bias"])
            for ours, published in (
                (layer.layernorm_before, "norm1"),
                (layer.layernorm_after, "norm2"),
                (layer.attention.output.dense, "attn.proj"),
                (layer.intermediate.dense, "mlp.fc1"),
                (layer.output.dense, "mlp.fc2"),
            ):
                ours.weight.copy_(own[f"{published}.weight"])
                ours.bias.copy_(own[f"{published}.bias"])
        for ours, published in ((model.fc_norm, "fc_norm"), (model.classifier, "head")):
            ours.weight.copy_(tensors[f"{published}.weight"])
            ours.bias.copy_(tensors[f"{published}.bias"])
    return model


def test_a_published_classifier_computes_what_transformers_videomae_does(tmp_path, classifier):
    torch.save({"module": classifier}, tmp_path / "classifier.pt")
    model = convert_checkpoint(tmp_path / "classifier.pt", **CLASSIFIER_OVERRIDES)
    video = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(model(video).logits, videomae_of(classifier)(video).logits, rtol=1e-5, atol=1e-5)


def test_a_deepspeed_file_and_a_saved_command_line_are_read_as_what_they_hold(tmp_path, classifier):
    bookkeeping = {
        "optimizer": None,
        "ds_version": "0.14",
        "param_shapes": [OrderedDict(head=torch.Size([3, WIDTH]))],
        "args": Namespace(lr=1e-3),
    }
    torch.save({"module": classifier, **bookkeeping}, tmp_path / "mp_rank_00_model_states.pt")
    save_file(classifier, tmp_path / "classifier.safetensors")
    models = [
        convert_checkpoint(tmp_path / name, **CLASSIFIER_OVERRIDES)
        for name in ("mp_rank_00_model_states.pt", "classifier.safetensors")
    ]
    for name, tensor in models[0].state_dict().items():
        assert torch.equal(tensor, models[1].state_dict()[name]), name
    assert torch.equal(models[0].classifier.weight, classifier["head.weight"])


def test_names_of_classes_go_with_their_number(tmp_path, classifier):
    torch.save({"model": classifier}, tmp_path / "classifier.pth")
    names = {0: "jump", 1: "run", 2: "sit"}
    config = convert_checkpoint(tmp_path / "classifier.pth", id2label=names, **CLASSIFIER_OVERRIDES).config
    assert config.id2label == names and config.num_labels == 3
    with pytest.raises(ValueError, match=r"id2label names 2 classes; the checkpoint has 3"):
        convert_checkpoint(tmp_path / "classifier.pth", id2label={0: "jump", 1: "run"}, **CLASSIFIER_OVERRIDES)


def test_tensors_a_classifier_has_no_place_for_are_named(tmp_path, classifier):
    torch.save({"model": {**classifier, "norm.weight": torch.ones(WIDTH)}}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"has no place for norm\.weight"):
        convert_checkpoint(tmp_path / "classifier.pth", **CLASSIFIER_OVERRIDES)
    del classifier["fc_norm.bias"]
    torch.save({"model": classifier}, tmp_path / "classifier.pth")
    with pytest.raises(ValueError, match=r"lacks fc_norm\.bias"):
        convert_checkpoint(tmp_path / "classifier.pth", **CLASSIFIER_OVERRIDES)


def test_of_videomaes_pretraining_the_encoder_is_taken_and_the_rest_told(tmp_path, published):
    tensors = {name: tensor for name, tensor in published.items() if name.startswith("encoder.")}
    others = {
        "mask_token": torch.zeros(1, 1, DECODER_WIDTH),
        "encoder_to_decoder.weight": torch.zeros(DECODER_WIDTH, WIDTH),
        "decoder.norm.weight": torch.zeros(DECODER_WIDTH),
        "decoder.head.weight": torch.zeros(96, DECODER_WIDTH),
        **published_block("decoder.blocks.0", DECODER_WIDTH, torch.zeros),
    }
    torch.save({"model": tensors | others}, tmp_path / "videomae.pth")
    converted = read_checkpoint(tmp_path / "videomae.pth", **CLASSIFIER_OVERRIDES)
    assert type(converted.model) is MMEModel and converted.layout == "VideoMAE pre-training"
    assert set(converted.left_out) == set(others)
    # The same encoder as in MME's layout.
    torch.save({"model": published}, tmp_path / "mme.pth")
    encoder = convert_checkpoint(tmp_path / "mme.pth", **OVERRIDES).mme
    for name, tensor in encoder.state_dict().items():
        assert torch.equal(tensor, converted.model.state_dict()[name]), name
    torch.save({"model": tensors | others | {"decoder.surprise": torch.zeros(1)}}, tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"has no place for decoder\.surprise"):
        convert_checkpoint(tmp_path / "other.pth", **CLASSIFIER_OVERRIDES)
