"""Text overlap of a reply and its reference, corpus BLEU, and Distinct-n: functions on tokens.

Importing this module does not import numpy.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import cache
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from esckit.metrics.metric import Array, Indices, Stats, divide

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

Tokens = tuple[str, ...]

Ngram = tuple[str, ...]


def ngrams(tokens: Sequence[str], n: int) -> Counter[Ngram]:
    """Return the n-grams of a token sequence with their counts."""
    return Counter(tuple(tokens[start : start + n]) for start in range(len(tokens) - n + 1))


def bleu_stats(reply: Tokens, reference: Tokens, order: int) -> tuple[float, ...]:
    """Return clipped matches for 1..order, totals for 1..order, reply length and reference length."""
    matches, totals = [], []
    for n in range(1, order + 1):
        found = ngrams(reply, n)
        matches.append(float((found & ngrams(reference, n)).total()))
        totals.append(float(found.total()))
    return (*matches, *totals, float(len(reply)), float(len(reference)))


def bleu_from_sums(sums: Array) -> Array:
    """Return corpus BLEU of (R, 2N + 2) sums: matches 1..N, totals 1..N, reply and reference lengths.

    100·BP·exp((1/N)·Σ ln P_n), P_n floored at 1e-12; undefined without an n-gram of order N.
    """
    import numpy as np

    order = (sums.shape[1] - 2) // 2
    matches, totals = sums[:, :order], sums[:, order : 2 * order]
    reply, reference = sums[:, -2], sums[:, -1]
    precisions = np.maximum(divide(matches, totals), 1e-12)
    brevity = np.exp(np.minimum(0.0, 1 - divide(reference, reply)))
    return np.asarray(100 * brevity * np.exp(np.log(precisions).mean(axis=1)))


@cache
def _rouge_scorer() -> Any:
    """Return a scorer that leaves our tokens, joined by spaces, as they are."""
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=SimpleNamespace(tokenize=lambda text: text.split(" ")))


def rouge_l(reply: Tokens, reference: Tokens) -> float:
    """Return 100·2PR/(P+R) with P = LCS/len(reply) and R = LCS/len(reference), 0 without a common token."""
    if not reply or not reference:
        return 0.0
    found = _rouge_scorer().score(" ".join(reference), " ".join(reply))
    return 100.0 * float(found["rougeL"].fmeasure)


def meteor_exact(reply: Tokens, reference: Tokens) -> float:
    """Return 100·F·(1−q) with exact matches only: no stems, no synonyms.

    With m matches, P = m/len(reply), R = m/len(reference): F = 10PR/(R+9P), q = ½(chunks/m)³; 0 without a match.
    """
    matched, chunks = match_runs(reply, reference)
    if not matched:
        return 0.0
    precision, recall = matched / len(reply), matched / len(reference)
    mean = 10 * precision * recall / (recall + 9 * precision)
    return 100 * mean * (1 - 0.5 * (chunks / matched) ** 3)


def match_runs(reply: Tokens, reference: Tokens) -> tuple[int, int]:
    """Return matched tokens and chunks (maximal runs contiguous in both texts).

    Repeatedly takes the longest common run of unmatched tokens; ties go to the leftmost in the reply, then in the
    reference.
    """
    partner: dict[int, int] = {}
    used: set[int] = set()
    while run := _longest_run(reply, reference, partner.keys(), used):
        start, other, length = run
        partner.update((start + step, other + step) for step in range(length))
        used.update(range(other, other + length))
    chunks = sum(partner.get(index - 1, -2) != place - 1 for index, place in partner.items())
    return len(partner), chunks


def _longest_run(
    reply: Tokens, reference: Tokens, taken: AbstractSet[int], used: AbstractSet[int]
) -> tuple[int, int, int] | None:
    """Return (start in the reply, start in the reference, length) of the longest unmatched common run."""
    best: tuple[int, int, int] | None = None
    ending = [0] * (len(reference) + 1)
    for index, token in enumerate(reply):
        before, ending = ending, [0] * (len(reference) + 1)
        if index in taken:
            continue
        for other, reference_token in enumerate(reference):
            if token != reference_token or other in used:
                continue
            length = ending[other + 1] = before[other] + 1
            run = (index - length + 1, other - length + 1, length)
            if best is None or (-length, *run[:2]) < (-best[2], *best[:2]):
                best = run
    return best


@dataclass(frozen=True, slots=True)
class DistinctShare:
    """Distinct-n: different n-grams over all n-grams of all replies together.

    Resampling with replacement repeats texts and pushes Distinct down, so its interval is a delete-one-dialogue
    jackknife; permutations only swap texts between two systems. A case's statistics are its number of n-grams, of
    different ones, and the counts themselves.
    """

    scale: float = 100.0

    def finish(self, stats: Sequence[Stats]) -> float | None:
        """Return scale · different n-grams / all n-grams, None without any n-gram."""
        different: set[Ngram] = set()
        total = 0
        for n_all, _, counts in stats:
            different.update(counts)
            total += n_all
        return self.scale * len(different) / total if total else None

    def replay(self, stats: Sequence[Stats], owner: Indices, draws: Array) -> Array:
        """Return the value of every selection of dialogues, NaN without any n-gram."""
        import numpy as np

        n_units = draws.shape[1]
        holders: dict[Ngram, dict[int, None]] = {}
        totals = np.zeros(n_units)
        for (n_all, _, counts), unit in zip(stats, owner.tolist(), strict=True):
            totals[unit] += n_all
            for ngram in counts:
                holders.setdefault(ngram, {})[unit] = None
        present = (draws > 0).astype(np.float32)
        # Most n-grams occur in one dialogue only: these are there exactly when it is, so they add up.
        alone = np.zeros(n_units, dtype=np.float32)
        for units in holders.values():
            if len(units) == 1:
                alone[next(iter(units))] += 1
        different = present @ alone + _shared_counts(
            [list(units) for units in holders.values() if len(units) > 1], present
        )
        return self.scale * divide(different.astype(np.float64), draws @ totals)


def _shared_counts(shared: Sequence[Sequence[int]], present: npt.NDArray[np.float32]) -> Array:
    """Return how many of the n-grams that several units hold are in each selection, (R,)."""
    import numpy as np
    from scipy.sparse import csr_matrix

    if not shared:
        return np.zeros(len(present))

    columns = np.repeat(np.arange(len(shared)), [len(units) for units in shared])
    rows = np.fromiter((unit for units in shared for unit in units), dtype=np.intp)
    # (V, D) times (D, R): sparse on the left is the order that scipy multiplies fast.
    holds = csr_matrix((np.ones(len(rows), dtype=np.float32), (columns, rows)), shape=(len(shared), present.shape[1]))
    width = max(1, 8_000_000 // len(shared))
    blocks = [
        (holds @ np.ascontiguousarray(present[start : start + width].T) > 0).sum(axis=0)
        for start in range(0, len(present), width)
    ]
    return np.concatenate(blocks)
