"""The suite ``reward``: what a trained reward model says of candidates whose simulated futures are known."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from fractions import Fraction
from typing import TYPE_CHECKING

from esckit.config.evaluate import EvaluateRecipe
from esckit.config.models import CheckpointBinding
from esckit.errors import ConfigError, DataError, ModelError
from esckit.evaluate.cases import RewardCase
from esckit.pipelines.evaluate_players import Casting
from esckit.pipelines.evaluate_suites.work import Done, Player, Unit, Work
from esckit.pipelines.leakage import run_of
from esckit.pipelines.reward_inputs import RewardInputs, read_inputs
from esckit.types import Future, Outcome

if TYPE_CHECKING:
    from esckit.models.reward import RewardModel


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

    def prepare(casting: Casting, done: Done) -> Player:
        model = _load(binding)
        labels = _Labels.of(model, inputs)
        untrained = _untrained(model, recipe.seed)
        turn = asyncio.Lock()

        async def play(unit: Unit) -> RewardCase:
            future: Future = unit.what
            turns = inputs.contexts[future.context_id].turns
            reply = future.exchanges[0].supporter.response
            try:
                async with turn:
                    (p,) = await asyncio.to_thread(model.score, [turns], [reply])
                    (p_untrained,) = await asyncio.to_thread(untrained.score, [turns], [reply])
            except ModelError as error:
                return labels.case(unit.id, future, None, reason=error.kind)
            return labels.case(unit.id, future, p).model_copy(update={"p_untrained": p_untrained})

        return play

    return Work(
        suite="reward",
        file="reward",
        kind=RewardCase,
        units=tuple(Unit(case_id(future, futures), future.dialogue_id, future) for future in futures),
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
    from esckit.models.embedded import quiet_off_terminal
    from esckit.pipelines.reward_models import load_reward_model

    quiet_off_terminal()
    return load_reward_model(run_of(binding.checkpoint), dtype=binding.dtype, device=binding.device)


def _untrained(model: RewardModel, seed: int) -> RewardModel:
    """Return the model's backbone under a head that has learnt nothing, which a reward model must beat."""
    from transformers import set_seed

    from esckit.models.reward import RewardModel
    from esckit.models.reward_net import build_net

    assert model.metadata is not None
    set_seed(seed % 2**32)
    net, _ = build_net(model.metadata.backbone, model.metadata.kind, trainable="full", pooling=model.metadata.pooling)
    return RewardModel(net.eval().to(next(model.net.parameters()).device), model.text)


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
            n_words=len(future.exchanges[0].supporter.response.split()),
        )


def _check_alike(trained: Mapping[str, str | int | bool], found: Mapping[str, str | int | bool]) -> None:
    differing = [name for name in {*trained, *found} if trained.get(name) != found.get(name)]
    if differing:
        shown = ", ".join(f"{name} {found.get(name)} (trained on {trained.get(name)})" for name in sorted(differing))
        raise DataError(
            f"futures of another kind than the reward model's: {shown}",
            expected="one preset, read-out, horizon, threshold and critic prompt",
        )
