"""The classifier as a program of its own, for any batch and number of frames: `torch.export`, ONNX."""

import pytest
import torch
from packaging.version import Version
from torch import nn

from mme_hf import MMEConfig, MMEForVideoClassification

POOLINGS = {"mean": {}, "attentive": {"use_attentive_pooling": True}, "first": {"use_mean_pooling": False}}
NUM_FRAMES = 4
# Batches and frames beside the traced ones: fewer, and more than the table of positions is for.
OTHER_SHAPES = [(1, 4), (1, 6), (3, 4), (5, 12)]
OTHER_CASES = [("mean", True), ("attentive", False), ("first", False), ("first", True)]


def small_classifier(**overrides) -> MMEForVideoClassification:
    torch.manual_seed(0)
    fields = {
        "image_size": 8,
        "patch_size": 4,
        "num_frames": NUM_FRAMES,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 24,
        "num_labels": 3,
    }
    model = MMEForVideoClassification(MMEConfig(**{**fields, **overrides})).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


def inputs_of(batch_size: int, num_frames: int, padded: bool) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch_size + num_frames)
    inputs = {"pixel_values": torch.randn(batch_size, num_frames, 3, 8, 8, generator=generator)}
    if padded:
        inputs["frame_mask"] = torch.ones(batch_size, num_frames, dtype=torch.bool)
        inputs["frame_mask"][0, 2:] = False
    return inputs


def any_shape(inputs: dict[str, torch.Tensor], **limits: int) -> dict[str, dict]:
    shape = {0: torch.export.Dim("batch"), 1: 2 * torch.export.Dim("tubelets", min=2, **limits)}
    return dict.fromkeys(inputs, shape)


def exported(model: nn.Module, inputs: dict[str, torch.Tensor], strict: bool = False, **limits: int):
    return torch.export.export(model, (), inputs, dynamic_shapes=any_shape(inputs, **limits), strict=strict)


def functions_in(program: torch.export.ExportedProgram) -> set[str]:
    return {str(node.target) for node in program.graph.nodes if node.op == "call_function"}


# --- torch.export ---


@pytest.fixture(scope="module")
def attentive():
    """The classifier with the most to trace, and its program for padded clips, which torch and ONNX share."""
    model = small_classifier(use_attentive_pooling=True)
    return model, exported(model, inputs_of(2, 8, True))


@torch.no_grad()
def check_program(model: nn.Module, program: torch.export.ExportedProgram, padded: bool) -> None:
    for batch_size, num_frames in OTHER_SHAPES:
        inputs = inputs_of(batch_size, num_frames, padded)
        torch.testing.assert_close(program.module()(**inputs).logits, model(**inputs).logits)


def test_exported_program_with_padding_equals_the_model_for_any_batch_and_frames(attentive):
    check_program(*attentive, True)


@pytest.mark.parametrize(
    ("pooling", "padded"), [("mean", False), *[pytest.param(*case, marks=pytest.mark.slow) for case in OTHER_CASES]]
)
def test_exported_program_equals_the_model_for_any_batch_and_frames(pooling, padded):
    model = small_classifier(**POOLINGS[pooling])
    check_program(model, exported(model, inputs_of(2, 8, padded)), padded)


@pytest.mark.slow  # traces Python, for 10 s
@torch.no_grad()
def test_strict_export_and_a_saved_program(tmp_path):
    model = small_classifier(use_attentive_pooling=True)
    torch.export.save(exported(model, inputs_of(2, NUM_FRAMES, True), strict=True), tmp_path / "model.pt2")
    check_program(model, torch.export.load(tmp_path / "model.pt2"), True)


def test_positions_are_computed_only_where_clips_may_be_longer_than_the_table():
    model, inputs = small_classifier(num_frames=8), inputs_of(2, 6, False)
    sines = {"aten.sin.default", "aten.cos.default"}
    assert sines <= functions_in(exported(model, inputs))
    limited = exported(model, inputs, max=4)
    fixed = torch.export.export(model, (), inputs)
    assert not sines & functions_in(limited) and not sines & functions_in(fixed)


def test_a_number_of_frames_that_no_tubelets_make_is_refused():
    program = exported(small_classifier(), inputs_of(2, 8, False)).module()
    with pytest.raises((AssertionError, RuntimeError), match="Guard failed|to be of the form 2"):
        program(**inputs_of(2, 5, False))


# --- with a loss ---


@pytest.mark.parametrize("shares", [False, True], ids=["class numbers", "shares of classes"])
def test_the_loss_is_in_one_graph_for_any_batch(shares):
    if shares and Version(torch.__version__).release < (2, 9):
        pytest.skip("torch 2.8 traces the cross entropy of shares for each size of a batch anew")
    torch.compiler.reset()
    model = small_classifier(problem_type="single_label_classification")
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph.forward

    compiled = torch.compile(model, fullgraph=True, dynamic=True, backend=backend)
    # Sizes that no other dimension has: the compiler would take equal sizes for one.
    for batch_size in (5, 7, 9):
        labels = torch.arange(batch_size) % 3
        inputs = {**inputs_of(batch_size, 8, False), "labels": torch.eye(3)[labels] if shares else labels}
        torch.testing.assert_close(compiled(**inputs).loss, model(**inputs).loss)
    assert len(graphs) == 1


# --- ONNX ---


def check_onnx(model: nn.Module, padded: bool, path, program: torch.export.ExportedProgram | None = None) -> None:
    """Compare what onnxruntime makes of a model with the model; of a program that is traced, if given, as it is."""
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    inputs = inputs_of(2, 8, padded)
    options = {"dynamic_shapes": any_shape(inputs)} if program is None else {"optimize": False}
    names = {"output_names": ["logits"], "dynamo": True, "verbose": False}
    torch.onnx.export(model if program is None else program, (), kwargs=inputs, **options, **names).save(path)
    session = runtime.InferenceSession(path, providers=["CPUExecutionProvider"])
    # One tubelet too: sizes of 1 are no special case in ONNX.
    for batch_size, num_frames in [(1, 2), *OTHER_SHAPES]:
        inputs = inputs_of(batch_size, num_frames, padded)
        (logits,) = session.run(["logits"], {name: tensor.numpy() for name, tensor in inputs.items()})
        with torch.no_grad():
            expected = model(**inputs).logits
        torch.testing.assert_close(torch.from_numpy(logits), expected, rtol=0, atol=1e-4)


def test_onnxruntime_gives_the_same_logits_for_any_batch_frames_and_padding(attentive, tmp_path):
    model, program = attentive
    check_onnx(model, True, tmp_path / "model.onnx", program)


@pytest.mark.slow  # the exporter takes 10 s for each model, however small
@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_onnxruntime_gives_the_same_logits_for_every_pooling(tmp_path, pooling, padded):
    check_onnx(small_classifier(num_hidden_layers=2, **POOLINGS[pooling]), padded, tmp_path / "model.onnx")
