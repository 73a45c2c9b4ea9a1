"""What ``esckit simulate`` says about its futures: counts, rewards, and how each label rule would split them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

from esckit.dialogue.labels import label_goal, label_quantile, label_threshold, rewards
from esckit.types import Context, CriticReading, Future, Outcome, Usage

HALF = Fraction(1, 2)


def summarise(contexts: Sequence[Context], futures: Sequence[Future]) -> dict[str, Any]:
    """Return ``summary.json``: shares in [0, 1], None where there is nothing to measure."""
    scored = [future for future in futures if future.outcome is not Outcome.FAILED]
    failures = [future.failure for future in futures if future.failure is not None]
    return {
        "schema": "esckit.simulate_summary/1",
        "contexts": len(contexts),
        "dialogues": len({context.dialogue_id for context in contexts}),
        "futures": len(futures),
        "outcomes": {outcome.value: sum(future.outcome is outcome for future in futures) for outcome in _OUTCOMES},
        "failed": dict(sorted(Counter(f"{failure.stage}/{failure.kind}" for failure in failures).items())),
        "reward": _reward_facts(rewards(scored)),
        "goal_share": _share(sum(future.outcome is Outcome.RESOLVED for future in scored), len(scored)),
        "mean_k": _share(sum(future.k for future in scored), len(scored)),
        "last_value_one_half_share": _share(sum(_last_is_half(future) for future in scored), len(scored)),
        **_reading_facts([reading for future in futures for reading in _readings(future)]),
        "format_ok_share": _format_ok_share(futures),
        "positive_share": {
            "goal": label_goal(scored).positive_share,
            "threshold 0.5": label_threshold(scored, HALF).positive_share,
            "quantile 0.7": label_quantile(scored, Fraction(7, 10)).positive_share,
        },
        "usage": _usage(futures),
    }


_OUTCOMES = (Outcome.RESOLVED, Outcome.MAX_TURNS, Outcome.FAILED)


def _share(part: int, whole: int) -> float | None:
    return part / whole if whole else None


def _readings(future: Future) -> list[CriticReading]:
    return [exchange.reading for exchange in future.exchanges if exchange.reading is not None]


def _last_is_half(future: Future) -> bool:
    readings = _readings(future)
    return bool(readings) and readings[-1].fraction == HALF


def _reward_facts(values: Sequence[Fraction]) -> dict[str, Any] | None:
    if not values:
        return None
    ordered = sorted(values)
    deciles = [float(ordered[-(-tenth * len(ordered) // 10) - 1]) for tenth in range(1, 10)]
    mean = sum(ordered, Fraction(0)) / len(ordered)
    return {"mean": float(mean), "min": float(ordered[0]), "max": float(ordered[-1]), "deciles": deciles}


def _reading_facts(readings: Sequence[CriticReading]) -> dict[str, Any]:
    parsed = sum(reading.n_parsed for reading in readings)
    unparsed = sum(reading.n_unparsed for reading in readings)
    masses = [reading.name_mass for reading in readings if reading.name_mass is not None]
    return {
        "unparsed_share": _share(unparsed, parsed + unparsed),
        "compat_zeros": sum(reading.compat_zero for reading in readings),
        "mean_name_mass": sum(masses) / len(masses) if masses else None,
    }


def _format_ok_share(futures: Sequence[Future]) -> float | None:
    outputs = [exchange.supporter.format_ok for future in futures for exchange in future.exchanges]
    return _share(sum(outputs), len(outputs))


def _usage(futures: Sequence[Future]) -> dict[str, Any]:
    total: dict[str, Usage] = {}
    for future in futures:
        for role, usage in future.usage.items():
            total[role] = total.get(role, Usage()) + usage
    return {role: usage.facts() for role, usage in sorted(total.items())}
