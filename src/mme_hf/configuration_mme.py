"""MMEConfig: every size and choice of a Masked Motion Encoding model, checked before any work is done."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import field, fields
from typing import Any, ClassVar

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN
from transformers.utils import logging

from .names_mme import KEYS_NOT_KEPT, check_names
from .videomae_weights_mme import mme_fields_of_videomae

logger = logging.get_logger(__name__)

# What a target's head may end in; the model maps each name to a function.
TARGET_ACTIVATIONS = ("linear", "sigmoid", "tanh")

_POSITIVE_INTEGERS = (
    "patch_size",
    "num_channels",
    "num_frames",
    "tubelet_size",
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "intermediate_size",
    "decoder_hidden_size",
    "decoder_num_hidden_layers",
    "decoder_num_attention_heads",
    "decoder_intermediate_size",
    "motion_head_hidden_size",
)
# What transformers' configuration takes without having a field for it.
_NAMES_BESIDE_THE_FIELDS = frozenset(
    ("attn_implementation", "name_or_path", "num_labels", "output_attentions", "torch_dtype", "use_return_dict")
)
# Key that `from_dict` adds, for `__post_init__` to know what nobody typed.
_IS_SAVED = "_is_saved"
_PROBABILITIES = ("hidden_dropout_prob", "attention_probs_dropout_prob", "drop_path_rate")


def default_motion_targets() -> dict[str, dict[str, Any]]:
    """Return the pair of targets that a default `MMEVideoProcessor` makes, at the published sizes."""
    return {
        "shape": {"size": 108, "activation": "linear", "weight": 3.0, "visible_weight": 1.0},
        "position": {"size": 32, "activation": "linear", "weight": 1.0, "visible_weight": 1.0},
    }


@strict
class MMEConfig(PreTrainedConfig):
    """The configuration of all MME models; the defaults are ViT-B as published.

    `image_size` and `num_frames` describe the usual input and are no limit: the positions are fixed sinusoids, so a
    model takes any frame size and count that `patch_size` and `tubelet_size` divide.

    Args:
        image_size: Height and width of a frame in pixels, one number or `[height, width]`.
        patch_size: Height and width of a token in pixels.
        num_channels: Channels of a frame.
        num_frames: Frames of a clip.
        tubelet_size: Frames of a token.
        hidden_size: Width of the encoder. Even, and a multiple of `num_attention_heads`.
        num_hidden_layers: Blocks of the encoder.
        num_attention_heads: Attention heads of an encoder block.
        intermediate_size: Hidden width of an encoder block's MLP.
        hidden_act: Activation in every MLP, a name known to transformers (`"gelu"` is the exact, erf form).
        hidden_dropout_prob: Dropout on embeddings and on what each block adds, in [0, 1).
        attention_probs_dropout_prob: Dropout on attention probabilities, in [0, 1).
        drop_path_rate: Chance that the last encoder block is skipped for a clip, in [0, 1); grows linearly from 0.
        initializer_range: Standard deviation of the mask token at the start; linear layers start Xavier-uniform.
        frame_difference_gain: How much more than what the frames of a tubelet share the patch embedding weighs, at the
            start, what differs between them. Above 0; 1 treats both alike. The frames of a tubelet are nearly equal,
            and all motion is in that small difference: `benchmarks/learns_motion.py` has what the gain does.
        layer_norm_eps: Epsilon of every LayerNorm.
        qkv_bias: Whether query and value have a bias. The key never has one: softmax would cancel it.
        use_mean_pooling: Whether a classifier averages the tokens; it takes the first one otherwise, as some VideoMAE
            checkpoints do.
        use_attentive_pooling: Whether a learnt query gathers what a classifier needs from the tokens instead.
        fc_norm_eps: Epsilon of a classifier's LayerNorm of pooled features.
        decoder_hidden_size: Width of the decoder. Even, and a multiple of `decoder_num_attention_heads`.
        decoder_num_hidden_layers: Blocks of the decoder, at least 1: without one a mask token learns nothing.
        decoder_num_attention_heads: Attention heads of a decoder block.
        decoder_intermediate_size: Hidden width of a decoder block's MLP.
        motion_head_hidden_size: Hidden width of each target's head.
        motion_targets: What the heads predict, name -> {"size": values per token, "activation": one of
            "linear", "sigmoid", "tanh", "weight": factor in the loss, and optionally "visible_weight": how much its
            error at visible tokens counts beside that at masked ones, 0 where it is left out}; the loss has weight *
            (masked error + visible_weight * visible error) / (1 + visible_weight). Its order is the order
            of the columns of `labels` and `logits`.

    Raises:
        StrictDataclassFieldValidationError: If a value has the wrong type; names the field and the value.
        StrictDataclassClassValidationError: If a value is out of range or does not fit another; names both.
    """

    model_type = "mme"
    # The other name that transformers' configurations have for it.
    attribute_map: ClassVar[dict[str, str]] = {"layer_norm_epsilon": "layer_norm_eps"}
    # A mapping of scalars, which Trainer.predict could not stack.
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["target_losses"]
    # What `from_pretrained(..., distributed_config=)` shards: each block is a unit, the rest one more.
    base_model_fsdp_plan: ClassVar[dict[str, str]] = {"layers.*": "free_full_weight"}

    image_size: int | list[int] | tuple[int, int] = 224
    patch_size: int = 16
    num_channels: int = 3
    num_frames: int = 16
    tubelet_size: int = 2
    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    intermediate_size: int = 3072
    hidden_act: str = "gelu"
    hidden_dropout_prob: float | int = 0.0
    attention_probs_dropout_prob: float | int = 0.0
    drop_path_rate: float | int = 0.0
    initializer_range: float | int = 0.02
    frame_difference_gain: float | int = 16.0
    layer_norm_eps: float | int = 1e-6
    qkv_bias: bool = True
    use_mean_pooling: bool = True
    use_attentive_pooling: bool = False
    fc_norm_eps: float | int = 1e-6
    decoder_hidden_size: int = 192
    decoder_num_hidden_layers: int = 1
    decoder_num_attention_heads: int = 6
    decoder_intermediate_size: int = 768
    motion_head_hidden_size: int = 512
    motion_targets: dict[str, dict] | list[dict] = field(default_factory=default_motion_targets)

    def __post_init__(self, **kwargs):
        # transformers keeps what it does not know, for files of other versions; a misspelt field would go unread.
        if kwargs.pop(_IS_SAVED, False):
            _warn_of_misspelt_names(kwargs)
        else:
            check_names("MMEConfig", kwargs, _known_names(), misspelt_only=True)
        kwargs = {name: value for name, value in kwargs.items() if name not in KEYS_NOT_KEPT}
        if isinstance(self.image_size, tuple):
            self.image_size = list(self.image_size)
        super().__post_init__(**kwargs)

    @property
    def frame_size(self) -> tuple[int, int]:
        """Height and width of a frame in pixels."""
        if isinstance(self.image_size, int):
            return self.image_size, self.image_size
        height, width = self.image_size
        return height, width

    @property
    def token_grid(self) -> tuple[int, int, int]:
        """Tubelets, rows and columns of tokens in a clip of `num_frames` frames of `image_size`."""
        height, width = self.frame_size
        return self.num_frames // self.tubelet_size, height // self.patch_size, width // self.patch_size

    @property
    def num_tokens(self) -> int:
        """Tokens in a clip of `num_frames` frames of `image_size`."""
        return math.prod(self.token_grid)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> "MMEConfig":
        """Return a configuration of saved fields, and others in place of some, which are checked as these are.

        Fields of a VideoMAE become those of the model that its weights make. A saved field that looks like a misspelt
        one may be a later version's: it is kept and pointed out. In `kwargs` it is an error.
        """
        check_names("MMEConfig", kwargs, _known_names(), misspelt_only=True)
        if config_dict.get("model_type") == "videomae":
            config_dict = mme_fields_of_videomae(config_dict)
        # transformers sets them on the finished configuration, past its checks.
        changed = {name: kwargs.pop(name) for name in _own_names() & set(kwargs)}
        return super().from_dict({**config_dict, **changed, _IS_SAVED: True}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields as plain values; `motion_targets` as a list, whose order survives JSON.

        transformers writes JSON with sorted keys. As a mapping the targets would come back in alphabetical order,
        and every trained head would be read as another one.
        """
        output = super().to_dict()
        if isinstance(self.motion_targets, Mapping):
            output["motion_targets"] = [{"name": name, **target} for name, target in self.motion_targets.items()]
        return output

    def validate_sizes(self):
        """Check that every count and size is at least 1, every rate in [0, 1), every scale above 0."""
        for name in _POSITIVE_INTEGERS:
            value = getattr(self, name)
            if value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1. Give a positive number.")
        for name in _PROBABILITIES:
            value = getattr(self, name)
            if not 0 <= value < 1:
                raise ValueError(f"{name} ({value}) must be in [0, 1). Use 0 to switch it off.")
        for name in ("initializer_range", "frame_difference_gain", "layer_norm_eps", "fc_norm_eps"):
            value = getattr(self, name)
            if not 0 < value < math.inf:
                raise ValueError(f"{name} ({value}) must be a finite number above 0.")

    def validate_widths(self):
        """Check that heads divide the widths and that sinusoids fit in them."""
        for prefix in ("", "decoder_"):
            width, heads = getattr(self, f"{prefix}hidden_size"), getattr(self, f"{prefix}num_attention_heads")
            if heads < 1 or width < 1:
                continue  # validate_sizes says so
            if width % heads:
                raise ValueError(
                    f"{prefix}hidden_size ({width}) does not divide by {prefix}num_attention_heads ({heads}). "
                    f"Choose a {prefix}hidden_size that is a multiple of {heads}, or another number of heads."
                )
            if width % 2:
                raise ValueError(
                    f"{prefix}hidden_size ({width}) is odd, but the position table pairs each sine with a cosine. "
                    f"Choose an even {prefix}hidden_size."
                )

    def validate_grid(self):
        """Check that patches tile a frame and tubelets tile a clip."""
        if not isinstance(self.image_size, int) and len(self.image_size) != 2:
            raise ValueError(f"image_size ({self.image_size}) must be one number or [height, width] in pixels.")
        if self.patch_size < 1 or self.tubelet_size < 1:
            return  # validate_sizes says so
        for side in self.frame_size:
            if side < 1 or side % self.patch_size:
                raise ValueError(
                    f"image_size ({self.image_size}) does not divide by patch_size ({self.patch_size}). "
                    f"Choose a height and width that are positive multiples of {self.patch_size}."
                )
        if self.num_frames % self.tubelet_size:
            raise ValueError(
                f"num_frames ({self.num_frames}) does not divide by tubelet_size ({self.tubelet_size}). "
                f"Choose a num_frames that is a multiple of {self.tubelet_size}."
            )

    def validate_activation(self):
        """Check that transformers knows the activation."""
        if self.hidden_act not in ACT2FN:
            raise ValueError(f"hidden_act ({self.hidden_act!r}) is unknown. Known names: {', '.join(sorted(ACT2FN))}.")

    def validate_motion_targets(self):
        """Check that there is a target, and that each has a usable name, size, activation and weight.

        A list becomes the mapping that all else reads; here, since it may also be set on a finished configuration.
        """
        if isinstance(self.motion_targets, list):
            self.motion_targets = _named_targets(self.motion_targets)
        if not self.motion_targets:
            raise ValueError(
                f"motion_targets ({self.motion_targets}) is empty. Name at least one target, for example "
                f"{default_motion_targets()}."
            )
        for name, target in self.motion_targets.items():
            _check_target(name, target)
            if target.get("visible_weight") and f"visible_{name}" in self.motion_targets:
                raise ValueError(
                    f"motion_targets has {name!r} with a visible_weight, whose loss is called 'visible_{name}', and a "
                    "target of that name. Call it something else."
                )


def check_config_names(options: Mapping[str, Any]) -> None:
    """Raise ValueError for a name that neither MMEConfig nor transformers knows; MMEConfig would keep it, unread."""
    check_names("MMEConfig", options, _known_names())


def _warn_of_misspelt_names(names: Iterable[str]) -> None:
    for name in names:
        try:
            check_names("MMEConfig", [name], _known_names(), misspelt_only=True)
        except ValueError as error:
            logger.warning(f"{error} It stands in a saved configuration, and is kept but not read.")


def _known_names() -> set[str]:
    return {field.name for field in fields(MMEConfig)} | set(MMEConfig.attribute_map) | _NAMES_BESIDE_THE_FIELDS


def _own_names() -> set[str]:
    own = {field.name for field in fields(MMEConfig)} - {field.name for field in fields(PreTrainedConfig)}
    return own | set(MMEConfig.attribute_map)


def _named_targets(targets: list[dict]) -> dict[str, dict]:
    """Return the list that `to_dict` writes as the mapping that users write, in the same order."""
    named: dict[str, dict] = {}
    for target in targets:
        if "name" not in target or target["name"] in named:
            raise ValueError(f"motion_targets entry {target} needs a name of its own, as in {{'name': 'shape', ...}}.")
        named[target["name"]] = {key: value for key, value in target.items() if key != "name"}
    return named


def _check_target(name: str, target: Mapping[str, Any]) -> None:
    """Raise a ValueError that says which entry of `motion_targets` is wrong and how."""
    where = f"motion_targets[{name!r}]"
    # The name becomes part of parameter names, where a dot would separate modules.
    if not name.isidentifier():
        raise ValueError(f"{where}: the name must be a Python identifier such as 'shape'.")
    if set(target) - {"visible_weight"} != {"size", "activation", "weight"}:
        raise ValueError(
            f"{where} has the keys {sorted(target)}; it needs activation, size and weight, and may have visible_weight."
        )
    size, activation = target["size"], target["activation"]
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(f"{where}['size'] ({size!r}) must be an integer of at least 1: the values per token.")
    if activation not in TARGET_ACTIVATIONS:
        raise ValueError(f"{where}['activation'] ({activation!r}) must be one of {', '.join(TARGET_ACTIVATIONS)}.")
    for key in ("weight", "visible_weight"):
        weight = target.get(key, 0.0)
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
            raise ValueError(f"{where}[{key!r}] ({weight!r}) must be a finite number of at least 0.")


__all__ = ["MMEConfig"]
