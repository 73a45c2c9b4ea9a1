"""What one talks to is what is measured: the roles, the settings and the draws are those of an evaluation."""

import asyncio
import json
from dataclasses import replace

import pytest

from esckit.chat.partner import Partner, check, seated
from esckit.chat.talk import Talk, talk_id
from esckit.chat.target import load_target
from esckit.config.load import load_any_recipe
from esckit.errors import ConfigError
from esckit.models.scripted import load_scripted
from esckit.play.rollout import EpisodeCast, play_episode
from esckit.prompts.prompt import load_prompt
from esckit.records import write_json
from esckit.roles.asking import Voice
from esckit.roles.players import PromptedSeeker
from esckit.roles.pool import ModelPool
from esckit.types import Scenario
from tests.shell import ROOT, esckit

NOBODY = {"supporter": None, "strategist": None, "critic": None}


def recipe_of(target, *changes, **named):
    return load_target(target, NOBODY | named, changes).recipe


async def with_partner(recipe, use):
    async with ModelPool(recipe.executor, recipe.budget) as pool:
        return await use(await seated(pool, recipe))


def test_a_chat_draws_what_an_evaluation_draws():
    scenario = Scenario(id="case-7", situation="I lost my job and cannot sleep.")
    seeker = PromptedSeeker(Voice(load_scripted("seeker")), load_prompt("seeker"))

    async def compare(partner: Partner):
        cast = EpisodeCast(partner.supporter, seeker, {"rlff7": partner.critic}, partner.strategist)
        played = await play_episode(scenario, cast=cast, max_turns=3, run_seed=partner.seed)
        words = [scenario.situation, *(turn.seeker for turn in played.turns[:-1])]
        talk = Talk(scenario)
        for text in words:
            talk = talk.heard(text)
            talk = talk.with_last(await partner.answer(talk))
        return [(e.supporter, e.strategy) for e in talk.entries], [(t.supporter, t.strategy) for t in played.turns]

    ours, theirs = asyncio.run(with_partner(recipe_of("chat/scripted"), compare))
    assert len(ours) == 3
    assert ours == theirs


def test_another_draw_is_another_reply_and_undone_words_are_not():
    async def replies(partner: Partner):
        talk = Talk(Scenario(id="one")).heard("I feel low.")
        first = await partner.answer(talk)
        again = await partner.answer(talk.with_last(first).asked_again())
        same = await partner.answer(talk.with_last(first).without_last().heard("I feel low."))
        forced = await partner.answer(talk, strategy="Clarification")
        return first, again, same, forced

    first, again, same, forced = asyncio.run(with_partner(recipe_of("chat/scripted"), replies))
    assert first.supporter != again.supporter
    assert first == same
    assert (forced.strategy, forced.is_forced, forced.probabilities) == ("Clarification", True, first.probabilities)


def own_run(folder, command, recipe):
    folder.mkdir()
    manifest = {"schema": "esckit.manifest/1", "command": command, "recipe": recipe, "recipe_digest": "0"}
    write_json(folder / "manifest.json", manifest)
    return str(folder)


@pytest.mark.parametrize(
    ("name", "strategy", "prompt"),
    [
        ("smoke/predict_scripted", "predicted", "supporter_rlff"),
        ("smoke/simulate_scripted", "none", "supporter_rlff"),
        ("smoke/search_scripted", "predicted", "supporter_aflow"),
        ("smoke/evaluate_scripted", "predicted", "supporter_rlff"),
    ],
)
def test_a_run_brings_its_cast_and_settings(tmp_path, name, strategy, prompt):
    played = load_any_recipe(name).recipe
    recipe = recipe_of(own_run(tmp_path / "run", played.command, played.resolved()))
    assert recipe.models.supporter == played.models.supporter
    assert (recipe.chat.strategy, recipe.prompts.supporter) == (strategy, prompt)
    assert recipe.seed == played.seed
    assert check(recipe)["prompts"]["supporter"].startswith(prompt)


def test_a_trained_supporter_has_its_own_prompt_and_lengths(tmp_path):
    trained = load_any_recipe("practice/train_sft").recipe
    run = own_run(tmp_path / "sft", "train-sft", trained.resolved())
    recipe = recipe_of(run)
    assert (recipe.models.supporter.checkpoint, recipe.prompts.supporter) == (run, "supporter_practice")
    assert (recipe.models.supporter.sampling.max_tokens, recipe.models.supporter.max_context_tokens) == (96, 144)
    assert recipe_of(run, "prompts.supporter=supporter_rlff").prompts.supporter == "supporter_rlff"


def test_a_trained_strategist_leads_its_backbone(tmp_path):
    run = str(ROOT / "tests" / "old_runs" / "runs" / "flow")
    recipe = recipe_of(run)
    assert (recipe.models.supporter.checkpoint, recipe.models.supporter.adapter) == (run, "off")
    assert recipe.prompts.supporter == "supporter_aflow"
    done = esckit("chat", run, "--supporter", "world:default", "--json", cwd=tmp_path, typed="I feel low.\n")
    assert done.returncode == 0, done.stderr
    (entry,) = map(json.loads, done.stdout.splitlines())
    assert sum(entry["probabilities"]) == pytest.approx(1.0)
    assert len(entry["values"]) == len(entry["probabilities"])
    assert entry["supporter"]["response"]


@pytest.mark.parametrize("name", ["rl-grpo", "flow", "evaluate", "predict", "simulate", "search"])
def test_runs_of_the_first_version_can_be_talked_to(name):
    assert recipe_of(str(ROOT / "tests" / "old_runs" / "runs" / name)).models.supporter is not None


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("nonesuch", "neither a run folder nor a recipe"),
        ("smoke/simulate", "for the command 'simulate'"),
        ("world:nowhere", "neither a run folder nor a recipe"),
    ],
)
def test_what_cannot_talk_is_refused(target, message):
    with pytest.raises(ConfigError, match=message):
        recipe_of(target)


def test_a_server_is_named_in_a_recipe_and_a_run_needs_a_supporter(tmp_path):
    server = "models.supporter={endpoint: {base_url: 'http://127.0.0.1:9/v1'}, model: m}"
    assert recipe_of("chat/own", server).models.supporter.model == "m"
    played = load_any_recipe("smoke/predict_scripted").recipe.resolved()
    run = own_run(tmp_path / "run", "predict", {**played, "models": {**played["models"], "supporter": None}})
    with pytest.raises(ConfigError, match="has no supporter"):
        recipe_of(run)
    assert recipe_of(run, supporter="tiny-random").models.supporter.backbone == "tiny-random"


def test_a_reward_model_is_no_supporter(tmp_path):
    run = own_run(tmp_path / "reward", "train-reward", load_any_recipe("smoke/train_reward_scripted").recipe.resolved())
    with pytest.raises(ConfigError, match="reward model, which rates replies") as raised:
        recipe_of(run)
    assert "--critic" in raised.value.hint


def test_a_supporter_that_needs_a_strategy_needs_a_strategist():
    recipe = recipe_of("chat/scripted", "models.strategist=null", "prompts.supporter=supporter_aflow")
    with pytest.raises(ConfigError, match="nobody names one"):
        check(recipe)


def test_ids_of_conversations_are_ids_of_dialogues():
    assert talk_id("chat-Ünï code/1") == "chat-n-code-1"
    assert talk_id("…") == "chat"
    assert len(talk_id("x" * 100)) == 64
    assert replace(Talk(Scenario(id="a")), taxonomy="aflow").dialogue().taxonomy == "aflow"
