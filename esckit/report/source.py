"""What a report reads: a run folder, of which nothing has to be there, and its values as a reader wants them.

Shares are shown as per cent, everything else with as many digits as it deserves; all results are plain text with a
true minus sign, and what is not there is ``–``. Not here: how numbers are computed.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from esckit.documents import parse_json, read_text
from esckit.errors import DataError
from esckit.lineage import read_run
from esckit.records import read_records
from esckit.types import Record

OWN_CORPORA = ("sample:", "world:")


R = TypeVar("R", bound=Record)


@dataclass(frozen=True, slots=True)
class Run:
    """A run folder, open for reading.

    Attributes:
        quotes: True if texts of its dialogues may stand in the report.
        unwritten: Content of JSON files, by name, that are not there yet.
    """

    path: Path
    manifest: Mapping[str, Any]
    quotes: bool
    unwritten: Mapping[str, Any] = field(default_factory=dict)
    _parsed: dict[str, Any] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def name(self) -> str:
        """The folder's own name."""
        return self.path.resolve().name

    @property
    def command(self) -> str:
        """The command that made it."""
        return str(self.manifest["command"])

    @property
    def recipe(self) -> Mapping[str, Any]:
        """Its resolved recipe."""
        return section(self.manifest, "recipe")

    def json(self, name: str) -> Any:
        """Return the content of a JSON file, None if there is none; a file is read once.

        Raises:
            DataError: If it is no JSON.
        """
        if name in self.unwritten:
            return self.unwritten[name]
        if name not in self._parsed:
            path = self.path / name
            self._parsed[name] = parse_json(read_text(path), path) if path.is_file() else None
        return self._parsed[name]

    def object(self, name: str) -> Mapping[str, Any]:
        """Return the object in a JSON file, an empty one where there is none."""
        found = self.json(name)
        return found if isinstance(found, Mapping) else {}

    @property
    def metric_rows(self) -> list[Mapping[str, Any]]:
        """The rows of an evaluation's ``metrics.json``, none before it is finished."""
        return [row for row in self.object("metrics.json").get("metrics") or () if isinstance(row, Mapping)]

    def lines(self, name: str) -> list[dict[str, Any]]:
        """Return the objects of a JSON-lines file, an empty list if there is none; an unfinished last line is left out.

        Raises:
            DataError: If a whole line is no JSON object.
        """
        path = self.path / name
        if not path.is_file():
            return []
        found = []
        for number, raw in enumerate(path.read_bytes().splitlines(keepends=True), start=1):
            if not raw.endswith(b"\n"):
                break
            if not raw.strip():
                continue
            row = parse_json(raw, path, line=number)
            if not isinstance(row, dict):
                raise DataError(f"a JSON {type(row).__name__}", path=str(path), line=number, expected="an object")
            found.append(row)
        return found

    def records(self, kind: type[R], name: str) -> list[R]:
        """Return the records of a file, an empty list if there is none."""
        path = self.path / name
        return list(read_records(kind, path, allow_cut=True)) if path.is_file() else []


def open_run(path: Path, *, quotes: bool = False, unwritten: Mapping[str, Any] | None = None) -> Run:
    """Open a run folder.

    Texts may stand in the report if the data are the sample corpus, the recipe allows it (``report.quotes``), or the
    reader asks for it.

    Raises:
        DataError: If the folder is not a run folder.
    """
    manifest = read_run(path)
    recipe = section(manifest, "recipe")
    data_path = section(recipe, "data").get("path")
    shipped = isinstance(data_path, str) and data_path.startswith(OWN_CORPORA)
    quotes = quotes or shipped or section(recipe, "report").get("quotes") is True
    return Run(path, manifest, quotes, unwritten or {})


def at(of: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path of nested objects, None where there is none."""
    found: Any = of
    for name in path.split("."):
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


def section(of: Mapping[str, Any], path: str) -> Mapping[str, Any]:
    """Return the object at a dotted path of nested objects, an empty one where there is none."""
    found = at(of, path)
    return found if isinstance(found, Mapping) else {}


# ---------------------------------------------------------------- values as text


ABSENT = "–"

_LARGE = 1e6
"""From here on a number is shown with a power of ten."""


def share(value: float | None) -> str:
    """Return a share in [0, 1] as per cent with one decimal."""
    return ABSENT if value is None else f"{100 * value:.1f} %".replace("-", "−")


def decimals_of(values: Iterable[float | None]) -> int | None:
    """Return how many decimals show all of some numbers of one kind; None where each had better be shown by itself.

    The largest has about four significant digits, as :func:`number` shows it, and none but 0 is shown as 0.
    """
    sizes = [abs(value) for value in values if value is not None]
    if not sizes or not all(map(math.isfinite, sizes)) or max(sizes) >= _LARGE:
        return None
    if all(float(size).is_integer() for size in sizes):
        return 0
    smallest = min(filter(None, sizes))
    return next((n for n in range(_decimals(max(sizes)), 6) if smallest >= 0.5 * 10**-n), None)


def _decimals(size: float) -> int:
    return 1 if size >= 100 else 2 if size >= 10 else 3 if size >= 0.01 else 5


def number(value: float | None, decimals: int | None = None) -> str:
    """Return a number: whole ones with thousands separators, others with about four significant digits.

    Args:
        value: The number.
        decimals: How many it has, see :func:`decimals_of`; None decides by the number itself.
    """
    if value is None:
        return ABSENT
    if decimals is not None:
        return f"{value:,.{decimals}f}".replace("-", "−")
    if isinstance(value, int) or (value.is_integer() and abs(value) < 1e15):
        return f"{int(value):,}".replace("-", "−")
    if not math.isfinite(value):
        return str(value)
    size = abs(value)
    text = f"{value:.2e}" if size < 1e-4 or size >= _LARGE else f"{value:.{_decimals(size)}f}"
    return text.replace("-", "−")


def measured(value: float | None, unit: str, decimals: int | None = None) -> str:
    """Return a metric's value in its unit; what has a fixed number of decimals keeps to it."""
    if unit == "share":
        return share(value)
    if unit == "0-100" and value is not None:
        return f"{value:.2f}".replace("-", "−")
    return number(value, decimals)


def interval(row: Mapping[str, Any] | None, unit: str, decimals: int | None = None) -> str:
    """Return ``[low, high]`` of an interval in a metric's unit."""
    if not row or row.get("low") is None or row.get("high") is None:
        return ABSENT
    ends = [measured(float(row[end]), unit, decimals).removesuffix(" %") for end in ("low", "high")]
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
