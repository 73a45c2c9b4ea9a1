"""The chat template that a policy is trained under.

Training needs more of a template than talking does: the prompt must be the beginning of the prompt with its answer,
and an answer must stand in it as it was written. Templates of models that think by themselves cut ``<think>`` out of
earlier answers; base models have none. In their place stands one of ours that renders the same text otherwise.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from esckit.errors import ConfigError
from esckit.models.chat import CHATML, PLAIN, ChatFormat
from esckit.types import Message

_OUTPUT = "<think>They seem tired.</think> <response>That sounds hard.</response>"
_TALK = (Message("system", "Play a role."), Message("user", "I am sad."))
_LONGER = (*_TALK, Message("assistant", _OUTPUT), Message("user", "Yes."))


def training_format(tokenizer: Any, eos_ids: list[int]) -> ChatFormat:
    """Return the chat format to train under, and set its template on the tokenizer.

    Args:
        tokenizer: The policy's tokenizer; its template may be replaced.
        eos_ids: What the model's generation settings name as end of text.

    Raises:
        ConfigError: If neither the model's template nor one of ours will do.
    """
    own = ChatFormat.of(tokenizer, eos_ids)
    fitting = next((chat for chat in _candidates(own) if keeps_answers(chat)), None)
    if fitting is None:
        raise ConfigError(
            "a chat template that changes answers, or does not begin with its prompt",
            expected="a template that renders what was said as it was said",
            hint="Set a plain chat_template in the model's tokenizer_config.json",
        )
    if not _reads_tags(tokenizer):
        raise ConfigError(
            "a tokenizer that loses the tags <think> and <response>", expected="one that gives back any text"
        )
    tokenizer.chat_template = fitting.template
    tokenizer.padding_side = "left"
    return fitting


def _candidates(own: ChatFormat) -> list[ChatFormat]:
    """Return the model's own format, and ChatML if that renders its talk without answers the same way."""
    chatml = replace(own, template=CHATML)
    return [own, chatml] if own.has_system and own.render(_TALK) == chatml.render(_TALK) else [own]


def keeps_answers(chat: ChatFormat) -> bool:
    """Return whether prompts begin their answered selves, and answers stand in them as written."""
    prompt = chat.render(_TALK)
    answered = chat.render((*_TALK, Message("assistant", _OUTPUT)), generation_prompt=False)
    lead = " " if chat.template == PLAIN else ""
    return answered.startswith(prompt + lead + _OUTPUT) and _OUTPUT in chat.render(_LONGER)


def _reads_tags(tokenizer: Any) -> bool:
    ids = tokenizer(_OUTPUT, add_special_tokens=False)["input_ids"]
    return bool(tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == _OUTPUT)
