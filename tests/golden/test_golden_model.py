"""Agreement with the published pre-training model: predictions and losses on random weights (METHOD.md section 6)."""

import json

import pytest
import torch
from published import GOLDEN, NEEDS_GOLDEN, assert_agrees
from safetensors.torch import load_file

from mme_hf.checkpoints import convert_checkpoint

pytestmark = NEEDS_GOLDEN


@pytest.fixture(scope="module")
def vectors():
    return load_file(GOLDEN / "pretrain_vectors.safetensors")


@pytest.fixture(params=["eager", "sdpa"])
def model(request):
    sizes = json.loads((GOLDEN / "config.json").read_text())
    model = convert_checkpoint(
        GOLDEN / "pretrain_reference.pth",
        image_size=sizes["image_size"],
        num_attention_heads=sizes["num_attention_heads"],
        decoder_num_attention_heads=sizes["decoder_num_attention_heads"],
    )
    model.set_attn_implementation(request.param)
    return model


def labels_for_all_tokens(vectors, position_label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Spread the published labels of masked tokens over all tokens; what is visible must not matter."""
    is_masked = vectors["mask"].bool()
    values = torch.cat([vectors["hog_label"], vectors[position_label]], dim=-1)
    labels = torch.full((*is_masked.shape, values.shape[-1]), torch.nan)
    labels[is_masked] = values.flatten(0, 1)
    target_mask = torch.ones(*is_masked.shape, 2, dtype=torch.bool)
    target_mask[..., 1][is_masked] = vectors["token_valid"].bool().flatten()
    return labels, target_mask


@torch.no_grad()
def test_predictions_equal_the_published_model(model, vectors):
    logits = model(vectors["video"].transpose(1, 2), bool_masked_pos=vectors["mask"].bool()).logits
    predictions = model.split_targets(logits)
    assert_agrees(predictions["shape"], vectors["hog_prediction"])
    assert_agrees(predictions["position"], vectors["trajectory_prediction"])


@pytest.mark.parametrize("variant", ["none", "patch_std"])
@torch.no_grad()
def test_losses_equal_the_published_model(model, vectors, variant):
    labels, target_mask = labels_for_all_tokens(vectors, f"trajectory_label_{variant}")
    outputs = model(
        vectors["video"].transpose(1, 2),
        bool_masked_pos=vectors["mask"].bool(),
        labels=labels,
        target_mask=target_mask,
    )
    published = vectors[f"loss_{variant}"]
    weights = {name: target["weight"] for name, target in model.config.motion_targets.items()}
    # The published total is half the sum of the two, hence the factor 2 on each.
    ours = torch.stack(
        [
            2 * weights["position"] * outputs.target_losses["position"],
            2 * weights["shape"] * outputs.target_losses["shape"],
            outputs.loss,
        ]
    )
    assert_agrees(ours, published)
