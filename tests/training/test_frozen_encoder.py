from dataclasses import dataclass

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file, save_file
from transformers import VideoMAEConfig, VideoMAEForVideoClassification

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEModel, MMEVideoProcessor
from mme_hf.data import BadVideoLog, load_folder_records
from mme_hf.training.frozen_encoder import (
    EncoderArguments,
    FrozenEncoder,
    build_encoder,
    coarser_tokens,
    weights_identity,
)
from mme_hf.training.labelled_data import LabelledDataArguments

SIZES = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
CONFIG = MMEConfig(image_size=32, num_frames=4, **SIZES)
CLIPS = torch.linspace(-2, 2, 2 * 4 * 3 * 32 * 32).reshape(2, 4, 3, 32, 32).sin()


@dataclass
class Arguments(EncoderArguments, LabelledDataArguments):
    pass


def save(model, folder):
    model.save_pretrained(folder)
    MMEVideoProcessor(num_frames=4, size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}).save_pretrained(
        folder
    )
    return str(folder)


def test_tokens_become_coarser_in_space_alone():
    # Two tubelets of 2 x 4 tokens, numbered.
    tokens = torch.arange(16.0).reshape(1, 16, 1)
    assert coarser_tokens(tokens, (2, 2, 4), 16) is tokens and coarser_tokens(tokens, (2, 2, 4), None) is tokens
    # Half as fine: 1 x 2 in each tubelet. The first is the mean of 0, 1, 4, 5.
    assert coarser_tokens(tokens, (2, 2, 4), 7)[0, :, 0].tolist() == [2.5, 4.5, 10.5, 12.5]
    assert coarser_tokens(tokens, (2, 2, 4), 3)[0, :, 0].tolist() == [3.5, 11.5]
    assert coarser_tokens(tokens, (2, 2, 4), 1).shape == (1, 2, 1)  # time is kept
    features = torch.randn(2, 8, 3)
    torch.testing.assert_close(coarser_tokens(features, (2, 2, 2), 2)[1, 1], features[1, 4:].mean(0))


def test_features_are_those_of_the_model_that_was_saved(tmp_path):
    pretraining = MMEForPreTraining(CONFIG).eval()
    loaded, processor = build_encoder(Arguments(model_name_or_path=save(pretraining, tmp_path / "pretraining")))
    assert not loaded.training and processor.num_frames == 4
    expected = pretraining.mme.get_video_features(CLIPS).pooler_output
    torch.testing.assert_close(loaded.get_video_features(CLIPS).pooler_output, expected)
    # What the classifier averages, of which only the mean is normalised.
    classifier = MMEForVideoClassification(CONFIG).eval()
    loaded, _ = build_encoder(Arguments(model_name_or_path=save(classifier, tmp_path / "classifier")))
    pooled = classifier.fc_norm(loaded.get_video_features(CLIPS).pooler_output)
    torch.testing.assert_close(classifier.classifier(pooled), classifier(CLIPS).logits)


def test_a_videomae_is_an_encoder_too(tmp_path):
    videomae = VideoMAEForVideoClassification(VideoMAEConfig(image_size=32, num_frames=4, **SIZES)).eval()
    videomae.save_pretrained(tmp_path)
    loaded, _ = build_encoder(Arguments(model_name_or_path=str(tmp_path)))
    expected = videomae.videomae(CLIPS).last_hidden_state.mean(1)
    torch.testing.assert_close(loaded.get_video_features(CLIPS).pooler_output, expected, rtol=1e-4, atol=1e-5)


def test_random_weights_are_a_seed_s():
    flags = {"preset": "tiny", "image_size": 32, "num_frames": 2}
    identities = [weights_identity(build_encoder(Arguments(seed=seed, **flags))[0]) for seed in (0, 0, 1)]
    assert identities[0] == identities[1] != identities[2]


def test_models_with_other_features_have_another_identity():
    model = MMEModel(CONFIG)
    same = weights_identity(model)
    model.config._name_or_path = "elsewhere"
    assert weights_identity(model) == same
    model.config.num_attention_heads = 4  # no weight tells
    assert weights_identity(model) != same
    model.config.num_attention_heads = 2
    with torch.no_grad():
        model.layers[1].mlp.fc2.bias[3] += 1e-6
    assert weights_identity(model) != same


def test_features_of_a_folder_are_those_of_each_video_alone(video_folder, tmp_path):
    model = MMEForPreTraining(CONFIG).eval()
    flags = {"model_name_or_path": save(model, tmp_path / "model"), "dataloader_num_workers": 0, "layer": 1}
    encoder = FrozenEncoder(Arguments(**flags, clips_per_forward=4, videos_per_batch=2), Accelerator(cpu=True))
    records = load_folder_records(video_folder)
    log = BadVideoLog.for_records(records, tmp_path / "bad.jsonl")
    views = encoder.sampling(2, 3)
    tables = encoder.tables(records, views, log, ["mean", "grid"], max_tokens=2)
    assert tables["mean"].values.shape == (6, 6, 16) and tables["mean"].places.tolist() == list(range(6))
    assert tables["grid"].values.shape == (6, 6, 2, 16) and tables["grid"].values.dtype == torch.float16
    (batch,) = encoder.batches(records, views, [4])
    with torch.no_grad():
        expected = model.mme.get_video_features(batch["pixel_values"], layer=1).pooler_output
        tokens = model.mme.get_video_features(batch["pixel_values"], layer=1).last_hidden_state
    torch.testing.assert_close(tables["mean"].values[4], expected)
    # Two tubelets of 2 x 2 tokens.
    by_time = tokens.unflatten(1, (2, 4)).mean(2)
    torch.testing.assert_close(tables["grid"].values[4].float(), by_time, rtol=2e-3, atol=2e-3)


def test_wrong_flags_say_what_to_do(tmp_path):
    for flags in ({}, {"preset": "tiny", "model_name_or_path": "somewhere"}):
        with pytest.raises(ValueError, match="Give --model_name_or_path, or --preset"):
            Arguments(**flags).check_encoder()
    with pytest.raises(ValueError, match=r"layer \(7\) must be from -7 to 6"):
        build_encoder(Arguments(preset="tiny", layer=7))
    with pytest.raises(ValueError, match=r"model_name_or_path \('.*'\) has no config.json"):
        build_encoder(Arguments(model_name_or_path=str(tmp_path)))


def test_a_model_that_lacks_weights_of_the_encoder_is_refused_and_others_are_named(tmp_path, caplog):
    folder = save(MMEModel(CONFIG), tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    weights["extra.weight"] = weights.pop("layers.1.mlp.fc2.bias")
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"lacks 1 weights of the encoder, such as layers\.1\.mlp\.fc2\.bias"):
        build_encoder(Arguments(model_name_or_path=folder))
    weights["layers.1.mlp.fc2.bias"] = weights["extra.weight"].clone()
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    build_encoder(Arguments(model_name_or_path=folder))
    assert "weights that are not used: 1, such as extra.weight" in caplog.text
