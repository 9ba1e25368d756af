"""Action sets as manifests, and copies of their videos with frames left out."""

from __future__ import annotations

import csv
import json
import random
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import av

from mme_hf import open_video

PARTS = ("train", "test")
_COLUMNS = ("path", "label", "group")


@dataclass(frozen=True)
class ActionSet:
    """A set of actions, as manifests that the scripts read.

    Attributes:
        name: Of its folder.
        train: Manifest of its training part.
        test: Manifest of its test part.
    """

    name: str
    train: Path
    test: Path


def write_manifests(data: Path, folder: Path) -> tuple[list[ActionSet], dict[str, Path]]:
    """Write manifests of every set's parts, and of the parts of all sets together; return them.

    A video without a group in DATA/manifest.csv, or of one called "unknown", is a group of its own. A group called
    CLASS_x there is x in all classes of the training part: videos of several classes may be of one scene. The training
    parts together are also there as two: "validation", every fifth group of a set in random order, and "fit", the rest.

    Raises:
        SystemExit: If `data` holds no set with both parts.
    """
    groups = {}
    if (data / "manifest.csv").exists():
        lines = read_lines(data / "manifest.csv")
        groups = {line["path"]: line["group"] for line in lines if line.get("group") not in (None, "", "unknown")}
    sets, lines_of = [], {"train": [], "test": [], "fit": [], "validation": []}
    for root in sorted(path for path in data.iterdir() if all((path / part).is_dir() for part in PARTS)):
        paths = {}
        for part in PARTS:
            videos = [path for path in sorted((root / part).glob("*/*")) if path.is_file()]
            names = [video.relative_to(data).as_posix() for video in videos]
            own = [groups.get(name, name) for name in names]
            if part == "train":
                own = [group.removeprefix(f"{video.parent.name}_") for video, group in zip(videos, own, strict=True)]
            lines = [
                {"path": str(video), "label": video.parent.name, "group": group}
                for video, group in zip(videos, own, strict=True)
            ]
            paths[part] = write_lines(folder / f"{root.name}-{part}.csv", lines)
            lines_of[part] += lines
            if part == "train":
                held_out = _every_fifth({line["group"] for line in lines})
                lines_of["fit"] += [line for line in lines if line["group"] not in held_out]
                lines_of["validation"] += [line for line in lines if line["group"] in held_out]
        sets.append(ActionSet(root.name, paths["train"], paths["test"]))
    if not sets:
        sys.exit(f"study.py: error: {data} holds no folders SET/train/CLASS and SET/test/CLASS.")
    return sets, {part: write_lines(folder / f"all-{part}.csv", lines) for part, lines in lines_of.items()}


def facts_of(actions: ActionSet) -> dict[str, Any]:
    """Return what is to be known of a set beside its videos: classes, groups, and what the same videos have in common.

    Returns:
        `num_classes`, `train_groups` and `test_groups` (a number for each video, in order), and `videos`, a hash of
        their names, sizes and groups.
    """
    lines = {part: read_lines(getattr(actions, part)) for part in PARTS}
    groups = {part: numbered(line["group"] for line in own) for part, own in lines.items()}
    videos = [
        [part, line["label"], Path(line["path"]).name, Path(line["path"]).stat().st_size, group]
        for part, own in lines.items()
        for line, group in zip(own, groups[part], strict=True)
    ]
    return {
        "num_classes": len({line["label"] for line in lines["test"]}),
        "videos": blake2b(json.dumps(videos).encode(), digest_size=8).hexdigest(),
        **{f"{part}_groups": numbers for part, numbers in groups.items()},
    }


def numbered(names: Iterable[str]) -> list[int]:
    """Return a number for each name, the same for equal ones, from 0 in the order in which they come."""
    numbers: dict[str, int] = {}
    return [numbers.setdefault(name, len(numbers)) for name in names]


def _every_fifth(groups: set[str]) -> set[str]:
    ordered = sorted(groups)
    random.Random(0).shuffle(ordered)
    return set(ordered[::5])


def thinned(manifest: Path, step: int) -> Path:
    """Return a manifest of lossless copies of its videos with every `step`-th frame alone.

    They lie beside the manifest, and are made unless they are there.
    """
    # Another manifest has other copies.
    digest = blake2b(manifest.read_bytes(), digest_size=4).hexdigest()
    path = manifest.with_name(f"{manifest.stem}-every-{step}-{digest}.csv")
    if path.exists():
        return path
    folder = manifest.with_name(f"every-{step}-{digest}")
    lines = []
    for number, line in enumerate(read_lines(manifest)):
        copy = folder / manifest.stem / f"{number:05}.mkv"
        if not copy.exists():
            _write_every(step, Path(line["path"]), copy)
        lines.append({**line, "path": str(copy)})
    return write_lines(path, lines)


def _write_every(step: int, source: Path, copy: Path) -> None:
    with open_video(source) as video:
        frames = video.frames_at(range(0, video.num_frames, step))
    copy.parent.mkdir(parents=True, exist_ok=True)
    unfinished = copy.with_suffix(".part.mkv")
    with av.open(str(unfinished), "w") as container:
        stream = container.add_stream("ffv1", rate=8)
        stream.height, stream.width, stream.pix_fmt = *frames.shape[-2:], "bgr0"
        for frame in frames.permute(0, 2, 3, 1).contiguous().numpy():
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode())
    unfinished.rename(copy)


def read_lines(path: Path) -> list[dict[str, str]]:
    """Return the lines of a CSV file with a header."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def write_lines(path: Path, lines: Iterable[dict[str, str]]) -> Path:
    """Write a manifest and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, _COLUMNS)
        writer.writeheader()
        writer.writerows(lines)
    return path
