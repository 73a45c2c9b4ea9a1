"""Uploads an export to the Hugging Face hub, after it was said what would be uploaded."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from esckit.errors import ConfigError, StorageError

_NAME = re.compile(r"[\w.-]+(/[\w.-]+)?", re.ASCII)


class HubApi(Protocol):
    """What of ``huggingface_hub.HfApi`` is used."""

    def create_repo(self, repo_id: str, *, private: bool, repo_type: str, exist_ok: bool) -> Any:
        """Make a repository."""
        ...

    def upload_folder(self, *, repo_id: str, folder_path: str, repo_type: str, commit_message: str) -> Any:
        """Upload all files of a folder."""
        ...


class Upload(NamedTuple):
    """What would be uploaded: the repository, whether only its owner sees it, and files with their sizes in bytes."""

    name: str
    private: bool
    files: tuple[tuple[str, int], ...]

    def lines(self) -> list[str]:
        """Return it for reading."""
        total = sum(size for _, size in self.files)
        shown = [f"  {size:>15,}  {name}" for name, size in self.files]
        seen = "private" if self.private else "PUBLIC"
        return [f"would upload {len(self.files)} files, {total:,} bytes, to {self.name} ({seen}):", *shown]


def check_name(name: str) -> None:
    """Refuse what is no name of a repository.

    Raises:
        ConfigError: If it is none.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"--push {name!r}", expected="a name on the hub, OWNER/NAME")


def planned_upload(folder: Path, name: str, *, private: bool) -> Upload:
    """Return what an upload of a folder would send."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return Upload(name, private, tuple((str(path.relative_to(folder)), path.stat().st_size) for path in files))


def push(folder: Path, upload: Upload, *, api: HubApi | None = None) -> None:
    """Upload a folder.

    Args:
        folder: The export.
        upload: What was planned.
        api: The hub's client; None takes huggingface_hub's.

    Raises:
        StorageError: If the hub refuses, or does not answer; the folder stays.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    client: Any = api if api is not None else HfApi()
    try:
        client.create_repo(upload.name, private=upload.private, repo_type="model", exist_ok=False)
        client.upload_folder(
            repo_id=upload.name, folder_path=str(folder), repo_type="model", commit_message="Exported by esckit"
        )
    except (HfHubHTTPError, OSError, ValueError) as error:
        raise StorageError(
            f"{folder} was written, but the hub did not take it: {' '.join(str(error).split())}",
            hint=f"Log in with `hf auth login`, or upload it by hand: hf upload {upload.name} {folder}",
        ) from error
