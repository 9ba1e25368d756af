"""Checkpoints of transformers' VideoMAE, small and random, beside what transformers itself makes of them."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import (
    AutoConfig,
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEModel
from mme_hf.videomae_weights_mme import config_dict_of_videomae, mme_fields_of_videomae

NAMES = {0: "run", 1: "sit", 2: "wave"}


def small_videomae(model_class=VideoMAEForVideoClassification, seed=0, **overrides):
    """A model whose weights are all far from their start, so that none can be mixed up with another or left out."""
    fields = {
        "image_size": 16,
        "patch_size": 8,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 8,
        "decoder_num_attention_heads": 2,
        "decoder_num_hidden_layers": 1,
        "decoder_intermediate_size": 12,
        "id2label": NAMES,
        "label2id": {name: number for number, name in NAMES.items()},
    }
    torch.manual_seed(seed)
    model = model_class(VideoMAEConfig(**{**fields, **overrides})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def clips(batch_size=2) -> torch.Tensor:
    return torch.randn(batch_size, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
@torch.no_grad()
def test_classifier_gives_transformers_logits(tmp_path, averages, has_bias):
    # The field is qv_bias in some versions of transformers, which all take it by this name.
    videomae = small_videomae(use_mean_pooling=averages, qkv_bias=has_bias)
    videomae.save_pretrained(tmp_path / "videomae")
    model, report = MMEForVideoClassification.from_pretrained(tmp_path / "videomae", output_loading_info=True)
    assert not any(report.values()), report
    assert not model.training and model.config.id2label == NAMES
    expected = videomae(clips()).logits
    assert expected.std() > 0.1
    torch.testing.assert_close(model(clips()).logits, expected, rtol=0, atol=1e-5)

    # Saved again it is one of ours, which needs no renaming.
    model.save_pretrained(tmp_path / "mme")
    assert json.loads((tmp_path / "mme/config.json").read_text())["model_type"] == "mme"
    assert set(load_file(tmp_path / "mme/model.safetensors")) == set(model.state_dict())
    again, report = MMEForVideoClassification.from_pretrained(tmp_path / "mme", output_loading_info=True)
    assert not any(report.values()), report
    assert torch.equal(again(clips()).logits, model(clips()).logits)


@pytest.mark.parametrize("averages", [True, False])
@pytest.mark.parametrize("model_class", [VideoMAEForVideoClassification, VideoMAEForPreTraining, VideoMAEModel])
@torch.no_grad()
def test_encoder_gives_transformers_features(tmp_path, model_class, averages):
    videomae = small_videomae(model_class, use_mean_pooling=averages)
    videomae.save_pretrained(tmp_path)
    encoder = videomae if model_class is VideoMAEModel else videomae.videomae
    expected = encoder(clips()).last_hidden_state
    model, report = MMEModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(model(clips()).last_hidden_state, expected, rtol=1e-5, atol=1e-5)
    # The same encoder under a new decoder, which needs the final LayerNorm.
    model, report = MMEForPreTraining.from_pretrained(tmp_path, output_loading_info=True)
    of_encoder = {"mme.layernorm.weight", "mme.layernorm.bias"} if averages else set()
    assert {key for key in report["missing_keys"] if not key.startswith(("decoder.", "visible_heads."))} == of_encoder
    of_head = {"fc_norm.weight", "fc_norm.bias"} if averages else set()
    of_head |= {"classifier.weight", "classifier.bias"}
    assert set(report["unexpected_keys"]) == (of_head if model_class is VideoMAEForVideoClassification else set())
    if not averages:
        torch.testing.assert_close(model.mme(clips()).last_hidden_state, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("has_config", [False, True])
@pytest.mark.parametrize("model_class", [VideoMAEForPreTraining, VideoMAEModel])
@torch.no_grad()
def test_a_new_classifier_averages_whatever_a_file_without_one_says(tmp_path, model_class, has_config):
    # As the Hub's pre-trained VideoMAE are; published fine-tuning averages all the same.
    videomae = small_videomae(model_class, use_mean_pooling=False)
    videomae.save_pretrained(tmp_path)
    given = {"config": AutoConfig.from_pretrained(tmp_path, num_labels=5)} if has_config else {"num_labels": 5}
    model, report = MMEForVideoClassification.from_pretrained(tmp_path, **given, output_loading_info=True)
    assert model.config.use_mean_pooling and model.fc_norm is not None
    assert set(report["missing_keys"]) == {
        "fc_norm.weight",
        "fc_norm.bias",
        "classifier.weight",
        "classifier.bias",
    }
    assert not report["unexpected_keys"]
    assert model(clips()).logits.shape == (2, 5)
    encoder = videomae if model_class is VideoMAEModel else videomae.videomae
    states = encoder(clips(), output_hidden_states=True).hidden_states[-1]
    torch.testing.assert_close(model.mme(clips()).last_hidden_state, states, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("first", [MMEModel, MMEForPreTraining])
def test_a_new_classifier_averages_after_pretraining_of_ours_that_began_with_videomaes(tmp_path, first):
    small_videomae(VideoMAEForPreTraining, use_mean_pooling=False).save_pretrained(tmp_path / "videomae")
    first.from_pretrained(tmp_path / "videomae").save_pretrained(tmp_path / "ours")
    assert MMEForVideoClassification.from_pretrained(tmp_path / "ours").fc_norm is not None


def test_a_new_classifier_reads_the_first_token_where_the_caller_says_so(tmp_path):
    small_videomae(VideoMAEForPreTraining).save_pretrained(tmp_path)
    assert MMEForVideoClassification.from_pretrained(tmp_path, use_mean_pooling=False).fc_norm is None
    of_caller = small_videomae(use_mean_pooling=False).config
    assert MMEForVideoClassification.from_pretrained(tmp_path, config=of_caller).fc_norm is None


@torch.no_grad()
def test_names_of_older_files(tmp_path):
    # What transformers 4 wrote, spelt out: q_bias and v_bias. Some versions of 5 gave the key a bias too, which
    # moves all scores of a query alike, so that softmax cancels it.
    videomae = small_videomae(qkv_bias=True)
    videomae.save_pretrained(tmp_path)
    tensors = {}
    for name, tensor in videomae.state_dict().items():
        name = name.replace("attention.attention.query.bias", "attention.attention.q_bias")
        tensors[name.replace("attention.attention.value.bias", "attention.attention.v_bias")] = tensor
    for layer in range(2):
        tensors[f"videomae.encoder.layer.{layer}.attention.attention.key.bias"] = torch.randn(16)
    assert sum(name.endswith(("q_bias", "v_bias")) for name in tensors) == 4
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((tmp_path / "config.json").read_text())
    config.pop("qv_bias", None)
    (tmp_path / "config.json").write_text(json.dumps({**config, "qkv_bias": True, "torch_dtype": "float32"}))
    model, report = MMEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    torch.testing.assert_close(model(clips()).logits, videomae(clips()).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@torch.no_grad()
def test_loads_in_half_precision(tmp_path, dtype):
    videomae = small_videomae()
    videomae.save_pretrained(tmp_path)
    model = MMEForVideoClassification.from_pretrained(tmp_path, dtype=dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    logits = model(clips().to(dtype)).logits
    assert logits.dtype == dtype
    torch.testing.assert_close(logits.float(), videomae(clips()).logits, rtol=0.05, atol=0.1)


@pytest.mark.parametrize("name", ["dtype", "torch_dtype"])
def test_loads_in_the_precision_of_the_file(tmp_path, name):
    small_videomae().to(torch.bfloat16).save_pretrained(tmp_path)
    model = MMEForVideoClassification.from_pretrained(tmp_path, **{name: "auto"})
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}


@torch.no_grad()
def test_loads_from_shards_with_an_attention_of_choice(tmp_path):
    videomae = small_videomae()
    videomae.save_pretrained(tmp_path, max_shard_size="5KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    model, report = MMEForVideoClassification.from_pretrained(
        tmp_path, attn_implementation="eager", output_loading_info=True
    )
    assert not any(report.values()), report
    assert model.config._attn_implementation == "eager"
    torch.testing.assert_close(model(clips()).logits, videomae(clips()).logits, rtol=0, atol=1e-5)


def test_other_classes_need_a_new_head(tmp_path):
    small_videomae().save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
        MMEForVideoClassification.from_pretrained(tmp_path, num_labels=7)
    names = {0: "left", 1: "right"}
    model, report = MMEForVideoClassification.from_pretrained(
        tmp_path,
        id2label=names,
        label2id={"left": 0, "right": 1},
        drop_path_rate=0.1,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    assert {entry[0] for entry in report["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.id2label == names and model.config.drop_path_rate == 0.1
    assert model.classifier.weight.abs().max() < 1e-3


@torch.no_grad()
def test_takes_a_configuration_that_was_loaded_before(tmp_path):
    videomae = small_videomae()
    videomae.save_pretrained(tmp_path)
    expected = videomae(clips()).logits
    MMEConfig.from_pretrained(tmp_path).save_pretrained(tmp_path / "ours")
    for config in (
        AutoConfig.from_pretrained(tmp_path),
        MMEConfig.from_pretrained(tmp_path),
        tmp_path,
        str(tmp_path / "config.json"),
        tmp_path / "ours",
    ):
        model, report = MMEForVideoClassification.from_pretrained(tmp_path, config=config, output_loading_info=True)
        assert not any(report.values()), report
        torch.testing.assert_close(model(clips()).logits, expected, rtol=0, atol=1e-5)


def test_configurations():
    fields = mme_fields_of_videomae({"model_type": "videomae", "patch_size": [8, 8], "qv_bias": False})
    # VideoMAEConfig's default, which is not in the file; nn.LayerNorm's.
    assert fields["layer_norm_eps"] == 1e-12 and fields["fc_norm_eps"] == 1e-5
    assert fields["patch_size"] == 8 and fields["qkv_bias"] is False
    with pytest.raises(ValueError, match=r"patch_size \(\[8, 16\]\).*not square"):
        mme_fields_of_videomae({"model_type": "videomae", "patch_size": [8, 16]})


def test_a_configuration_of_videomae_is_read_as_the_model_reads_it(tmp_path):
    small_videomae(use_mean_pooling=False).save_pretrained(tmp_path)
    config = MMEConfig.from_pretrained(tmp_path, drop_path_rate=0.1)
    expected = MMEForVideoClassification.from_pretrained(tmp_path, drop_path_rate=0.1).config
    assert (config.hidden_size, config.use_mean_pooling, config.drop_path_rate) == (16, False, 0.1)
    ignored = dict.fromkeys(("architectures", "dtype", "transformers_version", "_name_or_path"))
    assert {**config.to_dict(), **ignored} == {**expected.to_dict(), **ignored}


def test_other_checkpoints_are_left_to_transformers(tmp_path):
    assert config_dict_of_videomae(None, {}) is None
    assert config_dict_of_videomae(tmp_path, {}) is None
    (tmp_path / "config.json").write_text('{"model_type": "mme"}')
    assert config_dict_of_videomae(tmp_path, {}) is None
    with pytest.raises(OSError, match="no file named"):
        MMEModel.from_pretrained(tmp_path)


def test_another_kind_of_model_is_refused_rather_than_left_out_whole(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"is a model of type 'bert', which has no weights for MME"):
        MMEForVideoClassification.from_pretrained(tmp_path)
