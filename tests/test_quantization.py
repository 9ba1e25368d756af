"""A classifier in int8, by torchao and by onnxruntime; `benchmarks/bench_quantization.py` has what it costs."""

import pytest
import torch
from torch import nn
from transformers import TorchAoConfig

from mme_hf import MMEConfig, MMEForVideoClassification
from mme_hf.modeling_mme import MMEClassifierHead

# 127 steps for the largest value of a row: after two blocks the logits are off by some hundredths of their spread.
LARGEST_DIFFERENCE = 0.1


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier in a folder, as wide as torchao's blocks ask for, with logits of order 1."""
    torch.manual_seed(0)
    config = MMEConfig(
        image_size=16,
        patch_size=8,
        num_frames=4,
        hidden_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        num_labels=5,
    )
    model = MMEForVideoClassification(config).eval()
    nn.init.normal_(model.classifier.weight, std=0.2)
    folder = tmp_path_factory.mktemp("classifier")
    model.save_pretrained(folder)
    return model, folder


def clips() -> torch.Tensor:
    return torch.randn(8, 4, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def check_near(logits: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (logits - expected).abs().max()
    # Not equal: what gives the same numbers has not been rounded at all.
    assert 0 < difference < LARGEST_DIFFERENCE * expected.std()


@torch.no_grad()
def test_torchao_rounds_every_linear_layer_and_survives_saving(tmp_path, classifier):
    quantization = pytest.importorskip("torchao.quantization")
    model, folder = classifier
    config = TorchAoConfig(quantization.Int8DynamicActivationInt8WeightConfig())
    loaded = MMEForVideoClassification.from_pretrained(folder, quantization_config=config)
    linear = {name: module for name, module in loaded.named_modules() if isinstance(module, nn.Linear)}
    plain = {name for name, module in linear.items() if type(module.weight) is nn.Parameter}
    assert len(linear) == 2 * 6 + 1 and plain <= {"classifier"}
    assert isinstance(linear["classifier"], MMEClassifierHead)
    logits = loaded(clips()).logits
    check_near(logits, model(clips()).logits)

    loaded.save_pretrained(tmp_path)
    sizes = [(path / "model.safetensors").stat().st_size for path in (tmp_path, folder)]
    assert sizes[0] < 0.6 * sizes[1]
    # The file says how it is to be read: no option is needed.
    assert torch.equal(MMEForVideoClassification.from_pretrained(tmp_path)(clips()).logits, logits)


@pytest.mark.slow  # the exporter takes 10 s, however small the model
def test_onnxruntime_rounds_to_int8(tmp_path, classifier):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    from onnxruntime.quantization import QuantType, quantize_dynamic

    model, _ = classifier
    path, path_of_int8 = tmp_path / "model.onnx", tmp_path / "int8.onnx"
    any_batch = {"pixel_values": {0: torch.export.Dim("batch")}}
    inputs = {"pixel_values": clips()[:2]}
    program = torch.onnx.export(
        model,
        (),
        kwargs=inputs,
        dynamic_shapes=any_batch,
        output_names=["logits"],
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    program.save(path)
    quantize_dynamic(path, path_of_int8, weight_type=QuantType.QInt8, per_channel=True)
    assert path_of_int8.stat().st_size < 0.6 * path.stat().st_size
    session = runtime.InferenceSession(path_of_int8, providers=["CPUExecutionProvider"])
    (logits,) = session.run(["logits"], {"pixel_values": clips().numpy()})
    with torch.no_grad():
        check_near(torch.from_numpy(logits), model(clips()).logits)
