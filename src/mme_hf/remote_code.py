"""A folder or Hub repository that loads with `trust_remote_code=True` where mme_hf is not installed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from transformers import PreTrainedModel
from transformers.utils import CONFIG_NAME, VIDEO_PROCESSOR_NAME

from .modeling_mme import MMEForPreTraining, MMEForVideoClassification, MMEModel
from .video_pipeline_mme import TASK
from .video_processing_mme import MMEVideoProcessor

# transformers writes the saved class alone, and the folder would open with no other head.
AUTO_MAP: Mapping[str, str] = MappingProxyType(
    {
        "AutoConfig": "configuration_mme.MMEConfig",
        "AutoModel": "modeling_mme.MMEModel",
        "AutoModelForPreTraining": "modeling_mme.MMEForPreTraining",
        "AutoModelForVideoClassification": "modeling_mme.MMEForVideoClassification",
        "AutoVideoProcessor": "video_processing_mme.MMEVideoProcessor",
    }
)
CUSTOM_PIPELINES: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {TASK: {"impl": "video_pipeline_mme.VideoFeatureExtractionPipeline", "pt": ["AutoModel"], "type": "video"}}
)
_MODELS = (MMEModel, MMEForPreTraining, MMEForVideoClassification)


def save_with_remote_code(
    model: PreTrainedModel, processor: MMEVideoProcessor, directory: str | Path, **kwargs: Any
) -> None:
    """Save a model and its processor together with the code that loads them.

    With torch, torchvision and transformers alone, `AutoModel`, `AutoModelForPreTraining`,
    `AutoModelForVideoClassification`, `AutoVideoProcessor` and `pipeline("video-feature-extraction")` then load the
    folder with `trust_remote_code=True`. Reading files takes torchcodec or av; transformers' own
    `pipeline("video-classification")` insists on av. Where mme_hf is imported, its classes are used. Targets of
    pre-training need mme_hf: trackers are not part of the code.

    Args:
        model: A `MMEModel`, `MMEForPreTraining` or `MMEForVideoClassification`; it is not changed.
        processor: The processor that makes its inputs.
        directory: Folder to write; made if it does not exist.
        **kwargs: Passed to the model's `save_pretrained`, such as `max_shard_size`.

    Raises:
        ValueError: If model or processor is of another class, whose code would not be there, or `push_to_hub` is given:
            the model would be pushed before its code is there.
        NotADirectoryError: If `directory` is a file.
    """
    for name, value, classes in (("model", model, _MODELS), ("processor", processor, (MMEVideoProcessor,))):
        if type(value) not in classes:
            allowed = " or ".join(allowed.__name__ for allowed in classes)
            raise ValueError(f"{name} is a {type(value).__name__}; only the code of {allowed} can be carried along.")
    if kwargs.get("push_to_hub"):
        raise ValueError("push_to_hub is no option here. Save first, then push the folder: hf upload NAME DIRECTORY.")
    if Path(directory).is_file():
        raise NotADirectoryError(f"directory ({str(directory)!r}) is a file. Give the name of a folder.")
    model.save_pretrained(directory, **kwargs)
    processor.save_pretrained(directory)
    carry_remote_code(directory)


def carry_remote_code(directory: str | Path) -> list[Path]:
    """Add the code that loads it to the folder of a saved model and processor, and say so in their files.

    Returns:
        The files of code.

    Raises:
        FileNotFoundError: If the folder lacks the model's or the processor's file.
        ValueError: If they are of another model.
    """
    directory = Path(directory)
    saved = {name: _read_saved(directory / name) for name in (CONFIG_NAME, VIDEO_PROCESSOR_NAME)}
    kinds = saved[CONFIG_NAME].get("model_type"), saved[VIDEO_PROCESSOR_NAME].get("video_processor_type")
    if kinds != ("mme", "MMEVideoProcessor"):
        raise ValueError(
            f"{directory} holds a model and a processor of the kinds {kinds}, not ('mme', 'MMEVideoProcessor')."
        )
    saved[CONFIG_NAME] |= {"auto_map": dict(AUTO_MAP), "custom_pipelines": {**CUSTOM_PIPELINES}}
    saved[VIDEO_PROCESSOR_NAME] |= {"auto_map": {"AutoVideoProcessor": AUTO_MAP["AutoVideoProcessor"]}}
    files = [Path(shutil.copyfile(path, directory / path.name)) for path in code_files()]
    for name, content in saved.items():
        # Sorted as transformers does, but not inside: as text, label 10 would come before label 2.
        text = json.dumps(dict(sorted(content.items())), indent=2) + "\n"
        (directory / name).write_text(text, encoding="utf-8")
    return files


def drop_remote_code(directory: str | Path) -> None:
    """Remove from a folder what `carry_remote_code` added to it: code that its files no longer name."""
    directory = Path(directory)
    if directory.resolve() != Path(__file__).resolve().parent:  # where the code is at home
        for path in code_files():
            (directory / path.name).unlink(missing_ok=True)


def code_files() -> list[Path]:
    """Return the files of this package that are all a model and a processor need."""
    return sorted(Path(__file__).parent.glob("*_mme.py"))


def _read_saved(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"{path.parent} has no {path.name}. Save model and processor there first.")
    return json.loads(path.read_text(encoding="utf-8"))
