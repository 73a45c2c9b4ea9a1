"""What was said in a chat: a value. Whatever happens in a chat makes a new one of it.

A talk is a list of entries: what the user said, and what came of it. A reply that failed or was stopped leaves its
entry without one. As a dialogue (:meth:`Talk.dialogue`) it is read by every other command.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

from pydantic import Field

from esckit.data.contexts import merge_runs
from esckit.types import Dialogue, Failure, Generation, Record, Scenario, Source, StopReason, Turn, Usage

CORPUS = "chat"
"""The name of the corpus that a saved conversation says it is of."""


class Entry(Record):
    """A line of ``entries.jsonl``: what the user said, and what came of it.

    Attributes:
        t: 1-based exchange.
        draw: How often the reply was asked for before; it enters every seed.
        seeker: What the user said.
        notice: What in it brought up the notice on crises, as ``locale/topic``.
        strategy: Of the reply; None where nobody named one.
        is_forced: Whether the user named it.
        probabilities: π(a|s) of the strategist in taxonomy order; None without a strategist.
        values: V(s, a) in the same order; None from a strategist that has none.
        supporter: The reply; None if there is none.
        end: Why the supporter's model stopped; None where no model was asked.
        failure: Why there is no reply; of kind ``stopped`` if the user stopped it.
        usage: Calls and tokens per role.
    """

    SCHEMA: ClassVar[str] = "esckit.chat-entry/1"

    t: int = Field(ge=1)
    draw: int = Field(default=0, ge=0)
    seeker: str
    notice: tuple[str, ...] = ()
    strategy: str | None = None
    is_forced: bool = False
    probabilities: tuple[float, ...] | None = None
    values: tuple[float, ...] | None = None
    supporter: Generation | None = None
    end: StopReason | None = None
    failure: Failure | None = None
    usage: dict[str, Usage] = Field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Talk:
    """A conversation.

    Attributes:
        scenario: Its id, and what is known of the user.
        entries: What was said, oldest first.
        taxonomy: Name of the taxonomy that the strategies are in; None where there is none.
    """

    scenario: Scenario
    entries: tuple[Entry, ...] = ()
    taxonomy: str | None = None

    @property
    def last(self) -> Entry | None:
        """The latest entry; None at the beginning."""
        return self.entries[-1] if self.entries else None

    def heard(self, text: str, notice: Sequence[str] = ()) -> Talk:
        """Return the talk after the user said something."""
        entry = Entry(t=len(self.entries) + 1, seeker=text, notice=tuple(notice))
        return replace(self, entries=(*self.entries, entry))

    def with_last(self, entry: Entry) -> Talk:
        """Return the talk with another latest entry."""
        return replace(self, entries=(*self.entries[:-1], entry))

    def without_last(self) -> Talk:
        """Return the talk without the latest exchange."""
        return replace(self, entries=self.entries[:-1])

    def asked_again(self) -> Talk:
        """Return the talk in which the latest reply is open again, to be drawn anew."""
        last = self.entries[-1]
        return self.with_last(Entry(t=last.t, draw=last.draw + 1, seeker=last.seeker, notice=last.notice))

    def dialogue(self) -> Dialogue:
        """Return it as a dialogue of a corpus, utterance by utterance."""
        turns: list[Turn] = []
        for entry in self.entries:
            turns.append(Turn(speaker="seeker", text=entry.seeker))
            if entry.supporter is not None:
                turns.append(Turn(speaker="supporter", text=entry.supporter.response, strategy=entry.strategy))
        source = Source(corpus=CORPUS, format="jsonl", file="dialogue.jsonl", record=0)
        return Dialogue(scenario=self.scenario, turns=tuple(turns), source=source, taxonomy=self.taxonomy)

    def turns(self) -> tuple[Turn, ...]:
        """Return the turns as roles read them: what stands unanswered is one turn with what follows it."""
        return merge_runs(self.dialogue()).turns


_NO_ID = re.compile(r"[^A-Za-z0-9._:]+")


def talk_id(name: str) -> str:
    """Return the id of a conversation that is called so."""
    return _NO_ID.sub("-", name)[:64].strip("-") or CORPUS
