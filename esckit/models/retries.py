"""How long to wait before a request is made again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """Bounded retries with exponential waits; no jitter, so that a run's schedule can be told from its recipe.

    Attributes:
        max_retries: Requests made again after the first, at least 0.
        first_wait_s: Wait before the first of them; every further one doubles it.
        max_wait_s: Longest single wait, also where the server asks for more.
    """

    max_retries: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0

    def wait_s(self, n_failed: int, asked_s: float | None = None) -> float:
        """Return the wait after ``n_failed`` ≥ 1 failed requests; what the server asks for goes first."""
        wanted = self.first_wait_s * 2.0 ** (n_failed - 1) if asked_s is None else asked_s
        return min(wanted, self.max_wait_s)


def retry_after_s(headers: Mapping[str, str], *, now: datetime | None = None) -> float | None:
    """Return the seconds that a server asks to wait (milliseconds, seconds or a date), None if it names no time."""
    for name, unit_s in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name)
        if value is None:
            continue
        try:
            seconds = float(value) * unit_s
        except ValueError:
            seconds = _until_s(value, now or datetime.now(UTC))
        if math.isfinite(seconds) and seconds >= 0.0:
            return seconds
    return None


def _until_s(date: str, now: datetime) -> float:
    try:
        moment = parsedate_to_datetime(date)
        return max(0.0, (moment.replace(tzinfo=moment.tzinfo or UTC) - now).total_seconds())
    except (ValueError, OverflowError):
        # Also a year or a time zone beyond all calendars.
        return math.nan
