"""An exported folder works where mme_hf, cv2, decord and the rest of what mme_hf depends on cannot be imported."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import write_video
from safetensors.torch import load_file, save_file
from transformers.dynamic_module_utils import get_imports, get_relative_import_files

from mme_hf import (
    MMEConfig,
    MMEForPreTraining,
    MMEForVideoClassification,
    MMEModel,
    MMEVideoProcessor,
    save_with_remote_code,
)
from mme_hf.remote_code import AUTO_MAP, CUSTOM_PIPELINES, carry_remote_code, code_files

CONFIG = {
    "image_size": 32,
    "num_frames": 4,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "decoder_hidden_size": 24,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 48,
}
PROCESSOR = {
    "size": {"shortest_edge": 32},
    "crop_size": {"height": 32, "width": 32},
    "num_frames": 4,
    "frame_stride": 3,
}
# All that mme_hf depends on and transformers does not, but av and torchcodec.
BLOCKED = (
    "mme_hf",
    "cv2",
    "decord",
    "datasets",
    "accelerate",
    "evaluate",
    "matplotlib",
    "pyarrow",
    "tensorboard",
    "peft",
)
SCRIPT = """
import json, sys
from pathlib import Path
for name in {blocked}:
    sys.modules[name] = None
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig, AutoModel, AutoModelForPreTraining, AutoModelForVideoClassification, AutoVideoProcessor, pipeline,
)

root, trusted, found, said = Path(sys.argv[1]), {{"trust_remote_code": True}}, {{}}, {{}}
inputs = load_file(root / "inputs.safetensors")
pixels = inputs["pixel_values"]
for head in ("encoder", "pretraining", "classifier"):
    config = AutoConfig.from_pretrained(root / head, **trusted)
    said[head + " targets"] = list(config.motion_targets)
    found[head + " features"] = AutoModel.from_pretrained(root / head, **trusted)(pixels).last_hidden_state
classifier = AutoModelForVideoClassification.from_pretrained(root / "classifier", **trusted)
found["classifier"] = classifier(pixels).logits
pretraining = AutoModelForPreTraining.from_pretrained(root / "pretraining", **trusted)
found["pretraining"] = pretraining(pixels, bool_masked_pos=inputs["bool_masked_pos"].bool()).logits
# A head that the folder was not saved with.
said["new head"] = type(AutoModelForVideoClassification.from_pretrained(root / "pretraining", **trusted)).__name__

processor = AutoVideoProcessor.from_pretrained(root / "classifier", **trusted)
for name in ("steps.mp4", "steps.webm"):
    path = root / name
    found[name] = processor(path, return_tensors="pt")["pixel_values"]
    found[name + " bytes"] = processor(path.read_bytes(), return_tensors="pt")["pixel_values"]
try:
    processor(torch.zeros(40, 3, 32, 32, dtype=torch.uint8), return_targets=True)
except ValueError as error:
    said["targets"] = str(error)

def answers(folder, name):
    classify = pipeline("video-classification", model=str(folder), device="cpu", **trusted)
    extract = pipeline("video-feature-extraction", model=str(folder), device="cpu", **trusted)
    paths = [str(root / "steps.mp4"), str(root / "steps.webm")]
    said[name + " labels"] = classify(paths)
    found[name + " mean"] = torch.stack(extract(paths, return_tensors=True))
    found[name + " tokens"] = torch.stack(extract(paths, return_tensors=True, pool=False, layer=1, batch_size=2))
    return extract

extract = answers(root / "classifier", "exported")
extract.save_pretrained(root / "saved by the pipeline")
# Saved again by what remote code loaded, it is whole again.
for part in (classifier, processor):
    part.save_pretrained(root / "saved again")
answers(root / "saved again", "saved again")

for name in ("torchcodec", "torchcodec.decoders"):
    sys.modules[name] = None
for name in ("steps.mp4", "steps.webm"):
    found[name + " by av"] = processor(str(root / name), return_tensors="pt")["pixel_values"]
said["imported"] = [name for name in {blocked} if sys.modules.get(name) is not None]
said["of"] = [type(part).__module__.split(".")[0] for part in (classifier, pretraining, processor, extract)]
save_file({{name: tensor.detach().contiguous() for name, tensor in found.items()}}, root / "found.safetensors")
(root / "said.json").write_text(json.dumps(said))
"""


@pytest.fixture(scope="module")
def models():
    torch.manual_seed(0)
    config = MMEConfig(**CONFIG, num_labels=3)
    config.id2label = {0: "still", 1: "left", 2: "right"}
    models = {
        "encoder": MMEModel(config).eval(),
        "pretraining": MMEForPreTraining(config).eval(),
        "classifier": MMEForVideoClassification(config).eval(),
    }
    torch.nn.init.normal_(models["classifier"].classifier.weight)
    return models


@pytest.fixture(scope="module")
def exported(models, tmp_path_factory):
    """A folder for each head, two videos whose brightness tells the frame (6 x index), and inputs."""
    root = tmp_path_factory.mktemp("exported")
    for name, model in models.items():
        save_with_remote_code(model, MMEVideoProcessor(**PROCESSOR), root / name)
    frames = np.broadcast_to(np.arange(40, dtype=np.uint8)[:, None, None, None] * 6, (40, 48, 64, 3))
    write_video(root / "steps.mp4", frames)
    write_video(root / "steps.webm", frames, codec="libvpx-vp9")
    masked = torch.zeros(1, 8, dtype=torch.uint8)
    masked[:, ::2] = 1
    inputs = {"pixel_values": torch.randn(1, 4, 3, 32, 32), "bool_masked_pos": masked}
    save_file(inputs, root / "inputs.safetensors")
    return root, inputs


@pytest.fixture(scope="module")
def without_package(exported):
    """What the script says and finds, in a process that has to do without mme_hf."""
    root, _ = exported
    environment = {**os.environ, "HF_MODULES_CACHE": str(root / "modules"), "HF_HUB_OFFLINE": "1"}
    script = SCRIPT.format(blocked=BLOCKED)
    result = subprocess.run(
        [sys.executable, "-c", script, str(root)],
        capture_output=True,
        text=True,
        env=environment,
        stdin=subprocess.DEVNULL,
        cwd=root,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads((root / "said.json").read_text()), load_file(root / "found.safetensors")


def test_nothing_but_the_exported_code_is_used(without_package):
    said, _ = without_package
    assert said["imported"] == []
    assert said["of"] == ["transformers_modules"] * 4


def test_every_head_gives_what_the_package_gives(without_package, exported, models):
    said, found = without_package
    pixels = exported[1]["pixel_values"]
    masked = exported[1]["bool_masked_pos"].bool()
    encoders = {name: MMEModel.from_pretrained(exported[0] / name) for name in models}
    with torch.no_grad():
        expected = {f"{name} features": model(pixels).last_hidden_state for name, model in encoders.items()}
        expected["classifier"] = models["classifier"](pixels).logits
        expected["pretraining"] = models["pretraining"](pixels, bool_masked_pos=masked).logits
    for name, values in expected.items():
        torch.testing.assert_close(found[name], values, msg=name)
    assert said["pretraining targets"] == ["shape", "position"]  # not in the alphabet's order
    assert said["new head"] == "MMEForVideoClassification"


def test_the_processor_takes_frames_at_the_stride_from_files_and_bytes(without_package):
    _, found = without_package
    mean, std = (
        torch.tensor(value)[:, None, None] for value in (MMEVideoProcessor.image_mean, MMEVideoProcessor.image_std)
    )
    for name in ("steps.mp4", "steps.webm"):
        for how in ("", " bytes", " by av"):
            grey = ((found[name + how][0] * std + mean) * 255).mean((1, 2, 3))
            # 4 frames, 3 apart, span 10 of 40 and start at (40 - 10) // 2.
            torch.testing.assert_close(grey / 6, torch.tensor([15.0, 18.0, 21.0, 24.0]), atol=0.3, rtol=0)


def test_targets_say_what_to_install(without_package):
    assert "pip install mme_hf" in without_package[0]["targets"]


@pytest.mark.parametrize("folder", ["exported", "saved again"])
def test_both_pipelines_work_on_mp4_and_webm(without_package, models, folder):
    said, found = without_package
    model = models["classifier"]
    for index, video in enumerate(("steps.mp4", "steps.webm")):
        with torch.no_grad():
            shares = model(found[video]).logits.softmax(-1)[0]
            tokens = model.mme.get_video_features(found[video], layer=1)
            mean = model.mme.get_video_features(found[video]).pooler_output
        answers = {answer["label"]: answer["score"] for answer in said[f"{folder} labels"][index]}
        expected = {model.config.id2label[number]: share.item() for number, share in enumerate(shares)}
        assert answers == pytest.approx(expected, rel=1e-4)
        torch.testing.assert_close(found[f"{folder} mean"][index], mean[0])
        torch.testing.assert_close(found[f"{folder} tokens"][index], tokens.last_hidden_state[0])


def test_the_pipeline_saves_what_it_was_loaded_from(without_package, exported):
    folder = exported[0] / "saved by the pipeline"
    config = json.loads((folder / "config.json").read_text())
    assert config["auto_map"] == {**AUTO_MAP}
    assert config["custom_pipelines"] == {**CUSTOM_PIPELINES}
    assert {path.name for path in folder.glob("*_mme.py")} == {path.name for path in code_files()}


def test_every_file_that_is_exported_is_needed_and_all_that_are_needed_are():
    folder = code_files()[0].parent
    entries = {folder / f"{entry.split('.')[0]}.py" for entry in AUTO_MAP.values()}
    needed = entries | {Path(path) for entry in entries for path in get_relative_import_files(entry)}
    assert set(code_files()) == needed


@pytest.mark.parametrize("path", code_files(), ids=lambda path: path.stem)
def test_exported_files_require_no_other_package(path):
    # transformers refuses to load a file that imports what is not installed, inside functions too.
    allowed = {"torch", "torchvision", "numpy", "transformers", "huggingface_hub"} | set(sys.stdlib_module_names)
    assert set(get_imports(path)) <= allowed


def test_exporting_changes_neither_model_nor_processor(models, tmp_path):
    model, processor = models["classifier"], MMEVideoProcessor(**PROCESSOR)
    before = model.config.to_dict(), processor.to_dict()
    save_with_remote_code(model, processor, tmp_path, max_shard_size="20KB")
    assert (model.config.to_dict(), processor.to_dict()) == before
    assert MMEVideoProcessor.from_pretrained(tmp_path).to_dict() == processor.to_dict()
    assert (tmp_path / "model.safetensors.index.json").is_file()  # the option went to the model


def test_names_of_labels_keep_the_order_of_their_numbers(tmp_path):
    config = MMEConfig(**CONFIG, num_labels=12)
    save_with_remote_code(MMEForVideoClassification(config), MMEVideoProcessor(**PROCESSOR), tmp_path)
    assert list(MMEConfig.from_pretrained(tmp_path).id2label) == list(range(12))


def test_a_saved_folder_gets_its_code_later(models, tmp_path):
    with pytest.raises(FileNotFoundError, match="has no config.json"):
        carry_remote_code(tmp_path)
    models["pretraining"].save_pretrained(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"has no video_preprocessor_config\.json"):
        carry_remote_code(tmp_path)
    MMEVideoProcessor(**PROCESSOR).save_pretrained(tmp_path)
    files = carry_remote_code(tmp_path)
    assert all(path.read_bytes() == source.read_bytes() for path, source in zip(files, code_files(), strict=True))
    assert (
        MMEForPreTraining.from_pretrained(tmp_path).config.motion_targets == models["pretraining"].config.motion_targets
    )
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**config, "model_type": "videomae"}))
    with pytest.raises(ValueError, match=r"\('videomae', 'MMEVideoProcessor'\), not"):
        carry_remote_code(tmp_path)


def test_what_cannot_be_exported_is_refused(models, tmp_path):
    class Mine(MMEModel):
        pass

    processor = MMEVideoProcessor(**PROCESSOR)
    with pytest.raises(ValueError, match="model is a Mine; only the code of MMEModel or"):
        save_with_remote_code(Mine(models["encoder"].config), processor, tmp_path)
    with pytest.raises(ValueError, match="processor is a NoneType"):
        save_with_remote_code(models["encoder"], None, tmp_path)
    with pytest.raises(ValueError, match="push_to_hub is no option here. Save first"):
        save_with_remote_code(models["encoder"], processor, tmp_path / "new", push_to_hub=True)
    assert not (tmp_path / "new").exists()
    (tmp_path / "file").write_text("")
    with pytest.raises(NotADirectoryError, match="is a file"):
        save_with_remote_code(models["encoder"], processor, tmp_path / "file")
