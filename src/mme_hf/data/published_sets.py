"""What the annotation files of published data sets say: one parser for each set, and a table of the sets."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

PARTS = ("train", "validation", "test")
# What files and the `split` column of copies of Kinetics call them.
_PART_OF_WORD = {"train": "train", "test": "test"} | dict.fromkeys(
    ("val", "valid", "validate", "validation"), "validation"
)
_SSV2_PREFIX = "something-something-v2-"


@dataclass(frozen=True)
class Entry:
    """One video, as an annotation file names it.

    Attributes:
        where: The line that names it: "trainlist01.txt line 3".
        part: One of `PARTS`; None where it is named as belonging to none.
        stems: File names without ending that it may have, the likeliest first.
        class_name: Its class; None where the annotation has none.
    """

    where: str
    part: str | None
    stems: tuple[str, ...]
    class_name: str | None


@dataclass(frozen=True)
class LeftOut:
    """Something that did not become a record.

    Attributes:
        split: The part that it would have been in; None where that is not known.
        source: The line of an annotation, or the video.
        kind: A noun that is counted: "missing file".
        cause: Why, in words.
    """

    split: str | None
    source: str
    kind: str
    cause: str


@dataclass
class Annotations:
    """All that the annotation files of a tree say.

    Attributes:
        class_names: In the order of their numbers.
        entries: In the order of the files.
        left_out: Lines that cannot be read.
    """

    class_names: tuple[str, ...] = ()
    entries: list[Entry] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)

    def is_broken(self, where: str, part: str | None, cause: str) -> None:
        """List a line that cannot be read."""
        self.left_out.append(LeftOut(part, where, "broken line", cause))


@dataclass(frozen=True)
class PublishedSet:
    """How a data set is laid out.

    Attributes:
        parse: Reads its annotation files, among the files of a tree, for one of its folds (from 1).
        layout: The tree, in words.
        num_classes: Of the full set.
        num_folds: Number of its official divisions into parts.
        group_pattern: What of a file's name tells which source its clip was cut from, in the first group; None where
            names do not tell.
    """

    parse: Callable[[Sequence[Path], int], Annotations]
    layout: str
    num_classes: int
    num_folds: int = 1
    group_pattern: str | None = None


def parse_ucf101(files: Sequence[Path], fold: int) -> Annotations:
    """Return what `classInd.txt`, `trainlist0N.txt` and `testlist0N.txt` say."""
    annotations = Annotations(_classes_by_number(_needed(files, "classInd.txt")))
    numbers = {name: number for number, name in enumerate(annotations.class_names, start=1)}
    for part in ("train", "test"):
        path = _find(files, f"{part}list{fold:02}.txt")
        for where, line in _lines(path) if path else ():
            match = re.fullmatch(r"([^/]+)/([^/]+)\.\w+(?:\s+(\d+))?", line)
            if not match:
                annotations.is_broken(where, part, f"{line!r} is not 'Class/video.avi' with or without a number")
                continue
            class_name, stem, number = match.groups()
            if number and class_name in numbers and int(number) != numbers[class_name]:
                cause = f"{line!r} gives {class_name} another number than classInd.txt ({numbers[class_name]})"
                annotations.is_broken(where, part, cause)
                continue
            annotations.entries.append(Entry(where, part, (stem,), class_name))
    return annotations


def parse_hmdb51(files: Sequence[Path], fold: int) -> Annotations:
    """Return what `<class>_test_splitN.txt` say; classes are in alphabetical order."""
    found = {}
    for path in files:
        match = re.fullmatch(r"(.+)_test_split(\d)\.txt", path.name)
        if match:
            found[match.groups()] = _find(files, path.name)
    class_names = sorted({class_name for class_name, _ in found})
    if not class_names:
        raise ValueError(f"there is no <class>_test_split{fold}.txt")
    annotations = Annotations(tuple(class_names))
    for class_name in class_names:
        path = found.get((class_name, str(fold)))
        if path is None:
            raise ValueError(f"there is no {class_name}_test_split{fold}.txt, though there is one of another fold")
        for where, line in _lines(path):
            match = re.fullmatch(r"(.+)\.\w+\s+([012])", line)
            if match:
                part = {"0": None, "1": "train", "2": "test"}[match[2]]
                annotations.entries.append(Entry(where, part, (match[1],), class_name))
            else:
                annotations.is_broken(where, None, f"{line!r} is not 'video.avi' with 0, 1 or 2")
    return annotations


def parse_ssv2(files: Sequence[Path], fold: int = 1) -> Annotations:
    """Return what `labels.json`, `{train,validation,test}.json` and `test-answers.csv` say."""
    labels = _json(_needed(files, "labels.json", f"{_SSV2_PREFIX}labels.json"), dict)
    numbers = {name: int(number) for name, number in labels.items() if str(number).isdecimal()}
    if sorted(numbers.values()) != list(range(len(labels))):
        raise ValueError(f"labels.json does not give its {len(labels)} classes the numbers from 0, each once")
    annotations = Annotations(tuple(sorted(numbers, key=numbers.__getitem__)))
    answers = _ssv2_answers(_find(files, "test-answers.csv", f"{_SSV2_PREFIX}test-answers.csv"), annotations)
    for part in PARTS:
        path = _find(files, f"{part}.json", f"{_SSV2_PREFIX}{part}.json")
        for number, item in enumerate(_json(path, list) if path else (), start=1):
            where = f"{path.name} entry {number}"
            if not isinstance(item, dict) or not str(item.get("id", "")).strip():
                annotations.is_broken(where, part, f"{json.dumps(item)[:80]} has no id")
                continue
            stem, template = str(item["id"]).strip(), item.get("template")
            label = answers.get(stem) if part == "test" else None
            if template:
                label = str(template).replace("[", "").replace("]", "")
            annotations.entries.append(Entry(where, part, (stem,), label))
    return annotations


def parse_kinetics(files: Sequence[Path], fold: int = 1) -> Annotations:
    """Return what the CSV files with a `youtube_id` column say; classes are those of train, in alphabetical order."""
    annotations = Annotations()
    for path in (path for path in files if path.suffix.lower() == ".csv"):
        lines = _lines(path)
        header = _csv_fields(next(lines, ("", ""))[1])
        if {"youtube_id", "time_start", "time_end"} <= set(header):
            words = (_PART_OF_WORD.get(word) for word in re.split(r"[^a-z]+", path.stem.lower()))
            part_of_file = next(filter(None, words), None)
            for where, line in lines:
                _add_kinetics_line(annotations, header, where, line, part_of_file)
    if not annotations.entries:
        raise ValueError("there is no CSV file with the columns youtube_id, time_start, time_end and a line below them")
    labelled = [entry for entry in annotations.entries if entry.class_name]
    # A typing error in another part is then no class of its own, and does not move the numbers of those after it.
    of_train = {entry.class_name for entry in labelled if entry.part == "train"}
    annotations.class_names = tuple(sorted(of_train or {entry.class_name for entry in labelled}))
    return annotations


def _add_kinetics_line(
    annotations: Annotations, header: Sequence[str], where: str, line: str, part_of_file: str | None
) -> None:
    fields = _csv_fields(line)
    row = dict(zip(header, fields, strict=False))
    part = _PART_OF_WORD.get(row.get("split", "").lower(), part_of_file)
    try:
        start, end = (int(float(row[name])) for name in ("time_start", "time_end"))
        is_whole = len(fields) == len(header) and re.fullmatch(r"[\w-]+", row["youtube_id"])
    except (KeyError, ValueError, OverflowError):
        is_whole = False
    if not is_whole:
        annotations.is_broken(where, part, f"{line!r} is not {','.join(header)}")
    elif part is None:
        annotations.is_broken(where, part, f"{line!r} and the name of its file do not tell train, val or test")
    elif part_of_file and part != part_of_file:
        annotations.is_broken(where, part_of_file, f"{line!r} is of another part than its file, {part_of_file}")
    else:
        stem = f"{row['youtube_id']}_{start:06d}_{end:06d}"
        entry = Entry(where, part, (stem, row["youtube_id"]), row.get("label") or None)
        annotations.entries.append(entry)


def _ssv2_answers(path: Path | None, annotations: Annotations) -> dict[str, str]:
    """Return the class of each test video."""
    answers = {}
    for where, line in _lines(path) if path else ():
        stem, separator, label = line.partition(";")
        if separator and label.strip():
            answers[stem.strip()] = label.strip()
        else:
            annotations.is_broken(where, "test", f"{line!r} is not 'id;label'")
    return answers


def _classes_by_number(path: Path) -> tuple[str, ...]:
    names = {}
    for where, line in _lines(path):
        match = re.fullmatch(r"(\d+)\s+(\S.*)", line)
        if not match or int(match[1]) in names:
            # Unlike that of a video, it would change the number of every class after it.
            raise ValueError(f"{where} ({line!r}) is not the number, once, and the name of a class")
        names[int(match[1])] = match[2]
    if not names or sorted(names) != list(range(1, len(names) + 1)) or len(set(names.values())) != len(names):
        raise ValueError(f"{path.name} does not number its {len(names)} classes from 1, each once")
    return tuple(names[number] for number in sorted(names))


def _find(files: Sequence[Path], *names: str) -> Path | None:
    """Return the file that has one of these names; copies with the same content count as one."""
    found = [path for path in files if path.name in names]
    if any(path.read_bytes() != found[0].read_bytes() for path in found[1:]):
        raise ValueError(f"{found[0]} and {found[-1]} differ; name the folder of one of them with --annotations_dir")
    return found[0] if found else None


def _needed(files: Sequence[Path], *names: str) -> Path:
    path = _find(files, *names)
    if path is None:
        raise ValueError(f"there is no {names[0]}")
    return path


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where a line is and the line, without blank ones; what is no UTF-8 stays as a mark that matches nothing."""
    for number, line in enumerate(path.read_text(encoding="utf-8-sig", errors="replace").splitlines(), start=1):
        if line.strip():
            yield f"{path.name} line {number}", line.strip()


def _csv_fields(line: str) -> list[str]:
    try:
        return [value.strip() for value in next(csv.reader([line]), [])]
    except csv.Error:  # longer than a field can be
        return []


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig", errors="replace"))
    except ValueError as error:
        raise ValueError(f"{path.name} is no JSON ({error})") from error
    if not isinstance(content, kind) or not content:
        raise ValueError(f"{path.name} holds no {'list of videos' if kind is list else 'classes and their numbers'}")
    return content


PUBLISHED_SETS = {
    "ucf101": PublishedSet(
        parse_ucf101,
        "UCF-101/<Class>/<video>.avi and ucfTrainTestlist/{classInd,trainlist01,testlist01}.txt",
        num_classes=101,
        num_folds=3,
        group_pattern=r"(v_.+_g\d+)_c\d+",
    ),
    "hmdb51": PublishedSet(
        parse_hmdb51,
        "<class>/<video>.avi and testTrainMulti_7030_splits/<class>_test_split1.txt",
        num_classes=51,
        num_folds=3,
    ),
    "ssv2": PublishedSet(
        parse_ssv2,
        "20bn-something-something-v2/<id>.webm and labels/{labels,train,validation,test}.json",
        num_classes=174,
    ),
    "kinetics400": PublishedSet(
        parse_kinetics,
        "{train,val,test}/[<class>/]<youtube_id>_<start>_<end>.mp4 (times with 6 digits) and "
        "annotations/{train,val,test}.csv with the header label,youtube_id,time_start,time_end,split",
        num_classes=400,
        group_pattern=r"(.{11})_\d{6}_\d{6}",
    ),
}
