"""Human labels beside the automatic judge: failures of the judge are counted, and a wrong file is refused at once."""

import json
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from esckit.errors import DataError
from esckit.evaluate.reliability import reliability
from esckit.evaluate.run import plan, run
from esckit.evaluate.setup import set_up
from esckit.evaluate.suites.critics import Episode
from esckit.evaluate.suites.pairwise import PairCase
from esckit.metrics.rows import MetricRow
from esckit.types import CriticReading, Failure, TurnRatings
from tests.evaluate.casefakes import episode, pair_case, turn
from tests.evaluate.evalrecipes import evaluation

LAST = "Moderately Better"
UNREADABLE = Failure(stage="critic", turn=2, kind="unparsed", attempts=2, message="nothing readable")


def labels(path: Path, dimension: str, ids: list[str], said: tuple[Any, ...]) -> str:
    rows = [
        {"case_id": name, "rater": rater, "dimension": dimension, "label": said[n % len(said)]}
        for n, name in enumerate(ids)
        for rater in "ab"
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(value: Fraction, counts: tuple[int, ...], **more: Any) -> CriticReading:
    return CriticReading(
        readout="sampled", critic="rlff7/0", counts=counts, num=value.numerator, den=value.denominator,
        value=float(value), **more,
    )  # fmt: skip


def scored(name: str, reading: CriticReading, *, last: CriticReading | None, failed: bool = False) -> Episode:
    """Return a dialogue of two turns, the critic's second reading missing where there is none."""
    played = [turn(1, {}).model_copy(update={"readings": {"rlff7": reading}}), turn(2, {})]
    if last is not None:
        played[1] = played[1].model_copy(update={"readings": {"rlff7": last}})
    found = episode(name, {"rlff7": []}, max_turns=2, turns=played)
    return found.model_copy(update={"critic_failures": {"rlff7": UNREADABLE}}) if failed else found


def rows_of(
    path: str, files: dict[str, list[Any]], flags: dict[str, tuple[str, ...]], **more: Any
) -> dict[str, MetricRow]:
    suites = tuple(files)
    pairwise = {"pairwise": {"opponent": "elsewhere"}}
    recipe = evaluation(*suites, reliability={"labels": path}, settings=pairwise, **more)
    found = reliability(recipe, files, flags)
    return {row.name.rpartition(".")[2]: row for row in found if row.group is None}


SAME, BETTER = read(Fraction(0), (10, 0, 0, 0, 0, 0, 0)), read(Fraction(1, 2), (0, 0, 10, 0, 0, 0, 0))
NOTHING = read(Fraction(0), (0, 0, 0, 0, 0, 0, 0), compat_zero=True)


def test_a_critic_that_failed_is_counted_and_gives_no_level(tmp_path: Path) -> None:
    fine = [scored(f"d{n}", SAME, last=BETTER if n % 2 else SAME) for n in range(12)]
    spoilt = [
        scored("e0", BETTER, last=None, failed=True),
        scored("e1", BETTER, last=NOTHING),
        scored("e2", BETTER, last=NOTHING),
    ]
    cases = [*fine, *spoilt]
    path = labels(tmp_path / "l.jsonl", "rlff7", [case.id for case in cases], ("Same", LAST))
    found = rows_of(path, {"dialogue": cases}, {"dialogue": ("cross_family",)})
    agreement = found["agreement_judge"]
    assert (agreement.value, agreement.n) == (1.0, 12)
    assert agreement.unscored == {"unscored_critic": 1, "unparsed": 2}
    assert {"cross_family", "low_coverage"} <= set(agreement.flags)
    assert (found["alpha_humans"].n, found["alpha_humans"].n_unscored) == (15, 0)


def test_a_judge_that_failed_is_counted_for_turns_and_pairs(tmp_path: Path) -> None:
    ratings = TurnRatings(empathy=3, information=3, humanlikeness=3, strategic=3)
    turns = [
        turn(t, {}, ratings=ratings) if t < 11 else turn(t, {}).model_copy(update={"ratings_unscored": "backend"})
        for t in range(1, 13)
    ]
    played = [episode("d", {}, max_turns=12, turns=turns)]
    path = labels(tmp_path / "t.jsonl", "empathy", [f"d@{t}" for t in range(1, 13)], (2, 3))
    judge = {"models": {"turn_judge": {"scripted": "critic_rubric"}}}
    found = rows_of(path, {"dialogue": played}, {}, **judge)["agreement_judge"]
    assert (found.value, found.n, found.unscored) == (0.5, 10, {"backend": 2})

    pairs: list[PairCase] = [pair_case(n, "A", "A") for n in range(12)]
    pairs[0] = pairs[0].model_copy(update={"unscored": "missing"})
    path = labels(tmp_path / "p.jsonl", "overall", [pair.id for pair in pairs], ("win", "lose"))
    found = rows_of(path, {"pairwise": pairs}, {"pairwise": ("self_judged",)})["agreement_judge"]
    assert (found.n, found.unscored) == (11, {"missing": 1})
    assert "self_judged" in found.flags


@pytest.mark.parametrize(
    ("dimension", "label", "message"),
    [
        ("mood", "Same", "mood"),
        ("rlff7", "Fine", "labels.jsonl: found label 'Fine'"),
        ("empathy", 3, "empathy"),
        ("rlff7", "Same", "1 of 1 labelled cases of 'rlff7' unknown, such as 'd0'"),
        ("rlff7", None, r"labels.jsonl: found no label"),
        (None, "", "no such file"),
    ],
)
def test_a_wrong_label_file_is_refused_before_any_call(
    tmp_path: Path, dimension: str | None, label: object, message: str
) -> None:
    path = tmp_path / "labels.jsonl"
    if dimension is not None:
        labels(path, dimension, ["d0"] if label is not None else [], (label,))
    recipe = evaluation("dialogue", reliability={"labels": str(path)})
    with pytest.raises(DataError, match=message):
        plan(recipe)
    with pytest.raises(DataError, match=message):
        run(recipe, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_labels_of_some_other_cases_are_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ids = list(set_up(evaluation("dialogue")).material.merged.ids)
    path = labels(tmp_path / "l.jsonl", "rlff7", ["typo", *ids], ("Same", LAST))
    plan(evaluation("dialogue", reliability={"labels": path}))
    assert f"{path}: 1 of {len(ids) + 1} labelled cases of 'rlff7' unknown, such as 'typo'" in caplog.text


def test_labels_without_a_judged_suite_are_refused(tmp_path: Path) -> None:
    path = labels(tmp_path / "l.jsonl", "overall", ["d0"], ("win",))
    with pytest.raises(DataError, match="a suite that is judged"):
        plan(evaluation("strategy", reliability={"labels": path}))
