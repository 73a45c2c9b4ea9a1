"""How self-played dialogues end for one critic, and the metrics per critic: success rate, average turn, critic values.

Outcomes are exact, and the same whether or not other critics listened. Success is the first turn whose mean value is
above ½ (strict) or at least ½ (lenient). The lenient success never comes later, so one run played to the strict rule
gives both.

With τ the turn of first success (∞ if none), T = ``max_turns`` and n scored dialogues: SR = #{τ ≤ T}/n and
AT = Σ min(τ, T)/n, where failures count as T; AT = T − Σ_{t<T} c(t) for c(t) = #{τ ≤ t}/n.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field

from esckit.errors import BACKEND_KINDS
from esckit.evaluate.suite import Case
from esckit.metrics.metric import (
    FIRST,
    RATIO,
    Facts,
    Metric,
    Stats,
    Sums,
    Unscored,
    collect,
    counted,
    if_scored,
    not_estimated,
)
from esckit.types import EpisodeTurn, Failure, Scenario, Usage

if TYPE_CHECKING:
    from esckit.metrics.rows import Measurement, MetricRow

Rule = Literal["strict", "lenient"]

RULES: tuple[Rule, ...] = ("strict", "lenient")

THRESHOLD = Fraction(1, 2)

_RATE: dict[str, Any] = {"interval": "wilson", "test": "mcnemar", "counts": ("success", "cases")}

MOSTLY_UNPARSED = "mostly_unparsed"


class Episode(Case):
    """One self-played dialogue; ``unscored`` stays None, since every critic has its own outcome.

    Attributes:
        id: The scenario's id, also the dialogue's.
        max_turns: T of the protocol.
        critics: Presets that were asked.
        failure: What ended play before its time; None if it went to its end.
        critic_failures: What ended one critic's reading; play went on for the others.
    """

    SCHEMA: ClassVar[str] = "esckit.episode/1"

    scenario: Scenario
    run_seed: int
    max_turns: int = Field(ge=1)
    critics: tuple[str, ...]
    turns: tuple[EpisodeTurn, ...]
    failure: Failure | None = None
    critic_failures: dict[str, Failure] = Field(default_factory=dict)
    usage: dict[str, Usage] = Field(default_factory=dict)

    def failures(self) -> Iterator[tuple[str, str]]:
        """Yield which role failed, and how.

        A dialogue in which half of a critic's answers or more were unreadable somewhere has a value of little worth.
        """
        for failure in (self.failure, *self.critic_failures.values()):
            if failure is not None:
                yield failure.stage, failure.kind
        if any(reading.is_mostly_unparsed for turn in self.turns for reading in turn.readings.values()):
            yield "critic", MOSTLY_UNPARSED
        yield from super().failures()

    def _unread(self) -> Iterator[str | None]:
        return (turn.ratings_unscored for turn in self.turns)


EpisodeMetric = Metric[Episode]


@dataclass(frozen=True, slots=True)
class CriticOutcome:
    """One critic's view of one dialogue.

    Attributes:
        values: Critic value after turn 1, 2, … up to the strict success or the last turn, exact, in [-1, 1].
        strict: Turn of the first mean > ½, None if none.
        lenient: Turn of the first mean ≥ ½, None if none.
    """

    values: tuple[Fraction, ...]
    strict: int | None
    lenient: int | None

    def turn(self, rule: Rule) -> int | None:
        """Return the turn of success under a rule."""
        return self.strict if rule == "strict" else self.lenient


def outcome_of(values: tuple[Fraction, ...]) -> CriticOutcome:
    """Return the outcome of a sequence of critic values; what comes after a strict success is ignored."""
    strict = next((t for t, value in enumerate(values, start=1) if value > THRESHOLD), None)
    lenient = next((t for t, value in enumerate(values, start=1) if value >= THRESHOLD), None)
    return CriticOutcome(values[:strict], strict, lenient)


def read_outcome(episode: Episode, critic: str) -> CriticOutcome | Unscored:
    """Return a critic's outcome of an episode.

    A dialogue that failed at turn t is unscored, strict and lenient alike, unless the critic saw a strict success
    before t.
    """
    values: list[Fraction] = []
    for expected, turn in enumerate(episode.turns, start=1):
        reading = turn.readings.get(critic)
        if reading is None or turn.t != expected:
            break
        values.append(reading.fraction)
    outcome = outcome_of(tuple(values[: episode.max_turns]))
    if outcome.strict is not None or len(outcome.values) == episode.max_turns:
        return outcome
    if episode.unscored is not None:
        return Unscored(episode.unscored)
    failure = episode.critic_failures.get(critic) or episode.failure
    return Unscored(failure_reason(failure) if failure else "incomplete")


def failure_reason(failure: Failure) -> str:
    """Return the word under which a failure is counted: a critic that gave no readable answer is not a backend."""
    if failure.stage == "critic" and failure.kind not in BACKEND_KINDS:
        return "unscored_critic"
    return failure.kind


def fold_type(name: str | None) -> str:
    """Return the key by which emotion and problem types are grouped: case does not count, known twins are joined."""
    key = " ".join((name or "unknown").casefold().split())
    return "conflict with parents" if key == "issues with parents" else key


# ---------------------------------------------------------------- metrics


@dataclass(frozen=True, slots=True)
class CriticScale:
    """The metrics of one critic preset.

    Attributes:
        critic: Preset name, part of every metric's name.
        max_turns: T of the protocol.
        compat: True if readings with nothing readable in them count as 0, as PPDPP's do.
    """

    critic: str
    max_turns: int = 8
    compat: bool = False

    def outcome(self, episode: Episode) -> CriticOutcome | Unscored:
        """Return this critic's outcome of an episode."""
        return read_outcome(episode, self.critic)

    def metric(
        self, name: str, read: Callable[[CriticOutcome], Stats | None], sums: Sums = RATIO, **facts: Any
    ) -> EpisodeMetric:
        """Return a metric that reads one critic's outcome; None from ``read`` leaves the dialogue out."""
        return Metric(self._facts(name, **facts), if_scored(self.outcome, read), sums)

    def _facts(self, name: str, **facts: Any) -> Facts:
        return Facts(f"dialogue.{self.critic}.{name}", **{"minimum": "1 scored dialogue", **facts})

    def success_rate(self, rule: Rule, name: str | None = None) -> EpisodeMetric:
        """Return SR, #{τ ≤ T}/n."""
        return self.metric(
            name or f"sr_{rule}",
            lambda outcome: counted(outcome.turn(rule) is not None),
            **_RATE,
            variant_of=f"dialogue.{self.critic}.sr_strict" if rule == "lenient" else None,
        )

    def success_by(self, rule: Rule, t: int) -> EpisodeMetric:
        """Return c(t) = #{τ ≤ t}/n."""
        return self.metric(
            "sr_by_turn" if rule == "strict" else "sr_by_turn_lenient",
            lambda outcome: counted((outcome.turn(rule) or t + 1) <= t),
            **_RATE,
        )

    def average_turn(self, rule: Rule, name: str | None = None) -> EpisodeMetric:
        """Return AT, Σ min(τ, T)/n: failures count as T."""
        return self.metric(
            name or f"at_{rule}",
            lambda outcome: counted(outcome.turn(rule) or self.max_turns),
            test="sign_flip",
            counts=("turns", "cases"),
            variant_of=f"dialogue.{self.critic}.at_strict" if rule == "lenient" else None,
            **self._in_turns(),
        )

    def _in_turns(self) -> dict[str, Any]:
        return {"unit": "turns", "range": (1.0, float(self.max_turns)), "higher_is_better": False}

    def turn_of_success(self) -> EpisodeMetric:
        """Return the mean τ of strict successes; it favours systems that fail hard cases, so it is never tested.

        It rests on the successes alone, and so does its n.
        """
        return self.metric(
            "at_success",
            lambda outcome: None if outcome.strict is None else counted(outcome.strict),
            minimum="1 success",
            test="none",
            counts=("turns", "success"),
            **self._in_turns(),
        )

    def value(self, name: str, read: Callable[[CriticOutcome], Fraction | None]) -> EpisodeMetric:
        """Return the mean of a critic value over the dialogues that have it."""
        facts = self._facts(name, unit="none", range=(-1.0, 1.0), test="sign_flip", minimum="1 reading")
        return Metric(facts, if_scored(if_scored(self.outcome, read), lambda value: counted(float(value))), RATIO)

    def bound(self, *, high: bool) -> EpisodeMetric:
        """Return SR if all unscored dialogues had failed (low) or succeeded (high)."""

        def collect_case(episode: Episode) -> Stats | Unscored:
            outcome = self.outcome(episode)
            if isinstance(outcome, Unscored):
                return Unscored(outcome.reason, counted(high))
            return counted(outcome.strict is not None)

        why = "a bound over unscored dialogues, no estimate"
        counts = ("at_most" if high else "at_least", "cases")
        facts = self._facts("sr_bounds", **not_estimated(why, range=(0.0, 1.0), counts=counts))
        return Metric(facts, collect_case, RATIO)

    def weighted(self, name: str, n_scored: int) -> EpisodeMetric:
        """Return the successes among a type's dialogues over all ``n_scored`` dialogues."""
        return self.metric(
            name,
            lambda outcome: counted(outcome.strict is not None),
            Sums(lambda sums: sums[:, 0] / n_scored),
            **not_estimated("a part of sr_strict", range=(0.0, 1.0), counts=("success", "cases")),
        )

    def compat_zeros(self) -> EpisodeMetric:
        """Return how many readings of scored dialogues had nothing readable in them and count as 0."""

        def collect_case(episode: Episode) -> Stats | Unscored:
            outcome = self.outcome(episode)
            if isinstance(outcome, Unscored):
                return outcome
            read = [turn.readings[self.critic] for turn in episode.turns[: len(outcome.values)]]
            return (float(sum(reading.compat_zero for reading in read)), float(len(read)))

        counts = ("zeros", "readings")
        none = not_estimated("a count", higher_is_better=False, counts=counts)
        return Metric(self._facts("compat_zeros", unit="readings", **none), collect_case, FIRST)


def headline_metrics(scale: CriticScale) -> tuple[EpisodeMetric, ...]:
    """Return a critic's metrics over all dialogues, the ones that runs are compared on."""
    return (
        *(scale.success_rate(rule) for rule in RULES),
        *(scale.average_turn(rule) for rule in RULES),
        scale.turn_of_success(),
        scale.value("critic_first", lambda outcome: outcome.values[0]),
        scale.value("critic_last", lambda outcome: outcome.values[-1]),
        # What parts the strict from the lenient rule.
        scale.metric(
            "at_threshold_share",
            lambda outcome: counted(outcome.values[-1] == THRESHOLD),
            higher_is_better=None,
            interval="wilson",
            test="none",
            counts=("at_threshold", "cases"),
        ),
    )


def critic_rows(episodes: Sequence[Episode], scale: CriticScale, measurement: Measurement) -> list[MetricRow]:
    """Return all rows of one critic: the whole, curves by turn, breakdowns by type."""
    rows = [measurement.row(metric, episodes) for metric in headline_metrics(scale)]
    if scale.compat:
        rows.append(measurement.row(scale.compat_zeros(), episodes))
    rows += [
        measurement.row(scale.bound(high=high), episodes, group={"bound": "high" if high else "low"})
        for high in (False, True)
    ]
    for t in range(1, scale.max_turns + 1):
        by_turn = (
            *(scale.success_by(rule, t) for rule in RULES),
            # Over the dialogues that are still running, then with the last value of ended ones carried forward.
            scale.value("critic_by_turn", lambda it, t=t: it.values[t - 1] if t <= len(it.values) else None),  # type: ignore[misc]
            scale.value("critic_by_turn_carried", lambda it, t=t: it.values[:t][-1]),  # type: ignore[misc]
        )
        rows += [measurement.row(metric, episodes, group={"turn": t}) for metric in by_turn]
    return rows + _type_rows(episodes, scale, measurement)


def _type_rows(episodes: Sequence[Episode], scale: CriticScale, measurement: Measurement) -> list[MetricRow]:
    """Return SR, AT and weighted SR (successes of the type over all dialogues) per emotion and problem type."""
    n_scored = collect(scale.success_rate("strict"), episodes).n
    rows = []
    for kind in ("emotion", "problem"):
        by_type: dict[str, list[Episode]] = {}
        for episode in episodes:
            scenario = episode.scenario
            name = fold_type(scenario.emotion_type if kind == "emotion" else scenario.problem_type)
            by_type.setdefault(name, []).append(episode)
        metrics = [scale.success_rate("strict", f"sr_by_{kind}"), scale.average_turn("strict", f"at_by_{kind}")]
        if n_scored:
            metrics.append(scale.weighted(f"weighted_sr_by_{kind}", n_scored))
        for name, chosen in sorted(by_type.items()):
            rows += [measurement.row(metric, chosen, group={kind: name}) for metric in metrics]
    return rows
