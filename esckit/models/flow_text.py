r"""The text form ``flow_text/1`` in which a strategy policy reads a dialogue, in training and in use alike.

::

    Scene: {scene}\nSituation: {situation}\nTask: choose the next support strategy.\n      the header
    Seeker: {text}\n                                                                       a turn
    Supporter: {text}\n                                                                    or Supporter [EV]: {text}\n

Every piece is tokenised **by itself** and the token ids are joined. So the ids of a prefix are the beginning of the
ids of every dialogue through it, which tokenising whole strings would break at the borders. The policy is read at the
last token. Control strings of the tokenizer and lines that start with a speaker's label stay text of their turn.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from esckit.controls import Controls
from esckit.lines import as_turn
from esckit.types import Scenario, Turn

FLOW_TEXT = "flow_text/1"
MAX_SITUATION_TOKENS = 256
_TASK = "Task: choose the next support strategy.\n"
_UNKNOWN = "unknown"


class Tokenizer(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    @property
    def bos_token_id(self) -> int | None:
        """Id that opens a text, None if the tokenizer has none."""
        ...

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Special and added tokens by id."""
        ...

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the ids of a text."""
        ...


class TurnTokens(NamedTuple):
    """A turn's ids: the marker, then the words with the closing line end."""

    marker: tuple[int, ...]
    words: tuple[int, ...]

    @property
    def ids(self) -> tuple[int, ...]:
        """All ids of the turn."""
        return self.marker + self.words


def scene(scenario: Scenario) -> str:
    """Return the problem type, with the emotion type if known."""
    known = [part for part in (scenario.problem_type, scenario.emotion_type) if part]
    return ", ".join(known) or _UNKNOWN


class FlowText:
    """Turns dialogues into token ids.

    Args:
        tokenizer: The backbone's tokenizer.
        situation: Put scene and situation into the header; a deployed supporter would not know them.
        strategy_tags: Mark supporter turns with the abbreviation of their strategy.
        abbreviations: Strategy name to abbreviation; needed with ``strategy_tags``.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        situation: bool,
        strategy_tags: bool = False,
        abbreviations: Mapping[str, str] | None = None,
    ) -> None:
        self.situation = situation
        self.strategy_tags = strategy_tags
        self._abbreviations = dict(abbreviations or {}) if strategy_tags else {}
        self._tokenizer = tokenizer
        self._controls = Controls.of(tokenizer)

    def header(self, scenario: Scenario) -> tuple[int, ...]:
        """Return the ids before the first turn; the situation is cut at 256 tokens."""
        bos = self._tokenizer.bos_token_id
        ids = [] if bos is None else [bos]
        if self.situation:
            situation = self._encode(f" {scenario.situation.strip() or _UNKNOWN}")
            ids += self._encode(f"Scene: {scene(scenario)}\n")
            ids += [*self._encode("Situation:"), *situation[:MAX_SITUATION_TOKENS], *self._encode("\n")]
        return (*ids, *self._encode(_TASK))

    def turn(self, turn: Turn, *, strategy: str | None = None) -> TurnTokens:
        """Return the ids of one turn.

        Args:
            turn: The turn.
            strategy: Name of its strategy, if the turn itself does not carry it.
        """
        marker = "Seeker:"
        if turn.speaker == "supporter":
            abbreviation = self._abbreviations.get(strategy or turn.strategy or "")
            marker = f"Supporter [{abbreviation}]:" if abbreviation else "Supporter:"
        words = [*self._encode(f" {as_turn(turn.text)}"), *self._encode("\n")]
        return TurnTokens(tuple(self._encode(marker)), tuple(words))

    def turns(self, turns: Sequence[Turn]) -> tuple[int, ...]:
        """Return the ids of several turns."""
        return tuple(token for turn in turns for token in self.turn(turn).ids)

    def pieces(
        self, scenario: Scenario, turns: Sequence[Turn], *, max_tokens: int | None = None
    ) -> list[tuple[int, ...]]:
        """Return the ids of a prefix, the header's and each turn's.

        Args:
            scenario: The seeker's situation.
            turns: The dialogue so far.
            max_tokens: Above it whole oldest turns after the header go first, see :func:`drop_oldest`.
        """
        header = self.header(scenario)
        pieces = [self.turn(turn).ids for turn in turns]
        if max_tokens is not None:
            pieces = drop_oldest(pieces, max_tokens - len(header))
        return [header, *pieces]

    def prefix(self, scenario: Scenario, turns: Sequence[Turn], *, max_tokens: int | None = None) -> tuple[int, ...]:
        """Return the ids of a whole prefix; see :meth:`pieces`."""
        return tuple(token for piece in self.pieces(scenario, turns, max_tokens=max_tokens) for token in piece)

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(self._controls.neutralise(text), add_special_tokens=False))


def drop_oldest(pieces: Sequence[tuple[int, ...]], budget: int) -> list[tuple[int, ...]]:
    """Return the newest pieces that fit into a number of tokens; of a last piece too long by itself, its end."""
    kept: list[tuple[int, ...]] = []
    left = max(budget, 1)
    for piece in reversed(pieces):
        if len(piece) > left:
            break
        kept.insert(0, piece)
        left -= len(piece)
    return kept or [piece[-left:] for piece in pieces[-1:]]
