"""Strict JSON: no key twice, no NaN, no endless integers, and errors that say where.

Such faults do not stop the parser, so that the rest of an array can still be read; they come back beside the value.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from typing import Any, NamedTuple

from esckit.text import quoted

MAX_DIGITS = 4_300

_LITERALS = ("true", "false", "null", "NaN", "Infinity", "-Infinity")

_CUT_ESCAPE = re.compile(r"\\?u?[0-9A-Fa-f]{0,3}")

_SPACE = re.compile(r"[ \t\n\r]*")


class Fault(NamedTuple):
    """Something that parses, but must not be accepted."""

    found: str
    expected: str


class Decoded(NamedTuple):
    """A parsed value, the position after it, and the first fault in it."""

    value: Any
    end: int
    fault: Fault | None


class StrictDecoder:
    """Parses JSON values out of a text. Not for concurrent use."""

    def __init__(self) -> None:
        self._faults: list[Fault] = []
        self._decoder = json.JSONDecoder(
            object_pairs_hook=self._object, parse_int=self._int, parse_constant=self._constant
        )

    def at(self, text: str, start: int) -> Decoded:
        """Parse the value that begins exactly at a position.

        Raises:
            json.JSONDecodeError: If there is none.
            RecursionError: If it is nested too deeply.
        """
        self._faults.clear()
        value, end = self._decoder.raw_decode(text, start)
        return Decoded(value, end, self._faults[0] if self._faults else None)

    def whole(self, text: str) -> Decoded:
        """Parse a text that holds one value and nothing else; raises as :meth:`at` does."""
        decoded = self.at(text, skip_space(text, 0))
        end = skip_space(text, decoded.end)
        if end != len(text):
            raise json.JSONDecodeError("Extra data", text, end)
        return decoded

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            twice = Counter(key for key, _ in pairs).most_common(1)[0][0]
            self._faults.append(Fault(f"the key {quoted(twice)} twice in one object", "every key once"))
        return found

    def _int(self, digits: str) -> int:
        n_digits = len(digits.lstrip("-"))
        if n_digits > MAX_DIGITS:
            self._faults.append(Fault(f"an integer of {n_digits:,} digits", f"at most {MAX_DIGITS:,} digits"))
            return 0
        return int(digits)

    def _constant(self, name: str) -> None:
        self._faults.append(Fault(f"the value {name}", "a number that JSON knows"))


def skip_space(text: str, position: int) -> int:
    """Return the position of the next character that is not JSON white space."""
    found = _SPACE.match(text, position)
    return found.end() if found else position


def ends_early(error: json.JSONDecodeError) -> bool:
    """Return whether the text stops where more was needed, rather than being wrong."""
    if error.msg.startswith("Unterminated string"):
        return True
    rest = error.doc[error.pos : error.pos + 12].rstrip()
    if error.msg == "Extra data" or len(error.doc.rstrip()) > error.pos + len(rest):
        return False
    if error.msg.startswith("Invalid \\"):
        return _CUT_ESCAPE.fullmatch(rest) is not None
    return not rest or (error.msg == "Expecting value" and any(word.startswith(rest) for word in _LITERALS))
