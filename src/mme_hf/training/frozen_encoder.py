"""Features of whole videos from an encoder that is not trained: for probes, and to keep."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from math import ceil
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object, set_seed
from torch import nn
from torch.utils.data import DataLoader
from transformers.utils import logging as transformers_logging

from .._version import __version__
from ..data import BadVideo, BadVideoLog, VideoRecords
from ..data.labelled_clips import ViewSampling, build_labelled_loader
from ..modeling_mme import MMEModel
from ..presets import preset_config
from ..tokens_mme import mean_of_tokens
from ..video_processing_mme import MMEVideoProcessor
from .feature_cache import FeatureTable
from .labelled_data import processor_of
from .model_names import NOT_LOADED, check_model_name
from .parsing import flag
from .processes import gather_on_main, group_of_cpus, num_decoding_workers

logger = logging.getLogger(__name__)


@dataclass
class EncoderArguments:
    """Which encoder features are taken from."""

    model_name_or_path: str | None = flag(
        None, "Folder or Hub name of a model of ours (pre-training or classifier), or of a VideoMAE."
    )
    preset: str | None = flag(None, "Random weights of this size instead: tiny, small, base or large.")
    layer: int = flag(
        -1,
        "Which block's output, from 1, or counted from the end; 0: the embedded patches. The last is after the final "
        "LayerNorm, where there is one.",
    )
    videos_per_batch: int = flag(4, "Videos that a decoding process hands over together.")
    clips_per_forward: int = flag(16, "Clips that the encoder is given at once.")
    mixed_precision: str | None = flag(None, "no, fp16 or bf16. Default: what accelerate is configured for.")
    seed: int = flag(0, "Seed of random weights, and the first one of probes.")

    def check_encoder(self) -> None:
        """Raise ValueError unless the flags name one encoder."""
        if bool(self.model_name_or_path) == bool(self.preset):
            raise ValueError("Give --model_name_or_path, or --preset for random weights: one of them.")


def build_encoder(args: Any) -> tuple[MMEModel, MMEVideoProcessor]:
    """Return an encoder, in evaluation mode, and the processor that cuts its clips.

    Of a classifier that averages tokens the features are those that it averages: there is no LayerNorm before them.

    Args:
        args: Flags of `EncoderArguments` and `LabelledDataArguments`.

    Raises:
        ValueError: If there is no such model or layer, it lacks weights, or its clips cannot be as asked for.
    """
    name = args.model_name_or_path
    if name:
        check_model_name("model_name_or_path", name)
        encoder = _load(name)
    else:
        changes = {field: getattr(args, field) for field in ("image_size", "num_frames") if getattr(args, field)}
        set_seed(args.seed)
        encoder = MMEModel(preset_config(args.preset, **changes))
    num_layers = encoder.config.num_hidden_layers
    if not -num_layers - 1 <= args.layer <= num_layers:
        raise ValueError(f"layer ({args.layer}) must be from {-num_layers - 1} to {num_layers}.")
    return encoder.eval(), processor_of(name, encoder.config, args)


def _load(name: str) -> MMEModel:
    verbosity = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()  # its report would call a LayerNorm new that is not used
    try:
        encoder, loaded = MMEModel.from_pretrained(name, output_loading_info=True)
    except NOT_LOADED as error:
        raise ValueError(f"model_name_or_path ({name!r}) cannot be opened: {error}") from error
    finally:
        transformers_logging.set_verbosity(verbosity)
    missing, unexpected = sorted(loaded["missing_keys"]), sorted(loaded["unexpected_keys"])
    if missing:
        raise ValueError(
            f"model_name_or_path ({name!r}) lacks {len(missing)} weights of the encoder, such as {missing[0]}. Name "
            "the folder of a run's model."
        )
    if unexpected:
        logger.warning("%s has weights that are not used: %d, such as %s", name, len(unexpected), unexpected[0])
    return encoder


def weights_identity(encoder: nn.Module) -> dict[str, Any]:
    """Return what features of the same frames depend on: a hash of all weights, and what no weight tells."""
    digest = blake2b(digest_size=16)
    for name, tensor in sorted(encoder.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    unrelated = ("transformers_version", "_name_or_path", "architectures", "id2label", "label2id", "motion_targets")
    config = {name: value for name, value in encoder.config.to_dict().items() if name not in unrelated}
    text = json.dumps(config, sort_keys=True, default=str)
    return {"weights": digest.hexdigest(), "config": blake2b(text.encode(), digest_size=16).hexdigest()}


@dataclass(frozen=True)
class VideoFeatures:
    """Features of the clips of one video.

    Attributes:
        place: Which record of the data set it is.
        source: Name of the video.
        values: For each pooling asked for, shape (clips, hidden_size) or (clips, tokens, hidden_size), on the CPU.
    """

    place: int
    source: str
    values: dict[str, torch.Tensor]


class FrozenEncoder:
    """An encoder with what it is fed by.

    Args:
        args: Flags of `EncoderArguments` and `LabelledDataArguments`.
        accelerator: Gives device, precision and processes.

    Raises:
        ValueError: As `build_encoder` does.
    """

    def __init__(self, args: Any, accelerator: Accelerator):
        self.args = args
        self.accelerator = accelerator
        self.model, self.processor = build_encoder(args)
        self.model.to(accelerator.device)

    def sampling(self, num_segments: int, num_crops: int = 1) -> ViewSampling:
        """Return that of so many clips in time, and crops of each."""
        return ViewSampling(num_segments=num_segments, num_crops=num_crops, reader=self.args.reader)

    def identity(self, sampling: ViewSampling) -> dict[str, Any]:
        """Return all that features depend on besides the videos, as JSON keeps it."""
        layer, num_layers = self.args.layer, self.model.config.num_hidden_layers
        identity = {
            **weights_identity(self.model),
            "layer": layer if layer >= 0 else layer + num_layers + 1,
            "processor": self.processor.to_dict(),
            "sampling": vars(sampling),
            "mixed_precision": self.accelerator.mixed_precision,
            "package_version": __version__,
        }
        return json.loads(json.dumps(identity, default=str))

    def batches(self, records: VideoRecords, sampling: ViewSampling, rows: Sequence[int]) -> DataLoader:
        """Return batches of the videos with these numbers, each once and in order."""
        return build_labelled_loader(
            records,
            self.processor,
            videos_per_batch=self.args.videos_per_batch,
            sampling=sampling,
            num_workers=num_decoding_workers(self.args.dataloader_num_workers),
            pin_memory=self.accelerator.device.type == "cuda",
            rows=rows,
        )

    @torch.no_grad()
    def features(
        self,
        batches: Iterable[Mapping[str, Any]],
        bad_videos: BadVideoLog,
        pools: Sequence[str],
        max_tokens: int | None = None,
    ) -> Iterator[VideoFeatures]:
        """Yield the features of each video that could be read, in the order of the batches.

        Args:
            batches: As `LabelledCollator` makes them.
            bad_videos: Takes what could not be read.
            pools: "mean" of all tokens, float32; tokens averaged over neighbours in space until at most `max_tokens`
                are left ("grid"), float16; or all tokens ("none"), float32.
            max_tokens: For "grid".
        """
        num_tried = 0
        for batch in batches:
            num_tried += batch["num_records"]
            bad_videos.record(batch["bad_videos"], num_seen=num_tried)
            chunks: dict[str, list[torch.Tensor]] = {pool: [] for pool in pools}
            for clips in batch["pixel_values"].split(self.args.clips_per_forward):
                if len(clips):  # or no video of the batch could be read
                    for pool, values in self._forward(clips, pools, max_tokens).items():
                        chunks[pool].append(values)
            values = {pool: torch.cat(parts) for pool, parts in chunks.items() if parts}
            places = torch.tensor(batch["places"])
            for place in places.unique_consecutive().tolist():
                rows = (places == place).nonzero()[:, 0]
                own = {pool: value[rows] for pool, value in values.items()}
                yield VideoFeatures(place, batch["sources"][rows[0]], own)

    def _forward(self, clips: torch.Tensor, pools: Sequence[str], max_tokens: int | None) -> dict[str, torch.Tensor]:
        clips = clips.to(self.accelerator.device, non_blocking=True)
        with self.accelerator.autocast():
            tokens = self.model.get_video_features(
                clips, layer=self.args.layer, return_dict=True
            ).last_hidden_state.float()
        grid = self.model.embeddings.patch_embeddings.token_grid(clips)
        pooled = {
            "mean": lambda: mean_of_tokens(tokens),
            "grid": lambda: coarser_tokens(tokens, grid, max_tokens).half(),
            "none": lambda: tokens,
        }
        return {pool: pooled[pool]().cpu() for pool in pools}

    def tables(
        self,
        records: VideoRecords,
        sampling: ViewSampling,
        bad_videos: BadVideoLog,
        pools: Sequence[str],
        max_tokens: int | None = None,
    ) -> dict[str, FeatureTable]:
        """Return the features of all videos for each pooling, on the main process; the others help, and have none.

        Args:
            records: The videos, which the processes share.
            sampling: Which clips.
            bad_videos: Takes what could not be read, of all processes.
            pools: As `features` takes them.
            max_tokens: For "grid".

        Raises:
            TooManyBadVideosError: As `bad_videos` says.
        """
        bad: list[BadVideo] = []
        group = group_of_cpus()

        def watched() -> Iterator[Mapping[str, Any]]:
            share = range(self.accelerator.process_index, records.num_records, self.accelerator.num_processes)
            for batch in self.batches(records, sampling, share):
                bad.extend(batch["bad_videos"])
                yield batch

        own = list(self.features(watched(), bad_videos, pools, max_tokens))
        all_bad = tuple(gather_object(bad))
        bad_videos.record(all_bad, num_seen=sum(gather_object([len(own)])) + len(all_bad))
        videos = sorted(gather_on_main(own, group), key=lambda video: video.place)
        if not self.accelerator.is_main_process:
            return {}
        places = torch.tensor([video.place for video in videos])
        return {
            pool: FeatureTable(torch.stack([video.values[pool] for video in videos]), places, all_bad) for pool in pools
        }


def coarser_tokens(tokens: torch.Tensor, grid: tuple[int, int, int], max_tokens: int | None) -> torch.Tensor:
    """Return tokens averaged over neighbours in space, the finest way that leaves at most `max_tokens`.

    Time is kept, so there may be more where a clip has more tubelets than that.

    Args:
        tokens: Shape (batch_size, num_tokens, hidden_size).
        grid: Tubelets, rows and columns of the tokens.
        max_tokens: None for all tokens.
    """
    tubelets, rows, columns = grid
    if max_tokens is None or tubelets * rows * columns <= max_tokens:
        return tokens
    longer = max(rows, columns)
    sizes = [(ceil(rows * side / longer), ceil(columns * side / longer)) for side in range(longer, 0, -1)]
    size = next((size for size in sizes if tubelets * size[0] * size[1] <= max_tokens), (1, 1))
    images = tokens.transpose(1, 2).unflatten(2, (tubelets, rows, columns)).transpose(1, 2)  # (B, tubelets, D, h, w)
    averaged = nn.functional.adaptive_avg_pool2d(images.flatten(0, 1), size).unflatten(0, images.shape[:2])
    return averaged.flatten(3).transpose(2, 3).flatten(1, 2)
