"""Conversion of the published pre-training layout, against a NumPy reading of METHOD.md on the published names."""

import argparse
import math
import pathlib
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mme_hf import MMEForVideoClassification, MMEModel
from mme_hf.checkpoints import LAYOUTS, convert_and_report, convert_checkpoint

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
        "shape": {"size": 5, "activation": "sigmoid", "weight": 54.0, "visible_weight": 0.0},
        "position": {"size": 3, "activation": "tanh", "weight": 16.0, "visible_weight": 0.0},
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


# --- classifiers and VideoMAE ---

PARAMETER = "attention.attention."
CLASSIFIER = {"image_size": 8, "num_frames": 4, "num_attention_heads": HEADS}


def classifier_tensors(norm: str, num_labels: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(6)

    def draw(*shape):
        return torch.randn(*shape, generator=generator) * 0.5

    tensors = {
        "patch_embed.proj.weight": draw(WIDTH, 3, TUBELET, PATCH, PATCH),
        "patch_embed.proj.bias": draw(WIDTH),
        f"{norm}.weight": draw(WIDTH),
        f"{norm}.bias": draw(WIDTH),
        "head.weight": draw(num_labels, WIDTH),
        "head.bias": draw(num_labels),
    }
    for number in range(2):
        tensors |= published_block(f"blocks.{number}", WIDTH, draw)
    return tensors


def videomae_tensors(published: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The pre-training layout of VideoMAE: one decoder, whose head is one linear layer to the pixels of a token."""
    tensors = {
        name.replace("decoder.0.", "decoder.").replace("encoder_to_decoder.0", "encoder_to_decoder"): tensor
        for name, tensor in published.items()
        if "decoder.0.head" not in name
    }
    size = 3 * TUBELET * PATCH**2
    return {**tensors, "decoder.head.weight": torch.ones(size, DECODER_WIDTH), "decoder.head.bias": torch.ones(size)}


def transformers_classifier(
    tensors: dict[str, torch.Tensor], *, use_mean_pooling: bool
) -> VideoMAEForVideoClassification:
    """VideoMAE of transformers with these weights, and the published epsilons."""
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
        use_mean_pooling=use_mean_pooling,
        num_labels=3,
    )
    model = VideoMAEForVideoClassification(config).eval()
    if use_mean_pooling:
        model.fc_norm.eps = 1e-6
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        for theirs, part in transformers_parts(name, tensor):
            parameters.pop(theirs).data.copy_(part)
    # Some versions of transformers 5 give the key a bias, of zeros at the start.
    assert all(name.endswith("key.bias") and not bias.any() for name, bias in parameters.items())
    return model


def transformers_parts(name: str, tensor: torch.Tensor) -> list[tuple[str, torch.Tensor]]:
    """The names of transformers' VideoMAE for a published tensor, and their values."""
    for published, theirs in (
        ("patch_embed.proj", "videomae.embeddings.patch_embeddings.projection"),
        ("attn.q_bias", PARAMETER + "query.bias"),
        ("attn.v_bias", PARAMETER + "value.bias"),
        ("attn.proj", "attention.output.dense"),
        ("norm1", "layernorm_before"),
        ("norm2", "layernorm_after"),
        ("mlp.fc1", "intermediate.dense"),
        ("mlp.fc2", "output.dense"),
        ("blocks.", "videomae.encoder.layer."),
        ("head.", "classifier."),
    ):
        name = name.replace(published, theirs)
    if name.startswith("norm."):
        name = f"videomae.layer{name}"
    if name.endswith("attn.qkv.weight"):
        parts = zip(("query", "key", "value"), tensor.chunk(3), strict=True)
        return [(name.replace("attn.qkv", PARAMETER + part), rows) for part, rows in parts]
    return [(name, tensor)]


@pytest.mark.parametrize("norm", ["fc_norm", "norm"])
@torch.no_grad()
def test_converted_classifier_computes_what_transformers_videomae_does(checkpoint, norm):
    tensors = classifier_tensors(norm)
    model = convert_checkpoint(checkpoint(tensors), **CLASSIFIER)
    assert isinstance(model, MMEForVideoClassification)
    assert (model.config.num_labels, model.config.use_mean_pooling) == (3, norm == "fc_norm")
    video = torch.randn(2, 4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    reference = transformers_classifier(tensors, use_mean_pooling=norm == "fc_norm")
    torch.testing.assert_close(model(video).logits, reference(video).logits, atol=1e-5, rtol=0)


def test_classifier_with_both_norms_is_an_error_that_names_one(checkpoint):
    with pytest.raises(ValueError, match=r"no place for norm\.weight, norm\.bias"):
        convert_checkpoint(checkpoint({**classifier_tensors("norm"), **classifier_tensors("fc_norm")}), **CLASSIFIER)


@pytest.mark.parametrize("removed", ["fc_norm.weight", "head.bias"])
def test_classifier_without_one_tensor_is_an_error_that_names_it(checkpoint, removed):
    tensors = classifier_tensors("fc_norm")
    del tensors[removed]
    with pytest.raises(ValueError, match=f"lacks {removed.replace('head', 'classifier')}"):
        convert_checkpoint(checkpoint(tensors), **CLASSIFIER)


def test_videomae_pretraining_becomes_the_encoder_of_the_same_mme_checkpoint(checkpoint, published):
    expected = convert_checkpoint(checkpoint(), **OVERRIDES).mme.state_dict()
    conversion = convert_and_report(checkpoint(videomae_tensors(published)), **CLASSIFIER)
    assert isinstance(conversion.model, MMEModel)
    assert conversion.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in conversion.model.state_dict().items())
    from_decoder = {name for name in videomae_tensors(published) if not name.startswith("encoder.")}
    assert set(conversion.left_out) == from_decoder


@pytest.mark.parametrize("removed", ["mask_token", "decoder.blocks.1.attn.qkv.weight", "decoder.head.bias"])
def test_videomae_decoder_must_be_whole(checkpoint, published, removed):
    tensors = videomae_tensors(published)
    del tensors[removed]
    with pytest.raises(ValueError, match=f"lacks {removed}: a part of a VideoMAE pre-training checkpoint"):
        convert_checkpoint(checkpoint(tensors), **CLASSIFIER)


def test_videomae_decoder_with_more_than_the_published_tensors_is_an_error(checkpoint, published):
    with pytest.raises(ValueError, match=r"no place for decoder\.blocks\.0\.gamma_1"):
        convert_checkpoint(
            checkpoint({**videomae_tensors(published), "decoder.blocks.0.gamma_1": torch.ones(1)}), **CLASSIFIER
        )


@pytest.mark.parametrize(("width", "heads"), [(384, 6), (768, 12), (1024, 16), (1280, 16), (1408, 16)])
def test_heads_are_those_of_the_published_sizes(width, heads):
    (layout,) = (layout for layout in LAYOUTS if layout.marker == "head.weight")
    shapes = {"patch_embed.proj.weight": (width, 3, 2, 16, 16), "blocks.0.mlp.fc1.weight": (4, width)}
    tensors = {name: torch.empty(shape, device="meta") for name, shape in {**shapes, "head.weight": (3, width)}.items()}
    assert layout.config_from(tensors)["num_attention_heads"] == heads


def test_safetensors_and_deepspeed_files_convert_alike(tmp_path):
    tensors = classifier_tensors("fc_norm")
    save_file(tensors, tmp_path / "model.safetensors")
    bookkeeping = {
        "optimizer": None,
        "lr_scheduler": None,
        "ds_version": "0.5.8",
        "ds_config": {"train_batch_size": 8},
        "buffer_names": [],
        "sparse_tensor_module_names": set(),
        "param_shapes": [OrderedDict((name, tensor.shape) for name, tensor in tensors.items())],
    }
    torch.save({"module": OrderedDict(tensors), **bookkeeping}, tmp_path / "mp_rank_00_model_states.pt")
    models = [convert_checkpoint(path, **CLASSIFIER) for path in sorted(tmp_path.iterdir())]
    assert len(models) == 2
    pairs = zip(*(model.state_dict().values() for model in models), strict=True)
    assert all(torch.equal(first, second) for first, second in pairs)


def test_arguments_of_the_published_run_beside_the_weights_are_read_and_other_objects_are_not(tmp_path):
    path = tmp_path / "run.pth"
    arguments = argparse.Namespace(lr=1e-3, device="cuda", betas=[0.9, 0.95])
    torch.save({"model": classifier_tensors("fc_norm"), "args": arguments}, path)
    assert convert_checkpoint(path, **CLASSIFIER).config.num_labels == 3
    arguments.output_dir = pathlib.PurePosixPath("runs")
    torch.save({"model": classifier_tensors("fc_norm"), "args": arguments}, path)
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone") as error:
        convert_checkpoint(path, **CLASSIFIER)
    assert "\n" not in str(error.value)


def test_damaged_safetensors_file_is_refused_in_plain_words(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
        convert_checkpoint(tmp_path / "model.safetensors")


@pytest.mark.parametrize("content", [b"hello\n", b"", b"\x00" * 64, b'{"model": {}}'])
def test_file_that_is_no_checkpoint_is_refused_in_plain_words(tmp_path, content):
    (tmp_path / "model.pth").write_bytes(content)
    with pytest.raises(ValueError, match="not a checkpoint of tensors alone"):
        convert_checkpoint(tmp_path / "model.pth")
