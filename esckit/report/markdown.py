"""A report as Markdown: the same tables, without anything to click."""

from __future__ import annotations

import re
from collections.abc import Iterator

from esckit.report.blocks import Block, Code, Explorer, Facts, Note, Points, Report, Table, Tiles
from esckit.report.tables import chart_table

# Underscores inside words and brackets that open no link mean nothing to Markdown.
_SPECIAL = re.compile(r"([\\`*<>|~&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^#)")

_INVISIBLE = re.compile("[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]+")

_SIGNS = {"warning": "⚠ ", "bad": "✗ ", "good": "✓ ", "info": ""}

_MOST_ROWS = 60


def render_markdown(report: Report) -> str:
    """Return a report as Markdown."""
    lines = [f"# {escaped(report.title)}", ""]
    for part in report.parts:
        if len(report.parts) > 1:
            lines += [f"## {escaped(part.kicker)}: {escaped(part.title)}", ""]
        for section in part.sections:
            lines += [f"{'###' if len(report.parts) > 1 else '##'} {escaped(section.title)}", ""]
            for block in section.blocks:
                lines += [*_block(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line, without control and direction marks."""
    return _SPECIAL.sub(r"\\\1", _INVISIBLE.sub(" ", text)).strip()


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Facts):
        yield from (f"- **{escaped(name)}**: {escaped(value)}" for name, value in block.pairs)
    elif isinstance(block, Tiles):
        yield from (
            f"- **{escaped(tile.label)}**: {escaped(tile.value)}{f' ({escaped(tile.basis)})' if tile.basis else ''}"
            for tile in block.tiles
        )
    elif isinstance(block, Note):
        yield f"> {_SIGNS[block.kind]}{escaped(block.text)}"
    elif isinstance(block, Points):
        yield f"{escaped(block.title)}:\n"
        yield from (f"- {escaped(sentence)}" for sentence in block.sentences)
    elif isinstance(block, Code):
        yield f"**{escaped(block.title)}**\n"
        # An indented block cannot be closed from inside.
        yield from (f"    {_INVISIBLE.sub(' ', line)}" for line in block.text.splitlines())
    elif isinstance(block, Explorer):
        for table in block.tables:
            yield from _table(table)
    else:
        yield from _table(chart_table(block))


def _table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"**{escaped(table.title)}**\n"
    yield "| " + " | ".join(escaped(column) or " " for column in table.columns) + " |"
    yield "|" + "---|" * len(table.columns)
    for row in table.rows[:_MOST_ROWS]:
        yield "| " + " | ".join(escaped(cell) or " " for cell in row) + " |"
    if len(table.rows) > _MOST_ROWS:
        yield f"\n{len(table.rows) - _MOST_ROWS} further rows stand in the page and in the run's files."
    if table.note:
        yield f"\n{escaped(table.note)}"
