"""From the labels that a corpus has to strategies of a taxonomy: lookup, then at most one mapping.

The only place where data sets and strategies meet. ``source_strategy`` keeps what the source says.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from esckit.errors import ConfigError, DataError
from esckit.protocols import Issue, IssueSink
from esckit.strategies.taxonomy import (
    Strategy,
    StrategyMapping,
    Taxonomy,
    load_taxonomy,
    mappings_between,
    taxonomy_names,
)
from esckit.types import Dialogue, Turn, TurnPart

_TAXONOMY_OF_FORMAT = {"esconv": "esconv", "esconv-hub": "esconv", "ppdpp": "esconv", "extes": "extes"}


@dataclass(frozen=True, slots=True)
class LabelRules:
    """How labels are read.

    Attributes:
        own: Taxonomy of the corpus's labels; None takes the one that the corpus is known to use.
        target: Taxonomy that is wanted; None takes what comes out.
        mapping: Mapping from the corpus's taxonomy to the wanted one; None if they are one.
        unknown: Whether an unknown label refuses its dialogue, or leaves its turn unlabelled.
        blank_as: Strategy that a missing label stands for; None leaves it missing.
    """

    own: Taxonomy | None = None
    target: Taxonomy | None = None
    mapping: StrategyMapping | None = None
    unknown: Literal["refuse", "keep"] = "refuse"
    blank_as: str | None = None

    def taxonomies(self) -> dict[str, Taxonomy]:
        """Return the taxonomies that the rules name, the ends of the mapping included, by name."""
        ends = (self.mapping.source, self.mapping.target) if self.mapping is not None else ()
        named = (self.own, self.target, *(load_taxonomy(end) for end in ends))
        return {taxonomy.name: taxonomy for taxonomy in named if taxonomy is not None}


_AS_THEY_ARE = LabelRules()


class _Meaning(NamedTuple):
    """What a label means: the strategy in the corpus's own taxonomy, and the name that a turn gets."""

    own: Strategy
    name: str | None


def resolve_labels(dialogues: Iterable[Dialogue], rules: LabelRules, sink: IssueSink) -> tuple[Dialogue, ...]:
    """Return the dialogues with their strategies in a taxonomy; those that the sink refuses are left out.

    A dialogue without a taxonomy (record format) is read in the wanted one, or left alone if there is none. It is also
    left alone if it names a taxonomy of a user's own and the rules ask for nothing: its labels are in that one already.

    Raises:
        ConfigError: If the taxonomies differ and no mapping, or an unfit one, is given.
        DataError: If a label is unknown and the sink does not go on.
    """
    resolver = _Resolver(rules, sink)
    found = []
    for dialogue in dialogues:
        try:
            found.append(resolver.dialogue(dialogue))
        except DataError as error:
            sink.refuse(error)
    return tuple(found)


class _Resolver:
    """Resolves dialogue after dialogue, looking each spelling up once."""

    def __init__(self, rules: LabelRules, sink: IssueSink) -> None:
        self.rules = rules
        self.sink = sink
        self._taxonomies = rules.taxonomies()
        self._ends = (
            tuple(load_taxonomy(end).name for end in (rules.mapping.source, rules.mapping.target))
            if (rules.mapping)
            else ()
        )
        self._meanings: dict[tuple[str, str], _Meaning] = {}

    def dialogue(self, dialogue: Dialogue) -> Dialogue:
        """Return one dialogue with resolved labels."""
        own = self._own_taxonomy(dialogue)
        if own is None:
            return dialogue
        if dialogue.mapping is not None:
            self._check_mapped(dialogue)
            return dialogue
        self._check_fit(own)
        turns = tuple(self._turn(dialogue, own, index) for index in range(len(dialogue.turns)))
        mapping = self.rules.mapping
        return dialogue.model_copy(
            update={
                "turns": turns,
                "taxonomy": self._ends[1] if mapping else own.name,
                "mapping": mapping.name if mapping else None,
            }
        )

    def _own_taxonomy(self, dialogue: Dialogue) -> Taxonomy | None:
        """Return the taxonomy that the dialogue's labels are in, None if that cannot be known."""
        known = _TAXONOMY_OF_FORMAT.get(dialogue.source.format) if dialogue.source else None
        name = dialogue.taxonomy or (self.rules.own.name if self.rules.own else known)
        if name is None:
            return self.rules.target
        if name not in self._taxonomies:
            if self.rules == _AS_THEY_ARE and name not in taxonomy_names():
                return None
            self._taxonomies[name] = load_taxonomy(name)
        return self._taxonomies[name]

    def _check_mapped(self, dialogue: Dialogue) -> None:
        """Refuse to map, or to take for another taxonomy, what was mapped before."""
        mapping, target = self.rules.mapping, self.rules.target
        if (mapping is None or mapping.name == dialogue.mapping) and (
            target is None or target.name == dialogue.taxonomy
        ):
            return
        raise ConfigError(
            f"strategies already mapped to taxonomy {dialogue.taxonomy} by {dialogue.mapping}",
            expected="labels as their corpus has them, since mappings are never chained",
        )

    def _check_fit(self, own: Taxonomy) -> None:
        """Refuse rules that the corpus's taxonomy does not bear: a mapping from elsewhere, or none where one is due."""
        mapping, target, blank_as = self.rules.mapping, self.rules.target, self.rules.blank_as
        if blank_as is not None and own.find(blank_as) is None:
            raise ConfigError(
                f"blank_as {blank_as!r}, which taxonomy {own.name} does not know",
                expected=f"one of {', '.join(own.names)}",
            )
        if mapping is not None:
            ends = self._ends
            wanted = (own.name, target.name if target else ends[1])
            if ends != wanted:
                raise ConfigError(
                    f"mapping {mapping.name} leads from {ends[0]} to {ends[1]}",
                    expected=f"one from {wanted[0]} to {wanted[1]}",
                    hint=_available(*wanted),
                )
        elif target is not None and target.name != own.name:
            raise ConfigError(
                f"a corpus labelled in taxonomy {own.name}, but taxonomy {target.name} is wanted",
                expected="a mapping between them (data.mapping)",
                hint=_available(own.name, target.name),
            )

    def _turn(self, dialogue: Dialogue, own: Taxonomy, index: int) -> Turn:
        """Return one turn with resolved labels; a seeker's stays as it is."""
        turn = dialogue.turns[index]
        if turn.speaker == "seeker":
            return turn
        if not turn.parts:
            return turn.model_copy(update={"strategy": self._name(dialogue, own, turn, f"turns[{index}].strategy")})
        parts = tuple(
            part.model_copy(
                update={"strategy": self._name(dialogue, own, part, f"turns[{index}].parts[{position}].strategy")}
            )
            for position, part in enumerate(turn.parts)
        )
        label = _label(dialogue, turn) or self.rules.blank_as
        # The pieces were just looked up and counted, and the turn's own label is that of a piece.
        meaning = self._meanings.get((own.name, label)) if label else None
        return turn.model_copy(update={"strategy": meaning.name if meaning else None, "parts": parts})

    def _name(self, dialogue: Dialogue, own: Taxonomy, turn: Turn | TurnPart, field: str) -> str | None:
        """Return the strategy name of one utterance, noting what is odd about its label."""
        label = _label(dialogue, turn)
        if label is None:
            return self._meaning(own, self.rules.blank_as).name if self.rules.blank_as else None
        try:
            meaning = self._meaning(own, label)
        except DataError as error:
            if self.rules.unknown == "refuse":
                raise _placed(error, dialogue, field) from error
            self._note(dialogue, "strategy_unknown", field, detail=f"{label[:60]!r}", warn=True)
            return None
        if label != meaning.own.name:
            self._note(dialogue, "strategy_alias", field, detail=f"{label[:60]!r} is {meaning.own.name}")
        if meaning.name is None:
            self._note(dialogue, "unmapped", field, detail=meaning.own.name)
        return meaning.name

    def _meaning(self, own: Taxonomy, label: str) -> _Meaning:
        """Look a label up, and its counterpart under the mapping."""
        key = (own.name, label)
        if key not in self._meanings:
            strategy, mapping = own.resolve(label), self.rules.mapping
            self._meanings[key] = _Meaning(strategy, mapping.map[strategy.name] if mapping else strategy.name)
        return self._meanings[key]

    def _note(
        self, dialogue: Dialogue, code: str, field: str, *, detail: str | None = None, warn: bool = False
    ) -> None:
        file, record = (dialogue.source.file, dialogue.source.record) if dialogue.source else (dialogue.id, 0)
        self.sink.note(Issue(code, "W" if warn else "N", file, record, field, detail))


def _label(dialogue: Dialogue, turn: Turn | TurnPart) -> str | None:
    """Return the label to look up: a strategy already in a taxonomy, else what the source says; None if blank."""
    first, second = turn.strategy, turn.source_strategy
    if dialogue.taxonomy is None:
        first, second = second, first
    return next((label for label in (first, second) if label is not None and label.strip()), None)


def _placed(error: DataError, dialogue: Dialogue, field: str) -> DataError:
    """Return the error with the place of the label."""
    source = dialogue.source
    return DataError(
        error.found,
        path=source.file if source else dialogue.id,
        record=source.record if source else None,
        field=field,
        expected=error.expected,
        hint=error.hint,
    )


def _available(source: str, target: str) -> str:
    names = mappings_between(source, target)
    shipped = f"Shipped: {', '.join(names)}" if names else f"None from {source} to {target} is shipped"
    return f"{shipped}; one of your own is named by its .yaml file"
