"""Conversion of the published pre-training layout, against a NumPy reading of METHOD.md on the published names."""

import math

import numpy as np
import pytest
import torch

from mme_hf.checkpoints import convert_checkpoint

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
