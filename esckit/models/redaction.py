"""Blotting a secret out of foreign text, however a server wrote it down."""

from __future__ import annotations

import base64
import re
from html.entities import html5

_SHORTEST_SECRET = 8
_MARK = "[key]"


class Redactor:
    """Replaces a secret by ``[key]``: as it is, escaped as in JSON, a URL or HTML, in hex, and inside Base64.

    Args:
        secret: Printable ASCII. Shorter ones than 8 characters are dummies such as ``EMPTY``: no secrets, and found
            everywhere.
    """

    __slots__ = ("_pattern",)

    def __init__(self, secret: str) -> None:
        self._pattern: re.Pattern[str] | None = None
        if len(secret) >= _SHORTEST_SECRET:
            written = [_escaped(text) for text in (secret, *_in_base64(secret.encode()))]
            self._pattern = re.compile("|".join([*written, f"(?i:{secret.encode().hex()})"]))

    def __repr__(self) -> str:
        """Return the name; the pattern holds the secret."""
        return "Redactor()"

    def __call__(self, text: str) -> str:
        """Return the text without the secret."""
        return self._pattern.sub(_MARK, text) if self._pattern else text


def _escaped(text: str) -> str:
    """Return a pattern for a text each of whose characters may be escaped, also more than once."""
    return "".join(map(_one_escaped, text))


def _one_escaped(char: str) -> str:
    code = ord(char)
    names = "".join(f"|{re.escape(name)}" for name, meant in html5.items() if meant == char)
    forms = (
        rf"\\{{0,7}}{re.escape(char)}",
        rf"\\{{1,7}}(?i:u00{code:02x}|u\{{0{{0,4}}{code:x}\}}|x{code:02x})",
        rf"%(?:25){{0,3}}(?i:{code:02x})",
        rf"&(?:amp;){{0,3}}(?i:\#0{{0,4}}{code};?|\#x0{{0,4}}{code:x};?{names})",
    )
    return f"(?:{'|'.join(forms)})"


def _in_base64(secret: bytes) -> set[str]:
    """Return what Base64 of any text that holds the secret must hold, in both alphabets and at each of 3 alignments."""
    found = set()
    for n_before in range(3):
        encoded = base64.b64encode(bytes(n_before) + secret).decode().rstrip("=")
        # The first and the last characters also depend on what stands around the secret.
        first = (0, 2, 3)[n_before]
        last = len(encoded) - ((n_before + len(secret)) % 3 != 0)
        inner = encoded[first:last]
        found |= {inner, inner.translate(str.maketrans("+/", "-_"))}
    return found
