"""Who plays the practice world: its seeker, a supporter that words a strategy, strategists, and critics.

The hidden state is a function of the transcript (:class:`Game`): every draw of the world is seeded by the profile, the
scenario and the words so far. So the seeker and the critics of a run see one state without talking to each other, and
what a saved conversation did can be read from it at any time. What is said is drawn by the seeds of the run's ledger.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from esckit.errors import ConfigError
from esckit.ledger import Scope, derive_seed, uniform
from esckit.practice.language import (
    function_of,
    meant_function,
    seeker_line,
    shown_need,
    slip,
    strategy_functions,
    supporter_line,
    topic_of,
)
from esckit.practice.world import (
    FUNCTIONS,
    HORIZON,
    NEEDS,
    START_INTENSITIES,
    Fit,
    Function,
    Need,
    Profile,
    Solution,
    State,
    fit_of,
    load_profile,
    start,
    step,
)
from esckit.protocols import Decision, SeekerTurn
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Generation, Outcome, Scenario, Turn, Usage

FREE_OF_CALLS = Usage()
"""Nothing in the practice world asks a model."""

PolicyName = Literal["random", "fixed", "novice", "rule", "optimum"]

_KEPT = 100_000
"""Moves that a game remembers, by the seed of their transcript; without effect on any result."""

POLICIES: tuple[PolicyName, ...] = ("random", "fixed", "rule", "optimum")
"""Strategists that a policy is compared with, from the weakest to the best; a novice leads conversations only."""

NOVICE_SKILL = 0.5
"""Probability that a turn of the novice follows the rule."""

_FIXED_ORDER: tuple[Function, ...] = ("reflect", "comfort", "explore", "reflect", "comfort", "explore", "act", "act")

_RULE: dict[Need, tuple[Function, ...]] = {
    "heard": ("comfort", "reflect"),
    "understood": ("explore", "reflect"),
    "act": ("act", "act", "comfort"),
}


class Move(NamedTuple):
    """One supporter turn as the world takes it.

    Attributes:
        before: The state that it met.
        meant: What its strategy is meant to do; None if none was named.
        done: What its words did.
        function: What counts: what was done, or ``other`` if something else was meant.
        fit: Of the function to the state.
        after: The state that it led to.
    """

    before: State
    meant: Function | None
    done: Function
    function: Function
    fit: Fit
    after: State


@dataclass(frozen=True, slots=True)
class Game:
    """The rules of one profile.

    Attributes:
        functions: What each strategy is meant to do; of others, what the shipped taxonomies say.
    """

    profile: Profile
    functions: Mapping[str, Function] = field(default_factory=dict)
    _known: dict[int, Move] = field(default_factory=dict, init=False, repr=False, compare=False)

    @classmethod
    def of(cls, profile: str, taxonomy: Taxonomy | None) -> Game:
        """Return the game of a shipped profile, with the strategies of a taxonomy.

        Raises:
            ConfigError: If there is no such profile.
        """
        return cls(load_profile(profile), strategy_functions(taxonomy) if taxonomy is not None else {})

    def opening(self, scenario: Scenario) -> State:
        """Return the state in which a scenario begins; its intensity of 3 to 5 is drawn by its id."""
        u = uniform(derive_seed("practice", "intensity", scenario.id))
        return start(START_INTENSITIES[int(u * len(START_INTENSITIES))])

    def moves(self, scenario: Scenario, turns: Sequence[Turn]) -> list[Move]:
        """Return what every supporter turn of a dialogue did; a pure function of scenario and turns."""
        state, moves = self.opening(scenario), []
        place = derive_seed("practice", self.profile.name, scenario.id)
        for index, turn in enumerate(turns):
            meant = self.meant(turn.strategy)
            place = derive_seed("practice", place, turn.speaker, turn.text, meant or "")
            if turn.speaker == "supporter":
                if place not in self._known:
                    if len(self._known) >= _KEPT:
                        self._known.clear()
                    self._known[place] = self._move(state, turn.text, turns[:index], meant, uniform(place))
                moves.append(self._known[place])
                state = moves[-1].after
        return moves

    def _move(self, state: State, text: str, turns: Sequence[Turn], meant: Function | None, u: float) -> Move:
        done = function_of(text, turns)
        function = done if meant in (None, done) else "other"
        after = step(self.profile, state, function, u)
        return Move(state, meant, done, function, fit_of(state, function), after)

    def state(self, scenario: Scenario, turns: Sequence[Turn]) -> State:
        """Return the state after the turns."""
        moves = self.moves(scenario, turns)
        return moves[-1].after if moves else self.opening(scenario)

    def meant(self, strategy: str | None) -> Function | None:
        """Return what a strategy is meant to do; None if none is named, or an unknown one."""
        return None if strategy is None else self.functions.get(strategy) or meant_function(strategy)

    def expected(self, strategy: str) -> Function:
        """Return what a strategy is meant to do.

        Raises:
            ConfigError: If nobody knows.
        """
        meant = self.meant(strategy)
        if meant is None:
            raise ConfigError(
                f"strategy {strategy!r} without a function in the practice world",
                expected="a strategy of the recipe's taxonomy or of a shipped one",
            )
        return meant


@dataclass(frozen=True, slots=True)
class WorldSeeker:
    """A :class:`~esckit.protocols.Seeker` of the practice world; leaving and being resolved end a conversation."""

    game: Game

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn; never fails."""
        return self.answer(scenario, turns, scope.seed("seeker"))

    def answer(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> SeekerTurn:
        """Answer the last turn; after a turn of its own, or none, the seeker opens."""
        moves = self.game.moves(scenario, turns)
        is_answer = bool(turns) and turns[-1].speaker == "supporter"
        state = moves[-1].after if moves else self.game.opening(scenario)
        is_shown = uniform(derive_seed("practice", seed, "pace")) < self.game.profile.pace
        fit = moves[-1].fit if is_answer else None
        text = seeker_line(state, fit=fit, is_shown=is_shown, topic=topic_of(scenario), place=("seeker", seed))
        if state.has_left:
            return SeekerTurn(text, Outcome.DISENGAGED)
        return SeekerTurn(text, Outcome.RESOLVED if state.intensity == 0 else None)


@dataclass(frozen=True, slots=True)
class GrammarSupporter:
    """A :class:`~esckit.protocols.Supporter` that words whatever strategy it is given, so that the words do it.

    Attributes:
        game: The rules.
        slips: Share of the turns, 0 to 1, whose words do nothing, as those of a small model often do.
    """

    game: Game
    slips: float = 0.0

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given, or one of which nobody knows what it does.
        """
        if strategy is None:
            raise ConfigError("a practice supporter without a strategy", expected="a strategist beside it")
        function, seed = self.game.expected(strategy), scope.seed("supporter")
        is_slip = uniform(derive_seed("practice", seed, "slip")) < self.slips
        line = (slip if is_slip else supporter_line)(function, turns, ("supporter", seed))
        return Generation(raw=line, reasoning=None, response=line, format_ok=True, parse_kind="untagged")


@dataclass(frozen=True, slots=True)
class BaselineStrategist:
    """A strategist that a trained one is compared with.

    ``random`` draws among all strategies; ``fixed`` follows one order of functions; ``rule`` reads the need from the
    seeker's words and alternates what is good for it; ``novice`` follows the rule in half of its turns
    (:data:`NOVICE_SKILL`) and else draws among all; ``optimum`` sees the hidden state and takes the best function.

    Attributes:
        game: The rules.
        policy: Which of them.
        strategies: Names in taxonomy order.
        solution: For ``optimum``: of the profile.
        horizon: Supporter turns of a dialogue.
    """

    game: Game
    policy: PolicyName
    strategies: tuple[str, ...]
    solution: Solution
    horizon: int = HORIZON

    def __post_init__(self) -> None:
        missing = set(FUNCTIONS) - {self.game.meant(name) for name in self.strategies}
        if missing and self.policy != "random":
            raise ConfigError(
                f"no strategy that is meant to {' or to '.join(sorted(missing))}",
                expected="a taxonomy that explores, reflects, comforts and acts",
            )

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the strategy for the next supporter turn, and the distribution that it was drawn from; never fails."""
        return self.choose(scenario, turns, scope.seed("strategist"))

    def choose(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> Decision:
        """Return a decision as :meth:`decide`, drawn by a seed."""
        wanted = self._functions(scenario, turns, seed)
        fits = [float(not wanted or self.game.meant(name) in wanted) for name in self.strategies]
        chosen = [name for name, fit in zip(self.strategies, fits, strict=True) if fit]
        drawn = chosen[int(uniform(seed) * len(chosen))]
        return Decision(drawn, tuple(fit / len(chosen) for fit in fits), FREE_OF_CALLS)

    def _functions(self, scenario: Scenario, turns: Sequence[Turn], seed: int) -> frozenset[Function]:
        """Return the functions to choose from; empty for all."""
        n_before = sum(turn.speaker == "supporter" for turn in turns)
        is_guess = self.policy == "novice" and uniform(derive_seed("practice", seed, "novice")) >= NOVICE_SKILL
        if self.policy == "random" or is_guess:
            return frozenset()
        if self.policy == "fixed":
            return frozenset({_FIXED_ORDER[n_before % len(_FIXED_ORDER)]})
        if self.policy in ("rule", "novice"):
            return frozenset({rule_function(turns)})
        state = self.game.state(scenario, turns)
        if state.is_over:
            return frozenset()
        return self.solution.best(state, max(1, self.horizon - n_before))


def play(
    game: Game, strategist: BaselineStrategist, scenario: Scenario, seeds: Iterable[int], *, spoken_in: str
) -> list[Turn]:
    """Return a dialogue of a baseline, worded by the grammar; the seeker opens with its situation.

    Args:
        game: The rules.
        strategist: Leads it.
        scenario: The seeker.
        seeds: One for each exchange; so many are played, or fewer if the seeker is resolved or leaves.
        spoken_in: Of the supporter's draws.
    """
    seeker = WorldSeeker(game)
    turns = [Turn(speaker="seeker", text=scenario.situation)]
    for seed in seeds:
        strategy = strategist.choose(scenario, turns, seed).strategy
        line = supporter_line(game.expected(strategy), turns, (spoken_in, seed))
        turns.append(Turn(speaker="supporter", text=line, strategy=strategy))
        answer = seeker.answer(scenario, turns, seed)
        turns.append(Turn(speaker="seeker", text=answer.text))
        if answer.outcome is not None:
            break
    return turns


def rule_function(turns: Sequence[Turn]) -> Function:
    """Return what the rule does next: the functions of the need that was shown last, one after the other."""
    need: Need = "heard"
    used: dict[Need, int] = {}
    for turn in turns:
        if turn.speaker == "seeker":
            need = shown_need(turn.text) or need
        else:
            used[need] = used.get(need, 0) + 1
    order = _RULE[need]
    return order[used.get(need, 0) % len(order)]


def wellbeing(opening: State, state: State) -> float:
    """Return how the seeker is doing against the opening, in [-1, 1].

    1 is resolved, -1 gone. In between it is .4 of the share by which the intensity fell, and .05 for each need that was
    met; so only a resolved conversation reaches one half, which both papers' critics take for success.

    Args:
        opening: The state in which the conversation began.
        state: The state now.
    """
    if state.has_left:
        return -1.0
    if state.intensity == 0:
        return 1.0
    drop = (opening.intensity - state.intensity) / opening.intensity
    return 0.4 * drop + 0.05 * NEEDS.index(state.need)


def turn_ratings(move: Move) -> dict[str, int]:
    """Return the four ratings of a supporter turn, 1 to 5 (AFlow's criteria), from its fit, its words and variety."""
    is_empty = move.function == "other"
    is_repeated = move.function == move.before.last
    by_fit = {"good": 5, "neutral": 3, "premature": 1}[move.fit]
    return {
        "empathy": 1 if is_empty else {"good": 5, "neutral": 4, "premature": 2}[move.fit],
        "information": 1 if is_empty else by_fit,
        "naturalness": 1 if is_empty else 3 if is_repeated else 5,
        "strategy": 2 if is_empty else by_fit,
    }
