"""One small model of videos, of our classes or of VideoMAE's, as transformers' common tests want it described."""

import copy

import torch
from archive import import_common
from torch import nn
from transformers.testing_utils import torch_device

common = import_common("test_modeling_common")
ConfigTester = import_common("test_configuration_common").ConfigTester


class VideoModelTester:
    """Sizes of the model and of a batch. Names are those that the common tests read."""

    batch_size = 13
    num_frames = 2
    num_channels = 3
    image_size = 10
    patch_size = 2
    tubelet_size = 2
    hidden_size = 32
    num_hidden_layers = 2
    num_attention_heads = 4
    num_tokens = 25
    num_masks = 22
    seq_length = num_tokens
    is_training = True

    def __init__(self, config_class: type, **own_fields):
        self.config_class = config_class
        self.own_fields = own_fields

    def get_config(self):
        return self.config_class(
            image_size=self.image_size,
            patch_size=self.patch_size,
            num_channels=self.num_channels,
            num_frames=self.num_frames,
            tubelet_size=self.tubelet_size,
            hidden_size=self.hidden_size,
            num_hidden_layers=self.num_hidden_layers,
            num_attention_heads=self.num_attention_heads,
            intermediate_size=37,
            hidden_dropout_prob=0.1,
            attention_probs_dropout_prob=0.1,
            decoder_hidden_size=self.hidden_size,
            decoder_num_hidden_layers=self.num_hidden_layers,
            decoder_num_attention_heads=self.num_attention_heads,
            decoder_intermediate_size=37,
            **self.own_fields,
        )

    def prepare_config_and_inputs_for_common(self):
        shape = (self.batch_size, self.num_frames, self.num_channels, self.image_size, self.image_size)
        return self.get_config(), {"pixel_values": common.floats_tensor(shape)}

    prepare_config_and_inputs = prepare_config_and_inputs_for_common


class VideoModelTests(common.ModelTesterMixin):
    """What a class of tests needs besides its models: inputs, and the lengths of sequences.

    The one thing overridden is how many tokens a block of the encoder sees: in pre-training the visible ones alone,
    where the common tests expect the same number of all models.
    """

    # Nothing is embedded by number.
    test_resize_embeddings = False
    additional_model_inputs = ("bool_masked_pos",)
    pretraining_class = None
    classification_class = None

    def _prepare_for_class(self, inputs_dict, model_class, return_labels=False):
        inputs = copy.deepcopy(inputs_dict)
        batch_size = len(inputs["pixel_values"])
        if model_class is self.pretraining_class:
            is_masked = torch.arange(self.model_tester.num_tokens, device=torch_device) < self.model_tester.num_masks
            inputs["bool_masked_pos"] = is_masked.expand(batch_size, -1)
        if return_labels:
            inputs.update(self.labels_for(model_class, batch_size))
        return inputs

    def _video_features_prepare_config_and_inputs(self):
        # The common one renames the pixels to those of a model of text and videos.
        return self.model_tester.prepare_config_and_inputs_for_common()

    def labels_for(self, model_class, batch_size):
        if model_class is not self.classification_class:
            return {}
        return {"labels": torch.zeros(batch_size, dtype=torch.long, device=torch_device)}

    def test_config(self):
        ConfigTester(self, self.model_tester.config_class, has_text_modality=False, hidden_size=48).run_common_tests()

    def test_inputs_embeds(self):
        self.skipTest("Videos are pixels; there is nothing to give in place of token numbers.")

    def test_model_get_set_embeddings(self):
        """The common test without its demand for an `nn.Embedding`, which transformers drops for VideoMAE as well."""
        for model_class in self.all_model_classes:
            model = model_class(self.model_tester.get_config())
            self.assertIsInstance(model.get_input_embeddings(), nn.Module)
            self.assertIsNone(model.get_output_embeddings())

    def test_attention_outputs(self):
        self._class_by_class(super().test_attention_outputs)

    def test_hidden_states_output(self):
        self._class_by_class(super().test_hidden_states_output)

    def _class_by_class(self, test):
        tester = self.model_tester
        for model_class in type(self).all_model_classes:
            self.all_model_classes = (model_class,)
            num_hidden = tester.num_masks if model_class is self.pretraining_class else 0
            tester.seq_length = tester.num_tokens - num_hidden
            test()
