"""What critics and judges answer: a name out of a few, yes or no, one JSON object, or the level of a preset.

Reading is strict. A name counts only as whole words, only if no other name stands beside it, and only if nothing denies
it in its own clause. Nothing is repaired or guessed; an answer that cannot be read is never a number.

The levels of the resolution critic have values in quarters, so that the mean of n answers with sum S is the fraction
S/(4n), and "more than one half" is S > 2n. Floats would turn six times "moderately better" into 0.49999999999999994.
"""

from __future__ import annotations

import json
import logging
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, TypeVar

from esckit.errors import ConfigError, ParseError, UnscoredError
from esckit.ledger import Scope
from esckit.records import not_json
from esckit.roles.asking import OnLength, PromptOver, Voice, ask, finished_text
from esckit.text import LINE_END, lines_of
from esckit.types import Reply, Turn

log = logging.getLogger(__name__)

T = TypeVar("T")

_WARN_AFTER = 10
_LOW_MASS = 0.5

_FENCE = re.compile("```|~~~")

_FENCE_LINE = re.compile(r"(?:`{3,}|~{3,})[ \t]*[\w+-]*")

_INLINE_FENCE = re.compile(r"```(?:json\b)?", re.IGNORECASE)

# Whole words; Markdown's underscores are no parts of them.
_BEFORE, _BEHIND = r"(?<![^\W_])", r"(?![^\W_])"

_CLAUSE_END = re.compile(
    rf"[,;:.!?。、–—―]|--|\s-+\s|{_BEFORE}(?:but|although|yet){_BEHIND}|{LINE_END.pattern}",
)

_NEGATION = re.compile(
    rf"{_BEFORE}(?:not|never|no|nobody|none|cannot|hardly|neither|nor|without"
    rf"|(?:is|are|was|were|do|does|did|has|have|had|ca|wo|could|would|should)nt){_BEHIND}|n't{_BEHIND}"
)

# "Not yet" goes on; any other "yet" begins a clause.
_NOT_YET = re.compile(rf"({_BEFORE}(?:not|never)|n't)([\s_*]+(?:as\s+)?)yet{_BEHIND}")

# What is typed for an apostrophe; NFKC would take the acute accent apart.
_APOSTROPHES = re.compile("[\u2018\u2019\u201b\u2032\u02b9\u02bb\u02bc\u00b4`]")


def verdict_text(reply: Reply, on_length: OnLength = "fail") -> str:
    """Return the answer of a reply from which a verdict is to be read.

    Raises:
        ParseError: ``unparsed`` if the reply holds nothing but reasoning, ``too_long`` if it was cut.
    """
    if reply.only_reasoned:
        raise ParseError("reasoning without a verdict", samples=(reply.whole,))
    return finished_text(reply, on_length)


async def ask_verdict(
    voice: Voice, messages: PromptOver, turns: Sequence[Turn], scope: Scope, role: str, parse: Callable[[Reply], T]
) -> T:
    """Ask as :func:`~esckit.roles.asking.ask`, for an answer that is a score.

    Raises:
        UnscoredError: If no attempt gave a readable answer; of the same kind as the last attempt's error.
        BackendError: If the backend failed.
    """
    try:
        return await ask(voice, messages, turns, scope, role, parse)
    except ParseError as error:
        unscored = UnscoredError(error.found, kind=error.kind, expected=error.expected, samples=error.samples)
        unscored.attempts = error.attempts
        raise unscored from error


@dataclass(slots=True)
class MassWatch:
    """Warns once if a critic mostly wants to say something else than what is read.

    Attributes:
        answers: What is read, for the message.
    """

    answers: str
    _total: float = 0.0
    _n: int = 0
    _warned: bool = False

    def add(self, mass: float) -> None:
        """Take the probability, in [0, 1], of all answers that are read together."""
        self._total += mass
        self._n += 1
        if self._n >= _WARN_AFTER and not self._warned and self._total / self._n < _LOW_MASS:
            self._warned = True
            log.warning(
                "critic: %s have a mean probability of only %.2f, so its scores say little",
                self.answers,
                self._total / self._n,
            )


def unfenced(text: str) -> str:
    """Return a text without code fences, whatever language they name."""
    if not _FENCE.search(text):
        return text.strip()
    lines = [line for line in lines_of(text) if not _FENCE_LINE.fullmatch(line.strip())]
    return _INLINE_FENCE.sub("", "\n".join(lines)).strip()


def read_name(text: str, names: Sequence[str]) -> int:
    """Return the index of the one name that an answer says.

    Case, hyphens, quotes, asterisks and punctuation do not count; names are found as whole words, longest first.

    Args:
        text: The answer.
        names: Words, or several words each.

    Raises:
        ParseError: ``unparsed`` if no name occurs, ``ambiguous`` if two different ones do, ``negated`` if a negation
            stands before the name in its clause.
    """
    # Not by IGNORECASE, to which a Turkish i is an i.
    answer = unicodedata.normalize("NFKC", _APOSTROPHES.sub("'", unfenced(text))).casefold()
    answer = _NOT_YET.sub(r"\1\2", answer)
    wanted = [name.casefold().split() for name in names]
    longest_first = sorted(wanted, key=lambda words: -len(" ".join(words)))
    pattern = "|".join(r"[\W_]+".join(map(re.escape, words)) for words in longest_first)
    hits = list(re.finditer(rf"{_BEFORE}(?:{pattern}){_BEHIND}", answer))
    found = {tuple(re.split(r"[\W_]+", hit[0])) for hit in hits}
    if len(found) != 1:
        kind = "ambiguous" if found else "unparsed"
        raise ParseError(f"an answer that says {len(found)} of {len(names)} names", kind=kind, samples=(text,))
    ends = [0, *(end.end() for end in _CLAUSE_END.finditer(answer))]
    at, read = 0, 0
    for hit in hits:
        while at + 1 < len(ends) and ends[at + 1] <= hit.start():
            at += 1
        if _NEGATION.search(answer, max(ends[at], read), hit.start()):
            raise ParseError("an answer that denies what it names", kind="negated", samples=(text,))
        read = hit.end()
    return wanted.index(list(found.pop()))


def parse_yes_no(text: str) -> bool:
    """Return what an answer says: exactly one of the words "yes" and "no", and not denied.

    Raises:
        ParseError: As :func:`read_name`.
    """
    return read_name(text, ("yes", "no")) == 0


def read_json(text: str, keys: Sequence[str], *, what: str) -> dict[str, Any]:
    """Return one JSON object with exactly these keys.

    Args:
        text: The object, with or without code fences.
        keys: Its keys.
        what: What the keys are, for the message.

    Raises:
        ParseError: If it is anything else, or holds a key twice.
    """
    try:
        found: Any = json.loads(unfenced(text), object_pairs_hook=_without_doubles, parse_constant=not_json)
    except (ValueError, RecursionError) as error:
        raise ParseError(f"no JSON object ({error})", samples=(text,)) from error
    if not isinstance(found, dict) or set(found) != set(keys):
        raise ParseError(f"other keys than the {what}", expected=f"exactly {', '.join(keys)}", samples=(text,))
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON; the later of two values would silently win."""
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


@dataclass(frozen=True, slots=True)
class Preset:
    """The levels of a critic.

    Attributes:
        name: Name in recipes.
        levels: Level names in the order of the prompt.
        quarters: Value of each level in quarters, in [-4, 4].
        prompt: Name of the shipped prompt that lists these levels; with ``_letters`` behind it, of the one that
            lists them by letter.
        takes_first: Read answers as PPDPP's code does: the first level, in preset order, that occurs anywhere.
    """

    name: str
    levels: tuple[str, ...]
    quarters: tuple[int, ...]
    prompt: str
    takes_first: bool = False

    @property
    def letters(self) -> tuple[str, ...]:
        """``A``, ``B`` … in the order of the levels."""
        return tuple("ABCDEFGHIJ"[: len(self.levels)])

    def parse(self, text: str) -> int:
        """Return the index of the one level that an answer names.

        Raises:
            ParseError: As :func:`esckit.roles.verdicts.read_name`.
        """
        if self.takes_first:
            # Without any, the rule below says so.
            for index, name in enumerate(self.levels):
                if name.casefold() in text.casefold():
                    return index
        return read_name(text, self.levels)

    def mean(self, counts: Sequence[int]) -> Fraction:
        """Return the exact mean value of parsed answers, in [-1, 1].

        Args:
            counts: Answers per level, at least one in all.
        """
        total = sum(count * quarter for count, quarter in zip(counts, self.quarters, strict=True))
        return Fraction(total, 4 * sum(counts))

    def expectation(self, weights: Sequence[float]) -> Fraction:
        """Return the expected value under level probabilities, rounded to whole millionths."""
        value = sum(weight * quarter / 4 for weight, quarter in zip(weights, self.quarters, strict=True))
        return Fraction(round(value * 1_000_000), 1_000_000)


PRESETS = {
    preset.name: preset
    for preset in (
        Preset(
            "rlff7",
            (
                "Same",
                "Slightly Better",
                "Moderately Better",
                "Significantly Better",
                "Slightly Worse",
                "Moderately Worse",
                "Significantly Worse",
            ),
            (0, 1, 2, 4, -1, -2, -4),
            "critic_resolution",
        ),
        Preset("ppdpp4", ("Worse", "Same", "Better", "Solved"), (-4, -2, 2, 4), "critic_ppdpp4"),
    )
}


def load_preset(name: str) -> Preset:
    """Return a preset by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    if name not in PRESETS:
        raise ConfigError(f"unknown critic preset {name!r}", expected=f"one of {', '.join(PRESETS)}")
    return PRESETS[name]


def future_reward(value: Fraction, k: int) -> Fraction:
    """Return the reward of a candidate, ``(r_k + 1/(k+1)) / 2`` (RLFF-ESC, arXiv 2508.12935).

    Args:
        value: The critic's last value, in [-1, 1].
        k: Exchanges played after the first.
    """
    return (value + Fraction(1, k + 1)) / 2
