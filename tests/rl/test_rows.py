"""What a policy is trained on: contexts and futures, rows, prompts and templates, preference pairs, and their order."""

import asyncio
import json
from fractions import Fraction
from pathlib import Path

import pytest

from esckit.errors import ConfigError
from esckit.ledger import Ledger
from esckit.models.chat import CHATML, PLAIN, ChatFormat
from esckit.prompts.prompt import load_prompt
from esckit.rl.rewards import check_reward
from esckit.rl.rows import best_and_worst, build_pairs, build_rows, collect
from esckit.rl.run import run
from esckit.roles.asking import Voice, split_output
from esckit.roles.players import PromptedSupporter
from esckit.training.policy import PolicyPrompt, keeps_answers, training_format
from esckit.training.run import training_order
from esckit.types import Exchange, Future, Message, Outcome
from tests.fakes import FakeModel
from tests.reward.reward_runs import simulated
from tests.rl.rl_fakes import WELL_FORMED, contexts
from tests.rl.rl_runs import StopAt, recipe
from tests.tiny import tiny_tokenizer

THINKER = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\\n' }}"
    "{% if m['role'] == 'assistant' %}{{ m['content'].split('</think>')[-1] }}{% else %}{{ m['content'] }}{% endif %}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def prompt(max_tokens: int = 2048, family="qwen2") -> PolicyPrompt:
    return PolicyPrompt(load_prompt("supporter_rlff"), training_format(tiny_tokenizer(family), []), max_tokens)


def test_the_policy_is_asked_exactly_as_a_prompted_supporter_is():
    context = contexts(1, n_turns=5)[0]
    model = FakeModel(answer=lambda messages, seed: WELL_FORMED)
    supporter = PromptedSupporter(Voice(model), load_prompt("supporter_rlff"))
    asyncio.run(supporter.reply(context.turns, Ledger(7, context.id).at(0, 0)))
    (row,) = build_rows([context], prompt()).rows
    assert row["prompt"] == [{"role": m.role, "content": m.content} for m in model.asked[0][0]]
    assert (row["context_id"], row["dialogue_id"]) == (context.id, context.dialogue_id)
    assert "boss" not in str(row)  # the situation is the seeker's own


def test_whole_oldest_turns_go_and_the_conversation_stays_whole():
    context = contexts(1, n_turns=9)[0]
    full = build_rows([context], prompt())
    limit = prompt().n_tokens(prompt().messages(context.turns)) - 1
    cut = build_rows([context], prompt(limit))
    assert (full.counts["cut"], cut.counts["cut"]) == (0, 1)
    assert cut.rows[0]["conversation"] == full.rows[0]["conversation"]
    assert cut.rows[0]["prompt"][0] == full.rows[0]["prompt"][0]
    assert cut.rows[0]["prompt"][1:] == full.rows[0]["prompt"][2:]


def test_a_context_whose_last_turn_does_not_fit_is_counted():
    found = build_rows(contexts(2), prompt(20))
    assert (found.rows, found.counts["too_long"]) == ((), 2)


def test_without_system_role_instructions_open_the_first_turn():
    (row,) = build_rows(contexts(1), prompt(family="gemma2")).rows
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["prompt"][0]["content"].startswith("Play the role")


@pytest.mark.parametrize("template", [THINKER, None], ids=["cuts reasoning", "no template"])
def test_a_template_that_changes_answers_is_replaced(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    before = ChatFormat.of(tokenizer)
    if template:
        before = ChatFormat(tokenizer, template)
        assert not keeps_answers(before)
    chat = training_format(tokenizer, [])
    assert keeps_answers(chat)
    assert tokenizer.chat_template == chat.template == (CHATML if template else PLAIN)
    for talk in ([Message("system", "S"), Message("user", "a")], [Message("user", "a")]):
        assert chat.render(talk) == before.render(talk)


def test_a_template_that_cannot_be_replaced_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = THINKER.replace("<|im_start|>", "[").replace("<|im_end|>", "]")
    with pytest.raises(ConfigError, match="changes answers"):
        training_format(tokenizer, [])


def test_every_epoch_has_every_row_once_in_an_order_of_its_own():
    order = training_order(10, n_batches=6, batch=5, seed=7)
    epochs = [order[start : start + 10] for start in (0, 10, 20)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert epochs[0] != epochs[1]
    assert training_order(10, n_batches=3, batch=5, seed=7) == order[:15]  # no more than is used
    assert len(set(training_order(10, n_batches=2, batch=4, seed=7))) == 8


# ---------------------------------------------------------------- preference pairs

GOOD = "<think>a</think> <response>reply {}</response>"


def future(context_id: str, candidate: int, reward: str | None, text: str = GOOD, seed: int = 7) -> Future:
    value = None if reward is None else Fraction(reward)
    return Future(
        id=f"{context_id}:c{candidate}",
        context_id=context_id,
        dialogue_id=context_id.partition("#")[0],
        candidate=candidate,
        run_seed=seed,
        outcome=Outcome.FAILED if value is None else Outcome.MAX_TURNS,
        k=2,
        reward_num=value.numerator if value is not None else None,
        reward_den=value.denominator if value is not None else None,
        reward=float(value) if value is not None else None,
        exchanges=(Exchange(k=0, supporter=split_output(text.format(candidate))),),
    )


def built(futures, **options):
    prompt = PolicyPrompt(load_prompt("supporter_rlff"), training_format(tiny_tokenizer(), []), 2048)
    settings = {"require_format": True, "max_completion_tokens": 512, **options}
    return build_pairs({context.id: context for context in contexts(2)}, futures, prompt, **settings)


def test_highest_against_lowest_and_the_first_among_equals():
    futures = [future("d0#m1", i, reward) for i, reward in enumerate(("1/3", "1/2", "1/2", "-1/4", "-1/4", None))]
    ((best, worst),) = best_and_worst(futures)
    assert (best.candidate, worst.candidate) == (1, 3)
    (row,) = built(futures).rows
    assert row["chosen"] == [{"role": "assistant", "content": GOOD.format(1)}]
    assert row["rejected"] == [{"role": "assistant", "content": GOOD.format(3)}]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


@pytest.mark.parametrize("rewards", [("1/2", "1/2"), ("1/2", None), (None, None)])
def test_without_two_different_rewards_there_is_no_pair(rewards):
    found = built([future("d0#m1", i, reward) for i, reward in enumerate(rewards)])
    assert (found.rows, found.counts["equal"]) == ((), 1)


def test_both_outputs_of_a_pair_must_be_well_formed_by_default():
    futures = [future("d0#m1", 0, "1/2"), future("d0#m1", 1, "0", "reply {}")]
    assert (built(futures).rows, built(futures).counts["malformed"]) == ((), 1)
    assert len(built(futures, require_format=False).rows) == 1


def test_a_pair_holds_the_replies_that_were_rewarded():
    thanks = "<think>a</think> <response>reply {}\nPatient: Thank you, I feel better!</response>"
    (row,) = built([future("d0#m1", 0, "1/2", thanks), future("d0#m1", 1, "0")]).rows
    assert row["chosen"] == [{"role": "assistant", "content": GOOD.format(0)}]


def test_long_outputs_are_counted_and_run_seeds_kept_apart():
    futures = [future("d0#m1", 0, "1/2"), future("d0#m1", 1, "0")]
    assert built(futures, max_completion_tokens=4).counts["too_long"] == 1
    twice = [*futures, future("d0#m1", 0, "0", seed=8), future("d0#m1", 1, "1/2", seed=8)]
    assert len(built(twice).rows) == 2


# ---------------------------------------------------------------- inputs and identities of a run


def test_every_prompt_of_an_online_reward_is_known(tmp_path: Path) -> None:
    models = {role: {"scripted": role} for role in ("seeker", "critic", "supporter")}
    online = recipe(reward={"kind": "online"}, models=models, online={"critic": {"readout": "expected"}})
    found = check_reward(online)
    assert found["seeker"] == load_prompt("seeker").identity
    assert set(found) == {"supporter", "seeker", "critic", "critic_letters"}
    untrained = recipe(reward={"kind": "untrained"}, models={"reward": {"backbone": "tiny-random"}})
    assert check_reward(untrained) == {"reward_model": load_prompt("reward_model").identity}
    assert check_reward(recipe()) == {}


def test_a_run_needs_the_online_prompts_that_it_began_with(tmp_path: Path) -> None:
    prompt = tmp_path / "mine.yaml"
    shipped = load_prompt("seeker").model_dump(mode="json")
    prompt.write_text(json.dumps(shipped | {"name": "mine"}))
    ours = recipe(
        reward={"kind": "online"},
        models={role: {"scripted": role} for role in ("seeker", "critic", "supporter")},
        online={"horizon": 1, "critic": {"readout": "expected"}, "prompts": {"seeker": str(prompt)}},
        monitor={"dev_every": None},
    )
    with pytest.raises(KeyboardInterrupt):
        run(ours, out=tmp_path / "run", progress=StopAt(1))
    prompt.write_text(json.dumps(shipped | {"name": "mine", "version": 2}))
    with pytest.raises(ConfigError, match="other inputs"):
        run(ours, out=tmp_path / "run")


def test_a_policy_from_futures_inherits_their_dialogues(tmp_path: Path) -> None:
    futures = simulated(tmp_path / "futures")
    material = collect(recipe(algorithm="dpo", inputs=(str(futures),), data=None, monitor={"dev_every": None}))
    assert material.facts["inherited_ids"] == list(material.dialogue_ids)
    assert material.facts["simulation"]["preset"] == "rlff7"
