"""The flags of `examples/evaluate.py` and `examples/predict.py`."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from ..frame_sampling_mme import FRAME_SAMPLINGS
from ..video import check_backend
from .labelled_data import LabelledDataArguments
from .parsing import check_one_source, check_smallest, flag

_PRECISIONS = (None, "no", "fp16", "bf16")


@dataclass
class EvaluationArguments(LabelledDataArguments):
    """Everything that `examples/evaluate.py` can be told."""

    model_name_or_path: str | None = flag(None, "Classifier to judge: a folder, or a name on the Hub.")
    num_eval_segments: int = flag(5, "Views of each video in time.")
    num_eval_crops: int = flag(3, "Views in space of each of these, along the longer side of the frame.")
    per_device_eval_batch_size: int = flag(8, "Clips that the model is given at once.")
    motion_sensitivity: bool = flag(
        False, "Judge the same clips also reversed, shuffled, and frozen at the middle frame: four times the work."
    )
    output_dir: str | None = flag(
        None, "Folder for the results. Default: 'evaluation' in the model's folder; outputs/evaluate for a Hub name."
    )
    mixed_precision: str | None = flag(None, "no, fp16 or bf16. Default: what accelerate is configured for.")
    seed: int = flag(0, "Seed of the shuffled frames.")
    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        self.check_data()
        _check_model(self)
        check_smallest(self, {"num_eval_segments": 1, "num_eval_crops": 1, "per_device_eval_batch_size": 1, "seed": 0})
        self._check_source()

    def _check_source(self) -> None:
        if self.validation_dir or self.validation_manifest:
            return
        check_one_source(self, "streaming", "validation_split", "dataset_config_name")
        if self.dataset_name and not self.validation_split:
            raise ValueError(
                f"dataset_name ({self.dataset_name!r}) needs --validation_split: the split to judge by, such as test."
            )
        if not (self.dataset_name or self.train_dir or self.train_manifest):
            raise ValueError(
                "no videos to judge by are named. Give --validation_dir (class folders), --validation_manifest "
                "('path label' lines), or --dataset_name with --validation_split."
            )


@dataclass
class PredictionArguments:
    """Everything that `examples/predict.py` can be told."""

    videos: list[str] | None = field(
        default=None, metadata={"help": "Files, folders, URLs; '-' is a stream on standard input."}
    )
    model_name_or_path: str | None = flag(None, "Classifier: a folder, or a name on the Hub.")
    top_k: int = flag(5, "Labels to show.")
    frame_sampling: str | None = flag(
        None,
        "'dense' takes frames frame_stride apart; 'segments' one of each of equal parts of a window. Default: as the "
        "model's processor does.",
    )
    window_seconds: float | None = flag(
        None, "Length of the window that slides over the video. Default: what a clip spans; all of it for 'segments'."
    )
    window_step: float = flag(1.0, "From one window to the next, in windows: 0.5 lets each share half with the next.")
    num_frames: int | None = flag(None, "Frames of a clip. Default: the model's.")
    frame_stride: int | None = flag(None, "Raw frames from one to the next. Default: the model's processor's.")
    image_size: int | None = flag(None, "Side of the square input in pixels. Default: the model's.")
    per_device_eval_batch_size: int = flag(8, "Clips that the model is given at once.")
    reader: str = flag("auto", "Video reader: auto, decord, pyav or torchcodec.")
    json: str | None = flag(None, "File for the results as JSON.")
    output_dir: str = flag("outputs/predict", "Folder for the timeline pictures.")
    mixed_precision: str | None = flag(None, "no, fp16 or bf16. Default: what accelerate is configured for.")
    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def __post_init__(self):
        if not self.videos:
            raise ValueError("no video is named. Give files, folders, URLs, or '-' for a stream on standard input.")
        _check_model(self)
        for name in ("top_k", "per_device_eval_batch_size", "num_frames", "frame_stride", "image_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} ({value}) must be at least 1.")
        if self.window_seconds is not None and not 0 < self.window_seconds < math.inf:
            raise ValueError(f"window_seconds ({self.window_seconds}) must be above 0, and finite.")
        if not 0 < self.window_step <= 1:
            raise ValueError(
                f"window_step ({self.window_step}) must lie in (0, 1]: 1 has each window begin at the end "
                "of the one before."
            )
        if self.frame_sampling not in (None, *FRAME_SAMPLINGS):
            raise ValueError(f"frame_sampling ({self.frame_sampling!r}) must be one of {list(FRAME_SAMPLINGS)}.")
        check_backend(self.reader, "reader")


def _check_model(args: EvaluationArguments | PredictionArguments) -> None:
    if not args.model_name_or_path:
        raise ValueError("model_name_or_path is not given: the classifier, a folder or a name on the Hub.")
    if args.mixed_precision not in _PRECISIONS:
        raise ValueError(f"mixed_precision ({args.mixed_precision!r}) must be 'no', 'fp16' or 'bf16'.")
