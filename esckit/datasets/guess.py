"""What a file that is no JSON corpus looks like, so that the error can say so."""

from __future__ import annotations

import json
import re

from esckit.datasets.text import json_type

_PYTHON = re.compile(r"[\s\[({]*u?'")

READABLE = "a JSON array or JSON lines in format esconv, esconv-hub, ppdpp, extes or jsonl"
PYTHON_LITERALS = "what looks like Python literals (single quotes)"


def is_python(text: str) -> bool:
    """Return whether a text begins as a printed Python list or dict of strings does."""
    return _PYTHON.match(text) is not None


def what_it_is(text: str) -> str:
    """Return a phrase for the beginning of a file: Python literals, a JSON scalar, TSV, CSV, or text."""
    if is_python(text):
        return PYTHON_LITERALS
    lines = [line for line in text.split("\n") if line.strip()]
    if not lines:
        return "an empty file"
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        pass
    else:
        return f"{json_type(value)} at the top level"
    if all("\t" in line for line in lines[:5]):
        return "what looks like TSV (tabs between columns)"
    if all("," in line for line in lines[:5]):
        return "what looks like CSV (commas between columns)"
    return "text that is no JSON"
