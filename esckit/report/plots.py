"""Charts as files: SVG with text as text, PNG and PDF, as on the page or in a paper's size and fonts.

A file gets its colours, and outside of papers its title, legend and caption, written into the shapes of
:mod:`esckit.report.charts`. matplotlib paints PNG and PDF from these very shapes. For paper, text is 8 pt high at the
width asked for, titles and captions go to ``captions.md``, and colours are told apart without colour vision and in
grey, with marks and dashes beside them.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, get_args
from xml.etree.ElementTree import Element, tostring

from esckit.errors import ConfigError
from esckit.records import write_atomic
from esckit.report.blocks import Chart, Report
from esckit.report.charts import ON_PAGE, Layout, add_shape, add_sign, add_text, asset, drawn

Format = Literal["svg", "png", "pdf"]

WIDTHS_MM = {"column": 77.0, "page": 160.0}
"""Width of a column and of both, as in the two-column styles of ACL."""

TEXT_PT = 8.0

_UNIT_TEXT = 11.0
"""Height of a tick's text in the units of a chart."""

_PT_PER_MM = 72 / 25.4

_NARROWEST_MM, _WIDEST_MM = 40.0, 600.0

_PALETTE = (
    "#0072b2", "#e69f00", "#000000", "#56b4e9", "#d55e00", "#009e73", "#cc79a7", "#999999", "#f0e442", "#6a3d9a",
)  # fmt: skip
"""Okabe and Ito's colours, so ordered that neighbours differ in lightness too, with grey and violet."""

_INK = {"muted": "#333333", "rule": "#c8c8c8", "ink": "#000000"}

_FOR_COMPARISON = {"lrest": {"stroke": "#999999"}, "frest": {"fill": "#999999"}}

_ILLEGAL_IN_XML = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\ud800-\udfff\ufffe\uffff]")

_SANS = ("DejaVu Sans", "DejaVu Sans, Arial, sans-serif")

_SERIF = ("STIXGeneral", "STIX Two Text, Times New Roman, Times, STIXGeneral, serif")


@dataclass(frozen=True, slots=True)
class PlotStyle:
    """How charts are written.

    Attributes:
        formats: Kinds of files.
        width_mm: Width on paper; None as on the page.
        font: ``sans``, ``serif``, or the name of a font that matplotlib finds.
    """

    formats: tuple[Format, ...] = ("svg", "png")
    width_mm: float | None = None
    font: str = "sans"

    @property
    def families(self) -> tuple[str, str]:
        """The font for matplotlib, and the families for SVG."""
        known = {"sans": _SANS, "serif": _SERIF}
        return known.get(self.font, (self.font, f"{self.font}, sans-serif"))

    @property
    def unit_pt(self) -> float:
        """Points of a unit of a chart."""
        return 1.0 if self.width_mm is None else TEXT_PT / _UNIT_TEXT

    @property
    def layout(self) -> Layout:
        """The room for a chart, without the margins of its file."""
        if self.width_mm is None:
            return ON_PAGE
        return Layout(self.width_mm * _PT_PER_MM / self.unit_pt - 2 * _MARGIN, is_print=True)


_MARGIN = 2.0

_BELOW_LINE = 4.0
"""Room for letters that reach below their line."""


def plot_style(formats: str | None, width: str | None, font: str | None) -> PlotStyle:
    """Return the style that words of the command line ask for.

    Args:
        formats: Kinds of files with commas between.
        width: ``column``, ``page``, or a width such as ``84mm``.
        font: See :class:`PlotStyle`.

    Raises:
        ConfigError: If one is unknown.
    """
    known: tuple[Format, ...] = get_args(Format)
    words = [part.strip() for part in (formats or "svg,png").split(",")]
    chosen = tuple(kind for kind in known if kind in words)
    if not set(words) <= set(known):
        raise ConfigError(f"--format {formats}", expected=f"{', '.join(known)}, with commas between")
    width_mm = None if width is None else WIDTHS_MM.get(width) or _millimetres(width)
    style = PlotStyle(chosen, width_mm, font or "sans")
    _require_font(style.families[0])
    return style


def _millimetres(width: str) -> float:
    """Return a width such as ``84mm``, ``8.4cm``, ``3.3in`` or ``239pt`` in millimetres."""
    found = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(mm|cm|in|pt)", width.strip())
    value = float(found[1]) * {"mm": 1.0, "cm": 10.0, "in": 25.4, "pt": 25.4 / 72}[found[2]] if found else 0.0
    if not _NARROWEST_MM <= value <= _WIDEST_MM:
        expected = f"{', '.join(WIDTHS_MM)}, or {_NARROWEST_MM:g}mm to {_WIDEST_MM:g}mm (also cm, in, pt)"
        raise ConfigError(f"--plot-width {width}", expected=expected)
    return value


def _require_font(name: str) -> None:
    from matplotlib.font_manager import FontProperties, findfont

    try:
        findfont(FontProperties(family=name), fallback_to_default=False)
    except ValueError as error:
        raise ConfigError(f"no font {name!r}", expected="sans, serif, or a font that is installed here") from error


def write_plots(report: Report, folder: Path, style: PlotStyle | None = None) -> tuple[Path, ...]:
    """Write every chart of a report and return the files; for paper, with their titles and captions in a file.

    Raises:
        StorageError: If a file cannot be written.
    """
    style = style or PlotStyle()
    written: dict[Path, bytes] = {}
    stems: dict[str, Chart] = {}
    for at, (part, chart) in enumerate(report.charts(), start=1):
        names = (part.title, chart.name) if len(report.parts) > 1 else (chart.name,)
        stem = "-".join(re.sub(r"[^A-Za-z0-9_-]+", "-", name).strip("-") or "plot" for name in names)
        stem = f"{stem}-{at}" if stem in stems else stem
        stems[stem] = chart
        picture = _framed(chart, style)
        for kind in style.formats:
            data = tostring(picture, encoding="utf-8", xml_declaration=True) if kind == "svg" else None
            written[folder / f"{stem}.{kind}"] = data or _painted(picture, style, kind)
    if style.width_mm is not None and stems:
        lines = [f"- `{stem}`: {chart.title}. {chart.caption}".rstrip() for stem, chart in stems.items()]
        written[folder / "captions.md"] = ("\n".join(lines) + "\n").encode("utf-8", "replace")
    for path, content in written.items():
        write_atomic(path, content)
    return tuple(written)


def _framed(chart: Chart, style: PlotStyle) -> Element:
    """Return a chart that stands alone, with its legend and its colours in it; on paper without title and caption."""
    layout = style.layout
    canvas = drawn(chart, layout)
    width, height = map(float, canvas.attrib["viewBox"].split()[2:])
    if not layout.is_print:
        add_shape(canvas, "text", "axis", chart.title, x=0, y=-10, font_weight="bold")
    bottom = _legend(canvas, chart, layout, width, height)
    if chart.caption and not layout.is_print:
        bottom += 17
        add_text(canvas, 0, bottom, chart.caption, "axis", "start")
    paint = _paint(for_print=layout.is_print)
    for shape in canvas.iter():
        kinds = shape.attrib.pop("class", "").split()
        for kind in ([shape.tag] if shape.tag == "text" else []) + kinds:
            shape.attrib |= paint.get(kind, {})
        if layout.is_print and shape.tag == "rect":
            shape.attrib |= {"stroke": "#ffffff", "stroke-width": "0.8"}  # neighbours of one lightness stay two
        shape.text = _ILLEGAL_IN_XML.sub("�", shape.text or "") or None
    if layout.is_print:
        box = (-_MARGIN, -_MARGIN, width + 2 * _MARGIN, bottom + _BELOW_LINE + 2 * _MARGIN)
        size = {name: f"{side * style.unit_pt:.2f}pt" for name, side in (("width", box[2]), ("height", box[3]))}
    else:
        box, size = (-8, -28, width + 16, bottom + 10 + 28), {}
    view = " ".join(f"{side:g}" for side in box)
    canvas.attrib = {
        "xmlns": "http://www.w3.org/2000/svg",
        "viewBox": view,
        "font-family": style.families[1],
        **size,
    }
    return canvas


def _legend(canvas: Element, chart: Chart, layout: Layout, width: float, height: float) -> float:
    """Draw the legend below a chart, and return where it ends."""
    x, y = 0.0, height + 14
    names = chart.legend if len(chart.legend) > 1 else ()
    for index, name in enumerate(names):
        length = 44 + 6 * len(name) if layout.is_print else 30 + 7 * len(name)
        if x + length > width and x > 0:
            x, y = 0.0, y + 17
        add_text(canvas, x + add_sign(canvas, chart, index, layout, x, y) + 5, y, name, "axis", "start")
        x += length
    return y if names or not layout.is_print else height


@cache
def _paint(*, for_print: bool = False) -> dict[str, dict[str, str]]:
    """Return how the page's style sheet paints each class of shapes, in light colours or in those of a paper."""
    css = asset("style.css")
    colours = dict(re.findall(r"--(\w[\w-]*): (#\w+)", css.partition("@media")[0]))
    if for_print:
        colours |= {f"c{index}": colour for index, colour in enumerate(_PALETTE)} | _INK
    charts = css.partition("/* charts */")[2].partition("/* explorers */")[0]
    charts = re.sub(r"var\(--([\w-]+)\)", lambda found: colours.get(found[1], ""), charts)
    rules = re.findall(r"\.(?:chart \.?)?(\w+) \{ ([^}]*) \}", charts)
    found = {kind: dict(re.findall(r"([\w-]+): ([^;]+?);", f"{rule};")) for kind, rule in rules}
    return found | (_FOR_COMPARISON if for_print else {})


def _painted(canvas: Element, style: PlotStyle, kind: str) -> bytes:
    """Return a picture of shapes whose colours stand in them: PNG at 200 dpi (300 on paper), or PDF."""
    from io import BytesIO

    from matplotlib import rc_context
    from matplotlib.figure import Figure

    left, top, width, height = map(float, canvas.attrib["viewBox"].split())
    unit = style.unit_pt
    # Fonts as TrueType, as publishers ask for, and without time and software, so that equal runs give equal files.
    with rc_context({"pdf.fonttype": 42, "font.family": style.families[0]}):
        figure = Figure(figsize=(width * unit / 72, height * unit / 72))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(left, left + width)
        axes.set_ylim(top + height, top)
        for shape in canvas:
            _paint_shape(axes, shape, unit)
        data = BytesIO()
        if kind == "pdf":
            figure.savefig(data, format="pdf", metadata=dict.fromkeys(("Creator", "Producer", "CreationDate")))
        else:
            dpi = 200 if style.width_mm is None else 300
            figure.savefig(data, format="png", dpi=dpi, metadata={"Software": None})
    return data.getvalue()


def _paint_shape(axes: Any, shape: Element, unit: float) -> None:
    at: dict[str, Any] = dict(shape.attrib)
    if shape.tag == "text":
        turned = -float(at["transform"][7:].split()[0]) if "transform" in at else 0.0
        side = {"start": "left", "end": "right"}.get(at.get("text-anchor", "start"), "center")
        axes.text(
            float(at["x"]), float(at["y"]), shape.text or "", color=at["fill"], ha=side, rotation=turned,
            fontsize=unit * float(at["font-size"].removesuffix("px")), weight=at.get("font-weight", "normal"),
            rotation_mode="anchor", parse_math=False,
        )  # fmt: skip
        return
    width = float(at.get("stroke-width", 1)) * unit
    dashes = [float(each) * unit / width for each in at.get("stroke-dasharray", "").split()]
    patch = _patch(shape.tag, at)
    patch.set(
        facecolor=at.get("fill", "none"), edgecolor=at.get("stroke", "none"), linewidth=width,
        linestyle=(0, dashes) if dashes else "-", alpha=float(at.get("opacity", at.get("fill-opacity", 1))),
    )  # fmt: skip
    axes.add_patch(patch)


def _patch(tag: str, at: dict[str, Any]) -> Any:
    """Return a shape of SVG as a patch of matplotlib."""
    from matplotlib.patches import Circle, PathPatch, Rectangle
    from matplotlib.path import Path as Outline

    if tag == "rect":
        return Rectangle((float(at["x"]), float(at["y"])), float(at["width"]), float(at["height"]))
    if tag == "circle":
        return Circle((float(at["cx"]), float(at["cy"])), float(at["r"]))
    d = at["d"] if tag == "path" else f"M{at['x1']} {at['y1']}L{at['x2']} {at['y2']}"
    codes = {"M": Outline.MOVETO, "L": Outline.LINETO, "C": Outline.CURVE4, "Z": Outline.CLOSEPOLY}
    points: list[tuple[float, float]] = []
    kinds: list[Any] = []
    for command, numbers in re.findall(r"([MLCZ])([^MLCZ]*)", d):
        values = [float(each) for each in numbers.split()] or [0.0, 0.0]
        points += zip(values[::2], values[1::2], strict=True)
        kinds += [codes[command]] * (len(values) // 2)
    return PathPatch(Outline(points, kinds))
