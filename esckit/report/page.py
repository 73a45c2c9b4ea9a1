"""A report as one self-contained HTML file that needs no network and runs nothing but its own script.

Static parts are escaped here. Records for the explorers are embedded as JSON that no HTML parser can leave, and the
script shows them through ``textContent`` only. A Content-Security-Policy allows exactly the embedded script and style,
by their hashes, and no other source of anything.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from html import escape
from importlib.resources import files
from itertools import count
from string import Template

import esckit
from esckit.report.blocks import (
    ABSENT,
    Bars,
    Block,
    Chart,
    Code,
    Explorer,
    Facts,
    Flow,
    Heat,
    Lines,
    Note,
    Part,
    Points,
    Report,
    Section,
    Table,
    Tiles,
)
from esckit.report.svg import svg
from esckit.report.tables import chart_table

_NUMBER = re.compile(r"^[<\[+−-]?\s?[\d–]")

_SHORT = 34

_NAME_JOINT = re.compile(r"(?<=[A-Za-z0-9])([_.])(?=[A-Za-z])")

_UNSAFE = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def render_page(report: Report) -> str:
    """Return the page."""
    script, style = _asset("report.js"), _asset("style.css")
    page = _Page(report)
    body = "".join(page.parts())
    return Template(_asset("page.html")).substitute(
        csp=escape(_policy(script, style)),
        title=escape(report.title),
        style=style,
        nav="".join(page.nav),
        body=body,
        data="".join(page.data),
        script=script,
        version=escape(esckit.__version__),
    ).encode("utf-8", "replace").decode("utf-8")  # fmt: skip


def _asset(name: str) -> str:
    return (files("esckit.report") / "assets" / name).read_text(encoding="utf-8").strip()


def _policy(script: str, style: str) -> str:
    """Return a policy that allows this script and this style, and nothing else."""

    def hashed(text: str) -> str:
        return "'sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode() + "'"

    return (
        f"default-src 'none'; script-src {hashed(script)}; style-src {hashed(style)}; img-src data:; "
        "base-uri 'none'; form-action 'none'; require-trusted-types-for 'script'; trusted-types 'none'"
    )


def embedded(value: object) -> str:
    """Return JSON that can stand inside a ``<script>`` element: no character in it means anything to HTML."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda found: _UNSAFE[found.group()], text)


class _Page:
    """The page while it is written: collects its contents list and its data on the way."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.nav: list[str] = []
        self.data: list[str] = []
        self._ids = count(1)

    def parts(self) -> Iterator[str]:
        """Yield the HTML of every part."""
        for part in self.report.parts:
            yield self._part(part)

    def _part(self, part: Part) -> str:
        status = f'<span class="status {escape(part.status)}">{escape(part.status)}</span>' if part.status else ""
        head = (
            f'<header class="part-head"><p class="kicker">{escape(part.kicker)}{status}</p>'
            f"<h1><bdi>{escape(part.title)}</bdi></h1></header>"
        )
        if len(self.report.parts) > 1:
            self.nav.append(f'<li class="nav-part"><bdi>{escape(part.title)}</bdi></li>')
        return f'<article class="part">{head}{"".join(self._section(section) for section in part.sections)}</article>'

    def _section(self, section: Section) -> str:
        number = next(self._ids)
        self.nav.append(f'<li><a href="#s{number}"><bdi>{escape(section.title)}</bdi></a></li>')
        pieces = [f'<section id="s{number}"><h2><bdi>{escape(section.title)}</bdi></h2>']
        charts: list[str] = []
        for block in section.blocks:
            if isinstance(block, Lines | Bars | Heat):
                charts.append(_figure(block))
                continue
            if charts:
                pieces.append(f'<div class="charts">{"".join(charts)}</div>')
                charts = []
            pieces.append(self._block(block))
        if charts:
            pieces.append(f'<div class="charts">{"".join(charts)}</div>')
        return "".join([*pieces, "</section>"])

    def _block(self, block: Block) -> str:
        if isinstance(block, Explorer):
            return self._explorer(block)
        if isinstance(block, Table):
            return _table(block)
        if isinstance(block, Facts):
            pairs = (f"<div><dt>{escape(k)}</dt><dd><bdi>{escape(v)}</bdi></dd></div>" for k, v in block.pairs)
            return f'<dl class="facts">{"".join(pairs)}</dl>'
        if isinstance(block, Tiles):
            return _tiles(block)
        if isinstance(block, Note):
            return f'<p class="note {block.kind}"><bdi>{escape(block.text)}</bdi></p>'
        if isinstance(block, Points):
            items = "".join(f"<li><bdi>{escape(sentence)}</bdi></li>" for sentence in block.sentences)
            return f'<div class="points"><p>{escape(block.title)}</p><ul>{items}</ul></div>'
        if isinstance(block, Code):
            head = f"<summary>{escape(block.title)}</summary>"
            return f'<details class="fold">{head}<pre>{escape(block.text)}</pre></details>'
        return _figure(block)

    def _explorer(self, block: Explorer) -> str:
        number = next(self._ids)
        self.data.append(f'<script type="application/json" id="d{number}">{embedded(block.data)}</script>')
        paper = "".join(_table(table) for table in block.tables)
        return (
            f'<div class="explorer" data-kind="{block.kind}" data-source="d{number}"></div>'
            '<noscript><p class="note warning">The explorer needs scripts; the table says it in short.</p></noscript>'
            f'<div class="paper">{paper}</div>'
        )


def _figure(chart: Chart) -> str:
    legend = _legend(chart)
    wide = " wide" if isinstance(chart, Flow) else ""
    numbers = (
        f'<details class="fold numbers"><summary>Numbers</summary>{_table(chart_table(chart), bare=True)}</details>'
    )
    caption = f'<p class="band-note">{escape(_caption(chart))}</p>' if _caption(chart) else ""
    focus = ' tabindex="0"' if wide else ""
    return (
        f'<figure class="figure{wide}"><figcaption><bdi>{escape(chart.title)}</bdi></figcaption>'
        f'<div class="canvas"{focus}>{svg(chart)}</div>{legend}{caption}{numbers}</figure>'
    )


def _caption(chart: Chart) -> str:
    """Return what a chart's picture cannot say."""
    if isinstance(chart, Heat):
        return f"Rows: {chart.row_label}; columns: {chart.column_label}; per cent of the {chart.by}."
    if isinstance(chart, Lines) and chart.band and any(series.low for series in chart.series):
        return f"Band: {chart.band}."
    return ""


def _legend(chart: Chart) -> str:
    if isinstance(chart, Lines):
        names = [series.name for series in chart.series]
    elif isinstance(chart, Bars):
        names = [name for name, _ in chart.series]
    else:
        names = list(chart.labels) if isinstance(chart, Flow) else []
    if len(names) < 2:
        return ""
    items = (
        f'<li><svg viewBox="0 0 10 10" aria-hidden="true"><rect class="f{i % 10}" width="10" height="10" rx="2"/></svg>'
        f"<bdi>{escape(name)}</bdi></li>"
        for i, name in enumerate(names)
    )
    return f'<ul class="legend">{"".join(items)}</ul>'


def _tiles(block: Tiles) -> str:
    tiles = (
        f'<div class="tile"><dt>{escape(tile.label)}</dt><dd>{escape(tile.value)}</dd>'
        f'<dd class="basis">{escape(tile.basis)}</dd></div>'
        for tile in block.tiles
    )
    return f'<dl class="tiles">{"".join(tiles)}</dl>'


def _table(table: Table, *, bare: bool = False) -> str:
    kinds = [f' class="{_column_kind([row[i] for row in table.rows])}"' for i in range(len(table.columns))]
    head = _cells("th", table.columns, [f'{kind} scope="col"' for kind in kinds])
    rows = "".join(f"<tr>{_cells('td', row, kinds)}</tr>" for row in table.rows)
    label = escape(table.title or "table")
    body = (
        f'<div class="scroll" tabindex="0" role="region" aria-label="{label}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )
    note = f'<p class="band-note"><bdi>{escape(table.note)}</bdi></p>' if table.note else ""
    if bare:
        return body + note
    if table.folded:
        return f'<details class="fold"><summary>{label}</summary>{body}{note}</details>'
    return f"{f'<h3><bdi>{label}</bdi></h3>' if table.title else ''}{body}{note}"


def _cells(tag: str, cells: Sequence[str], attributes: Sequence[str]) -> str:
    pairs = zip(cells, attributes, strict=True)
    return "".join(f"<{tag}{attribute}><bdi>{_breakable(cell)}</bdi></{tag}>" for cell, attribute in pairs)


def _breakable(cell: str) -> str:
    """Return a cell, escaped; a name such as ``overall.first_share`` breaks between its words, not in one."""
    return _NAME_JOINT.sub(r"\1<wbr>", escape(cell))


def _column_kind(cells: Sequence[str]) -> str:
    """Return how a column is set: numbers to the right, short texts on one line, long ones broken."""
    said = [cell for cell in cells if cell and cell != ABSENT]
    if said and all(_NUMBER.match(cell) and len(cell) <= _SHORT for cell in said):
        return "num"
    return "short" if all(len(cell) <= _SHORT for cell in said) else "long"
