"""Text and CSV files that list videos, one a line, with their labels."""

from __future__ import annotations

import csv
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from .records import GROUP_FIELD, LABEL_FIELDS, VIDEO_EXTENSIONS, VideoRecords, records_of_files

# Header names under which published manifests list the file.
PATH_FIELDS = ("path", "video", "file", "filename", "file_name", "video_path")
_COLUMNS = f"a path column ({', '.join(PATH_FIELDS)}) and, for labels, one of {', '.join(LABEL_FIELDS)}"


@dataclass(frozen=True)
class _Row:
    line: int  # from 1
    path: str
    label: str | None
    group: str | None


@dataclass(frozen=True)
class _Columns:
    path: int = 0
    label: int | None = -1
    group: int | None = None


def load_manifest_records(manifest: str | Path, *, flag: str = "train_manifest") -> VideoRecords:
    """Return the videos that a text or CSV file lists.

    A line is "path label" (the label after the last blank, so paths may hold blanks), tab- or comma-separated. There
    may be a header with a path column (`path`, `video`, `file`, ...), a label column and a `group` column; more than
    two columns need one. The label may be absent from every line. Relative paths start at the manifest's folder. Empty
    lines and lines that start with "#" are skipped.

    Args:
        manifest: The file.
        flag: What error messages call it.

    Raises:
        ValueError: If the file is missing or no text, lists nothing or nothing that exists, does not say which of its
            columns is which, has a label on some lines only, or two labels for one video.
    """
    path = Path(manifest)
    if not path.is_file():
        raise ValueError(f"{flag} ({str(path)!r}) is not a file. Give a text or CSV file of 'path label' lines.")
    try:
        header, rows = _read(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(
            f"{flag} ({str(path)!r}) is no text ({error}). Give a text or CSV file of 'path label' lines in UTF-8."
        ) from error
    if not rows:
        raise ValueError(f"{flag} ({str(path)!r}) lists no video. Write one 'path label' line for each.")
    _check_labels(rows, f"{flag} ({str(path)!r})")
    present, missing = [], []
    for row in rows:
        full = str(path.parent / row.path)
        if Path(full).is_file():
            present.append((full, row))
        else:
            missing.append((full, f"no such file (line {row.line} of {path.name})"))
    if not present:
        raise ValueError(
            f"{flag} ({str(path)!r}): none of its {len(rows)} files exists; the first is {missing[0][0]!r}. "
            "Relative paths start at the manifest's folder."
        )
    labels = None if rows[0].label is None else [row.label for _, row in present]
    report = {"missing_files": tuple(missing), "columns": () if labels else tuple(header)}
    records = records_of_files([full for full, _ in present], labels, name=path.name, **report)
    if not any(row.group for _, row in present):
        return records
    # A video of no group is one of its own.
    own = [row.group or full for full, row in present]
    return replace(records, dataset=records.dataset.add_column(GROUP_FIELD, own))


def _check_labels(rows: Sequence[_Row], manifest: str) -> None:
    unlabelled = [row.line for row in rows if row.label is None]
    if 0 < len(unlabelled) < len(rows):
        raise ValueError(
            f"{manifest} line {unlabelled[0]} has no label, though other lines have one. "
            "Give every line a label, or none."
        )
    first_rows: dict[str, _Row] = {}
    for row in rows:
        first = first_rows.setdefault(os.path.normpath(row.path), row)
        if first.label != row.label:
            raise ValueError(
                f"{manifest} has two labels for {row.path!r}: {first.label!r} on line {first.line}, {row.label!r} on "
                f"line {row.line}. Leave one of the lines out."
            )


def _read(path: Path) -> tuple[list[str], list[_Row]]:
    """Return the names in the header, none where there is no header, and what each line lists."""
    lines = [
        (number, line.strip())
        for number, line in enumerate(path.read_text(encoding="utf-8-sig").splitlines(), start=1)
        if line.strip() and not line.lstrip().startswith("#")
    ]
    names = _fields(lines[0][1], path) if lines else []
    columns = _columns_of([name.lower() for name in names])
    if columns is not None:
        return names, [_row(*line, columns, path) for line in lines[1:]]
    _check_needs_no_header(lines, path)
    return [], [_row(*line, _Columns(), path) for line in lines]


def _columns_of(header: Sequence[str]) -> _Columns | None:
    """Return which columns a header names, None if it is none."""

    def first_of(names: Iterable[str]) -> int | None:
        return next((header.index(name) for name in names if name in header), None)

    path = first_of(PATH_FIELDS)
    if path is None or _names_a_video(header):  # of a class called "video", say
        return None
    return _Columns(path, first_of(LABEL_FIELDS), first_of([GROUP_FIELD]))


def _names_a_video(fields: Sequence[str]) -> bool:
    return any(Path(field).suffix.lower() in VIDEO_EXTENSIONS for field in fields)


def _check_needs_no_header(lines: Sequence[tuple[int, str]], path: Path) -> None:
    """Raise ValueError if the first line is a header of other names, or more columns than two have no names at all."""

    def lists_a_video(line: str) -> bool:
        fields = _fields(line, path)
        return _names_a_video(fields) or (path.parent / fields[0]).is_file()

    if len(lines) > 1 and not lists_a_video(lines[0][1]) and any(lists_a_video(line) for _, line in lines[1:]):
        number, line = lines[0]
        raise ValueError(
            f"{path} line {number} ({line!r}) lists no video, though other lines do. A header names {_COLUMNS}."
        )
    for number, line in lines:
        if len(fields := _fields(line, path)) > 2:
            raise ValueError(
                f"{path} line {number} ({line!r}) has {len(fields)} fields, and no header says what they are. Write "
                f"one as the first line; it names {_COLUMNS}."
            )


def _row(number: int, line: str, columns: _Columns, path: Path) -> _Row:
    fields = _fields(line, path)
    num_needed = 1 + max(columns.path, columns.label or 0, columns.group or 0)
    if len(fields) < num_needed:
        raise ValueError(f"{path} line {number} ({line!r}) has {len(fields)} fields; its header needs {num_needed}.")
    has_label = columns.label is not None and len(fields) > 1
    # An empty field says nothing.
    label = fields[columns.label] or None if has_label else None
    group = fields[columns.group] or None if columns.group is not None else None
    return _Row(number, fields[columns.path], label, group)


def _fields(line: str, path: Path) -> list[str]:
    if "\t" in line:
        return [field.strip() for field in next(csv.reader([line], delimiter="\t"))]
    is_csv_file = path.suffix.lower() == ".csv"
    if not is_csv_file and Path(line).suffix.lower() in VIDEO_EXTENSIONS:
        return [line]  # a path with blanks and no label
    words = line.rsplit(maxsplit=1)
    # A comma may also be part of a file's name.
    if is_csv_file or ("," in line and Path(words[0].rstrip(",")).suffix.lower() not in VIDEO_EXTENSIONS):
        return [field.strip() for field in next(csv.reader([line]))]
    return [word.rstrip(",") for word in words]
