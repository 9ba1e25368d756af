"""The flags of `examples/finetune.py`, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.labelled_clips import Augmentation, ViewSampling
from .arguments import LoopArguments
from .labelled_data import LabelledDataArguments
from .parsing import check_smallest, flag, mapping_of

_SMALLEST = {
    "mixup_alpha": 0,
    "cutmix_alpha": 0,
    "lora_rank": 1,
    "lora_alpha": 0,
    "eval_steps": 1,
    "early_stopping_patience": 1,
    "per_device_eval_batch_size": 1,
    "num_eval_segments": 1,
    "num_eval_crops": 1,
}
FREEZABLE = ("encoder", "patch_embed")
_HAS_A_FLAG = ("drop_path_rate", "use_attentive_pooling", "image_size", "num_frames")
_TOLD_BY_THE_CLASSES = ("num_labels", "id2label", "label2id", "problem_type")


@dataclass
class RecipeArguments:
    """What a classifier is made of, and what is done to its clips and labels: by default the published recipe."""

    model_name_or_path: str | None = flag(
        None, "Start from these weights: of pre-training, of a classifier, or a VideoMAE. Default: random weights."
    )
    preset: str = flag("tiny", "tiny, small, base or large: the size of a model with random weights.")
    model_options: str | None = flag(None, "More MMEConfig fields, as JSON (a mapping in a recipe file).")
    use_attentive_pooling: bool = flag(
        False, "Let a learnt query gather what the head needs; else tokens are averaged."
    )
    drop_path_rate: float = flag(0.1, "Chance that the last block is skipped for a clip; grows linearly from 0.")
    gradient_checkpointing: bool = flag(False, "Save memory by computing activations twice.")
    freeze: str | None = flag(
        None,
        "What is not trained: 'encoder' (all but pooler and head), 'patch_embed', or a number N: the patch embedding "
        "and the first N blocks.",
    )
    lora_rank: int | None = flag(
        None, "Train low-rank changes of this rank of queries and values, and the head, instead of the encoder (peft)."
    )
    lora_alpha: float | None = flag(None, "These changes are multiplied by lora_alpha / lora_rank. Default: lora_rank.")
    layer_decay: float = flag(
        0.75, "Learning rate of a block over that of the block above it; the head has the full one."
    )
    label_smoothing: float = flag(0.1, "Share of each label that is spread over all classes.")
    mixup_alpha: float = flag(0.8, "Blend clips, by a share drawn from Beta(alpha, alpha); 0: never.")
    cutmix_alpha: float = flag(1.0, "Or paste a rectangle of another clip. One of the two for each batch; 0: never.")
    samples_per_video: int = flag(2, "Augmented clips of each video that is opened.")
    min_crop_scale: float = flag(0.25, "Smallest share of the frame's area that a crop covers.")
    flip_probability: float = flag(0.5, "How often a clip is mirrored.")
    no_flip: bool = flag(False, "Never mirror a clip: for classes that tell left from right. Wins over the former.")
    rand_augment_num_ops: int = flag(
        4, "Operations of RandAugment drawn for each clip, half of which are done; 0: none."
    )
    rand_augment_magnitude: int = flag(7, "Their strength, from 0 to 10 as in the published recipe.")
    random_erasing_probability: float = flag(0.25, "How often a rectangle is filled with noise.")
    ema_decay: float | None = flag(
        None, "Judge and save a moving average of the weights with this decay, such as 0.9999. Default: none."
    )


@dataclass
class FinetuningArguments(RecipeArguments, LoopArguments, LabelledDataArguments):
    """Everything that `examples/finetune.py` can be told."""

    output_dir: str = flag("outputs/finetune", "Folder for the model, checkpoints, logs and reports.")
    learning_rate: float = flag(5e-4, "Peak learning rate for 256 clips an update; scaled to the global batch.")
    min_learning_rate: float = flag(5e-7, "Floor of the cosine, scaled like the peak.")
    adam_beta2: float = flag(0.999, "AdamW beta 2.")
    num_train_epochs: float = flag(30.0, "Passes over the videos.")
    warmup_epochs: float = flag(1.0, "Epochs of linear warm-up.")
    shuffle_buffer_size: int = flag(256, "Undecoded records held to shuffle a stream.")
    eval_steps: int | None = flag(
        None, "Updates between two evaluations. Default: an epoch; of a stream: the end alone."
    )
    early_stopping_patience: int | None = flag(
        None, "Stop after so many evaluations without a better one. Default: never."
    )
    per_device_eval_batch_size: int = flag(8, "Views that a process scores at once.")
    num_eval_segments: int = flag(1, "Views in time of each validation video.")
    num_eval_crops: int = flag(1, "Views in space of each of these.")
    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.model_options = mapping_of("model_options", self.model_options)
        if self.no_flip:
            self.flip_probability = 0.0
        check_smallest(self, _SMALLEST)
        self.check_data()
        self.check_loop()
        if not 0 <= self.label_smoothing < 1:
            raise ValueError(f"label_smoothing ({self.label_smoothing}) must lie in [0, 1), such as 0.1.")
        if not 0 < self.layer_decay <= 1:
            raise ValueError(f"layer_decay ({self.layer_decay}) must lie in (0, 1]; 1 is one rate for all layers.")
        if self.ema_decay is not None and not 0 <= self.ema_decay < 1:
            raise ValueError(f"ema_decay ({self.ema_decay}) must lie in [0, 1), such as 0.9999.")
        for name in self.model_options:
            if name in _HAS_A_FLAG or name in _TOLD_BY_THE_CLASSES:
                of_what = "has a flag of its own" if name in _HAS_A_FLAG else "the classes of the videos decide"
                raise ValueError(f"model_options sets {name!r}, which {of_what}. Leave it out.")
        if self.freeze is not None and self.freeze not in FREEZABLE and not self.freeze.isdigit():
            raise ValueError(f"freeze ({self.freeze!r}) must be 'encoder', 'patch_embed' or a number of blocks.")
        if self.lora_rank and self.freeze:
            raise ValueError(
                f"lora_rank ({self.lora_rank}) freezes the encoder itself; leave freeze ({self.freeze}) out."
            )
        if self.lora_alpha == 0:
            raise ValueError("lora_alpha (0) must be above 0; leave it out for lora_rank.")
        if self.lora_alpha is not None and not self.lora_rank:
            raise ValueError(f"lora_alpha ({self.lora_alpha}) needs --lora_rank, which is not given.")
        if self.early_stopping_patience and not self.has_validation_data:
            raise ValueError(
                f"early_stopping_patience ({self.early_stopping_patience}) needs videos to judge by. Give "
                "--validation_dir, --validation_manifest or --validation_split."
            )
        # They check the rest.
        self.training_views, self.validation_views = self._training_views(), self._validation_views()

    @property
    def has_validation_data(self) -> bool:
        """Whether there are videos to judge by."""
        return bool(self.validation_split or self.validation_dir or self.validation_manifest)

    def _training_views(self) -> ViewSampling:
        augmentation = Augmentation(
            min_crop_scale=self.min_crop_scale,
            flip_probability=self.flip_probability,
            rand_augment_num_ops=self.rand_augment_num_ops,
            rand_augment_magnitude=self.rand_augment_magnitude,
            random_erasing_probability=self.random_erasing_probability,
        )
        return ViewSampling(
            augmentation=augmentation,
            samples_per_video=self.samples_per_video,
            reader=self.reader,
        )

    def _validation_views(self) -> ViewSampling:
        return ViewSampling(
            num_segments=self.num_eval_segments,
            num_crops=self.num_eval_crops,
            reader=self.reader,
        )
