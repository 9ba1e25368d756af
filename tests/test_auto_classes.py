"""What transformers' Auto classes make of a saved folder once mme_hf is imported."""

import json

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForPreTraining,
    AutoModelForVideoClassification,
    AutoVideoProcessor,
)

from mme_hf import (
    MMEConfig,
    MMEForPreTraining,
    MMEForVideoClassification,
    MMEModel,
    MMEVideoProcessor,
    save_with_remote_code,
)

SMALL = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}
HEADS = [
    (AutoModel, MMEModel),
    (AutoModelForPreTraining, MMEForPreTraining),
    (AutoModelForVideoClassification, MMEForVideoClassification),
]


@pytest.mark.parametrize(("auto_class", "model_class"), HEADS)
@pytest.mark.parametrize("has_code", [False, True])
def test_each_opens_its_class_with_all_weights(auto_class, model_class, has_code, tmp_path):
    """With remote code in the folder too, trusted or not: the code of the package goes before that of a folder."""
    model, processor = model_class(MMEConfig(**SMALL)), MMEVideoProcessor(num_frames=4, frame_stride=3)
    if has_code:
        save_with_remote_code(model, processor, tmp_path)
    else:
        model.save_pretrained(tmp_path)
        processor.save_pretrained(tmp_path)
    for options in ({}, {"trust_remote_code": True}, {"trust_remote_code": False}):
        assert type(AutoConfig.from_pretrained(tmp_path, **options)) is MMEConfig
        loaded, report = auto_class.from_pretrained(tmp_path, output_loading_info=True, **options)
        assert type(loaded) is model_class
        assert not report["missing_keys"] and not report["unexpected_keys"]
        assert all(torch.equal(value, model.state_dict()[name]) for name, value in loaded.state_dict().items())
        opened = AutoVideoProcessor.from_pretrained(tmp_path, **options)
        assert type(opened) is MMEVideoProcessor
        assert opened.to_dict() == processor.to_dict()


@pytest.mark.parametrize(("auto_class", "model_class"), HEADS)
def test_each_makes_its_class_of_a_configuration(auto_class, model_class):
    assert type(auto_class.from_config(MMEConfig(**SMALL))) is model_class


def test_the_package_saves_no_pointers_to_code_that_it_leaves_behind(tmp_path):
    model = MMEForVideoClassification(MMEConfig(**SMALL))
    save_with_remote_code(model, MMEVideoProcessor(), tmp_path / "exported")
    for auto_class in (AutoModelForVideoClassification, AutoVideoProcessor):
        auto_class.from_pretrained(tmp_path / "exported", trust_remote_code=True).save_pretrained(tmp_path / "again")
    for name in ("config.json", "video_preprocessor_config.json"):
        saved = json.loads((tmp_path / "again" / name).read_text())
        assert not {"auto_map", "custom_pipelines"} & set(saved)
