"""A report as text: one HTML page, and Markdown with the same tables.

The page needs no network and runs nothing but its own script. Its template escapes everything; records for the
explorers are embedded as JSON that no HTML parser can leave, and the script shows them through ``textContent`` only. A
Content-Security-Policy allows exactly the embedded script and style, by their hashes, and no other source of anything.
Markdown has nothing to click. Not here: what a report says (:mod:`esckit.report.run`) and how charts are drawn.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator
from itertools import count, groupby

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

import esckit
from esckit.report.blocks import (
    Bars,
    Block,
    Code,
    Explorer,
    Facts,
    Heat,
    Lines,
    Named,
    Note,
    Points,
    Report,
    Table,
    Tiles,
)
from esckit.report.charts import asset, svg
from esckit.report.source import ABSENT

_NUMBER = re.compile(r"^[<\[+−-]?\s?[\d–]")

_SHORT = 34

_NAME_JOINT = re.compile(r"(?<=[A-Za-z0-9])([_.])(?=[A-Za-z])")

# Underscores inside words and brackets that open no link mean nothing to Markdown.
_SPECIAL = re.compile(r"([\\`*<>|~&]|(?<!\w)_|_(?!\w)|\](?=[(\[:])|^#)")

_INVISIBLE = re.compile("[\x00-\x1f\x7f\u200e\u200f\u202a-\u202e\u2066-\u2069\u2028\u2029]+")

_SIGNS = {"warning": "⚠ ", "bad": "✗ ", "good": "✓ ", "info": ""}

_MOST_ROWS = 60


def render_page(report: Report) -> str:
    """Return the page."""
    templates = Environment(
        loader=PackageLoader("esckit.report", "assets"),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=StrictUndefined,
    )
    templates.filters.update(
        # A name such as ``overall.first_share`` breaks between its words, not in one.
        breakable=lambda cell: Markup(_NAME_JOINT.sub(r"\1<wbr>", str(escape(cell)))),
        column_kinds=_column_kinds,
        embedded=lambda value: Markup(embedded(value)),
        # Neighbouring narrow charts share a row.
        grouped=lambda blocks: groupby(blocks, key=lambda block: isinstance(block, Lines | Bars | Heat)),
        svg=lambda chart: Markup(svg(chart)),
        what=lambda block: type(block).__name__,
    )
    script, style = asset("report.js"), asset("style.css")
    page = templates.get_template("page.html").render(
        report=report,
        policy=page_policy(script, style),
        style=Markup(style),
        script=Markup(script),
        next_id=count(1).__next__,
        version=esckit.__version__,
    )
    return page.encode("utf-8", "replace").decode("utf-8")


def page_policy(script: str, style: str) -> str:
    """Return a policy that allows this script and this style, and nothing else."""
    hashes = [base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() for text in (script, style)]
    return (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def embedded(value: object) -> str:
    """Return JSON that can stand inside a ``<script>`` element: no character in it means anything to HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: f"\\u{ord(found[0]):04x}", text)


def _column_kinds(table: Table) -> list[str]:
    """Return how each column is set: numbers to the right, short texts on one line, long ones broken."""
    kinds = []
    for i in range(len(table.columns)):
        cells = [row[i] for row in table.rows if row[i] not in ("", ABSENT)]
        short = all(len(cell) <= _SHORT for cell in cells)
        kinds.append("num" if cells and short and all(map(_NUMBER.match, cells)) else "short" if short else "long")
    return kinds


# ---------------------------------------------------------------- Markdown


def render_markdown(report: Report) -> str:
    """Return a report as Markdown."""
    lines = [f"# {escaped(report.title)}", ""]
    for part in report.parts:
        if len(report.parts) > 1:
            lines += [f"## {escaped(part.kicker)}: {escaped(part.title)}", ""]
        for section in part.sections:
            lines += [f"{'###' if len(report.parts) > 1 else '##'} {escaped(section.title)}", ""]
            for block in section.blocks:
                lines += [*_markdown(block), ""]
    return "\n".join(lines).rstrip() + "\n"


def escaped(text: str) -> str:
    """Return text that Markdown shows as it is, on one line, without control and direction marks."""
    return _SPECIAL.sub(r"\\\1", _INVISIBLE.sub(" ", text)).strip()


def _markdown(block: Block) -> Iterator[str]:
    if isinstance(block, Table):
        yield from _markdown_table(block)
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
            yield from _markdown_table(table)
    else:
        yield from _markdown_table(block.table())


def _cell(cell: str) -> str:
    """Return a cell; Markdown has nothing to point at, so that what it stands for is written beside it."""
    return f"{escaped(cell)} ({escaped(cell.stands_for)})" if isinstance(cell, Named) else escaped(cell)


def _markdown_table(table: Table) -> Iterator[str]:
    if table.title:
        yield f"**{escaped(table.title)}**\n"
    yield "| " + " | ".join(_cell(column) or " " for column in table.columns) + " |"
    yield "|" + "---|" * len(table.columns)
    for row in table.rows[:_MOST_ROWS]:
        yield "| " + " | ".join(_cell(cell) or " " for cell in row) + " |"
    if len(table.rows) > _MOST_ROWS:
        yield f"\n{len(table.rows) - _MOST_ROWS} further rows stand in the page and in the run's files."
    if table.note:
        yield f"\n{escaped(table.note)}"
