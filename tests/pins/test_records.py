"""Scripted runs write what they wrote: records byte for byte, everything else in content."""

from pathlib import Path

import pytest

from tests.pins import records
from tests.pins.pinned import kept_names, require_same
from tests.pins.runs import play


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder: Path = tmp_path_factory.mktemp("pins") / "world"
    said = play(folder)
    return records.pages(folder, said)


@pytest.mark.parametrize("name", kept_names("records"))
def test_scripted_runs_write_what_they_wrote(found: dict[str, str], name: str) -> None:
    require_same(f"records/{name}", found.get(name, ""))


def test_every_text_of_the_runs_is_pinned(found: dict[str, str]) -> None:
    assert sorted(found) == kept_names("records")
