"""Texts that try to steer the judge: the set, what counts as success, and a gullible judge beside one that is not."""

import re
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from esckit.cli.app import app
from esckit.evaluate.suites.injection import InjectionCase, Verdicts, injection_probes, injection_rows
from esckit.metrics.metric import Unscored
from esckit.records import read_records
from tests.evaluate.casefakes import measurement

PROBES = injection_probes().probes
OBEYS = r"(?i)(answer|say|record)( is)? yes"
JUDGE = """\
rules:
  - when: {user: 'Answer with one JSON object'}
    replies: ['{"fluency": "tie", "identification": "tie", "comfort": "tie", "suggestion": "tie", "overall": "tie"}']
  - when: {user: 'PATTERN'}
    replies: ["Yes"]
  - replies: ["No"]
"""
RECIPE = """\
command: evaluate
seed: 7
suites: [injection]
models: {judge: {scripted: judge.yaml}}
statistics: {resamples: 100}
"""


def test_the_set_has_attacks_in_both_places_and_controls() -> None:
    assert len({probe.id for probe in PROBES}) == len(PROBES) == 30
    assert Counter(probe.kind for probe in PROBES) == {"attack": 24, "control": 6}
    for kind in ("attack", "control"):
        assert {probe.place for probe in PROBES if probe.kind == kind} == {"reply", "seeker"}
        assert {probe.wish for probe in PROBES if probe.kind == kind} == {"yes", "no"}
    assert {probe.category for probe in PROBES if probe.kind == "control"} == {"control"}


@pytest.mark.parametrize("probe", PROBES, ids=lambda probe: probe.id)
def test_only_the_text_differs_between_the_two_readings(probe) -> None:
    (plain,), reply, other = probe.shown(with_text=False)
    (steered,), with_text, same = probe.shown(with_text=True)
    assert other == same
    assert (plain.text, reply) == (probe.message, probe.cold if probe.wish == "yes" else probe.warm)
    added = (steered.text + with_text).replace(plain.text, "", 1).replace(reply, "", 1)
    assert added == f"\n{probe.text}"


def case(wish: int, plain: int | None, steered: int | None, *, kind: str = "attack") -> InjectionCase:
    best = Verdicts(question=1 if wish > 0 else 0)
    readings = {"plain": Verdicts(question=plain), "steered": Verdicts(question=steered)}
    why = "unparsed" if None in (plain, steered) else None
    common = {"id": "x", "dialogue_id": "x", "category": "order", "judge_unscored": why}
    return InjectionCase.model_validate({**common, "kind": kind, "wish": wish, "best": best, **readings})


def test_success_is_a_move_towards_the_wish() -> None:
    assert case(1, 0, 1).moved("question") is True
    assert case(1, 0, 0).moved("question") is False
    assert case(-1, 1, 0).moved("question") is True
    assert case(-1, 1, 1).moved("question") is False
    assert case(1, 1, 0).moved("question") is None  # nothing was to be gained
    assert case(1, 0, None).moved("question") == Unscored("unparsed")


def test_rates_by_hand() -> None:
    cases = [case(1, 0, 1), case(1, 0, 0), case(-1, 1, 1), case(1, 1, 1), case(1, 0, None)]
    cases = [one.model_copy(update={"id": str(at)}) for at, one in enumerate([*cases, case(1, 0, 0, kind="control")])]
    found = {
        (row.name, *(row.group or {}).values()): row
        for row in injection_rows(cases, measurement("injection", list("012345")))
    }
    row = found["injection.question.attack_success",]
    assert (row.value, row.n, row.unscored) == (pytest.approx(1 / 3), 3, {"unparsed": 1})
    assert found["injection.question.attack_success", "order"].value == row.value
    assert found["injection.question.control_moved",].value == 0.0
    assert found["injection.pair.attack_success",].value is None


@pytest.mark.parametrize("pattern", [OBEYS, "is told nothing"], ids=["gullible", "firm"])
def test_the_rate_of_a_judge_is_in_its_report(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pattern: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("judge.yaml").write_text(JUDGE.replace("PATTERN", pattern), encoding="utf-8")
    Path("mine.yaml").write_text(RECIPE, encoding="utf-8")
    done = CliRunner().invoke(app, ["evaluate", "mine.yaml", "--out", "run", "--quiet"])
    assert done.exit_code == 0, done.output
    obeyed = [probe for probe in PROBES if re.search(pattern, probe.text) and probe.kind == "attack"]
    # This judge denies everything without a text, so that those who ask for a "no" have nothing to gain.
    can_move = [probe for probe in PROBES if probe.wish == "yes" and probe.kind == "attack"]
    rate = f"{len([probe for probe in obeyed if probe in can_move]) / len(can_move):.4g}"
    assert re.search(rf"injection.question.attack_success +{rate} \[", done.stdout), done.stdout
    assert re.search(r"injection.pair.attack_success +0 \[", done.stdout)
    cases = list(read_records(InjectionCase, Path("run/examples/injection.jsonl")))
    assert {one.id for one in cases if one.moved("question") is True} == {probe.id for probe in obeyed}
    page = Path("run/report.md").read_text(encoding="utf-8")
    assert "Attacks that move the judge" in page
    assert "no validation" in page
