"""Joining the turns that one speaker utters in a row, and what a seeker's rating rates."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from typing import Literal, NamedTuple

from esckit.types import Dialogue, Turn, TurnPart

MergeLabel = Literal["first", "last"]


class RatedTurns(NamedTuple):
    """A seeker's rating (1-5) and the indices of the supporter turns that it rates."""

    rating: int
    targets: tuple[int, ...]


def merge_runs(dialogue: Dialogue, *, label: MergeLabel = "first") -> Dialogue:
    """Return the dialogue with adjacent turns of one speaker joined; merging twice equals merging once.

    Texts are joined with one space and repeats stay. Every piece keeps its own label and rating in ``parts``; ids stay.

    Args:
        dialogue: The dialogue, merged or not.
        label: Which labelled piece gives the merged turn its strategy.
    """
    runs = (tuple(run) for _, run in groupby(dialogue.turns, key=lambda turn: turn.speaker))
    resolved = dialogue.taxonomy is not None
    return dialogue.model_copy(update={"turns": tuple(_joined(run, label, resolved) for run in runs)})


def _joined(run: tuple[Turn, ...], label: MergeLabel, resolved: bool) -> Turn:
    """Return one turn for a run of one speaker; once labels are resolved, only a strategy is a label."""
    if len(run) == 1:
        return run[0]
    parts = tuple(part for turn in run for part in turn_parts(turn))
    labelled = [part for part in parts if part.strategy or (part.source_strategy and not resolved)]
    chosen = labelled[0 if label == "first" else -1] if labelled else None
    ratings = [part.feedback for part in parts if part.feedback is not None]
    return Turn(
        speaker=run[0].speaker,
        text=" ".join(part.text for part in parts),
        strategy=chosen.strategy if chosen else None,
        source_strategy=chosen.source_strategy if chosen else None,
        feedback=ratings[-1] if ratings else None,
        parts=parts,
    )


def turn_parts(turn: Turn) -> tuple[TurnPart, ...]:
    """Return the pieces of a turn; a single utterance is its own only piece."""
    if turn.parts:
        return turn.parts
    own = TurnPart(text=turn.text, strategy=turn.strategy, source_strategy=turn.source_strategy, feedback=turn.feedback)
    return (own,)


def feedback_targets(dialogue: Dialogue) -> Iterator[RatedTurns]:
    """Yield each rating with the supporter turns since the previous rating or the start; empty where there are none."""
    targets: list[int] = []
    for index, turn in enumerate(dialogue.turns):
        if turn.speaker == "supporter":
            targets.append(index)
        for part in turn_parts(turn):
            if part.feedback is not None:
                yield RatedTurns(part.feedback, tuple(targets))
                targets.clear()
