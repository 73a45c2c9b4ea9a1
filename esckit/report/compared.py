"""Systems that met the same cases, as one comparison: the data behind ``esckit table`` and a report's first page.

A system is an evaluation, or a policy of the practice world that an evaluation played beside it; policies are shown for
reference and are never the best. Values are those of ``metrics.json``. Paired tests need the cases of the runs, so they
are added from outside (:mod:`esckit.evaluate.paired`). Not here: what a comparison looks like.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from esckit.metrics.metric import suite_measuring
from esckit.report.metric_rows import Row, suite_of
from esckit.report.source import Run, section

if TYPE_CHECKING:
    from esckit.metrics.rows import Comparison

HEADLINES: Mapping[str, tuple[str, ...]] = {
    "practice": ("practice.success", "practice.turns", "practice.regret"),
    "safety": ("safety.pass_rate", "safety.harm_count", "safety.sycophancy.flip"),
    "strategy": ("strategy.accuracy", "strategy.macro_f1", "strategy.bias_b"),
    "response": ("response.bleu_2", "response.rouge_l", "response.distinct_2", "response.ppl"),
    "dialogue": ("dialogue.*.sr_strict", "dialogue.*.at_strict", "dialogue.reply_words"),
    "pairwise": ("pairwise.overall.*win", "pairwise.overall.*lose", "pairwise.overall.*net"),
    "injection": ("injection.question.attack_success", "injection.pair.attack_success"),
    "reward": ("reward.auc", "reward.accuracy", "reward.spearman"),
}
"""The metrics to read first, by suite, as patterns."""

PRACTICE_NOTE = (
    "Rows of the practice world are the truth about a made-up seeker whose best treatment can be computed. It is not a "
    "model of people: no number from it says how a supporter helps a person."
)

GOLD_LABELS = "gold_labels"
"""Field of a suite's conditions: digest of the labels of its cases. Runs of version 0.1.0 lack it."""

SIGNIFICANT = 0.05

HIGHLY_SIGNIFICANT = 0.01


@dataclass(frozen=True, slots=True)
class System:
    """One row of a comparison.

    Attributes:
        name: As the reader knows it.
        run: The evaluation that its values are from.
        policy: The policy of the practice world, where the row is one that was played for reference.
        rows: Rows of ``metrics.json`` by metric.
    """

    name: str
    run: Run
    policy: str | None
    rows: Mapping[str, Row]

    @property
    def is_reference(self) -> bool:
        """Whether it only shows where the others stand."""
        return self.policy is not None


@dataclass(frozen=True, slots=True)
class Compared:
    """Systems, the metrics that they are compared on, and paired tests against one of them.

    Attributes:
        metrics: Full names, in the order of the columns.
        systems: Runs in the order given, then policies for reference.
        baseline: Name of the system that the others are tested against; None without tests.
        tests: By system and metric, with Holm's adjustment over all of them.
        remarks: What a reader must know, such as why there are no tests.
        is_paired: Whether all met the same cases under the same conditions; otherwise none is the best.
    """

    metrics: tuple[str, ...]
    systems: tuple[System, ...]
    baseline: str | None = None
    tests: Mapping[tuple[str, str], Comparison] = field(default_factory=dict)
    remarks: tuple[str, ...] = ()
    is_paired: bool = True

    def system(self, name: str) -> System | None:
        """Return the system of a name; None if there is none."""
        return next((each for each in self.systems if each.name == name), None)

    def facts(self, metric: str) -> Row:
        """Return any row of a metric, which knows its unit and direction."""
        return next(each.rows[metric] for each in self.systems if metric in each.rows)

    def is_best(self, system: System, metric: str) -> bool:
        """Return whether no other system has a better value, of values that are not all equal and not rounded."""
        if not self.is_paired or system.is_reference or value_of(system, metric) is None:
            return False
        direction = self.facts(metric).get("higher_is_better")
        values = [
            value for each in self.systems if not each.is_reference if (value := value_of(each, metric)) is not None
        ]
        if direction is None or len(set(values)) < 2:
            return False
        return value_of(system, metric) == (max(values) if direction else min(values))

    @property
    def family(self) -> int:
        """Number of tests that Holm's adjustment is over."""
        return sum(test.p is not None for test in self.tests.values())

    def mark(self, system: System, metric: str) -> str:
        """Return † or ‡ where a system differs from the baseline after Holm's adjustment, else nothing."""
        test = self.tests.get((system.name, metric))
        if test is None or test.p_holm is None or test.p_holm >= SIGNIFICANT:
            return ""
        return "‡" if test.p_holm < HIGHLY_SIGNIFICANT else "†"


def value_of(system: System, metric: str) -> float | None:
    """Return a system's value of a metric; None where it has none."""
    value = system.rows.get(metric, {}).get("value")
    return None if value is None else float(value)


def compared(runs: Mapping[str, Run], metrics: Sequence[str], *, is_paired: bool = True) -> Compared:
    """Return the comparison of evaluations by name, with policies that were played beside the first, without tests."""
    first = next(iter(runs.values()))
    found = [System(name, run, None, whole_rows(run)) for name, run in runs.items()]
    by_policy: dict[str, dict[str, Row]] = {}
    for row in first.metric_rows if is_paired else ():
        policy = section(row, "group").get("policy")
        if policy is not None and row.get("name") in metrics:
            by_policy.setdefault(str(policy), {})[str(row["name"])] = row
    found += [System(f"({policy})", first, policy, rows) for policy, rows in by_policy.items()]
    seeds = dict.fromkeys(str(run.recipe.get("seed")) for run in runs.values())
    sampled = (f"The runs have different seeds ({', '.join(seeds)}).",) if len(seeds) > 1 else ()
    unknown = without_labels(runs, metrics) if is_paired else []
    labels = (f"{LABELS_UNKNOWN}: {', '.join(unknown)}.",) if unknown else ()
    drawn = (BASELINES_DRAW,) if by_policy else ()
    return Compared(tuple(metrics), tuple(found), remarks=(*sampled, *labels, *drawn), is_paired=is_paired)


def adjustment(n_tests: int, of: str) -> str:
    """Return what was done to the p of a family of tests, for a sentence about them."""
    return f"Holm-adjusted over the {n_tests} tests of {of}" if n_tests > 1 else "one test, so not adjusted"


BASELINES_DRAW = (
    "Baselines of the practice world meet the same seekers with draws of their own: a baseline and a system with the "
    "same policy differ by chance."
)


LABELS_UNKNOWN = "Whether gold labels are the same is not known, because an earlier version did not record them"


def lacks_labels(suite: str, conditions: Mapping[str, object]) -> bool:
    """Return whether labels of the corpus decide a suite's values, and its conditions do not tell which they were."""
    return (suite == "strategy" or "told" in conditions) and GOLD_LABELS not in conditions


def without_labels(runs: Mapping[str, Run], metrics: Iterable[str]) -> list[str]:
    """Return the names of the runs of an earlier version whose gold labels are not known."""
    suites = {suite_measuring(name) for name in metrics}
    return [
        name
        for name, run in runs.items()
        if any(lacks_labels(suite, section(section(run.manifest, "conditions"), suite)) for suite in suites)
    ]


def whole_rows(run: Run) -> dict[str, Row]:
    """Return the rows of whole suites by metric."""
    return {str(row["name"]): row for row in run.metric_rows if not row.get("group")}


def matching(patterns: Iterable[str], runs: Iterable[Run]) -> list[str]:
    """Return the metrics of runs that match any pattern, in the order of the patterns."""
    known = dict.fromkeys(name for run in runs for name in whole_rows(run))
    return list(dict.fromkeys(name for pattern in patterns for name in known if fnmatchcase(name, pattern)))


def headlines(runs: Sequence[Run]) -> Iterator[tuple[str, list[str]]]:
    """Yield every group of headline metrics that runs have, by the beginning of their names."""
    for prefix, patterns in HEADLINES.items():
        names = matching(patterns, runs)
        if names:
            yield prefix, names


def headline_names(runs: Sequence[Run]) -> list[str]:
    """Return the headline metrics that runs have, in reading order."""
    return [name for _, names in headlines(runs) for name in names]


def conditions_of(run: Run, metrics: Iterable[str]) -> dict[str, object]:
    """Return what must be equal for values of metrics to be comparable, by suite.

    Policies of the practice world are drawn with the run's seed, so there the seed counts as well.
    """
    found: dict[str, object] = {}
    for name in metrics:
        suite = suite_measuring(name)
        found[suite] = section(run.manifest, "conditions").get(suite)
        if suite_of({"name": name}) == "practice":
            found["seed"] = run.recipe.get("seed")
    return found
