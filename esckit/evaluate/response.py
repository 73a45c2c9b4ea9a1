"""Distinct-n: different n-grams over all n-grams of all replies together.

Resampling with replacement repeats texts and pushes Distinct down, so its interval is a delete-one-dialogue jackknife;
permutations only swap texts between two systems. Replaying needs to know which n-grams a selection of dialogues holds.

Metrics of generated replies against the gold supporter turn.

Shares of text overlap stand on 0-100, as the literature prints them. Tokens are those of
:func:`esckit.text.tokenise`, alike for reply and reference.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from esckit.evaluate.cases import MALFORMED, ResponseCase
from esckit.metrics.measure import Measurement
from esckit.metrics.metric import RATIO, Array, Facts, Indices, Metric, Stats, Sums, Unscored, divide, ratio
from esckit.metrics.overlap import bleu_stats, meteor_exact, ngrams, rouge_l
from esckit.metrics.rows import MetricRow
from esckit.text import TOKENIZER, n_words, tokenise
from esckit.types import ParseKind

_BLOCK = 8_000_000


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """An estimator over n-gram counts; a case's statistics are (n-grams, their different ones, the counts)."""

    scale: float = 100.0

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return scale · different n-grams / all n-grams, None without any n-gram."""
        different: set[tuple[str, ...]] = set()
        total = 0
        for n_all, _, counts in stats:
            different.update(counts)
            total += n_all
        return self.scale * len(different) / total if total else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every selection of dialogues, NaN without any n-gram."""
        holders, totals = _by_unit(stats, owner, draws.shape[1])
        present = (draws > 0).astype(np.float32)
        # Most n-grams occur in one dialogue only: these are there exactly when it is, so they add up.
        alone = np.zeros(draws.shape[1], dtype=np.float32)
        shared = []
        for units in holders:
            if len(units) == 1:
                alone[units[0]] += 1
            else:
                shared.append(units)
        different = present @ alone + _shared_counts(shared, present)
        return self.scale * divide(different.astype(np.float64), draws @ totals)


def _by_unit(stats: Sequence[Stats], owner: Indices, n_units: int) -> tuple[list[list[int]], Array]:
    """Return the units that hold each n-gram, and the number of n-grams of each unit."""
    holders: dict[tuple[str, ...], dict[int, None]] = {}
    totals = np.zeros(n_units)
    for (n_all, _, counts), unit in zip(stats, owner.tolist(), strict=True):
        totals[unit] += n_all
        for ngram in counts:
            holders.setdefault(ngram, {})[unit] = None
    return [list(units) for units in holders.values()], totals


def _shared_counts(shared: Sequence[Sequence[int]], present: npt.NDArray[np.float32]) -> Array:
    """Return how many of the n-grams that several units hold are in each selection, (R,)."""
    if not shared:
        return np.zeros(len(present))
    from scipy.sparse import csr_matrix

    columns = np.repeat(np.arange(len(shared)), [len(units) for units in shared])
    rows = np.fromiter((unit for units in shared for unit in units), dtype=np.intp)
    # (V, D) times (D, R): sparse on the left is the order that scipy multiplies fast.
    holds = csr_matrix((np.ones(len(rows), dtype=np.float32), (columns, rows)), shape=(len(shared), present.shape[1]))
    width = max(1, _BLOCK // len(shared))
    blocks = [
        (holds @ np.ascontiguousarray(present[start : start + width].T) > 0).sum(axis=0)
        for start in range(0, len(present), width)
    ]
    return np.concatenate(blocks)


def distinct_stats(counts: Counter[tuple[str, ...]]) -> Stats:
    """Return a case's statistics: n-grams, different ones within the case, and the counts themselves."""
    return (counts.total(), len(counts), counts)


ResponseMetric = Metric[ResponseCase]

_FLOOR = 1e-12


class _Pair(NamedTuple):
    """Tokens of a scored reply and its reference."""

    reply: tuple[str, ...]
    reference: tuple[str, ...]


def _scored(read: Callable[[ResponseCase, _Pair], Stats | Unscored]) -> Callable[[ResponseCase], Stats | Unscored]:
    """Return a collector that leaves unscored cases out."""

    def collect(case: ResponseCase) -> Stats | Unscored:
        if case.unscored is not None or case.reply is None:
            return Unscored(case.unscored or "blank")
        return read(case, _Pair(tokenise(case.reply), tokenise(case.reference)))

    return collect


def bleu_from_sums(sums: Array) -> Array:
    """Return corpus BLEU of (R, 2N + 2) sums: matches 1..N, totals 1..N, reply and reference lengths.

    100·BP·exp((1/N)·Σ ln P_n), P_n floored at 1e-12; undefined without an n-gram of order N.
    """
    order = (sums.shape[1] - 2) // 2
    matches, totals = sums[:, :order], sums[:, order : 2 * order]
    reply, reference = sums[:, -2], sums[:, -1]
    precisions = np.maximum(divide(matches, totals), _FLOOR)
    brevity = np.exp(np.minimum(0.0, 1 - divide(reference, reply)))
    return np.asarray(100 * brevity * np.exp(np.log(precisions).mean(axis=1)))


def _perplexity(sums: Array) -> Array:
    with np.errstate(over="ignore"):
        found = np.exp(ratio(sums))
    return np.where(np.isfinite(found), found, np.nan)


def bleu(order: int) -> ResponseMetric:
    """Return corpus BLEU up to n-grams of ``order``, one reference."""
    names = tuple(f"matches_{n}" for n in range(1, order + 1)) + tuple(f"ngrams_{n}" for n in range(1, order + 1))
    facts = Facts(
        f"response.bleu_{order}",
        unit="0-100",
        range=(0.0, 100.0),
        minimum=f"an n-gram of order {order}",
        needs=frozenset({"reference"}),
        counts=(*names, "tokens", "reference_tokens"),
        tokenizer=TOKENIZER,
    )
    return Metric(facts, _scored(lambda _, pair: bleu_stats(pair.reply, pair.reference, order)), Sums(bleu_from_sums))


def distinct(n: int) -> ResponseMetric:
    """Return Distinct-n over all replies together."""
    facts = Facts(
        f"response.distinct_{n}",
        unit="0-100",
        range=(0.0, 100.0),
        minimum=f"an n-gram of order {n}",
        interval="jackknife",
        counts=("ngrams",),
        tokenizer=TOKENIZER,
    )
    return Metric(facts, _scored(lambda _, pair: distinct_stats(ngrams(pair.reply, n))), DistinctShare())


def _mean_of(name: str, of: Callable[[_Pair], float]) -> ResponseMetric:
    facts = Facts(name, unit="0-100", range=(0.0, 100.0), needs=frozenset({"reference"}), tokenizer=TOKENIZER)
    return Metric(facts, _scored(lambda _, pair: (of(pair), 1.0)), RATIO)


ROUGE_L = _mean_of("response.rouge_l", lambda pair: rouge_l(pair.reply, pair.reference))

METEOR_EXACT = _mean_of("response.meteor_exact", lambda pair: meteor_exact(pair.reply, pair.reference))


def _surprise(case: ResponseCase, _: _Pair) -> Stats | Unscored:
    if case.nll is None:
        return Unscored(case.nll_unscored or "missing")
    return (case.nll, float(case.n_scorer_tokens))


PPL: ResponseMetric = Metric(
    Facts(
        "response.ppl",
        unit="none",
        range=(1.0, None),
        higher_is_better=False,
        minimum="1 scored token",
        undefined="needs 1 scored token, and a perplexity that a float can hold",
        needs=frozenset({"scorer"}),
        counts=("nll", "tokens"),
    ),
    _scored(_surprise),
    Sums(_perplexity),
)


WORDS: ResponseMetric = Metric(
    Facts("response.words", unit="words", range=(0.0, None), higher_is_better=None, tokenizer=TOKENIZER),
    _scored(lambda case, _: (float(n_words(case.reply or "")), 1.0)),
    RATIO,
)


LENGTH_RATIO: ResponseMetric = Metric(
    Facts(
        "response.length_ratio",
        unit="none",
        range=(0.0, None),
        higher_is_better=None,
        needs=frozenset({"reference"}),
        counts=("tokens", "reference_tokens"),
        tokenizer=TOKENIZER,
    ),
    _scored(lambda _, pair: (float(len(pair.reply)), float(len(pair.reference)))),
    RATIO,
)


def malformed_share(kind: ParseKind) -> ResponseMetric:
    """Return the share of outputs without the agreed form that were taken apart in one way."""

    def collect(case: ResponseCase) -> Stats | Unscored | None:
        if case.parse_kind is None:
            return None if case.unscored is None else Unscored(case.unscored)
        return (float(not case.format_ok and case.parse_kind == kind), 1.0)

    return Metric(
        Facts("response.malformed_share", higher_is_better=False, minimum="1 output", counts=("malformed", "outputs")),
        collect,
        RATIO,
    )


def response_metrics(*, scorer: bool = False) -> tuple[ResponseMetric, ...]:
    """Return the suite's metrics; ``ppl`` only where a scorer was asked."""
    ppl = (PPL,) if scorer else ()
    return (bleu(2), bleu(4), ROUGE_L, METEOR_EXACT, distinct(1), distinct(2), *ppl, WORDS, LENGTH_RATIO)


def response_rows(cases: Sequence[ResponseCase], measurement: Measurement, *, scorer: bool = False) -> list[MetricRow]:
    """Return all rows of the suite; the share of every malformed form stands in ``group.parse_kind``."""
    rows = [measurement.row(metric, cases) for metric in response_metrics(scorer=scorer)]
    if any(case.parse_kind is not None for case in cases):
        rows += [measurement.row(malformed_share(kind), cases, group={"parse_kind": kind}) for kind in MALFORMED]
    return rows
