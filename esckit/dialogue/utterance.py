"""What a spoken reply of AFlow's seeker and supporter may look like (arXiv 2602.08826), and dialogues as lines.

Nothing is repaired: a role label, a strategy tag or a control token where none is allowed makes a reply invalid, and it
is asked for again. Only white space is normalised.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from esckit.dialogue.ask import OnLength, finished_text
from esckit.errors import ParseError
from esckit.lines import as_turn, lines_of, starts_with_label
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Reply, Scenario, Speaker, Turn
from esckit.words import n_words

LEAVES = "</end/>"
RESOLVED = "<ok>"

LABELS: dict[Speaker, str] = {"seeker": "Seeker", "supporter": "Supporter"}
_CONTROL_TOKEN = re.compile(r"</?end/?>|</?ok/?>|<\|[^|<>]*\|>", re.IGNORECASE)


def as_tagged_lines(turns: Iterable[Turn], *, show_strategy: bool) -> str:
    """Return turns as lines ``Seeker: …`` and ``Supporter: …``, or ``Supporter [Clarification]: …`` with tags."""
    return "\n".join(
        f"{LABELS[turn.speaker]} [{turn.strategy}]: {as_turn(turn.text)}"
        if show_strategy and turn.strategy and turn.speaker == "supporter"
        else f"{LABELS[turn.speaker]}: {as_turn(turn.text)}"
        for turn in turns
    )


def scene_of(scenario: Scenario) -> str:
    """Return a scenario's problem type, with the emotion type where it is known."""
    problem = scenario.problem_type or "not stated"
    return f"{problem} ({scenario.emotion_type})" if scenario.emotion_type else problem


def _tag_pattern(taxonomy: Taxonomy) -> re.Pattern[str]:
    names = "|".join(re.escape(name) for name in (*taxonomy.names, *taxonomy.abbrs))
    return re.compile(rf"\[\s*(?:{names})\b[^\]]*\]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class UtteranceRules:
    """The common rules of spoken replies.

    Attributes:
        taxonomy: Whose names and abbreviations in square brackets count as strategy tags.
        max_words: Longest reply in words between white space, at least 1; None sets no limit.
        on_length: What happens to a reply cut at the token limit.
    """

    taxonomy: Taxonomy
    max_words: int | None
    on_length: OnLength
    _tag: re.Pattern[str] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_tag", _tag_pattern(self.taxonomy))

    def text_of(self, reply: Reply) -> str:
        """Return a reply's text with every run of white space as one space.

        Raises:
            ParseError: If the reply was cut and the rules do not allow it, or a later line of it starts with a role
                label (``role_label``).
        """
        text = finished_text(reply, self.on_length)
        if any(map(starts_with_label, lines_of(text)[1:])):
            raise ParseError("a reply in which another turn begins", kind="role_label", samples=(text,))
        return " ".join(text.split())

    def check(self, text: str) -> str:
        """Return an utterance that keeps the rules.

        Raises:
            ParseError: Kind ``blank``, ``control_token``, ``role_label``, ``strategy_tag`` or ``too_long``.
        """
        if not text:
            raise ParseError("a blank reply", kind="blank")
        if _CONTROL_TOKEN.search(text):
            raise ParseError("a control token inside a reply", kind="control_token", samples=(text,))
        if starts_with_label(text):
            raise ParseError("a reply that starts with a role label", kind="role_label", samples=(text,))
        if self._tag.search(text):
            raise ParseError("a strategy tag inside a reply", kind="strategy_tag", samples=(text,))
        n = n_words(text)
        if self.max_words is not None and n > self.max_words:
            raise ParseError(
                f"a reply of {n} words", kind="too_long", expected=f"at most {self.max_words}", samples=(text,)
            )
        return text
