"""Low-rank changes by peft, and by transformers' own adapters: trained, saved, loaded, merged."""

import pytest
import torch
from packaging.version import Version
from torch import nn
from transformers.integrations.peft import MIN_PEFT_VERSION

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification

peft = pytest.importorskip("peft")

MODELS = [MMEForPreTraining, MMEForVideoClassification]
# peft copies modules, not containers of them: each head is named.
HEADS = {MMEForPreTraining: ["heads.position"], MMEForVideoClassification: ["fc_norm", "classifier"]}


def small_model(model_class=MMEForVideoClassification, **overrides):
    torch.manual_seed(0)
    fields = {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": 4,
        "hidden_size": 16,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 24,
        "motion_head_hidden_size": 16,
        "motion_targets": {"position": {"size": 2, "activation": "linear", "weight": 1.0}},
        "num_labels": 3,
    }
    model = model_class(MMEConfig(**{**fields, **overrides}))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model.eval()


def batch_for(model_class) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    batch = {"pixel_values": torch.randn(3, 4, 3, 8, 8, generator=generator)}
    if model_class is MMEForVideoClassification:
        return {**batch, "labels": torch.tensor([0, 1, 2])}
    masked_indices = torch.tensor([[0, 1, 5], [2, 3, 4], [0, 6, 7]])
    return {**batch, "masked_indices": masked_indices, "labels": torch.randn(3, 8, 2, generator=generator)}


def low_rank(**options) -> "peft.LoraConfig":
    return peft.LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"], **options)


def train(model: nn.Module, batch: dict[str, torch.Tensor], num_updates: int = 10) -> list[float]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=0.05)
    losses = []
    for _ in range(num_updates):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return losses


@torch.no_grad()
def logits_of(model: nn.Module, model_class) -> torch.Tensor:
    return model.eval()(**batch_for(model_class)).logits


def names_trained(model: nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("model_class", MODELS)
def test_new_changes_are_of_every_attention_and_do_nothing_yet(model_class):
    before = logits_of(small_model(model_class), model_class)
    model = peft.get_peft_model(small_model(model_class), low_rank())
    # Two matrices for queries and two for values, of every block of encoder and decoder.
    num_blocks = 3 if model_class is MMEForPreTraining else 2
    assert len(names_trained(model)) == 4 * num_blocks
    assert all(".attention." in name and ".lora_" in name for name in names_trained(model))
    torch.testing.assert_close(logits_of(model, model_class), before)


@pytest.mark.parametrize("model_class", MODELS)
def test_training_lowers_the_loss_and_the_base_stays(model_class):
    model = peft.get_peft_model(small_model(model_class), low_rank(modules_to_save=HEADS[model_class]))
    losses = train(model, batch_for(model_class))
    assert losses[-1] < 0.9 * losses[0]
    # Switched off, what is left is the model that the training started from.
    with model.disable_adapter():
        torch.testing.assert_close(logits_of(model, model_class), logits_of(small_model(model_class), model_class))


@pytest.mark.parametrize("model_class", MODELS)
def test_saved_changes_give_the_same_logits_on_a_fresh_base(tmp_path, model_class):
    small_model(model_class).save_pretrained(tmp_path / "base")
    model = peft.get_peft_model(small_model(model_class), low_rank(modules_to_save=HEADS[model_class]))
    train(model, batch_for(model_class))
    model.save_pretrained(tmp_path / "changes")
    files = {path.name for path in (tmp_path / "changes").iterdir()}
    assert {"adapter_config.json", "adapter_model.safetensors"} <= files and "model.safetensors" not in files
    trained = logits_of(model, model_class)
    fresh = model_class.from_pretrained(tmp_path / "base")
    assert not torch.allclose(logits_of(fresh, model_class), trained, atol=1e-3)
    loaded = peft.PeftModel.from_pretrained(fresh, tmp_path / "changes")
    torch.testing.assert_close(logits_of(loaded, model_class), trained)


@pytest.mark.parametrize("model_class", MODELS)
def test_merged_it_is_a_plain_model_with_the_same_logits(tmp_path, model_class):
    model = peft.get_peft_model(small_model(model_class), low_rank(modules_to_save=HEADS[model_class]))
    train(model, batch_for(model_class))
    trained = logits_of(model, model_class)
    merged = model.merge_and_unload()
    assert type(merged) is model_class and merged.state_dict().keys() == small_model(model_class).state_dict().keys()
    torch.testing.assert_close(logits_of(merged, model_class), trained)
    merged.save_pretrained(tmp_path)
    torch.testing.assert_close(logits_of(model_class.from_pretrained(tmp_path), model_class), trained)


def test_a_new_head_is_trained_and_saved_beside_the_changes(tmp_path):
    # What fine-tuning a pre-trained encoder needs: the head is new, so it must be in the file of the changes.
    small_model(MMEForPreTraining).save_pretrained(tmp_path / "pretrained")
    model = MMEForVideoClassification.from_pretrained(tmp_path / "pretrained")
    model = peft.get_peft_model(model, low_rank(modules_to_save=["classifier", "fc_norm"]))
    heads = {name for name in names_trained(model) if ".lora_" not in name}
    assert {name.split(".")[-4] for name in heads} == {"classifier", "fc_norm"} and len(heads) == 4
    losses = train(model, batch_for(MMEForVideoClassification))
    assert losses[-1] < 0.9 * losses[0]
    model.save_pretrained(tmp_path / "changes")
    other = MMEForVideoClassification.from_pretrained(tmp_path / "pretrained")
    loaded = peft.PeftModel.from_pretrained(other, tmp_path / "changes")
    expected = logits_of(model, MMEForVideoClassification)
    torch.testing.assert_close(logits_of(loaded, MMEForVideoClassification), expected)


def test_changes_reach_an_attentive_pooler_and_train_with_checkpointing():
    model = peft.get_peft_model(small_model(use_attentive_pooling=True), low_rank())
    assert sum("pooler.layer.attention" in name for name in names_trained(model)) == 4
    enable = getattr(model.base_model.model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
    enable()
    losses = train(model.train(), batch_for(MMEForVideoClassification))
    assert losses[-1] < losses[0]
    names = [
        name for name, parameter in model.named_parameters() if parameter.requires_grad and not parameter.grad.any()
    ]
    assert names == []


@pytest.mark.skipif(
    Version(peft.__version__) < Version(MIN_PEFT_VERSION), reason=f"transformers wants peft {MIN_PEFT_VERSION} for this"
)
@pytest.mark.parametrize("model_class", MODELS)
def test_transformers_own_adapters(tmp_path, model_class):
    small_model(model_class).save_pretrained(tmp_path / "base")
    base = logits_of(small_model(model_class), model_class)
    model = model_class.from_pretrained(tmp_path / "base")
    model.add_adapter(low_rank(), adapter_name="motion")
    losses = train(model, batch_for(model_class))
    assert losses[-1] < losses[0] and all(".lora_" in name for name in names_trained(model))
    trained = logits_of(model, model_class)
    model.disable_adapters()
    torch.testing.assert_close(logits_of(model, model_class), base)
    model.enable_adapters()
    model.save_pretrained(tmp_path / "changes")  # the changes alone
    assert not (tmp_path / "changes" / "model.safetensors").exists()
    loaded = model_class.from_pretrained(tmp_path / "base")
    loaded.load_adapter(tmp_path / "changes")
    torch.testing.assert_close(logits_of(loaded, model_class), trained)
