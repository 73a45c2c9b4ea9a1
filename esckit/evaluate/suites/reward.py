"""The suite ``reward``: what a trained reward model says of candidates whose simulated futures are known."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import TYPE_CHECKING, TypeAlias

from esckit.config.sections import CheckpointBinding
from esckit.errors import ConfigError, DataError, ModelError, NotFiniteError
from esckit.evaluate.cases import RewardCase
from esckit.evaluate.lineage import run_of
from esckit.evaluate.recipe import EvaluateRecipe
from esckit.evaluate.suites.suite import Done, Player, Unit, Work
from esckit.play.futures import RewardInputs, read_inputs
from esckit.roles.cast import Casting
from esckit.roles.critics import ResponseScorer
from esckit.text import n_words
from esckit.types import Context, Future, Outcome

if TYPE_CHECKING:
    from esckit.reward.model import RewardModel


Said: TypeAlias = list[float] | ModelError


_LOT = 64
"""Futures that are scored together: enough to fill a row, and few enough that a broken run loses little."""


def reward_work(recipe: EvaluateRecipe, inputs: RewardInputs) -> Work:
    """Return the cases of the suite: every scored future of the inputs.

    Raises:
        DataError: If there is none.
    """
    binding = recipe.models.reward
    assert binding is not None
    futures = [future for future in inputs.futures if future.outcome is not Outcome.FAILED]
    if not futures:
        raise DataError("no scored future", path=", ".join(recipe.settings.reward.inputs), expected="at least one")
    units = tuple(Unit(case_id(future, futures), future.dialogue_id, future) for future in futures)

    def prepare(casting: Casting, done: Done) -> Player:
        model = _load(binding)
        labels = _Labels.of(model, inputs)
        known = done.get("reward", {})
        missing = [unit for unit in units if (case := known.get(unit.id)) is None or case.unscored is not None]
        lots = Lots((model, _untrained(model, recipe.seed)), inputs.contexts, missing)

        async def play(unit: Unit) -> RewardCase:
            said = await lots.read(unit)
            if isinstance(said, ModelError):
                return labels.case(unit.id, unit.what, None, reason=said.kind)
            p, p_untrained = said
            return labels.case(unit.id, unit.what, p).model_copy(update={"p_untrained": p_untrained})

        return play

    return Work(
        suite="reward",
        file="reward",
        kind=RewardCase,
        units=units,
        calls={"reward": len(futures)},
        prepare=prepare,
        roles=("reward",),
    )


def reward_inputs(recipe: EvaluateRecipe) -> RewardInputs:
    """Read the futures of the suite."""
    return read_inputs(recipe.settings.reward.inputs)


def case_id(future: Future, futures: list[Future]) -> str:
    """Return a future's id, with its run seed where the inputs have several."""
    several = any(other.run_seed != future.run_seed for other in futures[:1] + futures[-1:])
    return f"{future.run_seed}/{future.id}" if several else future.id


def _load(binding: CheckpointBinding) -> RewardModel:
    from esckit.models.backbones import quiet_off_terminal
    from esckit.reward.checkpoint import load_reward_model

    quiet_off_terminal()
    return load_reward_model(run_of(binding.checkpoint), dtype=binding.dtype, device=binding.device)


def _untrained(model: RewardModel, seed: int) -> RewardModel:
    """Return the model's backbone under a head that has learnt nothing, which a reward model must beat."""
    from transformers import set_seed

    from esckit.reward.model import RewardModel, build_net
    from esckit.reward.recipe import RewardNetwork

    assert model.metadata is not None
    set_seed(seed % 2**32)
    network = RewardNetwork(backbone=model.metadata.backbone, pooling=model.metadata.pooling)
    net, _ = build_net(network, model.metadata.kind)
    return RewardModel(net.eval().to(next(model.net.parameters()).device), model.text)


class Lots:
    """Asks several models about futures, a lot at a time: what the futures of a dialogue share is read once.

    Args:
        models: All are asked about every future.
        contexts: By id.
        units: The futures that may be asked about.
    """

    def __init__(
        self, models: Sequence[ResponseScorer], contexts: Mapping[str, Context], units: Sequence[Unit]
    ) -> None:
        self._models, self._contexts = models, contexts
        self._lots = list(_lots(units))
        self._lot_of = {unit.id: at for at, lot in enumerate(self._lots) for unit in lot}
        self._readings: dict[int, asyncio.Task[dict[str, Said]]] = {}
        self._turn = asyncio.Lock()

    async def read(self, unit: Unit) -> Said:
        """Return what each model says of a future, or why they cannot read it; its lot is read along, once."""
        at = self._lot_of[unit.id]
        if at not in self._readings:
            self._readings[at] = asyncio.create_task(self._read(self._lots[at]))
        return (await self._readings[at])[unit.id]

    async def _read(self, lot: Sequence[Unit]) -> dict[str, Said]:
        async with self._turn:
            return await asyncio.to_thread(self._score, lot)

    def _score(self, lot: Sequence[Unit]) -> dict[str, Said]:
        turns = [self._contexts[unit.what.context_id].turns for unit in lot]
        replies = [unit.what.exchanges[0].supporter.response for unit in lot]
        try:
            scores = [model.score(turns, replies) for model in self._models]
        except (ModelError, NotFiniteError) as error:
            if len(lot) == 1:
                return {lot[0].id: error.as_failure() if isinstance(error, NotFiniteError) else error}
            # One that cannot be read does not take the others along.
            return {name: said for unit in lot for name, said in self._score([unit]).items()}
        return {unit.id: said for unit, *said in zip(lot, *scores, strict=True)}


def _lots(units: Sequence[Unit]) -> Iterator[list[Unit]]:
    """Yield units in lots of about :data:`_LOT`, those of a dialogue together."""
    by_dialogue: dict[str, list[Unit]] = {}
    for unit in units:
        by_dialogue.setdefault(unit.dialogue_id, []).append(unit)
    lot: list[Unit] = []
    for together in by_dialogue.values():
        lot += together
        if len(lot) >= _LOT:
            yield lot
            lot = []
    if lot:
        yield lot


class _Labels:
    """Good or not, by the rule that the model was trained with.

    Args:
        delta: A reward strictly above it is good; None takes reaching the goal.
    """

    def __init__(self, delta: Fraction | None) -> None:
        self.delta = delta

    @classmethod
    def of(cls, model: RewardModel, inputs: RewardInputs) -> _Labels:
        """Return the labels of a model, refused for futures of another kind than it was trained on.

        Raises:
            DataError: If preset, read-out, horizon, threshold or critic prompt differ.
        """
        if model.metadata is None:
            raise ConfigError("a reward model that was not trained", expected="a run folder of train-reward")
        _check_alike(model.metadata.simulation, inputs.simulation)
        delta = model.metadata.delta
        return cls(None if delta is None else Fraction(delta))

    def case(self, name: str, future: Future, p: float | None, *, reason: str | None = None) -> RewardCase:
        """Return the case of a future."""
        reward = future.fraction
        assert reward is not None
        good = future.outcome is Outcome.RESOLVED if self.delta is None else reward > self.delta
        return RewardCase(
            id=name,
            dialogue_id=future.dialogue_id,
            unscored=reason,
            context_id=future.context_id,
            p=p,
            y=good,
            reward_num=reward.numerator,
            reward_den=reward.denominator,
            n_words=n_words(future.exchanges[0].supporter.response),
        )


def _check_alike(trained: Mapping[str, str | int | bool], found: Mapping[str, str | int | bool]) -> None:
    differing = [name for name in {*trained, *found} if trained.get(name) != found.get(name)]
    if differing:
        shown = ", ".join(f"{name} {found.get(name)} (trained on {trained.get(name)})" for name in sorted(differing))
        raise DataError(
            f"futures of another kind than the reward model's: {shown}",
            expected="one preset, read-out, horizon, threshold and critic prompt",
        )
