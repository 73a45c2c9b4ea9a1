"""`esckit report` as a user runs it."""

import json

import pytest

from esckit.errors import ConfigError
from esckit.report.run import write_report
from tests.report.run_folders import search_run, simulate_run
from tests.shell import esckit


@pytest.mark.smoke
@pytest.mark.parametrize(("command", "word"), [("simulate", "exchange"), ("search", "simulations")])
def test_a_scripted_run_gets_page_markdown_and_plots(tmp_path, command, word):
    out = tmp_path / "run"
    assert esckit("-q", command, f"smoke/{command}_scripted", "--out", str(out)).returncode == 0
    done = esckit("report", str(out), "--plots", str(tmp_path / "plots"), "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)
    assert facts["page"] == str(out / "report.html")
    assert word in (out / "report.md").read_text()
    assert (out / "report.html").read_text().startswith("<!doctype html>")
    assert any((tmp_path / "plots").glob("*.png"))
    # The report lies in the run folder and must not be in its way.
    assert esckit("-q", command, f"smoke/{command}_scripted", "--out", str(out)).returncode == 0


def test_runs_beside_each_other_go_where_told(tmp_path):
    runs = [str(simulate_run(tmp_path / name)) for name in ("a", "b")]
    page = tmp_path / "elsewhere" / "two.html"
    done = esckit("report", runs[0], "--against", runs[1], "--out", str(page))
    assert done.returncode == 0, done.stderr
    assert "a beside b" in page.read_text()
    assert page.with_suffix(".md").is_file()


def test_texts_of_a_corpus_stand_in_no_file_unless_asked_for(tmp_path):
    run = search_run(tmp_path / "run", text="a secret of mine", data={"path": "data/esconv"})
    for quotes in (False, True):
        result = write_report([run], quotes=quotes)
        assert ("a secret of mine" in result.page.read_text()) is quotes
        assert "a secret of mine" not in result.markdown.read_text()


def test_a_folder_that_is_no_run_is_one_message(tmp_path):
    done = esckit("report", str(tmp_path))
    assert done.returncode == 2
    assert "manifest.json" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_the_page_and_its_markdown_need_two_names(tmp_path):
    run = simulate_run(tmp_path / "run")
    with pytest.raises(ConfigError, match=r"report\.md"):
        write_report([run], out=tmp_path / "report.md")
    with pytest.raises(ConfigError, match="no run"):
        write_report([])


def test_a_folder_is_no_page_and_nothing_is_left_beside_it(tmp_path):
    run, folder = simulate_run(tmp_path / "run"), tmp_path / "pages"
    folder.mkdir()
    with pytest.raises(ConfigError, match=r"the folder .*pages as the page"):
        write_report([run], out=folder)
    assert not folder.with_suffix(".md").exists()
