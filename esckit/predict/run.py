"""``esckit predict``: what a strategist and a supporter say to dialogues of one's own, as a predictions file.

The run folder holds ``predictions.jsonl`` (appended as places finish, sorted at the end), which ``esckit evaluate``
reads, ``failures.jsonl`` and ``metrics.jsonl`` (timings only). A place where a model gave nothing usable has a line
without strategy or reply. A line is ``{"schema": "esckit.prediction/1", "id": "esconv-9b1f37be6d7e#m5", "strategy":
"Question", "probabilities": null, "reply": "…"}``; anybody may write such a file, and a line for each case of an
evaluation is all that it needs.
"""

from __future__ import annotations

import asyncio
from array import array
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

from pydantic import Field, PositiveInt, model_validator

from esckit.config import sections
from esckit.config.data import AlternatingData
from esckit.data.contexts import Contexts, after_opening, context_before, contexts
from esckit.data.selection import Selection, select_dialogues
from esckit.errors import ConfigError, DataError, ModelError
from esckit.ledger import Ledger
from esckit.lineage import require_runs
from esckit.models.chat import split_reasoning
from esckit.play.executor import UnitPlayers
from esckit.play.forecast import Staged, StagedFile
from esckit.play.pilot import Pilot
from esckit.play.places import executing
from esckit.play.runner import (
    HOPELESS,
    FailureRate,
    NoProgress,
    Plan,
    RunResult,
    play_units,
    played_inputs,
    playing,
)
from esckit.play.unit_file import UnitFile, latest
from esckit.protocols import Progress
from esckit.records import read_records, write_records
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up, part_of, policy_taxonomy, require_checkpoints
from esckit.roles.rehearsal import answers
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.text import listed
from esckit.types import Context, Record

PREDICTIONS = "predictions.jsonl"

FAILURES = "failures.jsonl"

MIN_PLACES_FOR_RATE = 20

_Strategist = Annotated[
    sections.StrategistBinding, sections.role_defaults(sampling={"temperature": 0.0, "max_tokens": 256})
]

_Supporter = Annotated[
    sections.SupporterBinding,
    sections.role_defaults(sampling={"temperature": 0.0, "max_tokens": 512}, on_length="last_sentence"),
]


class PredictModels(sections.Roles):
    """Who speaks: a strategist, a supporter or both."""

    strategist: _Strategist | None = None
    supporter: _Supporter | None = None


class Predict(sections.Section):
    """What is predicted.

    Attributes:
        at: Every supporter turn of the dialogues, or what comes after their last turn.
        strategy: Which strategy the supporter is given: the strategist's, the corpus's own, or none.
        max_attempts: Tries in all for one answer.
    """

    at: Literal["turns", "end"] = "turns"
    strategy: Literal["predicted", "gold", "none"] = "none"
    max_attempts: int = Field(default=3, ge=1, le=10)


class PredictPrompts(sections.Prompts):
    """Prompt of each role: the name of a shipped one, or a file.

    Attributes:
        strategist: None takes AFlow's own for its taxonomy, and one that fits any taxonomy elsewhere.
        supporter: One with a ``transcript`` is worded turn by turn under a strategy, as AFlow's supporter is.
    """

    strategist: str | None = None
    supporter: str = "supporter_rlff"


class PredictConcurrency(sections.Section):
    """How much is in flight at once; changes no result. Operational.

    Attributes:
        cases: Cases that are played at the same time.
    """

    cases: PositiveInt = Field(default=16, le=1024)


class PredictRecipe(sections.ModelRecipe):
    """The recipe of ``esckit predict``.

    Attributes:
        taxonomy: Name or file of the taxonomy of strategies; None takes that of a trained strategist, else the
            corpus's.
    """

    command: Literal["predict"]
    data: AlternatingData
    taxonomy: str | None = None
    models: PredictModels
    predict: Predict = Predict()
    strategist: sections.Strategist = sections.Strategist()
    prompts: PredictPrompts = PredictPrompts()
    concurrency: PredictConcurrency = PredictConcurrency()
    resume: sections.Resume = sections.Resume()
    max_failure_rate: float = Field(default=0.05, ge=0.0, le=1.0)

    @model_validator(mode="after")
    def _fits_together(self) -> Self:
        named = self.models.bindings()
        if not named:
            raise ValueError("models is empty: name a strategist, a supporter or both")
        if self.predict.strategy == "predicted" and len(named) < len(PredictModels.model_fields):
            raise ValueError("predict.strategy: predicted needs models.strategist and models.supporter")
        if self.predict.strategy == "gold" and self.predict.at == "end":
            raise ValueError("predict.strategy: gold needs at: turns, since the corpus ends there")
        sections.check_prices(self.budget, named.values())
        sections.check_worlds(named, is_guided=self.predict.strategy != "none")
        return self


if TYPE_CHECKING:
    from esckit.metrics.metric import Unscored


class Prediction(Record):
    """One line of a predictions file.

    Attributes:
        id: Case id.
        strategy: A strategy label, resolved through the taxonomy later.
        probabilities: Probability per strategy in taxonomy order.
        reply: The reply alone, without reasoning or tags.
    """

    SCHEMA: ClassVar[str] = "esckit.prediction/1"

    id: str
    strategy: str | None = None
    probabilities: tuple[float, ...] | None = None
    reply: str | None = None


def read_predictions(path: Path, case_ids: Collection[str]) -> dict[str, Prediction]:
    """Return the predictions of a file by case id; a case without a line is unscored (``missing``).

    Reasoning that a reply brings along is no part of it.

    Raises:
        DataError: If there is no line, or an id stands there twice or belongs to no case.
    """
    found: dict[str, Prediction] = {}
    for prediction in read_records(Prediction, path):
        if prediction.id in found:
            raise DataError(f"id {prediction.id!r} twice", path=str(path), expected="one line for each case")
        answer = split_reasoning(prediction.reply or "").answer
        is_alone = answer == (prediction.reply or "")
        found[prediction.id] = prediction if is_alone else prediction.model_copy(update={"reply": answer})
    if not found:
        raise DataError("no prediction", path=str(path), expected="one line for each case")
    known = set(case_ids)
    if unknown := [name for name in found if name not in known]:
        raise DataError(
            f"{len(unknown)} unknown {'id' if len(unknown) == 1 else 'ids'}: {listed(unknown, limit=3)}",
            path=str(path),
            expected="ids of the cases of this data, split and unit",
        )
    return found


def predicted(prediction: Prediction | None, field: Literal["reply", "strategy"]) -> str | Unscored:
    """Return a case's predicted reply, or its strategy label as it stands there, or why it has none."""
    from esckit.metrics.metric import Unscored

    text: str | None = getattr(prediction, field) if prediction else None
    if text is None:
        return Unscored("missing")
    return text if text.strip() else Unscored("blank")


class FailedPrediction(Record):
    """A line of ``failures.jsonl``."""

    id: str
    stage: str
    kind: str
    attempts: int
    message: str


def plan(recipe: PredictRecipe) -> Plan:
    """Return what a run of the recipe would do, without any model.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, places = _places(recipe)
    taxonomy = _taxonomy(recipe, selection)
    require_checkpoints(recipe.models.bindings(), taxonomy)
    counts = {"dialogues": len(selection.dialogues), "places": len(places)}
    named = recipe.models.bindings()
    calls = sections.calls_of_models(dict.fromkeys(named, len(places)), named)
    file = StagedFile(len(places), places.__getitem__, calls)
    return Plan(counts, calls, Staged(recipe, cast, (taxonomy,), {PREDICTIONS: file}, answers(taxonomy)))


def run(recipe: PredictRecipe, *, out: Path, progress: Progress | None = None, pilot: int | None = None) -> RunResult:
    """Predict at every place that is not in the run folder yet.

    Args:
        recipe: The recipe.
        out: The run folder; it is created, or resumed if it belongs to this recipe.
        progress: Shows how far the run is.
        pilot: Play so many units only, and estimate what the rest will take.

    Raises:
        EsckitError: See :mod:`esckit.errors`; what is done stays on disk.
        PilotPlayed: When the pilot is played.
    """
    selection, places = _places(recipe)
    return asyncio.run(_run(recipe, selection, places, out, progress or NoProgress(), pilot))


def known_inputs(recipe: PredictRecipe) -> dict[str, Any]:
    """Return what a run of the recipe is known by beside the recipe.

    Raises:
        EsckitError: If the data or the recipe is wrong.
    """
    selection, _ = _places(recipe)
    taxonomy = _taxonomy(recipe, selection)
    inputs = {"data": selection.facts(), "prompts": _prompt_ids(recipe, taxonomy)}
    return played_inputs(inputs, recipe.models.bindings().values(), taxonomy)


def _places(recipe: PredictRecipe) -> tuple[Selection, Contexts]:
    require_runs(recipe)
    look_up(recipe.models.bindings().values())
    gold = recipe.predict.strategy == "gold"
    selection = select_dialogues(recipe.data, taxonomy=recipe.taxonomy if gold else None)
    _prompt_ids(recipe, _taxonomy(recipe, selection))
    ids, owners, answers = list[str](), array("I"), array("I")
    for number, dialogue in enumerate(selection.dialogues):
        if recipe.predict.at == "turns":
            turns = [
                len(context.turns)
                for context in contexts(dialogue, merged=True)
                if not gold or (context.reference is not None and context.reference.strategy)
            ]
        else:
            turns = [len(dialogue.turns)] if dialogue.turns and dialogue.turns[-1].speaker == "seeker" else []
        ids.append(dialogue.id)
        owners.extend([number] * len(turns))
        answers.extend(turns)
    if not answers:
        expected = "a dialogue that ends with the seeker" if recipe.predict.at == "end" else "a supporter turn"
        raise DataError("no place to predict at", path=recipe.data.path, expected=expected)
    return selection, Contexts(ids, owners, answers, lambda number, at: context_before(selection.dialogues[number], at))


def _taxonomy(recipe: PredictRecipe, selection: Selection) -> Taxonomy | None:
    """Return the wanted taxonomy, else a trained strategist's own, else the corpus's; a strategist needs one."""
    strategist = recipe.models.strategist
    if recipe.taxonomy is not None:
        return load_taxonomy(recipe.taxonomy)
    if isinstance(strategist, sections.Checkpoint) and part_of("strategist", strategist) == "strategist":
        return policy_taxonomy(Path(strategist.checkpoint))
    if selection.taxonomy is None and strategist is not None:
        raise ConfigError("a strategist without a taxonomy", expected="taxonomy: NAME or FILE.yaml")
    return selection.known_strategies() if strategist else selection.strategies


async def _run(
    recipe: PredictRecipe,
    selection: Selection,
    places: Contexts,
    out: Path,
    progress: Progress,
    pilot: int | None,
) -> RunResult:
    taxonomy = _taxonomy(recipe, selection)
    async with executing(recipe, recipe.concurrency.cases, cast, taxonomy) as executor:
        inputs = {"data": selection.facts(), **executor.inputs}

        def is_failed(line: Prediction) -> bool:
            """Return whether somebody whom the recipe names gave no answer."""
            named = recipe.models
            return (named.strategist is not None and line.strategy is None) or (
                named.supporter is not None and line.reply is None
            )

        def settle() -> None:
            """Sort the failures by place, without those that were mended."""
            found = latest(out / FAILURES, FailedPrediction)
            write_records(
                out / FAILURES, (found[line.id] for line in file.records() if is_failed(line) and line.id in found)
            )

        file = UnitFile(
            PREDICTIONS,
            Prediction,
            ids=places.ids,
            unit=places.__getitem__,
            is_failed=is_failed,
            is_retried=is_failed if recipe.resume.retry_failed else None,
            beside={FailedPrediction: FAILURES},
            timed_as="place",
        )
        players = recipe.models.bindings().values()
        async with playing(recipe, out, executor, bindings=players, inputs=inputs, taxonomy=taxonomy) as folder:
            file.read(out)
            rate = FailureRate(
                recipe.max_failure_rate, MIN_PLACES_FOR_RATE, "places", "resume.retry_failed", hopeless=HOPELESS
            )
            chosen = Pilot.of(recipe, pilot)
            await play_units([file], folder, executor, rate, progress, settled=settle, pilot=chosen)
            rate.judge()
    given = Counter[str]()
    for line in file.records():
        given["strategies"] += line.strategy is not None
        given["replies"] += line.reply is not None
    summary = {
        "predictions": str(out / PREDICTIONS),
        "places": file.n_found,
        "strategies": given["strategies"],
        "replies": given["replies"],
        "failed": rate.n_failed,
    }
    return RunResult(out, summary)


def _prompt_ids(recipe: PredictRecipe, taxonomy: Taxonomy | None) -> dict[str, str]:
    return prompt_ids(recipe.models.bindings(), recipe.prompts.model_dump(), taxonomy=taxonomy)


async def cast(pool: ModelPool, recipe: PredictRecipe, taxonomy: Taxonomy | None) -> UnitPlayers:
    """Return who predicts at the places of a recipe.

    Args:
        pool: Where the models are loaded.
        recipe: The recipe.
        taxonomy: Of the strategies; None where none is named.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what its role needs.
    """
    await pool.prepare(recipe.models.bindings())
    options = recipe.predict
    roles, names = recipe.models.bindings(), recipe.prompts.model_dump()
    casting = Casting(pool, roles, names, options.max_attempts, taxonomy, recipe.strategist.readout)
    strategist = casting.strategist() if "strategist" in roles else None
    supporter = casting.supporter() if "supporter" in roles else None

    async def speak(context: Context) -> tuple[Record, ...]:
        ledger = Ledger(recipe.seed, context.id)
        found: dict[str, Any] = {"id": context.id}
        strategy = context.reference.strategy if options.strategy == "gold" and context.reference else None
        stage = "strategist"
        try:
            if strategist is not None:
                decision = await strategist.decide(context.scenario, context.turns, ledger.at("strategy"))
                found |= {"strategy": decision.strategy, "probabilities": decision.probabilities}
                strategy = decision.strategy if options.strategy == "predicted" else strategy
            stage = "supporter"
            if supporter is not None:
                found["reply"] = (
                    await supporter.reply(after_opening(context.turns), ledger.at("response"), strategy=strategy)
                ).response
        except ModelError as error:
            failure = FailedPrediction(
                id=context.id, stage=stage, kind=error.kind, attempts=error.attempts, message=str(error)
            )
            return failure, Prediction(**found)
        return (Prediction(**found),)

    return UnitPlayers({PREDICTIONS: speak}, {"prompts": _prompt_ids(recipe, taxonomy)})
