"""Pairwise judging: the worked verdicts, a judge that always answers 1, and symmetry."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.evaluate.suites.pairwise import Judgement, PairCase, decide, pair_metrics, pairwise_rows
from esckit.metrics.metric import collect
from tests.evaluate.casefakes import measurement, pair_case

WORKED = [("A", "A"), ("A", "A"), ("B", "B"), ("tie", "tie"), ("A", "B"), ("A", "tie")]


def values(cases: list[PairCase]) -> dict[str, float | None]:
    found = {}
    for metric in pair_metrics("overall"):
        found[metric.name.rpartition(".")[2]] = metric.finish(collect(metric, cases).stats)
    return found


def test_the_worked_verdicts() -> None:
    found = values([pair_case(index, *verdicts) for index, verdicts in enumerate(WORKED)])
    assert (found["win"], found["tie"], found["lose"]) == pytest.approx((2 / 6, 3 / 6, 1 / 6))
    assert found["net"] == pytest.approx(1 / 6)
    assert found["position_consistency"] == pytest.approx(4 / 6)
    assert found["first_share"] == pytest.approx(6 / 9)
    assert found["sign_p"] == 1.0
    assert found["longer_share"] == pytest.approx(1 / 3)


def test_shares_of_decided_cases_rest_on_those() -> None:
    cases = [pair_case(index, *verdicts) for index, verdicts in enumerate(WORKED)]
    rows = pairwise_rows(cases, ["overall"], measurement("pairwise", [case.dialogue_id for case in cases]))
    n = {row.name.rpartition(".")[2]: row.n for row in rows}
    assert (n["win"], n["sign_p"], n["first_share"], n["longer_share"]) == (6, 3, 5, 3)


def test_a_judge_that_always_answers_1_decides_nothing() -> None:
    found = values([pair_case(index, "A", "B") for index in range(4)])
    assert (found["win"], found["lose"], found["tie"]) == (0, 0, 1)
    assert (found["position_consistency"], found["first_share"]) == (0, 1)
    assert found["sign_p"] is None
    assert found["longer_share"] is None


def test_shares_that_need_more_than_a_comparison_say_what() -> None:
    cases = [pair_case(index, "tie", "tie") for index in range(6)]
    rows = pairwise_rows(cases, ["overall"], measurement("pairwise", [case.dialogue_id for case in cases]))
    reasons = {row.name.rpartition(".")[2]: row.reason for row in rows if row.value is None}
    assert reasons == {
        "sign_p": "needs 1 decided case",
        "first_share": "needs 1 call without a tie",
        "longer_share": "needs 1 decided case with replies of different length",
    }


named = st.sampled_from(["A", "B", "tie"])


@given(st.lists(st.tuples(named, named), min_size=1, max_size=12))
@settings(max_examples=40, deadline=None)
def test_swapping_the_systems_swaps_win_and_lose(verdicts: list[tuple[str, str]]) -> None:
    other = {"A": "B", "B": "A", "tie": "tie"}
    ours = values([pair_case(index, *pair) for index, pair in enumerate(verdicts)])
    theirs = values([pair_case(index, other[a], other[b]) for index, (a, b) in enumerate(verdicts)])
    assert (ours["win"], ours["lose"]) == (theirs["lose"], theirs["win"])
    assert (ours["win"] or 0) + (ours["tie"] or 0) + (ours["lose"] or 0) == pytest.approx(1)
    for name in ("tie", "sign_p", "position_consistency"):
        assert ours[name] == theirs[name]


def test_one_unreadable_order_leaves_the_case_unscored() -> None:
    case = pair_case(0, "A", "A")
    broken = case.model_copy(update={"judgements": (case.judgements[0], Judgement(order="BA", unscored="unparsed"))})
    half = case.model_copy(
        update={"judgements": (case.judgements[0], Judgement(order="BA", verdicts={"comfort": "1"}))}
    )
    metric = pair_metrics("overall")[0]
    for entry in (broken, half):
        found = collect(metric, [entry])
        assert (found.n, found.unscored) == (0, {"unparsed": 1})


def test_one_order_alone_decides_where_positions_are_not_swapped() -> None:
    case = pair_case(0, "A", "A")
    single = case.model_copy(update={"judgements": case.judgements[1:]})
    decision = decide(single, "overall", swapped=False)
    assert decision.winner == "A"  # type: ignore[union-attr]
    assert "position_consistency" not in {metric.name.rpartition(".")[2] for metric in pair_metrics("o", swapped=False)}


def test_one_order_is_no_consistency_where_both_are_required() -> None:
    case = pair_case(0, "A", "A")
    single = case.model_copy(update={"judgements": case.judgements[:1]})
    twice = case.model_copy(update={"judgements": (case.judgements[0], case.judgements[0])})
    for metric in pair_metrics("overall"):
        found = collect(metric, [single, twice.model_copy(update={"id": "twice"})])
        assert (found.n, found.unscored) == (0, {"missing": 2}), metric.name


def test_sign_tests_are_adjusted_over_the_dimensions() -> None:
    cases = [dimensions_case(index, "A", "B" if index < 6 else "tie") for index in range(8)]
    dimensions = ["fluency", "comfort", "overall"]
    rows = pairwise_rows(cases, dimensions, measurement("pairwise", [case.dialogue_id for case in cases]))
    p = {row.name.split(".")[1]: (row.value, row.reason) for row in rows if row.name.endswith("sign_p")}
    adjusted = "a p-value, Holm-adjusted over the dimensions"
    assert p == {
        "fluency": (2 * 2 / 2**8, adjusted),
        "comfort": (2 / 2**6, adjusted),
        "overall": (None, "needs 1 decided case"),
    }


def dimensions_case(index: int, fluency: str, comfort: str) -> PairCase:
    """Return a case whose orders agree, on each dimension for the named system; ``overall`` is a tie."""
    said = {"A": ("1", "2"), "B": ("2", "1"), "tie": ("tie", "tie")}
    judgements = tuple(
        Judgement(
            order=order,
            verdicts={"fluency": said[fluency][at], "comfort": said[comfort][at], "overall": "tie"},
        )
        for at, order in enumerate(("AB", "BA"))
    )
    return pair_case(index, "A", "A").model_copy(update={"judgements": judgements})


def test_an_inconsistent_judge_is_flagged() -> None:
    cases = [pair_case(index, *verdicts) for index, verdicts in enumerate(WORKED)]
    rows = pairwise_rows(cases, ["overall"], measurement("pairwise", [case.dialogue_id for case in cases]))
    assert all("position_bias" in row.flags for row in rows)
    fair = [pair_case(index, "A", "A") for index in range(6)]
    rows = pairwise_rows(fair, ["overall"], measurement("pairwise", [case.dialogue_id for case in fair]))
    assert not any("position_bias" in row.flags for row in rows)
