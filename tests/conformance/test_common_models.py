"""transformers' common tests of models and configurations, on our three classes and on VideoMAE's."""

import unittest

import torch
from transformers import (
    VideoMAEConfig,
    VideoMAEForPreTraining,
    VideoMAEForVideoClassification,
    VideoMAEModel,
)
from transformers.models.auto import modeling_auto
from transformers.testing_utils import torch_device
from video_models import VideoModelTester, VideoModelTests

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEModel

TARGETS = {
    "shape": {"size": 6, "activation": "linear", "weight": 15.0},
    "position": {"size": 4, "activation": "linear", "weight": 1.0, "visible_weight": 1.0},
}

# The common tests find out by name what a model is for, and would train an encoder that has no loss.
modeling_auto.MODEL_MAPPING_NAMES["mme"] = "MMEModel"
modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES["mme"] = "MMEForPreTraining"
modeling_auto.MODEL_FOR_VIDEO_CLASSIFICATION_MAPPING_NAMES["mme"] = "MMEForVideoClassification"


class MMEModelTest(VideoModelTests, unittest.TestCase):
    all_model_classes = (MMEModel, MMEForPreTraining, MMEForVideoClassification)
    pretraining_class = MMEForPreTraining
    classification_class = MMEForVideoClassification

    def setUp(self):
        self.model_tester = VideoModelTester(MMEConfig, motion_head_hidden_size=16, motion_targets=TARGETS)

    def labels_for(self, model_class, batch_size):
        if model_class is not MMEForPreTraining:
            return super().labels_for(model_class, batch_size)
        num_values = sum(target["size"] for target in TARGETS.values())
        return {"labels": torch.zeros(batch_size, self.model_tester.num_tokens, num_values, device=torch_device)}

    def test_model_get_set_embeddings(self):
        super().test_model_get_set_embeddings()
        for model_class in self.all_model_classes:
            model, layer = model_class(self.model_tester.get_config()), torch.nn.Identity()
            model.set_input_embeddings(layer)
            self.assertIs(model.get_input_embeddings(), layer)


class VideoMAEModelTest(VideoModelTests, unittest.TestCase):
    all_model_classes = (VideoMAEModel, VideoMAEForPreTraining, VideoMAEForVideoClassification)
    pretraining_class = VideoMAEForPreTraining
    classification_class = VideoMAEForVideoClassification

    def setUp(self):
        self.model_tester = VideoModelTester(VideoMAEConfig)
