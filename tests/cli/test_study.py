"""`esckit study` as a researcher runs it: make, fill in, read."""

import json
import re
import shutil

import pytest

from esckit.study.key import read_key
from tests.shell import esckit
from tests.study.studies import answered, evaluations, filled, written

pytestmark = pytest.mark.usefixtures("made")


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    runs = evaluations(folder / "runs")
    words = [f"{name}={run.path}" for name, run in runs.items()]
    done = esckit("study", "make", *words, "--items", "8", "--raters", "2", "--out", str(folder / "study"), "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["questions"] == 8
    return folder / "study"


@pytest.fixture
def folder(made, tmp_path):
    shutil.copytree(made, tmp_path / "study")
    return tmp_path / "study"


def test_filled_in_sheets_become_tables(folder):
    answered(folder, read_key(folder), lambda *_: "win")
    done = esckit("study", "read", str(folder))
    assert done.returncode == 0, done.stderr
    assert "| ours / base: overall | 100.0" in done.stdout
    assert "Krippendorff's α" in done.stdout
    assert r"\begin{tabular}" in esckit("study", "read", str(folder), "--to", "latex").stdout
    assert json.loads(esckit("study", "read", str(folder), "--json").stdout)["kind"] == "ab"


def test_half_a_sheet_is_refused_with_what_mends_it(folder):
    key = read_key(folder)
    rows = filled(folder, key, lambda *_: "tie")["r1"]
    half = written(folder / "half.csv", rows[:5])
    done = esckit("study", "read", str(folder), str(half))
    assert (done.returncode, done.stdout) == (2, "")
    assert "rater r1: " in done.stderr
    assert "--partial takes what is there" in done.stderr
    shown = esckit("study", "read", str(folder), str(half), "--partial")
    assert shown.returncode == 0
    # A rater without answers is none of the people, failed no check, and is not counted.
    assert "Preferences of 1 rater" in shown.stdout
    assert re.search(r"^\| r2 \| 0 of \d+ \| – \| no answers \|$", shown.stdout, re.MULTILINE)
    assert "fewer than 5 dialogues" not in shown.stdout.partition("Agreement")[0].rpartition("| dimension")[2]
    both = esckit("study", "read", str(folder), str(half), "--partial", "--json", "--to", "latex")
    assert (both.returncode, "--json with --to latex" in both.stderr) == (2, True)


def test_runs_of_other_cases_make_no_study(folder, made):
    other = folder.parent / "other"
    done = esckit("-q", "evaluate", "practice/evaluate", "--set", "data.limit=6", "--out", str(other))
    assert done.returncode == 0, done.stderr
    done = esckit("study", "make", f"a={other}", f"b={made.parent / 'runs' / 'ours'}", "--out", str(folder / "new"))
    assert done.returncode == 2
    assert "no suite in common" in done.stderr
    assert not (folder / "new").exists()
