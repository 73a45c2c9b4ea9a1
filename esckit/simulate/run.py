"""``esckit simulate``: from corpus contexts to valued futures (RLFF-ESC, arXiv 2508.12935).

The run folder holds ``contexts.jsonl``, ``futures.jsonl`` (appended as futures finish, sorted at the end),
``failures.jsonl``, ``metrics.jsonl`` (timings only) and ``summary.json``: counts, rewards, and how each label rule
would split the futures. With the scripted model all but the timings are the same bytes for every concurrency and
whatever interrupted the run. How a future is played stands in :mod:`esckit.play.rollout`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import PositiveInt, model_validator

from esckit.config import sections
from esckit.config.data import AlternatingData
from esckit.data.contexts import Contexts, build_contexts
from esckit.data.selection import Selection, select_dialogues
from esckit.lineage import require_runs
from esckit.play.executor import UnitPlayers
from esckit.play.forecast import Staged, StagedFile
from esckit.play.pilot import Pilot
from esckit.play.places import executing
from esckit.play.rollout import Cast, Rules, play_future
from esckit.play.runner import (
    SUMMARY,
    FailureRate,
    NoProgress,
    Plan,
    RunResult,
    play_units,
    played_inputs,
    playing,
)
from esckit.play.unit_file import UnitFile
from esckit.protocols import Progress
from esckit.records import write_json, write_records
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up, require_checkpoints
from esckit.roles.rehearsal import answers
from esckit.roles.verdicts import load_preset
from esckit.sequences import Computed
from esckit.simulate.summary import readings_of, summarise
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import Context, Future, Outcome, Record

log = logging.getLogger(__name__)

CONTEXTS = "contexts.jsonl"

FUTURES = "futures.jsonl"

MIN_FUTURES_FOR_RATE = 50

UNPARSED_WARNING = 0.1
"""Share of unreadable critic answers beyond which a run warns."""

_Strategist = Annotated[
    sections.StrategistBinding, sections.role_defaults(sampling={"temperature": 0.7, "top_p": 0.9, "max_tokens": 256})
]


class SimulateModels(sections.Roles):
    """Who plays whom. A strategist takes part only with ``simulation.strategy: predicted``."""

    supporter: sections.RolloutSupporter
    seeker: sections.RolloutSeeker
    critic: sections.RolloutCritic
    strategist: _Strategist | None = None


class Simulation(sections.Rollout):
    """What is simulated.

    Attributes:
        candidates: Replies to each context, each valued by one future.
        retry_failed: On resuming, play failed futures again. Operational.
        strategy: Whether a strategist names the strategy of every supporter turn.
    """

    candidates: PositiveInt = 4
    retry_failed: bool = False
    strategy: Literal["none", "predicted"] = "none"


class SimulatePrompts(sections.Prompts):
    """Prompt of each role: the name of a shipped one, or a file; the critic's is its preset's own unless named."""

    supporter: str = "supporter_rlff"
    seeker: str = "seeker"
    critic: str | None = None
    strategist: str = "strategist"


class Concurrency(sections.Section):
    """How much is in flight at once; changes no result. Operational.

    Attributes:
        futures: Futures that are played at the same time.
    """

    futures: PositiveInt = 64


class SimulateRecipe(sections.ModelRecipe):
    """The recipe of ``esckit simulate``.

    Attributes:
        taxonomy: Name or file of the taxonomy of strategies among which a strategist chooses, and which the corpus is
            mapped into then.
        strategist: How a strategist is read.
    """

    command: Literal["simulate"]
    data: AlternatingData
    contexts: sections.Contexts = sections.Contexts()
    taxonomy: str = "aflow"
    models: SimulateModels
    critic: sections.ResolutionCritic = sections.ResolutionCritic()
    strategist: sections.Strategist = sections.Strategist()
    simulation: Simulation = Simulation()
    prompts: SimulatePrompts = SimulatePrompts()
    concurrency: Concurrency = Concurrency()

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        if self.simulation.strategy == "predicted" and self.models.strategist is None:
            raise ValueError("simulation.strategy: predicted needs models.strategist")
        sections.check_prices(self.budget, self.models.bindings().values())
        sections.check_worlds(self.models.bindings(), is_guided=self.simulation.strategy == "predicted")
        return self


class FailedFuture(Record):
    """A line of ``failures.jsonl``."""

    id: str
    stage: str
    turn: int
    kind: str
    attempts: int
    message: str


def plan(recipe: SimulateRecipe) -> Plan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, contexts = _contexts(recipe)
    taxonomy = _taxonomy(recipe)
    require_checkpoints(_bindings(recipe), taxonomy)
    n_candidates = recipe.simulation.candidates
    n = len(contexts) * n_candidates
    exchanges = recipe.simulation.horizon + 1
    scored = exchanges if recipe.simulation.score_first_exchange else exchanges - 1
    calls = {"supporter": n * exchanges, "seeker": n * exchanges, "critic": n * scored * recipe.critic.calls}
    if _is_guided(recipe):
        calls["strategist"] = n * exchanges
    calls = sections.calls_of_models(calls, _bindings(recipe))
    counts = {"dialogues": len(selection.dialogues), "contexts": len(contexts), "futures": n}
    file = StagedFile(n, lambda place: (contexts[place // n_candidates], place % n_candidates), calls)
    return Plan(counts, calls, Staged(recipe, cast, (taxonomy,), {FUTURES: file}, answers(taxonomy)))


def run(recipe: SimulateRecipe, *, out: Path, progress: Progress | None = None, pilot: int | None = None) -> RunResult:
    """Play every future of the recipe that is not in the run folder yet.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.
        pilot: Play so many units only, and estimate what the rest will take.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
        PilotPlayed: When the pilot is played.
    """
    selection, contexts = _contexts(recipe)
    return asyncio.run(_run(recipe, selection, contexts, out, progress or NoProgress(), pilot))


def known_inputs(recipe: SimulateRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe, as far as it is known without models.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, _ = _contexts(recipe)
    taxonomy, prompts = _taxonomy(recipe), _prompt_ids(recipe, _taxonomy(recipe))
    if recipe.prompts.critic is None or isinstance(recipe.models.critic, sections.WorldBinding):
        prompts.pop("critic", None)  # the model decides which of its preset's prompts the critic reads
    return played_inputs({"data": selection.facts(), "prompts": prompts}, _bindings(recipe).values(), taxonomy)


def _contexts(recipe: SimulateRecipe) -> tuple[Selection, Contexts]:
    """Return the contexts to play, after looking up everything that the recipe names."""
    require_runs(recipe, idle=() if _is_guided(recipe) else ("models.strategist",))
    look_up(_bindings(recipe).values())
    if recipe.models.strategist is not None and not _is_guided(recipe):
        log.warning("models.strategist takes no part: simulation.strategy is none, not predicted")
    _prompt_ids(recipe, _taxonomy(recipe))
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy if _is_guided(recipe) else None)
    return selection, build_contexts(selection.dialogues, recipe.contexts, run_seed=recipe.seed)


async def cast(pool: ModelPool, recipe: SimulateRecipe, taxonomy: Taxonomy | None) -> UnitPlayers:
    """Return who plays the futures of a recipe.

    Args:
        pool: Where the models are loaded.
        recipe: The recipe.
        taxonomy: What a strategist chooses from; None without one.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    bindings = _bindings(recipe)
    await pool.prepare(bindings)
    prompts, max_attempts = recipe.prompts.model_dump(), recipe.simulation.max_attempts
    casting = Casting(pool, bindings, prompts, max_attempts, taxonomy, recipe.strategist.readout)
    critic = casting.resolution_critic(recipe.critic)
    strategist = casting.strategist() if taxonomy else None
    players = Cast(casting.supporter(), casting.seeker(), critic, strategist)
    settings = recipe.simulation
    rules = Rules(settings.horizon, Fraction(recipe.critic.threshold), settings.score_first_exchange)

    async def play(unit: tuple[Context, int]) -> Future:
        return await play_future(*unit, cast=players, rules=rules, run_seed=recipe.seed)

    inputs = {"prompts": {**_prompt_ids(recipe, taxonomy), "critic": critic.asked_by}, "roles": casting.labels()}
    return UnitPlayers({FUTURES: play}, inputs)


async def _run(
    recipe: SimulateRecipe, selection: Selection, contexts: Contexts, out: Path, progress: Progress, pilot: int | None
) -> RunResult:
    taxonomy, settings = _taxonomy(recipe), recipe.simulation
    async with executing(recipe, recipe.concurrency.futures, cast, taxonomy) as executor:
        inputs = {"data": selection.facts(), **executor.inputs}

        def unit(number: int) -> tuple[Context, int]:
            return contexts[number // settings.candidates], number % settings.candidates

        file = UnitFile(
            FUTURES,
            Future,
            ids=Computed(
                len(contexts) * settings.candidates,
                lambda number: f"{contexts.ids[number // settings.candidates]}:c{number % settings.candidates}",
            ),
            unit=unit,
            is_failed=lambda future: (
                _is_failed(future) or any(reading.is_mostly_unparsed for reading in readings_of(future))
            ),
            may_fail=_may_fail,
            is_retried=_is_failed if recipe.simulation.retry_failed else None,
            timed_as="future",
        )
        players = _bindings(recipe).values()
        async with playing(recipe, out, executor, bindings=players, inputs=inputs, taxonomy=taxonomy) as folder:
            if not folder.file(CONTEXTS).is_file():
                write_records(folder.file(CONTEXTS), contexts)
            file.read(out)
            rate = FailureRate(
                recipe.max_failure_rate,
                MIN_FUTURES_FOR_RATE,
                "futures",
                "simulation.retry_failed",
                failed="failed, or rest on a critic reading with half of its answers unreadable",
            )
            await play_units(
                [file],
                folder,
                executor,
                rate,
                progress,
                settled=lambda: _write_failures(out, file.records(_may_fail)),
                pilot=Pilot.of(recipe, pilot),
            )
            summary = summarise(contexts, file.records())
            write_json(folder.file(SUMMARY), summary)
            if (summary["unparsed_share"] or 0.0) > UNPARSED_WARNING:
                log.warning(
                    "critic: %.0f %% of the answers name no level and enter no value; futures.jsonl shows some of them",
                    100 * summary["unparsed_share"],
                )
            rate.judge()
    return RunResult(out, summary)


def _is_guided(recipe: SimulateRecipe) -> bool:
    """Return whether a strategist names the strategy of every supporter turn."""
    return recipe.simulation.strategy == "predicted"


def _bindings(recipe: SimulateRecipe) -> dict[str, sections.Binding]:
    """Return the models that take part, by role."""
    named = recipe.models.bindings()
    return {role: binding for role, binding in named.items() if role != "strategist" or _is_guided(recipe)}


def _taxonomy(recipe: SimulateRecipe) -> Taxonomy | None:
    """Return what a strategist chooses from; None without one."""
    return load_taxonomy(recipe.taxonomy) if _is_guided(recipe) else None


def _prompt_ids(recipe: SimulateRecipe, taxonomy: Taxonomy | None) -> dict[str, str]:
    """Return the identity of every prompt; the critic's is its preset's own unless the recipe names one."""
    names = recipe.prompts.model_dump()
    names["critic"] = names["critic"] or load_preset(recipe.critic.preset).prompt
    kinds = {"supporter": "supporter", "critic": "resolution critic"}
    return prompt_ids(_bindings(recipe), names, taxonomy=taxonomy, kinds=kinds)


def _write_failures(out: Path, futures: Iterable[Future]) -> None:
    failed = (
        FailedFuture(id=future.id, **future.failure.model_dump(exclude={"place"}))
        for future in futures
        if future.failure is not None
    )
    write_records(out / "failures.jsonl", failed)


def _is_failed(future: Future) -> bool:
    return future.outcome is Outcome.FAILED


_FAILED = f'"outcome":"{Outcome.FAILED.value}"'.encode()


def _may_fail(raw: bytes) -> bool:
    """Return whether a line can hold a future that failed or has an unreadable answer; quotes in texts are escaped."""
    return _FAILED in raw or raw.count(b'"n_unparsed":') > raw.count(b'"n_unparsed":0')
