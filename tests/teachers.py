"""Image models to learn features from, tiny and random."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    CLIPConfig,
    CLIPModel,
    Dinov2WithRegistersConfig,
    Dinov2WithRegistersModel,
    SwinConfig,
    SwinModel,
    ViTConfig,
    ViTImageProcessor,
    ViTModel,
)

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
KINDS = ("vit", "clip", "dinov2", "swin")


def save_teacher(folder: Path, kind: str = "vit") -> str:
    """Save a random teacher of 32 x 32 px images, with an image processor where it is a ViT; return its folder."""
    torch.manual_seed(0)
    sizes = {**TINY, "image_size": 32, "patch_size": 8}
    if kind == "vit":
        model = ViTModel(ViTConfig(**sizes))
        ViTImageProcessor(image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.6, 0.7], size=32).save_pretrained(folder)
    elif kind == "clip":
        text = {**TINY, "vocab_size": 20, "max_position_embeddings": 8, "bos_token_id": 0, "eos_token_id": 1}
        model = CLIPModel(CLIPConfig(vision_config=sizes, text_config=text, projection_dim=8))
    elif kind == "dinov2":
        model = Dinov2WithRegistersModel(Dinov2WithRegistersConfig(**sizes, mlp_ratio=1, num_register_tokens=3))
    else:
        depth = {"depths": [1, 1], "num_heads": [1, 2], "embed_dim": 8, "window_size": 2}
        model = SwinModel(SwinConfig(image_size=32, patch_size=4, **depth))
    model.save_pretrained(folder)
    return str(folder)
