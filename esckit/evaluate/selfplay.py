"""How a self-played dialogue ended for one critic; exact, and the same whether or not other critics listened.

Success is the first turn whose mean value is above ½ (strict) or at least ½ (lenient). Since the lenient success never
comes later, one run played to the strict rule tells both.

Metrics of self-played dialogues per critic: success rate, average turn, critic values.

With τ the turn of first success (∞ if none), T = ``max_turns`` and n scored dialogues: SR = #{τ ≤ T}/n and
AT = Σ min(τ, T)/n, where failures count as T; AT = T − Σ_{t<T} c(t) for c(t) = #{τ ≤ t}/n.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from typing import Literal

from esckit.errors import BACKEND_KINDS
from esckit.evaluate.cases import Episode
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import RATIO, Facts, IntervalMethod, Metric, Stats, Sums, Test, Unscored, collect
from esckit.metrics.rows import MetricRow
from esckit.types import Failure

Rule = Literal["strict", "lenient"]

RULES: tuple[Rule, ...] = ("strict", "lenient")

THRESHOLD = Fraction(1, 2)


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

    def value_at(self, t: int) -> Fraction:
        """Return the value after turn ``t``, the last one carried forward."""
        return self.values[min(t, len(self.values)) - 1]


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


EpisodeMetric = Metric[Episode]


_SAME_PROBLEM = {"issues with parents": "conflict with parents"}


def fold_type(name: str | None) -> str:
    """Return the key by which emotion and problem types are grouped: case does not count, known twins are joined."""
    key = " ".join((name or "unknown").casefold().split())
    return _SAME_PROBLEM.get(key, key)


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

    def _name(self, name: str) -> str:
        return f"dialogue.{self.critic}.{name}"

    def _of_outcome(
        self, facts: Facts, read: Callable[[CriticOutcome], Stats | None], sums: Sums = RATIO
    ) -> EpisodeMetric:
        """Return a metric that reads one critic's outcome; None from ``read`` leaves the dialogue out."""

        def collect_case(episode: Episode) -> Stats | Unscored | None:
            outcome = read_outcome(episode, self.critic)
            return outcome if isinstance(outcome, Unscored) else read(outcome)

        return Metric(facts, collect_case, sums)

    def _turns(self, outcome: CriticOutcome, rule: Rule) -> float:
        return float(outcome.turn(rule) or self.max_turns)

    def success_rate(self, rule: Rule, name: str | None = None) -> EpisodeMetric:
        """Return SR, #{τ ≤ T}/n."""
        facts = Facts(
            self._name(name or f"sr_{rule}"),
            interval="wilson",
            test="mcnemar",
            minimum="1 scored dialogue",
            needs=frozenset({"episode"}),
            counts=("success", "cases"),
            variant_of=self._name("sr_strict") if rule == "lenient" else None,
        )
        return self._of_outcome(facts, lambda outcome: (float(outcome.turn(rule) is not None), 1.0))

    def success_by(self, rule: Rule, t: int) -> EpisodeMetric:
        """Return c(t) = #{τ ≤ t}/n."""
        name = "sr_by_turn" if rule == "strict" else "sr_by_turn_lenient"
        facts = Facts(
            self._name(name),
            interval="wilson",
            test="mcnemar",
            minimum="1 scored dialogue",
            needs=frozenset({"episode"}),
            counts=("success", "cases"),
        )
        return self._of_outcome(facts, lambda outcome: (float((outcome.turn(rule) or t + 1) <= t), 1.0))

    def average_turn(self, rule: Rule, name: str | None = None) -> EpisodeMetric:
        """Return AT, Σ min(τ, T)/n: failures count as T."""
        facts = self._turn_facts(name or f"at_{rule}", test="sign_flip")
        if rule == "lenient":
            facts = replace(facts, variant_of=self._name("at_strict"))
        return self._of_outcome(facts, lambda outcome: (self._turns(outcome, rule), 1.0))

    def turn_of_success(self) -> EpisodeMetric:
        """Return the mean τ of strict successes; it favours systems that fail hard cases, so it is never tested.

        It rests on the successes alone, and so does its n.
        """

        def read(outcome: CriticOutcome) -> Stats | None:
            return None if outcome.strict is None else (float(outcome.strict), 1.0)

        facts = replace(self._turn_facts("at_success", test="none", minimum="1 success"), counts=("turns", "success"))
        return self._of_outcome(facts, read)

    def _turn_facts(self, name: str, *, test: Test, minimum: str = "1 scored dialogue") -> Facts:
        return Facts(
            self._name(name),
            unit="turns",
            range=(1.0, float(self.max_turns)),
            higher_is_better=False,
            minimum=minimum,
            test=test,
            needs=frozenset({"episode"}),
            counts=("turns", "cases"),
        )

    def value(self, name: str, read: Callable[[CriticOutcome], float | None]) -> EpisodeMetric:
        """Return the mean of a critic value over the dialogues that have it."""
        facts = Facts(
            self._name(name),
            unit="none",
            range=(-1.0, 1.0),
            test="sign_flip",
            minimum="1 reading",
            needs=frozenset({"episode"}),
        )

        def entry(outcome: CriticOutcome) -> Stats | None:
            found = read(outcome)
            return None if found is None else (found, 1.0)

        return self._of_outcome(facts, entry)

    def value_at(self, t: int) -> EpisodeMetric:
        """Return the mean value at turn ``t`` over dialogues still running for this critic."""
        return self.value("critic_by_turn", lambda it: float(it.values[t - 1]) if t <= len(it.values) else None)

    def value_carried(self, t: int) -> EpisodeMetric:
        """Return the mean value at turn ``t`` with the last value of ended dialogues carried forward."""
        return self.value("critic_by_turn_carried", lambda it: float(it.value_at(t)))

    def at_threshold(self) -> EpisodeMetric:
        """Return the share of dialogues whose last value is exactly ½: what parts the strict from the lenient rule."""
        facts = self._share_facts("at_threshold_share", "wilson", counted="at_threshold")
        return self._of_outcome(facts, lambda outcome: (float(outcome.values[-1] == THRESHOLD), 1.0))

    def _share_facts(
        self, name: str, interval: IntervalMethod, no_interval: str | None = None, *, counted: str = "success"
    ) -> Facts:
        return Facts(
            self._name(name),
            higher_is_better=None,
            minimum="1 scored dialogue",
            interval=interval,
            no_interval=no_interval,
            test="none",
            needs=frozenset({"episode"}),
            counts=(counted, "cases"),
        )

    def bound(self, *, high: bool) -> EpisodeMetric:
        """Return SR if all unscored dialogues had failed (low) or succeeded (high)."""

        def collect_case(episode: Episode) -> Stats | Unscored:
            outcome = read_outcome(episode, self.critic)
            if isinstance(outcome, Unscored):
                return Unscored(outcome.reason, (float(high), 1.0))
            return (float(outcome.strict is not None), 1.0)

        why = "a bound over unscored dialogues, no estimate"
        facts = self._share_facts("sr_bounds", "none", why, counted="at_most" if high else "at_least")
        return Metric(facts, collect_case, RATIO)

    def compat_zeros(self) -> EpisodeMetric:
        """Return how many readings of scored dialogues had nothing readable in them and count as 0."""
        facts = Facts(
            self._name("compat_zeros"),
            unit="readings",
            range=(0.0, None),
            higher_is_better=False,
            minimum="1 scored dialogue",
            interval="none",
            no_interval="a count",
            test="none",
            needs=frozenset({"episode"}),
            counts=("zeros", "readings"),
        )

        def collect_case(episode: Episode) -> Stats | Unscored:
            outcome = read_outcome(episode, self.critic)
            if isinstance(outcome, Unscored):
                return outcome
            read = [turn.readings[self.critic] for turn in episode.turns[: len(outcome.values)]]
            return (float(sum(reading.compat_zero for reading in read)), float(len(read)))

        return Metric(facts, collect_case, Sums(lambda sums: sums[:, 0]))

    def weighted(self, name: str, n_scored: int) -> EpisodeMetric:
        """Return the successes among a type's dialogues over all ``n_scored`` dialogues."""
        facts = self._share_facts(name, "none", "a part of sr_strict")

        def read(outcome: CriticOutcome) -> Stats:
            return (float(outcome.strict is not None), 1.0)

        return self._of_outcome(facts, read, Sums(lambda sums: sums[:, 0] / n_scored))


def headline_metrics(scale: CriticScale) -> tuple[EpisodeMetric, ...]:
    """Return a critic's metrics over all dialogues, the ones that runs are compared on."""
    rates = [scale.success_rate(rule) for rule in RULES]
    turns = [scale.average_turn(rule) for rule in RULES]
    first = scale.value("critic_first", lambda outcome: float(outcome.values[0]))
    last = scale.value("critic_last", lambda outcome: float(outcome.values[-1]))
    return (*rates, *turns, scale.turn_of_success(), first, last, scale.at_threshold())


def critic_rows(episodes: Sequence[Episode], scale: CriticScale, measurement: Measurement) -> list[MetricRow]:
    """Return all rows of one critic: the whole, curves by turn, breakdowns by type."""
    rows = [measurement.row(metric, episodes) for metric in headline_metrics(scale)]
    if scale.compat:
        rows.append(measurement.row(scale.compat_zeros(), episodes))
    for high in (False, True):
        group: dict[str, str | int] = {"bound": "high" if high else "low"}
        rows.append(measurement.row(scale.bound(high=high), episodes, group=group))
    for t in range(1, scale.max_turns + 1):
        by_turn = (*(scale.success_by(rule, t) for rule in RULES), scale.value_at(t), scale.value_carried(t))
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
        for name, chosen in sorted(by_type.items()):
            metrics = [scale.success_rate("strict", f"sr_by_{kind}"), scale.average_turn("strict", f"at_by_{kind}")]
            if n_scored:
                metrics.append(scale.weighted(f"weighted_sr_by_{kind}", n_scored))
            rows += [measurement.row(metric, chosen, group={kind: name}) for metric in metrics]
    return rows
