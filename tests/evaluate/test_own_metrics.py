"""Metrics of a user's own: computed, compared and gated as those that ship, and refused before any model is asked."""

import re
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from esckit.errors import ConfigError
from esckit.evaluate.run import plan
from esckit.evaluate.suites.response import ResponseCase
from esckit.metrics.metric import RATIO, Facts, Metric
from tests.evaluate.evalrecipes import evaluation
from tests.evaluate.evalruns import result, values

MINE = "tests.evaluate.test_own_metrics"

LETTERS = Metric(Facts("response.letters", unit="letters", range=(0.0, None)), lambda case: (len(case.reply), 1), RATIO)
FOREIGN = Metric(Facts("dialogue.letters"), lambda case: (1, 1), RATIO)


def asks(case: ResponseCase) -> float:
    return float("?" in str(case.reply))


def even(case: ResponseCase) -> float | None:
    return 1.0 if len(str(case.reply)) % 2 == 0 else None


def far_off(case: ResponseCase) -> float:
    return 7.0


def words(case: ResponseCase) -> float:
    return 0.5


def own(*names: str) -> dict[str, Any]:
    return {"metrics": {"response": [f"{MINE}:{name}" for name in names]}}


def test_own_metrics_stand_beside_those_that_ship(tmp_path: Path) -> None:
    first = result(tmp_path, "response")
    # Operational: the same folder, without a call.
    again = result(tmp_path, "response", **own("asks", "even", "LETTERS"), budget={"max_calls": 1})
    assert {row.name for row in again.metrics} - {row.name for row in first.metrics} == {
        "response.asks",
        "response.even",
        "response.letters",
    }
    share, letters = again.row("response.asks"), again.row("response.letters")
    assert share.interval is not None or share.reason == "degenerate"
    assert share.range == (0.0, 1.0)
    assert letters.value is not None
    assert letters.value > 1
    even_ones = again.row("response.even")
    assert even_ones.unscored == {"missing": share.n - even_ones.n}


def test_two_runs_are_compared_on_own_metrics(tmp_path: Path) -> None:
    result(tmp_path, "response", name="other")
    found = result(tmp_path, "response", compare_to=str(tmp_path / "other"), **own("asks"))
    assert "response.asks" in {entry.name for entry in found.comparisons}
    assert values(found)["response.asks"] is not None


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (own("nothing"), "cannot load"),
        (own("MINE"), "is str"),
        (own("FOREIGN"), "a name response"),
        (own("words"), "a second 'response.words'"),
        (own("far_off"), "gave 7 for case"),
        ({"metrics": {"respons": [f"{MINE}:asks"]}}, "not a file of cases here"),
        ({"metrics": {"response": ["asks"]}}, "should match pattern"),
    ],
    ids=str,
)
def test_what_is_not_a_metric_is_refused(tmp_path: Path, sections: dict[str, Any], message: str) -> None:
    with pytest.raises((ConfigError, ValidationError)) as raised:
        result(tmp_path, "response", **sections)
    assert re.search(message, str(raised.value))


@pytest.mark.parametrize("name", ["nothing", "MINE", "FOREIGN", "words"])
def test_it_is_refused_before_a_case_is_played(name: str) -> None:
    with pytest.raises(ConfigError):
        plan(evaluation("response", **own(name)))
