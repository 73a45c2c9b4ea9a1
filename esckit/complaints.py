"""What pydantic finds wrong with a value, in the words of this package. Not here: where it stands in a file."""

from __future__ import annotations

import re

from pydantic_core import ErrorDetails

_PLAIN = {
    "missing": "is missing",
    "extra_forbidden": "is unknown",
    "model_type": "must be a section (a mapping)",
    "dict_type": "must be a section (a mapping)",
    "tuple_type": "must be a list",
    "list_type": "must be a list",
    "too_short": "must not be empty",
    "string_type": "must be text",
    "string_too_short": "must not be empty",
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
}
_BEGINNINGS = (
    ("Value error, ", ""),
    ("Input should be ", "must be "),
    ("String should ", "must "),
    ("Input should ", "must "),
)


def complaint(detail: ErrorDetails) -> str:
    """Return what is wrong with a value, as what it must be: ``must be a whole number``.

    Args:
        detail: One of pydantic's findings.
    """
    kind, text = detail["type"], detail["msg"]
    if kind in _PLAIN:
        return _PLAIN[kind]
    for beginning, ours in _BEGINNINGS:
        if text.startswith(beginning):
            return ours + re.sub(r"^(an?) valid ", r"\1 ", text.removeprefix(beginning))
    return text
