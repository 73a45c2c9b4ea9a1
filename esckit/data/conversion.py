"""What ``esckit data`` does to a corpus: inspect it, convert it, split it. One function per command.

What each layout looks like is known to :mod:`esckit.data.writers`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.config.data import Format, Side
from esckit.data.contexts import merge_runs
from esckit.data.corpus import source_files
from esckit.data.inspection import Reading, Report, build_report
from esckit.data.layouts import IssueList
from esckit.data.names import Names
from esckit.data.selection import LabelRules, check_kept, read_labelled, with_split
from esckit.data.splits import Scheme, assign_splits, shared_situations
from esckit.data.writers import chat_line, chat_losses, hub_line, hub_losses
from esckit.errors import DataError
from esckit.protocols import Issue
from esckit.records import dump_line, file_sha256, write_atomic, write_json, write_records
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy
from esckit.text import ids_digest

# Codes under which something is written otherwise than it was read; what is only remarkable is left to `inspect`.
_NORMALISES = frozenset(
    {
        "control_character",
        "extra_key",
        "key_alias",
        "rating_zero",
        "scene_alias",
        "not_a_turn",
        "reasoning",
        "speaker_alias",
        "strategy_alias",
        "surrogate",
        "unmapped",
        "white_space",
    }
)

_NAMES_SHOWN = 5

SPLIT_SCHEMA = "esckit.split/1"


Target = Literal["esckit", "jsonl", "messages", "sharegpt", "esconv-hub"]


@dataclass(frozen=True, slots=True)
class Access:
    """How a corpus is read; what the three commands have in common.

    Attributes:
        path: File, folder, ``sample:NAME`` or ``hub:OWNER/NAME``.
        format: Layout, or ``auto``.
        taxonomy: Name or file of the taxonomy of its labels; None takes the corpus's own.
        skip_invalid: Count refused records instead of stopping.
        unknown: What becomes of an unknown label.
        strict: Take every warning for a refusal.
        roles: Names of speakers in the files, and what each stands for.
        columns: Columns or keys by what they hold.
    """

    path: str
    format: Format = "auto"
    taxonomy: str | None = None
    skip_invalid: bool = False
    unknown: Literal["refuse", "keep"] = "refuse"
    strict: bool = False
    roles: Mapping[str, Side] = field(default_factory=dict)
    columns: Mapping[str, str] = field(default_factory=dict)

    def read(self, rules: LabelRules, *, go_on: bool, strict: bool = False, max_refused_share: float = 0.5) -> Reading:
        """Return the whole corpus, see :func:`~esckit.data.selection.read_labelled`."""
        names = Names(self.roles, self.columns)
        return read_labelled(
            self.path,
            format=self.format,
            rules=rules,
            go_on=go_on,
            names=names,
            strict=strict,
            max_refused_share=max_refused_share,
        )

    def section(self, mapping: str | None = None) -> dict[str, Any]:
        """Return the ``data:`` section of a recipe that reads the corpus in the same way."""
        return {
            "path": self.path,
            "format": self.format,
            "roles": dict(self.roles) or None,
            "columns": dict(self.columns) or None,
            "skip_invalid": self.skip_invalid,
            "unknown_strategy": self.unknown,
            "mapping": mapping,
        }

    def rules(self, mapping: str | None = None) -> LabelRules:
        """Return how labels are read, under a mapping if one is named."""
        return LabelRules(
            own=load_taxonomy(self.taxonomy) if self.taxonomy else None,
            mapping=load_mapping(mapping) if mapping else None,
            unknown=self.unknown,
        )


class Written(NamedTuple):
    """What a command wrote, what the user should know about it, and what was normalised on the way."""

    summary: str
    warnings: tuple[str, ...]
    notes: tuple[str, ...]


def inspect_corpus(access: Access, *, merge: bool = False, limit_problems: int = 20) -> Report:
    """Return the report of a corpus, read to its end whatever its records are like."""
    reading = access.read(access.rules(), go_on=True, max_refused_share=1.0)
    return build_report(reading, merge=merge, limit_problems=limit_problems)


def convert_corpus(
    access: Access, out: Path, *, to: Target, mapping: str | None = None, merge: bool = False, force: bool = False
) -> Written:
    """Write a corpus in another layout.

    Raises:
        DataError: If the output exists and ``force`` is not set, or the corpus is refused.
    """
    check_free([out], force, sources=source_files(access.path))
    reading = _read(access, access.rules(mapping))
    dialogues = tuple(merge_runs(dialogue) for dialogue in reading.dialogues) if merge else reading.dialogues
    lines: Iterator[str]
    losses: list[str] = []
    if to == "esconv-hub":
        lines, losses = map(hub_line, dialogues), hub_losses(dialogues)
    elif to == "messages" or to == "sharegpt":
        layout = to
        lines, losses = (chat_line(dialogue, layout) for dialogue in dialogues), chat_losses(dialogues)
    else:
        lines = map(dump_line, dialogues)
    write_atomic(out, "".join(line + "\n" for line in lines))
    warnings = [*_warnings(reading), *(f"{to} cannot hold {loss}" for loss in losses)]
    return Written(f"{len(dialogues):,} dialogues written to {out}", tuple(warnings), _notes(reading))


def split_corpus(
    access: Access,
    out: Path,
    *,
    scheme: Scheme,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    seed: int = 13,
    force: bool = False,
) -> Written:
    """Write a corpus as one record file per split, and ``split.json`` about them; an empty split gets no file.

    Raises:
        DataError: If an output exists and ``force`` is not set, or the corpus is refused or does not fit the scheme.
    """
    facts_file = out / "split.json"
    files = {split: out / f"{split}.jsonl" for split in ("train", "valid", "test")}
    check_free([*files.values(), facts_file], force, sources=source_files(access.path))
    reading = _read(access, access.rules())
    sink = IssueList(strict=access.strict)
    parts = assign_splits(
        replace(reading.corpus, dialogues=reading.dialogues),
        scheme=scheme,
        seed=seed,
        ratios=ratios,
        sink=sink,
    )
    outputs = {}
    for split, dialogues in parts.items():
        if not dialogues:
            files[split].unlink(missing_ok=True)
            continue
        write_records(files[split], [with_split(dialogue, split) for dialogue in dialogues])
        outputs[files[split].name] = file_sha256(files[split])
    facts = {
        "schema": SPLIT_SCHEMA,
        "scheme": scheme,
        "seed": seed if scheme == "ratio" else None,
        "ratios": list(ratios) if scheme == "ratio" else None,
        "counts": {split: len(dialogues) for split, dialogues in parts.items()},
        "inputs": {file.name: file.sha256 for file in reading.corpus.files},
        "outputs": outputs,
        "ids_digest": {split: ids_digest(dialogues) for split, dialogues in parts.items()},
        "shared_situations": shared_situations(parts),
    }
    write_json(facts_file, facts)
    counts = ", ".join(f"{split} {len(dialogues):,}" for split, dialogues in parts.items())
    noted = tuple(f"{issue.code}: {issue.detail}" for issue in sink.issues)
    return Written(f"{counts} written to {out}", (*_warnings(reading), *noted), _notes(reading))


def _read(access: Access, rules: LabelRules) -> Reading:
    """Read a corpus that is to be written again."""
    reading = access.read(rules, go_on=access.skip_invalid, strict=access.strict)
    check_kept(len(reading.dialogues), len(reading.corpus.dialogues), access.path)
    if not reading.dialogues:
        raise DataError("no dialogue", path=access.path, expected="at least one")
    return reading


def check_free(files: Sequence[Path], force: bool, *, sources: Sequence[Path] = ()) -> None:
    """Refuse to write over what is there; never write over the sources, not even by force.

    Raises:
        DataError: If one of the files is a source, or one exists and ``force`` is not set.
    """
    resolved = {source.resolve() for source in sources}
    read = [str(file) for file in files if file.resolve() in resolved]
    if read:
        raise DataError(f"{', '.join(read)} is read and would be written over", hint="Use another --out")
    existing = [str(file) for file in files if file.resolve().exists()]
    if existing and not force:
        raise DataError(f"{', '.join(existing)} already there", hint="Use --force to write over it, or another --out")


def _notes(reading: Reading) -> tuple[str, ...]:
    """Return one line per code of what was changed or left out."""
    return tuple(f"normalised {line}" for line in _by_code(reading, lambda issue: issue.code in _NORMALISES))


def _warnings(reading: Reading) -> list[str]:
    """Return one line per code of warnings, and one for refused records."""
    lines = _by_code(reading, lambda issue: issue.severity == "W")
    if reading.refusals:
        lines.append(f"skipped {len(reading.refusals):,} records, the first for: {reading.refusals[0]}")
    return lines


def _by_code(reading: Reading, wanted: Callable[[Issue], bool]) -> list[str]:
    """Return one line per code of the wanted issues: how many, and the first keys, labels or places concerned."""
    found: dict[str, list[str | None]] = {}
    for issue in filter(wanted, reading.issues):
        found.setdefault(issue.code, []).append(issue.detail)
    lines = []
    for code, details in sorted(found.items()):
        names = list(dict.fromkeys(detail for detail in details if detail))
        shown = ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "")
        lines.append(f"{code}: {len(details):,}" + (f" ({shown})" if shown else ""))
    return lines
