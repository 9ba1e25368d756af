"""Publishing a finished run on the Hub, and fetching published tracks."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Literal

from huggingface_hub import HfApi, RepoUrl, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import filter_repo_objects, get_session

# What a run makes for others. Its logs name this machine, its reports name files on it.
PUSHED = (
    "*_mme.py",
    "README.md",
    "config.json",
    "eval_results.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "model_card.json",
    "motion.png",
    "video_preprocessor_config.json",
)
# What `examples/extract_trajectories.py` makes for others.
PUSHED_TRACKS = ("README.md", "data/*.parquet")
_KINDS = {"model": PUSHED, "dataset": PUSHED_TRACKS}
# A star stands for slashes too: without these, "*_mme.py" would be that of the folder `last` as well.
_TOO_DEEP = {"model": "*/*", "dataset": "*/*/*"}


class PushError(RuntimeError):
    """The Hub could not be reached, or refused."""


def create_repository(
    repository: str,
    *,
    token: str | None = None,
    kind: Literal["model", "dataset"] = "model",
    private: bool = False,
) -> str:
    """Make sure that `repository` exists and may be written to, before a run begins that is to be pushed to it.

    Args:
        repository: "name" or "user/name".
        token: For the Hub; by default the one this machine is logged in with.
        kind: What the repository is to hold.
        private: Whether it must be private: a new one is made so, a public one is refused.

    Returns:
        Its full name, "user/name", which is what it is loaded by.

    Raises:
        PushError: If the Hub cannot be reached, or refuses the name or the token, or the repository is public and was
            not to be.
    """
    api = HfApi(token=token)
    try:
        name = _existing_repository(api, repository, kind, private).repo_id
        # An existing one is found without the right to write; that would show only after the run.
        api.auth_check(name, repo_type=kind, write=True)
    except (*_hub_errors(), PushError) as error:
        raise PushError(
            f"hub_{kind}_id ({repository!r}) cannot be pushed to: {_in_one_line(error)}. Check the name, the network "
            "and the token (hf auth login), or leave push_to_hub out."
        ) from error
    return name


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    token: str | None = None,
    kind: Literal["model", "dataset"] = "model",
    private: bool = False,
) -> str:
    """Upload what a run has made for others, and return the address of the repository.

    Args:
        folder: As `examples/pretrain.py` leaves it, or `examples/extract_trajectories.py` for a data set.
        repository: "name" or "user/name"; made if it does not exist.
        token: For the Hub; by default the one this machine is logged in with.
        kind: What the repository holds.
        private: Whether it must be private, as in `create_repository`.

    Raises:
        PushError: If it fails, or a file would tell the path of something on this machine; the folder stays as it is,
            and the message says how to push it later.
    """
    api = HfApi(token=token)
    try:
        _check_names_nothing_local(Path(folder), _KINDS[kind])
        url = _existing_repository(api, repository, kind, private)
        what = {"allow_patterns": list(_KINDS[kind]), "ignore_patterns": _TOO_DEEP[kind]}
        api.upload_folder(repo_id=url.repo_id, repo_type=kind, folder_path=folder, **what)
    except Exception as error:  # the client's uploading threads let through errors of any kind, hf_xet's for one
        raise PushError(
            f"pushing to {repository} failed: {_in_one_line(error)}. Everything is still in {folder}; push it later "
            f"with: {_upload_command(folder, repository, kind, private)}"
        ) from error
    return str(url)


def download_tracks(repository: str) -> Path:
    """Return the local folder of a data set of tracks on the Hub, whose shards are fetched unless they are there.

    Args:
        repository: "user/name".

    Raises:
        OSError: If there is no such data set, or it cannot be fetched.
    """
    try:
        return Path(snapshot_download(repository, repo_type="dataset", allow_patterns=list(PUSHED_TRACKS)))
    except _hub_errors() as error:
        raise OSError(f"data set {repository!r} cannot be fetched from the Hub: {_in_one_line(error)}") from error


def _check_names_nothing_local(folder: Path, patterns: Sequence[str]) -> None:
    """Refuse JSON with the path of something on this machine, such as a target's teacher: nobody else could load it."""
    for name in filter_repo_objects(sorted(path.name for path in folder.glob("*.json")), allow_patterns=patterns):
        for key, words in _strings_in(json.loads((folder / name).read_text(encoding="utf-8"))):
            # A word may happen to be a file here too; the name of a teacher is either a folder's or the Hub's.
            if (key == "teacher" or Path(words).is_absolute()) and Path(words).exists():
                raise PushError(f"{name} names {words}, which is on this machine alone. Put a Hub name there instead")


def _strings_in(value: Any, key: str | None = None) -> Iterator[tuple[str | None, str]]:
    """Yield (key, string) of every string, however deep; a list's have the list's key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, dict | list):
        for own, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from _strings_in(item, own)


def _existing_repository(api: HfApi, repository: str, kind: str, private: bool) -> RepoUrl:
    # None rather than False: some organisations make all that is new private.
    url = api.create_repo(repository, repo_type=kind, private=private or None, exist_ok=True)
    if private and not api.repo_info(url.repo_id, repo_type=kind).private:
        raise PushError(f"hub_private_repo is on, but {url.repo_id} exists and is public")
    return url


def _upload_command(folder: str | Path, repository: str, kind: str, private: bool) -> str:
    words = ["hf", "upload", repository, str(folder)]
    words += [word for pattern in _KINDS[kind] for word in ("--include", pattern)]
    words += ["--exclude", _TOO_DEEP[kind]]
    words += ["--repo-type", "dataset"] if kind == "dataset" else []
    return shlex.join(words + (["--private"] if private else []))


def _in_one_line(error: BaseException) -> str:
    # A failed upload names the file, and only its cause why. The cause of a refusal just says it again.
    reasons = [error] if isinstance(error, HfHubHTTPError) else [error, error.__cause__]
    return ": ".join(dict.fromkeys(" ".join(str(reason).split()).rstrip(".") for reason in reasons if reason))


def _hub_errors() -> tuple[type[Exception], ...]:
    # huggingface_hub lets the errors of its HTTP client through, and has changed clients between versions.
    client = import_module(type(get_session()).__module__.split(".")[0])
    return (HfHubHTTPError, HFValidationError, OSError, getattr(client, "HTTPError", OSError))
