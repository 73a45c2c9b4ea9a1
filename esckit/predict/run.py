"""``esckit predict``: what a strategist and a supporter say to dialogues of one's own, as a predictions file.

The run folder holds ``predictions.jsonl`` (appended as places finish, sorted at the end), which ``esckit evaluate``
reads, and ``failures.jsonl``. A place where a model gave nothing usable has a line without strategy or reply.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from esckit.config.load import require_runs
from esckit.config.sections import CheckpointBinding
from esckit.data.contexts import contexts
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.suites.suite import after_opening
from esckit.ledger import Ledger
from esckit.play.executor import HOPELESS, FailureRate, NoProgress, Progress, run_units
from esckit.play.session import RunResult, playing
from esckit.predict.recipe import PredictRecipe
from esckit.records import JsonlAppender, read_records, write_records
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up, part_of, policy_taxonomy, require_checkpoints
from esckit.runs import RunFolder
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy, taxonomy_inputs
from esckit.types import Context, Record

if TYPE_CHECKING:
    from esckit.predict.predictions import Prediction


PREDICTIONS = "predictions.jsonl"

FAILURES = "failures.jsonl"

MIN_PLACES_FOR_RATE = 20


class FailedPrediction(Record):
    """A line of ``failures.jsonl``."""

    id: str
    stage: str
    kind: str
    attempts: int
    message: str


class Predicted(NamedTuple):
    """What was said at one place, and what went wrong there."""

    line: Prediction
    failure: FailedPrediction | None


@dataclass(frozen=True, slots=True)
class PredictPlan:
    """What a run would do: counts, and bounds on the calls to models (without asking again)."""

    dialogues: int
    places: int
    calls_at_most: dict[str, int]

    def facts(self) -> dict[str, Any]:
        """Return the plan as plain data."""
        return asdict(self)


def plan(recipe: PredictRecipe) -> PredictPlan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, places = _places(recipe)
    require_checkpoints(recipe.models.bindings(), _taxonomy(recipe, selection))
    return PredictPlan(len(selection.dialogues), len(places), dict.fromkeys(recipe.models.bindings(), len(places)))


def run(recipe: PredictRecipe, *, out: Path, progress: Progress | None = None) -> RunResult:
    """Predict at every place that is not in the run folder yet.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
    """
    selection, places = _places(recipe)
    return asyncio.run(_run(recipe, selection, places, out, progress or NoProgress()))


def _places(recipe: PredictRecipe) -> tuple[Selection, tuple[Context, ...]]:
    require_runs(recipe)
    look_up(recipe.models.bindings().values())
    gold = recipe.predict.strategy == "gold"
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy if gold else None)
    _prompt_ids(recipe, _taxonomy(recipe, selection))
    found: list[Context] = []
    for dialogue in selection.dialogues:
        if recipe.predict.at == "turns":
            found += contexts(dialogue, merged=True)
        elif dialogue.turns and dialogue.turns[-1].speaker == "seeker":
            found.append(
                Context(
                    id=f"{dialogue.id}#m{len(dialogue.turns)}",
                    dialogue_id=dialogue.id,
                    scenario=dialogue.scenario,
                    turns=dialogue.turns,
                )
            )
    if gold:
        found = [context for context in found if context.reference is not None and context.reference.strategy]
    if not found:
        expected = "a dialogue that ends with the seeker" if recipe.predict.at == "end" else "a supporter turn"
        raise DataError("no place to predict at", path=recipe.data.path, expected=expected)
    return selection, tuple(found)


def _taxonomy(recipe: PredictRecipe, selection: Selection) -> Taxonomy | None:
    """Return the wanted taxonomy, else a trained strategist's own, else the corpus's; a strategist needs one."""
    strategist = recipe.models.strategist
    if recipe.taxonomy is not None:
        return load_taxonomy(recipe.taxonomy)
    if isinstance(strategist, CheckpointBinding) and part_of("strategist", strategist) == "strategist":
        return policy_taxonomy(Path(strategist.checkpoint))
    if selection.taxonomy is None and strategist is not None:
        raise ConfigError("a strategist without a taxonomy", expected="taxonomy: NAME or FILE.yaml")
    return selection.strategies or (load_taxonomy(selection.taxonomy) if selection.taxonomy and strategist else None)


async def _run(
    recipe: PredictRecipe, selection: Selection, places: tuple[Context, ...], out: Path, progress: Progress
) -> RunResult:
    taxonomy = _taxonomy(recipe, selection)
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        bindings = recipe.models.bindings()
        await pool.prepare(bindings)
        speak = _speaker(recipe, pool, taxonomy)
        inputs = {"data": selection.facts(), "prompts": _prompt_ids(recipe, taxonomy), **taxonomy_inputs(taxonomy)}

        def settle(folder: RunFolder) -> tuple[list[Prediction], list[FailedPrediction]]:
            return _settle(folder, places)

        with playing(recipe, out, pool, progress, bindings=bindings.values(), inputs=inputs, settle=settle) as folder:
            await _predict_missing(recipe, places, speak, folder, progress)
            lines, failures = settle(folder)
            folder.require_whole(len(lines), len(places), "places")
            _rate_of(recipe, lines, failures).judge()
    summary = {
        "predictions": str(out / PREDICTIONS),
        "places": len(lines),
        "strategies": sum(line.strategy is not None for line in lines),
        "replies": sum(line.reply is not None for line in lines),
        "failed": len(failures),
    }
    return RunResult(out, summary)


def _prompt_ids(recipe: PredictRecipe, taxonomy: Taxonomy | None) -> dict[str, str]:
    return prompt_ids(recipe.models.bindings(), recipe.prompts.model_dump(), taxonomy=taxonomy)


def _rate_of(
    recipe: PredictRecipe, lines: Collection[Prediction], failures: Collection[FailedPrediction]
) -> FailureRate:
    """Return the failure rate so far; at the end it is judged however few places there are."""
    return FailureRate(
        recipe.max_failure_rate,
        MIN_PLACES_FOR_RATE,
        "places",
        "resume.retry_failed",
        len(lines),
        len(failures),
        hopeless=HOPELESS,
    )


def _speaker(
    recipe: PredictRecipe, pool: ModelPool, taxonomy: Taxonomy | None
) -> Callable[[Context], Awaitable[Predicted]]:
    """Return what predicts at one place."""
    from esckit.predict.predictions import Prediction

    options = recipe.predict
    roles, names = recipe.models.bindings(), recipe.prompts.model_dump()
    casting = Casting(pool, roles, names, options.max_attempts, taxonomy, recipe.strategist.readout)
    strategist = casting.strategist() if "strategist" in roles else None
    supporter = casting.supporter() if "supporter" in roles else None

    async def speak(context: Context) -> Predicted:
        ledger = Ledger(recipe.seed, context.id)
        found: dict[str, Any] = {"id": context.id}
        told = context.reference.strategy if options.strategy == "gold" and context.reference else None
        stage = "strategist"
        try:
            if strategist is not None:
                decision = await strategist.decide(context.scenario, context.turns, ledger.at("strategy"))
                found |= {"strategy": decision.strategy, "probabilities": decision.probabilities}
                told = decision.strategy if options.strategy == "predicted" else told
            stage = "supporter"
            if supporter is not None:
                found["reply"] = (
                    await supporter.reply(after_opening(context.turns), ledger.at("response"), strategy=told)
                ).response
        except ModelError as error:
            failure = FailedPrediction(
                id=context.id, stage=stage, kind=error.kind, attempts=error.attempts, message=str(error)
            )
            return Predicted(Prediction(**found), failure)
        return Predicted(Prediction(**found), None)

    return speak


async def _predict_missing(
    recipe: PredictRecipe,
    places: Sequence[Context],
    speak: Callable[[Context], Awaitable[Predicted]],
    folder: RunFolder,
    progress: Progress,
) -> None:
    """Predict what is not in ``predictions.jsonl`` yet, appending each line as it comes."""
    done, failures = _on_disk(folder)
    again = set(failures) if recipe.resume.retry_failed else set()
    kept = [line for name, line in done.items() if name not in again]
    rate = _rate_of(recipe, kept, [one for name, one in failures.items() if name not in again])
    rate.watch()
    missing = [context for context in places if context.id not in done or context.id in again]
    if missing:
        folder.begin_attempt()
    progress.start(len(places), len(places) - len(missing))
    with JsonlAppender(folder.file(PREDICTIONS)) as lines, JsonlAppender(folder.file(FAILURES)) as failed:

        def take(result: Predicted) -> None:
            # The line comes last: once it is there, so is its failure.
            if result.failure is not None:
                failed.append(result.failure)
            lines.append(result.line)
            rate.add(failed=result.failure is not None)
            progress.advance(failed=rate.n_failed)

        await run_units(missing, speak, limit=recipe.concurrency.cases, on_result=take)


def _on_disk(folder: RunFolder) -> tuple[dict[str, Prediction], dict[str, FailedPrediction]]:
    """Return predictions and failures by place, the latest of each; a failure that was mended is none."""
    from esckit.predict.predictions import Prediction

    lines: dict[str, Prediction] = {}
    if folder.file(PREDICTIONS).is_file():
        lines = {line.id: line for line in read_records(Prediction, folder.file(PREDICTIONS), allow_cut=True)}
    failures: dict[str, FailedPrediction] = {}
    if folder.file(FAILURES).is_file():
        failures = {one.id: one for one in read_records(FailedPrediction, folder.file(FAILURES), allow_cut=True)}
    kept = {
        name: one
        for name, one in failures.items()
        if name in lines and (lines[name].strategy if one.stage == "strategist" else lines[name].reply) is None
    }
    return lines, kept


def _settle(folder: RunFolder, places: Sequence[Context]) -> tuple[list[Prediction], list[FailedPrediction]]:
    """Sort both files by place."""
    lines, failures = _on_disk(folder)
    kept = [lines[context.id] for context in places if context.id in lines]
    failed = [failures[context.id] for context in places if context.id in failures]
    write_records(folder.file(PREDICTIONS), kept)
    write_records(folder.file(FAILURES), failed)
    return kept, failed
