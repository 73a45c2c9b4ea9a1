"""What a dry run prints of what a run may cost, and a pilot of what it will cost.

Not here: how that is found out (:mod:`esckit.play.forecast`, :mod:`esckit.play.pilot`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from esckit.cli.common import echo, echo_facts


def forecast_of(plan: Any, rate: float | None) -> dict[str, Any]:
    """Return what a planned run may cost at most, empty for a training that plays nothing.

    See :func:`esckit.play.forecast.forecast`.
    """
    from esckit.play.forecast import forecast

    staged = plan.get("staged") if isinstance(plan, Mapping) else plan.staged
    return forecast(staged, rate=rate) if staged is not None else {}


_COLUMNS = ("calls", "prompt_tokens", "completion_tokens", "cost")


def echo_forecast(found: Mapping[str, Any]) -> None:
    """Print a forecast as a table by role, with what follows from it below; nothing of an empty one."""
    if not found:
        return
    rows = [(role, *(number(amounts[name]) for name in _COLUMNS)) for role, amounts in found["roles"].items()]
    rows.append(("in all", *(number(found[name]) for name in _COLUMNS)))
    sample = f"{found['rehearsed_units']:,} of {found['units']:,} units rehearsed"
    echo(f"\nat most, without retries ({sample}):")
    echo_table(("role", *(name.replace("_", " ") for name in _COLUMNS)), rows)
    hours = "– (--rate CALLS says how many calls a second)" if found["hours"] is None else f"{found['hours']:,}"
    if found["disk_bytes"] is None:
        echo(f"hours   {hours}; the training itself comes on top")
    else:
        echo(f"hours   {hours}")
        echo(f"disk    {readable_size(found['disk_bytes'])}")
    for role, amounts in found["roles"].items():
        per_token, tokenizer = amounts["bytes_per_token"], amounts["tokenizer"]
        echo(
            f"tokens  {role}: {per_token:g} bytes each, " + (f"by {tokenizer}" if tokenizer else "no tokenizer at hand")
        )


def echo_pilot(found: Mapping[str, Any], out: Path, *, as_json: bool) -> None:
    """Print what a whole run will ask for according to its pilot, with 95 % intervals; None is unknown."""
    from esckit.play.pilot import AMOUNTS

    if as_json:
        echo_facts({"out": str(out), "estimate": found}, as_json=True)
        return
    echo(f"{found['pilot_units']:,} of {found['units']:,} units played; the whole run will take:")
    rows = []
    for name in AMOUNTS:
        ends = found[name] or dict.fromkeys(("value", "low", "high"))
        rows.append((name.replace("_", " "), *(number(ends[end]) for end in ("value", "low", "high"))))
    echo_table(("", "estimate", "from", "to"), rows)
    if found["hours_left"] is not None:
        echo(f"hours left  {found['hours_left']:,} at the pace of the pilot")
    if found["from_cache"]:
        share = f"{found['from_cache']:,} of the pilot's {found['pilot_calls']:,} calls"
        echo(f"cache       {share} were answered from it; the estimate counts them")
    if (found["units_wanted"] or 0) > found["pilot_units"]:
        echo(f"precision   ±25 % takes a pilot of about {found['units_wanted']:,} units")
    is_all = found["pilot_units"] >= found["units"]
    echo(f"out         {out}: {'every unit is played; ' if is_all else ''}the same command without --pilot goes on")


def echo_table(head: Sequence[str], rows: Sequence[Sequence[str]], *, left: Collection[int] = (0,)) -> None:
    """Print rows of text, the columns of ``left`` to the left and the others to the right."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        pairs = enumerate(zip(row, widths, strict=True))
        cells = [text.ljust(width) if at in left else text.rjust(width) for at, (text, width) in pairs]
        echo("  ".join(cells).rstrip())


def number(value: float | None) -> str:
    """Return an amount for reading, ``–`` for what is unknown."""
    if value is None:
        return "–"
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}"


def readable_size(n_bytes: int) -> str:
    """Return a size in GB, MB or kB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB")):
        if n_bytes >= size:
            return f"{n_bytes / size:,.1f} {unit}"
    return f"{n_bytes / 1e3:,.0f} kB"


def duration(seconds: float) -> str:
    """Return a time in seconds, minutes or hours."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
