"""The practice world: a seeker with a small hidden state, so that the best way to treat it can be computed.

It is no model of people. It exists so that search, flow training, reward models and reinforcement learning have
something true to learn, in minutes, and so that what they learned can be compared with the optimum.

The seeker needs to be *heard*, then *understood*, then to *act*; it has a trust in the supporter and an intensity of
its problem, which is resolved at 0. What a supporter turn does depends on its function alone
(:data:`~esckit.practice.language.FUNCTIONS`), by the table :data:`FIT` and the probabilities of a :class:`Profile`.
The states are few, so dynamic programming gives the best reachable share of successes and the value of each function
in every state (:class:`Solution`).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import Field

from esckit.documents import read_yaml
from esckit.errors import ConfigError
from esckit.registry import did_you_mean
from esckit.types import Record

HORIZON = 8
"""Supporter turns of a dialogue, as in both papers."""

MAX_TRUST = 3

MAX_INTENSITY = 5

START_INTENSITIES = (3, 4, 5)

_MAX_RUN = 2
"""A function counts so often in a row; from the third time on it is no longer good."""

_NEEDED_TRUST = 2
"""Below this trust nobody takes advice, not even in the need to act."""

Function = Literal["reflect", "explore", "comfort", "act", "other"]

FUNCTIONS: tuple[Function, ...] = ("reflect", "explore", "comfort", "act")
"""What a supporter turn can do that has an effect; ``other`` is always neutral."""

Need = Literal["heard", "understood", "act"]

NEEDS: tuple[Need, ...] = ("heard", "understood", "act")
"""In the order in which they are met: exploration, comforting, action (Hill's helping skills)."""

Fit = Literal["good", "neutral", "premature"]

FIT: dict[Need, dict[Function, Fit]] = {
    "heard": {"reflect": "good", "comfort": "good", "explore": "neutral", "act": "premature", "other": "neutral"},
    "understood": {"reflect": "good", "explore": "good", "comfort": "neutral", "act": "premature", "other": "neutral"},
    "act": {"act": "good", "reflect": "neutral", "explore": "neutral", "comfort": "neutral", "other": "neutral"},
}
"""What a function is to a need, before trust and repetition count."""

_Probability = Annotated[float, Field(ge=0.0, le=1.0)]


class Profile(Record):
    """How a seeker of the practice world reacts; all numbers are probabilities.

    Attributes:
        about: One line for people.
        advance: A good turn moves the need on, by trust before the turn.
        step: A good turn on the need to act lowers the intensity: by 1, by 2 at full trust.
        relief: A good turn on an earlier need lowers the intensity by 1.
        drift: A neutral turn lowers it by 1.
        resistance: A premature turn raises it by 1.
        drop_out: The seeker leaves after a premature turn that brings trust to 0, or finds it there.
        pace: What the seeker says shows its need.
    """

    name: str
    about: str
    advance: tuple[_Probability, _Probability, _Probability, _Probability]
    step: _Probability
    relief: _Probability
    drift: _Probability
    resistance: _Probability
    drop_out: _Probability
    pace: _Probability


@cache
def profiles() -> dict[str, Profile]:
    """Return the shipped profiles by name."""
    found = read_yaml(Path(__file__).parent / "profiles.yaml", "profiles")
    return {name: Profile.model_validate({"name": name, **facts}) for name, facts in found.items()}


def load_profile(name: str) -> Profile:
    """Return a shipped profile.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in profiles():
        raise ConfigError(
            f"unknown profile {name!r} of the practice world",
            expected=f"one of {', '.join(profiles())}",
            hint=did_you_mean(name, profiles()),
        )
    return profiles()[name]


class State(NamedTuple):
    """What is hidden of a seeker.

    Attributes:
        trust: In 0 … 3.
        intensity: In 0 … 5; 0 is resolved.
        last: Function of the last supporter turn, None before the first.
        run: How often in a row it was used, at most 2.
        has_left: Whether the seeker has left for good.
    """

    need: Need
    trust: int
    intensity: int
    last: Function | None = None
    run: int = 0
    has_left: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing changes any more: resolved, or left."""
        return self.has_left or self.intensity == 0


def start(intensity: int) -> State:
    """Return the state before the first supporter turn."""
    return State("heard", 1, intensity)


def fit_of(state: State, function: Function) -> Fit:
    """Return what a function is in a state: its fit to the need, unless trust is missing or it is used too often."""
    fit = FIT[state.need][function]
    is_trusted = state.trust >= _NEEDED_TRUST or not (state.need == function == "act")
    is_fresh = function != state.last or state.run < _MAX_RUN
    return "neutral" if fit == "good" and not (is_trusted and is_fresh) else fit


def outcomes(profile: Profile, state: State, function: Function) -> list[tuple[float, State]]:
    """Return what a supporter turn can lead to, with probabilities that sum to 1."""
    if state.is_over:
        return [(1.0, state)]
    fit = fit_of(state, function)
    run = min(state.run + 1, _MAX_RUN) if function == state.last else 1
    after = state._replace(last=function, run=run)
    if fit == "good":
        return _good(profile, after, trust=state.trust)
    if fit == "neutral":
        return [(profile.drift, _lowered(after, 1)), (1 - profile.drift, after)]
    pushed = after._replace(trust=max(0, state.trust - 1))
    leaves = profile.drop_out if pushed.trust == 0 else 0.0
    worse = pushed._replace(intensity=min(MAX_INTENSITY, state.intensity + 1))
    return [
        (leaves, pushed._replace(has_left=True)),
        ((1 - leaves) * profile.resistance, worse),
        ((1 - leaves) * (1 - profile.resistance), pushed),
    ]


def _good(profile: Profile, after: State, *, trust: int) -> list[tuple[float, State]]:
    trusted = after._replace(trust=min(MAX_TRUST, trust + 1))
    if after.need == "act":
        lowered = _lowered(trusted, 2 if trust == MAX_TRUST else 1)
        return [(profile.step, lowered), (1 - profile.step, trusted)]
    moved = trusted._replace(need=NEEDS[NEEDS.index(after.need) + 1])
    advance, relief = profile.advance[trust], profile.relief
    return [
        (p * q, _lowered(state, drop))
        for p, state in ((advance, moved), (1 - advance, trusted))
        for q, drop in ((relief, 1), (1 - relief, 0))
    ]


def _lowered(state: State, drop: int) -> State:
    return state._replace(intensity=max(0, state.intensity - drop))


def step(profile: Profile, state: State, function: Function, u: float) -> State:
    """Return the state after a supporter turn.

    Args:
        profile: How the seeker reacts.
        state: Before the turn.
        function: What the turn did.
        u: A uniform number in [0, 1).
    """
    reached = 0.0
    possible = [(p, after) for p, after in outcomes(profile, state, function) if p]
    for p, after in possible:
        reached += p
        if u < reached:
            return after
    return possible[-1][1]


class Solution:
    """The best that a supporter with full sight of the state can reach, by dynamic programming.

    Args:
        profile: How the seeker reacts.
    """

    def __init__(self, profile: Profile) -> None:
        self.profile = profile
        self._values: dict[tuple[State, int], float] = {}

    def value(self, state: State, turns_left: int) -> float:
        """Return the best probability of success within so many supporter turns."""
        if state.is_over or turns_left <= 0:
            return float(state.intensity == 0 and not state.has_left)
        key = (state, turns_left)
        if key not in self._values:
            self._values[key] = max(self.values(state, turns_left).values())
        return self._values[key]

    def values(self, state: State, turns_left: int) -> dict[Function, float]:
        """Return the probability of success per function, with the best play after it; ``turns_left`` is at least 1."""
        return {
            function: sum(
                p * self.value(after, turns_left - 1) for p, after in outcomes(self.profile, state, function) if p
            )
            for function in FUNCTIONS
        }

    def best(self, state: State, turns_left: int) -> frozenset[Function]:
        """Return the functions of the highest value; all that are equal up to rounding."""
        values = self.values(state, turns_left)
        top = max(values.values())
        return frozenset(function for function, value in values.items() if value >= top - 1e-12)

    def regret(self, state: State, function: Function, turns_left: int) -> float:
        """Return how much probability of success a turn gives away, in [0, 1]."""
        if state.is_over:
            return 0.0
        values = self.values(state, turns_left)
        chosen = values.get(function)
        if chosen is None:
            chosen = sum(p * self.value(after, turns_left - 1) for p, after in outcomes(self.profile, state, function))
        return round(max(values.values()) - chosen, 12)  # what two sums of one value differ by is none


@cache
def solution(name: str) -> Solution:
    """Return the solution of a shipped profile; what was computed is kept."""
    return Solution(load_profile(name))
