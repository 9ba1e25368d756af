"""How a saved model comes back: in half precision, in parts, on the devices of a map. More: `test_modeling_mme.py`."""

import json
import re

import pytest
import torch
from torch import nn

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEModel
from mme_hf.tokens_mme import sinusoid_table

MODELS = [MMEModel, MMEForPreTraining, MMEForVideoClassification]
# What 8 or 11 bits of mantissa leave of outputs of order 1 after two blocks.
HALF_PRECISION = {torch.bfloat16: 0.05, torch.float16: 0.01}


def small_model(model_class=MMEForVideoClassification, **overrides):
    """A model whose weights are all far from their start, so that none can be mixed up with another or left out."""
    torch.manual_seed(0)
    fields = {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "decoder_hidden_size": 16,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
        "motion_head_hidden_size": 16,
        "motion_targets": {"position": {"size": 2, "activation": "linear", "weight": 1.0, "visible_weight": 1.0}},
        "num_labels": 3,
    }
    model = model_class(MMEConfig(**{**fields, **overrides})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.1)
    return model


def inputs_of(model: nn.Module, num_frames: int = 4) -> dict[str, torch.Tensor]:
    inputs = {"pixel_values": torch.randn(2, num_frames, 3, 8, 8, generator=torch.Generator().manual_seed(1))}
    if isinstance(model, MMEForPreTraining):
        inputs["masked_indices"] = torch.tensor([[0, 1, 5], [2, 3, 4]])
    return inputs


@torch.no_grad()
def output_of(model: nn.Module, dtype: torch.dtype | None = None) -> torch.Tensor:
    inputs = inputs_of(model)
    return model(**{**inputs, "pixel_values": inputs["pixel_values"].to(dtype)})[0]


# --- half precision ---


@pytest.mark.parametrize("dtype", HALF_PRECISION)
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("model_class", MODELS)
def test_half_precision_loads_and_stays_near_float32(tmp_path, model_class, attention, dtype):
    model = small_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, dtype=dtype, attn_implementation=attention)
    assert {parameter.dtype for parameter in loaded.parameters()} == {dtype}
    output, expected = output_of(loaded, dtype), output_of(model)
    assert output.dtype == dtype
    assert (output.float() - expected).abs().max() < HALF_PRECISION[dtype] * expected.abs().max()


@pytest.mark.parametrize("dtype", HALF_PRECISION)
def test_half_precision_checkpoint_is_loaded_as_it_is_and_as_asked(tmp_path, dtype):
    model = small_model().to(dtype)
    model.save_pretrained(tmp_path)
    as_saved = MMEForVideoClassification.from_pretrained(tmp_path)
    assert as_saved.dtype == dtype
    assert torch.equal(output_of(as_saved, dtype), output_of(model, dtype))
    wide = MMEForVideoClassification.from_pretrained(tmp_path, dtype=torch.float32)
    assert {parameter.dtype for parameter in wide.parameters()} == {torch.float32}
    # Positions are not in the file: they are exact again, not those that half precision left.
    assert torch.equal(wide.mme.embeddings.position_embeddings.table, sinusoid_table(8, 32))


# --- in parts ---


@pytest.mark.parametrize("model_class", MODELS)
def test_shards_and_their_index_hold_every_weight_once(tmp_path, model_class):
    model = small_model(model_class)
    model.save_pretrained(tmp_path, max_shard_size="10KB")
    shards = {path.name for path in tmp_path.glob("*.safetensors")}
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert len(shards) > 2 and not (tmp_path / "model.safetensors").exists()
    assert set(index["weight_map"]) == set(model.state_dict()) and set(index["weight_map"].values()) == shards
    loaded, report = model_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(loaded.state_dict()[name], tensor) for name, tensor in model.state_dict().items())
    assert torch.equal(output_of(loaded), output_of(model))


def test_a_classifier_starts_from_shards_of_pretraining(tmp_path):
    pretrained = small_model(MMEForPreTraining)
    pretrained.save_pretrained(tmp_path, max_shard_size="10KB")
    loaded, report = MMEForVideoClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert report["missing_keys"] == {
        f"{layer}.{part}" for layer in ("fc_norm", "classifier") for part in ("weight", "bias")
    }
    encoder = pretrained.mme.state_dict()
    assert all(torch.equal(tensor, encoder[name]) for name, tensor in loaded.mme.state_dict().items())


# --- devices ---


def device_maps(model: nn.Module, folder) -> dict[str, dict]:
    size = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())
    return {
        "whole": {"device_map": "auto"},
        "part of it on disk": {
            "device_map": "auto",
            "max_memory": {"cpu": size * 9 // 10},  # accelerate keeps room for the largest layer besides
            "offload_folder": folder / "offload",
        },
    }


@pytest.mark.parametrize("kind", ["whole", "part of it on disk"])
@pytest.mark.parametrize("model_class", MODELS)
def test_automatic_device_map_changes_no_output(tmp_path, model_class, kind):
    model = small_model(model_class)
    model.save_pretrained(tmp_path)
    loaded = model_class.from_pretrained(tmp_path, **device_maps(model, tmp_path)[kind])
    is_on_disk = any(parameter.device.type == "meta" for parameter in loaded.parameters())
    assert is_on_disk == (kind != "whole")
    # A block adds its input to what its layers make of it: all of it must be in one place.
    assert [name for name in getattr(loaded, "hf_device_map", {}) if re.search(r"layers\.\d+\.", name)] == []
    torch.testing.assert_close(output_of(loaded), output_of(model))
    # A clip longer than the configuration's has its positions computed on the way.
    if model_class is not MMEForPreTraining:
        longer = inputs_of(model, num_frames=8)
        torch.testing.assert_close(loaded(**longer)[0], model(**longer)[0])
