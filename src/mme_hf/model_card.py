"""Model cards: what was run, said by the run itself."""

from __future__ import annotations

import json
import platform
import shlex
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import EvalResult, ModelCardData

from ._version import __version__
from .wording import counted

_MAX_CLASSES_SHOWN = 50

# Ends every card.
_RUN_SECTION = """## Run

{updates} of {clips} in {minutes:.1f} minutes on {machine}, with mme_hf {version},
torch {torch}, transformers {transformers}.

```
{command}
```

| setting | value |
|---|---|
{settings}
"""

_PRETRAINING_CARD = """---
{metadata}
---

# Masked Motion Encoding, pre-trained on {data_name}

A video transformer that was shown {visible:.0%} of the patches of a sparsely sampled clip and trained to predict how
the points in the hidden rest move, and what shape is around them
([Masked Motion Encoding](https://arxiv.org/abs/2210.06096)). No labels were used.

```python
from mme_hf import MMEModel, MMEVideoProcessor

processor = MMEVideoProcessor.from_pretrained("{repository}")
model = MMEModel.from_pretrained("{repository}")
features = model(**processor("video.mp4", return_tensors="pt")).last_hidden_state
```

## Data and input

{data_name}: {videos}. Clips of {processor.num_frames} frames, {processor.frame_stride} raw frames apart, {height} x
{width} pixels; targets {targets}, from points followed over {processor.trajectory_num_steps} raw frames by the
tracker `{processor.tracker}`.

## Held-out clips

{explained}

"""

_FINETUNING_CARD = """---
{metadata}
---

# Masked Motion Encoding, fine-tuned on {data_name}

A video transformer ([Masked Motion Encoding](https://arxiv.org/abs/2210.06096)) that tells {classes} apart. Its
training started from {start}.

```python
from mme_hf import MMEForVideoClassification, MMEVideoProcessor

processor = MMEVideoProcessor.from_pretrained("{repository}")
model = MMEForVideoClassification.from_pretrained("{repository}")
logits = model(**processor("video.mp4", return_tensors="pt")).logits
print(model.config.id2label[int(logits.argmax())])
```

## Data and input

{data_name}: {videos}. Clips of {processor.num_frames} frames, {sampling}, {height} x {width} pixels.

Classes: {names}.

## Validation

{measured}

"""


def pretraining_card(
    *,
    config: Any,
    processor: Any,
    data_name: str,
    num_videos: int | None,
    steps: int,
    global_batch_size: int,
    seconds: float,
    explained_shares: Mapping[str, float] | None,
    command: str,
    settings: Mapping[str, Any],
    repository: str,
) -> str:
    """Return the README.md of a pre-trained checkpoint, in Markdown with the Hub's metadata on top.

    Args:
        config: Of the model.
        processor: That made its inputs.
        data_name: What it was trained on.
        num_videos: How many videos that is; None if unknown.
        steps: Optimizer updates.
        global_batch_size: Clips in each.
        seconds: Wall-clock time of training.
        explained_shares: Of each target on held-out clips; None if nothing was measured.
        command: That was run.
        settings: Arguments of the run.
        repository: Name under which the checkpoint is loaded: on the Hub, or a folder (see `local_name`).
    """
    return (_PRETRAINING_CARD + _RUN_SECTION).format(
        metadata=_metadata().to_yaml(),
        data_name=_public(data_name),
        visible=1 - processor.mask_ratio,
        repository=repository,
        videos=_videos_text(num_videos),
        processor=processor,
        height=processor.crop_size["height"],
        width=processor.crop_size["width"],
        targets=", ".join(f"`{name}` ({target['size']} values)" for name, target in config.motion_targets.items()),
        explained=_explained_text(explained_shares),
        command=command,
        **_facts_of_the_run(steps, global_batch_size, seconds, settings),
    )


def finetuning_card(
    *,
    config: Any,
    processor: Any,
    start: str | None,
    data_name: str,
    num_videos: int | None,
    steps: int,
    global_batch_size: int,
    seconds: float,
    results: Mapping[str, Any] | None,
    command: str,
    settings: Mapping[str, Any],
    repository: str,
) -> str:
    """Return the README.md of a classifier, in Markdown with the Hub's metadata on top, results in it as a model index.

    Args:
        config: Of the model.
        processor: That made its inputs.
        start: What its weights were before; None for random ones.
        data_name: What it was trained on.
        num_videos: How many videos that is; None if unknown.
        steps: Optimizer updates.
        global_batch_size: Clips in each.
        seconds: Wall-clock time of training.
        results: As in `eval_results.json`; None if nothing was measured.
        command: That was run.
        settings: Arguments of the run.
        repository: Name under which the checkpoint is loaded: on the Hub, or a folder (see `local_name`).
    """
    names = [config.id2label[number] for number in sorted(config.id2label)]
    shown = ", ".join(names[:_MAX_CLASSES_SHOWN]) + (", ..." if len(names) > _MAX_CLASSES_SHOWN else "")
    strides = f"{processor.frame_stride} raw frames apart"
    return (_FINETUNING_CARD + _RUN_SECTION).format(
        metadata=_metadata("video-classification", results, repository).to_yaml(),
        data_name=_public(data_name),
        classes=f"{len(names)} classes",
        start="random weights" if start is None else f"the weights of `{local_name(start)}`",
        repository=repository,
        videos=_videos_text(num_videos),
        processor=processor,
        sampling=strides if processor.frame_sampling == "dense" else "one of each of equal parts of the video",
        height=processor.crop_size["height"],
        width=processor.crop_size["width"],
        names=shown,
        measured=_results_text(results),
        command=command,
        **_facts_of_the_run(steps, global_batch_size, seconds, settings),
    )


def _metadata(
    pipeline: str | None = None, results: Mapping[str, Any] | None = None, repository: str = ""
) -> ModelCardData:
    options: dict[str, Any] = {}
    if results is not None:
        data = {"dataset_type": Path(results["dataset"]).name, "dataset_name": _public(results["dataset"])}
        figures = [
            EvalResult("video-classification", metric_type="accuracy", metric_name=name, metric_value=value, **data)
            for name, value in (("top-1 accuracy", results["top1"]), ("top-5 accuracy", results["top5"]))
        ]
        options = {"model_name": Path(repository).name, "eval_results": figures}
    return ModelCardData(
        library_name="transformers",
        license="apache-2.0",
        pipeline_tag=pipeline,
        tags=["video", "masked-motion-encoding", "mme_hf"],
        **options,
    )


def _videos_text(num_videos: int | None) -> str:
    return "a stream of videos" if num_videos is None else counted(num_videos, "video")


def _facts_of_the_run(
    steps: int, global_batch_size: int, seconds: float, settings: Mapping[str, Any]
) -> dict[str, Any]:
    return {
        "updates": counted(steps, "update"),
        "clips": counted(global_batch_size, "clip"),
        "minutes": seconds / 60,
        "machine": _machine(),
        "version": __version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "settings": "\n".join(
            f"| `{name}` | `{value}` |" for name, value in settings.items() if value not in (None, {})
        ),
    }


def local_name(folder: str | Path) -> str:
    """Return how a folder is named for who stands where the run was started, without the folders of this machine.

    A relative path stays as it is, an absolute one becomes relative; of one that leads elsewhere only the end is told.
    """
    path = Path(folder)
    if path.is_absolute():
        here = Path.cwd()
        path = path.relative_to(here) if path.is_relative_to(here) else Path("path/to", path.name)
    return path.as_posix()


def public_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return settings as a card may show them: without tokens, and of a path on this machine only the last part."""
    return {name: _public(value) for name, value in settings.items() if "token" not in name}


def public_command(arguments: Sequence[str]) -> str:
    """Return a command line as a card may show it, see `public_settings`."""
    shown, is_secret = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not is_secret and not (name.startswith("--") and "token" in name):
            shown.append(name + equals + _public(value) if name.startswith("--") else _public(argument))
        # "--hub_token X" hides the next word too, "--hub_token=X" is one word.
        is_secret = not is_secret and name.startswith("--") and "token" in name and not equals
    return shlex.join(shown)


def _public(value: Any) -> Any:
    if isinstance(value, Mapping):
        return public_settings(value)
    if isinstance(value, list | tuple):
        return [_public(item) for item in value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):  # a name may begin like that too
            return json.dumps(public_settings(json.loads(value)))
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def _explained_text(shares: Mapping[str, float] | None) -> str:
    if shares is None:
        return "Nothing was measured on held-out clips, so nothing is claimed."
    rows = "\n".join(f"| {name} | {share:.3f} |" for name, share in shares.items())
    return (
        "Explained share of each target: 1 - squared error / squared error of always predicting the training mean,\n"
        "over masked tokens that count. 0 is no better than the mean, negative is worse.\n\n"
        f"| target | explained share |\n|---|---|\n{rows}"
    )


def _results_text(results: Mapping[str, Any] | None) -> str:
    if results is None:
        return "Nothing was measured on videos that it was not trained on, so nothing is claimed."
    videos = f"{_public(results['dataset'])}, {counted(results['num_videos'], 'video')}"
    return (
        f"On {videos}, {results['views']} views (in time x in space) of each, scores averaged.\n"
        "The model is the best of those that were judged during training, by these same videos: on others it may do "
        "worse.\n\n"
        f"| top-1 | top-5 |\n|---|---|\n| {results['top1']:.3f} | {results['top5']:.3f} |"
    )


def _machine() -> str:
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} in the machine)"
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"
