"""examples/convert_checkpoint.py as a user runs it; most of it in this process, which is faster."""

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor
from mme_hf.published_models import PublishedModel

SCRIPT = Path(__file__).parents[2] / "examples" / "convert_checkpoint.py"
OVERRIDES = json.dumps({"image_size": 32, "num_frames": 4, "num_attention_heads": 2, "decoder_num_attention_heads": 2})
WIDTH = 8


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def block(prefix: str) -> dict[str, torch.Tensor]:
    shapes = {"attn.qkv.weight": (3 * WIDTH, WIDTH), "attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,)}
    shapes |= {"mlp.fc1.weight": (WIDTH, WIDTH), "mlp.fc1.bias": (WIDTH,)}
    shapes |= {"mlp.fc2.weight": (WIDTH, WIDTH), "mlp.fc2.bias": (WIDTH,)}
    shapes |= {f"{norm}.{kind}": (WIDTH,) for norm in ("norm1", "norm2") for kind in ("weight", "bias")}
    return {f"{prefix}.{name}": torch.randn(shape) for name, shape in shapes.items()}


def patch_embedding(prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}.weight": torch.randn(WIDTH, 3, 2, 16, 16), f"{prefix}.bias": torch.randn(WIDTH)}


def layer(name: str, *shape: int) -> dict[str, torch.Tensor]:
    return {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}


@pytest.fixture
def classifier(tmp_path) -> Path:
    tensors = {**patch_embedding("patch_embed.proj"), **block("blocks.0"), **layer("fc_norm", WIDTH)}
    torch.save({"module": {**tensors, **layer("head", 2, WIDTH)}}, tmp_path / "classifier.pt")
    return tmp_path / "classifier.pt"


@pytest.fixture
def pretrained(tmp_path) -> Path:
    tensors = {
        **patch_embedding("encoder.patch_embed.proj"),
        **block("encoder.blocks.0"),
        **block("decoder.0.blocks.0"),
        **layer("encoder.norm", WIDTH),
        **layer("decoder.0.norm", WIDTH),
        "encoder_to_decoder.0.weight": torch.randn(WIDTH, WIDTH),
        "mask_token": torch.randn(1, 1, WIDTH),
    }
    for head, size in enumerate((108, 32)):
        tensors |= layer(f"decoder.0.head.{head}.0", 6, WIDTH) | layer(f"decoder.0.head.{head}.2", size, 6)
    torch.save({"model": tensors}, tmp_path / "pretrained.pth")
    return tmp_path / "pretrained.pth"


@pytest.mark.parametrize(("name", "text"), [("labels.txt", "left\nright\n"), ("l.json", '{"1": "right", "0": "left"}')])
def test_classifier_is_written_with_its_processor_and_label_names(script, classifier, tmp_path, capsys, name, text):
    (tmp_path / name).write_text(text)
    folder = tmp_path / "out"
    flags = ["--output_dir", folder, "--config_overrides", OVERRIDES, "--id2label", tmp_path / name]
    script.main([str(word) for word in (classifier, *flags, "--with_remote_code")])
    assert (folder / "modeling_mme.py").is_file() and "auto_map" in json.loads((folder / "config.json").read_text())
    lines = capsys.readouterr().out.splitlines()
    assert lines[:2] == ["layout      MME or VideoMAE classifier", "class       MMEForVideoClassification"]
    assert "left out    nothing" in lines
    model, report = MMEForVideoClassification.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.id2label == {0: "left", 1: "right"}
    processor = MMEVideoProcessor.from_pretrained(folder)
    pixels = processor(torch.zeros(4, 3, 40, 50, dtype=torch.uint8), return_tensors="pt")
    assert model(**pixels).logits.shape == (1, 2)
    card = ModelCard.load(folder / "README.md")
    assert card.data.pipeline_tag == "video-classification" and card.data.license == "unknown"
    assert "so nothing is claimed" in card.text and "From `classifier.pt`" in card.text and "right" in card.text
    assert str(tmp_path.parent) not in card.content  # nor in the command


def test_pretraining_checkpoint_gets_a_processor_whose_labels_the_model_takes(script, pretrained, tmp_path):
    folder = tmp_path / "out"
    script.main([str(pretrained), "--output_dir", str(folder), "--config_overrides", OVERRIDES])
    model = MMEForPreTraining.from_pretrained(folder)
    processor = MMEVideoProcessor.from_pretrained(folder)
    assert processor.motion_target_config() == model.config.motion_targets
    assert processor.point_layout == "reference" and processor.tracker_options["flow_precision"] == "whole_pixel"
    frames = torch.randint(0, 256, (processor.raw_window(), 3, 32, 32), dtype=torch.uint8)
    inputs = processor(frames, return_targets=True, return_tensors="pt")
    assert model(**inputs).loss.isfinite()
    assert "trained to predict how the points" in (folder / "README.md").read_text()


def test_a_published_checkpoint_gets_its_input_and_its_figures(script, classifier, tmp_path, monkeypatch):
    # The real ones have 86 million parameters; a small one in their place shows what is made of the name.
    monkeypatch.setattr(PublishedModel, "check_fits", lambda *arguments, **options: None)
    folder = tmp_path / "out"
    flags = ["--output_dir", folder, "--config_overrides", OVERRIDES, "--published", "finetune-ssv2"]
    script.main([str(word) for word in (classifier, *flags)])
    assert MMEVideoProcessor.from_pretrained(folder).frame_sampling == "segments"
    (figure,) = ModelCard.load(folder / "README.md").data.eval_results
    assert (figure.metric_value, figure.metric_name) == (0.715, "top-1 accuracy, 2 x 3 views")
    script.main([*map(str, (classifier, *flags)), "--processor_options", '{"frame_sampling": "dense"}'])
    assert MMEVideoProcessor.from_pretrained(folder).frame_sampling == "dense"


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "the following arguments are required: --output_dir"),
        (["--output_dir", "out", "--config_overrides", "{"], "config_overrides ('{') is not JSON"),
        (["--output_dir", "out", "--config_overrides", '{"hidden_sizes": 3}'], "Did you mean hidden_size"),
        (["--output_dir", "out", "--config_overrides", '{"hidden_size": "a"}'], "hidden_size"),
        (["--output_dir", "out", "--id2label", "none.txt"], "id2label ('none.txt') is not a file"),
        (
            ["--output_dir", "out", "--processor_options", '{"patch_size": 8}'],
            "patch_size (8) differs from the model's",
        ),
        (["--output_dir", "out", "--published", "mme"], "published ('mme') is unknown. Known: base-k400, "),
        (["--output_dir", "out", "--published", "finetune-ucf101"], "has hidden_size 768, the checkpoint 8"),
        (["--output_dir", "out", "--published", "base-k400"], "task pretraining, the checkpoint classification"),
    ],
)
def test_a_mistake_ends_with_one_line(script, classifier, tmp_path, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        script.main([str(classifier), *flags])
    assert message in stopped.value.code and "\n" not in stopped.value.code
    assert not (tmp_path / "out").exists()


def test_label_names_must_be_as_many_as_classes(script):
    with pytest.raises(ValueError, match="id2label names 3 classes; the checkpoint has 2"):
        script.set_label_names(MMEConfig(num_labels=2), ["a", "b", "c"])
    with pytest.raises(ValueError, match=r"has the names \['a'\] twice"):
        script.set_label_names(MMEConfig(num_labels=2), ["a", "a"])


def test_what_was_converted_is_pushed(script, classifier, tmp_path, hub, capsys):
    flags = ["--push_to_hub", "--hub_model_id", "converted", "--hub_private_repo", "--hub_token", "hf_mine"]
    script.main([str(classifier), "--output_dir", str(tmp_path / "out"), "--config_overrides", OVERRIDES, *flags])
    assert f"pushed to   {hub.url}/me/converted" in capsys.readouterr().out
    assert hub.repositories["model", "me/converted"].is_private
    model = MMEForVideoClassification.from_pretrained("me/converted", token="hf_mine")
    assert model.config.hidden_size == WIDTH


def test_an_unreachable_hub_is_told_before_anything_is_written(script, classifier, tmp_path):
    flags = ["--output_dir", str(tmp_path / "out"), "--push_to_hub", "--hub_model_id", "me/mine", "--hub_token", "hf_s"]
    with pytest.raises(SystemExit, match=r"hub_model_id \('me/mine'\) cannot be pushed to"):
        script.main([str(classifier), "--config_overrides", OVERRIDES, *flags])
    assert not (tmp_path / "out").exists()


def test_a_mistake_makes_no_repository(script, classifier, tmp_path, hub):
    flags = ["--output_dir", str(tmp_path / "out"), "--push_to_hub", "--hub_token", "hf_mine", "--published", "mme"]
    with pytest.raises(SystemExit, match="is unknown"):
        script.main([str(classifier), *flags])
    assert not hub.repositories
