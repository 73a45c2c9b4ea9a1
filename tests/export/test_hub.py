"""Uploads, by a fake of the hub's client."""

from pathlib import Path
from typing import Any

import pytest

from esckit.errors import ConfigError, StorageError
from esckit.export.hub import check_name, planned_upload, push


class FakeHub:
    """Keeps what it was asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.error = error

    def create_repo(self, repo_id: str, **options: Any) -> None:
        self.calls.append(("create_repo", {"repo_id": repo_id, **options}))
        if self.error is not None:
            raise self.error

    def upload_folder(self, **options: Any) -> None:
        self.calls.append(("upload_folder", options))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    (tmp_path / "model" / "model.safetensors").write_bytes(b"x" * 1234)
    return tmp_path / "model"


def test_what_would_be_uploaded_is_said_with_sizes(folder: Path) -> None:
    lines = planned_upload(folder, "me/model", private=True).lines()
    assert lines[0] == "would upload 2 files, 1,236 bytes, to me/model (private):"
    assert lines[1].split() == ["2", "config.json"]
    assert lines[2].split() == ["1,234", "model.safetensors"]
    assert "PUBLIC" in planned_upload(folder, "me/model", private=False).lines()[0]


def test_an_upload_is_private_and_replaces_nothing(folder: Path) -> None:
    hub = FakeHub()
    push(folder, planned_upload(folder, "me/model", private=True), api=hub)
    (first, made), (second, sent) = hub.calls
    assert (first, second) == ("create_repo", "upload_folder")
    assert made == {"repo_id": "me/model", "private": True, "repo_type": "model", "exist_ok": False}
    assert (sent["repo_id"], sent["folder_path"]) == ("me/model", str(folder))


def test_a_hub_that_refuses_leaves_the_folder(folder: Path) -> None:
    hub = FakeHub(OSError("401 Unauthorized"))
    with pytest.raises(StorageError, match="was written, but the hub did not take it: 401 Unauthorized"):
        push(folder, planned_upload(folder, "me/model", private=True), api=hub)
    assert [name for name, _ in hub.calls] == ["create_repo"]
    assert (folder / "config.json").is_file()


@pytest.mark.parametrize("name", ["", "a/b/c", "me/my model", "https://x/y"])
def test_names_that_are_none_of_the_hub(name: str) -> None:
    with pytest.raises(ConfigError, match="OWNER/NAME"):
        check_name(name)
