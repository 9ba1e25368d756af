"""Small models with random weights that a page can be shown with: one predicts motion, the other is sure of itself."""

from __future__ import annotations

from pathlib import Path

import torch
from small_classifiers import save_small_classifier

from mme_hf import MMEConfig, MMEForPreTraining, MMEForVideoClassification, MMEVideoProcessor


def save_small_predictor(folder: Path) -> Path:
    """Save a model that predicts shape and position of 4 frames 2 apart of 32 px."""
    size = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    processor = MMEVideoProcessor(num_frames=4, frame_stride=2, **size)
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    decoder = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2, "decoder_intermediate_size": 32}
    targets = {"motion_targets": processor.motion_target_config()}
    torch.manual_seed(0)
    MMEForPreTraining(MMEConfig(image_size=32, num_frames=4, **small, **decoder, **targets)).save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def save_sure_classifier(folder: Path) -> Path:
    """Save a classifier of "fall", "jump" and "run" whose scores are far from equal."""
    save_small_classifier(folder, ["fall", "jump", "run"])
    model = MMEForVideoClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.classifier.weight, generator=torch.Generator().manual_seed(0))
    model.save_pretrained(folder)
    return folder
