"""What a conversation is: scenario, turns, dialogue, and a context taken from one."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from esckit.types.record import Record

Speaker = Literal["seeker", "supporter"]


class Scenario(Record):
    """The seeker's private situation."""

    id: str
    situation: str = ""
    emotion_type: str | None = None
    problem_type: str | None = None
    experience_type: str | None = None


class TurnPart(Record):
    """One utterance inside a merged turn."""

    text: str
    strategy: str | None = None
    source_strategy: str | None = None
    feedback: int | None = None


class Turn(Record):
    """One speaker's utterance, or several merged ones.

    Attributes:
        strategy: The support strategy in the dialogue's taxonomy, None where unlabelled.
        source_strategy: The label exactly as the source has it.
        feedback: Rating 1-5 on the seeker turn that carries it; it rates supporter turns *before* it.
        parts: The pieces of a merged turn in order; empty if the turn is a single utterance.
    """

    speaker: Speaker
    text: str
    strategy: str | None = None
    source_strategy: str | None = None
    feedback: int | None = None
    parts: tuple[TurnPart, ...] = ()


class Survey(Record):
    """What seeker and supporter answered after the conversation; ratings 1-5, never filled in."""

    initial_intensity: int | None = None
    final_intensity: int | None = None
    empathy: int | None = None
    relevance: int | None = None
    supporter_relevance: int | None = None
    answers: dict[str, str | None] = Field(default_factory=dict)


class Source(Record):
    """Where a dialogue came from: base name of the file and 0-based record index."""

    corpus: str
    format: str
    file: str
    record: int
    split: str | None = None


class Dialogue(Record):
    """One conversation of a corpus.

    Attributes:
        taxonomy: The taxonomy that ``Turn.strategy`` is in.
        mapping: The mapping by which the strategies got there, None if the corpus uses the taxonomy itself.
    """

    SCHEMA: ClassVar[str] = "esckit.dialogue/1"

    scenario: Scenario
    turns: tuple[Turn, ...]
    survey: Survey | None = None
    source: Source | None = None
    taxonomy: str | None = None
    mapping: str | None = None

    @property
    def id(self) -> str:
        """The dialogue's id, which is its scenario's."""
        return self.scenario.id


class Context(Record):
    """A prefix taken from a corpus, ready for a supporter's answer.

    Attributes:
        turns: The prefix, oldest turn first.
        n_dropped_turns: Turns cut from the front of the prefix.
        reference: The supporter turn that followed in the corpus.
    """

    SCHEMA: ClassVar[str] = "esckit.context/1"

    id: str
    dialogue_id: str
    scenario: Scenario
    turns: tuple[Turn, ...]
    n_dropped_turns: int = 0
    reference: Turn | None = None
