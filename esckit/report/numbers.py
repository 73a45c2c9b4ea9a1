"""Numbers as a reader wants them: shares as per cent, everything else with as many digits as it deserves.

All results are plain text with a true minus sign; what is not there is ``–``. Not here: how numbers are computed.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

ABSENT = "–"


def share(value: float | None) -> str:
    """Return a share in [0, 1] as per cent with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f} %".replace("-", "−")


def number(value: float | None) -> str:
    """Return a number: whole ones with thousands separators, others with about four significant digits."""
    if value is None:
        return ABSENT
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    if size < 1e-4 or size >= 1e6:
        text = f"{value:.2e}"
    else:
        text = f"{value:.{1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.01 else 5}f}"
    return text.replace("-", "−")


def measured(value: float | None, unit: str) -> str:
    """Return a metric's value in its unit."""
    if unit == "share":
        return share(value)
    if unit == "0-100" and value is not None:
        return f"{value:.2f}".replace("-", "−")
    return number(value)


def interval(row: Mapping[str, Any] | None, unit: str) -> str:
    """Return ``[low, high]`` of an interval in a metric's unit."""
    if not row or row.get("low") is None or row.get("high") is None:
        return ABSENT
    ends = [measured(float(row[end]), unit).removesuffix(" %") for end in ("low", "high")]
    return f"[{ends[0]}, {ends[1]}]"


def signed(value: float | None, unit: str) -> str:
    """Return a difference with its sign; of shares in percentage points."""
    if value is None:
        return ABSENT
    text = f"{100 * value:.1f}" if unit == "share" else measured(value, unit)
    sign = "+" if value > 0 and not text.startswith("+") else ""
    return sign + text.replace("-", "−") + (" pp" if unit == "share" else "")


def p_value(value: float | None) -> str:
    """Return a p-value with three decimals; small ones as ``< 0.001``."""
    if value is None:
        return ABSENT
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def plain(value: Any) -> str:
    """Return a value of a recipe or manifest on one line."""
    if value is None or value == {} or value == []:
        return ABSENT
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value) if isinstance(value, float) else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {plain(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(plain(item) for item in value)
    return str(value)


def flattened(value: Any, prefix: str = "") -> dict[str, float]:
    """Return the numbers in nested objects by dotted path; lists, texts and truth values are left out."""
    if isinstance(value, Mapping):
        found: dict[str, float] = {}
        for key, inner in value.items():
            found |= flattened(inner, f"{prefix}.{key}" if prefix else str(key))
        return found
    if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value):
        return {prefix: value}
    return {}
