"""Seed dialogues: where a tree starts."""

from __future__ import annotations

from typing import NamedTuple

from esckit.datasets.merge import MergeLabel, merge_runs
from esckit.errors import DataError
from esckit.types import Dialogue, Turn


class Seed(NamedTuple):
    """A seed dialogue cut in two: the root's turns, which become public, and what followed in the corpus."""

    opening: tuple[Turn, ...]
    rest: tuple[Turn, ...]


def cut_seed(dialogue: Dialogue, *, root_turns: int, label: MergeLabel = "first") -> Seed:
    """Return a dialogue's opening and the rest, with runs of one speaker merged.

    Leading supporter turns are dropped. The opening holds the first seeker turn, or as many opening exchanges as
    ``root_turns`` says, and always ends with a seeker turn.

    Args:
        dialogue: The dialogue, merged or not.
        root_turns: Seeker turns in the opening, at least 1; fewer if the dialogue has fewer.
        label: Which labelled piece of a merged turn gives its strategy.

    Raises:
        DataError: If the seeker never speaks.
    """
    turns = merge_runs(dialogue, label=label).turns
    spoken = [number for number, turn in enumerate(turns) if turn.speaker == "seeker"]
    if not spoken:
        raise DataError("a dialogue without a seeker turn", field="turns")
    end = spoken[:root_turns][-1] + 1
    return Seed(
        tuple(_plain(turn, with_strategy=False) for turn in turns[spoken[0] : end]),
        tuple(_plain(turn, with_strategy=True) for turn in turns[end:]),
    )


def _plain(turn: Turn, *, with_strategy: bool) -> Turn:
    """Return a turn without what only a corpus knows; an opening may come from a corpus of another taxonomy."""
    return Turn(speaker=turn.speaker, text=turn.text, strategy=turn.strategy if with_strategy else None)
