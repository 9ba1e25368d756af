import logging

import pytest
from transformers import (
    VideoMAEConfig,
    VideoMAEForVideoClassification,
    VideoMAEImageProcessor,
    VideoMAEVideoProcessor,
)

from mme_hf import MMEConfig, MMEVideoProcessor
from mme_hf.training.labelled_data import LabelledDataArguments, label_names_of, processor_of


def args(**flags):
    return LabelledDataArguments(**flags)


def test_a_saved_processor_is_changed_by_flags_alone(tmp_path):
    saved = MMEVideoProcessor(num_frames=8, frame_stride=3, size={"shortest_edge": 128}, image_mean=[0.1, 0.2, 0.3])
    saved.save_pretrained(tmp_path)
    config = MMEConfig(num_frames=8)
    same = processor_of(str(tmp_path), config, args())
    assert same.to_dict() == saved.to_dict()
    changed = processor_of(str(tmp_path), config, args(num_frames=16, frame_stride=1, image_size=160))
    assert (changed.num_frames, changed.frame_stride, changed.size["shortest_edge"]) == (16, 1, 160)
    assert changed.crop_size["width"] == 160 and list(changed.image_mean) == [0.1, 0.2, 0.3]


def test_a_checkpoint_without_a_processor_of_ours_gets_one_for_its_usual_input(tmp_path):
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    VideoMAEForVideoClassification(VideoMAEConfig(image_size=64, num_frames=8, **sizes)).save_pretrained(tmp_path)
    config = MMEConfig(image_size=64, num_frames=8)
    processor = processor_of(str(tmp_path), config, args(frame_stride=2))
    assert (processor.num_frames, processor.frame_stride, processor.crop_size["height"]) == (8, 2, 64)


@pytest.mark.parametrize("kind", [VideoMAEImageProcessor, VideoMAEVideoProcessor])
def test_a_processor_of_another_class_gives_its_normalisation_alone(kind, tmp_path, caplog):
    caplog.set_level(logging.INFO)
    kind(image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6]).save_pretrained(tmp_path)
    processor = processor_of(str(tmp_path), MMEConfig(image_size=64, num_frames=8), args())
    assert list(processor.image_mean) == [0.1, 0.2, 0.3] and list(processor.image_std) == [0.4, 0.5, 0.6]
    assert (processor.num_frames, processor.crop_size["height"]) == (8, 64)
    assert "processor: a new one" in caplog.text


def test_a_processor_of_ours_that_is_damaged_is_not_replaced(tmp_path):
    (tmp_path / "video_preprocessor_config.json").write_text("{")
    with pytest.raises(ValueError, match="not a valid JSON file"):
        processor_of(str(tmp_path), MMEConfig(), args())


def test_sizes_that_do_not_fit_the_model_are_refused(tmp_path):
    MMEVideoProcessor().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"num_frames \(7\) does not divide by tubelet_size \(2\)"):
        processor_of(str(tmp_path), MMEConfig(), args(num_frames=7))
    with pytest.raises(ValueError, match=r"image_size \(100\) does not divide by patch_size \(16\)"):
        processor_of(str(tmp_path), MMEConfig(), args(image_size=100))


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"frame_sampling": "sparse"}, r"frame_sampling \('sparse'\) must be one of"),
        ({"num_frames": 0}, r"num_frames \(0\) must be at least 1"),
        ({"dataloader_num_workers": -1}, r"dataloader_num_workers \(-1\) must be at least 0"),
        ({"reader": "vlc"}, r"reader \('vlc'\) must be one of"),
        ({"validation_dir": "a", "validation_split": "b"}, "validation_split and validation_dir name different data"),
    ],
)
def test_flags_out_of_range_are_refused(flags, message):
    with pytest.raises(ValueError, match=message):
        args(**flags).check_data()


def test_names_of_classes_come_in_their_order():
    config = MMEConfig(id2label={1: "run", 0: "jump"}, label2id={"run": 1, "jump": 0})
    assert label_names_of(config) == ("jump", "run")
