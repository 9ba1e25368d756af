"""Agreement with the published classifier: pooled features and logits on random weights (METHOD.md section 6)."""

import json

import pytest
import torch
from published import GOLDEN, NEEDS_GOLDEN, assert_agrees
from safetensors.torch import load_file

from mme_hf import MMEForVideoClassification
from mme_hf.checkpoints import convert_checkpoint

pytestmark = NEEDS_GOLDEN


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@torch.no_grad()
def test_pooled_features_and_logits_equal_the_published_classifier(attention):
    sizes = json.loads((GOLDEN / "config.json").read_text())
    names = ("image_size", "num_attention_heads")
    model = convert_checkpoint(GOLDEN / "finetune_reference.pt", **{name: sizes[name] for name in names})
    assert isinstance(model, MMEForVideoClassification) and model.config.num_labels == sizes["num_labels"]
    model.set_attn_implementation(attention)
    vectors = load_file(GOLDEN / "finetune_vectors.safetensors")
    pixel_values = vectors["video"].transpose(1, 2)
    assert_agrees(model.pool(model.mme(pixel_values).last_hidden_state), vectors["pooled"])
    assert_agrees(model(pixel_values).logits, vectors["logits"])
