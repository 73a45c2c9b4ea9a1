"""How labels follow each other over the positions of several sequences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from itertools import pairwise

from esckit.report.blocks import Flow, Heat


def flow_of(name: str, title: str, sequences: Sequence[Sequence[str]], *, longest: int = 10) -> Flow | None:
    """Return the flow of some label sequences, cut at ``longest`` positions; None where no label stands."""
    labels = list(dict.fromkeys(label for sequence in sequences for label in sequence))
    if not labels:
        return None
    index_of = {label: index for index, label in enumerate(sorted(labels))}
    width = min(longest, max(len(sequence) for sequence in sequences))
    totals: list[Counter[int]] = [Counter() for _ in range(width)]
    links: list[Counter[tuple[int, int]]] = [Counter() for _ in range(width - 1)]
    for sequence in sequences:
        codes = [index_of[label] for label in sequence[:width]]
        for place, code in enumerate(codes):
            totals[place][code] += 1
        for place, pair in enumerate(pairwise(codes)):
            links[place][pair] += 1
    return Flow(
        name,
        title,
        tuple(str(place + 1) for place in range(width)),
        tuple(sorted(labels)),
        tuple(tuple(total[code] for code in range(len(labels))) for total in totals),
        tuple(tuple((a, b, n) for (a, b), n in sorted(link.items())) for link in links),
    )


def transitions(name: str, sequences: Sequence[Sequence[str]]) -> Heat | None:
    """Return how often a label follows another, over all positions; None where nothing follows anything."""
    pairs = Counter(pair for sequence in sequences for pair in pairwise(sequence))
    if not pairs:
        return None
    labels = tuple(sorted({label for pair in pairs for label in pair}))
    counts = tuple(tuple(pairs[first, then] for then in labels) for first in labels)
    return Heat(name, "What follows what", "strategy of a turn", "strategy of the next", labels, counts, by="row")
