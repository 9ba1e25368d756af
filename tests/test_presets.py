import pytest
import torch

from mme_hf.presets import PRESETS, preset_config


@pytest.mark.parametrize(
    ("name", "width", "depth", "heads"), [("tiny", 192, 6, 3), ("small", 384, 12, 6), ("base", 768, 12, 12)]
)
def test_presets_have_their_published_sizes(name, width, depth, heads):
    config = preset_config(name)
    assert (config.hidden_size, config.num_hidden_layers, config.num_attention_heads) == (width, depth, heads)


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_keeps_the_proportions_of_a_vit(name):
    config = preset_config(name)
    assert config.hidden_size == 64 * config.num_attention_heads
    assert config.intermediate_size == 4 * config.hidden_size
    assert config.decoder_intermediate_size == 4 * config.decoder_hidden_size


def test_overrides_win_over_the_preset():
    config = preset_config("tiny", num_frames=4, drop_path_rate=0.1)
    assert (config.num_frames, config.drop_path_rate, config.image_size) == (4, 0.1, 112)


def test_unknown_fields_are_refused_and_those_of_transformers_are_not():
    with pytest.raises(ValueError, match="MMEConfig has no option hiden_size. Did you mean hidden_size"):
        preset_config("tiny", hiden_size=3)
    config = preset_config(
        "tiny", num_labels=3, torch_dtype="float16", attn_implementation="eager", architectures=["X"]
    )
    assert (config.num_labels, config.dtype, config.architectures) == (3, torch.float16, ["X"])
    assert preset_config("tiny", id2label={0: "left"}).num_labels == 1


def test_unknown_preset_lists_the_known():
    with pytest.raises(ValueError, match=r"preset \('huge'\) is unknown. Known presets: tiny, small, base, large"):
        preset_config("huge")
