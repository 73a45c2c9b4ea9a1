"""Charts in a paper's size: the width asked for, text of 8 points, embedded fonts, and no need of colour."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

from esckit.errors import ConfigError
from esckit.report.blocks import Bars, Chart, Flow, Heat, Intervals, Lines, Part, Report, Section, Series
from esckit.report.plots import PlotStyle, plot_style, write_plots
from tests.report.run_folders import evaluate_run
from tests.shell import esckit

NAMES = ("one", "two", "three", "four")
CHARTS: tuple[Chart, ...] = (
    Lines("lines", "A title", "x", "y", tuple(Series(name, (0.0, 1.0), (0.1, 0.4)) for name in NAMES)),
    Bars("bars", "t", "x", "y", ("0.1", "0.2"), tuple((name, (1.0, 2.0)) for name in NAMES)),
    Bars("lying", "t", "x", "y", ("a category with a long name", "b"), (("s", (1.0, 2.0)),)),
    Heat("heat", "t", "row", "column", tuple(f"A long strategy {place}" for place in range(8)), ((3,) * 8,) * 8),
    Flow("flow", "t", ("1", "2"), ("a", "b"), ((2, 1), (1, 1)), (((0, 0, 1), (0, 1, 1)),)),
    Intervals("intervals", "t", (("a system with a long name", 0.4, 0.2, 0.6, False), ("b", 0.5, None, None, True)),
              (0.0, 1.0), "share"),
)  # fmt: skip


def report_of(*charts: Chart) -> Report:
    return Report("r", (Part("p", "", "", (Section("s", charts),)),))


@pytest.mark.parametrize(
    ("width", "mm"), [("column", 77), ("page", 160), ("84mm", 84), ("3.3in", 83.82), ("8.4cm", 84)]
)
def test_every_chart_has_the_width_asked_for_and_text_of_8_pt(tmp_path: Path, width: str, mm: float) -> None:
    for path in write_plots(report_of(*CHARTS), tmp_path, plot_style("svg", width, None)):
        if path.suffix == ".md":
            continue
        root = ElementTree.parse(path).getroot()
        points = float(root.attrib["width"].removesuffix("pt"))
        _, _, units, _ = map(float, root.attrib["viewBox"].split())
        assert points == pytest.approx(mm * 72 / 25.4, rel=2e-3), path.name
        sizes = {
            float(each.attrib["font-size"].removesuffix("px")) for each in root.iter() if each.tag.endswith("text")
        }
        assert 7.9 <= min(sizes) * points / units <= max(sizes) * points / units <= 8.5, path.name


def test_pdf_holds_truetype_fonts_and_no_time(tmp_path: Path) -> None:
    style = plot_style("pdf", "column", "serif")
    first, second = (write_plots(report_of(CHARTS[0]), tmp_path / name, style)[0].read_bytes() for name in "ab")
    assert first == second
    assert b"/FontFile2" in first
    assert b"/Type3" not in first
    assert b"STIXGeneral" in first
    assert b"CreationDate" not in first


def test_lines_differ_in_dashes_and_marks_too(tmp_path: Path) -> None:
    drawn, _ = write_plots(report_of(CHARTS[0]), tmp_path, plot_style("svg", "column", None))
    shapes = [each for each in ElementTree.parse(drawn).getroot() if each.attrib.get("stroke-width") == "2"]
    dashes = {each.attrib.get("stroke-dasharray") for each in shapes if each.attrib.get("fill") == "none"}
    assert len(dashes) == len(NAMES)
    assert len([each for each in shapes if each.tag.endswith("line")]) == len(NAMES)  # the legend shows them


def lightness(colour: str) -> float:
    r, g, b = (int(colour[place : place + 2], 16) / 255 for place in (1, 3, 5))
    luminance = sum(weight * level**2.2 for weight, level in zip((0.2126, 0.7152, 0.0722), (r, g, b), strict=True))
    return 116 * luminance ** (1 / 3) - 16


def test_neighbours_of_a_stack_differ_in_grey(tmp_path: Path) -> None:
    drawn, _ = write_plots(report_of(CHARTS[1]), tmp_path, plot_style("svg", "column", None))
    fills = list(dict.fromkeys(re.findall(r'<rect[^>]*fill="(#\w+)"', drawn.read_text(encoding="utf-8"))))
    grey = [lightness(colour) for colour in fills]
    assert len(grey) == len(NAMES)
    assert all(abs(first - second) > 15 for first, second in pairwise(grey))


def test_titles_and_captions_stand_in_a_file_of_their_own(tmp_path: Path) -> None:
    drawn, captions = write_plots(report_of(CHARTS[0]), tmp_path, plot_style("svg", "page", None))
    assert "A title" not in re.sub("<title>.*?</title>", "", drawn.read_text(encoding="utf-8"))
    assert captions.read_text(encoding="utf-8") == "- `lines`: A title.\n"
    assert len(write_plots(report_of(CHARTS[0]), tmp_path / "page", PlotStyle())) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("gif", None, None), "--format gif"),
        (("svg", "wide", None), "--plot-width wide"),
        (("svg", "5mm", None), "--plot-width 5mm"),
        (("svg", "column", "No Such Font"), "no font 'No Such Font'"),
    ],
)
def test_what_cannot_be_drawn_is_refused_before_anything(words: tuple[str, str | None, str | None], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        plot_style(*words)


def test_the_command_writes_figures_for_a_paper(tmp_path: Path) -> None:
    run = str(evaluate_run(tmp_path / "run"))
    words = ["report", run, "--plot-width", "column"]
    refused = esckit(*words)
    assert refused.returncode == 2
    assert "--plot-width without --plots" in refused.stderr
    done = esckit(*words, "--plots", str(tmp_path / "figures"), "--format", "pdf")
    assert done.returncode == 0, done.stderr
    assert {path.suffix for path in (tmp_path / "figures").iterdir()} == {".pdf", ".md"}
