"""Dialogues as lines of text: what ends a line, and what labels a speaker.

One definition of both, for whoever cleans a reply and for whoever renders turns, so that no turn can hold a line that
reads as another speaker's.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from esckit.types import Speaker

LINE_END = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")

_NAMES: dict[Speaker, str] = {
    "seeker": r"patient|(?:help[- ]?)?seeker|client|user|human|求助者|来访者|患者|病人|用户",
    "supporter": r"therapist|supporter|helper|counsell?or|assistant|ai|支持者|帮助者|咨询师|治疗师|助手",
}
_OTHERS = r"system|系统"
# All counts are bounded, or never tried again, so that a label is found or not in linear time.
_LABEL = (
    r"\s*+(?:[\W_]{{1,16}})?(?:(?:\d{{1,2}}|[a-z])[.)][\W_]{{0,8}})?(?:{names})"
    r"(?:\s?#?\d{{1,2}})?(?:\s?[\[(【][^\[\]()【】\n]{{1,40}}[\])】])?[\W_]{{0,6}}?[:﹕︓∶꞉][*_]{{0,3}}"
)
# As narrow characters, one for one.
_NARROW = {wide: wide - 0xFEE0 for wide in range(0xFF01, 0xFF5F)}


def _label(*names: str) -> re.Pattern[str]:
    return re.compile(_LABEL.format(names="|".join(names)), re.IGNORECASE)


_LABEL_OF = {speaker: _label(names) for speaker, names in _NAMES.items()}
_ANY_LABEL = _label(*_NAMES.values(), _OTHERS)


_HEADING = re.compile(r"\s*([^\W_][^\n{}:]{0,60}):")


def lines_of(text: str) -> list[str]:
    """Return the lines of a text, without their ends."""
    return LINE_END.split(text)


def starts_with_label(text: str) -> bool:
    """Return whether a line starts with the label of a speaker."""
    return bool(_ANY_LABEL.match(text.translate(_NARROW)))


def without_label(text: str, speaker: Speaker) -> str:
    """Return a line without a label of this speaker before it."""
    label = _LABEL_OF[speaker].match(text.translate(_NARROW))
    return text[label.end() :].lstrip() if label else text


def headings_of(text: str) -> frozenset[str]:
    """Return what stands before the colon in the lines of a prompt that open a part of it (``Reply 1``).

    Labels of speakers are none: a prompt may show them, and transcripts that are filled in consist of them.
    """
    opening = (line for line in lines_of(text) if not starts_with_label(line))
    return frozenset(found[1].casefold() for line in opening if (found := _HEADING.match(line)))


def starts_with_one_of(headings: frozenset[str]) -> Callable[[str], bool]:
    """Return a test whether a line opens a part of a prompt."""

    def starts(line: str) -> bool:
        found = _HEADING.match(line)
        return found is not None and found[1].casefold() in headings

    return starts


def as_turn(text: str, is_label: Callable[[str], bool] = starts_with_label) -> str:
    """Return a turn's text as it may stand behind a label: a line of it that starts with a label goes on instead.

    A text of which no line but the first starts with a label stays as it is.

    Args:
        text: What was said.
        is_label: Which lines start with a label.
    """
    first, *rest = lines_of(text)
    if not any(map(is_label, rest)):
        return text
    pieces = [first]
    for line in rest:
        if not is_label(line):
            pieces.append(f"\n{line}")
            continue
        while len(pieces) > 1 and not pieces[-1].strip():
            pieces.pop()
        pieces.append(f" {line.lstrip()}")
    return "".join(pieces)
