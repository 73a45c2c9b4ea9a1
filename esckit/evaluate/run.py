"""``esckit evaluate``: any strategist, supporter, policy, endpoint or predictions file on the same cases.

The run folder holds ``examples/<suite>.jsonl`` and ``episodes.jsonl`` (appended as cases finish, sorted at the end),
``failures.jsonl``, ``metrics.jsonl`` (timings only), the report, and ``metrics.json`` (last of all, at once or not at
all: its presence says that the evaluation finished). Cases on disk are not played again: if none is missing, no model
is loaded and everything is only recomputed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esckit.config import sections
from esckit.config.sections import calls_of_models
from esckit.errors import DataError, named_by
from esckit.evaluate.own import metrics_of, own_metrics
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.setup import Part, Setup, is_comparable, known_metrics, set_up
from esckit.evaluate.suite import Case, CaseFile, Files, Unit, Work
from esckit.metrics.metric import GateBound, require_gates
from esckit.play.executor import UnitPlayers
from esckit.play.forecast import Staged, StagedFile
from esckit.play.pilot import Pilot
from esckit.play.places import executing
from esckit.play.runner import (
    HOPELESS,
    FailureRate,
    NoProgress,
    booking,
    play_units,
)
from esckit.play.unit_file import UnitFile, latest
from esckit.protocols import Executor, Progress
from esckit.records import write_records
from esckit.report.compared import LABELS_UNKNOWN, lacks_labels
from esckit.report.metric_rows import load_references
from esckit.report.source import OWN_CORPORA
from esckit.roles.cast import Casting
from esckit.roles.pool import ModelPool, require_checkpoints
from esckit.roles.rehearsal import answers
from esckit.runs import MANIFEST, RunFolder, read_manifest
from esckit.strategies.kept import keep_taxonomy
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Record

if TYPE_CHECKING:
    from esckit.metrics.rows import Comparison, MetricsFile

log = logging.getLogger(__name__)

METRICS = "metrics.json"

MISSING = "missing"
"""Why a case has no value of which a file of predictions has no line."""

MIN_CASES_FOR_RATE = 20

# These are no chat models: their suites load them.
_NOT_CHAT = ("scorer", "reward")

_ANY = tuple(f"strategy {number}" for number in range(64))
"""Stands for a taxonomy before it is known: of the largest size, since ranges of metrics grow with it."""


PlayedPart = tuple[Part, UnitFile[Unit, Case]]
"""A file of cases with what the runner knows of it."""


class FailedCase(Record):
    """A line of ``failures.jsonl``: a case that has no value, and why."""

    suite: str
    id: str
    stage: str
    kind: str


@dataclass(frozen=True, slots=True)
class EvaluatePlan:
    """What a run would do: cases, bounds on the calls to models (retries are not included), the splits used, flags."""

    cases: dict[str, int]
    left_out: dict[str, int]
    dialogues: int
    scheme: str | None
    splits: tuple[str, ...] | None
    calls_at_most: dict[str, int]
    flags: dict[str, tuple[str, ...]]
    staged: Staged

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {
            "cases": self.cases,
            "left_out": self.left_out,
            "dialogues": self.dialogues,
            "scheme": self.scheme,
            "splits": self.splits,
            "calls_at_most": self.calls_at_most,
            "flags": self.flags,
            "calls_at_most_in_all": sum(self.calls_at_most.values()),
        }


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """What was found, and where the report is.

    Attributes:
        rate: How many cases failed; whoever asked for the evaluation judges it, after the metrics were shown.
    """

    out: Path
    metrics: MetricsFile
    report: Path
    rate: FailureRate


def plan(recipe: EvaluateRecipe, *, gates: Sequence[GateBound] = ()) -> EvaluatePlan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If data, recipe, gates or the run to compare with are wrong, or a leakage rule is broken.
    """
    setup = _checked(recipe, gates)
    require_checkpoints(recipe.roles(), setup.taxonomy)
    calls: Counter[str] = Counter()
    left_out: dict[str, int] = {}
    for suite, _, work in setup.parts:
        calls.update(work.calls)
        left_out |= {f"{suite.name}: {reason}": n for reason, n in work.left_out.items() if n}
    selection = setup.material.merged if recipe.data is not None else None
    return EvaluatePlan(
        cases=setup.case_counts,
        left_out=left_out,
        dialogues=len(selection.dialogues) if selection else 0,
        scheme=selection.scheme if selection else None,
        splits=selection.splits if selection else None,
        calls_at_most=calls_of_models(calls, recipe.roles()),
        flags={suite: flags for suite, flags in setup.flags.items() if flags},
        staged=_staged(setup),
    )


def _staged(setup: Setup) -> Staged:
    """Return what a forecast rehearses: the files of cases that chat models take part in."""
    parts = [part for part in setup.parts if part.work.calls.keys() - set(_NOT_CHAT)]
    roles = frozenset(role for part in parts for role in part.work.roles)
    files = {}
    for part in parts:
        units, calls = part.work.units, calls_of_models(part.work.calls, setup.recipe.roles())
        chat = {role: n for role, n in calls.items() if role not in _NOT_CHAT}
        files[part.file.path] = StagedFile(len(units), units.__getitem__, chat)
    given = (setup.taxonomy, roles, {part.file.name: part.work.given for part in parts})
    return Staged(setup.recipe, cast, given, files, answers(setup.taxonomy))


def run(
    recipe: EvaluateRecipe,
    *,
    out: Path,
    gates: Sequence[GateBound] = (),
    progress: Progress | None = None,
    pilot: int | None = None,
) -> EvaluateResult:
    """Play every case that is not in the run folder yet, and compute everything from the cases.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        gates: Bounds of the command line, beside those of the recipe.
        progress: Shows how far the run is.
        pilot: Play so many cases only, and estimate what the rest will take.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
        PilotPlayed: When the pilot is played.
    """
    setup = _checked(recipe, gates)
    chosen = Pilot.of(recipe, pilot)
    metrics, rate = asyncio.run(_run(setup, out, gates, progress or NoProgress(), chosen))
    from esckit.metrics.rows import write_metrics
    from esckit.report.run import write_report

    against = Path(recipe.compare_to) if recipe.compare_to is not None else None
    unwritten = {METRICS: metrics.model_dump(mode="json")}
    report = write_report([out], against=against, quotes=recipe.report.quotes, unwritten=unwritten)
    write_metrics(out / METRICS, metrics)
    return EvaluateResult(out, metrics, report.page, rate)


def known_inputs(recipe: EvaluateRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: As :func:`plan`.
    """
    return _checked(recipe, ()).inputs


async def _run(
    setup: Setup, out: Path, gates: Sequence[GateBound], progress: Progress, pilot: Pilot | None
) -> tuple[MetricsFile, FailureRate]:
    recipe, is_new = setup.recipe, not (out / MANIFEST).is_file()
    parts = _unit_files(setup)
    for _, file in parts:
        file.read(out)
    async with AsyncExitStack() as stack:
        # In a new folder models come first, so that a recipe that cannot be played leaves no folder behind.
        executor = await stack.enter_async_context(_executing(setup, parts)) if is_new else None
        folder = stack.enter_context(
            RunFolder.open(
                out, command="evaluate", recipe=recipe.resolved(), operational=recipe.OPERATIONAL, inputs=setup.inputs
            )
        )
        folder.file(METRICS).unlink(missing_ok=True)
        keep_taxonomy(setup.taxonomy, out)
        folder.update_manifest(
            conditions=setup.conditions,
            cases=setup.case_counts,
            roles=sorted(setup.playing),
            flags={suite: list(flags) for suite, flags in setup.flags.items()},
        )
        if not is_new and any(file.missing for _, file in parts):
            executor = await stack.enter_async_context(_executing(setup, parts))
        rate = await _play(setup, parts, executor, folder, progress, pilot)
        metrics = _compute(setup, folder, gates)
        if rate.is_passed:
            folder.close("stopped", "failures")
        return metrics, rate


# ---------------------------------------------------------------- playing


def _unit_files(setup: Setup) -> list[PlayedPart]:
    """Return the files of cases as the runner knows them; the cases of one file may complete the units of another."""
    found: list[PlayedPart] = []

    def unit_of(work: Work) -> Callable[[int], Unit]:
        complete = work.completed
        if complete is None:
            return work.units.__getitem__
        return lambda number: complete(work.units[number], {part.file.name: file.done for part, file in found})

    for part in setup.parts:
        file: UnitFile[Unit, Case] = UnitFile(
            part.file.path,
            part.file.kind,
            ids=[unit.id for unit in part.work.units],
            unit=unit_of(part.work),
            is_failed=_is_failed,
            is_retried=_is_failed if setup.recipe.resume.retry_failed else None,
            batch=part.file.batch,
            timed_as="case",
            timed_in={"file": part.file.name},
            asks_models=bool(part.work.roles),
        )
        found.append((part, file))
    return found


def _is_failed(case: Case) -> bool:
    """Return whether a case counts for ``max_failure_rate``; what a file of predictions lacks was not asked for."""
    return any(kind != MISSING for _, kind in case.failures())


@asynccontextmanager
async def _executing(setup: Setup, parts: Sequence[PlayedPart]) -> AsyncIterator[Executor]:
    """Load the models that missing cases need, and release them at the end.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    recipe = setup.recipe
    missing = [part for part, file in parts if file.missing]
    given = {part.file.name: part.work.given for part in missing}
    roles = frozenset(role for part in missing for role in part.work.roles)
    if not any(part.work.calls for part in missing):
        recipe = recipe.model_copy(update={"executor": sections.Executor()})
    async with executing(recipe, recipe.concurrency.cases, cast, setup.taxonomy, roles, given) as executor:
        yield executor


async def cast(
    pool: ModelPool,
    recipe: EvaluateRecipe,
    taxonomy: Taxonomy | None,
    roles: Collection[str],
    given: Mapping[str, Any],
) -> UnitPlayers:
    """Return who plays the cases of a recipe.

    Args:
        pool: Where the models are loaded.
        recipe: The recipe.
        taxonomy: Of the strategies that are predicted; None where no suite has any.
        roles: Those whose models are needed.
        given: What each file of cases needs beside the recipe, by its name; no other file is played.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    await pool.prepare({role: one for role, one in recipe.roles().items() if role in roles and role not in _NOT_CHAT})
    casting = Casting(
        pool,
        recipe.models.bindings(),
        recipe.prompts.model_dump(),
        recipe.settings.max_attempts,
        taxonomy,
        recipe.strategist.readout,
    )
    files = [file for suite in recipe.chosen for file in suite.files if file.name in given]
    return UnitPlayers({file.path: file.prepare(recipe, casting, given[file.name]) for file in files})


async def _play(
    setup: Setup,
    parts: Sequence[PlayedPart],
    executor: Executor | None,
    folder: RunFolder,
    progress: Progress,
    pilot: Pilot | None,
) -> FailureRate:
    """Play what is missing; every file is sorted at the end, whatever happens.

    Returns:
        The failure rate of all cases, not judged yet: the metrics of the others are worth computing.
    """

    def write_beside() -> None:
        """Write what follows from the cases: why some have no value, and what critics made of the dialogues."""
        for part, file in parts:
            if part.file.example is not None and file.n_found:
                write_records(folder.path / f"examples/{part.file.name}.jsonl", map(part.file.example, file.records()))
        failed = (
            FailedCase(suite=part.suite.name, id=case.id, stage=stage, kind=kind)
            for part, file in parts
            for case in file.records()
            for stage, kind in case.failures()
        )
        write_records(folder.path / "failures.jsonl", failed)

    rate = FailureRate(
        setup.recipe.max_failure_rate,
        MIN_CASES_FOR_RATE,
        "cases",
        "resume.retry_failed",
        failed="failed or are unscored",
        hopeless=HOPELESS,
    )
    async with booking(folder, executor) if executor is not None else nullcontext():
        await play_units(
            [file for _, file in parts],
            folder,
            executor=executor,
            rate=rate,
            progress=progress,
            settled=write_beside,
            pilot=pilot,
        )
    return rate


# ---------------------------------------------------------------- checking and computing


def _checked(recipe: EvaluateRecipe, gates: Sequence[GateBound]) -> Setup:
    """Return the set-up, after everything that can be refused before a model is called."""
    _references(recipe)
    bounds = _bounds(recipe, gates)
    if bounds:
        # First by name alone, which tells of a slip before the inputs are looked for.
        require_gates(bounds, known_metrics(recipe, _ANY), recipe.suites)
    setup = set_up(recipe)
    # To know all metrics loads the user's own, so a slip in their names is found before it costs anything. It loads
    # numpy too, which a dry run can do without.
    if bounds or recipe.metrics:
        require_gates(bounds, known_metrics(recipe, setup.strategies), recipe.suites)
    if recipe.reliability is not None:
        from esckit.evaluate.reliability import require_known_cases

        require_known_cases(recipe, {part.suite.name: {unit.id for unit in part.work.units} for part in setup.parts})
    if recipe.compare_to is not None:
        other = Path(recipe.compare_to)
        with named_by("compare_to"):
            is_comparable(setup, other)
        theirs = read_manifest(other)["conditions"]
        if any(lacks_labels(suite, theirs[suite]) for suite in setup.conditions.keys() & theirs.keys()):
            log.warning("%s: %s", other, LABELS_UNKNOWN)
        if not (other / METRICS).is_file():
            log.warning("%s is not finished: only the cases that are there are compared", other)
    return setup


def _bounds(recipe: EvaluateRecipe, gates: Sequence[GateBound]) -> list[GateBound]:
    return [*(GateBound(metric, bound) for metric, bound in recipe.gates.items()), *gates]


class CasesOnDisk(Mapping[str, list[Any]]):
    """The cases of a run by file; a file is read whenever it is asked for, so that no two need be in memory."""

    def __init__(self, folder: Path, files: Sequence[CaseFile]) -> None:
        self._folder, self._files = folder, {file.name: file for file in files}

    def __getitem__(self, name: str) -> list[Any]:
        """Return the cases of a file."""
        file = self._files[name]
        return list(latest(self._folder / file.path, file.kind).values())

    def __iter__(self) -> Iterator[str]:
        """Return the names of the files."""
        return iter(self._files)

    def __len__(self) -> int:
        """Return the number of files."""
        return len(self._files)


def _compute(setup: Setup, folder: RunFolder, gates: Sequence[GateBound]) -> MetricsFile:
    """Compute everything from the cases on disk."""
    from esckit.metrics.rows import Measurement, MetricRow, MetricsFile, judge_gates

    recipe = setup.recipe
    files = CasesOnDisk(folder.path, [part.file for part in setup.parts])
    rows: list[MetricRow] = []
    for suite, file, _ in setup.parts:
        cases, flags = files[file.name], setup.flags.get(suite.name, ())
        _warn_of_unscored(file.name, cases, recipe.statistics.min_coverage)
        ids = (case.dialogue_id for case in cases)
        measurement = Measurement.over(suite.name, ids, recipe.seed, recipe.statistics, flags)
        rows += file.rows(recipe, setup.strategies, cases, measurement)
        rows += [measurement.row(metric, cases) for metric in own_metrics(file, recipe, setup.strategies)]
        del cases  # before the next file is read
    if recipe.reliability is not None:
        from esckit.evaluate.reliability import reliability

        rows += reliability(recipe, files, setup.flags)
    comparisons: list[Comparison] = []
    if recipe.compare_to is not None:
        other = Path(recipe.compare_to)
        paths = {part.file: other / part.file.path for part in setup.parts}
        theirs = CasesOnDisk(other, [file for file, path in paths.items() if path.is_file() and path.stat().st_size])
        comparisons = compare(setup, files, theirs, other=str(other), tests=is_comparable(setup, other))
    known = known_metrics(recipe, setup.strategies)
    return MetricsFile(
        run=folder.id,
        suites=tuple(suite.name for suite in recipe.chosen),
        metrics=tuple(rows),
        comparisons=tuple(comparisons),
        gates=tuple(judge_gates(_bounds(recipe, gates), rows, known, gates_on=recipe.statistics.gates_on)),
        references=_references(recipe),
    )


def compare(setup: Setup, files: Files, others: Files, *, other: str, tests: bool) -> list[Comparison]:
    """Return the comparison of two runs on the files that both have, Holm-adjusted suite by suite.

    Args:
        setup: Of the run under test.
        files: Its cases.
        others: Cases of the other run.
        other: Its name.
        tests: False prints both values without interval and p.

    Raises:
        DataError: If they have no file in common.
    """
    from esckit.metrics.rows import Comparer, with_holm

    parts = [part for part in setup.parts if part.file.name in others]
    if not parts:
        raise DataError(
            f"{other} has none of the suites {', '.join(files)}", expected="a run of 'evaluate' with one of them"
        )
    by_suite: dict[str, list[Comparison]] = {}
    variants: dict[str, str] = {}
    for suite, file, _ in parts:
        cases, theirs = files[file.name], others[file.name]
        dialogue_ids = (case.dialogue_id for case in cases)
        comparer = Comparer.over(suite.name, dialogue_ids, setup.recipe.seed, setup.recipe.statistics, other=other)
        for metric in metrics_of(file, setup.recipe, setup.strategies):
            by_suite.setdefault(suite.name, []).append(comparer.compare(metric, cases, theirs, tests=tests))
            if metric.facts.variant_of:
                variants[metric.name] = metric.facts.variant_of
        del cases, theirs  # before the next files are read
    return [entry for found in by_suite.values() for entry in with_holm(found, variants)]


def _warn_of_unscored(file: str, cases: Sequence[Case], min_coverage: float) -> None:
    """Warn of a file of cases in which more failed than coverage allows, with the reasons."""
    failed = [kinds for case in cases if (kinds := {kind for _, kind in case.failures()})]
    if len(failed) > (1 - min_coverage) * len(cases):
        reasons = Counter(kind for kinds in failed for kind in kinds)
        shown = ", ".join(f"{kind} {n}" for kind, n in sorted(reasons.items()))
        log.warning("%s: %d of %d cases are unscored, in whole or in part (%s)", file, len(failed), len(cases), shown)


def _references(recipe: EvaluateRecipe) -> tuple[str, ...]:
    """Return the published tables to print beside: those named, else those of the suites on a real corpus.

    Raises:
        ConfigError: If one that is named is unknown.
    """
    known = load_references()
    if recipe.references is not None:
        return tuple(known.table(name).id for name in recipe.references)
    if recipe.data is None or recipe.data.path.startswith(OWN_CORPORA):
        return ()
    shown = (*recipe.suites, *(("reliability",) if recipe.reliability is not None else ()))
    return tuple(table.id for suite in shown for table in known.tables if table.suite == suite)
