"""From arguments to a run's parts, and the mistakes that must show before any work."""

import json
from dataclasses import replace

import cv2
import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from teachers import save_teacher

from mme_hf import MMEForPreTraining
from mme_hf.motion_targets_mme import MOTION_TARGETS, PixelsTarget
from mme_hf.training import PretrainingArguments
from mme_hf.training.finetuning_setup import load_labelled_records
from mme_hf.training.parsing import parse_arguments
from mme_hf.training.setup import (
    build_model_and_processor,
    check_output_dir,
    describe_targets,
    load_records,
    schedule_lengths,
    settings_of_the_batches,
)

SMALL = {"hidden_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
SMALL |= {"decoder_hidden_size": 24, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 24}


def arguments(**changes):
    return PretrainingArguments(**{"image_size": 32, "num_frames": 4, "model_options": SMALL, **changes})


def test_model_and_processor_agree_on_what_is_predicted():
    model, processor = build_model_and_processor(arguments(trajectory_num_steps=6, mask_ratio=0.5))
    assert model.config.motion_targets == processor.motion_target_config()
    assert model.config.motion_targets["position"]["size"] == 2 * 6 * 4
    assert (model.config.image_size, model.config.num_frames, processor.mask_ratio) == (32, 4, 0.5)


def test_no_options_of_a_tracker_may_be_none():
    assert build_model_and_processor(arguments(processor_options={"tracker_options": None}))[1].tracker == "dis"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preset": "huge"}, r"preset \('huge'\) is unknown. Known presets: tiny"),
        ({"mask_ratio": 1.5}, r"mask_ratio \(1.5\) must be between 0 and 1"),
        ({"mask_type": "stripes"}, "'stripes'"),
        ({"tracker": "eyes"}, r"tracker \('eyes'\) is unknown"),
        ({"camera_motion": "off"}, r"camera_motion \('off'\) is unknown. Choose one of \['keep', 'remove'\]"),
        ({"num_frames": 5}, r"num_frames \(5\) does not divide by tubelet_size \(2\)"),
        ({"image_size": 30}, r"^image_size \(30\) does not divide by patch_size \(16\). .* such as 32"),
        ({"processor_options": {"motion_targets": {"colour": {}}}}, "'colour'"),
        ({"model_options": {**SMALL, "hidden_size": 25}}, r"hidden_size \(25\)"),
        (
            {"model_options": {"drop_pth_rate": 0.1}},
            "model_options has no option drop_pth_rate. Did you mean drop_p",
        ),
        ({"model_options": {"patch_size": 8}}, "model_options sets 'patch_size', which the processor decides"),
        (
            {"processor_options": {"frame_strid": 1}},
            "processor_options has no option frame_strid. Did you mean frame",
        ),
    ],
)
def test_wrong_values_are_named(changes, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        build_model_and_processor(arguments(**changes))


def test_a_tracker_that_lacks_what_it_needs_is_named_unless_its_tracks_are_stored(monkeypatch):
    import cv2

    monkeypatch.delattr(cv2, "optflow", raising=False)
    with pytest.raises(ValueError, match="tracker 'tvl1' needs OpenCV's contrib modules"):
        build_model_and_processor(arguments(tracker="tvl1"))
    build_model_and_processor(arguments(tracker="tvl1", stored_tracks="tracks"))
    with pytest.raises(ValueError, match="tracker 'tvl1' needs OpenCV's contrib modules"):  # held-out clips are tracked
        build_model_and_processor(arguments(tracker="tvl1", stored_tracks="tracks", validation_dir="videos"))


@pytest.mark.parametrize(
    ("changes", "tracker", "words"),
    [
        ({}, "dis", "made on the data workers; points are followed by dis"),
        ({"targets_on": "device"}, "torch", "made on cuda, inside the step; points are followed by torch"),
        ({"targets_on": "device", "tracker": "dis"}, "dis", "followed by dis (which copies all frames to the CPU"),
        ({"targets_on": "device", "stored_tracks": "tracks"}, "dis", "inside the step; tracks are read from tracks"),
        ({"tracker": "torch"}, "torch", "made on the data workers; points are followed by torch"),
    ],
)
def test_a_run_that_names_no_tracker_takes_the_one_that_suits_and_says_so(changes, tracker, words):
    args = arguments(**changes)
    _, processor = build_model_and_processor(args)
    assert processor.tracker == tracker
    assert words in describe_targets(args, processor, torch.device("cuda"))


def test_a_saved_tracker_is_kept_unless_another_is_named(tmp_path):
    for part in build_model_and_processor(arguments(tracker="farneback")):
        part.save_pretrained(tmp_path)
    again = {"model_name_or_path": str(tmp_path), "model_options": None, "targets_on": "device"}
    assert build_model_and_processor(arguments(**again))[1].tracker == "farneback"
    assert build_model_and_processor(arguments(**again, tracker="dis"))[1].tracker == "dis"


def test_a_flag_wins_over_a_checkpoint_though_it_is_what_a_new_model_would_have(tmp_path):
    own = {"frame_stride": 2, "trajectory_num_steps": 2, "mask_type": "cube", "mask_ratio": 0.5}
    for part in build_model_and_processor(arguments(**own, camera_motion="remove")):
        part.save_pretrained(tmp_path)
    again = {"model_name_or_path": str(tmp_path), "model_options": None}
    _, kept = build_model_and_processor(arguments(**again))
    assert {name: getattr(kept, name) for name in own} == own and kept.camera_motion == "remove"
    usual = {"frame_stride": 4, "mask_type": "tube", "mask_ratio": 0.7, "camera_motion": "keep"}
    _, changed = build_model_and_processor(arguments(**again, **usual))
    assert {name: getattr(changed, name) for name in usual} == usual and changed.trajectory_num_steps == 2


@pytest.mark.skipif(hasattr(cv2, "optflow"), reason="OpenCV has its contrib modules here")
def test_a_tracker_that_cannot_run_here_is_named_before_any_video_is_opened():
    with pytest.raises(ValueError, match="tracker 'tvl1' needs OpenCV's contrib modules: pip"):
        build_model_and_processor(arguments(tracker="tvl1"))


def test_camera_motion_goes_from_the_flag_into_the_processor_and_is_saved_with_it(tmp_path):
    args = parse_arguments(PretrainingArguments, ["--camera_motion", "remove", "--image_size", "32"])
    for part in build_model_and_processor(args):
        part.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "video_preprocessor_config.json").read_text())["camera_motion"] == "remove"
    _, processor = build_model_and_processor(arguments(model_name_or_path=str(tmp_path), model_options=None))
    assert processor.camera_motion == "remove"
    _, processor = build_model_and_processor(arguments())
    assert processor.camera_motion == "keep"


def test_weights_that_predict_something_else_are_refused(tmp_path):
    for part in build_model_and_processor(arguments()):
        part.save_pretrained(tmp_path)
    model, _ = build_model_and_processor(arguments(model_name_or_path=str(tmp_path)))
    with pytest.raises(ValueError, match=r"^image_size \(40\) does not divide by patch_size \(16\)"):
        build_model_and_processor(arguments(model_name_or_path=str(tmp_path), image_size=40))
    assert isinstance(model, MMEForPreTraining)
    with pytest.raises(ValueError, match=r"predicts .*'position', 32.* but the processor makes .*'position', 48"):
        build_model_and_processor(
            arguments(model_name_or_path=str(tmp_path), trajectory_num_steps=6, model_options=None)
        )
    with pytest.raises(ValueError, match=r"model_name_or_path \('nowhere'\) cannot be opened"):
        build_model_and_processor(arguments(model_name_or_path="nowhere", model_options=None))
    (tmp_path / "checkpoint-1").mkdir()
    (tmp_path / "checkpoint-1" / "trainer_state.json").write_text("{}")
    with pytest.raises(ValueError, match=r"checkpoint-1'\) is a checkpoint to go on from. .*--resume_from_checkpoint"):
        build_model_and_processor(arguments(model_name_or_path=str(tmp_path / "checkpoint-1"), model_options=None))
    with pytest.raises(ValueError, match=r"model_name_or_path \('.*no/folder'\): there is no such folder"):
        build_model_and_processor(arguments(model_name_or_path=str(tmp_path / "no" / "folder"), model_options=None))


def test_a_loaded_model_says_how_many_frames_and_pixels_it_now_sees(tmp_path):
    for part in build_model_and_processor(arguments()):
        part.save_pretrained(tmp_path)
    again = {"model_name_or_path": str(tmp_path), "model_options": None}
    model, _ = build_model_and_processor(arguments(**again, num_frames=8, image_size=48))
    assert (model.config.num_frames, model.config.image_size) == (8, 48)


def test_the_order_of_the_targets_goes_with_the_weights(tmp_path):
    swapped = {"motion_targets": {"position": {}, "shape": {}}}
    for part in build_model_and_processor(arguments(processor_options=swapped)):
        part.save_pretrained(tmp_path)
    model, processor = build_model_and_processor(arguments(model_name_or_path=str(tmp_path), mask_ratio=0.5))
    assert list(model.config.motion_targets) == list(processor.motion_target_config()) == ["position", "shape"]
    assert processor.mask_ratio == 0.5


@pytest.mark.parametrize(
    "name", ["optimizer", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "preset", "model_options"]
)
def test_a_resumed_run_insists_on_the_model_and_on_what_the_optimizers_state_would_overrule(name):
    _, processor = build_model_and_processor(arguments())
    records = load_records(arguments())[0]
    if name == "optimizer" and not hasattr(torch.optim, "Muon"):
        pytest.skip("Muon came with torch 2.9")
    value = {"optimizer": "muon", "preset": "small", "model_options": {"drop_path_rate": 0.1}}.get(name, 0.5)
    settings = settings_of_the_batches(arguments(**{name: value}), processor, records, 0.0, 1)
    assert settings[name] == value


def test_a_resumed_run_insists_on_streaming_what_was_streamed(video_folder):
    # Shuffled through a buffer the same videos come in another order.
    _, processor = build_model_and_processor(arguments())
    settings = []
    for streaming in (True, False):
        args = arguments(dataset_name=str(video_folder), streaming=streaming, max_train_steps=1)
        settings.append(settings_of_the_batches(args, processor, load_records(args)[0], 0.0, 1))
    assert settings[0] != settings[1]


def test_an_output_folder_that_cannot_be_written_is_an_error_and_nothing_is_made(tmp_path, monkeypatch):
    check_output_dir(tmp_path / "new" / "run")
    (tmp_path / "link").symlink_to(tmp_path / "gone")
    with pytest.raises(ValueError, match="link is a link that leads nowhere. Name a folder"):
        check_output_dir(tmp_path / "link" / "run")
    (tmp_path / "file").write_text("x")
    for name in ("file", "file/run"):
        with pytest.raises(ValueError, match=rf"output_dir \('.*{name}'\).*file'? is a file. Name a folder"):
            check_output_dir(tmp_path / name)
    monkeypatch.setattr("os.access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"output_dir \('.*run'\) may not be written to. Name another folder"):
        check_output_dir(tmp_path / "new" / "run")
    assert {path.name for path in tmp_path.iterdir()} == {"file", "link"}


def test_lengths_count_epochs_in_clips():
    args = arguments(num_train_epochs=10, warmup_epochs=2, samples_per_video=2, per_device_train_batch_size=8)
    assert schedule_lengths(args, 100, 8) == (250, 50)  # 100 videos x 2 clips / 8 = 25 updates an epoch
    assert schedule_lengths(arguments(max_train_steps=7, warmup_steps=3), 100, 8) == (7, 3)
    # 30 x 200 / 24 = 250, though 30 * (200 / 24) is above it.
    assert schedule_lengths(arguments(num_train_epochs=30, warmup_epochs=3), 200, 24) == (250, 25)
    with pytest.raises(ValueError, match="warm-up takes 9 of 7 updates"):
        schedule_lengths(arguments(max_train_steps=7, warmup_steps=9), 100, 8)
    with pytest.raises(ValueError, match=r"warmup_epochs \(1\) needs the number of videos"):
        schedule_lengths(arguments(max_train_steps=7, warmup_epochs=1), None, 8)


def test_held_out_clips_come_from_where_they_are_asked_for(video_folder):
    train, held_out, fraction = load_records(arguments(train_dir=str(video_folder)))
    assert (train.num_records, held_out, fraction) == (6, None, 0.0)
    _, held_out, fraction = load_records(arguments(train_dir=str(video_folder), held_out_fraction=0.3))
    assert (held_out.num_records, fraction) == (6, 0.3)
    other = str(video_folder / "left")
    _, held_out, fraction = load_records(arguments(train_dir=str(video_folder), validation_dir=other))
    assert (held_out.num_records, fraction) == (3, 0.0)
    samples, held_out, fraction = load_records(arguments())
    assert (samples.num_records, held_out, fraction) == (4, samples, 0.2)


@pytest.mark.parametrize("load", [load_records, load_labelled_records])
def test_videos_that_are_trained_on_and_judged_by_are_said_in_one_line(video_folder, caplog, load):
    args = arguments(train_dir=str(video_folder))
    load(args)
    load(replace(args, held_out_fraction=0.3))  # of the same videos, but of frames that training never touches
    assert not caplog.records
    load(replace(args, validation_dir=str(video_folder)))
    (record,) = caplog.records
    names = [str(video_folder / name) for name in ("left/clip_0.mp4", "left/clip_2.mp4", "left/clip_4.mp4")]
    said = f"WARNING: 6 of 6 validation videos are also trained on: {', '.join(names)} and 3 more"
    assert record.getMessage() == said


def test_a_missing_file_is_reported_once_though_videos_are_held_out_of_too(video_folder, tmp_path):
    video = next(video_folder.rglob("*.mp4"))
    (tmp_path / "train.txt").write_text(f"{video} 0\ngone.mp4 0\n")
    train, held_out, _ = load_records(arguments(train_manifest=str(tmp_path / "train.txt"), held_out_fraction=0.3))
    assert [len(records.missing_files) for records in (train, held_out)] == [1, 0]


def test_targets_and_weights_come_from_the_flag_and_go_into_model_and_processor(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    args = arguments(motion_targets=["pixels:2", "position", "features:0.25"], teacher=teacher)
    model, processor = build_model_and_processor(args)
    weights = {name: target["weight"] for name, target in model.config.motion_targets.items()}
    assert weights == {"pixels": 2.0, "position": 1.0, "features": 0.25}
    assert processor.motion_targets["features"]["teacher"] == teacher
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)

    other = ["pixels:3", "position", "features"]
    model, processor = build_model_and_processor(
        arguments(model_name_or_path=str(tmp_path), model_options=None, motion_targets=other, teacher=teacher)
    )
    assert model.config.motion_targets == processor.motion_target_config()
    assert model.config.motion_targets["pixels"]["weight"] == 3.0
    sigmoid = {
        "motion_targets": {"pixels": {"activation": "sigmoid"}, "position": {}, "features": {"teacher": teacher}}
    }
    with pytest.raises(ValueError, match="'pixels' was trained with activation 'linear', and 'sigmoid' is asked for"):
        build_model_and_processor(
            arguments(model_name_or_path=str(tmp_path), model_options=None, processor_options=sigmoid)
        )
    assert set(model.visible_heads) == {"position", "features"}


def test_a_run_that_is_pushed_takes_no_teacher_of_this_machine_however_it_is_named(tmp_path):
    teacher = save_teacher(tmp_path / "teacher")
    targets = {"features": {"teacher": teacher}}
    for flags in (
        {"motion_targets": ["features"], "teacher": teacher},
        {"motion_targets": [json.dumps(targets)]},
        {"processor_options": {"motion_targets": targets}},
    ):
        build_model_and_processor(arguments(**flags))
        with pytest.raises(ValueError, match=r"teacher \('.*'\) is a folder here, .* Push the teacher first"):
            build_model_and_processor(arguments(**flags, push_to_hub=True))


def test_a_loaded_model_keeps_its_visible_weights_or_loses_their_layers(tmp_path):
    model, processor = build_model_and_processor(arguments(motion_targets=["shape", "position"]))
    model.save_pretrained(tmp_path / "both")
    processor.save_pretrained(tmp_path / "both")

    def build(folder, targets):
        return build_model_and_processor(
            arguments(
                model_name_or_path=str(tmp_path / folder),
                model_options=None,
                processor_options={"motion_targets": targets},
            )
        )

    model, processor = build("both", {"shape": {"weight": 2.0}, "position": {"visible_weight": 0.0}})
    assert set(model.visible_heads) == {"shape"} and model.config.motion_targets == processor.motion_target_config()
    assert model.loss_weights == {"shape": 1.0, "visible_shape": 1.0, "position": 1.0}
    model.save_pretrained(tmp_path / "one")
    processor.save_pretrained(tmp_path / "one")
    # What was trained without goes on without, unless it is asked for what it cannot do.
    model, processor = build("one", {"shape": {}, "position": {"weight": 0.5}})
    assert model.loss_weights == {"shape": 1.5, "visible_shape": 1.5, "position": 0.5}
    assert model.config.motion_targets == processor.motion_target_config()
    with pytest.raises(ValueError, match="'position' was trained without a visible_weight, and 1.0 is asked for"):
        build("one", {"shape": {}, "position": {"visible_weight": 1.0}})


def test_a_target_of_ones_own_may_leave_the_visible_weight_out(tmp_path, monkeypatch):
    class Pixels(PixelsTarget):
        name = "own"

        def __init__(self, weight=1.0):
            object.__setattr__(self, "weight", weight)
            object.__setattr__(self, "visible_weight", 0.0)

    monkeypatch.setattr(Pixels, "__dataclass_fields__", {})
    monkeypatch.setitem(MOTION_TARGETS, "own", Pixels)
    model, processor = build_model_and_processor(arguments(motion_targets=["own", "position"]))
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    other = arguments(model_name_or_path=str(tmp_path), model_options=None, motion_targets=["own:2", "position"])
    model, processor = build_model_and_processor(other)
    assert model.loss_weights == {"own": 2.0, "position": 0.5, "visible_position": 0.5}
    assert "visible_weight" not in processor.motion_targets["own"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"motion_targets": ["shape:x"]}, "motion_targets has 'shape:x'; it must be a name, or a name and a weight"),
        ({"motion_targets": ["shape", "shape:2"]}, "names 'shape' twice"),
        ({"motion_targets": ["colour"]}, r"motion target \('colour'\) is unknown"),
        ({"motion_targets": ["shape:-1"]}, r"shape: weight \(-1.0\) must be a finite number"),
        ({"motion_targets": ["position:0"]}, r"weights \{'position': 0.0\}: nothing would be trained. Give"),
        ({"motion_targets": ["{shape"]}, "is not JSON"),
        ({"motion_targets": ["shape"], "processor_options": {"motion_targets": {}}}, "both say what is predicted"),
        ({"teacher": "somewhere"}, r"teacher \('somewhere'\) has nothing to teach"),
        ({"motion_targets": ["features"]}, r"features: teacher \(None\) must be the folder or Hub name"),
    ],
)
def test_targets_that_cannot_be_made_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        build_model_and_processor(arguments(**changes))
