"""``esckit evaluate``: any strategist, supporter, policy, endpoint or predictions file on the same cases.

The run folder holds ``examples/<suite>.jsonl`` and ``episodes.jsonl`` (appended as cases finish, sorted at the end),
``failures.jsonl``, ``metrics.jsonl`` (timings only), ``metrics.json`` (last of the results, at once or not at all), and
the report.
Cases that are there are not played again: with none missing, no model is loaded and everything is only recomputed.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from esckit.config.evaluate import EvaluateRecipe
from esckit.errors import ConfigError, DataError
from esckit.evaluate.cases import Case
from esckit.pipelines.evaluate_conditions import critic_prompts
from esckit.pipelines.evaluate_files import EXAMPLES, backend_failed, case_file, read_cases, settle
from esckit.pipelines.evaluate_players import Casting, strategist_prompt, supporter_prompt
from esckit.pipelines.evaluate_setup import Setup, set_up
from esckit.pipelines.evaluate_suites.work import Unit, Work
from esckit.pipelines.executor import FailureRate, NoProgress, Progress, run_units
from esckit.pipelines.models import ModelPool, is_strategy_policy
from esckit.prompts.prompt import load_prompt
from esckit.runs import RunFolder, read_manifest

if TYPE_CHECKING:
    from esckit.evaluate.gates import GateBound
    from esckit.evaluate.rows import Comparison, MetricsFile
    from esckit.pipelines.evaluate_metrics import Scales

COMMAND = "evaluate"
METRICS = "metrics.json"
MIN_CASES_FOR_RATE = 20
# These are no chat models: they are loaded by their suites.
_NOT_CHAT = ("scorer", "reward")

Files = dict[str, list[Any]]


class GateAsked(NamedTuple):
    """A gate of the command line: it fails under, or over, a bound."""

    metric: str
    bound: float
    side: Literal["under", "over"]


@dataclass(frozen=True, slots=True)
class EvaluatePlan:
    """What a run would do: cases, bounds on the calls to models (without asking again), the splits used, flags."""

    cases: dict[str, int]
    left_out: dict[str, int]
    dialogues: int
    scheme: str | None
    splits: tuple[str, ...] | None
    calls_at_most: dict[str, int]
    flags: dict[str, tuple[str, ...]]

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return {**asdict(self), "calls_at_most_in_all": sum(self.calls_at_most.values())}


@dataclass(frozen=True, slots=True)
class EvaluateResult:
    """What was found, and where the report is."""

    out: Path
    metrics: MetricsFile
    report: Path

    @property
    def gates_hold(self) -> bool:
        """Whether no gate failed."""
        return all(gate.holds for gate in self.metrics.gates)


def plan(recipe: EvaluateRecipe, *, gates: Sequence[GateAsked] = ()) -> EvaluatePlan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If data, recipe, gates or the run to compare with are wrong, or a leakage rule is broken.
    """
    setup = _checked(recipe, gates)
    calls: Counter[str] = Counter()
    left_out: Counter[str] = Counter()
    for work in setup.works:
        calls.update(work.calls)
        left_out.update({f"{work.suite}: {reason}": n for reason, n in work.left_out.items() if n})
    selection = setup.material.merged if recipe.data is not None else None
    return EvaluatePlan(
        cases={work.file: len(work.units) for work in setup.works},
        left_out=dict(left_out),
        dialogues=len(selection.dialogues) if selection else 0,
        scheme=selection.scheme if selection else None,
        splits=selection.splits if selection else None,
        calls_at_most=dict(calls),
        flags={suite: flags for suite, flags in setup.flags.items() if flags},
    )


def run(
    recipe: EvaluateRecipe, *, out: Path, gates: Sequence[GateAsked] = (), progress: Progress | None = None
) -> EvaluateResult:
    """Play every case that is not in the run folder yet, and compute everything from the cases.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        gates: Bounds of the command line, beside those of the recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    setup = _checked(recipe, gates)
    with RunFolder.open(out, command=COMMAND, recipe=recipe.resolved(), operational=recipe.OPERATIONAL) as folder:
        _check_inputs(folder, setup)
        folder.file(METRICS).unlink(missing_ok=True)
        folder.update_manifest(**_facts(setup))
        asyncio.run(_play_missing(setup, folder, progress or NoProgress()))
        metrics = _compute(setup, folder, gates)
    from esckit.pipelines.report import write_report

    report = write_report([out], quotes=recipe.report.quotes)
    return EvaluateResult(out, metrics, report.page)


# ---------------------------------------------------------------- checks


def _checked(recipe: EvaluateRecipe, gates: Sequence[GateAsked]) -> Setup:
    """Return the set-up, after everything that can be refused before a model is called."""
    setup = set_up(recipe)
    if gates or recipe.gates:
        setup.scales().check_gates(_bounds(recipe, gates))
    if recipe.compare_to is not None:
        _comparable(setup, Path(recipe.compare_to))
    return setup


def _bounds(recipe: EvaluateRecipe, gates: Iterable[GateAsked]) -> list[GateBound]:
    from esckit.evaluate.gates import GateBound

    own = [GateBound(metric, bound) for metric, bound in recipe.gates.items()]
    return [*own, *(GateBound(gate.metric, gate.bound, gate.side) for gate in gates)]


def _comparable(setup: Setup, other: Path) -> bool:
    """Return whether two runs may be tested against each other.

    Raises:
        DataError: If they may not, and the recipe does not force it.
    """
    manifest = read_manifest(other)
    if manifest["command"] != COMMAND:
        raise DataError(f"a run of {manifest['command']!r}", path=str(other), expected=f"one of {COMMAND!r}")
    theirs = manifest.get("conditions", {})
    shared = [suite for suite in setup.conditions if suite in theirs]
    if not shared:
        raise DataError(
            f"none of the suites {', '.join(setup.conditions)} in it", path=str(other), expected="a suite in common"
        )
    from esckit.evaluate.compare import require_comparable

    try:
        require_comparable(
            {suite: setup.conditions[suite] for suite in shared},
            {suite: theirs[suite] for suite in shared},
            other=str(other),
        )
    except DataError:
        if not setup.recipe.statistics.force_compare:
            raise
        return False
    return True


def _check_inputs(folder: RunFolder, setup: Setup) -> None:
    """Refuse to go on with cases of a model or a file that has changed since."""
    before = folder.manifest.get("inputs", {})
    changed = sorted(name for name in before if before[name] != setup.inputs.get(name, before[name]))
    if changed:
        raise ConfigError(
            f"{', '.join(changed)} changed since {folder.path} was begun",
            hint="Choose another folder with --out",
        )


def _facts(setup: Setup) -> dict[str, Any]:
    """Return what the manifest says beside the recipe."""
    recipe, prompts = setup.recipe, setup.recipe.prompts
    roles = recipe.roles()
    named = {"supporter": prompts.supporter, "seeker": prompts.seeker, "turn_judge": prompts.turn_judge}
    shown = {role: load_prompt(name).identity for role, name in named.items() if role in roles}
    if recipe.suites == ("dialogue",) and "supporter" in roles:
        shown["supporter"] = supporter_prompt(recipe).identity
    if "strategist" in roles and not is_strategy_policy(roles["strategist"]) and setup.taxonomy is not None:
        shown["strategist"] = strategist_prompt(prompts.strategist, setup.taxonomy).identity
    if "critic" in roles:
        shown["critic"] = ", ".join(critic_prompts(recipe).values())
    if "judge" in roles:
        judged = {"pairwise": prompts.judge_pairwise, "safety": prompts.judge_reply}
        shown["judge"] = ", ".join(load_prompt(judged[suite]).identity for suite in judged if suite in recipe.suites)
    return {
        **({"data": setup.material.merged.facts()} if recipe.data is not None else {}),
        "prompts": shown,
        "inputs": setup.inputs,
        "conditions": setup.conditions,
        "cases": {work.file: len(work.units) for work in setup.works},
        "flags": {suite: list(flags) for suite, flags in setup.flags.items()},
    }


# ---------------------------------------------------------------- playing


async def _play_missing(setup: Setup, folder: RunFolder, progress: Progress) -> None:
    """Play what is not on disk yet, file after file, appending each case as it ends."""
    recipe = setup.recipe
    done = {work.file: read_cases(folder.path, work.file, work.kind) for work in setup.works}
    missing = {work.file: _missing(work, done[work.file], recipe.resume.retry_failed) for work in setup.works}
    rate = FailureRate(recipe.max_failure_rate, MIN_CASES_FOR_RATE, "cases")
    for work in setup.works:
        waiting = {unit.id for unit in missing[work.file]}
        for name, case in done[work.file].items():
            if name not in waiting:
                rate.add(failed=backend_failed(case))
    total, left = sum(len(work.units) for work in setup.works), sum(map(len, missing.values()))
    progress.start(total, total - left)
    try:
        if left:
            await _play(setup, folder, {work.file: work for work in setup.works}, missing, done, rate, progress)
    finally:
        progress.close()
        settle(folder.path, setup.works)
    rate.judge()


def _missing(work: Work, done: Mapping[str, Case], retry_failed: bool) -> list[Unit]:
    return [
        unit for unit in work.units if (case := done.get(unit.id)) is None or (retry_failed and backend_failed(case))
    ]


async def _play(
    setup: Setup,
    folder: RunFolder,
    works: Mapping[str, Work],
    missing: Mapping[str, Sequence[Unit]],
    done: dict[str, dict[str, Case]],
    rate: FailureRate,
    progress: Progress,
) -> None:
    recipe = setup.recipe
    roles = {role for name, units in missing.items() if units for role in works[name].roles}
    chat = {role: binding for role, binding in recipe.roles().items() if role in roles and role not in _NOT_CHAT}
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        await pool.prepare(chat.values())
        casting = Casting(recipe, pool, setup.taxonomy)
        try:
            for name, units in missing.items():
                if units:
                    await _play_file(works[name], units, casting, done, folder, rate, progress)
        finally:
            folder.update_manifest(determinism=pool.determinism(), spent=pool.spent(), **pool.facts())


async def _play_file(
    work: Work,
    units: Sequence[Unit],
    casting: Casting,
    done: dict[str, dict[str, Case]],
    folder: RunFolder,
    rate: FailureRate,
    progress: Progress,
) -> None:
    play = work.prepare(casting, done)
    with folder.appender(case_file(work.file)) as cases, folder.appender("metrics.jsonl") as timings:

        async def timed(unit: Unit) -> tuple[Case, float]:
            began = time.perf_counter()
            return await play(unit), time.perf_counter() - began

        def take(result: tuple[Case, float]) -> None:
            case, seconds = result
            cases.append(case)
            timings.append({"file": work.file, "case": case.id, "seconds": round(seconds, 3)})
            done[work.file][case.id] = case
            rate.add(failed=backend_failed(case))
            progress.advance(failed=rate.n_failed)

        await run_units(units, timed, limit=casting.recipe.concurrency.cases, on_result=take)


# ---------------------------------------------------------------- computing


def _compute(setup: Setup, folder: RunFolder, gates: Sequence[GateAsked]) -> MetricsFile:
    """Compute everything from the cases on disk, and write ``metrics.json``."""
    from esckit.evaluate.gates import judge_gates
    from esckit.evaluate.rows import MetricsFile, write_metrics
    from esckit.pipelines.evaluate_metrics import measure

    recipe, scales = setup.recipe, setup.scales()
    files: Files = {work.file: list(read_cases(folder.path, work.file, work.kind).values()) for work in setup.works}
    rows = measure(scales, files, setup.flags)
    if recipe.reliability is not None:
        from esckit.pipelines.evaluate_reliability import reliability

        rows += reliability(scales, files, Path(recipe.reliability.labels))
    comparisons = _comparisons(setup, scales, files) if recipe.compare_to is not None else []
    found = MetricsFile(
        run=folder.id,
        suites=tuple(dict.fromkeys(work.suite for work in setup.works)),
        metrics=tuple(rows),
        comparisons=tuple(comparisons),
        gates=tuple(judge_gates(_bounds(recipe, gates), rows, gates_on=recipe.statistics.gates_on)),
        references=_references(recipe),
    )
    write_metrics(folder.file(METRICS), found)
    return found


def _comparisons(setup: Setup, scales: Scales, files: Files) -> list[Comparison]:
    from esckit.pipelines.evaluate_metrics import compare

    other = Path(str(setup.recipe.compare_to))
    tests = _comparable(setup, other)
    theirs: Files = {
        work.file: list(found.values()) for work in setup.works if (found := read_cases(other, work.file, work.kind))
    }
    return compare(scales, files, theirs, other=str(other), tests=tests)


def _references(recipe: EvaluateRecipe) -> tuple[str, ...]:
    """Return the published tables to print beside: those named, else those of the suites on a real corpus."""
    from esckit.evaluate.references import load_references

    known = load_references()
    if recipe.references is not None:
        return tuple(known.table(name).id for name in recipe.references)
    if recipe.data is None or recipe.data.path.startswith("sample:"):
        return ()
    return tuple(table.id for suite in recipe.suites for table in known.beside(suite))


__all__ = ["COMMAND", "EXAMPLES", "EvaluatePlan", "EvaluateResult", "GateAsked", "plan", "run"]
