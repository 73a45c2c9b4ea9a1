"""Where values lie: quartiles by position, and counts in equal bins."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from esckit.report.blocks import Series


def quantile(ordered: Sequence[float], q: float) -> float:
    """Return a quantile of sorted values, linear between neighbours."""
    import numpy as np

    return float(np.quantile(ordered, q))


def mean_and_quartiles(name: str, by_position: Mapping[int, Sequence[float]]) -> Series:
    """Return means by position with the middle half of the values as a band, and n."""
    places = sorted(place for place, values in by_position.items() if values)
    values = [sorted(by_position[place]) for place in places]
    return Series(
        name,
        tuple(float(place) for place in places),
        tuple(math.fsum(each) / len(each) for each in values),
        tuple(quantile(each, 0.25) for each in values),
        tuple(quantile(each, 0.75) for each in values),
        tuple(len(each) for each in values),
    )


def bins(values: Sequence[float], *, n_bins: int = 16) -> tuple[float, float]:
    """Return the start and width of round bins that hold all values in about so many steps."""
    low, high = min(values), max(values)
    rough = (high - low) / n_bins or 0.05
    power = 10.0 ** math.floor(math.log10(rough))
    width = next(step * power for step in (1.0, 2.0, 2.5, 5.0, 10.0) if step * power >= rough)
    return math.floor(low / width + 1e-9) * width, width


def bin_of(value: float, start: float, width: float) -> int:
    """Return the index of the bin [start + i·width, start + (i+1)·width) that holds a value."""
    return math.floor((value - start) / width + 1e-9)
