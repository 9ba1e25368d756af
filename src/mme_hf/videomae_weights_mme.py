"""How a VideoMAE of transformers becomes an MME model: the same encoder and classifier under other names."""

from typing import Any

from transformers import PreTrainedConfig

# Pattern -> replacement, applied one after another to every name in the checkpoint; files of transformers 4 have
# q_bias and v_bias.
VIDEOMAE_KEY_MAPPING = {
    r"^videomae\.": "mme.",
    r"encoder\.layer\.(\d+)\.": r"layers.\1.",
    r"attention\.attention\.q_bias": "attention.q_proj.bias",
    r"attention\.attention\.v_bias": "attention.v_proj.bias",
    r"attention\.attention\.query": "attention.q_proj",
    r"attention\.attention\.key": "attention.k_proj",
    r"attention\.attention\.value": "attention.v_proj",
    r"attention\.output\.dense": "attention.o_proj",
    r"intermediate\.dense": "mlp.fc1",
    r"output\.dense": "mlp.fc2",
}
# The decoder, which predicts other things, and a bias of the key, which some files have though softmax cancels it.
VIDEOMAE_KEYS_LEFT_OUT = [
    r"^decoder\.(decoder_layers|norm|head)\.",
    r"^encoder_to_decoder\.",
    r"^mask_token$",
    r"attention\.k_proj\.bias$",
]
# The same in both; the decoder's fields are left out: MME's predicts other things.
_SHARED_FIELDS = (
    "attention_probs_dropout_prob",
    "hidden_act",
    "hidden_dropout_prob",
    "hidden_size",
    "id2label",
    "image_size",
    "initializer_range",
    "intermediate_size",
    "label2id",
    "layer_norm_eps",
    "num_attention_heads",
    "num_channels",
    "num_frames",
    "num_hidden_layers",
    "patch_size",
    "problem_type",
    "tubelet_size",
    "use_mean_pooling",
)
# transformers' VideoMAE normalises pooled features with torch's default, not with its own layer_norm_eps.
_VIDEOMAE_FC_NORM_EPS = 1e-5
_WHERE_TO_LOOK = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


def config_dict_of_videomae(pretrained_model_name_or_path: Any, kwargs: dict[str, Any]) -> dict[str, Any] | None:
    """Return the configuration of a VideoMAE checkpoint as it stands in its file, or None for any other checkpoint.

    Args:
        pretrained_model_name_or_path: A folder or a name on the Hub.
        kwargs: Of `from_pretrained`; those that say where to look are used.

    Raises:
        ValueError: If it is of another kind of model, whose weights would be left out one and all.
    """
    if pretrained_model_name_or_path is None:  # weights come as a state_dict
        return None
    try:
        values = config_dict_at(pretrained_model_name_or_path, kwargs)
    except OSError:  # from_pretrained says what is missing
        return None
    model_type = values.get("model_type")
    if model_type not in (None, "mme", "videomae"):
        raise ValueError(
            f"{str(pretrained_model_name_or_path)!r} is a model of type {model_type!r}, which has no weights for MME. "
            "Name an MME or a VideoMAE."
        )
    return values if model_type == "videomae" else None


def config_dict_at(name: Any, kwargs: dict[str, Any]) -> dict[str, Any]:
    """Return a configuration as it stands in its file.

    Args:
        name: The file, its folder, or a name on the Hub.
        kwargs: Of `from_pretrained`; those that say where to look are used.
    """
    where = {key: kwargs[key] for key in _WHERE_TO_LOOK if key in kwargs}
    return PreTrainedConfig.get_config_dict(name, **where)[0]


def mme_fields_of_videomae(values: dict[str, Any]) -> dict[str, Any]:
    """Return fields of `MMEConfig` from those of a `VideoMAEConfig`."""
    fields = {name: values[name] for name in _SHARED_FIELDS if name in values}
    architectures = values.get("architectures") or ()
    if architectures and not any(name.endswith("ForVideoClassification") for name in architectures):
        # No classifier was ever trained with it: transformers' converter wrote False into every checkpoint of
        # pre-training, in whose first token nothing is gathered.
        fields.pop("use_mean_pooling", None)
    # Defaults are not in the file where they were left out, and MMEConfig's are others.
    fields.setdefault("layer_norm_eps", 1e-12)
    # qkv_bias in transformers 4 and in early versions of 5.
    fields["qkv_bias"] = values.get("qv_bias", values.get("qkv_bias", True))
    patch_size = fields.get("patch_size", 16)
    if not isinstance(patch_size, int):
        if len(set(patch_size)) > 1:
            raise ValueError(f"patch_size ({patch_size}) of this VideoMAE is not square; MME's patches are.")
        fields["patch_size"] = patch_size[0]
    return {**fields, "fc_norm_eps": _VIDEOMAE_FC_NORM_EPS}


__all__ = [
    "VIDEOMAE_KEYS_LEFT_OUT",
    "VIDEOMAE_KEY_MAPPING",
    "config_dict_at",
    "config_dict_of_videomae",
    "mme_fields_of_videomae",
]
