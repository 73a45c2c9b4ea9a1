from xml.etree import ElementTree

import pytest

from esckit.errors import StorageError
from esckit.report.charts import write_plots
from esckit.report.run import build_report
from esckit.report.source import open_run
from tests.report.run_folders import evaluate_run, simulate_run


def test_every_chart_is_written_as_svg_and_png(tmp_path):
    report = build_report([open_run(evaluate_run(tmp_path / "run"))])
    files = write_plots(report, tmp_path / "plots")
    assert len(files) == 2 * len(report.charts()) == len(set(files))
    for path in files:
        if path.suffix == ".png":
            assert path.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
        else:
            assert ElementTree.parse(path).getroot().tag.endswith("svg")


def test_equal_runs_give_equal_files_and_several_runs_do_not_overwrite_each_other(tmp_path):
    runs = [open_run(simulate_run(tmp_path / name)) for name in ("a", "b")]
    first = write_plots(build_report(runs), tmp_path / "1")
    second = write_plots(build_report(runs), tmp_path / "2")
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len({path.name for path in first}) == 8


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        write_plots(build_report([open_run(simulate_run(tmp_path / "a"))]), tmp_path / "file" / "plots")
