"""Named model sizes: `preset_config("small")`."""

from typing import Any

from .configuration_mme import MMEConfig, check_config_names

# Only what differs from MMEConfig's defaults, which are the published ViT-B.
PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {
        "image_size": 112,
        "num_frames": 8,
        "hidden_size": 192,
        "num_hidden_layers": 6,
        "num_attention_heads": 3,
        "intermediate_size": 768,
        "decoder_hidden_size": 96,
        "decoder_num_attention_heads": 3,
        "decoder_intermediate_size": 384,
    },
    "small": {
        "hidden_size": 384,
        "num_attention_heads": 6,
        "intermediate_size": 1536,
        "decoder_num_attention_heads": 3,
    },
    "base": {},
    "large": {
        "hidden_size": 1024,
        "num_hidden_layers": 24,
        "num_attention_heads": 16,
        "intermediate_size": 4096,
        "decoder_hidden_size": 512,
        "decoder_num_attention_heads": 8,
        "decoder_intermediate_size": 2048,
    },
}


def preset_config(name: str, **overrides: Any) -> MMEConfig:
    """Return the configuration of a named size.

    Args:
        name: One of tiny (112 px, 8 frames; trains on a CPU), small, base, large.
        **overrides: Fields of [`MMEConfig`] to set otherwise.

    Raises:
        ValueError: If there is no such preset or field; names those there are.
    """
    if name not in PRESETS:
        raise ValueError(f"preset ({name!r}) is unknown. Known presets: {', '.join(PRESETS)}.")
    check_config_names(overrides)
    return MMEConfig(**{**PRESETS[name], **overrides})


__all__ = ["PRESETS", "preset_config"]
