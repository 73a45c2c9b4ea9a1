"""What ``train-rl`` plays while training with online rewards, as a forecast can rehearse it.

It plays a future after every output of the policy, or whole dialogues with it (``episode: dialogue``), and the same
with each dev context whenever dev is measured. They are rehearsed as what other commands play is
(:mod:`esckit.play.forecast`), with outputs as long as the policy's may be.
"""

from __future__ import annotations

from collections.abc import Sequence

from esckit.config.sections import calls_of_models
from esckit.ledger import Ledger
from esckit.play.executor import UnitPlayers
from esckit.play.forecast import Staged, StagedFile
from esckit.play.rollout import Cast, Conversation, play_future
from esckit.rl.recipe import TrainRlRecipe
from esckit.rl.rewards import after, online_bindings, online_players, online_rules
from esckit.rl.rows import RlMaterial
from esckit.roles.asking import read_output
from esckit.roles.pool import ModelPool
from esckit.roles.rehearsal import answers, longest_text
from esckit.training.run import StepPlan
from esckit.types import Context, Turn

TRAIN, DEV = "train", "dev"


def staged_play(recipe: TrainRlRecipe, material: RlMaterial, steps: StepPlan) -> Staged:
    """Return the futures or dialogues of a training; equal outputs of one context are counted as different."""
    grpo, every = recipe.grpo, recipe.monitor.dev_every
    dev = material.dev[: recipe.dev.max_contexts]
    # Before the first step, every so many steps, and after the last.
    n_looks = 0 if every is None else 1 + steps.steps // every + bool(steps.steps % every)
    n_started = steps.n_batches * grpo.prompts_per_step * grpo.n_generations
    files = {TRAIN: _file(recipe, material.train, n_started), DEV: _file(recipe, dev, n_looks * len(dev))}
    return Staged(recipe, cast, (), files, answers(None), keeps_records=False)


def _file(recipe: TrainRlRecipe, contexts: Sequence[Context], n: int) -> StagedFile:
    """Return so many futures or dialogues, which begin with the contexts in turn."""
    online, n_turns = recipe.online, n * recipe.dialogue.max_turns
    if recipe.episode == "dialogue":
        calls = {"seeker": n_turns, "critic": n_turns * online.critic.calls}
    else:
        readings = online.horizon + online.score_first_exchange
        calls = {
            "supporter": n * online.horizon,
            "seeker": n * (online.horizon + 1),
            "critic": n * readings * online.critic.calls,
        }
    return StagedFile(n, lambda place: contexts[place % len(contexts)], calls_of_models(calls, online_bindings(recipe)))


async def cast(pool: ModelPool, recipe: TrainRlRecipe) -> UnitPlayers:
    """Return who plays what is rehearsed: those of the training, beside the longest outputs."""
    supporter, seeker, critic, _ = await online_players(pool, recipe)
    output = read_output(longest_text(recipe.grpo.max_completion_tokens))

    async def future(context: Context) -> tuple[()]:
        assert supporter is not None
        ours = after(output, Cast(supporter, seeker, critic))
        await play_future(context, 0, cast=ours, rules=online_rules(recipe), run_seed=recipe.seed)
        return ()

    async def dialogue(context: Context) -> tuple[()]:
        talk, ledger = Conversation(context.scenario, list(context.turns)), Ledger(recipe.seed, context.id)
        for t in range(1, recipe.dialogue.max_turns + 1):
            talk.turns.append(Turn(speaker="supporter", text=output.response))
            await talk.ask_seeker(seeker, ledger.at(0, t))
            await critic.score(talk.scenario, tuple(talk.turns), ledger.at(0, t))
        return ()

    play = dialogue if recipe.episode == "dialogue" else future
    return UnitPlayers({TRAIN: play, DEV: play})
