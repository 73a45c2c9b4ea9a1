"""From a recipe's ``reward:`` to what measures R_fut while a policy is trained."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

from esckit.config.sections import BackboneBinding, RoleOptions
from esckit.errors import ConfigError
from esckit.models.backbones import find_backbone
from esckit.play.rollout import Cast, Rules
from esckit.registry import load_attr, own_code
from esckit.reward.checkpoint import load_reward_model
from esckit.reward.text import reward_template
from esckit.rl.recipe import RewardSource, TrainRlRecipe
from esckit.rl.rewards import LoopThread, Measure, OnlineMeasure, ReplyMeasure, ScoreReplies
from esckit.roles.cast import Casting, prompt_ids
from esckit.roles.pool import ModelPool, look_up
from esckit.roles.verdicts import load_preset
from esckit.types import Context, Sampling, Turn


def check_reward(recipe: TrainRlRecipe) -> None:
    """Refuse a reward that cannot be built, before anything heavy is loaded.

    Raises:
        ConfigError: If a model or a function that is named does not exist.
    """
    kind = recipe.reward.kind
    if recipe.algorithm == "dpo":
        return
    if kind == "online":
        look_up(online_bindings(recipe).values())
    elif kind == "untrained":
        assert recipe.models.reward is not None
        find_backbone(str(recipe.models.reward.backbone))
        reward_template(recipe.reward.prompt)
    elif ":" in kind:
        _own_function(kind)


def online_bindings(recipe: TrainRlRecipe) -> dict[str, RoleOptions]:
    """Return the models that play futures, by role; the supporter is the untrained policy unless one is named."""
    roles, grpo = recipe.models, recipe.grpo
    assert roles.seeker is not None
    assert roles.critic is not None
    untrained = BackboneBinding(
        backbone=roles.policy.backbone,
        sampling=Sampling(
            temperature=grpo.temperature, top_k=grpo.top_k, top_p=grpo.top_p, max_tokens=grpo.max_completion_tokens
        ),
        on_length="last_sentence",
    )
    return {"supporter": roles.supporter or untrained, "seeker": roles.seeker, "critic": roles.critic}


@contextmanager
def open_measure(recipe: TrainRlRecipe, contexts: Mapping[str, Context]) -> Iterator[tuple[Measure, dict[str, Any]]]:
    """Build what measures R_fut, with facts for the manifest; leaving the context lets its models go.

    Raises:
        EsckitError: If a model cannot be had, or cannot do what it is asked for.
    """
    kind, source = recipe.reward.kind, recipe.models.reward
    if kind == "online":
        with _online(recipe, contexts) as built:
            yield built
        return
    if ":" in kind:
        score = _own_function(kind)
    elif kind == "untrained":
        assert source is not None
        score = _untrained(recipe, source)
    else:
        assert source is not None
        score = load_reward_model(str(source.checkpoint), dtype=source.dtype, device=source.device).score
    yield ReplyMeasure(score, hard_label=recipe.reward.value == "hard_label"), {}


@contextmanager
def _online(recipe: TrainRlRecipe, contexts: Mapping[str, Context]) -> Iterator[tuple[Measure, dict[str, Any]]]:
    online, bindings = recipe.online, online_bindings(recipe)
    rules = Rules(online.horizon, Fraction(online.critic.threshold), online.score_first_exchange)
    prompts = online.prompts.model_dump()
    with LoopThread() as loop:
        pool = ModelPool(recipe.executor, recipe.budget)
        try:
            loop.run(pool.prepare(bindings))
            casting = Casting(pool, bindings, prompts, online.max_attempts)
            critic = casting.resolution_critic(online.critic, load_preset(online.critic.preset))
            cast = Cast(casting.supporter(), casting.seeker(), critic)
            spoken = {role: bindings[role] for role in ("supporter", "seeker")}
            names = {**prompt_ids(spoken, prompts), "critic": critic.prompt.identity}
            measure = OnlineMeasure(contexts, cast, rules, recipe.online.value, recipe.seed, loop)
            yield measure, {**pool.facts(), "online_prompts": names, "determinism": pool.determinism()}
        finally:
            loop.run(_close(pool))


async def _close(pool: ModelPool) -> None:
    async with pool:
        pass


def _untrained(recipe: TrainRlRecipe, source: RewardSource) -> ScoreReplies:
    """Return a model with a fresh head: the paper's random reward."""
    import torch

    from esckit.models.loading import exact_dtype, pick_device
    from esckit.reward.model import RewardModel, build_net
    from esckit.reward.recipe import RewardNetwork
    from esckit.reward.text import RewardText

    torch.manual_seed(recipe.seed)
    net, tokenizer = build_net(RewardNetwork(backbone=str(source.backbone), trainable="head"), "classifier")
    text = RewardText(tokenizer, reward_template(recipe.reward.prompt), max_length=source.max_length)
    place = pick_device(source.device)
    net.backbone.to(exact_dtype(source.dtype, place))
    return RewardModel(net.eval().to(place), text).score


def _own_function(target: str) -> ScoreReplies:
    found = load_attr(target)
    if isinstance(found, type) or not callable(found):
        raise ConfigError(f"reward.kind {target!r} is no function", expected="a function of (conversations, responses)")

    def score(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> Sequence[float | None]:
        with own_code(f"the reward {target!r}"):
            values: Sequence[float | None] = found(conversations, responses)
            # What it gives may be a generator, whose code runs only now.
            return list(values) if isinstance(values, Iterator) else values

    return score
