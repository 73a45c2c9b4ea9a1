"""A pilot: a few units of a run are played first, and what the whole run will ask for is estimated from them.

The units are a seeded sample over the whole run (:func:`esckit.play.forecast.spread`), at least two of every file, and
stay in the run folder as finished units of the run. What each of them asked for stands in ``metrics.jsonl``; so a pilot
that was stopped goes on, and units that were finished before count with what they took. The estimate is the mean over
the pilot's units for all units that are not known yet, with a 95 % interval from their spread (Student's t). Answers of
the response cache count as calls: how much of the rest the cache holds cannot be known from the pilot.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self

from esckit.config.sections import Recipe
from esckit.play.forecast import spread

if TYPE_CHECKING:
    from esckit.play.unit_file import UnitFile

AMOUNTS = ("calls", "prompt_tokens", "completion_tokens", "cost")

WANTED = 0.25
"""Half the width of an interval, as a share of the estimate, that a pilot should reach."""

_LEAST = 2

_Z = 1.959964


@dataclass(frozen=True, slots=True)
class Pilot:
    """How a pilot is drawn.

    Attributes:
        n_units: Units to play, in all files together.
        seed: Of the run.
    """

    n_units: int
    seed: int

    @classmethod
    def of(cls, recipe: Recipe, n_units: int | None) -> Self | None:
        """Return the pilot of a recipe; None where none is asked for."""
        return None if n_units is None else cls(n_units, recipe.seed)

    def draw(self, sizes: Mapping[str, int]) -> dict[str, list[int]]:
        """Return the places of the units of each file, given how many each has: shares alike, and two at least."""
        whole = sum(sizes.values())
        wanted = {name: max(_LEAST, round(self.n_units * n / whole)) for name, n in sizes.items() if n}
        return {name: spread(sizes[name], n, self.seed, "pilot", name) for name, n in wanted.items()}

    def choose(self, files: Sequence[UnitFile[Any, Any]]) -> dict[str, set[str]]:
        """Return the ids of the pilot's units by file, and leave only these missing; none where no model is asked."""
        drawn = self.draw({file.name: len(file.ids) for file in files if file.asks_models})
        for file in files if drawn else ():
            numbers = set(drawn.get(file.name, ()))
            file.missing = [number for number in file.missing if number in numbers]
        return {name: {file.ids[number] for number in drawn[name]} for file in files if (name := file.name) in drawn}


class PilotPlayed(Exception):
    """The pilot is played; carries the estimate as plain data."""

    def __init__(self, estimate: dict[str, Any]) -> None:
        super().__init__("the pilot is played")
        self.estimate = estimate


class UnitCosts(NamedTuple):
    """What is known of the units of one file.

    Attributes:
        n_units: All units.
        pilot: What the units of the pilot asked for.
        others: What other units that are finished asked for.
    """

    n_units: int
    pilot: Sequence[Mapping[str, Any]]
    others: Sequence[Mapping[str, Any]]


def unit_costs(files: Sequence[UnitFile[Any, Any]], timings: Path, chosen: Mapping[str, set[str]]) -> list[UnitCosts]:
    """Return what the finished units of each file asked for.

    Args:
        files: After they were played.
        timings: ``metrics.jsonl``; lines of earlier versions do not say what their units asked for.
        chosen: Ids of the pilot's units by file.
    """
    lines = [json.loads(line) for line in timings.read_text(encoding="utf-8").splitlines()]
    found = []
    for file in (file for file in files if file.name in chosen):
        told = {
            str(line[file.timed_as]): line
            for line in lines
            if file.timed_as in line and "calls" in line and file.timed_in.items() <= line.items()
        }
        known = set(file.ids)
        pilot = [line for name, line in told.items() if name in chosen[file.name]]
        others = [line for name, line in told.items() if name in known and name not in chosen[file.name]]
        found.append(UnitCosts(len(file.ids), pilot, others))
    return found


def estimate(files: Sequence[UnitCosts], pace_s: float | None = None) -> dict[str, Any]:
    """Return what a run will have asked for at its end, by amount, each with a 95 % interval; None is unknown.

    Args:
        files: What is known of the units of each file.
        pace_s: Seconds of the pilot for each of its units, as many at once as the run plays; None if unknown.
    """
    n_left = sum(file.n_units - len(file.pilot) - len(file.others) for file in files)
    return {name: _estimated(name, files) for name in AMOUNTS} | {
        "units": sum(file.n_units for file in files),
        "pilot_units": sum(len(file.pilot) for file in files),
        "from_cache": sum(unit["from_cache"] for file in files for unit in file.pilot),
        "pilot_calls": sum(unit["calls"] for file in files for unit in file.pilot),
        "units_wanted": _wanted(files),
        "hours_left": None if pace_s is None else round(pace_s * n_left / 3600, 3),
    }


def _estimated(name: str, files: Sequence[UnitCosts]) -> dict[str, float] | None:
    value = variance = 0.0
    least = 0.0
    n_free = math.inf
    for file in files:
        known = [*file.pilot, *file.others]
        n_left = file.n_units - len(known)
        amounts = [unit[name] for unit in file.pilot]
        if None in amounts or any(unit[name] is None for unit in known):
            return None
        so_far = sum(unit[name] for unit in known)
        least += so_far
        value += so_far
        if n_left > 0 and amounts:
            mean, squares = _moments(amounts)
            value += n_left * mean
            variance += n_left**2 * squares / len(amounts)
            n_free = min(n_free, len(amounts) - 1)
    width = _student(n_free) * math.sqrt(variance)
    digits = 4 if name == "cost" else 0
    numbers = {"value": value, "low": max(least, value - width), "high": value + width}
    return {end: round(number, digits) if digits else round(number) for end, number in numbers.items()}


def _moments(amounts: Sequence[float]) -> tuple[float, float]:
    """Return mean and variance of a sample; the unknown variance of a single unit is taken as the mean's square."""
    mean = sum(amounts) / len(amounts)
    if len(amounts) < 2:
        return mean, mean * mean
    return mean, sum((amount - mean) ** 2 for amount in amounts) / (len(amounts) - 1)


def _student(n_free: float) -> float:
    """Return the 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5; within 1 % from 3 degrees on)."""
    if n_free < 3:
        return {2: 4.303}.get(int(n_free), 12.706)
    z = _Z
    terms = ((z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96, (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384)
    return z + sum(term / n_free**power for power, term in enumerate(terms, start=1))


def _wanted(files: Sequence[UnitCosts]) -> int | None:
    """Return how many units make intervals of about ±25 % in calls and tokens, from the spread of those played."""
    most = 0.0
    n_pilot = sum(len(file.pilot) for file in files)
    for name in AMOUNTS[:-1]:
        found = _estimated(name, files)
        if found is None or not found["value"]:
            continue
        share = (found["high"] - found["value"]) / found["value"]
        most = max(most, n_pilot * (share / WANTED) ** 2)
    return min(math.ceil(most), sum(file.n_units for file in files)) or None
