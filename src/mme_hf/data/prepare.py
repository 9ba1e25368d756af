"""A published data set, from the tree it is downloaded in: `python -m mme_hf.data.prepare ucf101 --root FOLDER`.

What is made is an HF data set: a Video column of paths (no video is copied) and a ClassLabel column in the official
order of the classes. `--dataset_name` of the examples opens it.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NoReturn

from ..wording import counted
from .published_sets import PARTS, PUBLISHED_SETS, Annotations, Entry, LeftOut, PublishedSet
from .records import GROUP_FIELD, VIDEO_EXTENSIONS, files_below

_ALIASES = {"kinetics": "kinetics400"}
_UNLISTED = "video in no annotation"


@dataclass(frozen=True)
class PreparedSet:
    """What was made of a tree.

    Attributes:
        name: Name of the data set, with its fold.
        folder: Where it was written.
        num_videos: Number of videos of each part.
        class_names: In the order of their numbers.
        left_out: What is not in it, and why.
        report: JSON Lines file with `left_out`; there only where there is something to list.
        notes: What else should be known.
    """

    name: str
    folder: Path
    num_videos: dict[str, int]
    class_names: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    report: Path
    notes: tuple[str, ...]

    def __str__(self) -> str:
        videos = ", ".join(f"{part} {number}" for part, number in self.num_videos.items())
        classes = f"{len(self.class_names)} class{'' if len(self.class_names) == 1 else 'es'}"
        kinds = Counter(item.kind for item in self.left_out)
        left_out = f"left out: {_kinds(kinds)}, listed in {self.report}" if kinds else "nothing left out"
        return "; ".join((f"{self.name}: {videos} videos of {classes} in {self.folder}", left_out, *self.notes))


class VideoIndex:
    """Finds the videos of a tree by their names.

    Args:
        root: Folder that all are below.
        files: Paths of files; those that are no videos are passed over.
        class_names: Classes whose folders a video may lie in.
    """

    def __init__(self, root: Path, files: Iterable[Path], class_names: Collection[str]):
        self.root = root
        self.class_keys = {_key(name) for name in class_names}
        self.by_stem: dict[str, list[Path]] = {}
        for path in files:
            if path.suffix.lower() in VIDEO_EXTENSIONS:
                self.by_stem.setdefault(path.stem, []).append(path)

    def find(self, entry: Entry) -> Path | tuple[str, str]:
        """Return the video of an entry, or the kind and the cause of its absence."""
        found = next((self.by_stem[stem] for stem in entry.stems if stem in self.by_stem), [])
        if not found:
            return "missing file", f"no video is called {entry.stems[0]}"
        fits = [path for path in found if entry.class_name is None or self._may_be(path, entry.class_name)]
        if not fits:
            return "missing file", f"{found[0]} lies in the folder of a class other than {entry.class_name}"
        # Kinetics' mirror has whole copies of videos that were corrupted in a folder of their own.
        fits = [path for path in fits if "replacement" in path.relative_to(self.root).parts] or fits
        if len(fits) > 1 and len({path.resolve() for path in fits}) > 1:
            return "ambiguous file", f"{fits[0]} and {fits[1]} have the same name; name one folder with --videos_dir"
        path = fits[0]
        if not path.exists():
            return "missing file", f"{path} is a link to {os.readlink(path)}, which does not exist"
        if not path.stat().st_size:
            return "empty file", f"{path} is empty"
        return path

    def _may_be(self, path: Path, class_name: str) -> bool:
        folders = {_key(part) for part in path.relative_to(self.root).parts[:-1]} & self.class_keys
        return not folders or _key(class_name) in folders


def prepare_set(
    name: str,
    root: str | Path,
    output: str | Path | None = None,
    *,
    fold: int | None = None,
    splits: Sequence[str] | None = None,
    videos_dir: str | Path | None = None,
    annotations_dir: str | Path | None = None,
    max_bad_fraction: float = 0.05,
) -> PreparedSet:
    """Write the HF data set of a published data set, with the paths of its videos.

    A video that several parts name is kept in that of test before validation before train. Every line that does not
    become a record is counted and listed in `<output>.left_out.jsonl`, also where the data set is not written.

    Args:
        name: One of `PUBLISHED_SETS`, or "kinetics".
        root: Folder that the data set was downloaded to.
        output: Folder to write; by default "outputs/<name>".
        fold: Which of the official divisions, from 1, of a set that has several; by default the first.
        splits: Parts to write: "train", "validation", "test"; by default all that there are annotations of.
        videos_dir: Folder of the videos, where they are not below `root` or there more than once.
        annotations_dir: Folder of the annotation files, in the same cases.
        max_bad_fraction: Largest share of the lines of a part that may be left out, in [0, 1].

    Raises:
        ValueError: If a value is out of range, the tree is not laid out as the set is, a part has no annotations, or
            too much of one is left out.
    """
    name = _ALIASES.get(name, name)
    fold = _checked_fold(name, fold)
    if not 0.0 <= max_bad_fraction <= 1.0:
        raise ValueError(f"max_bad_fraction ({max_bad_fraction}) must lie in [0, 1], such as 0.05.")
    published = PUBLISHED_SETS[name]
    full_name = f"{name}-fold{fold}" if published.num_folds > 1 else name
    folder = Path(os.path.abspath(output or Path("outputs") / full_name))  # "." has no name of its own
    _check_output(folder)
    annotations, index = _read_tree(name, published, fold, root, videos_dir, annotations_dir)
    annotated = [part for part in PARTS if any(entry.part == part for entry in annotations.entries)]
    chosen = [part for part in PARTS if part in splits] if splits else annotated
    for part in splits or ():
        if part not in annotated:
            raise ValueError(f"split ({part!r}) has no annotations in {root}; there are some of {_listed(annotated)}.")
    kept, left_out = _sorted_out(annotations, index)
    left_out = [item for item in left_out if item.split in (None, *chosen)]
    report = folder.with_name(f"{folder.name}.left_out.jsonl")
    unlisted = list(_unlisted(annotations, index))
    _write_report(report, [*left_out, *unlisted])
    for part in chosen:
        num_lines = sum(entry.part == part for entry in annotations.entries)
        _check_share(part, num_lines, len(kept[part]), left_out, report, max_bad_fraction)
    _write(folder, {part: kept[part] for part in chosen}, annotations.class_names, published.group_pattern)
    num_videos = {part: len(kept[part]) for part in chosen}
    notes = _notes(published, annotations, kept, annotated)
    left = (*left_out, *unlisted)
    return PreparedSet(full_name, folder, num_videos, annotations.class_names, left, report, notes)


def _checked_fold(name: str, fold: int | None) -> int:
    if name not in PUBLISHED_SETS:
        raise ValueError(f"set ({name!r}) must be one of {', '.join(sorted({*PUBLISHED_SETS, *_ALIASES}))}.")
    num_folds = PUBLISHED_SETS[name].num_folds
    if fold is not None and num_folds == 1:
        raise ValueError(f"fold ({fold}) is given, and {name} has no folds. Leave it out.")
    if fold is not None and not 1 <= fold <= num_folds:
        raise ValueError(f"fold ({fold}) must lie between 1 and {num_folds}.")
    return fold or 1


def _read_tree(
    name: str,
    published: PublishedSet,
    fold: int,
    root: str | Path,
    videos_dir: str | Path | None,
    annotations_dir: str | Path | None,
) -> tuple[Annotations, VideoIndex]:
    """Return what the annotations say, and the videos that there are."""
    folders = {"root": root, "videos_dir": videos_dir or root, "annotations_dir": annotations_dir or root}
    for flag, folder in folders.items():
        if not Path(folder).is_dir():
            raise ValueError(f"{flag} ({str(folder)!r}) is not a folder. Expected in it: {published.layout}.")
    # Absolute, so that the data set is found from any folder; not resolved, so that links stay what they are.
    paths = {flag: Path(os.path.abspath(folder)) for flag, folder in folders.items()}
    files = {folder: files_below(folder) for folder in {paths["videos_dir"], paths["annotations_dir"]}}
    of_annotations, of_videos = files[paths["annotations_dir"]], files[paths["videos_dir"]]
    try:
        annotations = published.parse(of_annotations, fold)
        if not any(entry.part for entry in annotations.entries):
            raise ValueError(f"no annotation file of fold {fold} names a video")
        index = VideoIndex(paths["videos_dir"], of_videos, annotations.class_names)
        if not index.by_stem:
            raise ValueError("there is no video")
    except ValueError as error:
        found = _found_in(paths["annotations_dir"], of_annotations)
        if of_videos is not of_annotations:
            found += f"; {_found_in(paths['videos_dir'], of_videos)}"
        raise ValueError(
            f"root ({str(root)!r}) is no {name}: {error}. Expected: {published.layout}. {found}."
        ) from error
    return annotations, index


def _found_in(folder: Path, files: Sequence[Path]) -> str:
    entries = sorted(path.name + "/" * path.is_dir() for path in folder.iterdir())
    endings = Counter(path.suffix.lower() or path.name for path in files).most_common(4)
    kinds = ", ".join(f"{number} {ending}" for ending, number in endings)
    return f"Found in {folder}: {_listed(entries[:6]) or 'nothing'}{', ...' if len(entries) > 6 else ''}" + (
        f" ({kinds})" if kinds else ""
    )


def _sorted_out(
    annotations: Annotations, index: VideoIndex
) -> tuple[dict[str, list[tuple[Path, int | None]]], list[LeftOut]]:
    """Return the videos and class numbers of each part, and what is left out of all of them."""
    numbers = {class_name: number for number, class_name in enumerate(annotations.class_names)}
    labelled = {entry.part for entry in annotations.entries if entry.class_name} | {"train", "validation"}
    named: dict[Path, list[Entry]] = {}
    left_out = list(annotations.left_out)
    for entry in annotations.entries:
        if entry.part is None:
            continue
        if entry.class_name is None and entry.part in labelled:
            fault = ("missing label", f"{entry.stems[0]} has no class")
        elif entry.class_name is not None and entry.class_name not in numbers:
            fault = ("unknown label", f"{entry.class_name!r} is no class of the set")
        else:
            fault = index.find(entry)
            if isinstance(fault, Path):
                named.setdefault(fault, []).append(entry)
                continue
        left_out.append(LeftOut(entry.part, entry.where, *fault))
    kept: dict[str, list[tuple[Path, int | None]]] = {part: [] for part in PARTS}
    for path, entries in named.items():
        chosen, others = _first_of(path, entries)
        left_out += others
        if chosen:
            kept[chosen.part].append((path, numbers.get(chosen.class_name)))
    return kept, left_out


def _first_of(path: Path, entries: Sequence[Entry]) -> tuple[Entry | None, list[LeftOut]]:
    """Return the entry that a video is kept for, if any, and the others."""
    last_part = max((entry.part for entry in entries), key=PARTS.index)
    first, *others = (entry for entry in entries if entry.part == last_part)
    left_out = [
        LeftOut(entry.part, entry.where, "overlap", f"{path} is in {last_part} too, by {first.where}")
        for entry in entries
        if entry.part != last_part
    ]
    if len({entry.class_name for entry in (first, *others)}) > 1:
        cause = f"{path} is named with different classes, such as by {others[0].where}"
        return None, left_out + [LeftOut(last_part, entry.where, "repeated line", cause) for entry in (first, *others)]
    cause = f"{path} is named before, by {first.where}"
    return first, left_out + [LeftOut(last_part, entry.where, "repeated line", cause) for entry in others]


def _unlisted(annotations: Annotations, index: VideoIndex) -> Iterator[LeftOut]:
    named = {stem for entry in annotations.entries for stem in entry.stems}
    for stem in sorted(set(index.by_stem) - named):
        for path in index.by_stem[stem]:
            yield LeftOut(None, str(path), _UNLISTED, "no line of an annotation file that can be read names it")


def _check_share(
    part: str, num_lines: int, num_kept: int, left_out: Sequence[LeftOut], report: Path, max_bad_fraction: float
) -> None:
    # A line whose part cannot be told may be of any.
    bad = [item for item in left_out if item.split in (None, part)]
    num_lines += sum(item.kind == "broken line" for item in bad)
    if num_kept and len(bad) <= max_bad_fraction * num_lines:
        return
    first = f"the first is {bad[0].source}: {bad[0].cause}"
    what = f"{len(bad)} of {num_lines} lines of {part} are left out ({_kinds(Counter(item.kind for item in bad))}), "
    if not num_kept:
        raise ValueError(f"{what}so that nothing is left; {first}. All are listed in {report}.")
    raise ValueError(
        f"{what}more than max_bad_fraction ({max_bad_fraction:.0%}) allows; {first}. All are listed in {report}. "
        "Mend them, or raise --max_bad_fraction."
    )


def _notes(
    published: PublishedSet, annotations: Annotations, kept: dict[str, list], annotated: Collection[str]
) -> tuple[str, ...]:
    notes = []
    if len(annotations.class_names) != published.num_classes:
        notes.append(f"the full set has {published.num_classes} classes")
    num_seen = len({number for _, number in kept["train"]})
    if "train" in annotated and num_seen < len(annotations.class_names):
        notes.append(f"only {num_seen} of the classes have a video to train on")
    notes += [f"{part} has no labels" for part in annotated if kept[part] and kept[part][0][1] is None]
    return tuple(notes)


def _check_output(folder: Path) -> None:
    # What is there is replaced; it must be nothing else than what this command made.
    made = {folder / "data", *(_parquet(folder, part) for part in PARTS)}
    if folder.exists() and not (folder.is_dir() and all(path in made for path in folder.rglob("*"))):
        raise ValueError(
            f"output ({str(folder)!r}) holds more than a data set that this command made. Name another folder."
        )


def _parquet(folder: Path, part: str) -> Path:
    return folder / "data" / f"{part}-00000-of-00001.parquet"


def _write(folder: Path, parts: dict, class_names: Sequence[str], group_pattern: str | None) -> None:
    """Write the Parquet files of a data set, which is whole or as it was before."""
    from datasets import ClassLabel, Dataset, Features, Value, Video

    features = Features({"video": Video(), "label": ClassLabel(names=list(class_names))})
    if group_pattern:
        features[GROUP_FIELD] = Value("string")
    unfinished = folder.with_name(f".{folder.name}.tmp")
    if unfinished.exists():  # of a run that was killed
        shutil.rmtree(unfinished)
    (unfinished / "data").mkdir(parents=True)
    for part, videos in parts.items():
        columns = {"video": [str(path) for path, _ in videos], "label": [number for _, number in videos]}
        if group_pattern:
            matches = [(path.stem, re.fullmatch(group_pattern, path.stem)) for path, _ in videos]
            columns[GROUP_FIELD] = [match[1] if match else stem for stem, match in matches]
        # Unlike save_to_disk, to_parquet leaves the videos where they are.
        dataset = Dataset.from_dict(columns, features=features)
        dataset.to_parquet(_parquet(unfinished, part))
    if folder.exists():
        shutil.rmtree(folder)
    unfinished.rename(folder)


def _write_report(path: Path, left_out: Sequence[LeftOut]) -> None:
    path.unlink(missing_ok=True)
    if left_out:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(json.dumps(asdict(item)) + "\n" for item in left_out), encoding="utf-8")


def _kinds(kinds: Counter) -> str:
    unlisted = f"{kinds[_UNLISTED]} of the videos are in no annotation" if kinds[_UNLISTED] else ""
    return ", ".join(filter(None, (*(counted(kinds[k], k) for k in sorted(kinds) if k != _UNLISTED), unlisted)))


def _listed(names: Iterable[str]) -> str:
    return ", ".join(names)


def _key(name: str) -> str:
    # A folder may have underscores for a class' blanks, and lacks its apostrophes in some copies of Kinetics.
    return re.sub(r"[\W_]+", "", name).casefold()


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ValueError(message)  # argparse's own prints the usage first


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(
        prog="python -m mme_hf.data.prepare",
        description="Make the HF data set of a published data set: paths of the videos, and their classes.",
        epilog="; ".join(f"{name} is expected as {published.layout}" for name, published in PUBLISHED_SETS.items()),
        allow_abbrev=False,
    )
    parser.add_argument("set", metavar="SET", help=", ".join(sorted({*PUBLISHED_SETS, *_ALIASES})))
    parser.add_argument("--root", required=True, help="folder that the set was downloaded to")
    parser.add_argument("--output", help="folder to write; default: outputs/SET, or outputs/SET-foldN")
    parser.add_argument("--fold", type=int, help="official division of ucf101 and hmdb51: 1 (default), 2 or 3")
    parser.add_argument("--split", nargs="+", choices=PARTS, help="parts to write; default: all")
    parser.add_argument("--videos_dir", help="folder of the videos; default: anywhere below root")
    parser.add_argument("--annotations_dir", help="folder of the annotation files; default: anywhere below root")
    parser.add_argument(
        "--max_bad_fraction", type=float, default=0.05, help="share of a part's lines that may be left out (0.05)"
    )
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; a mistake in the arguments or the tree ends it with one line."""
    from datasets import disable_progress_bars

    disable_progress_bars()
    try:
        args = _parse(argv)
        options = {name: value for name, value in vars(args).items() if name not in ("set", "root", "output", "split")}
        print(prepare_set(args.set, args.root, args.output, splits=args.split, **options))
    except (ValueError, OSError) as error:  # OSError: a disk that is full, a folder that may not be written
        sys.exit(f"mme_hf.data.prepare: error: {error}")


if __name__ == "__main__":
    main()
