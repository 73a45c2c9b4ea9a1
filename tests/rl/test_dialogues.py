"""Whole dialogues as episodes: what their turns are worth, how they end, and that a stopped run goes on exactly."""

import json
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from anyio.from_thread import start_blocking_portal

from esckit.errors import BackendError, ConfigError, FailureRateError, UnscoredError
from esckit.prompts.prompt import load_prompt
from esckit.protocols import SeekerTurn
from esckit.rl.dialogues import DialoguePlayer, DialogueRollout, Episode, advantages, judge, returns_to_go
from esckit.rl.monitor import means
from esckit.rl.recipe import TrainRlRecipe, plan_steps
from esckit.rl.rewards import Completion, Judged, PairedRewards, Players, ReplyMeasure, shuffled
from esckit.rl.rows import build_rows
from esckit.rl.run import plan, run
from esckit.rl.trainer import make_trainer
from esckit.roles.asking import read_output
from esckit.training.policy import PolicyPrompt
from esckit.training.run import TrainingRun
from esckit.types import CriticReading, Outcome, Score
from tests.rl.rl_fakes import SCORE, columns, contexts, learner, optim, said, trained
from tests.rl.rl_runs import StopAt, recipe

WORLD = {"seeker": {"world": "default"}, "critic": {"world": "default"}}
THREE = {(0, 1): "1/5", (0, 2): "3/5", (1, 1): "1/10", (1, 2): "-1/5", (1, 3): "2/5", (2, 1): "-1/10"}
"""Φ by (member, turn): dialogue 0 is resolved in turn 2, dialogue 1 goes on to the end, the seeker of 2 leaves."""


def ours(**sections: Any) -> TrainRlRecipe:
    base: dict[str, Any] = {
        "episode": "dialogue",
        "data": {"dataset": "practice", "path": "world:default/20", "scheme": "ratio", "split": "train", "limit": 8},
        "contexts": None,
        "models": WORLD,
        "prompt": "supporter_practice",
        "reward": {"kind": "online"},
        "online": {"critic": {"readout": "expected"}},
        "dialogue": {"max_turns": 2},
        "grpo": {"n_generations": 2, "prompts_per_step": 2, "max_prompt_tokens": 400, "max_completion_tokens": 6},
    }
    return recipe(**{name: _merged(base.get(name), sections.get(name)) for name in {**base, **sections}})


def _merged(base: Any, given: Any) -> Any:
    return {**base, **given} if isinstance(base, dict) and isinstance(given, dict) else base if given is None else given


@dataclass
class Talk:
    """A seeker and a critic that do as they are told, by (member, turn)."""

    potentials: Mapping[tuple[int, int], str]
    leaves: Sequence[tuple[int, int]] = ()
    fails: Sequence[tuple[int, int]] = ()
    seeds: list[int] = field(default_factory=list)

    async def reply(self, scenario: Any, turns: Any, scope: Any) -> SeekerTurn:
        self.seeds.append(scope.seed("seeker"))
        if scope.place in self.fails:
            raise BackendError("the server is gone", kind="unreachable")
        return SeekerTurn("Well.", Outcome.DISENGAGED if scope.place in self.leaves else None)

    async def score(self, scenario: Any, turns: Any, scope: Any) -> Score:
        if scope.place not in self.potentials:
            raise UnscoredError("no level")
        value = Fraction(self.potentials[scope.place])
        facts = {"weights": (1.0,), "name_mass": 1.0, "num": value.numerator, "den": value.denominator}
        reading = CriticReading(readout="expected", critic="fake", value=float(value), **facts)
        return Score(values={"resolution": reading.value}, reward=reading.value, reading=reading)


@contextmanager
def player(talk: Talk, settings: TrainRlRecipe):
    policy = learner()
    prompt = PolicyPrompt(load_prompt(settings.prompt), policy.chat, settings.grpo.max_prompt_tokens)
    with start_blocking_portal() as portal:
        yield DialoguePlayer(settings, prompt, policy.tokenizer, Players(None, talk, talk, portal, {})), policy


def played(talk: Talk, n: int = 3, **sections: Any) -> list[Episode]:
    settings = ours(**{"dialogue": {"max_turns": 3}, **sections})
    (context,) = contexts(1)
    episodes = [Episode.begin(context, member, run_seed=7, at="g0") for member in range(n)]
    with player(talk, settings) as (at, policy):
        at.play(policy.model, episodes)
    judge(episodes, 0, settings)
    return episodes


@pytest.mark.parametrize(
    ("potentials", "expected"),
    [
        ((0.25, 0.125, 0.75), [0.75, 0.5, 0.625]),
        ((0.25, 0.125, None), [0.125, -0.125, None]),
        ((None, 0.5), [None, None]),
        ((), []),
    ],
)
def test_a_turn_is_worth_the_end_less_what_was_before_it(potentials, expected):
    assert returns_to_go(potentials) == expected


def test_the_worked_example_as_trl_computes_it(tmp_path: Path) -> None:
    # Turn 1: returns .6, .4, -.1, mean .3, deviation sqrt(.13); turn 2: .4, .3; turn 3 has one dialogue only.
    expected = [0.831820, 0.277273, -1.109093, 0.706108, -0.706108, 0.0, 0.0, 0.0, 0.0]
    settings = ours(
        grpo={"n_generations": 3, "prompts_per_step": 1, "beta": 0.0},
        dialogue={"max_turns": 3},
        reward={"weights": {"future": 1.0, "format": 0.0}},
        optim=optim(max_steps=1),
    )
    run, plan = TrainingRun(tmp_path), plan_steps(settings, n_rows=1, n_processes=1)
    with player(Talk(THREE, leaves=[(2, 1)]), settings) as (at, policy):
        rows = build_rows(contexts(1), at.prompt).rows
        rollout = DialogueRollout(at, contexts(1), plan=plan, run=run)
        trainer = make_trainer(settings, policy, rows, rewards=rollout, plan=plan, run=run)
        trained(trainer, run)
    assert list(trainer._logs["advantages"]) == pytest.approx(expected, abs=2e-6)
    dialogues = rollout.rows()
    assert [each["ended"] for each in dialogues] == ["resolved", "max_turns", "left"]
    assert [len(each["turns"]) for each in dialogues] == [2, 3, 1]
    found = [each["turns"][t]["advantage"] for t in range(3) for each in dialogues if t < len(each["turns"])]
    assert found == pytest.approx([*expected[:5], 0.0], abs=2e-6)
    # Of the six turns, the third of dialogue 1 has none to be compared with.
    row = means([logs for logs in trainer.state.log_history if "loss" in logs])
    assert row["rl/reward/zero_std_share"] == pytest.approx(1 / 6)


def test_what_is_recorded_as_advantage_is_trls_formula():
    assert advantages([0.6, 0.4, None, -0.1]) == pytest.approx([0.831820, 0.277273, 0.0, -1.109093], abs=1e-6)
    assert advantages([0.6, None]) == [0.0, 0.0]


def test_a_seeker_that_fails_leaves_a_short_group():
    episodes = played(Talk(THREE, leaves=[(2, 1)], fails=[(1, 2)]))
    assert [episode.ended for episode in episodes] == ["resolved", "failed", "left"]
    assert episodes[1].failure is not None
    assert (episodes[1].failure.stage, episodes[1].failure.turn, episodes[1].failure.kind) == (
        "seeker",
        2,
        "unreachable",
    )
    assert episodes[1].returns() == [None, None]
    first = [episode.spoken[0].advantage for episode in episodes]
    # .6 and -.1 are left, whose deviation is .494975.
    assert first == pytest.approx([0.35 / 0.495075, 0.0, -0.35 / 0.495075], abs=1e-6)


def test_a_critic_that_fails_takes_the_returns_from_there_on():
    known = {place: value for place, value in THREE.items() if place != (1, 3)}
    episode = played(Talk(known, leaves=[(2, 1)]))[1]
    assert episode.failure is not None
    assert (episode.failure.stage, episode.failure.turn) == ("critic", 3)
    assert episode.returns() == pytest.approx([-0.2, -0.3, None])


def test_a_dialogue_ends_where_the_prompt_has_no_room(caplog: pytest.LogCaptureFixture) -> None:
    talk = Talk({(0, t): "1/10" for t in (1, 2, 3)})
    reply = talk.reply

    async def rambling(*args: Any) -> SeekerTurn:
        return (await reply(*args))._replace(text="word " * 400)

    talk.reply = rambling  # type: ignore[method-assign]
    (episode,) = played(talk, 1)
    assert (episode.ended, len(episode.spoken)) == ("too_long", 1)
    assert episode.returns() == [pytest.approx(0.1)]
    assert "a dialogue ended in turn 2" in caplog.text


def test_what_a_supporter_sees_in_use_is_what_the_policy_learns_from():
    talk = Talk({(0, t): "1/10" for t in (1, 2, 3)})
    (episode,) = played(talk, 1)
    prompt = PolicyPrompt(load_prompt("supporter_practice"), learner().chat, 400)
    for t, turn in enumerate(episode.spoken):
        shown = prompt.fitted(episode.context.model_copy(update={"turns": tuple(episode.talk.turns[: 1 + 2 * t])}))
        assert shown is not None
        assert turn.prompt == prompt.chat.encode(shown[0])
        assert "Well." not in turn.generation.raw


def test_draws_depend_on_step_and_place_in_the_group_and_not_on_the_batch():
    def said_by(n: int) -> list[list[list[int]]]:
        return [[turn.output for turn in each.spoken] for each in played(Talk(dict.fromkeys(THREE, "1/10")), n)]

    three = said_by(3)
    assert said_by(1)[0][:1] == three[0][:1]
    assert three[0] != three[1]


def test_shuffled_rewards_stay_in_their_group():
    given = [Judged(Completion("c", (), read_output(text), 0, 0), float(at)) for at, text in enumerate("abc")]
    given.append(Judged(given[0].completion, None))
    orders = set()
    for step in range(20):
        found = shuffled(given, 7, "c", step)
        assert [each.completion for each in found] == [each.completion for each in given]
        assert sorted(each.future for each in found[:3]) == [0.0, 1.0, 2.0]
        assert found[3].future is None
        orders.add(tuple(each.future for each in found))
    assert len(orders) == 6


def test_single_replies_have_the_same_control():
    rewards = PairedRewards(ReplyMeasure(SCORE), n_generations=4, shuffle_seed=7)
    outputs, orders = said("<think>a</think> <response>e</response>", "no", "no", "no"), set()
    for step in range(20):
        orders.add(tuple(rewards.future_reward([], outputs, **columns(4, step=step, context_ids=["c"] * 4))))
    assert {sum(order) for order in orders} == {1.0}
    assert len(orders) == 4


# ---------------------------------------------------------------- whole runs


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "rl/step_s"} for row in found]


def test_a_stopped_run_goes_on_to_the_same_bytes(tmp_path: Path) -> None:
    settings = ours(optim={"max_steps": 2}, dev={"max_contexts": 1})
    run(settings, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, out=tmp_path / "cut", progress=StopAt(2))
    run(settings, out=tmp_path / "cut")
    for name in ("checkpoint/adapter/adapter_model.safetensors", "samples.jsonl"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    last = next(row for row in reversed(rows(tmp_path / "whole")) if "rl/loss" in row)
    assert last["rl/episode/turns"] == 2 * last["rl/episode/reached"]
    assert {"dev/success_share", "dev/reward/future"} <= rows(tmp_path / "whole")[0].keys()
    samples = [json.loads(line) for line in (tmp_path / "whole/samples.jsonl").read_text().splitlines()]
    assert {"t", "reply", "seeker", "potential", "future", "reward", "advantage"} <= samples[0]["turns"][0].keys()


def test_the_plan_counts_dialogues_turns_and_calls() -> None:
    found = plan(
        ours(optim={"max_steps": 10}, models={"seeker": {"scripted": "seeker"}, "critic": {"scripted": "critic"}})
    )
    assert (found["dialogues_played"], found["outputs_at_most"]) == (10 * 4, 10 * 8)
    n_turns = 10 * 4 * 2 + 6 * 2 * 2  # two dev contexts: before the first step, and after the steps 2, 4, 6, 8 and 10
    assert found["calls_at_most"] == {"seeker": n_turns, "critic": n_turns}
    assert plan(ours())["calls_at_most"] == {}


def _gone(messages: Any, sampling: Any, seed: int) -> str:
    raise BackendError("the server is gone", kind="unreachable")


def test_a_seeker_that_is_gone_stops_the_run(tmp_path: Path) -> None:
    models = {"seeker": {"scripted": f"{__name__}:_gone"}, "critic": {"scripted": "critic"}}
    with pytest.raises(FailureRateError, match=r"100\.0% of the outputs"):
        run(ours(models=models, optim={"max_steps": 1}, monitor={"dev_every": None}), out=tmp_path / "run")
    (row,) = rows(tmp_path / "run")
    assert (row["rl/unscored_share"], row["rl/episode/ended/failed"]) == (1.0, 1.0)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"reward": {"kind": "esckit.rl.rewards:lexicon_reward"}}, "needs reward.kind: online"),
        ({"models": {**WORLD, "supporter": {"scripted": "supporter"}}}, "takes no models.supporter"),
        ({"contexts": {"per_dialogue": 1}}, "takes no contexts"),
        ({"grpo": {"engine": "vllm"}}, "set grpo.engine: transformers"),
        ({"models": {"seeker": {"world": "default"}, "critic": {"world": "open"}}}, "one profile"),
    ],
)
def test_what_does_not_go_with_dialogues_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ours(**sections)


def test_processes_must_share_the_turns_of_a_step_evenly() -> None:
    with pytest.raises(ConfigError, match=r"8 turns \(grpo.prompts_per_step · n_generations · dialogue.max_turns\)"):
        plan_steps(ours(), n_rows=4, n_processes=3)
