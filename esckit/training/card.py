"""Model cards: a template that ships, filled with what the run knows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import resources
from string import Template
from typing import Any


def render_card(name: str, **facts: object) -> str:
    """Return the card ``name`` with every fact filled in.

    Raises:
        KeyError: If the template names a fact that is not given.
    """
    text = resources.files("esckit.training").joinpath("cards", f"{name}.md").read_text(encoding="utf-8")
    return Template(text).substitute({key: str(value) for key, value in facts.items()})


def metrics_table(columns: Mapping[str, Mapping[str, Any]], names: Sequence[str]) -> str:
    """Return metrics as a Markdown table, a row for each name; ``–`` where there is none."""
    lines = [f"| metric | {' | '.join(columns)} |", f"|---{'|---' * len(columns)}|"]
    for name in names:
        cells = (_cell(column.get(name)) for column in columns.values())
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    return "–" if value is None else f"{value:.4f}" if isinstance(value, float) else str(value)
