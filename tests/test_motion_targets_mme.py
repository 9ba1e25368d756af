import json
from types import SimpleNamespace

import pytest
import torch
from small_tracks import clip_of, tracks_from
from teachers import save_teacher

from mme_hf.configuration_mme import MMEConfig
from mme_hf.modeling_mme import MMEForPreTraining
from mme_hf.motion_targets_mme import (
    MOTION_TARGETS,
    REFERENCE_MOTION,
    FlowHistogramTarget,
    FlowTarget,
    PixelsTarget,
    PositionTarget,
    ShapeAlongTrackTarget,
    ShapeTarget,
    build_targets,
    histogram_of_gradients,
)
from mme_hf.video_processing_mme import MMEVideoProcessor


def test_sizes_follow_the_configuration():
    config = SimpleNamespace(num_channels=3, patch_size=16, tubelet_size=2, trajectory_num_steps=4)
    assert ShapeTarget().size(config) == 108 and PositionTarget().size(config) == 32
    assert ShapeTarget(num_bins=6, cell_size_px=4).size(config) == 288
    assert ShapeAlongTrackTarget().size(config) == 108 * 5 and FlowTarget().size(config) == 8
    assert PixelsTarget().size(config) == 1536


def test_defaults_fill_only_what_a_target_has_and_the_user_left_open():
    targets = build_targets({"position": {"weight": 3.0}, "shape": {"cell_size_px": 4}}, cell_size_px=16, other=1)
    assert list(targets) == ["position", "shape"]
    assert targets["position"] == PositionTarget(cell_size_px=16, weight=3.0)
    assert targets["shape"].cell_size_px == 4


def test_reference_options_build():
    targets = build_targets(REFERENCE_MOTION["motion_targets"])
    assert {name: target.activation for name, target in targets.items()} == {"shape": "sigmoid", "position": "tanh"}
    assert (targets["shape"].weight, targets["position"].weight) == (54.0, 16.0)
    assert (targets["shape"].visible_weight, targets["position"].visible_weight) == (0.0, 0.0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build_targets({"pixel": {}}), "motion target \\('pixel'\\) is unknown. Choose among"),
        (lambda: build_targets({"shape": {"bins": 9}}), "motion target 'shape' has no option bins"),
        (lambda: PositionTarget(scale_px=0.0), "scale_px \\(0.0\\)"),
        (lambda: PositionTarget(normalization="std"), "normalization \\('std'\\) must be one of"),
        (lambda: PositionTarget(token_rule="most"), "token_rule \\('most'\\) must be one of"),
        (lambda: PositionTarget(weight=-1), "position: weight \\(-1\\) must be a finite number of at least 0"),
        (lambda: PositionTarget(visible_weight=-1), "position: visible_weight \\(-1\\) must be a finite number"),
        (lambda: ShapeTarget(weight=float("nan")), "shape: weight \\(nan\\) must be a finite number"),
        (lambda: ShapeTarget(weight="1"), "shape: weight \\('1'\\) must be a finite number"),
        (lambda: ShapeTarget(num_bins=1), "num_bins \\(1\\) must be a whole number of at least 2"),
        (lambda: ShapeTarget(num_bins=9.0), "num_bins \\(9.0\\) must be a whole number"),
        (lambda: ShapeTarget(activation="relu"), "activation \\('relu'\\) must be"),
        (lambda: PositionTarget(still_step_px=0), "position: still_step_px \\(0\\) must be a number above 0"),
        (lambda: FlowTarget(max_displacement_px=-1.0), "flow: max_displacement_px \\(-1.0\\) must be a number"),
        (lambda: FlowTarget(scale_px="2"), "flow: scale_px \\('2'\\) must be a number above 0"),
        (
            lambda: FlowHistogramTarget(num_bins=1),
            "flow_histogram: num_bins \\(1\\) must be a whole number of at least 2",
        ),
        (lambda: FlowHistogramTarget(scale_px=0), "flow_histogram: scale_px \\(0\\) must be a number above 0"),
        (lambda: FlowTarget(validity="some"), "flow: validity \\('some'\\) must be one of"),
        (lambda: ShapeAlongTrackTarget(num_bins=1), "shape_along_track: num_bins \\(1\\)"),
        (lambda: ShapeAlongTrackTarget(token_rule="most"), "shape_along_track: token_rule \\('most'\\)"),
        (lambda: PixelsTarget(normalization="frame"), "pixels: normalization \\('frame'\\) must be one of"),
        (lambda: build_targets({"features": {}}), "features: teacher \\(None\\) must be the folder or Hub name"),
        (lambda: histogram_of_gradients(torch.zeros(1, 3, 16, 20)), "16x20 do not divide into cells"),
        (lambda: histogram_of_gradients(torch.zeros(3, 16, 16)), "video has shape"),
        (
            lambda: PositionTarget()(clip_of(num_frames=6), tracks_from(torch.zeros(2, 1, 8, 2))),
            "2 starts of 8 points .* the clip needs 3 starts",
        ),
        (
            lambda: PositionTarget(cell_size_px=5).size(SimpleNamespace(patch_size=16, trajectory_num_steps=4)),
            "patch_size \\(16\\) does not divide by cell_size_px \\(5\\)",
        ),
    ],
)
def test_wrong_options_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_table_names_are_the_targets_own():
    assert all(target.name == name for name, target in MOTION_TARGETS.items())


# --- each of them, and all together, in training and on disk

SMALL = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}, "num_frames": 4, "frame_stride": 2}
# Not in alphabetical order, which JSON with sorted keys would bring back; every one with a weight.
ALL = {
    "shape": 10.0,
    "position": 0.5,
    "pixels": 1.5,
    "flow": 2.0,
    "shape_along_track": 5.0,
    "features": 0.25,
    "flow_histogram": 0.75,
}
COMBINATIONS = [*([name] for name in ALL), ["position", "pixels"], list(ALL)]


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    return save_teacher(tmp_path_factory.mktemp("teacher"))


def processor_of(names, teacher):
    options = {name: {"weight": ALL[name], **({"teacher": teacher} if name == "features" else {})} for name in names}
    return MMEVideoProcessor(**SMALL, motion_targets=options)


def model_of(processor):
    torch.manual_seed(0)
    width = {"hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48, "num_hidden_layers": 2}
    decoder = {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 48}
    targets = processor.motion_target_config()
    return MMEForPreTraining(MMEConfig(image_size=32, num_frames=4, motion_targets=targets, **width, **decoder))


def moving_clip(num_frames):
    """A texture that moves by (1, 0.5) px a frame, uint8 (T, 3, H, W)."""
    y, x = torch.meshgrid(torch.arange(48.0), torch.arange(48.0), indexing="ij")
    time = torch.arange(num_frames)[:, None, None, None]
    waves = torch.tensor([[0.4, 0.1], [0.1, 0.5], [-0.3, 0.3]])[:, :, None, None]
    grey = 127 + 60 * torch.sin(waves[:, 0] * (x - time) + waves[:, 1] * (y - 0.5 * time))
    return grey.to(torch.uint8)


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
def test_every_combination_trains_saves_and_loads(names, teacher, tmp_path):
    processor = processor_of(names, teacher)
    model = model_of(processor)
    raw = moving_clip(processor.raw_window())
    batch = processor(raw, return_targets=True, return_tensors="pt", generator=torch.Generator().manual_seed(0))
    assert batch["labels"].shape[-1] == sum(target["size"] for target in model.config.motion_targets.values())
    optimizer = torch.optim.Adam(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(25):
        outputs = model(**batch)
        outputs.loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append({name: loss.item() for name, loss in outputs.target_losses.items()})
    visible = {name: f"visible_{name}" for name in names if name != "pixels"}
    assert set(losses[-1]) == {*names, *visible.values()}
    assert all(losses[-1][name] < 0.9 * losses[0][name] for name in losses[0]), (losses[0], losses[-1])
    # Masked and visible tokens count alike.
    means = {name: (losses[-1][name] + losses[-1][visible.get(name, name)]) / 2 for name in names}
    weighted = sum(ALL[name] * means[name] for name in names)
    assert outputs.loss.item() == pytest.approx(weighted, rel=1e-5)

    processor.save_pretrained(tmp_path)
    model.save_pretrained(tmp_path)
    again, loaded = MMEVideoProcessor.from_pretrained(tmp_path), MMEForPreTraining.from_pretrained(tmp_path).train()
    assert again.to_dict()["motion_targets"] == processor.to_dict()["motion_targets"]
    assert list(loaded.config.motion_targets.items()) == list(model.config.motion_targets.items())
    same = again(raw, return_targets=True, return_tensors="pt", generator=torch.Generator().manual_seed(0))
    assert torch.equal(same["labels"], batch["labels"]) and torch.equal(same["target_mask"], batch["target_mask"])
    assert torch.equal(loaded(**same).logits, model(**batch).logits)


def test_labels_stand_side_by_side_in_the_order_asked_for(teacher):
    raw = moving_clip(9)
    whole = processor_of(ALL, teacher)(raw, return_targets=True, return_tensors="pt")
    sizes = [target["size"] for target in processor_of(ALL, teacher).motion_target_config().values()]
    for index, (name, labels) in enumerate(zip(ALL, whole["labels"].split(sizes, -1), strict=True)):
        alone = processor_of([name], teacher)(raw, return_targets=True, return_tensors="pt")
        assert torch.equal(alone["labels"], labels)
        assert torch.equal(alone["target_mask"][..., 0], whole["target_mask"][..., index])


def test_a_processor_whose_teacher_is_gone_still_makes_pixels(tmp_path):
    folder = save_teacher(tmp_path / "teacher")
    processor_of(["features"], folder).save_pretrained(tmp_path / "saved")
    file = tmp_path / "saved" / "video_preprocessor_config.json"
    options = json.loads(file.read_text())
    options["motion_targets"][0]["teacher"] = str(tmp_path / "gone")
    file.write_text(json.dumps(options))
    processor = MMEVideoProcessor.from_pretrained(tmp_path / "saved")
    assert processor(moving_clip(9)[:4], return_tensors="pt")["pixel_values"].shape == (1, 4, 3, 32, 32)
    with pytest.raises(ValueError, match=r"features: teacher .*gone.* cannot be opened"):
        processor(moving_clip(9), return_targets=True)
