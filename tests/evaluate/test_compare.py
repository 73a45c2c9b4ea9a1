"""Comparing two runs: tests per kind of metric, dropped cases, refused pairs, and that shuffling labels is fair."""

import numpy as np
import pytest

from esckit.errors import DataError
from esckit.evaluate.setup import Conditions, require_comparable
from esckit.evaluate.suites.critics import CriticScale, headline_metrics
from esckit.evaluate.suites.response import ROUGE_L, ResponseCase, bleu, distinct
from esckit.evaluate.suites.reward import RewardCase, reward_metrics
from esckit.evaluate.suites.strategy import StrategyScale, strategy_metrics
from esckit.metrics.metric import Statistics
from esckit.metrics.rows import Comparer, with_holm
from tests.evaluate.casefakes import episode, of_matrix, quarters, response_case, strategy_case

SETTINGS = Statistics(resamples=2000)
SCALE = CriticScale("rlff7", max_turns=2)
WIN, LOSS = quarters(30), quarters(0, 0)


def comparer(n: int, suite: str = "dialogue") -> Comparer:
    return Comparer.over(suite, [f"d{index}" for index in range(n)], 7, SETTINGS, other="base")


def played(wins: str) -> list:
    return [episode(f"d{index}", {"rlff7": WIN if win == "1" else LOSS}, max_turns=2) for index, win in enumerate(wins)]


def test_success_rates_are_compared_by_mcnemar() -> None:
    ours, theirs = played("1" * 8 + "0" * 2 + "1" * 5), played("0" * 8 + "1" * 2 + "1" * 5)
    found = comparer(15).compare(SCALE.success_rate("strict"), ours, theirs)
    assert (found.n, found.value, found.other_value) == (15, 13 / 15, 7 / 15)
    assert found.difference == pytest.approx(6 / 15)
    assert (found.test, found.p) == ("mcnemar", pytest.approx(0.109375))
    assert found.interval is not None
    assert found.interval.low < 6 / 15 < found.interval.high


def test_average_turns_are_compared_by_sign_flips() -> None:
    ours, theirs = played("111111"), played("000011")
    found = comparer(6).compare(SCALE.average_turn("strict"), ours, theirs)
    assert (found.test, found.difference) == ("sign_flip", pytest.approx(-4 / 6))
    assert found.p == 8 / 64


def test_a_system_against_itself_has_no_difference_or_interval() -> None:
    cases = [response_case(index, f"word{index} and more", "word1 and less") for index in range(20)]
    for metric in (bleu(2), ROUGE_L, distinct(1)):
        found = comparer(20, "response").compare(metric, cases, cases)
        assert (found.difference, found.p) == (0, 1.0)
        assert (found.interval, found.reason) == (None, "degenerate")


@pytest.mark.parametrize("n", [6, 30])
def test_corpus_level_permutation(n: int) -> None:
    good = [response_case(index, f"I hear you {index}", f"I hear you {index}") for index in range(n)]
    bad = [response_case(index, "no no no no", f"I hear you {index}") for index in range(n)]
    found = comparer(n, "response").compare(bleu(2), good, bad)
    assert found.test == "permutation"
    assert found.p == pytest.approx(2 / 2**n if n <= 12 else 1 / 2001)


def test_permutation_of_distinct_recomputes_the_corpus() -> None:
    ours = [response_case(index, text) for index, text in enumerate(["a b", "a c", "b d"])]
    theirs = [response_case(index, text) for index, text in enumerate(["a a", "a b", "d d"])]
    found = comparer(3, "response").compare(distinct(1), ours, theirs)

    def share(chosen: list[ResponseCase]) -> float:
        tokens = [token for case in chosen for token in (case.reply or "").split()]
        return 100 * len(set(tokens)) / len(tokens)

    observed = share(ours) - share(theirs)
    extreme = 0
    for code in range(8):
        pairs = [(b, a) if code >> index & 1 else (a, b) for index, (a, b) in enumerate(zip(ours, theirs, strict=True))]
        extreme += abs(share([a for a, _ in pairs]) - share([b for _, b in pairs])) >= abs(observed) - 1e-9
    assert found.p == extreme / 8
    assert found.interval is None


def test_cases_unscored_in_either_run_are_dropped_and_counted() -> None:
    ours = [response_case(index, "I hear you") for index in range(8)]
    theirs = [response_case(index, None if index < 2 else "I hear you") for index in range(8)]
    found = comparer(8, "response").compare(ROUGE_L, ours, theirs)
    assert (found.n, found.n_dropped) == (6, 2)


def test_correct_of_all_keeps_silence() -> None:
    ours = [strategy_case(index, "Q", "Q") for index in range(6)]
    theirs = [strategy_case(index, None, "Q") for index in range(6)]
    (metric,) = [one for one in strategy_metrics(StrategyScale(("Q", "C"))) if one.name == "strategy.correct_of_all"]
    found = comparer(6, "strategy").compare(metric, ours, theirs)
    assert (found.n, found.difference) == (6, 1.0)


def test_without_tests_both_values_are_printed() -> None:
    found = comparer(6).compare(SCALE.success_rate("strict"), played("111111"), played("000000"), tests=False)
    assert (found.value, found.other_value, found.p, found.interval) == (1, 0, None, None)
    assert found.reason == "the runs are not comparable"


def test_holm_is_added_per_suite() -> None:
    metric = SCALE.success_rate("strict")
    base = comparer(6).compare(metric, played("111111"), played("000000"))
    entries = [base.model_copy(update={"p": p}) for p in (0.01, None, 0.04, 0.03)]
    assert [entry.p_holm for entry in with_holm(entries)] == [pytest.approx(0.03), None, *[pytest.approx(0.06)] * 2]


def strategy_family(ours: list, theirs: list) -> dict:
    """Return the comparisons of the suite ``strategy`` by short name."""
    metrics = strategy_metrics(StrategyScale(("Q", "R", "C")))
    found = [comparer(len(ours), "strategy").compare(metric, ours, theirs) for metric in metrics]
    variants = {metric.name: metric.facts.variant_of for metric in metrics if metric.facts.variant_of}
    return {entry.name.partition(".")[2]: entry for entry in with_holm(found, variants)}


def test_a_family_holds_each_question_once() -> None:
    ours = of_matrix([[20, 9, 6], [3, 15, 4], [2, 1, 10]], ("Q", "R", "C"))
    others = of_matrix([[15, 9, 11], [3, 10, 9], [7, 6, 0]], ("Q", "R", "C"))
    theirs = [case.model_copy(update={"predicted": other.predicted}) for case, other in zip(ours, others, strict=True)]
    family = strategy_family(ours, theirs)
    tested = {name for name, entry in family.items() if entry.p is not None}
    assert tested == {"accuracy", "macro_f1", "weighted_f1", "bias_b", "entropy", "kl_gold"}
    assert {name for name, entry in family.items() if entry.p_holm is not None} == tested
    least = min((entry for entry in family.values() if entry.p is not None), key=lambda entry: entry.p)
    assert least.p_holm == pytest.approx(min(1.0, 6 * least.p))
    assert family["correct_of_all"].reason == "equals strategy.accuracy on these cases"
    assert family["bias_b_20"].reason == "equals strategy.bias_b on these cases"
    assert (family["correct_of_all"].test, family["correct_of_all"].interval) == (None, family["accuracy"].interval)


def test_correct_of_all_counts_apart_where_cases_are_unscored() -> None:
    ours = [strategy_case(index, "Q", "QR"[index % 2]) for index in range(12)]
    theirs = [strategy_case(index, None if index < 4 else "R", "QR"[index % 2]) for index in range(12)]
    family = strategy_family(ours, theirs)
    assert family["correct_of_all"].p is not None
    assert family["accuracy_any"].p is None


def test_lenient_success_that_equals_strict_is_not_tested_twice() -> None:
    metrics = headline_metrics(SCALE)
    variants = {metric.name: metric.facts.variant_of for metric in metrics if metric.facts.variant_of}
    for last, tested in (([30], False), ([20, 0], True)):
        ours = [*played("111110"), episode("d6", {"rlff7": quarters(*last)}, max_turns=2)]
        theirs = [*played("000010"), episode("d6", {"rlff7": LOSS}, max_turns=2)]
        found = with_holm([comparer(7).compare(metric, ours, theirs) for metric in metrics], variants)
        p = {entry.name.rpartition(".")[2]: entry.p for entry in found}
        assert p["sr_strict"] is not None
        assert (p["sr_lenient"] is not None) is tested


def test_unlike_runs_are_refused_with_what_differs() -> None:
    ours = {"critic": {"model": "gpt-4o", "prompt": "aa"}, "data": {"ids": "11"}}
    theirs = {"critic": {"model": "gpt-4.1", "prompt": "aa"}, "data": {"ids": "11"}}
    manifest = {"recipe": {}}
    require_comparable(Conditions(ours, manifest), Conditions(dict(ours), manifest), other="base")
    with pytest.raises(DataError, match=r"critic\.model \('gpt-4o' here, 'gpt-4.1' there\)"):
        require_comparable(Conditions(ours, manifest), Conditions(theirs, manifest), other="base")


def test_p_values_of_equal_systems_are_spread_evenly() -> None:
    rng = np.random.default_rng(0)
    ps = []
    for _ in range(60):
        sides = [
            [response_case(i, "a b c d" if rng.random() < 0.5 else "x y z w", "a b c d") for i in range(10)]
            for _ in range(2)
        ]
        ps.append(comparer(10, "response").compare(ROUGE_L, *sides).p or 0.0)
    assert sum(p <= 0.05 for p in ps) <= 8


def test_swapped_systems_keep_their_candidates_apart() -> None:
    def cases(flip: int) -> list[RewardCase]:
        return [
            RewardCase(
                id=f"{unit}.{index}",
                dialogue_id=f"d{unit}",
                context_id=f"x{unit}",
                p=(index ^ flip) / 2 + unit / 99,
                y=index == 1,
                reward_num=index,
                reward_den=1,
            )
            for unit in range(6)
            for index in range(2)
        ]

    metric = next(found for found in reward_metrics() if found.name == "reward.pair_accuracy")
    found = comparer(6, "reward").compare(metric, cases(0), cases(1))
    assert (found.value, found.other_value, found.p) == (1.0, 0.0, 2 / 64)
