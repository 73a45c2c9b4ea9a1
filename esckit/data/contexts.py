"""Merged turns, ratings and contexts: every point of a corpus dialogue at which a supporter answered.

Adjacent turns of one speaker are joined, a seeker's rating is given to the supporter turns that it rates, and a
dialogue is cut into contexts (simulation and RL) or into an opening and the rest (search). The situation is not part of
a prefix: putting it into a prompt is a recipe's explicit switch, because it gives the problem away. Cutting to a number
of tokens belongs to training.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Iterator, Sequence
from itertools import dropwhile, groupby, pairwise
from typing import Literal, NamedTuple

from esckit.config import sections
from esckit.errors import DataError
from esckit.ledger import derive_seed
from esckit.sequences import Computed
from esckit.types import Context, Dialogue, Scenario, Turn, TurnPart

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


SupporterOpening = Literal["keep", "drop"]


def contexts(
    dialogue: Dialogue,
    *,
    last_turns: int | None = None,
    supporter_opening: SupporterOpening = "keep",
    merged: bool | None = None,
) -> Iterator[Context]:
    """Yield a context for every supporter turn with at least one turn before it.

    Args:
        dialogue: The dialogue, merged or not.
        last_turns: Keep only this many turns of each prefix, the latest (at least 1); None keeps all.
        supporter_opening: ``drop`` takes supporter turns off the front of a prefix, counts them in ``n_dropped_turns``,
            and gives no context where nothing is left.
        merged: Whether the dialogue went through :func:`~esckit.data.contexts.merge_runs`, which the ids show (``#m3``
            instead of ``#3``). None takes a dialogue in which the speakers alternate as merged: merging would not
            change it, so its indices mean the same turns.
    """
    if last_turns is not None and last_turns < 1:
        raise ValueError(f"last_turns must be at least 1, not {last_turns}")
    if merged is None:
        merged = all(left.speaker != right.speaker for left, right in pairwise(dialogue.turns))
    mark = "#m" if merged else "#"
    for index in range(len(dialogue.turns)):
        prefix = _prefix(dialogue, index, last_turns, supporter_opening)
        if prefix:
            yield _context(dialogue, index, mark, prefix)


def _prefix(
    dialogue: Dialogue, index: int, last_turns: int | None, supporter_opening: SupporterOpening
) -> tuple[Turn, ...]:
    """Return the prefix of the context that a supporter's turn answers; empty if the turn has no context."""
    if dialogue.turns[index].speaker != "supporter":
        return ()
    prefix = dialogue.turns[:index] if last_turns is None else dialogue.turns[max(0, index - last_turns) : index]
    return after_opening(prefix) if supporter_opening == "drop" else prefix


def context_before(dialogue: Dialogue, at: int) -> Context:
    """Return the context before a turn of a merged dialogue, or after its last turn (``at`` is the number of turns)."""
    return _context(dialogue, at, "#m", dialogue.turns[:at])


def _context(dialogue: Dialogue, index: int, mark: str, prefix: tuple[Turn, ...]) -> Context:
    return Context(
        id=f"{dialogue.id}{mark}{index}",
        dialogue_id=dialogue.id,
        scenario=dialogue.scenario,
        turns=prefix,
        n_dropped_turns=index - len(prefix),
        reference=dialogue.turns[index] if index < len(dialogue.turns) else None,
    )


class Contexts(Computed[Context]):
    """The contexts of merged dialogues, each cut when it is asked for; in memory are two numbers of each.

    Args:
        ids: Ids of the dialogues.
        owners: Number of each context's dialogue.
        answers: The turn of the dialogue that answers each context.
        cut: Returns the context of a dialogue before a turn, by their numbers.

    Attributes:
        ids: Ids of the contexts, in order.
        n_dialogues: Dialogues that have a context.
    """

    def __init__(
        self, ids: Sequence[str], owners: array[int], answers: array[int], cut: Callable[[int, int], Context]
    ) -> None:
        super().__init__(len(owners), lambda at: cut(owners[at], answers[at]))
        self.ids = Computed(len(owners), lambda at: f"{ids[owners[at]]}#m{answers[at]}")
        self.n_dialogues = len(set(owners))


def build_contexts(dialogues: Sequence[Dialogue], wanted: sections.Contexts, *, run_seed: int) -> Contexts:
    """Return the contexts of merged dialogues, in order.

    Args:
        dialogues: Dialogues whose runs of one speaker are merged.
        wanted: Which of their contexts, and how they are cut.
        run_seed: Seed of the subsample.

    Raises:
        DataError: If there is none.
    """
    ids, owners, answers = list[str](), array("I"), array("I")
    for number, dialogue in enumerate(dialogues):
        turns = [at for at in range(len(dialogue.turns)) if _prefix(dialogue, at, None, wanted.supporter_opening)]
        if wanted.per_dialogue is not None:
            drawn = {at: derive_seed(run_seed, "contexts", f"{dialogue.id}#m{at}") for at in turns}
            turns = sorted(sorted(turns, key=drawn.__getitem__)[: wanted.per_dialogue])
        ids.append(dialogue.id)
        owners.extend([number] * len(turns))
        answers.extend(turns)

    def cut(number: int, at: int) -> Context:
        dialogue = dialogues[number]
        found = _context(dialogue, at, "#m", _prefix(dialogue, at, None, wanted.supporter_opening))
        if not wanted.situation_first or not found.scenario.situation:
            return found
        first = Turn(speaker="seeker", text=found.scenario.situation)
        return found.model_copy(update={"turns": (first, *found.turns)})

    found = Contexts(ids, owners, answers, cut)
    if not found:
        raise DataError(
            "no context", expected="at least one supporter turn with a seeker turn before it", hint="See data.split"
        )
    return found


def require_situations(scenarios: Sequence[Scenario]) -> None:
    """Refuse scenarios with which no talk can begin.

    Raises:
        DataError: If one has no situation, with which the seeker opens.
    """
    without = [scenario.id for scenario in scenarios if not scenario.situation.strip()]
    if without:
        raise DataError(
            f"{len(without)} scenarios without a situation, such as {', '.join(without[:3])}",
            expected="a situation in each: the seeker opens with it",
        )


def openings(dialogues: Sequence[Dialogue]) -> tuple[Context, ...]:
    """Return where a talk with the seeker of each dialogue begins: with its situation, as in self-play.

    Raises:
        DataError: If a dialogue has no situation.
    """
    require_situations([dialogue.scenario for dialogue in dialogues])
    return tuple(
        Context(
            id=f"{dialogue.id}#m0",
            dialogue_id=dialogue.id,
            scenario=dialogue.scenario,
            turns=(Turn(speaker="seeker", text=dialogue.scenario.situation),),
        )
        for dialogue in dialogues
    )


class Seed(NamedTuple):
    """A seed dialogue cut in two: the root's turns, which become public, and what followed in the corpus."""

    opening: tuple[Turn, ...]
    rest: tuple[Turn, ...]


def cut_seed(dialogue: Dialogue, *, root_turns: int, label: MergeLabel = "first") -> Seed:
    """Return a dialogue's opening and the rest, with runs of one speaker merged.

    Leading supporter turns are dropped. The opening holds the first seeker turn, or as many opening exchanges as
    ``root_turns`` says, and always ends with a seeker turn. After a last seeker turn that nobody answers nothing is
    left to decide, so it belongs to the opening only if there is no other.

    Args:
        dialogue: The dialogue, merged or not.
        root_turns: Seeker turns in the opening, at least 1; fewer if fewer are answered.
        label: Which labelled piece of a merged turn gives its strategy.

    Raises:
        DataError: If the seeker never speaks.
    """
    turns = merge_runs(dialogue, label=label).turns
    spoken = [number for number, turn in enumerate(turns) if turn.speaker == "seeker"]
    if not spoken:
        raise DataError("a dialogue without a seeker turn", field="turns")
    answered = [number for number in spoken if number + 1 < len(turns)] or spoken[:1]
    end = answered[:root_turns][-1] + 1
    return Seed(
        tuple(_plain(turn, with_strategy=False) for turn in turns[spoken[0] : end]),
        tuple(_plain(turn, with_strategy=True) for turn in turns[end:]),
    )


def _plain(turn: Turn, *, with_strategy: bool) -> Turn:
    """Return a turn without what only a corpus knows; an opening may come from a corpus of another taxonomy."""
    return Turn(speaker=turn.speaker, text=turn.text, strategy=turn.strategy if with_strategy else None)


def after_opening(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return what a supporter reads: chat begins with the seeker, so a supporter's opening is left out."""
    return tuple(dropwhile(lambda turn: turn.speaker == "supporter", turns))
