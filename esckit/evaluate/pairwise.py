"""Pairwise comparison of two systems' replies, judged in both orders.

A is the system under test. Both orders name the same system: win or lose. Both tie: tie. Anything else is a tie that
is counted as inconsistent. A comparison without a readable answer in both orders is unscored. Where a recipe asks for
one order (``swap: false``), that order decides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from esckit.evaluate.cases import Judgement, PairCase
from esckit.metrics.intervals import holm, two_sided_binomial
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import RATIO, Array, Facts, Metric, Stats, Sums, Unscored, collect, divide
from esckit.metrics.rows import MetricRow

PairMetric = Metric[PairCase]

Winner = Literal["A", "B", "tie"]


DIMENSIONS = ("fluency", "identification", "comfort", "suggestion", "overall")
"""What the judge is asked about; ``empathy`` may be added (RLFF-ESC's human study, arXiv 2508.12935)."""


FAIR_CONSISTENCY = 0.7
"""Below this share of consistent cases, verdicts are flagged ``position_bias``."""


def named(judgement: Judgement, dimension: str) -> Winner | None:
    """Return the system that a judgement names on a dimension; None without a readable answer."""
    verdict = judgement.verdicts.get(dimension)
    if verdict is None or judgement.unscored is not None:
        return None
    if verdict == "tie":
        return "tie"
    return "A" if (verdict == "1") == (judgement.order == "AB") else "B"


@dataclass(frozen=True, slots=True)
class Decision:
    """What the orders of one case say together.

    Attributes:
        winner: ``A`` and ``B`` only if all orders agree on it.
        consistent: True if all orders say the same.
        n_first: Calls won by the reply shown first.
        n_decided: Calls without a tie.
    """

    winner: Winner
    consistent: bool
    n_first: int
    n_decided: int


def decide(case: PairCase, dimension: str, *, swapped: bool = True) -> Decision | Unscored:
    """Return the decision of a case on a dimension, or why there is none.

    Args:
        case: The case.
        dimension: What the judge was asked.
        swapped: True if both orders have to be judged: one of them alone says nothing about consistency.
    """
    if case.unscored is not None:
        return Unscored(case.unscored)
    failed = next((judgement.unscored for judgement in case.judgements if judgement.unscored), None)
    if failed is not None:
        return Unscored(failed)
    if len({judgement.order for judgement in case.judgements}) < (2 if swapped else 1):
        return Unscored("missing")
    winners = [winner for judgement in case.judgements if (winner := named(judgement, dimension)) is not None]
    if len(winners) < len(case.judgements):
        return Unscored("unparsed")
    agreed = len(set(winners)) == 1
    verdicts = [judgement.verdicts[dimension] for judgement in case.judgements]
    return Decision(
        winner=winners[0] if agreed else "tie",
        consistent=agreed,
        n_first=verdicts.count("1"),
        n_decided=len(verdicts) - verdicts.count("tie"),
    )


@dataclass(frozen=True, slots=True)
class PairScale:
    """The metrics of one dimension; ``swapped``: see :func:`decide`."""

    dimension: str
    swapped: bool = True

    def _metric(
        self, facts: Facts, read: Callable[[PairCase, Decision], Stats | None], sums: Sums = RATIO
    ) -> PairMetric:
        def collect_case(case: PairCase) -> Stats | Unscored | None:
            decision = decide(case, self.dimension, swapped=self.swapped)
            return decision if isinstance(decision, Unscored) else read(case, decision)

        return Metric(facts, collect_case, sums)

    def _facts(
        self,
        name: str,
        *,
        higher_is_better: bool | None,
        counts: tuple[str, ...],
        minimum: str = "1 scored comparison",
    ) -> Facts:
        return Facts(
            f"pairwise.{self.dimension}.{name}",
            higher_is_better=higher_is_better,
            minimum=minimum,
            needs=frozenset({"judge"}),
            counts=counts,
            test="none",
        )

    def share(self, name: Literal["win", "tie", "lose"]) -> PairMetric:
        """Return the share of cases won, tied or lost."""
        wanted: Winner = {"win": "A", "tie": "tie", "lose": "B"}[name]  # type: ignore[assignment]
        better = {"win": True, "tie": None, "lose": False}[name]
        facts = self._facts(name, higher_is_better=better, counts=(name, "cases"))
        return self._metric(facts, lambda _, decision: (float(decision.winner == wanted), 1.0))

    def net(self) -> PairMetric:
        """Return win − lose."""
        facts = Facts(f"pairwise.{self.dimension}.net", range=(-1.0, 1.0), needs=frozenset({"judge"}), test="none")
        signs = {"A": 1.0, "tie": 0.0, "B": -1.0}
        return self._metric(facts, lambda _, decision: (signs[decision.winner], 1.0))

    def sign_p(self) -> PairMetric:
        """Return the exact two-sided binomial p of wins against losses, ties left out."""
        facts = Facts(
            f"pairwise.{self.dimension}.sign_p",
            unit="p",
            higher_is_better=None,
            minimum="1 decided case",
            interval="none",
            no_interval="a p-value, Holm-adjusted over the dimensions",
            test="none",
            needs=frozenset({"judge"}),
            counts=("win", "lose"),
        )

        def value(sums: Array) -> Array:
            decided = divide(sums.sum(axis=1), sums.sum(axis=1))
            p = [two_sided_binomial(int(wins), int(losses)) for wins, losses in sums.tolist()]
            return decided * p

        def read(_: PairCase, it: Decision) -> Stats | None:
            return None if it.winner == "tie" else (float(it.winner == "A"), float(it.winner == "B"))

        return self._metric(facts, read, Sums(value))

    def position_consistency(self) -> PairMetric:
        """Return the share of cases where both orders agree, ties included."""
        facts = self._facts("position_consistency", higher_is_better=True, counts=("consistent", "cases"))
        return self._metric(facts, lambda _, decision: (float(decision.consistent), 1.0))

    def first_share(self) -> PairMetric:
        """Return the share of calls without a tie that the first position won; ½ is unbiased."""
        facts = self._facts(
            "first_share", higher_is_better=None, counts=("first", "decided"), minimum="1 call without a tie"
        )

        def read(_: PairCase, it: Decision) -> Stats | None:
            return (float(it.n_first), float(it.n_decided)) if it.n_decided else None

        return self._metric(facts, read)

    def longer_share(self) -> PairMetric:
        """Return the share of decided cases that the longer reply won; equal lengths are left out; ½ is unbiased."""
        facts = self._facts(
            "longer_share",
            higher_is_better=None,
            counts=("longer", "decided"),
            minimum="1 decided case with replies of different length",
        )

        def read(case: PairCase, decision: Decision) -> Stats | None:
            if decision.winner == "tie" or case.n_words_a == case.n_words_b:
                return None
            longer = "A" if case.n_words_a > case.n_words_b else "B"
            return (float(decision.winner == longer), 1.0)

        return self._metric(facts, read)


def pair_metrics(dimension: str, *, swapped: bool = True) -> tuple[PairMetric, ...]:
    """Return the metrics of a dimension; a consistency rate needs both orders."""
    scale = PairScale(dimension, swapped)
    shares = (scale.share("win"), scale.share("tie"), scale.share("lose"), scale.net(), scale.sign_p())
    consistency = (scale.position_consistency(),) if swapped else ()
    return (*shares, *consistency, scale.first_share(), scale.longer_share())


def pairwise_rows(
    cases: Sequence[PairCase], dimensions: Sequence[str], measurement: Measurement, *, swapped: bool = True
) -> list[MetricRow]:
    """Return all rows of the suite.

    A dimension whose orders rarely agree is flagged ``position_bias``; the sign tests of all dimensions are one family:
    each ``sign_p`` is adjusted after Holm.
    """
    rows = []
    for dimension in dimensions:
        consistency = PairScale(dimension).position_consistency()
        share = consistency.finish(collect(consistency, cases).stats) if swapped else None
        flags = ("position_bias",) if share is not None and share < FAIR_CONSISTENCY else ()
        rows += [measurement.row(metric, cases, flags=flags) for metric in pair_metrics(dimension, swapped=swapped)]
    tested = [index for index, row in enumerate(rows) if row.unit == "p" and row.value is not None]
    for index, adjusted in zip(tested, holm([rows[index].value or 0.0 for index in tested]), strict=True):
        rows[index] = rows[index].model_copy(update={"value": adjusted})
    return rows
