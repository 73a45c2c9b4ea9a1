import math
from xml.etree import ElementTree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import StorageError
from esckit.report.blocks import Bars, Flow, Heat, Intervals, Lines, Part, Report, Section, Series
from esckit.report.charts import svg, ticks
from esckit.report.plots import write_plots
from esckit.report.run import build_report
from esckit.report.source import open_run
from tests.report.run_folders import evaluate_run, simulate_run

LABEL = "<b>\"a\" & 'b'</b>"
CHARTS = (
    Lines("l", LABEL, LABEL, LABEL, (Series(LABEL, (1.0, 2.0), (0.1, 0.4), (0.0, 0.2), (0.2, 0.6), (9, 4)),),
          marks=((LABEL, 0.5),), band="x"),
    Lines("one", "t", "x", "y", (Series("s", (3.0,), (1.0,)),)),
    Lines("flat", "t", "x", "y", (Series("s", (0.0, 1.0), (0.0, 0.0)),)),
    Lines("diagonal", "t", "x", "y", (Series("s", (0.1, 0.9), (0.2, 0.8)),), (0.0, 1.0), diagonal=True),
    Bars("b", LABEL, LABEL, LABEL, ("0.1", "0.2"), ((LABEL, (1.0, 0.0)), ("other", (2.0, 0.0)))),
    Bars("lying", LABEL, LABEL, LABEL, ("a long name, longer than that", LABEL), ((LABEL, (1.0, 0.0)),)),
    Heat("h", LABEL, LABEL, LABEL, (LABEL, "b"), ((3, 0), (1, 0))),
    Flow("f", LABEL, ("1", "2"), (LABEL, "b"), ((2, 1), (1, 1)), (((0, 0, 1), (0, 1, 1)),)),
    Flow("short", LABEL, ("1",), ("a",), ((2,),), ()),
    Intervals("i", LABEL, ((LABEL, 0.4, 0.2, 0.6, False), ("other", 0.5, None, None, True)), (0.0, 1.0), "share"),
    Intervals("one_value", LABEL, (("a", 7.0, None, None, False),)),
)  # fmt: skip


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{type(chart).__name__}-{chart.name}")
def test_a_chart_is_well_formed_and_styles_nothing_inline(chart):
    picture = svg(chart)
    root = ElementTree.fromstring(picture)
    assert root.attrib["role"] == "img"
    assert root.attrib["aria-label"] == chart.title
    assert not any("style" in element.attrib for element in root.iter())
    assert "<b>" not in picture
    assert "nan" not in picture


@pytest.mark.parametrize("chart", CHARTS, ids=lambda chart: f"{type(chart).__name__}-{chart.name}")
def test_a_chart_can_say_itself_as_a_table(chart):
    table = chart.table()
    assert table.rows
    assert all(len(row) == len(table.columns) for row in table.rows)


def test_the_shares_of_a_heat_map_are_of_its_columns_or_rows():
    counts = ((3, 0), (1, 0))
    assert Heat("h", "", "", "", ("a", "b"), counts).shares() == ((0.75, 0.0), (0.25, 0.0))
    assert Heat("h", "", "", "", ("a", "b"), counts, by="row").shares() == ((1.0, 0.0), (1.0, 0.0))


def test_ticks_are_round():
    assert ticks(0.0, 1.0) == pytest.approx([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    assert ticks(0.0, 7.0) == pytest.approx([0, 2, 4, 6, 8])
    assert ticks(3.0, 3.0)[0] <= 3.0 < ticks(3.0, 3.0)[-1]


@settings(max_examples=60, deadline=None)
@given(low=st.floats(-1e6, 1e6), width=st.floats(1e-6, 1e6))
def test_ticks_cover_what_they_are_for(low, width):
    found = ticks(low, low + width)
    slack = 1e-6 * (found[1] - found[0]) + 4 * math.ulp(abs(low) + width)
    assert found[0] - slack <= low
    assert found[-1] + slack >= low + width
    assert 2 <= len(found) <= 9


# ---------------------------------------------------------------- files


def test_every_chart_is_written_as_svg_and_png(tmp_path):
    report = build_report([open_run(evaluate_run(tmp_path / "run"))])
    files = write_plots(report, tmp_path / "plots")
    assert len(files) == 2 * len(report.charts()) == len(set(files))
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_equal_runs_give_equal_files_and_overwrite_none(tmp_path):
    runs = [open_run(simulate_run(tmp_path / name)) for name in ("a", "b")]
    first = write_plots(build_report(runs), tmp_path / "1")
    second = write_plots(build_report(runs), tmp_path / "2")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len({path.name for path in first}) == 8


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_plots(build_report([open_run(simulate_run(tmp_path / "a"))]), tmp_path / "file" / "plots")


def test_a_file_has_title_legend_and_the_page_s_light_colours(tmp_path):
    lines = Lines("l", "A title", "x", "y", tuple(Series(name, (0.0, 1.0), (0.0, 1.0)) for name in ("one", "two")))
    bell = Bars("b", "bell \x07", "x", "y", ("a",), (("s", (1.0,)),))
    report = Report("r", (Part("p", "", "", (Section("s", (lines, bell)),)),))
    drawn, _, odd, _ = write_plots(report, tmp_path)
    root = ElementTree.parse(drawn).getroot()
    assert {"A title", "one", "two"} <= {element.text for element in root.iter()}
    assert not any("class" in element.attrib for element in root.iter())
    assert {"#2f7f8f", "#d98324"} <= {element.get("fill") for element in root.iter()}
    assert "bell �" in odd.read_text(encoding="utf-8")
