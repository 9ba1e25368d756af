"""What the tests' Hub holds: repositories of commits, their branches and tags, and who may read and write them."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from fnmatch import fnmatch

import yaml

# As the `.gitattributes` of a new repository has them, as far as this package makes such files.
LARGE_FILES = ("*.safetensors", "*.parquet", "*.bin", "*.pth", "*.mp4")
LARGEST_REGULAR_FILE = 10 * 2**20


class HubError(Exception):
    """What the Hub answers where it refuses: the status, its code for programs, and words."""

    def __init__(self, status: int, message: str, code: str | None = None, **details: object):
        super().__init__(message)
        self.status, self.code, self.details = status, code, details


@dataclass(frozen=True)
class User:
    """Whose token it is, and whether it may write."""

    name: str
    may_write: bool = True


@dataclass(frozen=True)
class File:
    content: bytes = field(repr=False)
    is_large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def blob_id(self) -> str:
        """What git calls it: of a large file its pointer is in git."""
        blob = self.content
        if self.is_large:
            blob = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(blob)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(blob) + blob).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.is_large else self.blob_id

    def entry(self, path: str) -> dict:
        """Describe it as the Hub's listings do."""
        entry = {"type": "file", "path": path, "size": len(self.content), "oid": self.blob_id}
        if self.is_large:
            entry["lfs"] = {"oid": self.sha256, "size": len(self.content), "pointerSize": 134}
        return entry


def is_large(path: str, size: int, sample: bytes) -> bool:
    """Whether the Hub wants a file by LFS: by its name, its size, or because it is no text."""
    name = path.rsplit("/", 1)[-1]
    return size > LARGEST_REGULAR_FILE or b"\0" in sample or any(fnmatch(name, pattern) for pattern in LARGE_FILES)


@dataclass
class Repository:
    """All commits of one repository: a tree of files for each, by its id."""

    kind: str
    name: str
    is_private: bool = False
    trees: dict[str, dict[str, File]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def __post_init__(self):
        self.commit("main", {".gitattributes": File(b"*.safetensors filter=lfs\n", False)}, message="initial commit")

    def commit(
        self,
        branch: str,
        added: dict[str, File],
        *,
        deleted: tuple[str, ...] = (),
        message: str,
        parent: str | None = None,
    ) -> str:
        """Add a commit to a branch and return its id."""
        head = self.branches.get(branch)
        if head is None and self.branches:
            raise HubError(404, f"Invalid rev id: {branch}", "RevisionNotFound")
        if parent is not None and not head.startswith(parent):
            raise HubError(412, "A commit has happened since. Please refresh and try again.")
        tree = {path: file for path, file in self.trees.get(head, {}).items() if not _is_under(path, deleted)}
        tree |= added
        listing = json.dumps([head, message, sorted((path, file.blob_id) for path, file in tree.items())])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        self.trees[commit], self.messages[commit], self.branches[branch] = tree, message, commit
        return commit

    def commit_of(self, revision: str) -> str:
        """Return the commit that a branch, a tag or a commit's own id means."""
        for refs in (self.branches, self.tags):
            if revision in refs:
                return refs[revision]
        if revision in self.trees:
            return revision
        raise HubError(404, f"Invalid rev id: {revision}", "RevisionNotFound")

    def files(self, revision: str = "main") -> dict[str, File]:
        return self.trees[self.commit_of(revision)]

    def content(self, path: str, revision: str = "main") -> bytes:
        return self.files(revision)[path].content

    def may_be_read_by(self, user: User | None) -> bool:
        return not self.is_private or (user is not None and user.name == self.name.split("/")[0])

    def info(self, revision: str) -> dict:
        """Describe it as `/api/models/NAME` does."""
        commit = self.commit_of(revision)
        card = self.trees[commit].get("README.md")
        data = card_metadata(card.content.decode()) if card else {}
        return {
            "_id": hashlib.sha1(self.name.encode()).hexdigest()[:24],
            "id": self.name,
            "author": self.name.split("/")[0],
            "sha": commit,
            "private": self.is_private,
            "gated": False,
            "disabled": False,
            "siblings": [{"rfilename": path} for path in sorted(self.trees[commit])],
            "tags": data.get("tags", []),
            "pipeline_tag": data.get("pipeline_tag"),
            "library_name": data.get("library_name"),
            "cardData": data,
        }

    def listing(self, revision: str, folder: str, *, is_recursive: bool) -> list[dict]:
        """List the files of a folder, and the folders in it, as `/tree` does."""
        prefix = f"{folder}/" if folder else ""
        files = {path: file for path, file in self.files(revision).items() if path.startswith(prefix)}
        if not files:
            raise HubError(404, f"{folder} does not exist on {revision}", "EntryNotFound")
        depth = prefix.count("/")
        folders = {"/".join(path.split("/")[:end]) for path in files for end in range(depth + 1, path.count("/") + 1)}
        entries = [folder_entry(path) for path in folders] + [file.entry(path) for path, file in files.items()]
        entries = [entry for entry in entries if is_recursive or entry["path"].count("/") == depth]
        return sorted(entries, key=lambda entry: entry["path"])

    def entries_of(self, revision: str, paths: list[str]) -> list[dict]:
        """Describe the files and folders among `paths`, as `/paths-info` does: what is not there is left out."""
        files = self.files(revision)
        entries = [files[path].entry(path) for path in paths if path in files]
        return entries + [folder_entry(path) for path in paths if any(name.startswith(f"{path}/") for name in files)]


def folder_entry(path: str) -> dict:
    return {"type": "directory", "path": path, "size": 0, "oid": hashlib.sha1(path.encode()).hexdigest()}


def card_metadata(text: str) -> dict:
    """Return the metadata of a card, or refuse it as the Hub does."""
    match = re.match(r"---\r?\n(.*?)\r?\n---", text, re.DOTALL)
    try:
        data = yaml.safe_load(match.group(1)) if match else {}
    except yaml.YAMLError as error:
        raise HubError(400, "Invalid metadata", errors=[{"message": str(error)}], warnings=[]) from error
    if data.get("model-index") and not all(entry.get("name") for entry in data["model-index"]):
        raise HubError(400, "Invalid metadata", errors=[{"message": '"model-index[0].name" is required'}], warnings=[])
    return data


def _is_under(path: str, deleted: tuple[str, ...]) -> bool:
    return any(path == name or (name.endswith("/") and path.startswith(name)) for name in deleted)
