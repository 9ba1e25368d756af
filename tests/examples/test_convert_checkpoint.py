"""The converting script, on a small file in the published layout."""

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor

SCRIPT = Path(__file__).parents[2] / "examples" / "convert_checkpoint.py"
WIDTH = 8


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("convert_checkpoint", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path):
    block = {
        "norm1.weight": (WIDTH,),
        "norm1.bias": (WIDTH,),
        "attn.qkv.weight": (3 * WIDTH, WIDTH),
        "attn.proj.weight": (WIDTH, WIDTH),
        "attn.proj.bias": (WIDTH,),
        "norm2.weight": (WIDTH,),
        "norm2.bias": (WIDTH,),
        "mlp.fc1.weight": (16, WIDTH),
        "mlp.fc1.bias": (16,),
        "mlp.fc2.weight": (WIDTH, 16),
        "mlp.fc2.bias": (WIDTH,),
    }
    shapes = {
        "patch_embed.proj.weight": (WIDTH, 3, 2, 16, 16),
        "patch_embed.proj.bias": (WIDTH,),
        **{f"blocks.0.{name}": shape for name, shape in block.items()},
        "fc_norm.weight": (WIDTH,),
        "fc_norm.bias": (WIDTH,),
        "head.weight": (2, WIDTH),
        "head.bias": (2,),
    }
    path = tmp_path / "classifier.pth"
    torch.save({"module": {name: torch.randn(shape) for name, shape in shapes.items()}}, path)
    return path


def run(script, monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["convert_checkpoint.py", *map(str, words)])
    script.main()


def test_what_is_saved_opens_and_classifies_a_video(script, monkeypatch, tmp_path, checkpoint, video_folder):
    (tmp_path / "labels.txt").write_text("jump\nrun\n")
    output_dir = tmp_path / "converted"
    overrides = json.dumps({"image_size": 32, "num_frames": 4})
    words = (
        checkpoint,
        "--output_dir",
        output_dir,
        "--config_overrides",
        overrides,
        "--labels",
        tmp_path / "labels.txt",
    )
    run(script, monkeypatch, *words)
    model = MMEForVideoClassification.from_pretrained(output_dir)
    processor = MMEVideoProcessor.from_pretrained(output_dir)
    inputs = processor(next(video_folder.rglob("*.mp4")), return_tensors="pt")
    assert inputs["pixel_values"].shape == (1, 4, 3, 32, 32)
    assert model.config.id2label == {0: "jump", 1: "run"}
    assert torch.equal(model.classifier.bias, torch.load(checkpoint)["module"]["head.bias"])
    assert model(**inputs).logits.shape == (1, 2)


def test_mistakes_end_with_one_line(script, monkeypatch, tmp_path, checkpoint):
    (tmp_path / "labels.txt").write_text("jump\njump\n")
    for words, message in (
        ([tmp_path / "no.pth"], r"error: .*no\.pth: no such checkpoint file"),
        ([checkpoint, "--config_overrides", "{"], r"error: config_overrides \('\{'\) is not JSON"),
        ([checkpoint, "--labels", tmp_path / "labels.txt"], r"must name the classes 0 to 1, each once"),
        ([SCRIPT], r"not a checkpoint of tensors alone"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(script, monkeypatch, *words, "--output_dir", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_processor_of_a_pretraining_checkpoint_makes_labels_of_its_size(script):
    config = MMEConfig(hidden_size=8, num_hidden_layers=1, num_attention_heads=1, image_size=32, num_frames=4)
    processor = script.processor_for(config, 1, predicts_motion=True)
    sizes = {name: target["size"] for name, target in processor.motion_target_config().items()}
    assert sizes == {name: target["size"] for name, target in config.motion_targets.items()}
    frames = torch.randint(0, 255, (12, 3, 32, 32), dtype=torch.uint8)
    batch = processor(frames, return_targets=True, return_tensors="pt")
    assert MMEForPreTraining(config)(**batch).loss > 0
