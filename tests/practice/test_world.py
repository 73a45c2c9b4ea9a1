"""The rules of the practice world, and that its best treatment is computed rightly."""

from __future__ import annotations

from itertools import product

import pytest

from esckit.errors import ConfigError
from esckit.practice.world import (
    FUNCTIONS,
    HORIZON,
    MAX_INTENSITY,
    NEEDS,
    START_INTENSITIES,
    Solution,
    State,
    fit_of,
    load_profile,
    outcomes,
    profiles,
    solution,
    start,
    step,
)

DEFAULT = load_profile("default")

STATES = [
    State(need, trust, intensity, last, run)
    for need, trust, intensity, (last, run) in product(
        NEEDS, range(4), range(MAX_INTENSITY + 1), [(None, 0), *product(FUNCTIONS, (1, 2))]
    )
]


@pytest.mark.parametrize("name", profiles())
def test_outcomes_are_a_distribution(name: str) -> None:
    for state, function in product(STATES, (*FUNCTIONS, "other")):
        found = outcomes(load_profile(name), state, function)
        assert sum(p for p, _ in found) == pytest.approx(1.0)
        assert all(p >= 0 and 0 <= after.trust <= 3 and 0 <= after.intensity <= MAX_INTENSITY for p, after in found)


@pytest.mark.parametrize(
    ("state", "function", "fit"),
    [
        (State("heard", 1, 4), "comfort", "good"),
        (State("heard", 1, 4), "explore", "neutral"),
        (State("heard", 1, 4), "act", "premature"),
        (State("understood", 2, 4), "explore", "good"),
        (State("understood", 2, 4), "comfort", "neutral"),
        (State("understood", 2, 4), "act", "premature"),
        (State("act", 1, 4), "act", "neutral"),
        (State("act", 2, 4), "act", "good"),
        (State("act", 3, 4, "act", 1), "act", "good"),
        (State("act", 3, 4, "act", 2), "act", "neutral"),
        (State("heard", 1, 4, "act", 2), "act", "premature"),
        (State("heard", 1, 4), "other", "neutral"),
    ],
)
def test_fit(state: State, function: str, fit: str) -> None:
    assert fit_of(state, function) == fit  # type: ignore[arg-type]


def test_a_step_follows_its_number() -> None:
    state = State("act", 3, 3, "comfort", 1)
    assert step(DEFAULT, state, "act", 0.0) == State("act", 3, 1, "act", 1)
    assert step(DEFAULT, state, "act", 0.69) == State("act", 3, 1, "act", 1)
    assert step(DEFAULT, state, "act", 0.71) == State("act", 3, 3, "act", 1)


def test_nothing_changes_after_the_end() -> None:
    for state in (State("act", 2, 0), State("heard", 0, 4, has_left=True)):
        assert outcomes(DEFAULT, state, "act") == [(1.0, state)]
        assert Solution(DEFAULT).value(state, 5) == float(state.intensity == 0)


@pytest.mark.parametrize(
    ("name", "success"),
    [("default", 0.8721), ("guarded", 0.8361), ("open", 0.8857), ("terse", 0.8721), ("leaver", 0.8721)],
)
def test_success_of_the_optimum(name: str, success: float) -> None:
    values = [solution(name).value(start(intensity), HORIZON) for intensity in START_INTENSITIES]
    assert sum(values) / len(values) == pytest.approx(success, abs=5e-5)


def test_the_value_is_that_of_playing_it_out() -> None:
    best, state = Solution(DEFAULT), start(3)

    def follow(state: State, left: int) -> float:
        if state.is_over or not left:
            return float(state.intensity == 0 and not state.has_left)
        function = min(best.best(state, left))
        return sum(p * follow(after, left - 1) for p, after in outcomes(DEFAULT, state, function) if p)

    assert follow(state, 5) == pytest.approx(best.value(state, 5))


def test_regret_is_zero_for_the_best_alone() -> None:
    best, state = solution("default"), State("understood", 2, 3, "comfort", 1)
    regrets = {function: best.regret(state, function, 5) for function in (*FUNCTIONS, "other")}
    assert {name for name, regret in regrets.items() if regret < 1e-12} == best.best(state, 5)
    assert regrets["act"] == max(regrets.values())


def test_an_unknown_profile_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"unknown profile 'gaurded'.*"):
        load_profile("gaurded")
