"""How messages become prompt tokens: one chat format per tokenizer, found out by rendering with it.

What is rendered is what the caller said and nothing else: templates that slip in a system prompt of their own
(Qwen 2.5, SmolLM2) are replaced by plain ChatML, which renders the same text where a system message is given. Models
whose template refuses system messages (Gemma 2) get them at the head of the first user message. Base models get
:data:`PLAIN`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from esckit.controls import MessageGuard
from esckit.errors import ConfigError
from esckit.lines import as_turn
from esckit.models.reasoning import CHANNEL_MARKS, MARKS, closing_mark, opened_by
from esckit.types import Message

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""ChatML without a default system prompt."""

PLAIN = (
    "{{ bos_token if bos_token else '' }}{% for message in messages %}{{ message['role'] | capitalize }}: "
    "{{ message['content'] }}{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}"
    "{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"
)
"""For base models: ``User: …``, blank line, ``Assistant:``; a turn ends with the end-of-text token."""

_PLAIN_STOP = ("\nUser:", "\nAssistant:", "\nSystem:")
_PLAIN_LABEL = re.compile(r"\s*(?:User|Assistant|System):")
_PROBE = "esckit probe"


@dataclass(frozen=True)
class ChatFormat:
    """A tokenizer with everything that depends on its chat template.

    Attributes:
        tokenizer: The Hugging Face tokenizer.
        template: The Jinja template in use.
        has_system: False if system messages are merged into the first user message.
        end_of_turn: Token that ends an assistant turn.
        stop_ids: All tokens that end a reply.
        stop: Strings that end a reply beside those a caller names.
        opening: Mark with which the template opens the reply's reasoning by itself; "" if it opens none.
        marks: Special tokens that tell reasoning from answer; decoding keeps them.
    """

    tokenizer: Any
    template: str
    has_system: bool = True
    end_of_turn: int = -1
    stop_ids: frozenset[int] = frozenset()
    stop: tuple[str, ...] = ()
    opening: str = ""
    marks: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, tokenizer: Any, extra_stop_ids: Sequence[int] = ()) -> ChatFormat:
        """Find out the chat format of a tokenizer.

        Args:
            tokenizer: A Hugging Face tokenizer.
            extra_stop_ids: What the model's generation settings name as end of text.

        Raises:
            ConfigError: If the tokenizer names no end-of-turn token, or its template fails.
        """
        own = tokenizer.chat_template
        is_plain = not isinstance(own, str)
        chat = cls(tokenizer, PLAIN if is_plain else own, stop=_PLAIN_STOP if is_plain else ())
        chat = replace(chat, has_system=chat._takes_system())
        if chat.has_system and chat._is_chatml():
            chat = replace(chat, template=CHATML)
        end = chat._end_of_turn()
        stop_ids = {end, *extra_stop_ids} | ({tokenizer.eos_token_id} - {None})
        opening = opened_by(chat.render([Message("user", _PROBE)]).rpartition(_PROBE)[2])
        return replace(
            chat, end_of_turn=end, stop_ids=frozenset(stop_ids), opening=opening, marks=_special_marks(tokenizer)
        )

    @cached_property
    def guard(self) -> MessageGuard:
        """Keeps contents inside their turns."""
        return MessageGuard.of(self.tokenizer)

    def render(self, messages: Sequence[Message], *, generation_prompt: bool = True) -> str:
        """Return the prompt as text.

        Raises:
            ConfigError: If the model's template refuses these messages, or fails.
        """
        turns = self.as_dicts(messages)
        try:
            return str(
                self.tokenizer.apply_chat_template(
                    turns, chat_template=self.template, tokenize=False, add_generation_prompt=generation_prompt
                )
            )
        except Exception as error:  # a template is a program of whoever made the model
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the model's chat template refuses messages of {roles}: {error or type(error).__name__}",
                hint="Set a plain chat_template in the model's tokenizer_config.json",
            ) from error

    def as_dicts(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return the messages as the template takes them; without a system role, merged as said above.

        No content can leave its turn: see :mod:`esckit.controls`.
        """
        kept = [Message(message.role, self._content(message)) for message in messages]
        turns = kept if self.has_system else without_system(kept)
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    def _content(self, message: Message) -> str:
        content = self.guard(message).content
        return as_turn(content, _starts_a_plain_turn) if self.template == PLAIN else content

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the prompt as tokens, ready for the assistant's answer.

        Raises:
            ConfigError: If the model's template refuses these messages.
        """
        return self.tokens(self.render(messages))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text as it stands."""
        # Not verbose: whoever calls looks at the length itself.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an assistant turn that says exactly this, its end included."""
        lead = " " if self.template == PLAIN else ""
        return (*self.tokens(lead + text), self.end_of_turn)

    def closed_reasoning(self) -> tuple[int, ...]:
        """Return the tokens that close reasoning which the template opened, or skip it: the answer follows them."""
        if "<|channel|>" in self.template:
            return self.tokens("<|channel|>final<|message|>")
        return self.tokens(f"\n{closing_mark(self.opening)}\n\n") if self.opening else ()

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of tokens without special ones, except those that tell reasoning from answer."""
        if not self.marks or self.marks.keys().isdisjoint(ids):
            return self._plain(ids)
        texts: list[str] = []
        start = 0
        for index, token in enumerate(ids):
            if token in self.marks:
                texts += [self._plain(ids[start:index]), self.marks[token]]
                start = index + 1
        return "".join([*texts, self._plain(ids[start:])])

    def _plain(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))

    def _takes_system(self) -> bool:
        try:
            text = self.render([Message("system", _PROBE), Message("user", "x")])
        except ConfigError:
            return False
        return _PROBE in text

    def _is_chatml(self) -> bool:
        turns = [Message("system", _PROBE), Message("user", "a"), Message("assistant", "b"), Message("user", "c")]
        return self.render(turns) == replace(self, template=CHATML).render(turns)

    def _end_of_turn(self) -> int:
        """Return the special token that the template puts behind an assistant's answer."""
        text = self.render([Message("user", "x"), Message("assistant", _PROBE)], generation_prompt=False)
        behind = self.tokens(text.rpartition(_PROBE)[2])
        if behind and behind[0] in self.tokenizer.added_tokens_decoder:
            return behind[0]
        if self.tokenizer.eos_token_id is None:
            raise ConfigError(
                "the tokenizer names no end-of-turn token", expected="an eos_token in tokenizer_config.json"
            )
        return int(self.tokenizer.eos_token_id)


def _special_marks(tokenizer: Any) -> dict[int, str]:
    """Return the special tokens of a tokenizer that are marks of reasoning, which decoding would leave out."""
    wanted = {*CHANNEL_MARKS, *(mark for pair in MARKS for mark in pair)}
    return {
        token: str(added)
        for token, added in tokenizer.added_tokens_decoder.items()
        if added.special and str(added) in wanted
    }


def _starts_a_plain_turn(line: str) -> bool:
    return bool(_PLAIN_LABEL.match(line))


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Return messages with what the system says at the head of the first user message."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return rest
    if rest and rest[0].role == "user":
        return [Message("user", f"{system}\n\n{rest[0].content}"), *rest[1:]]
    return [Message("user", system), *rest]


def one_system(messages: Sequence[Message]) -> list[Message]:
    """Return messages with one system message at their head, and neighbours of one role joined by a line break."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    laid_out = [Message("system", system)] if system else []
    for message in messages:
        if message.role == "system":
            continue
        if laid_out and laid_out[-1].role == message.role:
            laid_out[-1] = Message(message.role, f"{laid_out[-1].content}\n{message.content}")
        else:
            laid_out.append(message)
    return laid_out
