"""Between messages and text: chat formats, and the reasoning in what a model wrote. Every backend comes through here.

Messages become prompt tokens by one :class:`ChatFormat` per tokenizer, found out by rendering with it. What is rendered
is what the caller passed and nothing else: templates that slip in a system prompt of their own (Qwen 2.5, SmolLM2) are
replaced by plain ChatML, which renders the same text where a system message is given. Models whose template refuses
system messages (Gemma 2) get them at the head of the first user message. Base models get :data:`PLAIN`.

Models that reason put it into the text between two marks (``<think>…</think>`` and its kin), into a channel of its own
(``<|channel|>analysis<|message|>…``), or a server returns it in a field of its own. The opening mark may be missing,
since some chat templates write it into the prompt. Inside reasoning nothing is an utterance or a verdict; a text that
ends inside its reasoning has no answer. Each function is linear in the length of the text.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from esckit.errors import BackendError, ConfigError
from esckit.text import MessageGuard, as_turn, without_surrogates
from esckit.types import Message, Reply, StopReason, Usage

MARKS = (
    ("<think>", "</think>"),
    ("<thinking>", "</thinking>"),
    ("<thought>", "</thought>"),
    ("<thoughts>", "</thoughts>"),
    ("<reasoning>", "</reasoning>"),
    ("<reflection>", "</reflection>"),
    ("<analysis>", "</analysis>"),
    ("<scratchpad>", "</scratchpad>"),
    ("<seed:think>", "</seed:think>"),
    ("<longcat_think>", "</longcat_think>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|begin_of_thought|>", "<|end_of_thought|>"),
    ("<|inner_prefix|>", "<|inner_suffix|>"),
    ("<|channel>thought", "<channel|>"),
    ("<unused94>thought", "<unused95>"),
)
"""Strings that open and close reasoning; case does not count, nor do attributes and blanks inside a tag."""


CHANNEL_MARKS = ("<|start|>", "<|channel|>", "<|message|>", "<|end|>", "<|return|>", "<|call|>", "<|channel>")
"""Control tokens of formats with channels; in harmony, what stands outside the channel ``final`` is reasoning."""


_MAX_CHARS_PER_TOKEN = 64

_MIN_CHARS = 4096


_CLOSING = {opening.casefold(): closing for opening, closing in MARKS}

_TAG_REST = r"(?:\s[^<>]{0,80})?>"

_MARK = re.compile(
    "|".join(
        re.escape(mark).removesuffix(">") + (_TAG_REST if mark[-1] == ">" else "") for pair in MARKS for mark in pair
    ),
    re.IGNORECASE,
)

_ALL_MARKS = {*CHANNEL_MARKS, *(mark for pair in MARKS for mark in pair)}

_OPENING = MARKS[0][0]

_CHANNEL, _MESSAGE = "<|channel|>", "<|message|>"

_MESSAGE_END = re.compile("|".join(map(re.escape, ("<|start|>", "<|end|>", "<|return|>", "<|call|>"))))

# Servers that leave control tokens out of the text turn the harmony format into "analysisWe …assistantfinalHello."
_BARE_ANALYSIS = re.compile(r"\s*analysis(?=[A-Z]|.*assistantfinal)", re.DOTALL)

_BARE_FINAL = "assistantfinal"


class Split(NamedTuple):
    """A text taken apart.

    Attributes:
        reasoning: The pieces of reasoning, stripped and joined by line breaks; None if all are blank and closed.
        answer: What is left, stripped; the text itself where it holds no mark, "" where it ends inside reasoning.
        is_open: Whether the text ends inside reasoning.
    """

    reasoning: str | None
    answer: str
    is_open: bool = False


def split_reasoning(text: str) -> Split:
    """Return the reasoning and the answer of a text.

    A closing mark without an opening one means that the text began inside reasoning: the opening mark was part of the
    prompt. Where the caller knows that it was, it must put the mark back before the text, or a text that is cut before
    the closing mark is taken for an answer.
    """
    if _CHANNEL in text:
        return _split_channels(text)
    if bare := _BARE_ANALYSIS.match(text):
        reasoning, final, answer = text[bare.end() :].partition(_BARE_FINAL)
        return _split([reasoning], [answer], is_open=not final)
    thoughts: list[str] = []
    answer_pieces: list[str] = []
    start, closing = 0, ""
    for mark in _MARK.finditer(text):
        name, before = _bare(mark[0]), text[start : mark.start()]
        if not closing and name in _CLOSING:
            answer_pieces.append(before)
            closing = _CLOSING[name].casefold()
        elif not closing:
            # Without an opening mark everything before it was reasoning.
            thoughts += [*answer_pieces, before]
            answer_pieces = []
        elif name == closing:
            thoughts.append(before)
            closing = ""
        else:
            continue
        start = mark.end()
    if not start:
        return Split(None, text)
    (thoughts if closing else answer_pieces).append(text[start:])
    return _split(thoughts, answer_pieces, is_open=bool(closing))


def _split_channels(text: str) -> Split:
    """Take apart a text in the harmony format; without a channel ``final`` there is no answer."""
    thoughts: list[str] = []
    answers: list[str] = []
    for message in text.split(_CHANNEL)[1:]:
        header, _, content = message.partition(_MESSAGE)
        channel = answers if header.split()[:1] == ["final"] else thoughts
        channel.append(_MESSAGE_END.split(content, maxsplit=1)[0])
    return _split(thoughts, answers, is_open=not answers)


def _split(thoughts: list[str], answer: list[str], *, is_open: bool) -> Split:
    reasoning = _joined(thoughts)
    return Split(reasoning or "", "", True) if is_open else Split(reasoning, "".join(answer).strip())


def _joined(pieces: list[str]) -> str | None:
    return "\n".join(piece for piece in map(str.strip, pieces) if piece) or None


def opened_by(prompt: str) -> str:
    """Return the mark of the reasoning that a prompt leaves open, "" if it leaves none open."""
    opened = ""
    for mark in _MARK.finditer(prompt):
        opened = mark[0] if _bare(mark[0]) in _CLOSING else ""
    return opened


def _bare(mark: str) -> str:
    """Return a mark as the table names it, in lower case and without attributes."""
    name = mark.casefold().split(maxsplit=1)[0]
    return name if name == mark.casefold() else f"{name.removesuffix('>')}>"


def with_reasoning_apart(reply: Reply, max_tokens: int) -> Reply:
    """Return the reply of a chat model of a user's own, which may not tell its reasoning apart; others as they are.

    Raises:
        BackendError: As :func:`make_reply`.
    """
    if reply.raw is not None or reply.reasoning is not None:
        return reply
    return make_reply(reply.text, reply.stop_reason, reply.usage, max_tokens=max_tokens)


def make_reply(
    text: str, stop_reason: StopReason, usage: Usage, *, max_tokens: int, reasoning: str | None = None
) -> Reply:
    """Return what a backend read as a reply, with its reasoning apart. Every backend makes its replies here.

    Args:
        text: What the model wrote, an opening mark that its chat template wrote for it included.
        stop_reason: Why it stopped.
        usage: What the call cost.
        max_tokens: How many tokens were asked for.
        reasoning: What the server returned as reasoning, beside the text.

    Raises:
        BackendError: ``too_long`` if the text cannot have been written with so few tokens: a server that ignores the
            limit.
    """
    text = without_surrogates(text)
    most = max(_MIN_CHARS, _MAX_CHARS_PER_TOKEN * max_tokens)
    n_chars = len(text) + len(reasoning or "")
    if n_chars > most:
        raise BackendError(
            f"a reply of {n_chars} characters where {max_tokens} tokens were asked for",
            kind="too_long",
            expected=f"at most {most} characters",
            samples=(text[:200],),
        )
    found = split_reasoning(text)
    apart = _MARK.sub("", without_surrogates(reasoning or "")).strip()
    thought = _joined([apart, found.reasoning or ""]) or found.reasoning
    if thought is None:
        return Reply(found.answer, stop_reason, usage, raw=None if found.answer == text else text)
    usage = usage.model_copy(update={"reasoned": 1, "only_reasoned": int(not found.answer)})
    is_open = found.is_open or (stop_reason is StopReason.LENGTH and not text.strip())
    as_written = not apart and _OPENING in text
    raw = text if as_written else f"{_OPENING}{thought}" + ("" if is_open else f"{_CLOSING[_OPENING]}{found.answer}")
    return Reply(found.answer, stop_reason, usage, reasoning=thought, raw=raw)


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
        special = {token: str(added) for token, added in tokenizer.added_tokens_decoder.items() if added.special}
        marks = {token: text for token, text in special.items() if text in _ALL_MARKS}
        return replace(chat, end_of_turn=end, stop_ids=frozenset(stop_ids), opening=opening, marks=marks)

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
        except Exception as error:  # a template is a program of the model's author
            roles = ", ".join(message.role for message in messages)
            raise ConfigError(
                f"the model's chat template refuses messages of {roles}: {error or type(error).__name__}",
                hint="Set a plain chat_template in the model's tokenizer_config.json",
            ) from error

    def as_dicts(self, messages: Sequence[Message]) -> list[dict[str, str]]:
        """Return the messages as the template takes them; without a system role, merged as described above.

        No content can leave its turn: see :mod:`esckit.text`.
        """
        kept = [Message(message.role, self._content(message)) for message in messages]
        turns = kept if self.has_system else without_system(kept)
        return [{"role": turn.role, "content": turn.content} for turn in turns]

    def _content(self, message: Message) -> str:
        content = self.guard(message).content
        return as_turn(content, lambda line: bool(_PLAIN_LABEL.match(line))) if self.template == PLAIN else content

    def encode(self, messages: Sequence[Message]) -> tuple[int, ...]:
        """Return the prompt as tokens, ready for the assistant's answer.

        Raises:
            ConfigError: If the model's template refuses these messages.
        """
        return self.tokens(self.render(messages))

    def tokens(self, text: str) -> tuple[int, ...]:
        """Return the tokens of a text as it stands."""
        # Not verbose: callers check the length themselves.
        return tuple(self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])

    def answer(self, text: str) -> tuple[int, ...]:
        """Return the tokens of an assistant turn that says exactly this, its end included."""
        lead = " " if self.template == PLAIN else ""
        return (*self.tokens(lead + text), self.end_of_turn)

    def closed_reasoning(self) -> tuple[int, ...]:
        """Return the tokens that close reasoning which the template opened, or skip it: the answer follows them."""
        if "<|channel|>" in self.template:
            return self.tokens("<|channel|>final<|message|>")
        return self.tokens(f"\n{_CLOSING[_bare(self.opening)]}\n\n") if self.opening else ()

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


def without_system(messages: Sequence[Message]) -> list[Message]:
    """Return messages with what the system says at the head of the first user message."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = [message for message in messages if message.role != "system"]
    if not system:
        return rest
    if rest and rest[0].role == "user":
        return [Message("user", f"{system}\n\n{rest[0].content}"), *rest[1:]]
    return [Message("user", system), *rest]


def merge_messages(messages: Iterable[Message]) -> list[Message]:
    """Join neighbouring messages of one chat role with a line break, since chat templates want them to alternate."""
    merged: list[Message] = []
    for message in messages:
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, f"{merged[-1].content}\n{message.content}")
        else:
            merged.append(message)
    return merged


def one_system(messages: Sequence[Message]) -> list[Message]:
    """Return messages with one system message at their head, and neighbours of one role joined by a line break."""
    system = "\n\n".join(message.content for message in messages if message.role == "system")
    rest = merge_messages(message for message in messages if message.role != "system")
    return [Message("system", system), *rest] if system else rest
