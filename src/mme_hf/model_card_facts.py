"""What a model card says that no other file of its folder does: how the weights came to be, as it may be published."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
import transformers
import yaml
from huggingface_hub import ModelCard
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from ._version import __version__
from .wording import counted

if TYPE_CHECKING:
    from .data import VideoRecords

FACTS_FILE = "model_card.json"
_SCRIPTS = {"pretraining": "pretrain.py", "finetuning": "finetune.py"}
# Of weights that this package made from random ones. Who publishes them may choose another.
_OWN_LICENSE = "apache-2.0"


def current_versions() -> dict[str, str]:
    """Return the versions of what a run's figures depend on, by package."""
    return {"mme_hf": __version__, "torch": torch.__version__, "transformers": transformers.__version__}


def current_machine() -> str:
    """Return what this machine computes on, in words."""
    if torch.cuda.is_available():
        return f"{torch.cuda.get_device_name()} ({torch.cuda.device_count()} in the machine)"
    return f"a CPU ({platform.machine()}, {torch.get_num_threads()} threads)"


def in_words(versions: Mapping[str, str]) -> str:
    """Return packages and their versions as a list in a sentence."""
    return ", ".join(f"{name} {version}" for name, version in versions.items())


@dataclass(frozen=True, kw_only=True)
class TrainingFacts:
    """How a run of this package made its weights; names, paths and settings as they may be published.

    Attributes:
        task: What was trained.
        repository: Name under which the checkpoint is loaded: on the Hub, or a folder (see `local_name`).
        data_name: What it was trained on, in words.
        dataset: That data set's id on the Hub; None if it is not there.
        num_videos: How many videos that is; None if unknown.
        start: What its weights were before; None for random ones.
        base_model: The same as an id on the Hub; None if it is not there.
        license: Of the weights, as the Hub names it; None where it is not known.
        num_steps: Optimizer updates.
        global_batch_size: Clips in each.
        seconds: Wall-clock time of training.
        command: That was run.
        settings: Arguments of the run.
        machine: What it ran on, in words.
        versions: Of packages, by name.
    """

    task: Literal["pretraining", "finetuning"]
    repository: str
    data_name: str
    dataset: str | None
    num_videos: int | None
    start: str | None
    base_model: str | None
    license: str | None
    num_steps: int
    global_batch_size: int
    seconds: float
    command: str
    settings: Mapping[str, Any]
    machine: str = field(default_factory=current_machine)
    versions: Mapping[str, str] = field(default_factory=current_versions)

    @property
    def is_classifier(self) -> bool:
        """Whether the weights tell classes apart."""
        return self.task == "finetuning"

    def in_words(self) -> str:
        """Return what was run, where and with which versions, as one sentence."""
        run = f"{counted(self.num_steps, 'update')} of {counted(self.global_batch_size, 'clip')}"
        return f"{run} in {self.seconds / 60:.1f} minutes on {self.machine}, with {in_words(self.versions)}."


@dataclass(frozen=True, kw_only=True)
class ConversionFacts:
    """How a published checkpoint became the weights; names and paths as they may be published.

    Attributes:
        task: What the file holds, "encoder" where it has no head of ours.
        repository: Name under which the checkpoint is loaded: on the Hub, or a folder (see `local_name`).
        layout: How the file names its tensors.
        source: The file's name.
        published: Which of `published_models()` it is; None if that was not said.
        left_out: Tensors of the file that the model has no use for.
        command: That was run.
        versions: Of packages, by name.
    """

    task: Literal["pretraining", "classification", "encoder"]
    repository: str
    layout: str
    source: str
    published: str | None
    left_out: int
    command: str
    versions: Mapping[str, str] = field(default_factory=current_versions)

    @property
    def is_classifier(self) -> bool:
        """Whether the weights tell classes apart."""
        return self.task == "classification"


def training_facts(
    task: Literal["pretraining", "finetuning"],
    args: Any,
    records: VideoRecords,
    *,
    repository: str,
    num_steps: int,
    global_batch_size: int,
    seconds: float,
) -> TrainingFacts:
    """Return the facts of a run of this process.

    Args:
        task: What was trained.
        args: Arguments of the run.
        records: What it was trained on.
        repository: Name on the Hub; None for the run's folder.
        num_steps: Optimizer updates.
        global_batch_size: Clips in each.
        seconds: Wall-clock time of training.
    """
    start = args.model_name_or_path
    return TrainingFacts(
        task=task,
        repository=repository,
        data_name=public_value(records.name),
        dataset=hub_id(args.dataset_name),
        num_videos=records.num_records,
        start=None if start is None else local_name(start),
        base_model=hub_id(start),
        license=_OWN_LICENSE if start is None else license_of(start),
        num_steps=num_steps,
        global_batch_size=global_batch_size,
        seconds=seconds,
        command=f"accelerate launch examples/{_SCRIPTS[task]} {public_command(sys.argv[1:])}".strip(),
        settings=public_settings(dataclasses.asdict(args)),
    )


def save_facts(folder: str | Path, facts: TrainingFacts | ConversionFacts) -> None:
    """Write the facts beside the weights, where `load_facts` finds them."""
    text = json.dumps(dataclasses.asdict(facts), indent=1, ensure_ascii=False)
    (Path(folder) / FACTS_FILE).write_text(text + "\n", encoding="utf-8")


def load_facts(folder: str | Path) -> TrainingFacts | ConversionFacts:
    """Return the facts that lie beside weights.

    Raises:
        ValueError: If there are none, or the file is none of ours.
    """
    path = Path(folder) / FACTS_FILE
    if not path.is_file():
        raise ValueError(f"{folder} has no {FACTS_FILE}. It is written by pretrain.py, finetune.py and conversions.")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return (ConversionFacts if "layout" in values else TrainingFacts)(**values)
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: {error!r}. Run the script again that wrote it.") from error


def hub_id(name: str | None) -> str | None:
    """Return a name if it is one on the Hub, None for a folder or a file here and for what can be none."""
    if name is None or Path(name).exists():
        return None
    try:
        validate_repo_id(name)
    except HFValidationError:
        return None
    return name


def license_of(model_name_or_path: str) -> str | None:
    """Return what the card in a folder of a model says of its licence; None where it says nothing."""
    card = Path(model_name_or_path) / "README.md"
    if card.is_file():
        # A broken card says nothing, and is no reason to lose the result of a training.
        with suppress(ValueError, TypeError, yaml.YAMLError):
            return ModelCard.load(card).data.license
    return None


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
    return {name: public_value(value) for name, value in settings.items() if "token" not in name}


def public_command(arguments: Sequence[str]) -> str:
    """Return a command line as a card may show it, see `public_settings`."""
    shown, is_secret = [], False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if not is_secret and not (name.startswith("--") and "token" in name):
            shown.append(name + equals + public_value(value) if name.startswith("--") else public_value(argument))
        # "--hub_token X" hides the next word too, "--hub_token=X" is one word.
        is_secret = not is_secret and name.startswith("--") and "token" in name and not equals
    return shlex.join(shown)


def public_value(value: Any) -> Any:
    """Return a setting's value as a card may show it, see `public_settings`."""
    if isinstance(value, Mapping):
        return public_settings(value)
    if isinstance(value, list | tuple):
        return [public_value(item) for item in value]
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with suppress(json.JSONDecodeError):  # a name may begin like that too
            return json.dumps(public_settings(json.loads(value)))
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def dataset_of(name: str) -> dict[str, str]:
    """Return what `huggingface_hub.EvalResult` is told of a data set: its name, and that written as an id is."""
    name = public_value(name)
    slug = re.sub(r"[^\w./-]+", "-", name.lower()).strip("-")
    return {"dataset_type": slug or "unknown", "dataset_name": name}
