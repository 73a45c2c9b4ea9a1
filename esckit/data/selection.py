"""From a corpus to the dialogues that a run uses: read, split, limit, resolve the strategies, merge.

What every recipe's ``data:`` section goes through, and what ``esckit data`` reads with.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from esckit.config.sections import DataConfig
from esckit.data.contexts import merge_runs
from esckit.data.corpus import SPLITS, Corpus, read_corpus
from esckit.data.inspection import Reading
from esckit.data.labels import LabelRules, resolve_labels
from esckit.data.layouts import IssueList
from esckit.data.splits import assign_splits
from esckit.errors import ConfigError, DataError
from esckit.protocols import Issue, IssueSink
from esckit.registry import did_you_mean
from esckit.strategies.taxonomy import Taxonomy, load_mapping, load_taxonomy, taxonomy_names
from esckit.types import Dialogue

log = logging.getLogger(__name__)


_FORMATS_OF_DATASET: dict[str, tuple[str, ...]] = {
    "esconv": ("esconv", "esconv-hub", "ppdpp"),
    "extes": ("extes",),
    "jsonl": ("jsonl",),
}


@dataclass(frozen=True, slots=True)
class Selection:
    """The dialogues of a run, and what its manifest says about them.

    Attributes:
        dialogues: In load order; where a scheme was used, ``source.split`` is the split it gave.
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

    dialogues: tuple[Dialogue, ...]
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

    @property
    def ids(self) -> tuple[str, ...]:
        """Ids of the dialogues, in load order."""
        return tuple(dialogue.id for dialogue in self.dialogues)

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
    dialogues = resolve_labels(limited, rules, sink)
    check_kept(len(dialogues), len(limited), data.path)
    if not dialogues:
        raise DataError("no dialogue", path=data.path, expected="at least one", hint="See data.split and data.limit")
    if data.merge:
        dialogues = tuple(merge_runs(dialogue, label=data.merge_label) for dialogue in dialogues)
    return _selection(data, corpus, dialogues, split_of, sink, rules)


def read_labelled(
    path: str, *, format: str, rules: LabelRules, go_on: bool, strict: bool = False, max_refused_share: float = 0.5
) -> Reading:
    """Return a whole corpus with its labels resolved, and everything met on the way.

    Args:
        path: File, folder, ``sample:NAME`` or ``hub:OWNER/NAME``.
        format: Layout, or ``auto``.
        rules: How labels are read.
        go_on: Count refused records instead of raising.
        strict: Take a record with a warning for a refused one.
        max_refused_share: Share of records, in [0, 1], that the loader may refuse if it goes on.
    """
    sink = IssueList(go_on=go_on, strict=strict)
    corpus = read_corpus(path, format=format, sink=sink, max_refused_share=max_refused_share)
    dialogues = resolve_labels(corpus.dialogues, rules, sink)
    taxonomy, mapping = provenance(dialogues)
    strategies = _named(taxonomy, rules)
    labels = strategies.names if strategies is not None else ()
    return Reading(corpus, dialogues, taxonomy, labels, mapping, sink.issues, sink.refusals)


def _named(name: str | None, rules: LabelRules) -> Taxonomy | None:
    """Return the taxonomy of a name, as the rules know it, else the shipped one."""
    shipped = load_taxonomy(name) if name in taxonomy_names() else None
    return rules.taxonomies().get(name, shipped) if name is not None else None


def check_kept(n_kept: int, n_records: int, path: str) -> None:
    """Raise if labels refused more than half of the records: then the fault is not with the records."""
    if 2 * n_kept < n_records:
        raise DataError.of_file(
            path,
            f"more than half of {n_records:,} records refused for their labels ({n_records - n_kept:,})",
            hint="Is it the right taxonomy? unknown_strategy: keep reads unknown labels as none",
        )


def with_split(dialogue: Dialogue, split: str) -> Dialogue:
    """Return the dialogue with the split that a scheme gave it."""
    if dialogue.source is None:
        return dialogue
    return dialogue.model_copy(update={"source": dialogue.source.model_copy(update={"split": split})})


# ---------------------------------------------------------------- steps


def _read_dataset(data: DataConfig, sink: IssueSink) -> Corpus:
    """Read the corpus by the format that the recipe allows, or by the user's own loader."""
    if ":" in data.dataset:
        return read_corpus(data.path, format=data.dataset, sink=sink)
    allowed = _FORMATS_OF_DATASET.get(data.dataset)
    if allowed is None and data.dataset != "auto":
        raise ConfigError(
            f"data.dataset: unknown data set {data.dataset!r}",
            expected=f"one of {', '.join(_FORMATS_OF_DATASET)}, auto, or module:attr",
            hint=did_you_mean(data.dataset, _FORMATS_OF_DATASET) or None,
        )
    corpus = read_corpus(data.path, format=data.format, sink=sink)
    if allowed is not None and corpus.format not in allowed:
        raise ConfigError(
            f"data.path: {data.path} is in format {corpus.format}",
            expected=f"for data.dataset {data.dataset}: {' or '.join(allowed)}",
            hint="Name the data set that it is, or auto",
        )
    return corpus


def _split(corpus: Corpus, data: DataConfig, sink: IssueSink) -> tuple[tuple[Dialogue, ...], dict[str, str]]:
    """Return the dialogues of the wanted splits in load order, and the split of each by id."""
    if data.scheme is None:
        return corpus.dialogues, {}
    parts = assign_splits(corpus, scheme=data.scheme, seed=data.seed, ratios=data.ratios, sink=sink)
    wanted: Collection[str] = data.split or SPLITS
    split_of = {dialogue.id: split for split, found in parts.items() if split in wanted for dialogue in found}
    chosen = (dialogue for dialogue in corpus.dialogues if dialogue.id in split_of)
    return tuple(with_split(dialogue, split_of[dialogue.id]) for dialogue in chosen), split_of


def provenance(dialogues: Sequence[Dialogue]) -> tuple[str | None, str | None]:
    """Return the taxonomy and the mapping that dialogues share.

    Raises:
        DataError: If they have different ones, which no metric could add up.
    """
    found = {(dialogue.taxonomy, dialogue.mapping) for dialogue in dialogues}
    if len(found) > 1:
        shown = ", ".join(sorted(f"{taxonomy} by {mapping or 'no mapping'}" for taxonomy, mapping in found))
        raise DataError(f"dialogues in different taxonomies: {shown}", expected="one taxonomy and mapping")
    return next(iter(found), (None, None))


def _log_warnings(path: str, issues: Sequence[Issue]) -> None:
    """Say what was dropped, ignored or is doubtful."""
    warned: dict[str, list[Issue]] = {}
    for issue in issues:
        if issue.severity == "W":
            warned.setdefault(issue.code, []).append(issue)
    for code, found in sorted(warned.items()):
        log.warning("%s: %s: %s", path, code, (len(found) == 1 and found[0].detail) or f"{len(found):,}")


def _selection(
    data: DataConfig,
    corpus: Corpus,
    dialogues: tuple[Dialogue, ...],
    split_of: dict[str, str],
    sink: IssueList,
    rules: LabelRules,
) -> Selection:
    taxonomy, mapping = provenance(dialogues)
    _log_warnings(data.path, sink.issues)
    labels = [turn.strategy for dialogue in dialogues for turn in dialogue.turns if turn.speaker == "supporter"]
    return Selection(
        dialogues=dialogues,
        format=corpus.format,
        files={file.name: file.sha256 for file in corpus.files},
        scheme=data.scheme,
        splits=(data.split or SPLITS) if data.scheme else None,
        split_of={dialogue.id: split_of[dialogue.id] for dialogue in dialogues if dialogue.id in split_of},
        taxonomy=taxonomy,
        strategies=_named(taxonomy, rules),
        mapping=mapping,
        counts={
            "n_records": corpus.n_records,
            "n_refused": len(sink.refusals),
            "n_read": len(corpus.dialogues),
            "n_dialogues": len(dialogues),
            "n_labelled": len(labels) - labels.count(None),
            "n_unlabelled": labels.count(None),
        },
        issues=dict(sorted(Counter(issue.code for issue in sink.issues).items())),
    )
