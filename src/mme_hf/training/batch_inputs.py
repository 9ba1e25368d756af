"""From a batch of the data workers to what the model takes, on its device."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch

from ..data.clips import grey_frame
from ..motion.at_rest import track_at_rest

if TYPE_CHECKING:
    from ..raw_clips_mme import RawClips
    from ..video_processing_mme import MMEVideoProcessor


class BatchInputs:
    """Makes the model's keyword arguments of a batch: moved where workers made them, else made of its raw clips.

    Args:
        processor: The processor that cut the clips.
        device: Where the model is.
    """

    def __init__(self, processor: MMEVideoProcessor, device: torch.device | str):
        self.processor = processor
        self.device = torch.device(device)

    def __call__(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the inputs of a batch as `ClipCollator` makes it; of one without clips, tensors of zero clips."""
        if "inputs" in batch:
            return {name: tensor.to(self.device, non_blocking=True) for name, tensor in batch["inputs"].items()}
        return self._made_of(batch["raw_clips"]) if batch["raw_clips"] else self._of_no_clip

    def each(self, batches: Iterable[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """Yield batches with their `inputs` on the device, made when it is their turn."""
        for batch in batches:
            yield {**batch, "inputs": self(batch)}

    @cached_property
    def _of_no_clip(self) -> dict[str, torch.Tensor]:
        # A run of stored tracks has not asked its tracker whether it can work.
        options = {"tracker": track_at_rest}
        clips = self.processor.cut_raw_clips(grey_frame(self.processor), generator=torch.Generator(), **options)
        return {name: tensor[:0] for name, tensor in self._made_of(clips, **options).items()}

    def _made_of(self, clips: list[RawClips], **options: Any) -> dict[str, torch.Tensor]:
        return dict(self.processor.inputs_from_raw_clips([own.to(self.device) for own in clips], **options))
