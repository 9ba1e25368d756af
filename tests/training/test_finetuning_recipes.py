"""The recipes of fine-tuning have the published settings."""

from pathlib import Path

import pytest
import yaml

CONFIGS = Path(__file__).parents[2] / "examples" / "configs"
# Epochs, learning rate for 256 videos, sampling, raw frames between two, segments and crops of the test, flips.
PUBLISHED = {
    "k400": (75, 1e-3, "dense", 4, 7, 3, True),
    "ssv2": (30, 5e-4, "segments", None, 2, 3, False),
    "ucf101": (100, 1e-3, "dense", 4, 10, 3, True),
    "hmdb51": (100, 1e-3, "dense", 4, 10, 3, True),
}
OF_ALL = {
    "num_frames": 16,
    "image_size": 224,
    "adam_beta1": 0.9,
    "adam_beta2": 0.999,
    "weight_decay": 0.05,
    "warmup_epochs": 5,
    "layer_decay": 0.75,
    "drop_path_rate": 0.1,
    "label_smoothing": 0.1,
    "mixup_alpha": 0.8,
    "cutmix_alpha": 1.0,
    "random_erasing_probability": 0.25,
    "rand_augment_magnitude": 7,
    "rand_augment_num_ops": 4,
    "samples_per_video": 2,
    "min_crop_scale": 0.25,
    "ema_decay": None,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_settings_are_met(name):
    text = (CONFIGS / f"finetune-{name}.yaml").read_text()
    recipe = yaml.safe_load(text)
    epochs, rate_of_videos, sampling, stride, segments, crops, flips = PUBLISHED[name]
    assert {key: recipe[key] for key in OF_ALL} == OF_ALL
    assert (recipe["num_train_epochs"], recipe["frame_sampling"], recipe.get("frame_stride")) == (
        epochs,
        sampling,
        stride,
    )
    assert f"evaluate.py --num_eval_segments {segments} --num_eval_crops {crops}" in text
    assert recipe["flip_probability"] == (0.5 if flips else 0.0)
    # The published batch counts videos, the recipe's counts clips: the rate of the same update must not differ.
    for rate, published in (("learning_rate", rate_of_videos), ("min_learning_rate", 1e-6)):
        assert recipe[rate] * recipe["samples_per_video"] == pytest.approx(published)
