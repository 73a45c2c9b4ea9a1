import logging

import pytest

from esckit.errors import ConfigError
from esckit.models.backbones import tiny_random, tiny_tokenizer
from esckit.models.chat import PLAIN, ChatFormat
from esckit.types import Message

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
    assert gemma.stop_ids == {0, 1, gemma.end_of_turn}
    assert chatml.answer("Better")[-1] == chatml.end_of_turn


def test_a_base_model_gets_the_plain_format():
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = None
    chat = ChatFormat.of(tokenizer)
    assert chat.template == PLAIN
    assert chat.render(ASK) == "System: Be kind.\n\nUser: hi\n\nAssistant:"
    assert "\nUser:" in chat.stop
    assert chat.decode(chat.answer("Better")) == " Better"


def test_a_long_text_is_counted_without_a_warning_of_transformers():
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


def test_reasoning_that_a_template_opens_is_closed_before_a_read_out():
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
