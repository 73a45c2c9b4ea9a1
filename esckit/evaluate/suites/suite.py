"""What every suite hands to the pipeline: its cases, what they will cost, and what plays one of them.

What the suites on a corpus share: its dialogues, merged and not, and their contexts.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import dropwhile
from typing import TYPE_CHECKING, Any, TypeAlias

from esckit.config.sections import DataConfig
from esckit.data.contexts import contexts
from esckit.data.selection import Selection, select_dialogues
from esckit.evaluate.cases import Case
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.ledger import derive_seed
from esckit.roles.cast import Casting
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import Context, Dialogue, Turn

if TYPE_CHECKING:
    from esckit.predict.predictions import Prediction


Done = Mapping[str, Mapping[str, Case]]
"""Cases of this run that are there already, by file and id."""


Player = Callable[["Unit"], Awaitable[Case]]

Prepare = Callable[[Casting, Done], Player]


@dataclass(frozen=True, slots=True)
class Unit:
    """One case to be played.

    Attributes:
        id: Stable id, also of its seeds.
        dialogue_id: The resampling unit.
        what: What the suite needs to play it.
    """

    id: str
    dialogue_id: str
    what: Any = None


@dataclass(frozen=True, slots=True)
class Work:
    """One file of cases.

    Attributes:
        suite: The suite.
        file: Name of its file under ``examples/``, without ending; a suite may have several.
        kind: Class of its cases.
        units: In the order of the file.
        calls: Calls to models per role at most, without asking again.
        prepare: Returns what plays a case, given the roles and the files before.
        roles: Roles whose models it needs; without any, no model is loaded for it.
        left_out: Counted contexts that are no case, by reason.
        conditions: What else must be equal for two runs to be compared on this file.
    """

    suite: str
    file: str
    kind: type[Case]
    units: tuple[Unit, ...]
    calls: dict[str, int]
    prepare: Prepare
    roles: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)


Predictions: TypeAlias = "Mapping[str, Prediction]"


def has_strategies(predictions: Predictions | None) -> bool:
    """Return whether a predictions file speaks about strategies at all."""
    return predictions is not None and any(entry.strategy is not None for entry in predictions.values())


def has_replies(predictions: Predictions | None) -> bool:
    """Return whether a predictions file holds replies at all."""
    return predictions is not None and any(entry.reply is not None for entry in predictions.values())


@dataclass(frozen=True)
class Material:
    """The data of an evaluation, read when a suite asks for them.

    Attributes:
        data: The recipe's section; None where no suite works on a corpus.
        wanted: Taxonomy that labels are wanted in; None takes what the corpus and its mapping give.
        with_labels: Whether a suite needs the corpus's labels.
    """

    data: DataConfig | None
    wanted: str | None
    with_labels: bool

    @classmethod
    def of(cls, recipe: EvaluateRecipe) -> Material:
        """Return the material of a recipe."""
        settings = recipe.settings
        gold = "strategy" in recipe.suites and settings.strategy.source == "gold"
        told = {"response", "pairwise"} & set(recipe.suites) and settings.response.strategy == "gold"
        return cls(recipe.data, recipe.taxonomy, gold or bool(told))

    @cached_property
    def merged(self) -> Selection:
        """The dialogues with runs of one speaker joined."""
        return self._select(merge=True)

    @cached_property
    def unmerged(self) -> Selection:
        """The dialogues utterance by utterance."""
        return self._select(merge=False)

    def _select(self, *, merge: bool) -> Selection:
        assert self.data is not None
        data = DataConfig.model_validate({**self.data.model_dump(), "merge": merge})
        return select_dialogues(data, taxonomy=self.wanted if self.with_labels else None)

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the dialogues; empty without a corpus."""
        return self.merged.ids if self.data is not None else ()

    @cached_property
    def taxonomy(self) -> Taxonomy | None:
        """The taxonomy that is wanted, else the one of the labels."""
        if self.wanted is not None:
            return load_taxonomy(self.wanted)
        if self.data is None or self.merged.taxonomy is None:
            return None
        return self.merged.strategies or load_taxonomy(self.merged.taxonomy)

    def reply_contexts(self) -> Iterator[Context]:
        """Yield the contexts that a supporter answers: each ends in a seeker turn."""
        for dialogue in self.merged.dialogues:
            yield from contexts(dialogue, merged=True)

    def all_context_ids(self, unit: str) -> set[str]:
        """Return the ids that a predictions file may name."""
        ids = {context.id for context in self.reply_contexts()}
        for dialogue in self.merged.dialogues if unit == "turn" else self.unmerged.dialogues:
            ids |= {context.id for context in decisions(dialogue, merged=unit == "turn", openings=True)}
        return ids


def decisions(dialogue: Dialogue, *, merged: bool, openings: bool) -> Iterator[Context]:
    """Yield a context for every supporter turn; ``openings`` also for those without a turn before them."""
    if openings and dialogue.turns and dialogue.turns[0].speaker == "supporter":
        yield Context(
            id=f"{dialogue.id}{'#m' if merged else '#'}0",
            dialogue_id=dialogue.id,
            scenario=dialogue.scenario,
            turns=(),
            reference=dialogue.turns[0],
        )
    yield from contexts(dialogue, merged=merged)


def after_opening(turns: Sequence[Turn]) -> tuple[Turn, ...]:
    """Return what a supporter reads: chat begins with the seeker, so a supporter's opening goes."""
    return tuple(dropwhile(lambda turn: turn.speaker == "supporter", turns))


def sampled(found: list[Context], *, run_seed: int, purpose: str, per_dialogue: int | None) -> list[Context]:
    """Return a seeded subsample of each dialogue's contexts, in order."""
    if per_dialogue is None:
        return found
    by_dialogue: dict[str, list[Context]] = {}
    for context in found:
        by_dialogue.setdefault(context.dialogue_id, []).append(context)
    kept = {
        context.id
        for of_dialogue in by_dialogue.values()
        for context in sorted(of_dialogue, key=lambda one: derive_seed(run_seed, purpose, one.id))[:per_dialogue]
    }
    return [context for context in found if context.id in kept]
