"""Paired tests between several finished evaluations: what --against computes, adjusted over the whole table."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from esckit.errors import ConfigError, DataError
from esckit.evaluate.paired import require_alike, with_tests
from esckit.records import write_json
from esckit.report.compared import Compared, compared
from esckit.report.source import Run, open_run
from esckit.report.systems import systems
from tests.evaluate.evalrecipes import scripted
from tests.evaluate.evalruns import result

METRICS = ("strategy.accuracy", "strategy.macro_f1")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    folder = tmp_path_factory.mktemp("systems")
    for name, speaker in (("base", "strategist"), ("other", "sure_strategist"), ("same", "strategist")):
        result(folder, "strategy", name=name, models={"strategist": scripted(speaker)}, seed=3 if name == "same" else 7)
    return {name: open_run(folder / name) for name in ("base", "other", "same")}


def test_each_test_is_the_one_of_evaluate_against(runs: dict[str, Run], tmp_path: Path) -> None:
    found = with_tests(compared({name: runs[name] for name in ("base", "other")}, METRICS), "base")
    against = result(
        tmp_path, "strategy", models={"strategist": scripted("sure_strategist")}, compare_to=str(runs["base"].path)
    )
    expected = {entry.name: entry.p for entry in against.comparisons}
    assert {name: found.tests["other", name].p for name in METRICS} == {name: expected[name] for name in METRICS}


def test_holm_is_over_all_systems_and_columns(runs: dict[str, Run]) -> None:
    found = with_tests(compared(runs, METRICS), "base")
    assert found.family == 4
    by_p = sorted(found.tests.values(), key=lambda entry: entry.p or 0.0)
    assert by_p[0].p is not None
    assert by_p[0].p_holm == min(1.0, 4 * by_p[0].p)
    assert found.system("base") is not None
    assert not any(system == "base" for system, _ in found.tests)


def test_an_unknown_baseline_is_refused_with_the_names(runs: dict[str, Run]) -> None:
    with pytest.raises(ConfigError) as caught:
        with_tests(compared(runs, METRICS), "bas")
    assert caught.value.expected == "one of base, other, same"


def test_lost_cases_leave_the_values_and_say_why_no_test(runs: dict[str, Run], tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(runs["other"].path, copy)
    (copy / "examples" / "strategy.jsonl").unlink()
    found: Compared = with_tests(compared({"base": runs["base"], "copy": open_run(copy)}, METRICS), "base")
    assert found.tests == {}
    assert "no cases to test with" in found.remarks[-1]


def test_other_conditions_are_named_field_by_field(runs: dict[str, Run], tmp_path: Path) -> None:
    result(tmp_path, "strategy", name="short", data={"limit": 2})
    result(tmp_path, "response", name="replies")
    said = (
        r"short was evaluated under other conditions: other cases in strategy \(here sample:esconv, split test, "
        r"scheme files, \d+ cases; there sample:esconv, split test, scheme files, first 2 dialogues, \d+ cases\);"
    )
    with pytest.raises(DataError, match=said) as caught:
        require_alike({"base": runs["base"], "short": open_run(tmp_path / "short")}, METRICS, hint="do this")
    assert caught.value.hint == "Here is base, there is short. do this"
    with pytest.raises(DataError, match="replies without the suite strategy"):
        require_alike({"base": runs["base"], "replies": open_run(tmp_path / "replies")}, METRICS, hint="")


def labelled_alike(folder: Path, name: str, label: str) -> Run:
    """Return an evaluation of a corpus whose texts are always the same, and whose labels are not."""
    lines = "".join(
        f"d{n},seeker,I feel low {n},\nd{n},supporter,Why is that {n}?,{label}\nd{n},seeker,No idea {n},\n"
        for n in range(3)
    )
    (folder / f"{name}.csv").write_text(f"dialogue,speaker,text,strategy\n{lines}")
    data = {"dataset": "own", "path": str(folder / f"{name}.csv"), "scheme": None, "split": None}
    result(folder, "strategy", name=name, data=data)
    return open_run(folder / name)


def forget_labels(run: Run) -> Run:
    """Make a run one of an earlier version, which did not record the labels of its cases."""
    manifest = json.loads((run.path / "manifest.json").read_text())
    del manifest["conditions"]["strategy"]["gold_labels"]
    write_json(run.path / "manifest.json", manifest)
    return open_run(run.path)


def data_of(run: Run) -> dict[str, object]:
    recipe: dict[str, dict[str, object]] = json.loads((run.path / "manifest.json").read_text())["recipe"]
    return recipe["data"]


def test_the_same_texts_with_other_labels_are_refused(tmp_path: Path) -> None:
    keep, other = (labelled_alike(tmp_path, *each) for each in (("keep", "Question"), ("other", "Others")))
    said = r"other gold labels in strategy \(here .*/keep\.csv; there .*/other\.csv\)"
    with pytest.raises(DataError, match=said):
        require_alike({"keep": keep, "other": other}, METRICS, hint="")
    with pytest.raises(DataError, match="other gold labels"):
        result(tmp_path, "strategy", data=data_of(other), compare_to=str(keep.path))
    assert systems([keep, other]) == []


def test_runs_that_did_not_record_labels_compare_with_a_note(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    names = {"old": "Question", "keep": "Question", "other": "Others"}
    old, keep, other = (labelled_alike(tmp_path, *each) for each in names.items())
    old = forget_labels(old)
    require_alike({"old": old, "keep": keep}, METRICS, hint="")
    note = "did not record them"
    assert f"{note}: old." in compared({"old": old, "keep": keep}, METRICS).remarks[-1]
    result(tmp_path, "strategy", data=data_of(keep), compare_to=str(old.path))
    assert note in caplog.text
    (part,) = systems([old, keep])
    assert part.sections[0].title == "Strategy: old, keep"
    # Beside it, labels that are known to differ are refused all the same.
    with pytest.raises(DataError, match="other gold labels"):
        require_alike({"old": old, "keep": keep, "other": other}, METRICS, hint="")
    assert systems([old, keep, other]) == []
