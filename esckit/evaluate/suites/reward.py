"""The suite ``reward``: what a trained reward model says of candidates whose simulated futures are known.

p = p(y = 1), y by the model's own label rule. A reward model must beat the length of the reply as a predictor.
Definitions are in :mod:`esckit.metrics.calibration`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeAlias

from pydantic import Field

from esckit.config.sections import Section
from esckit.documents import read_json_object
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.suite import Case, CaseFile, Material, Player, Suite, Unit, Work, family_of_runs, run_of
from esckit.metrics.calibration import (
    N_BINS,
    ContextOrder,
    PairwiseOrder,
    accuracy,
    bin_of,
    brier,
    log_loss,
    rank_correlation,
)
from esckit.metrics.metric import RATIO, Array, Estimator, Facts, Metric, Stats, Sums, Unscored, divide
from esckit.models.batches import Batches
from esckit.roles.cast import Casting
from esckit.roles.critics import ResponseScorer
from esckit.text import n_words
from esckit.types import Future, Outcome, Turn

if TYPE_CHECKING:
    from esckit.evaluate.recipe import EvaluateRecipe
    from esckit.metrics.rows import Measurement, MetricRow
    from esckit.reward.model import RewardModel

Reading: TypeAlias = list[float] | ModelError
"""What each model says of a future, or why they cannot read it."""

BATCH_FUTURES = 64
"""Futures that are scored together: enough to fill a row, and few enough that a broken run loses little."""


class RewardSettings(Section):
    """The suite ``reward``: a reward model on scored futures of held-out dialogues.

    Attributes:
        inputs: Run folders of ``esckit simulate`` whose futures are scored.
    """

    inputs: tuple[str, ...] = ()


# ---------------------------------------------------------------- cases


class RewardCase(Case):
    """One scored future and what the reward model says of its candidate.

    Attributes:
        context_id: The context whose candidates are compared with each other.
        p: The model's probability of y = 1; None if unscored.
        y: Label by the model's own rule.
        reward_num: Numerator of the simulated reward.
        reward_den: Its denominator.
        n_words: Words of the candidate's reply.
        p_untrained: Probability under the untrained head, None if not asked.
    """

    SCHEMA: ClassVar[str] = "esckit.case.reward/1"
    ANSWERS: ClassVar[str] = "reward"

    context_id: str
    p: float | None = Field(default=None, ge=0.0, le=1.0)
    y: bool
    reward_num: int
    reward_den: int = Field(ge=1)
    n_words: int = Field(default=0, ge=0)
    p_untrained: float | None = Field(default=None, ge=0.0, le=1.0)

    @property
    def reward(self) -> Fraction:
        """The simulated reward, exactly."""
        return Fraction(self.reward_num, self.reward_den)


def reward_work(material: Material) -> Work:
    """Return the cases of the suite: every scored future of the inputs.

    Raises:
        DataError: If there is none.
    """
    recipe, inputs = material.recipe, material.futures
    futures = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    if not futures:
        raise DataError("no scored future", path=", ".join(recipe.settings.reward.inputs), expected="at least one")
    has_several_seeds = futures[0].run_seed != futures[-1].run_seed
    units = tuple(
        Unit(
            f"{future.run_seed}/{future.id}" if has_several_seeds else future.id,
            future.dialogue_id,
            RewardTask(future, inputs.contexts[future.context_id].turns),
        )
        for future in futures
    )

    return Work(units=units, calls={"reward": len(futures)}, given={**inputs.simulation}, roles=("reward",))


class RewardTask(NamedTuple):
    """A scored future, with the turns of its context."""

    future: Future
    turns: tuple[Turn, ...]


def reward_player(recipe: EvaluateRecipe, casting: Casting, simulation: Mapping[str, str | int | bool]) -> Player:
    """Return what asks the reward model about a future.

    Raises:
        DataError: If the futures are of another kind than those the model was trained on.
    """
    from esckit.reward.run import RewardKind

    binding = recipe.models.reward
    assert binding is not None
    options = {"dtype": binding.dtype, "device": binding.device, "is_invariant": recipe.executor.is_invariant}
    model = RewardKind().load(run_of(binding.checkpoint), "scorer", {}, **options)
    delta = _delta(model, simulation)
    batches = FutureBatches((model, _untrained(model, recipe.seed)))

    async def play(unit: Unit) -> RewardCase:
        reading = await batches.read(unit.what)
        if isinstance(reading, ModelError):
            return _case(unit, delta, unscored=reading.kind)
        p, p_untrained = reading
        return _case(unit, delta, p=p, p_untrained=p_untrained)

    return play


def _untrained(model: RewardModel, seed: int) -> RewardModel:
    """Return the model's backbone under a head that has learnt nothing, which a reward model must beat."""
    from transformers import set_seed

    from esckit.reward.model import RewardModel, build_net
    from esckit.reward.recipe import RewardNetwork

    assert model.metadata is not None
    set_seed(seed % 2**32)
    network = RewardNetwork(backbone=model.metadata.backbone, pooling=model.metadata.pooling)
    net, _ = build_net(network, model.metadata.kind)
    place = next(model.net.parameters()).device
    return RewardModel(net.eval().to(place), model.text, is_invariant=model.is_invariant)


class FutureBatches:
    """Asks several models about futures: those that wait are read together, so that what they share is read once.

    Args:
        models: All are asked about every future.
    """

    def __init__(self, models: Sequence[ResponseScorer]) -> None:
        self._models = models
        self._batches: Batches[RewardTask, list[float]] = Batches(self._score, _by_dialogue)

    async def read(self, task: RewardTask) -> Reading:
        """Return what each model says of a future."""
        try:
            return await self._batches.ask(task)
        except ModelError as error:
            return error

    def _score(self, batch: Sequence[RewardTask]) -> list[list[float]]:
        replies = [task.future.exchanges[0].supporter.response for task in batch]
        scores = [model.score([task.turns for task in batch], replies) for model in self._models]
        return [list(reading) for reading in zip(*scores, strict=True)]


def _by_dialogue(waiting: Sequence[RewardTask]) -> tuple[list[int], list[int]]:
    """Return the places of at least :data:`BATCH_FUTURES` tasks, or of all, and the others; dialogues stay together."""
    by_dialogue: dict[str, list[int]] = {}
    for place, task in enumerate(waiting):
        by_dialogue.setdefault(task.future.dialogue_id, []).append(place)
    now: list[int] = []
    later: list[int] = []
    for together in by_dialogue.values():
        (now if len(now) < BATCH_FUTURES else later).extend(together)
    return now, later


def _delta(model: RewardModel, simulation: Mapping[str, str | int | bool]) -> Fraction | None:
    """Return the model's label rule: a reward strictly above δ is good; None takes reaching the goal.

    Raises:
        DataError: If the futures are of another kind than those the model was trained on.
    """
    if model.metadata is None:
        raise ConfigError("a reward model that was not trained", expected="a run folder of train-reward")
    trained = model.metadata.simulation
    differing = sorted(name for name in {*trained, *simulation} if trained.get(name) != simulation.get(name))
    if differing:
        shown = ", ".join(f"{name} {simulation.get(name)} (trained on {trained.get(name)})" for name in differing)
        raise DataError(
            f"futures of another kind than the reward model's: {shown}",
            expected="one preset, read-out, horizon, threshold and critic prompt",
        )
    return None if model.metadata.delta is None else Fraction(model.metadata.delta)


def _case(unit: Unit, delta: Fraction | None, **fields: Any) -> RewardCase:
    future: Future = unit.what.future
    reward = future.fraction
    assert reward is not None
    return RewardCase(
        id=unit.id,
        dialogue_id=future.dialogue_id,
        context_id=future.context_id,
        y=future.outcome is Outcome.RESOLVED if delta is None else reward > delta,
        reward_num=reward.numerator,
        reward_den=reward.denominator,
        n_words=n_words(future.exchanges[0].supporter.response),
        **fields,
    )


# ---------------------------------------------------------------- metrics

RewardMetric = Metric[RewardCase]


def _metric(
    name: str, read: Callable[[RewardCase, float], Stats | None], estimator: Estimator, **facts: Any
) -> RewardMetric:
    """Return a metric over the cases that the model scored."""

    def collect(case: RewardCase) -> Stats | Unscored | None:
        if case.unscored is not None or case.p is None:
            return Unscored(case.unscored or "missing")
        return read(case, case.p)

    return Metric(Facts(f"reward.{name}", **facts), collect, estimator)


def _mean_of(name: str, of: Callable[[Sequence[float], Sequence[bool]], float | None], **facts: Any) -> RewardMetric:
    """Return a metric that is a mean over cases."""
    return _metric(name, lambda case, p: (of((p,), (case.y,)) or 0.0, 1.0), RATIO, **facts)


def _bin_sums(case: RewardCase, p: float) -> Stats:
    sums = [0.0] * (3 * N_BINS)
    start = 3 * bin_of(p)
    sums[start : start + 3] = [1.0, p, float(case.y)]
    return tuple(sums)


def _ece_of(sums: Array) -> Array:
    """Return the calibration error of (R, 3·bins) sums: per bin n, Σp, Σy."""
    n, p, y = (sums[:, offset::3] for offset in range(3))
    return divide(abs(p - y).sum(axis=1), n.sum(axis=1))


def reward_metrics() -> tuple[RewardMetric, ...]:
    """Return the suite's metrics."""
    return (
        _mean_of("accuracy", accuracy, counts=("correct", "cases")),
        _metric("auc", lambda case, p: (p, case.y), PairwiseOrder(), minimum="both classes"),
        _metric(
            "pair_accuracy",
            lambda case, p: (case.context_id, p, case.reward),
            ContextOrder(),
            minimum="1 pair of candidates with different rewards",
        ),
        _mean_of("brier", brier, higher_is_better=False),
        _mean_of("log_loss", log_loss, unit="nats", range=(0.0, None), higher_is_better=False),
        _metric("ece", _bin_sums, Sums(_ece_of), higher_is_better=False),
        _metric(
            "spearman",
            lambda case, p: (p, float(case.reward)),
            rank_correlation(3),
            unit="none",
            range=(-1.0, 1.0),
            minimum="3 different rewards",
        ),
    )


def _majority(sums: Array) -> Array:
    import numpy as np

    return divide(np.maximum(sums[:, 0], sums[:, 1] - sums[:, 0]), sums[:, 1])


def reward_rows(cases: Sequence[RewardCase], measurement: Measurement) -> list[MetricRow]:
    """Return all rows of the suite: the metrics, what they must beat, and the reliability table by bin."""
    untested: dict[str, Any] = {"higher_is_better": None, "test": "none"}
    of_classes: dict[str, Any] = {**untested, "minimum": "both classes"}
    in_bin: dict[str, Any] = {**untested, "counts": ("sum", "cases")}
    beside = [
        _metric(
            "majority_accuracy",
            lambda case, _: (float(case.y), 1.0),
            Sums(_majority),
            counts=("positive", "cases"),
            **untested,
        ),
        _metric("length_auc", lambda case, _: (float(case.n_words), case.y), PairwiseOrder(), **of_classes),
    ]
    if any(case.p_untrained is not None for case in cases):
        beside.append(
            _metric(
                "untrained_auc",
                lambda case, _: None if case.p_untrained is None else (case.p_untrained, case.y),
                PairwiseOrder(),
                **of_classes,
            )
        )
    rows = [measurement.row(metric, cases) for metric in (*reward_metrics(), *beside)]
    no_interval = "the mean of what was sorted into the bin"
    mean_p = _metric("bin_p", lambda _, p: (p, 1.0), RATIO, interval="none", no_interval=no_interval, **in_bin)
    mean_y = _metric("bin_y", lambda case, _: (float(case.y), 1.0), RATIO, interval="wilson", **in_bin)
    for index in range(N_BINS):
        chosen = [case for case in cases if case.p is not None and bin_of(case.p) == index]
        if chosen:
            rows += [measurement.row(metric, chosen, group={"bin": index}) for metric in (mean_p, mean_y)]
    return rows


# ---------------------------------------------------------------- the suite


def _conditions(material: Material, cases: Mapping[str, str]) -> dict[str, Any]:
    assert material.recipe.models.reward is not None
    metadata = run_of(material.recipe.models.reward.checkpoint) / "checkpoint" / "reward.json"
    # Read as plain JSON: the class of this file comes with torch, which nothing needs before a model is called.
    label = str(read_json_object(metadata).get("delta") or "goal") if metadata.is_file() else None
    return {**cases, "futures": dict(material.futures.digests), "label": label}


REWARD = Suite(
    name="reward",
    roles=lambda recipe: ("reward",),
    files=(
        CaseFile(
            name="reward",
            kind=RewardCase,
            work=reward_work,
            prepare=reward_player,
            batch=BATCH_FUTURES,
            metrics=lambda recipe, strategies: reward_metrics(),
            rows=lambda recipe, strategies, cases, measurement: reward_rows(cases, measurement),
        ),
    ),
    conditions=_conditions,
    fields=lambda recipe: ("settings.reward.inputs",),
    family=lambda material: family_of_runs(material.recipe.settings.reward.inputs),
)
