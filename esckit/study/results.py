"""``esckit study read``: from raters' answers to win rates or means, agreement, and the judge beside the people.

All intervals are bootstraps that draw dialogues, with all their questions and raters; tests flip signs of differences
between two systems, dialogue by dialogue, and are Holm-adjusted over the whole study. Agreement is Krippendorff's α
beside Fleiss' κ and the share of pairs of raters who said the same; there, questions are drawn.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property, partial
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple

from esckit.errors import ConfigError, DataError
from esckit.evaluate.paired import recipe_of
from esckit.evaluate.reliability import LabelScale, RatedCase, reliability_rows
from esckit.evaluate.suites.critics import Episode, read_outcome
from esckit.evaluate.suites.pairwise import PairCase, PairwiseSettings, decide
from esckit.metrics.calibration import fleiss_kappa, rank_correlation
from esckit.metrics.metric import RATIO, Facts, Metric, Statistics, Stats, Sums, Unscored
from esckit.metrics.rows import Comparer, Comparison, Measurement, MetricRow, holm_adjusted
from esckit.report.source import Run, open_run
from esckit.runs import MANIFEST
from esckit.study.cases import cases_on_disk
from esckit.study.key import Asked, Question, StudyKey
from esckit.study.sheets import Answers

SETTINGS = Statistics()

_OUTCOMES = ("lose", "tie", "win")


@dataclass(frozen=True, slots=True)
class Rated:
    """One case of a system, with a number from each rater who judged it."""

    id: str
    dialogue_id: str
    values: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Preference:
    """How often one of two systems was preferred on a dimension.

    Attributes:
        rows: Shares of answers by ``first``, ``tie`` and ``second``.
        net: Share of the first minus share of the second, with its interval and test.
    """

    first: str
    second: str
    dimension: str
    rows: Mapping[str, MetricRow]
    net: Comparison


@dataclass(frozen=True, slots=True)
class MeanRating:
    """How a system was rated on a dimension."""

    system: str
    dimension: str
    row: MetricRow


@dataclass(frozen=True, slots=True)
class StudyResults:
    """Everything that a study found.

    Attributes:
        left_out: Raters whose answers do not count, for failed attention checks.
        preferences: Of a study of kind ``ab``.
        means: Of a study of kind ``rating``.
        differences: Between every two systems, of a study of kind ``rating``; by first system and comparison.
        agreement: Rows by dimension.
        judge: How an automatic judge or critic stands to the people; empty where no run has one.
    """

    key: StudyKey
    answers: Answers
    left_out: tuple[str, ...]
    preferences: tuple[Preference, ...] = ()
    means: tuple[MeanRating, ...] = ()
    differences: tuple[tuple[str, str, Comparison], ...] = ()
    agreement: Mapping[str, tuple[MetricRow, ...]] = field(default_factory=dict)
    judge: tuple[MetricRow, ...] = ()

    @property
    def counted(self) -> tuple[str, ...]:
        """Raters who gave an answer and are not left out."""
        return tuple(rater for rater in self.key.raters if self.answers.has_any(rater) and rater not in self.left_out)

    @property
    def n_tests(self) -> int:
        """Number of tests that Holm's adjustment is over."""
        found = [each.net for each in self.preferences] + [each for *_, each in self.differences]
        return sum(each.p is not None for each in found)


def study_results(key: StudyKey, answers: Answers, *, max_failed: int | None = None) -> StudyResults:
    """Return what a study found.

    Args:
        key: The study.
        answers: Of its raters.
        max_failed: Leave out raters who failed more attention checks than this; None keeps all.

    Raises:
        ConfigError: If no rater is left.
    """
    left_out = tuple(
        rater for rater, failed in answers.failed_checks.items() if max_failed is not None and len(failed) > max_failed
    )
    if len(left_out) == len(key.raters):
        raise ConfigError(f"--max-failed {max_failed} leaves no rater", expected="a greater number")
    found = _Study(key, answers, left_out)
    agreement = {name: tuple(found.agreement(name)) for name in key.dimensions}
    if key.kind == "ab":
        preferences = list(found.preferences())
        nets = holm_adjusted([each.net for each in preferences])
        adjusted = tuple(
            Preference(each.first, each.second, each.dimension, each.rows, net)
            for each, net in zip(preferences, nets, strict=True)
        )
        return StudyResults(key, answers, left_out, preferences=adjusted, agreement=agreement)
    differences = list(found.differences())
    tests = holm_adjusted([each for *_, each in differences])
    return StudyResults(
        key,
        answers,
        left_out,
        means=tuple(found.means()),
        differences=tuple(
            (first, dimension, test) for (first, dimension, _), test in zip(differences, tests, strict=True)
        ),
        agreement=agreement,
        judge=tuple(found.numbers_beside()),
    )


# ---------------------------------------------------------------- from answers to cases


class _Judged(NamedTuple):
    """What the suite pairwise of one evaluation says: the judged system and its opponent, how, and the cases by id."""

    pair: tuple[str, str]
    settings: PairwiseSettings
    cases: Mapping[str, PairCase]


@dataclass(frozen=True)
class _Study:
    """The answers of the raters that count, by what they mean."""

    key: StudyKey
    answers: Answers
    left_out: tuple[str, ...]

    def meant(self, name: str) -> Iterator[tuple[str, Question, str, str]]:
        """Yield rater, question, its id and answer of a dimension; of two systems, the answer is of the first."""
        for rater, asked in self.key.raters.items():
            for each in asked if rater not in self.left_out else ():
                question, value = self.key.questions[each.question], self.answers.given.get((rater, each.question), {})
                if not question.is_check and name in value:
                    yield rater, question, each.question, self._outcome(each, value[name])

    def _outcome(self, asked: Asked, value: str) -> str:
        if self.key.kind == "rating" or value == "tie":
            return value
        return "win" if (value == "1") != asked.is_swapped else "lose"

    def rated(self, name: str, systems: tuple[str, ...], number: Mapping[str, float]) -> list[Rated]:
        """Return the cases of one system, or of two, with a number for every answer."""
        found: dict[str, tuple[str, list[float]]] = {}
        for _, question, _, value in self.meant(name):
            if question.systems == systems:
                found.setdefault(question.case_id, (question.dialogue_id, []))[1].append(number[value])
        return [Rated(case, dialogue, tuple(values)) for case, (dialogue, values) in found.items()]

    def preferences(self) -> Iterator[Preference]:
        """Yield how often every two systems were preferred, on every dimension."""
        for pair in combinations(self.key.systems, 2):
            for name in self.key.dimensions:
                shares = {
                    label: self.rated(name, pair, {each: float(each == outcome) for each in _OUTCOMES})
                    for label, outcome in (("first", "win"), ("tie", "tie"), ("second", "lose"))
                }
                rows = {label: self._row(f"{name}.{label}", cases) for label, cases in shares.items()}
                net = self._compare(f"{name}.net", shares["first"], shares["second"], other=pair[1])
                yield Preference(pair[0], pair[1], name, rows, net)

    def means(self) -> Iterator[MeanRating]:
        """Yield the mean rating of every system on every dimension."""
        for system in self.key.systems:
            for name in self.key.dimensions:
                cases = self.rated(name, (system,), _NUMBERS)
                yield MeanRating(system, name, self._row(name, cases, unit="rating", range=(1.0, 5.0)))

    def differences(self) -> Iterator[tuple[str, str, Comparison]]:
        """Yield first system, dimension, and the comparison with a second one."""
        for first, second in combinations(self.key.systems, 2):
            for name in self.key.dimensions:
                ours, theirs = (self.rated(name, (system,), _NUMBERS) for system in (first, second))
                yield first, name, self._compare(name, ours, theirs, other=second)

    def _row(self, name: str, cases: Sequence[Rated], **facts: Any) -> MetricRow:
        ids = (case.dialogue_id for case in cases)
        return Measurement.over("study", ids, self.key.seed, SETTINGS).row(_mean(name, **facts), cases)

    def _compare(self, name: str, ours: Sequence[Rated], theirs: Sequence[Rated], *, other: str) -> Comparison:
        ids = (case.dialogue_id for case in ours)
        comparer = Comparer.over("study", ids, self.key.seed, SETTINGS, other=other)
        return comparer.compare(_mean(name), ours, theirs)

    # ------------------------------------------------------------ agreement

    def agreement(self, name: str) -> Iterator[MetricRow]:
        """Yield how far raters agree on a dimension with each other and, of two replies, with the judge."""
        values = _OUTCOMES if self.key.kind == "ab" else tuple(_NUMBERS)
        scale = LabelScale(values, "nominal" if self.key.kind == "ab" else "ordinal")
        labels: dict[str, dict[str, int]] = {}
        for rater, _, question, value in self.meant(name):
            labels.setdefault(question, {})[rater] = scale.position(value)
        judged = self._verdicts(name) if self.key.kind == "ab" else {}
        verdicts = {
            question: verdict if isinstance(verdict, Unscored) else scale.position(verdict)
            for question, verdict in judged.items()
        }
        units = [RatedCase(question, given, verdicts.get(question)) for question, given in labels.items()]
        measurement = Measurement.over("reliability", labels, self.key.seed, SETTINGS)
        rows = reliability_rows(units, name, scale, measurement)
        metrics = [
            _of_units(f"reliability.{name}.pairs_equal", _pairs_equal, RATIO, minimum="a question of 2 raters"),
            _of_units(
                f"reliability.{name}.fleiss_kappa",
                partial(_counts, n_values=len(values)),
                fleiss_kappa,
                unit="none",
                range=(-1.0, 1.0),
                minimum="questions of 2 raters, and labels that differ",
            ),
        ]
        if any(unit.judge is not None for unit in units):
            metrics.append(_of_units(f"reliability.{name}.judge_equals_rater", _judge_equal, RATIO))
        for row in (*rows, *(measurement.row(metric, units) for metric in metrics)):
            # What is drawn here are questions.
            reason = row.reason and row.reason.replace("dialogues", "questions")
            yield row.model_copy(update={"reason": reason})

    def _verdicts(self, name: str) -> dict[str, str | Unscored]:
        """Return what the pairwise judge of one of the two runs said of each question, where it was asked."""
        found: dict[str, str | Unscored] = {}
        for question_id, question in self.key.questions.items():
            for judged in self._judged:
                case = judged.cases.get(question.case_id) if set(judged.pair) == set(question.systems) else None
                if case is not None and name in judged.settings.dimensions:
                    verdict = decide(case, name, swapped=judged.settings.swap)
                    is_first = judged.pair[0] == question.systems[0]
                    found[question_id] = verdict if isinstance(verdict, Unscored) else _seen(verdict.winner, is_first)
        return found

    @cached_property
    def _runs(self) -> dict[str, Run]:
        """The evaluations that are still there and that this version can read, by system."""
        found = {}
        for system, path in self.key.systems.items():
            if (Path(path) / MANIFEST).is_file():
                run = open_run(Path(path))
                with suppress(DataError):
                    recipe_of(run)
                    found[system] = run
        return found

    @cached_property
    def _judged(self) -> tuple[_Judged, ...]:
        """The comparisons of two systems of the study that an automatic judge made."""
        found = []
        for system, run in self._runs.items():
            settings = recipe_of(run).settings.pairwise
            opponent = None if settings.opponent is None else Path(settings.opponent).resolve()
            for other, theirs in self._runs.items():
                if other != system and opponent == theirs.path.resolve():
                    found.append(_Judged((system, other), settings, cases_on_disk(run, "pairwise")))
        return tuple(found)

    def numbers_beside(self) -> Iterator[MetricRow]:
        """Yield the rank correlation of people's mean rating with each automatic number of the same dialogues."""
        name = "overall" if "overall" in self.key.dimensions else self.key.dimensions[0]
        pairs: dict[str, list[_Beside]] = {}
        for system in self.key.systems:
            run = self._runs.get(system) if self.key.suite == "dialogue" else None
            episodes: Mapping[str, Episode] = cases_on_disk(run, "dialogue") if run is not None else {}
            for case in self.rated(name, (system,), _NUMBERS):
                for number, value in _numbers_of(episodes[case.id]) if case.id in episodes else ():
                    entry = _Beside(f"{system}/{case.id}", case.dialogue_id, statistics.fmean(case.values), value)
                    pairs.setdefault(number, []).append(entry)
        for number, entries in pairs.items():
            facts = Facts(
                f"judge.{number}.spearman_{name}",
                unit="none",
                range=(-1.0, 1.0),
                minimum="dialogues of different ratings and values",
                test="none",
            )
            metric: Metric[_Beside] = Metric(facts, lambda entry: (entry.people, entry.number), rank_correlation(2))
            ids = (entry.dialogue_id for entry in entries)
            yield Measurement.over("study", ids, self.key.seed, SETTINGS).row(metric, entries)


_NUMBERS = {str(value): float(value) for value in range(1, 6)}


@dataclass(frozen=True, slots=True)
class _Beside:
    """What people and a number say of one dialogue of one system."""

    id: str
    dialogue_id: str
    people: float
    number: float


def _numbers_of(episode: Episode) -> Iterator[tuple[str, float]]:
    """Yield the last value of every critic of a dialogue, and the mean turn reward if every turn has one."""
    for critic in episode.critics:
        outcome = read_outcome(episode, critic)
        if not isinstance(outcome, Unscored) and outcome.values:
            yield critic, float(outcome.values[-1])
    rewards = [turn.ratings.reward for turn in episode.turns if turn.ratings is not None]
    if rewards and len(rewards) == len(episode.turns):
        yield "turn_reward", statistics.fmean(rewards)


def _seen(winner: str, is_first: bool) -> str:
    """Return a judge's verdict as an outcome of the question's first system; A is the judged run's own reply."""
    if winner == "tie":
        return "tie"
    return "win" if (winner == "A") == is_first else "lose"


# ---------------------------------------------------------------- metrics


def _mean(name: str, **facts: Any) -> Metric[Rated]:
    """Return the mean over all answers."""
    given = {"minimum": "1 answer", "test": "sign_flip", **facts}

    def collect(case: Rated) -> Stats:
        return (sum(case.values), float(len(case.values)))

    return Metric(Facts(name, **given), collect, RATIO)


def _of_units(name: str, collect: Any, estimator: Sums, **facts: Any) -> Metric[RatedCase]:
    given = {"minimum": "1 question", "test": "none", **facts}
    return Metric(Facts(name, **given), collect, estimator)


def _pairs_equal(unit: RatedCase) -> Stats | None:
    labels = list(unit.labels.values())
    pairs = [first == second for first, second in combinations(labels, 2)]
    return (float(sum(pairs)), float(len(pairs))) if pairs else None


def _counts(unit: RatedCase, n_values: int) -> Stats | None:
    """Return what Fleiss' κ sums over: the share of agreeing pairs, one, and the share of each label."""
    labels = list(unit.labels.values())
    found = _pairs_equal(unit)
    if found is None:
        return None
    return (found[0] / found[1], 1.0, *(labels.count(value) / len(labels) for value in range(n_values)))


def _judge_equal(unit: RatedCase) -> Stats | Unscored | None:
    if unit.judge is None or isinstance(unit.judge, Unscored):
        return unit.judge
    equal = [label == unit.judge for label in unit.labels.values()]
    return (float(sum(equal)), float(len(equal)))
