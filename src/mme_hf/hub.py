"""Publishing a finished run on the Hub, and fetching published tracks."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Literal

from huggingface_hub import HfApi, snapshot_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import get_session

# What a run makes for others. Its logs name this machine, its reports name files on it.
PUSHED = (
    "*_mme.py",
    "README.md",
    "config.json",
    "eval_results.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "motion.png",
    "video_preprocessor_config.json",
)
# What `examples/extract_trajectories.py` makes for others.
PUSHED_TRACKS = ("README.md", "data/*.parquet")
_KINDS = {"model": PUSHED, "dataset": PUSHED_TRACKS}


class PushError(RuntimeError):
    """The Hub could not be reached, or refused."""


def create_repository(repository: str, *, token: str | None = None, kind: Literal["model", "dataset"] = "model") -> str:
    """Make sure that `repository` exists and may be written to, before a run begins that is to be pushed to it.

    Args:
        repository: "name" or "user/name".
        token: For the Hub; by default the one this machine is logged in with.
        kind: What the repository is to hold.

    Returns:
        Its full name, "user/name", which is what it is loaded by.

    Raises:
        PushError: If the Hub cannot be reached, or refuses the name or the token.
    """
    try:
        return HfApi(token=token).create_repo(repository, repo_type=kind, exist_ok=True).repo_id
    except _hub_errors() as error:
        raise PushError(
            f"hub_{kind}_id ({repository!r}) cannot be pushed to: {error}. Check the name, the network and the token "
            "(hf auth login), or leave push_to_hub out."
        ) from error


def push_folder(
    folder: str | Path, repository: str, *, token: str | None = None, kind: Literal["model", "dataset"] = "model"
) -> str:
    """Upload what a run has made for others, and return the address of the repository.

    Args:
        folder: As `examples/pretrain.py` leaves it, or `examples/extract_trajectories.py` for a data set.
        repository: "name" or "user/name"; made if it does not exist.
        token: For the Hub; by default the one this machine is logged in with.
        kind: What the repository holds.

    Raises:
        PushError: If it fails; the folder stays as it is, and the message says how to push it later.
    """
    api = HfApi(token=token)
    pushed = list(_KINDS[kind])
    try:
        url = api.create_repo(repository, repo_type=kind, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, repo_type=kind, folder_path=folder, allow_patterns=pushed)
    except _hub_errors() as error:
        included = " ".join(f"--include '{pattern}'" for pattern in pushed)
        raise PushError(
            f"pushing to {repository} failed: {error}. Everything is still in {folder}; push it later with: "
            f"hf upload {repository} {folder} {included}{' --repo-type dataset' if kind == 'dataset' else ''}"
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
        raise OSError(f"data set {repository!r} cannot be fetched from the Hub: {error}") from error


def _hub_errors() -> tuple[type[Exception], ...]:
    # huggingface_hub lets the errors of its HTTP client through, and has changed clients between versions.
    client = import_module(type(get_session()).__module__.split(".")[0])
    return (HfHubHTTPError, HFValidationError, OSError, getattr(client, "HTTPError", OSError))
