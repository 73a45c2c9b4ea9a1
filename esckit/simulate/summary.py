"""What a run of ``simulate`` says about its futures in ``summary.json``.

The futures are read one after the other. What is kept of each is a few numbers.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Sequence
from fractions import Fraction
from typing import Any

from esckit.data.contexts import Contexts
from esckit.ledger import add_usage, usage_facts
from esckit.play.futures import quantile_delta, rewards
from esckit.types import CriticReading, Future, Outcome, Usage

HALF = Fraction(1, 2)

_Q = Fraction(7, 10)


def summarise(contexts: Contexts, futures: Iterable[Future]) -> dict[str, Any]:
    """Return ``summary.json``: shares in [0, 1], None where there is nothing to measure."""
    outcomes, failed, formats = Counter[Outcome](), Counter[str](), Counter[bool]()
    readings, usage = _Readings(), dict[str, Usage]()
    values: list[Fraction] = []
    known: dict[Fraction, Fraction] = {}  # equal rewards are one object
    total_k = n_read = n_half = 0
    for future in futures:
        found = readings_of(future)
        outcomes[future.outcome] += 1
        formats.update(exchange.supporter.format_ok for exchange in future.exchanges)
        readings.add(found)
        add_usage(usage, future.usage)
        if future.failure is not None:
            failed[f"{future.failure.stage}/{future.failure.kind}"] += 1
        if future.outcome is not Outcome.FAILED:
            values += (known.setdefault(reward, reward) for reward in rewards([future]))
            total_k += future.k
            n_read += bool(found)
            n_half += bool(found) and found[-1].fraction == HALF
    values.sort()
    goal_share = _share(outcomes[Outcome.RESOLVED], len(values))
    return {
        "schema": "esckit.simulate_summary/1",
        "contexts": len(contexts),
        "dialogues": contexts.n_dialogues,
        "futures": outcomes.total(),
        "outcomes": {
            outcome.value: outcomes[outcome] for outcome in (Outcome.RESOLVED, Outcome.MAX_TURNS, Outcome.FAILED)
        },
        "failed": dict(sorted(failed.items())),
        "reward": _reward_facts(values),
        "goal_share": goal_share,
        "mean_k": _share(total_k, len(values)),
        "last_value_one_half_share": _share(n_half, n_read),
        **readings.facts(),
        "format_ok_share": _share(formats[True], formats.total()),
        "positive_share": {
            "goal": goal_share,
            "threshold 0.5": _share_above(values, HALF),
            "quantile 0.7": _share_above(values, quantile_delta(values, _Q)) if values else None,
        },
        "usage": usage_facts([usage]),
    }


def readings_of(future: Future) -> list[CriticReading]:
    """Return what the critic said of a future, exchange by exchange."""
    return [exchange.reading for exchange in future.exchanges if exchange.reading is not None]


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _share_above(values: Sequence[Fraction], delta: Fraction) -> float | None:
    return _share(sum(value > delta for value in values), len(values))


def _reward_facts(ordered: Sequence[Fraction]) -> dict[str, Any] | None:
    if not ordered:
        return None
    deciles = [float(ordered[-(-tenth * len(ordered) // 10) - 1]) for tenth in range(1, 10)]
    mean = sum(ordered, Fraction(0)) / len(ordered)
    return {"mean": float(mean), "min": float(ordered[0]), "max": float(ordered[-1]), "deciles": deciles}


class _Readings:
    """Adds up what critics answered."""

    def __init__(self) -> None:
        self._n_parsed = self._n_unparsed = self._compat_zeros = 0
        self._masses = array("d")

    def add(self, readings: Iterable[CriticReading]) -> None:
        """Count some readings."""
        for reading in readings:
            self._n_parsed += reading.n_parsed
            self._n_unparsed += reading.n_unparsed
            self._compat_zeros += reading.compat_zero
            if reading.name_mass is not None:
                self._masses.append(reading.name_mass)

    def facts(self) -> dict[str, Any]:
        """Return the part of the summary about readings."""
        return {
            "unparsed_share": _share(self._n_unparsed, self._n_parsed + self._n_unparsed),
            "compat_zeros": self._compat_zeros,
            "mean_name_mass": sum(self._masses) / len(self._masses) if self._masses else None,
        }
