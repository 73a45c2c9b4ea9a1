"""From a corpus to the dialogues that a run uses: read, split, limit, resolve the strategies, merge.

What every recipe's ``data:`` section goes through, and what ``esckit data`` reads with. The labels of a corpus become
strategies of a taxonomy by lookup and then at most one mapping; this is the only place where data sets and strategies
meet. ``source_strategy`` keeps what the source says.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from esckit.config.data import DataConfig
from esckit.data.contexts import merge_runs
from esckit.data.corpus import SPLITS, Corpus, read_corpus
from esckit.data.inspection import Reading
from esckit.data.layouts import IssueList
from esckit.data.names import Names
from esckit.data.splits import split_names
from esckit.errors import ConfigError, DataError
from esckit.protocols import Issue, IssueSink
from esckit.registry import did_you_mean
from esckit.sequences import OnDisk
from esckit.strategies.files import mappings_between, shipped_names
from esckit.strategies.kept import require_same
from esckit.strategies.mapping import StrategyMapping, load_mapping
from esckit.strategies.taxonomy import Strategy, Taxonomy, load_taxonomy
from esckit.types import Dialogue, Turn, TurnPart

log = logging.getLogger(__name__)

_TAXONOMY_OF_FORMAT = {
    "esconv": "esconv",
    "esconv-hub": "esconv",
    "ppdpp": "esconv",
    "extes": "extes",
    "multiesc": "multiesc",
}

_FORMATS_OF_DATASET: dict[str, tuple[str, ...]] = {
    "esconv": ("esconv", "esconv-hub", "ppdpp"),
    "extes": ("extes",),
    "multiesc": ("multiesc",),
    "jsonl": ("jsonl",),
    "own": ("jsonl", "messages", "sharegpt", "table"),
    "practice": ("practice",),
}


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
        """Return the taxonomies that the rules name, the ends of the mapping included, by name.

        Raises:
            ConfigError: If two of them have one name and different contents.
        """
        ends = (self.mapping.source, self.mapping.target) if self.mapping is not None else ()
        ends_of = f"an end of mapping {self.mapping.name}" if self.mapping is not None else ""
        named = [("the corpus's", self.own), ("the wanted one", self.target)]
        named += [(ends_of, load_taxonomy(end)) for end in ends]
        found: dict[str, tuple[str, Taxonomy]] = {}
        for place, taxonomy in named:
            if taxonomy is not None:
                before, known = found.setdefault(taxonomy.name, (place, taxonomy))
                require_same(taxonomy, known, here=place, there=before)
        return {name: taxonomy for name, (_, taxonomy) in found.items()}


class _Meaning(NamedTuple):
    """What a label means: the strategy in the corpus's own taxonomy, and the name that a turn gets."""

    own: Strategy
    name: str | None


def resolve_labels(dialogues: Iterable[Dialogue], rules: LabelRules, sink: IssueSink) -> Iterator[Dialogue]:
    """Yield the dialogues with their strategies in a taxonomy; those that the sink refuses are left out.

    A dialogue without a taxonomy (data of a user's own) is read in the one that the mapping leads from, without a
    mapping in the wanted one, or left alone if there is neither. It is also
    left alone if it names a taxonomy of a user's own and the rules ask for nothing: its labels are in that one already.

    Raises:
        ConfigError: If the taxonomies differ and no mapping, or an unfit one, is given.
        DataError: If a label is unknown and the sink does not continue.
    """
    resolver = _Resolver(rules, sink)
    for dialogue in dialogues:
        try:
            found = resolver.dialogue(dialogue)
        except DataError as error:
            sink.refuse(error)
        else:
            yield found


class _Resolver:
    """Resolves dialogue after dialogue, looking each spelling up once."""

    def __init__(self, rules: LabelRules, sink: IssueSink) -> None:
        self.rules = rules
        self.sink = sink
        self._taxonomies = rules.taxonomies()
        mapping = rules.mapping
        self._ends = tuple(load_taxonomy(end).name for end in (mapping.source, mapping.target)) if mapping else ()
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
            return self._taxonomies[self._ends[0]] if self._ends else self.rules.target
        if name not in self._taxonomies:
            if name not in shipped_names("taxonomy"):
                if self.rules == LabelRules():
                    return None
                raise _unknown_taxonomy(name, self.rules.target)
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
            name = self._name(dialogue, own, turn, f"turns[{index}].strategy")
            return turn.model_copy(update=_renamed(turn, name))
        parts = tuple(
            part.model_copy(
                update=_renamed(part, self._name(dialogue, own, part, f"turns[{index}].parts[{position}].strategy"))
            )
            for position, part in enumerate(turn.parts)
        )
        label = _label(dialogue, turn) or self.rules.blank_as
        # The pieces were just looked up and counted, and the turn's own label is that of a piece.
        meaning = self._meanings.get((own.name, label)) if label else None
        return turn.model_copy(update={**_renamed(turn, meaning.name if meaning else None), "parts": parts})

    def _name(self, dialogue: Dialogue, own: Taxonomy, turn: Turn | TurnPart, field: str) -> str | None:
        """Return the strategy name of one utterance, noting what is odd about its label."""
        label = _label(dialogue, turn)
        if label is None:
            return self._meaning(own, self.rules.blank_as).name if self.rules.blank_as else None
        try:
            meaning = self._meaning(own, label)
        except DataError as error:
            if self.rules.unknown == "refuse":
                source = dialogue.source
                raise DataError(
                    error.found,
                    path=source.file if source else dialogue.id,
                    record=source.record if source else None,
                    field=field,
                    expected=error.expected,
                    hint=error.hint,
                ) from error
            self._note(dialogue, "strategy_unknown", field, f"{label[:60]!r}", severity="W")
            return None
        if label != meaning.own.name:
            self._note(dialogue, "strategy_alias", field, f"{label[:60]!r} is {meaning.own.name}")
        if meaning.name is None:
            self._note(dialogue, "unmapped", field, meaning.own.name)
        return meaning.name

    def _meaning(self, own: Taxonomy, label: str) -> _Meaning:
        """Look a label up, and its counterpart under the mapping."""
        key = (own.name, label)
        if key not in self._meanings:
            strategy, mapping = own.resolve(label), self.rules.mapping
            self._meanings[key] = _Meaning(strategy, mapping.map[strategy.name] if mapping else strategy.name)
        return self._meanings[key]

    def _note(
        self, dialogue: Dialogue, code: str, field: str, detail: str, *, severity: Literal["N", "W"] = "N"
    ) -> None:
        file, record = (dialogue.source.file, dialogue.source.record) if dialogue.source else (dialogue.id, 0)
        self.sink.note(Issue(code, severity, file, record, field, detail))


def _renamed(turn: Turn | TurnPart, name: str | None) -> dict[str, str | None]:
    """Return the fields of a turn's strategy under a new name; the label that it had stays as the source's."""
    has_changed = turn.strategy is not None and turn.strategy != name
    return {"strategy": name, "source_strategy": turn.source_strategy or (turn.strategy if has_changed else None)}


def _label(dialogue: Dialogue, turn: Turn | TurnPart) -> str | None:
    """Return the label to look up: a strategy already in a taxonomy, else what the source says; None if blank."""
    first, second = turn.strategy, turn.source_strategy
    if dialogue.taxonomy is None:
        first, second = second, first
    return next((label for label in (first, second) if label is not None and label.strip()), None)


def _unknown_taxonomy(name: str, wanted: Taxonomy | None) -> ConfigError:
    """Return the error for a corpus that is labelled in a taxonomy of a user's own which nothing names."""
    first = f"a corpus labelled in taxonomy {name!r}, which does not ship with esckit"
    if wanted is None:
        return ConfigError(first, expected="a mapping whose 'from' is its .yaml file, or that file as taxonomy")
    return ConfigError(
        f"{first}, but taxonomy {wanted.name} is wanted",
        expected=f"taxonomy: its .yaml file or a run that was made with it, or a mapping into {wanted.name}",
        hint=f"'esckit strategies map --from FILE.yaml --to {wanted.name} --out MAPPING.yaml' begins a mapping",
    )


def _available(source: str, target: str) -> str:
    names = mappings_between(source, target)
    shipped = f"Shipped: {', '.join(names)}" if names else f"None from {source} to {target} is shipped"
    return f"{shipped}; one of your own is named by its .yaml file ('esckit strategies map' begins one)"


@dataclass(frozen=True, slots=True)
class Selection:
    """The dialogues of a run, and what its manifest says about them.

    Attributes:
        dialogues: In load order; where a scheme was used, ``source.split`` is the split it gave. They are read from
            the disk when they are asked for.
        ids: Their ids.
        format: Layout of the corpus.
        files: SHA-256 per file name.
        scheme: Split scheme, None if the corpus was not split.
        splits: The parts used; None if the corpus was not split.
        split_of: Split per dialogue id; empty without a scheme.
        taxonomy: Name of the taxonomy of ``Turn.strategy``; None if no dialogue has one.
        strategies: That taxonomy; None also where a corpus names one of a user's own that nothing else names.
        mapping: Mapping by which the strategies got there, None if the corpus uses the taxonomy itself.
        counts: ``n_records``, ``n_refused``, ``n_read``, ``n_dialogues`` (selected), ``n_labelled``, ``n_unlabelled``
            (supporter turns after merging, unknown and unmapped labels among the latter).
        issues: How often each code of the loader was noted.
    """

    dialogues: Sequence[Dialogue]
    ids: tuple[str, ...]
    format: str
    files: dict[str, str]
    scheme: str | None
    splits: tuple[str, ...] | None
    split_of: dict[str, str]
    taxonomy: str | None
    strategies: Taxonomy | None
    mapping: str | None
    counts: dict[str, int]
    issues: dict[str, int]

    def known_strategies(self, field: str = "taxonomy") -> Taxonomy | None:
        """Return the taxonomy of the labels; None if no dialogue has one.

        Args:
            field: The recipe's field that could name it, for the message.

        Raises:
            ConfigError: If a corpus names one of a user's own that nothing else names.
        """
        if self.strategies is None and self.taxonomy is not None:
            raise ConfigError(
                f"a corpus labelled in taxonomy {self.taxonomy!r}, which does not ship with esckit",
                expected=f"{field}: its .yaml file, or a run that was made with it",
            )
        return self.strategies

    def facts(self) -> dict[str, Any]:
        """Return everything but the dialogues themselves as plain data."""
        return {
            "format": self.format,
            "files": self.files,
            "scheme": self.scheme,
            "splits": list(self.splits) if self.splits else None,
            "taxonomy": self.taxonomy,
            "mapping": self.mapping,
            "counts": self.counts,
            "issues": self.issues,
            "ids": list(self.ids),
        }


def select_dialogues(data: DataConfig, *, taxonomy: str | None = None) -> Selection:
    """Return the dialogues that a recipe's ``data:`` section asks for.

    Args:
        data: The section.
        taxonomy: Name or file of the taxonomy that strategies are wanted in; None takes the corpus's own, or what the
            section's mapping leads to.

    Raises:
        DataError: If the corpus cannot be read or split, or nothing is left of it.
        ConfigError: If the taxonomies differ and no mapping fits.
    """
    sink = IssueList(go_on=data.skip_invalid)
    corpus = _read_dataset(data, sink)
    chosen, split_of = _split(corpus, data, sink)
    rules = LabelRules(
        target=load_taxonomy(taxonomy) if taxonomy else None,
        mapping=load_mapping(data.mapping) if data.mapping else None,
        unknown=data.unknown_strategy,
        blank_as=data.blank_as,
    )
    limited = chosen[: data.limit]
    ids, origins, labelled = list[str](), set[tuple[str | None, str | None]](), Counter[bool]()

    def finished(dialogue: Dialogue) -> Dialogue:
        """Return a dialogue as the run uses it, after counting it."""
        ids.append(dialogue.id)
        origins.add((dialogue.taxonomy, dialogue.mapping))
        whole = merge_runs(dialogue, label=data.merge_label) if data.merge else dialogue
        labelled.update(turn.strategy is not None for turn in whole.turns if turn.speaker == "supporter")
        return whole

    picked = (_picked(corpus, number, split_of) for number in limited)
    dialogues = OnDisk(map(finished, resolve_labels(picked, rules, sink)))
    check_kept(len(dialogues), len(limited), data.path)
    if not dialogues:
        raise DataError("no dialogue", path=data.path, expected="at least one", hint="See data.split and data.limit")
    found, mapping = common_origin(origins)
    warned = Counter(issue.code for issue in sink.issues if issue.severity == "W")
    for code, n in sorted(warned.items()):
        details = [issue.detail for issue in sink.issues if issue.severity == "W" and issue.code == code]
        log.warning("%s: %s: %s", data.path, code, (n == 1 and details[0]) or f"{n:,}")
    return Selection(
        dialogues=dialogues,
        ids=tuple(ids),
        format=corpus.format,
        files={file.name: file.sha256 for file in corpus.files},
        scheme=data.scheme,
        splits=(data.split or SPLITS) if data.scheme else None,
        split_of={name: split_of[name] for name in ids if name in split_of},
        taxonomy=found,
        strategies=_named(found, rules),
        mapping=mapping,
        counts={
            "n_records": corpus.n_records,
            "n_refused": len(sink.refusals),
            "n_read": len(corpus.dialogues),
            "n_dialogues": len(dialogues),
            "n_labelled": labelled[True],
            "n_unlabelled": labelled[False],
        },
        issues=dict(sorted(Counter(issue.code for issue in sink.issues).items())),
    )


def read_labelled(
    path: str,
    *,
    format: str,
    rules: LabelRules,
    go_on: bool,
    names: Names | None = None,
    strict: bool = False,
    max_refused_share: float = 0.5,
) -> Reading:
    """Return a whole corpus with its labels resolved, and every problem found.

    Args:
        path: File, folder, ``sample:NAME`` or ``hub:OWNER/NAME``.
        format: Layout, or ``auto``.
        rules: How labels are read.
        go_on: Count refused records instead of raising.
        names: What the names in the files stand for; None goes by the usual names.
        strict: Take a record with a warning for a refused one.
        max_refused_share: Share of records, in [0, 1], that the loader may refuse if it continues.
    """
    sink = IssueList(go_on=go_on, strict=strict)
    corpus = read_corpus(path, format=format, sink=sink, names=names, max_refused_share=max_refused_share)
    dialogues = tuple(resolve_labels(corpus.dialogues, rules, sink))
    taxonomy, mapping = common_origin({(dialogue.taxonomy, dialogue.mapping) for dialogue in dialogues})
    strategies = _named(taxonomy, rules)
    labels = strategies.names if strategies is not None else ()
    return Reading(corpus, dialogues, taxonomy, labels, mapping, sink.issues, sink.refusals)


def _named(name: str | None, rules: LabelRules) -> Taxonomy | None:
    """Return the taxonomy of a name, as the rules know it, else the shipped one."""
    shipped = load_taxonomy(name) if name in shipped_names("taxonomy") else None
    return rules.taxonomies().get(name, shipped) if name is not None else None


def check_kept(n_kept: int, n_records: int, path: str) -> None:
    """Raise if labels refused more than half of the records: then the fault is not with the records."""
    if 2 * n_kept < n_records:
        raise DataError.of_file(
            path,
            f"more than half of {n_records:,} records refused for their labels ({n_records - n_kept:,})",
            hint="Is it the right taxonomy? unknown_strategy: keep reads unknown labels as none",
        )


def _read_dataset(data: DataConfig, sink: IssueSink) -> Corpus:
    """Read the corpus by the format that the recipe allows, or by the user's own loader."""
    names = Names(data.roles, data.columns.named() if data.columns is not None else None)
    if ":" in data.dataset:
        return read_corpus(data.path, format=data.dataset, sink=sink, names=names)
    allowed = _FORMATS_OF_DATASET.get(data.dataset)
    if allowed is None and data.dataset != "auto":
        raise ConfigError(
            f"data.dataset: unknown data set {data.dataset!r}",
            expected=f"one of {', '.join(_FORMATS_OF_DATASET)}, auto, or module:attr",
            hint=did_you_mean(data.dataset, _FORMATS_OF_DATASET) or None,
        )
    corpus = read_corpus(data.path, format=data.format, sink=sink, names=names)
    if allowed is not None and corpus.format not in allowed:
        raise ConfigError(
            f"data.path: {data.path} is in format {corpus.format}",
            expected=f"for data.dataset {data.dataset}: {' or '.join(allowed)}",
            hint="Name the data set that it is, or auto",
        )
    return corpus


def _split(corpus: Corpus, data: DataConfig, sink: IssueSink) -> tuple[Sequence[int], dict[str, str]]:
    """Return the numbers of the dialogues of the wanted splits in load order, and the split of each by id."""
    if data.scheme is None:
        return range(len(corpus.dialogues)), {}
    wanted: Collection[str] = data.split or SPLITS
    names = split_names(corpus, scheme=data.scheme, seed=data.seed, ratios=data.ratios, sink=sink)
    chosen = [number for number, (_, split) in enumerate(names) if split in wanted]
    return chosen, dict(names[number] for number in chosen)


def _picked(corpus: Corpus, number: int, split_of: Mapping[str, str]) -> Dialogue:
    dialogue = corpus.dialogues[number]
    return with_split(dialogue, split_of[dialogue.id]) if dialogue.id in split_of else dialogue


def with_split(dialogue: Dialogue, split: str) -> Dialogue:
    """Return the dialogue with the split that a scheme gave it."""
    if dialogue.source is None:
        return dialogue
    return dialogue.model_copy(update={"source": dialogue.source.model_copy(update={"split": split})})


def common_origin(found: Set[tuple[str | None, str | None]]) -> tuple[str | None, str | None]:
    """Return the taxonomy and the mapping that dialogues share, given those of all.

    Raises:
        DataError: If they have different ones, which no metric could add up.
    """
    if len(found) > 1:
        shown = ", ".join(sorted(f"{taxonomy} by {mapping or 'no mapping'}" for taxonomy, mapping in found))
        raise DataError(f"dialogues in different taxonomies: {shown}", expected="one taxonomy and mapping")
    return next(iter(found), (None, None))
