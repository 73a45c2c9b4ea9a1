"""What ``esckit data`` does to a corpus: inspect it, convert it, split it. One function per command.

Dialogues are written in the project's own format (:func:`esckit.records.write_records`) or in the layout of ESConv's
Hub data set, in ASCII, one line each: ``{"experience_type": …, "emotion_type": …, "problem_type": …, "situation": …,
"survey_score": …, "dialog": [{"text": …, "speaker": "usr"}, {"text": …, "speaker": "sys", "strategy": …}, …],
"seeker_question1": …, …}``.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

from esckit.data.contexts import merge_runs
from esckit.data.inspection import Reading, Report, build_report
from esckit.data.layouts import IssueList
from esckit.data.readers import ANSWERS, SEEKER_RATINGS
from esckit.data.selection import LabelRules, check_kept, read_labelled, with_split
from esckit.data.splits import Scheme, assign_splits, shared_situations
from esckit.errors import DataError
from esckit.records import dump_line, file_sha256, write_atomic, write_json, write_records
from esckit.strategies.taxonomy import load_mapping, load_taxonomy
from esckit.text import ids_digest
from esckit.types import Dialogue, Survey


def hub_line(dialogue: Dialogue) -> str:
    """Return a dialogue as one line of the Hub layout, without the line end.

    A strategy is written as the source has it; under a mapping, the mapped name takes its place.
    """
    scenario, survey = dialogue.scenario, dialogue.survey or Survey()
    ratings = survey.model_dump()  # as strings; what was not answered is absent
    seeker = {key: str(ratings[name]) for name, key in SEEKER_RATINGS.items() if ratings[name] is not None}
    relevance = survey.supporter_relevance
    record: dict[str, Any] = {
        "experience_type": scenario.experience_type or "",
        "emotion_type": scenario.emotion_type or "",
        "problem_type": scenario.problem_type or "",
        "situation": scenario.situation,
        "survey_score": {"seeker": seeker, "supporter": {} if relevance is None else {"relevance": str(relevance)}},
        "dialog": [],
        **{key: survey.answers.get(key) or "" for key in ANSWERS},
    }
    for turn in dialogue.turns:
        label = turn.strategy if dialogue.mapping is not None or turn.source_strategy is None else turn.source_strategy
        item = {"text": turn.text, "speaker": "usr" if turn.speaker == "seeker" else "sys"}
        record["dialog"].append(item | ({} if turn.speaker == "seeker" or label is None else {"strategy": label}))
    return json.dumps(record)


def hub_losses(dialogues: Sequence[Dialogue]) -> list[str]:
    """Return what the Hub layout cannot hold of these dialogues, one clause each."""
    turns = [turn for dialogue in dialogues for turn in dialogue.turns]
    n_ratings = sum(1 for turn in turns if turn.feedback is not None)
    n_merged = sum(1 for turn in turns if turn.parts)
    n_mapped = sum(
        1
        for dialogue in dialogues
        if dialogue.mapping is not None
        for turn in dialogue.turns
        if turn.source_strategy is not None and turn.source_strategy != turn.strategy
    )
    losses = (
        (n_ratings, "turns with the seeker's feedback"),
        (n_merged, "merged turns' pieces, with their labels"),
        (n_mapped, "original labels, replaced by mapped ones"),
    )
    return [f"{n:,} {what}" for n, what in losses if n]


# Codes under which something is written otherwise than it was read; what is only remarkable is left to `inspect`.
_NORMALISES = frozenset(
    {
        "control_character",
        "extra_key",
        "key_alias",
        "rating_zero",
        "scene_alias",
        "speaker_alias",
        "strategy_alias",
        "surrogate",
        "unmapped",
        "white_space",
    }
)

_NAMES_SHOWN = 5

SPLIT_SCHEMA = "esckit.split/1"


Target = Literal["jsonl", "esconv-hub"]


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
    """

    path: str
    format: str = "auto"
    taxonomy: str | None = None
    skip_invalid: bool = False
    unknown: Literal["refuse", "keep"] = "refuse"
    strict: bool = False

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
    reading = read_labelled(access.path, format=access.format, rules=access.rules(), go_on=True, max_refused_share=1.0)
    return build_report(reading, merge=merge, limit_problems=limit_problems)


def convert_corpus(
    access: Access, out: Path, *, to: Target, mapping: str | None = None, merge: bool = False, force: bool = False
) -> Written:
    """Write a corpus in another layout.

    Raises:
        DataError: If the output exists and ``force`` is not set, or the corpus is refused.
    """
    _check_free([out], force)
    reading = _read(access, access.rules(mapping))
    dialogues = tuple(merge_runs(dialogue) for dialogue in reading.dialogues) if merge else reading.dialogues
    lines = (hub_line(dialogue) if to == "esconv-hub" else dump_line(dialogue) for dialogue in dialogues)
    write_atomic(out, "".join(line + "\n" for line in lines))
    losses = hub_losses(dialogues) if to == "esconv-hub" else []
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
    _check_free([*files.values(), facts_file], force)
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
    reading = read_labelled(
        access.path, format=access.format, rules=rules, go_on=access.skip_invalid, strict=access.strict
    )
    check_kept(len(reading.dialogues), len(reading.corpus.dialogues), access.path)
    if not reading.dialogues:
        raise DataError("no dialogue", path=access.path, expected="at least one")
    return reading


def _check_free(files: Sequence[Path], force: bool) -> None:
    """Refuse to write over what is there."""
    existing = [str(file) for file in files if file.exists()]
    if existing and not force:
        raise DataError(f"{', '.join(existing)} already there", hint="Use --force to write over it, or another --out")


def _notes(reading: Reading) -> tuple[str, ...]:
    """Return one line per code of what was changed or left out, with the first keys or labels concerned."""
    found: dict[str, list[str | None]] = {}
    for issue in reading.issues:
        if issue.code in _NORMALISES:
            found.setdefault(issue.code, []).append(issue.detail)
    lines = []
    for code, details in sorted(found.items()):
        names = list(dict.fromkeys(detail for detail in details if detail))
        shown = ", ".join(names[:_NAMES_SHOWN]) + (" …" if len(names) > _NAMES_SHOWN else "")
        lines.append(f"normalised {code}: {len(details):,}" + (f" ({shown})" if shown else ""))
    return tuple(lines)


def _warnings(reading: Reading) -> list[str]:
    """Return one line per code of warnings, and one for refused records."""
    counts = Counter(issue.code for issue in reading.issues if issue.severity == "W")
    lines = [f"{code}: {n:,}" for code, n in sorted(counts.items())]
    if reading.refusals:
        lines.append(f"skipped {len(reading.refusals):,} records, the first for: {reading.refusals[0]}")
    return lines
