"""``esckit evaluate``: any strategist, supporter, policy, endpoint or predictions file on the same cases.

The run folder holds ``examples/<suite>.jsonl`` and ``episodes.jsonl`` (appended as cases finish, sorted at the end),
``failures.jsonl``, ``metrics.jsonl`` (timings only), the report, and ``metrics.json`` (last of all, at once or not at
all: its presence says that the evaluation finished).
Cases that are there are not played again: with none missing, no model is loaded and everything is only recomputed.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

from esckit.config.load import require_runs
from esckit.errors import DataError
from esckit.evaluate.conditions import critic_prompts
from esckit.evaluate.play import case_files, failure_kinds, play_missing, read_cases, staged
from esckit.evaluate.recipe import EvaluateRecipe, EvaluateSettings
from esckit.evaluate.setup import Setup, playing, set_up
from esckit.evaluate.suites.dialogue import supporter_prompt
from esckit.play.runner import FailureRate, NoProgress
from esckit.prompts.prompt import load_prompt
from esckit.protocols import Progress
from esckit.roles.cast import role_prompt
from esckit.roles.pool import part_of, require_checkpoints
from esckit.runs import MANIFEST, RunFolder, read_manifest

if TYPE_CHECKING:
    from esckit.evaluate.gates import GateBound
    from esckit.evaluate.measurement import Scales
    from esckit.metrics.rows import Comparison, MetricsFile


log = logging.getLogger(__name__)


COMMAND = "evaluate"

METRICS = "metrics.json"


Files = dict[str, list[Any]]


_ANY = tuple(f"strategy {number}" for number in range(64))
"""Stands for a taxonomy before it is known: of the largest size, since ranges of metrics grow with it."""


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
    """What was found, and where the report is.

    Attributes:
        rate: How many cases failed; whoever asked for the evaluation judges it, after the metrics were shown.
    """

    out: Path
    metrics: MetricsFile
    report: Path
    rate: FailureRate

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
    require_checkpoints(recipe.roles(), setup.taxonomy)
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
    metrics, rate = asyncio.run(_run(setup, out, gates, progress or NoProgress()))
    from esckit.metrics.rows import write_metrics
    from esckit.report.run import write_report

    against = Path(recipe.compare_to) if recipe.compare_to is not None else None
    unwritten = {METRICS: metrics.model_dump(mode="json")}
    report = write_report([out], against=against, quotes=recipe.report.quotes, unwritten=unwritten)
    write_metrics(out / METRICS, metrics)
    return EvaluateResult(out, metrics, report.page, rate)


async def _run(
    setup: Setup, out: Path, gates: Sequence[GateAsked], progress: Progress
) -> tuple[MetricsFile, FailureRate]:
    recipe = setup.recipe
    files, is_new = case_files(setup), not (out / MANIFEST).is_file()
    async with AsyncExitStack() as stack:
        pool = None
        for file in files:
            file.read(out)
        if is_new:
            # Models come first, so that a recipe that cannot be played leaves no folder behind.
            pool = await stack.enter_async_context(staged(setup, files))
        folder = stack.enter_context(
            RunFolder.open(
                out,
                command=COMMAND,
                recipe=recipe.resolved(),
                operational=recipe.OPERATIONAL,
                inputs=_inputs(setup),
            )
        )
        folder.file(METRICS).unlink(missing_ok=True)
        folder.update_manifest(**_facts(setup))
        if not is_new and any(file.missing for file in files):
            pool = await stack.enter_async_context(staged(setup, files))
        rate = await play_missing(setup, files, pool, folder, progress)
        metrics = _compute(setup, folder, gates)
        if rate.is_passed:
            folder.close("stopped")
        return metrics, rate


# ---------------------------------------------------------------- checks


def _checked(recipe: EvaluateRecipe, gates: Sequence[GateAsked]) -> Setup:
    """Return the set-up, after everything that can be refused before a model is called."""
    _references(recipe)
    if gates or recipe.gates:
        from esckit.evaluate.gates import require_gates
        from esckit.evaluate.measurement import Scales

        bounds = _bounds(recipe, gates)
        # First by name alone, which tells of a slip before the inputs are looked for.
        require_gates(bounds, Scales(recipe, _ANY, _ANY).known(), recipe.suites)
    require_runs(recipe, idle=_idle(recipe))
    setup = set_up(recipe)
    _prompts(setup)
    if gates or recipe.gates:
        require_gates(bounds, setup.scales().known(), recipe.suites)
    if recipe.reliability is not None:
        from esckit.evaluate.reliability import require_known_cases

        require_known_cases(recipe, {work.suite: {unit.id for unit in work.units} for work in setup.works})
    if recipe.compare_to is not None:
        other = Path(recipe.compare_to)
        _comparable(setup, other)
        if not (other / METRICS).is_file():
            log.warning("%s is not finished: only the cases that are there are compared", other)
    return setup


def _idle(recipe: EvaluateRecipe) -> set[str]:
    """Return the fields that the chosen suites do not look at."""
    suites = {f"settings.{suite}" for suite in EvaluateSettings.model_fields if suite not in recipe.suites}
    return suites | {f"models.{role}" for role in recipe.models.bindings() if role not in recipe.roles()}


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
    theirs = manifest.get("conditions") or {}
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


def _inputs(setup: Setup) -> dict[str, Any]:
    """Return what the recipe only names and the cases depend on: they are gone on with only while it is the same."""
    data = {"data": setup.material.merged.facts()} if setup.recipe.data is not None else {}
    return {**data, "prompts": _prompts(setup), "inputs": setup.inputs}


def _facts(setup: Setup) -> dict[str, Any]:
    """Return what else the manifest says beside the recipe."""
    return {
        "conditions": setup.conditions,
        "cases": {work.file: len(work.units) for work in setup.works},
        "roles": sorted(playing(setup.works)),
        "flags": {suite: list(flags) for suite, flags in setup.flags.items()},
    }


def _prompts(setup: Setup) -> dict[str, str]:
    """Return the identity of every role's prompts."""
    recipe, prompts = setup.recipe, setup.recipe.prompts
    roles = recipe.roles()
    named = {"seeker": (prompts.seeker, "seeker"), "turn_judge": (prompts.turn_judge, "rubric critic")}
    shown = {"supporter": role_prompt("supporter", prompts.supporter).identity} if "supporter" in roles else {}
    shown |= {role: load_prompt(*asked).identity for role, asked in named.items() if role in roles}
    if "dialogue" in recipe.suites and recipe.settings.dialogue.ppdpp_compat:
        shown["supporter"] = ", ".join(dict.fromkeys((shown["supporter"], supporter_prompt(recipe).identity)))
    if "strategist" in roles and part_of("strategist", roles["strategist"]) == "chat" and setup.taxonomy is not None:
        shown["strategist"] = role_prompt("strategist", prompts.strategist, taxonomy=setup.taxonomy).identity
    if "critic" in roles:
        shown["critic"] = ", ".join(critic_prompts(recipe).values())
    if "judge" in roles:
        judged = {"pairwise": (prompts.judge_pairwise, "pair judge"), "safety": (prompts.judge_reply, "reply judge")}
        shown["judge"] = ", ".join(load_prompt(*judged[suite]).identity for suite in judged if suite in recipe.suites)
    return shown


# ---------------------------------------------------------------- computing


def _compute(setup: Setup, folder: RunFolder, gates: Sequence[GateAsked]) -> MetricsFile:
    """Compute everything from the cases on disk."""
    from esckit.evaluate.gates import judge_gates
    from esckit.evaluate.measurement import measure
    from esckit.metrics.rows import MetricsFile

    recipe, scales = setup.recipe, setup.scales()
    files: Files = {work.file: list(read_cases(folder.path, work.file, work.kind).values()) for work in setup.works}
    _warn_of_unscored(files, recipe.statistics.min_coverage)
    rows = measure(scales, files, setup.flags)
    if recipe.reliability is not None:
        from esckit.evaluate.reliability import reliability

        rows += reliability(scales, files, setup.flags)
    comparisons = _comparisons(setup, scales, files) if recipe.compare_to is not None else []
    bounds = _bounds(recipe, gates)
    return MetricsFile(
        run=folder.id,
        suites=tuple(dict.fromkeys(work.suite for work in setup.works)),
        metrics=tuple(rows),
        comparisons=tuple(comparisons),
        gates=tuple(judge_gates(bounds, rows, scales.known(), gates_on=recipe.statistics.gates_on)),
        references=_references(recipe),
    )


def _warn_of_unscored(files: Files, min_coverage: float) -> None:
    """Warn of files of cases in which more failed than coverage allows, with the reasons."""
    for file, cases in files.items():
        kinds = [kinds for case in cases if (kinds := failure_kinds(case))]
        if len(kinds) > (1 - min_coverage) * len(cases):
            reasons = Counter(kind for found in kinds for kind in dict.fromkeys(found))
            shown = ", ".join(f"{kind} {n}" for kind, n in sorted(reasons.items()))
            log.warning(
                "%s: %d of %d cases are unscored, in whole or in part (%s)", file, len(kinds), len(cases), shown
            )


def _comparisons(setup: Setup, scales: Scales, files: Files) -> list[Comparison]:
    from esckit.evaluate.measurement import compare

    other = Path(str(setup.recipe.compare_to))
    tests = _comparable(setup, other)
    theirs: Files = {
        work.file: list(found.values()) for work in setup.works if (found := read_cases(other, work.file, work.kind))
    }
    return compare(scales, files, theirs, other=str(other), tests=tests)


def _references(recipe: EvaluateRecipe) -> tuple[str, ...]:
    """Return the published tables to print beside: those named, else those of the suites on a real corpus.

    Raises:
        ConfigError: If one that is named is unknown.
    """
    from esckit.report.published import load_references

    known = load_references()
    if recipe.references is not None:
        return tuple(known.table(name).id for name in recipe.references)
    if recipe.data is None or recipe.data.path.startswith("sample:"):
        return ()
    shown = (*recipe.suites, *(("reliability",) if recipe.reliability is not None else ()))
    return tuple(table.id for suite in shown for table in known.beside(suite))
