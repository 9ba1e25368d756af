"""What the tests' Hub holds by xet: hf_xet itself keeps it, in a folder, which it takes for a server."""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path

_ENTRY = 48  # bytes of everything in a shard
_HAS_VERIFICATION, _HAS_SHA256 = 1 << 31, 1 << 30
_FAR_FUTURE = 9_999_999_999


class XetStore:
    """Files by their SHA-256, as hf_xet stores and finds them under `folder`."""

    def __init__(self, folder: Path):
        folder.mkdir()
        self.folder, self.url = folder, f"local://{folder}"

    def access(self) -> dict:
        """Return what the Hub tells who wants to send or fetch files."""
        return {"accessToken": "xet", "exp": _FAR_FUTURE, "casUrl": self.url}

    def hash_of(self, sha256: str) -> str | None:
        """Return what xet calls a file."""
        return next((own for known, own in self._files() if known == sha256), None)

    def read(self, sha256: str, size: int) -> bytes | None:
        """Return the file, put together again by hf_xet."""
        import hf_xet

        own = self.hash_of(sha256)
        if own is None:
            return None
        with tempfile.TemporaryDirectory() as folder:
            access = {"endpoint": self.url, "token": "xet", "token_expiry_unix_secs": _FAR_FUTURE}
            with hf_xet.XetSession().new_file_download_group(**access) as group:
                group.start_download_file(hf_xet.XetFileInfo(own, size), f"{folder}/file")
            return Path(folder, "file").read_bytes()

    def _files(self) -> Iterator[tuple[str, str]]:
        """Yield (SHA-256, xet's hash) of each file that a shard lists.

        Source: "Xet protocol specification", the file section of a shard: for each file a header (hash, flags, number
        of segments), its segments, as many verifications, and its SHA-256; all of 48 bytes.
        """
        for shard in self.folder.rglob("shards/*.mdb"):
            content, place = shard.read_bytes(), _ENTRY
            while (header := content[place : place + _ENTRY])[:32] != b"\xff" * 32:
                flags, num_segments = struct.unpack("<II", header[32:40])
                place += _ENTRY * (1 + num_segments * (2 if flags & _HAS_VERIFICATION else 1))
                if flags & _HAS_SHA256:
                    yield _hexadecimal(content[place : place + 32]), _hexadecimal(header[:32])
                    place += _ENTRY


def _hexadecimal(value: bytes) -> str:
    return "".join(f"{word:016x}" for word in struct.unpack("<4Q", value))
