"""Publishing a finished run on the Hub."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

# Of no use to whoever downloads a model, or naming paths of the machine that made it.
NOT_PUSHED = ("checkpoint-*", "checkpoint-*/**", "bad_videos.jsonl", "ignored_files.txt")


class PushError(RuntimeError):
    """The Hub could not be reached, or refused."""


def push_folder(folder: str | Path, repository: str, *, token: str | None = None) -> str:
    """Upload a run's folder, without its checkpoints, and return the address of the repository.

    Args:
        folder: As `examples/pretrain.py` leaves it.
        repository: "name" or "user/name"; made if it does not exist.
        token: For the Hub; by default the one this machine is logged in with.

    Raises:
        PushError: If it fails; the folder stays as it is, and the message says how to push it later.
    """
    api = HfApi(token=token)
    try:
        url = api.create_repo(repository, exist_ok=True)
        api.upload_folder(repo_id=url.repo_id, folder_path=folder, ignore_patterns=list(NOT_PUSHED))
    except (HfHubHTTPError, OSError) as error:
        excluded = " ".join(f"--exclude '{pattern}'" for pattern in NOT_PUSHED)
        raise PushError(
            f"pushing to {repository} failed: {error}. Everything is still in {folder}; push it later with: "
            f"hf upload {repository} {folder} {excluded}"
        ) from error
    return str(url)
