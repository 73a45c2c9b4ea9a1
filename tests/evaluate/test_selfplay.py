"""Success rate and average turn: the worked dialogues, failures, two critics at once."""

from collections.abc import Sequence
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.evaluate.suites.critics import CriticScale, Episode, critic_rows, fold_type, outcome_of, read_outcome
from esckit.metrics.metric import Unscored, collect
from esckit.metrics.rows import MetricRow
from esckit.types import Failure
from tests.evaluate.casefakes import episode, measurement, quarters, turn

A = quarters(10, 20, 22)
B = quarters(5, 8, 10, 10, 15, 18, 20, 20)
C = quarters(21)
D = quarters(0, 0, 4, 4, 6, 8, 10, 10)
WORKED = [
    episode(name, {"rlff7": values}, emotion=emotion)
    for name, values, emotion in (("a", A, "Anger"), ("b", B, "anger"), ("c", C, "sadness"), ("d", D, None))
]
SCALE = CriticScale("rlff7")
BROKEN = Failure(stage="critic", turn=2, kind="unparsed", attempts=2, message="10 of 10 critic answers name no level")


def rows_of(episodes: Sequence[Episode], critic: str = "rlff7") -> dict[tuple[str, object], MetricRow]:
    found = critic_rows(episodes, CriticScale(critic), measurement("dialogue", [case.dialogue_id for case in episodes]))
    prefix = f"dialogue.{critic}."
    return {(row.name.removeprefix(prefix), next(iter((row.group or {"": None}).values()))): row for row in found}


def test_the_worked_outcomes() -> None:
    outcomes = [outcome_of(tuple(values)) for values in (A, B, C, D)]
    assert [outcome.strict for outcome in outcomes] == [3, None, 1, None]
    assert [outcome.lenient for outcome in outcomes] == [2, 7, 1, None]


def test_the_worked_rows() -> None:
    rows = rows_of(WORKED)
    assert rows["sr_strict", None].value == 0.5
    assert rows["at_strict", None].value == 5.0
    assert rows["at_success", None].value == 2.0
    assert rows["sr_lenient", None].value == 0.75
    assert rows["at_lenient", None].value == 4.5
    assert [rows["sr_by_turn", t].value for t in range(1, 9)] == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.5]
    assert [rows["sr_by_turn_lenient", t].value for t in range(1, 9)] == [0.25, 0.5, 0.5, 0.5, 0.5, 0.5, 0.75, 0.75]
    assert rows["at_threshold_share", None].value == 0.25
    by_turn = [rows["critic_by_turn", t] for t in (1, 2, 4)]
    assert [row.value for row in by_turn] == pytest.approx([0.225, 0.233333, 0.175], abs=5e-7)
    assert [row.n for row in by_turn] == [4, 3, 2]
    assert rows["critic_by_turn_carried", 2].value == pytest.approx(0.30625)
    assert "small_sample" in rows["sr_strict", None].flags


def test_a_row_has_the_n_that_its_value_rests_on() -> None:
    rows = rows_of(WORKED)
    assert (rows["at_success", None].n, rows["at_success", None].counts) == (2, {"turns": 4.0, "success": 2.0})
    assert rows["at_threshold_share", None].counts == {"at_threshold": 1.0, "cases": 4.0}
    none = rows_of([WORKED[1]])
    assert none["sr_strict", None].counts == {"success": 0.0, "cases": 1.0}
    assert "success" not in none["at_threshold_share", None].counts
    assert (none["at_success", None].n, none["at_success", None].reason) == (0, "needs 1 success")


def test_unanswered_readings_are_counted_where_they_are_zero() -> None:
    first, *rest = WORKED[0].turns
    zero = first.readings["rlff7"].model_copy(update={"compat_zero": True})
    half = WORKED[0].model_copy(update={"turns": (first.model_copy(update={"readings": {"rlff7": zero}}), *rest)})
    cases = [half, *WORKED[1:]]
    rows = critic_rows(cases, CriticScale("rlff7", compat=True), measurement("dialogue", list("abcd")))
    row = next(row for row in rows if row.name == "dialogue.rlff7.compat_zeros")
    assert (row.value, row.unit, row.counts, row.n) == (1.0, "readings", {"zeros": 1.0, "readings": 20.0}, 4)
    assert not any(name == "compat_zeros" for name, _ in rows_of(cases))


def test_lenient_at_success_of_the_worked_dialogues() -> None:
    turns = [found for outcome in (A, B, C, D) if (found := outcome_of(tuple(outcome)).lenient)]
    assert sum(turns) / len(turns) == pytest.approx(10 / 3)


@pytest.mark.parametrize("rule", ["strict", "lenient"])
def test_average_turn_is_the_area_above_the_curve(rule: str) -> None:
    rows = rows_of(WORKED)
    curve = "sr_by_turn" if rule == "strict" else "sr_by_turn_lenient"
    area = sum(rows[curve, t].value or 0.0 for t in range(1, 8))
    assert rows[f"at_{rule}", None].value == pytest.approx(8 - area)


def test_an_unscored_dialogue_widens_bounds_and_moves_no_value() -> None:
    rows, alone = rows_of([*WORKED, episode("e", {"rlff7": quarters(4)}, failure=BROKEN)]), rows_of(WORKED)
    row = rows["sr_strict", None]
    assert (row.value, row.n, row.coverage, row.unscored) == (0.5, 4, 0.8, {"unscored_critic": 1})
    assert [rows["sr_bounds", bound].value for bound in ("low", "high")] == [0.4, 0.6]
    assert "low_coverage" in row.flags
    for key in ("at_strict", "at_lenient", "sr_lenient", "critic_last", "critic_first"):
        assert rows[key, None].value == alone[key, None].value


def test_a_failure_after_the_success_changes_nothing() -> None:
    late = episode("a", {"rlff7": A}, failure=BROKEN)
    assert read_outcome(late, "rlff7") == outcome_of(tuple(A))
    backend = BROKEN.model_copy(update={"kind": "backend", "stage": "seeker"})
    assert read_outcome(episode("x", {"rlff7": quarters(4)}, failure=backend), "rlff7") == Unscored("backend")


def test_one_critics_failure_is_not_the_others() -> None:
    both = episode("a", {"rlff7": A, "ppdpp4": quarters(4)}).model_copy(update={"critic_failures": {"ppdpp4": BROKEN}})
    assert read_outcome(both, "rlff7") == outcome_of(tuple(A))
    assert read_outcome(both, "ppdpp4") == Unscored("unscored_critic")


value_lists = st.lists(st.integers(-40, 40), min_size=8, max_size=8)


@given(st.lists(value_lists, min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_lenient_never_loses_to_strict(sums: list[list[int]]) -> None:
    episodes = [episode(f"d{index}", {"rlff7": quarters(*found)}) for index, found in enumerate(sums)]
    rates = [SCALE.success_rate(rule) for rule in ("lenient", "strict")]
    turns = [SCALE.average_turn(rule) for rule in ("lenient", "strict")]
    lenient, strict = (metric.finish(collect(metric, episodes).stats) or 0.0 for metric in rates)
    assert lenient >= strict
    lenient, strict = (metric.finish(collect(metric, episodes).stats) or 0.0 for metric in turns)
    assert lenient <= strict


@given(st.lists(st.tuples(value_lists, value_lists), min_size=1, max_size=5))
@settings(max_examples=15, deadline=None)
def test_a_second_critic_changes_nothing_for_the_first(sums: list[tuple[list[int], list[int]]]) -> None:
    def played(index: int, critics: dict[str, list[Fraction]]) -> Episode:
        """Play until every critic has succeeded, reading each until its own success."""
        outcomes = {critic: outcome_of(tuple(values)) for critic, values in critics.items()}
        length = max(len(outcome.values) for outcome in outcomes.values())
        turns = [
            turn(t, {critic: it.values[t - 1] for critic, it in outcomes.items() if t <= len(it.values)})
            for t in range(1, length + 1)
        ]
        return episode(f"d{index}", dict.fromkeys(critics, ()), turns=turns)

    alone = [played(index, {"rlff7": quarters(*first)}) for index, (first, _) in enumerate(sums)]
    both = [
        played(index, {"rlff7": quarters(*first), "ppdpp4": quarters(*second)})
        for index, (first, second) in enumerate(sums)
    ]
    assert rows_of(alone) == rows_of(both)


def test_types_are_folded_and_weighted() -> None:
    rows = rows_of(WORKED)
    assert (rows["sr_by_emotion", "anger"].n, rows["sr_by_emotion", "anger"].value) == (2, 0.5)
    assert rows["weighted_sr_by_emotion", "anger"].value == 0.25
    assert rows["sr_by_emotion", "unknown"].n == 1
    assert fold_type(" Issues with Parents ") == fold_type("conflict with parents")


def test_ten_answers_of_one_half_are_exactly_one_half() -> None:
    six_times = Fraction(6 * 2, 6 * 4)
    assert outcome_of((six_times,)) == outcome_of((Fraction(1, 2),))
    assert outcome_of((six_times,)).strict is None
    assert outcome_of((six_times,)).lenient == 1
