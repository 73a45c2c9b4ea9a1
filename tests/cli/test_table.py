"""`esckit table` as a user runs it, in the practice world: several systems, policies beside them, one baseline."""

import json

import pytest

from tests.shell import esckit

TINY = ("--set", "data.limit=12", "--set", "statistics.resamples=200")


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    for policy in ("rule", "random", "fixed"):
        changed = (f"models.strategist.policy={policy}", "--out", str(folder / policy))
        done = esckit("-q", "evaluate", "practice/evaluate", *TINY, "--set", *changed)
        assert done.returncode == 0, done.stderr
    return folder


def test_a_table_of_three_systems_goes_to_a_file(runs, tmp_path):
    out = tmp_path / "table.tex"
    words = [f"ours={runs / 'rule'}", str(runs / "random"), str(runs / "fixed"), "--baseline", "(optimum)"]
    done = esckit("table", *words, "--metrics", "practice.*", "--to", "latex", "--out", str(out))
    assert (done.returncode, done.stdout) == (0, f"{out}\n")
    assert "Holm-adjusted over the 9 tests" in out.read_text()
    assert "against (optimum)" in out.read_text()


def test_the_report_tests_all_systems_on_its_first_page(runs, tmp_path):
    page = tmp_path / "all.html"
    done = esckit("report", *map(str, runs.iterdir()), "--baseline", "random", "--out", str(page))
    assert done.returncode == 0, done.stderr
    first = page.with_suffix(".md").read_text().partition("evaluate: ")[0]
    assert first.count("## comparison: All systems") == 1
    assert "Tests against random" in first
    assert page.read_text().count('<article class="part folded">') == 3
    assert esckit("report", *map(str, runs.iterdir()), "--baseline", "nobody").returncode == 2


def test_wrong_words_are_one_message_and_exit_code_2(runs):
    rule = str(runs / "rule")
    for words, said in (
        ([rule, rule], "two runs called 'rule'"),
        ([rule, "--metrics", "practice.sucess"], "did you mean 'practice.success'?"),
        ([rule, "--baseline", "nobody"], "one of rule, (random), (fixed), (rule), (optimum)"),
        ([str(runs)], "no run folder"),
        ([rule, "--unpaired", "--baseline", "rule"], "--unpaired with --baseline"),
    ):
        done = esckit("table", *words)
        assert (done.returncode, done.stdout) == (2, ""), words
        assert said in done.stderr


def test_other_conditions_are_shown_only_when_asked_for(runs, tmp_path):
    other = str(tmp_path / "other")
    assert esckit("-q", "evaluate", "practice/evaluate", *TINY, "--set", "seed=2", "--out", other).returncode == 0
    words = ["table", str(runs / "rule"), other, "--metrics", "practice.success", "--to", "json"]
    refused = esckit(*words)
    assert refused.returncode == 2
    assert "seed (1 here, 2 there)" in refused.stderr
    shown = json.loads(esckit(*words, "--unpaired").stdout)
    assert [system["name"] for system in shown["systems"]] == ["rule", "other"]
    assert not any(system["metrics"]["practice.success"]["is_best"] for system in shown["systems"])
