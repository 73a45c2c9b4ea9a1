"""Messages as prompt tokens, and reasoning told apart from answers."""

import logging
import time

import pytest

from esckit.errors import BackendError, ConfigError
from esckit.models.chat import PLAIN, ChatFormat, Split, make_reply, opened_by, split_reasoning
from esckit.types import Message, Reply, StopReason, Usage
from tests.tiny import tiny_random, tiny_tokenizer

ASK = [Message("system", "Be kind."), Message("user", "hi")]


def test_a_default_system_prompt_is_left_out():
    tokenizer = tiny_tokenizer()
    default = "{% if messages[0]['role'] != 'system' %}{{ '<|im_start|>system\nYou are Tiny.<|im_end|>\n' }}{% endif %}"
    tokenizer.chat_template = default + tokenizer.chat_template
    chat = ChatFormat.of(tokenizer)
    assert chat.render(ASK[1:]) == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert chat.render(ASK) == tokenizer.apply_chat_template(
        [{"role": m.role, "content": m.content} for m in ASK], tokenize=False, add_generation_prompt=True
    )


def test_without_a_system_role_the_first_user_message_takes_it():
    chat = ChatFormat.of(tiny_tokenizer("gemma2"))
    assert not chat.has_system
    assert chat.render(ASK) == "<bos><start_of_turn>user\nBe kind.\n\nhi<end_of_turn>\n<start_of_turn>model\n"


def test_messages_that_the_template_refuses_are_a_clear_error():
    tokenizer = tiny_tokenizer("gemma2")
    alternate = "{% if messages | length > 2 %}{{ raise_exception('roles must alternate') }}{% endif %}"
    tokenizer.chat_template = alternate + tokenizer.chat_template
    with pytest.raises(ConfigError, match="roles must alternate"):
        ChatFormat.of(tokenizer).encode([*ASK, *ASK[1:], *ASK[1:]])


@pytest.mark.parametrize(
    "template",
    [
        "{{ 1 // 0 }}",
        "{{ messages + 1 }}",
        "{% for",
        "{{ messages | nothing }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{% for a in range(10 ** 9) %}{% endfor %}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        "{% include 'x' %}",
    ],
)
def test_a_template_that_fails_is_a_clear_error(template):
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = template
    with pytest.raises(ConfigError, match="chat template refuses messages of user"):
        ChatFormat.of(tokenizer)


def test_the_end_of_turn_is_what_the_template_writes():
    chatml, gemma = ChatFormat.of(tiny_tokenizer()), ChatFormat.of(tiny_tokenizer("gemma2"), [1])
    assert chatml.tokenizer.convert_ids_to_tokens(chatml.end_of_turn) == "<|im_end|>"
    assert gemma.tokenizer.convert_ids_to_tokens(gemma.end_of_turn) == "<end_of_turn>"
    assert gemma.stop_ids == {gemma.tokenizer.eos_token_id, 1, gemma.end_of_turn}
    assert chatml.answer("Better")[-1] == chatml.end_of_turn


def test_a_base_model_gets_the_plain_format():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    chat = ChatFormat.of(tokenizer)
    assert chat.template == PLAIN
    assert chat.render(ASK) == "System: Be kind.\n\nUser: hi\n\nAssistant:"
    assert "\nUser:" in chat.stop
    assert chat.decode(chat.answer("Better")) == " Better"


def test_a_long_text_is_counted_without_a_library_warning():
    said = []
    handler = logging.Handler()
    handler.emit = said.append
    logger = logging.getLogger("transformers.tokenization_utils_base")
    logger.addHandler(handler)
    try:
        _, tokenizer = tiny_random()
        assert len(ChatFormat.of(tokenizer).tokens("so " * 3000)) > tokenizer.model_max_length
    finally:
        logger.removeHandler(handler)
    assert not said


def test_a_tokenizer_without_an_end_is_refused():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    tokenizer.eos_token = None
    with pytest.raises(ConfigError, match="end-of-turn"):
        ChatFormat.of(tokenizer)


def test_reasoning_opened_by_a_template_is_closed_for_readouts():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = tokenizer.chat_template.replace(
        "assistant\\n' }}{% endif", "assistant\\n<think>\\n' }}{% endif"
    )
    chat = ChatFormat.of(tokenizer)
    assert chat.opening == "<think>"
    asked = chat.decode(chat.encode(ASK) + chat.closed_reasoning())
    assert asked.endswith("assistant\n<think>\n\n</think>\n\n")
    assert ChatFormat.of(tiny_tokenizer()).closed_reasoning() == ()


def test_special_tokens_that_mark_reasoning_are_kept_in_the_text():
    tokenizer = tiny_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["[THINK]", "[/THINK]"]})
    chat = ChatFormat.of(tokenizer)
    assert chat.decode(chat.tokens("[THINK]hm[/THINK]Hi.<|im_end|>")) == "[THINK]hm[/THINK]Hi."


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I slept badly.", Split(None, "I slept badly.")),
        (" as it stands \n", Split(None, " as it stands \n")),
        ("<think>Sound tired.</think>\n\nI slept badly.", Split("Sound tired.", "I slept badly.")),
        ("<THINK>a</Think>b", Split("a", "b")),
        ("\n<think>\n\n</think>\n\nHi.", Split(None, "Hi.")),
        ("<think>a</think><think>b</think>c", Split("a\nb", "c")),
        ("Well. <think>a</think> Yes.", Split("a", "Well.  Yes.")),
        ("a</think>b", Split("a", "b")),
        ("<think>a</think>b</think>c", Split("a\nb", "c")),
        ("<think>is it </thought>?</think>b", Split("is it </thought>?", "b")),
        ("[THINK]a[/THINK]b", Split("a", "b")),
        ("◁think▷a◁/think▷b", Split("a", "b")),
        ("<|channel>thought\na<channel|>b", Split("a", "b")),
        ("<think>Significantly Better", Split("Significantly Better", "", is_open=True)),
        ("<think>", Split("", "", is_open=True)),
        ("Same <think>or", Split("or", "", is_open=True)),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            Split("a", "b"),
        ),
        ("<|channel|>analysis<|message|>Solved, perhaps", Split("Solved, perhaps", "", is_open=True)),
        ("<think mode='deep'>a</think >b", Split("a", "b")),
        ("<think\n>a</think>b", Split("a", "b")),
        ("<thoughts>a</thoughts>b", Split("a", "b")),
        ("<scratchpad>Solved", Split("Solved", "", is_open=True)),
        ("<|begin_of_thought|>a<|end_of_thought|>b", Split("a", "b")),
        ("<unused94>thought\na<unused95>b", Split("a", "b")),
        ("analysis We weigh.assistantfinalSame", Split("We weigh.", "Same")),
        ("<|channel|>commentary to=x<|message|>a<|call|>", Split("a", "", is_open=True)),
        ("analysisWe weigh.assistantfinalSame", Split("We weigh.", "Same")),
        ("analysisWe weigh it as Solved", Split("We weigh it as Solved", "", is_open=True)),
        ("analysis is hard", Split(None, "analysis is hard")),
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str, found: Split) -> None:
    assert split_reasoning(text) == found


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<|channel|>", "<|message|>", "analysisA"])
def test_splitting_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    split_reasoning(piece * 40_000)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
    ],
)
def test_an_opening_mark_in_the_prompt_is_seen(prompt: str, mark: str) -> None:
    assert opened_by(prompt) == mark


def reply(text: str, stop: StopReason = StopReason.STOP, **more: str) -> Reply:
    return make_reply(text, stop, Usage(calls=1), max_tokens=100, reasoning=more.get("reasoning"))


def test_what_a_model_says_can_be_written_to_a_file() -> None:
    found = reply("Hi \ud83d.", reasoning="\udc00a")
    assert (found.text, found.reasoning) == ("Hi \ufffd.", "\ufffda")
    assert reply("\U0001f600").text == "\U0001f600"


def test_a_reply_without_reasoning_is_its_text() -> None:
    assert reply(" Hi. ") == Reply(" Hi. ", StopReason.STOP, Usage(calls=1))
    assert reply(" Hi. ").whole == " Hi. "


def test_the_whole_reply_has_the_agreed_form_however_it_came() -> None:
    text = "<think>a</think> <response>b</response>"
    assert reply(text).whole == text
    assert reply("<response>b</response>", reasoning="a").whole == "<think>a</think><response>b</response>"
    assert reply("a</think> <response>b</response>").whole == "<think>a</think><response>b</response>"


def test_reasoning_of_a_field_and_of_the_text_come_together() -> None:
    found = reply("<think>b</think>c", reasoning="<think>a</think>")
    assert (found.reasoning, found.text) == ("a\nb", "c")


def test_a_reply_cut_inside_its_reasoning_has_no_answer() -> None:
    for found in (reply("<think>Solved", StopReason.LENGTH), reply("", StopReason.LENGTH, reasoning="Solved")):
        assert found.only_reasoned
        assert (found.text, found.reasoning, found.whole) == ("", "Solved", "<think>Solved")
    assert not reply("", StopReason.LENGTH).only_reasoned
    assert not reply("<think>a</think>b").only_reasoned


def test_a_reply_far_beyond_its_token_limit_is_refused() -> None:
    with pytest.raises(BackendError, match="10000000 characters where 512 tokens") as caught:
        make_reply("x" * 10_000_000, StopReason.STOP, Usage(calls=1), max_tokens=512)
    assert caught.value.kind == "too_long"
