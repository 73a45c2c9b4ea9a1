"""Words and sentence ends of texts in any script.

Chinese, Japanese, Thai and their like write no spaces between words; there every character counts as a word.
"""

from __future__ import annotations

import re

TOKENIZER = "words_and_characters/1"
"""Name of :func:`tokenise`: lower-cased words and punctuation marks; single characters in scripts without spaces."""

_SPACELESS = (
    "\u0e00-\u0eff\u0f00-\u0fff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Tibetan, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u3100-\u312f\u31f0-\u31ff"  # radicals, kana, bopomofo
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9d\U00020000-\U0003ffff"  # Han, half-width kana
)
_MARKS = "\u3000-\u3004\u3008-\u3020\u3030-\u303f\uff01-\uff0f\uff1a-\uff20\uff3b-\uff40\uff5b-\uff65"
# Accents, vowel signs and joiners, which belong to their word: "\w" knows letters and digits only.
_SIGNS = (
    "\u0300-\u036f\u0483-\u0487\u0591-\u05bd\u05bf\u05c1\u05c2\u05c4\u05c5\u05c7"  # Latin to Hebrew
    "\u0610-\u061a\u064b-\u065f\u0670\u06d6-\u06dc\u06df-\u06e8\u06ea-\u06ed\u0711\u0730-\u074a"  # Arabic, Syriac
    "\u0900-\u0963\u0966-\u096f\u0971-\u0df3\u200c\u200d"  # Devanagari to Sinhala
)
_TOKEN = re.compile(rf"[{_SPACELESS}]|(?:[^\W{_SPACELESS}]|[{_SIGNS}])+|[^\w\s]")
_WORD = re.compile(rf"[{_SPACELESS}]|[^\s{_SPACELESS}{_MARKS}]+")
_SURROGATE = re.compile("[\ud800-\udfff]")
_CHARACTER = re.compile(f"[{_SPACELESS}]")
_SENTENCES = re.compile(r"^.*(?:[.!?…؟۔।॥։።][\"'”’)»]*(?=\s|$)|[。！？｡။។][\"'”’)」』）]*)", re.DOTALL)


def without_surrogates(text: str) -> str:
    """Return the text with U+FFFD for every lone surrogate, which UTF-8 cannot hold."""
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def tokenise(text: str) -> tuple[str, ...]:
    """Return lower-cased words and single punctuation marks; a typographic apostrophe counts as a plain one."""
    return tuple(_TOKEN.findall(text.replace("\u2019", "'").lower()))


def n_words(text: str) -> int:
    """Return the number of blank-separated words; in a script without spaces every character is one."""
    return sum(1 for _ in _WORD.finditer(text))


def is_spaceless(token: str) -> bool:
    """Return whether a token is a character of a script without spaces."""
    return bool(_CHARACTER.fullmatch(token))


def whole_sentences(text: str) -> str:
    """Return a text without its unfinished last sentence; the text itself if that is its only one."""
    found = _SENTENCES.match(text.rstrip())
    return found.group(0) if found else text
