"""The flags of `examples/probe.py` and `examples/extract_features.py`, checked before any work begins."""

from __future__ import annotations

from dataclasses import dataclass, field

from ..data.feature_shards import DTYPES
from .frozen_encoder import EncoderArguments
from .labelled_data import LabelledDataArguments
from .parsing import check_one_source, check_smallest, flag
from .probes import PROBES

_SMALLEST = {"clips_per_forward": 1, "videos_per_batch": 1, "seed": 0, "max_bad_fraction": 0}


@dataclass
class FrozenFeatureArguments(EncoderArguments, LabelledDataArguments):
    """What both scripts can be told: the videos, and the encoder."""

    config: str | None = flag(None, "YAML recipe; flags on the command line win over it.")

    def check(self, **smallest: int) -> None:
        """Raise ValueError for a value that a flag cannot have; `smallest` names further ones with a least value."""
        self.check_encoder()
        self.check_data()
        check_one_source(self, "streaming", "dataset_config_name", "validation_split")
        check_smallest(self, {**_SMALLEST, **smallest})
        if self.streaming:
            raise ValueError("streaming is on, so the videos are not known beforehand. Leave --streaming out.")


@dataclass
class ProbeArguments(FrozenFeatureArguments):
    """Everything that `examples/probe.py` can be told. How a probe is trained and chosen is no flag: `probes.py`."""

    probes: list[str] = field(default_factory=lambda: list(PROBES), metadata={"help": "linear, attentive and knn."})
    num_train_views: int = flag(2, "Clips of each training video, evenly spaced in time.")
    num_train_crops: int = flag(1, "Crops of each of these, along the longer side.")
    num_eval_segments: int = flag(2, "Clips in time of each test video.")
    num_eval_crops: int = flag(3, "Crops of each of these, along the longer side.")
    shots: int | None = flag(
        None, "Videos of each class to train and choose by, drawn anew by each seed. Default: all."
    )
    num_seeds: int = flag(3, "Seeds: of folds, low-shot draw, heads and order of batches.")
    max_tokens: int = flag(
        100, "For the attentive probe: tokens of a clip are averaged in space until so many are left."
    )
    output_dir: str = flag("outputs/probe", "Folder for results.json.")
    cache_dir: str | None = flag(None, "Folder for features. Default: feature_cache in output_dir.")

    def __post_init__(self):
        unknown = [name for name in self.probes if name not in PROBES]
        if unknown or not self.probes:
            raise ValueError(f"probes ({' '.join(self.probes)}) must be of {', '.join(PROBES)}.")
        names = ("num_train_views", "num_train_crops", "num_eval_segments", "num_eval_crops", "num_seeds", "max_tokens")
        self.check(shots=2, **dict.fromkeys(names, 1))


@dataclass
class FeatureExtractionArguments(FrozenFeatureArguments):
    """Everything that `examples/extract_features.py` can be told; it reads the videos of train_* alone."""

    pool: str = flag("mean", "'mean' of the tokens of a clip, or 'none' for all of them.")
    num_segments: int = flag(1, "Clips in time of each video.")
    num_crops: int = flag(1, "Crops of each of these, along the longer side.")
    dtype: str = flag("float32", "float32 or float16.")
    num_videos_per_shard: int = flag(64, "Videos in a Parquet file, the unit of work that a killed run loses.")
    output_dir: str = flag("outputs/features", "Folder for the data set. An unfinished one is gone on with.")

    def __post_init__(self):
        if self.pool not in ("mean", "none"):
            raise ValueError(f"pool ({self.pool!r}) must be 'mean' or 'none'.")
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype ({self.dtype!r}) must be one of {', '.join(DTYPES)}.")
        self.check(num_segments=1, num_crops=1, num_videos_per_shard=1)
        validation = next(
            (n for n in ("validation_split", "validation_dir", "validation_manifest") if getattr(self, n)), None
        )
        if validation:
            raise ValueError(f"{validation} is given, but only the videos of train_* or --dataset_split are read.")
