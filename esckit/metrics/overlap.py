"""Text overlap of one reply and one reference, and counts of n-grams: pure functions on tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any

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


class _AsGiven:
    """A tokenizer for rouge-score that leaves our tokens as they are."""

    def tokenize(self, text: str) -> list[str]:
        return text.split(" ")


@cache
def _rouge_scorer() -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], tokenizer=_AsGiven())


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
