"""What is wrong with a folder that a classifier is to be loaded from is said in one line, before anything is loaded."""

import json

import pytest
from small_classifiers import save_small_classifier

from mme_hf.training.classifiers import load_classifier
from mme_hf.training.judging_arguments import EvaluationArguments


def load(folder):
    return load_classifier(EvaluationArguments(model_name_or_path=str(folder), validation_dir="videos"))


def test_a_saved_classifier_is_loaded_with_its_processor(tmp_path):
    model, processor = load(save_small_classifier(tmp_path, ["run", "jump"]))
    assert not model.training and processor.num_frames == 4


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", json.dumps({"model_type": "bert"}), "is a model of type 'bert'.*mme or videomae"),
        ("config.json", '{"model_type": "mm', "config.json cannot be read"),
        ("config.json", "[]", "config.json cannot be read"),
        ("model.safetensors", "no weights", "cannot be opened: .*header"),
        ("video_preprocessor_config.json", "{", "video_preprocessor_config.json cannot be loaded"),
    ],
)
def test_a_damaged_or_strange_folder_is_a_value_error(tmp_path, file, content, message):
    folder = save_small_classifier(tmp_path, ["run", "jump"])
    (folder / file).write_text(content)
    with pytest.raises(ValueError, match=message):
        load(folder)
