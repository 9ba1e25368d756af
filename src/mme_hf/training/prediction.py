"""What a classifier says of whole videos: scores of all views of each, over any number of processes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object

from ..data.labelled_clips import NO_LABEL


@dataclass(frozen=True)
class VideoPredictions:
    """What a classifier says of videos, each once, in the order of the data set.

    Attributes:
        scores: Mean over a video's views of the softmax (of the sigmoid for several labels, of the values for a
            regression), float32, shape (videos, classes).
        labels: Class of each video, `NO_LABEL` where it is not known, int64, shape (videos,).
        sources: Name of each video.
        num_views: Views in all.
    """

    scores: torch.Tensor
    labels: torch.Tensor
    sources: list[str]
    num_views: int

    @property
    def is_labelled(self) -> bool:
        """Whether every video has a label."""
        return bool((self.labels != NO_LABEL).all())


def scores_of(logits: torch.Tensor, problem_type: str | None) -> torch.Tensor:
    """Return logits (..., classes) as scores, float32: chances, or values for a regression."""
    logits = logits.float()
    if problem_type == "regression":
        return logits
    return logits.sigmoid() if problem_type == "multi_label_classification" else logits.softmax(-1)


@torch.no_grad()
def predict_videos(
    accelerator: Accelerator,
    model: torch.nn.Module,
    batches: Iterable[Mapping],
    *,
    clips_per_forward: int,
) -> VideoPredictions:
    """Return a classifier's scores of the videos of all processes' batches, on every process.

    Nothing is padded: processes may have different numbers of batches, and no video counts twice.

    Args:
        accelerator: Gathers over processes; gives device and precision.
        model: `MMEForVideoClassification`, not wrapped for distribution.
        batches: This process' batches, as `LabelledCollator` makes them.
        clips_per_forward: Clips that the model is given at once.

    Raises:
        ValueError: If no process has a video.
    """
    was_training = model.training
    model.eval()
    own: list[tuple] = []
    num_views = 0
    for batch in batches:
        scores = torch.cat(
            [*_forward(accelerator, model, batch["pixel_values"].split(clips_per_forward))]
            or [torch.empty(0, model.config.num_labels)]
        )
        num_views += len(scores)
        for place, rows in _runs(batch["places"]):
            own.append(
                (place, batch["sources"][rows.start], int(batch["labels"][rows.start]), scores[rows].mean(0).numpy())
            )
    model.train(was_training)
    # Sorted by place, then by name: processes that read shards of a stream count places each for itself.
    found = sorted(gather_object(own), key=lambda video: video[:2])
    if not found:
        raise ValueError("no video could be read, so there is nothing to predict.")
    return VideoPredictions(
        scores=torch.stack([torch.from_numpy(video[3]) for video in found]),
        labels=torch.tensor([video[2] for video in found]),
        sources=[video[1] for video in found],
        num_views=sum(gather_object([num_views])),
    )


def _forward(
    accelerator: Accelerator, model: torch.nn.Module, chunks: Iterable[torch.Tensor]
) -> Iterator[torch.Tensor]:
    for chunk in chunks:
        if len(chunk):
            with accelerator.autocast():
                logits = model(chunk.to(accelerator.device, non_blocking=True)).logits
            yield scores_of(logits, model.config.problem_type).cpu()


def _runs(places: list[int]) -> Iterator[tuple[int, slice]]:
    """Yield (place, rows) of each run of equal places: the views of one video."""
    start = 0
    for row in range(1, len(places) + 1):
        if row == len(places) or places[row] != places[start]:
            yield places[start], slice(start, row)
            start = row
