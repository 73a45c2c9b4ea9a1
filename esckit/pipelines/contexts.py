"""From selected dialogues to the contexts that simulation and RL work on."""

from __future__ import annotations

from collections.abc import Iterable

from esckit.datasets.contexts import SupporterOpening, contexts
from esckit.errors import DataError
from esckit.ledger import derive_seed
from esckit.types import Context, Dialogue, Turn


def build_contexts(
    dialogues: Iterable[Dialogue],
    *,
    run_seed: int,
    per_dialogue: int | None,
    supporter_opening: SupporterOpening,
    situation_first: bool,
) -> tuple[Context, ...]:
    """Return the contexts of merged dialogues, in order.

    Args:
        dialogues: Dialogues whose runs of one speaker are merged.
        run_seed: Seed of the subsample.
        per_dialogue: Keep so many contexts of each dialogue, drawn by the seed; None keeps all.
        supporter_opening: ``drop`` takes a leading supporter turn off the prefix, ``keep`` leaves it.
        situation_first: Insert the situation, where known, as the seeker's first turn.

    Raises:
        DataError: If there is none.
    """
    found: list[Context] = []
    for dialogue in dialogues:
        of_dialogue = list(contexts(dialogue, merged=True, supporter_opening=supporter_opening))
        if per_dialogue is not None:
            by_draw = sorted(of_dialogue, key=lambda context: derive_seed(run_seed, "contexts", context.id))
            kept = {context.id for context in by_draw[:per_dialogue]}
            of_dialogue = [context for context in of_dialogue if context.id in kept]
        found += of_dialogue
    if not found:
        raise DataError(
            "no context", expected="at least one supporter turn with a seeker turn before it", hint="See data.split"
        )
    return tuple(_with_situation(context) if situation_first else context for context in found)


def _with_situation(context: Context) -> Context:
    if not context.scenario.situation:
        return context
    first = Turn(speaker="seeker", text=context.scenario.situation)
    return context.model_copy(update={"turns": (first, *context.turns)})
