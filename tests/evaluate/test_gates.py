"""Gates: checked before any model is called, and failed by what cannot be trusted."""

from typing import Any

import pytest

from esckit.errors import ConfigError
from esckit.evaluate.setup import known_metrics
from esckit.metrics.metric import GateBound, require_gates
from esckit.metrics.rows import Interval, MetricRow, judge_gates
from tests.evaluate.evalrecipes import everything

SUITES = ("strategy", "response", "dialogue", "pairwise", "reward", "safety")
KNOWN = known_metrics(everything(), ("Question", "Comfort"))
SR = "dialogue.rlff7.sr_strict"
AT = "dialogue.rlff7.at_strict"


def row(
    name: str, value: float | None, *, flags: tuple[str, ...] = (), low: float = 0.3, high: float = 0.5
) -> MetricRow:
    facts = KNOWN[name]
    return MetricRow(
        name=name,
        value=value,
        unit=facts.unit,
        range=facts.range,
        higher_is_better=facts.higher_is_better,
        n=130,
        n_unscored=0,
        unscored={},
        coverage=1.0,
        counts={},
        interval=Interval(method="wilson", level=0.95, low=low, high=high),
        reason=None if value is not None else "no scored case",
        flags=flags,
        group=None,
    )


@pytest.mark.parametrize(
    ("value", "bound", "holds"), [(0.415, 0.4, True), (0.4, 0.4, True), (0.39, 0.4, False), (None, 0.0, False)]
)
def test_gates_where_higher_is_better(value: float | None, bound: float, holds: bool) -> None:
    (gate,) = judge_gates([GateBound(SR, bound)], [row(SR, value)], KNOWN)
    assert gate.holds is holds


def test_gates_where_lower_is_better() -> None:
    gates = judge_gates([GateBound(AT, 7.0), GateBound(AT, 6.0)], [row(AT, 6.5)], KNOWN)
    assert [gate.holds for gate in gates] == [True, False]


def test_a_gate_can_ask_for_the_worse_end_of_the_interval() -> None:
    bounds = [GateBound(SR, 0.4), GateBound(AT, 6.6)]
    rows = [row(SR, 0.415), row(AT, 6.5, low=6.3, high=6.7)]
    assert [gate.holds for gate in judge_gates(bounds, rows, KNOWN)] == [True, True]
    assert [gate.holds for gate in judge_gates(bounds, rows, KNOWN, gates_on="bound")] == [False, False]


def test_a_gate_on_a_missing_interval_fails_if_one_is_expected() -> None:
    few = {"interval": None, "reason": "fewer than 5 dialogues"}
    rows = [row(SR, 1.0).model_copy(update=few), row("safety.harm_count", 0.0).model_copy(update={"interval": None})]
    bounds = [GateBound(SR, 0.95), GateBound("safety.harm_count", 0)]
    assert [gate.holds for gate in judge_gates(bounds, rows, KNOWN)] == [True, True]
    found = judge_gates(bounds, rows, KNOWN, gates_on="bound")
    assert [(gate.holds, gate.reason) for gate in found] == [
        (False, "no interval: fewer than 5 dialogues"),
        (True, None),
    ]


def test_low_coverage_and_missing_metrics_fail() -> None:
    low = judge_gates([GateBound(SR, 0.0)], [row(SR, 1.0, flags=("low_coverage",))], KNOWN)
    assert [(gate.holds, gate.reason) for gate in low] == [(False, "low coverage")]
    assert [gate.reason for gate in judge_gates([GateBound(SR, 0.0)], [], KNOWN)] == ["not measured"]


@pytest.mark.parametrize(
    ("gate", "suites", "message"),
    [
        (GateBound("dialogue.rlff7.sr_stric", 0.4), SUITES, "sr_strict"),
        (GateBound(SR, 0.4), ("strategy",), "a suite that is run"),
        (GateBound(SR, 0.4, "over"), SUITES, "--fail-under"),
        (GateBound(AT, 6.0, "under"), SUITES, "--fail-over"),
        (GateBound("strategy.entropy", 1.0), SUITES, "more or less is better"),
    ],
)
def test_wrong_gates_are_refused(gate: GateBound, suites: tuple[str, ...], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        require_gates([gate], KNOWN, suites)


@pytest.mark.parametrize(
    ("metric", "without"),
    [
        ("dialogue.turn_reward", {"models": {"turn_judge": None}}),
        ("dialogue.turn_reward_jump", {"models": {"turn_judge": None}}),
        ("safety.pass_rate", {"settings": {"safety": {"crisis": False}}}),
        ("safety.sycophancy.flip", {"settings": {"safety": {"sycophancy": False}}}),
        ("response.ppl", {"models": {"scorer": None}}),
    ],
)
def test_a_gate_on_what_nobody_will_measure_is_refused(metric: str, without: dict[str, Any]) -> None:
    known = known_metrics(everything(models={"scorer": {"backbone": "embedded"}}), ())
    gate = GateBound(metric, known[metric].range[0])
    require_gates([gate], known, SUITES)
    with pytest.raises(ConfigError, match="unknown metric"):
        require_gates([gate], known_metrics(everything(**without), ()), SUITES)


def test_right_gates_pass() -> None:
    require_gates([GateBound(SR, 0.4, "under"), GateBound("safety.harm_count", 0, "over")], KNOWN, SUITES)


def test_every_metric_states_its_facts() -> None:
    assert len(KNOWN) > 80
    for name, facts in KNOWN.items():
        assert facts.unit, name
        assert facts.minimum, name
        low, high = facts.range
        assert high is None or low < high, name
        assert facts.interval != "none" or facts.no_interval, name


@pytest.mark.parametrize(
    ("metric", "bound"),
    [
        ("safety.over_referral", 5.0),  # percent for a share: would hold whatever is measured
        ("strategy.accuracy", 50.0),
        ("strategy.accuracy", -0.1),
        (AT, 0.5),
        ("safety.harm_count", float("inf")),
        ("strategy.accuracy", float("nan")),
    ],
)
def test_a_bound_that_a_metric_cannot_take_is_refused(metric: str, bound: float) -> None:
    with pytest.raises(ConfigError, match="a bound from"):
        require_gates([GateBound(metric, bound)], KNOWN, SUITES)


def test_bounds_at_the_ends_of_the_range_are_taken() -> None:
    bounds = [GateBound("strategy.accuracy", 1.0), GateBound("safety.over_referral", 0.0), GateBound(AT, 1.0)]
    require_gates([*bounds, GateBound("safety.harm_count", 40.0), GateBound("response.bleu_2", 100.0)], KNOWN, SUITES)
