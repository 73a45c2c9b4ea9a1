"""Rows, prompts, templates, and the order of training."""

import asyncio

import pytest

from esckit.errors import ConfigError
from esckit.ledger import Ledger
from esckit.models.backbones import tiny_tokenizer
from esckit.models.chat import CHATML, PLAIN, ChatFormat
from esckit.prompts.prompt import load_prompt
from esckit.rl.policy import keeps_answers, training_format
from esckit.rl.rows import PolicyPrompt, build_rows, training_order
from esckit.roles.asking import Voice
from esckit.roles.supporters import PromptedSupporter
from esckit.types import Message, Sampling
from tests.fakes import FakeModel
from tests.rl.rl_fakes import WELL_FORMED, contexts

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
    supporter = PromptedSupporter(Voice(model, Sampling()), load_prompt("supporter_rlff"))
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


def test_a_context_whose_last_turn_does_not_fit_is_left_out_and_counted():
    found = build_rows(contexts(2), prompt(20))
    assert (found.rows, found.counts["too_long"]) == ((), 2)


def test_without_a_system_role_the_instruction_opens_the_first_turn():
    (row,) = build_rows(contexts(1), prompt(family="gemma2")).rows
    assert [message["role"] for message in row["prompt"]] == ["user"]
    assert row["prompt"][0]["content"].startswith("Play the role")


@pytest.mark.parametrize("template", [THINKER, None], ids=["cuts reasoning", "no template"])
def test_a_template_that_will_not_do_is_replaced_by_one_that_renders_the_same_prompt(template):
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
