"""docs/data.md repeats what taxonomies, mappings and loaders hold; here it is held to them."""

import re
from pathlib import Path

import pytest

from esckit.strategies.taxonomy import load_mapping, load_taxonomy

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "data.md").read_text(encoding="utf-8")


def _rows(head: str) -> list[list[str]]:
    """Return the rows of the table whose header line starts so."""
    lines = PAGE[PAGE.index(f"\n{head}") + 1 :].split("\n\n", 1)[0].split("\n")
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize(
    ("source", "mappings"),
    [
        ("extes", ["extes_to_esconv.published", "extes_to_esconv.proposed", "extes_to_aflow"]),
        ("esconv", ["esconv_to_aflow"]),
    ],
)
def test_mapping_tables(source: str, mappings: list[str]) -> None:
    maps = [load_mapping(name).map for name in mappings]
    expected = [
        [strategy.name, strategy.abbr, *(targets[strategy.name] or "–" for targets in maps)]
        for strategy in load_taxonomy(source).strategies
    ]
    assert _rows(f"| {source} |") == expected


def test_every_code_on_the_page_is_one_that_the_package_gives() -> None:
    code = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "esckit").rglob("*.py"))
    named = [name for row in _rows("| code |") for name in re.findall(r"`(\w+)`", row[0])]
    assert len(named) == len(set(named)) == 37
    assert [name for name in named if f'"{name}"' not in code] == []
