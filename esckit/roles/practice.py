"""Critics of the practice world: they read the hidden state behind a conversation, and say it in the critics' terms.

``expected`` says exactly what the state is; ``sampled`` gives answers with seeded noise. Both take the place of a
prompted critic, so their readings are of the same kind (:mod:`esckit.roles.critics`, :mod:`esckit.roles.rubric`).
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esckit.config import sections
from esckit.errors import UnscoredError
from esckit.ledger import Scope, derive_seed, uniform
from esckit.practice.players import Game, turn_ratings, wellbeing
from esckit.roles.rubric import MAX_RATING, weighted_reward
from esckit.roles.verdicts import Preset
from esckit.types import CriticReading, RubricReading, Scenario, Score, Turn

NOISE = 0.1
"""Share of sampled answers that are one step off."""


@dataclass(frozen=True, slots=True)
class WorldResolutionCritic:
    """Says how well the seeker is, on the levels of a preset; see :func:`esckit.practice.players.wellbeing`."""

    game: Game
    preset: Preset
    settings: sections.ResolutionCritic

    @property
    def identity(self) -> str:
        """Preset and profile, as readings show it."""
        return f"{self.preset.name}/{self.asked_by}"

    @property
    def asked_by(self) -> str:
        """What stands in the place of a prompt, for the manifest."""
        return f"world:{self.game.profile.name}"

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        """Return the value of the conversation so far, in [-1, 1], with its reading attached; never fails."""
        value = wellbeing(self.game.opening(scenario), self.game.state(scenario, turns))
        weights = self._weights(value)
        if self.settings.readout == "expected":
            exact = self.preset.expectation(weights)
            facts = {"weights": weights, "name_mass": 1.0}
        else:
            seeds = [scope.seed(f"critic.{index}") for index in range(self.settings.samples)]
            answers = [self._answer(weights, seed, is_sure=abs(value) == 1.0) for seed in seeds]
            counts = tuple(answers.count(level) for level in range(len(self.preset.levels)))
            exact = self.preset.mean(counts)
            facts = {"counts": counts, "n_parsed": len(answers)}
        reading = CriticReading(
            readout=self.settings.readout,
            critic=self.identity,
            num=exact.numerator,
            den=exact.denominator,
            value=float(exact),
            **facts,
        )
        return Score(values={"resolution": reading.value}, reward=reading.value, reading=reading)

    def _weights(self, value: float) -> tuple[float, ...]:
        """Return the probability of each level: of the two around the value, so that their mean is the value."""
        order = self._by_value()
        values = [self.preset.quarters[level] / 4 for level in order]
        above = min(max(bisect_right(values, value), 1), len(values) - 1)
        share = (value - values[above - 1]) / (values[above] - values[above - 1])
        weights = [0.0] * len(order)
        weights[order[above - 1]], weights[order[above]] = 1.0 - share, share
        return tuple(weights)

    def _answer(self, weights: Sequence[float], seed: int, *, is_sure: bool) -> int:
        """Return one sampled level; the best and the worst of all are never mistaken, nor said of another state."""
        order = self._by_value()
        u, level = uniform(derive_seed("practice", seed, "level")), 0
        for level in order:
            u -= weights[level]
            if u < 0:
                break
        off = uniform(derive_seed("practice", seed, "noise"))
        if is_sure or off >= NOISE:
            return level
        step = 1 if off < NOISE / 2 else -1
        return order[min(max(order.index(level) + step, 1), len(order) - 2)]

    def _by_value(self) -> list[int]:
        return sorted(range(len(self.preset.levels)), key=lambda level: self.preset.quarters[level])


@dataclass(frozen=True, slots=True)
class WorldRubricCritic:
    """Rates the last supporter turn by AFlow's criteria; see :func:`esckit.practice.players.turn_ratings`."""

    game: Game
    settings: sections.RubricCritic

    async def score(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Score:
        """Return the reward of the last supporter turn, in [0.2, 1].

        Raises:
            UnscoredError: If there is no supporter turn.
        """
        moves = self.game.moves(scenario, turns)
        if not moves:
            raise UnscoredError("a conversation without a supporter turn")
        ratings = {name: float(rating) for name, rating in turn_ratings(moves[-1]).items()}
        if self.settings.readout == "sampled":
            ratings = _noisy(ratings, scope.seed("critic"))
        reading = RubricReading(
            readout=self.settings.readout, critic=f"aflow/world:{self.game.profile.name}", ratings=ratings
        )
        return Score(values=ratings, reward=weighted_reward(ratings, self.settings.weights), reading=reading)


def _noisy(ratings: Mapping[str, float], seed: int) -> dict[str, float]:
    """Return ratings of which some are one step off."""
    noisy = {}
    for name, rating in ratings.items():
        off = uniform(derive_seed("practice", seed, name))
        step = 0 if off >= NOISE else 1 if off < NOISE / 2 else -1
        noisy[name] = min(max(rating + step, 1.0), float(MAX_RATING))
    return noisy
