"""Control strings: what a tokenizer reads as the end of a turn, as a role, as anything but text.

Dialogue text must not leave its turn, so before it is rendered every control string in it is broken up by a space. Text
without such a string stays as it is, and so do its tokens.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from esckit.types import Message

log = logging.getLogger(__name__)

REASONING_TAGS = frozenset({"<think>", "</think>"})
"""Tags of RLFF-ESC's output form; instructions and outputs hold them, and they are no control strings there."""


class AddedTokens(Protocol):
    """The part of a transformers tokenizer that is needed here."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Special and added tokens by id."""
        ...


class Controls:
    """The control strings of one tokenizer, or of all formats that a server may use.

    Args:
        strings: What to break up; strings of white space alone are left out.

    Attributes:
        n_broken: How often one was broken up so far.
    """

    def __init__(self, strings: Iterable[str]) -> None:
        by_start: dict[str, list[str]] = {}
        for string in sorted({string for string in strings if string.strip(" \t\r\n\u2581")}, key=len, reverse=True):
            by_start.setdefault(string[0], []).append(string)
        self._by_start = {start: tuple(found) for start, found in by_start.items()}
        self.n_broken = 0

    @classmethod
    def of(cls, tokenizer: AddedTokens, *, without: Iterable[str] = ()) -> Controls:
        """Return those of a tokenizer: every special or added token that is more than white space.

        Args:
            tokenizer: A transformers tokenizer.
            without: Added tokens that are no control strings where they are ordinary text to the tokenizer.
        """
        added = tokenizer.added_tokens_decoder.values()
        return cls({str(token) for token in added if token.special} | ({str(token) for token in added} - set(without)))

    def found(self, text: str) -> list[str]:
        """Return the control strings in a text, in order; of those that overlap the first, and of those the longest."""
        found: list[str] = []
        self._broken(text, found)
        return found

    def neutralise(self, text: str) -> str:
        """Return a text in which each control string has a space behind its first character, or lacks that one."""
        found: list[str] = []
        while (broken := self._broken(text, found)) != text:
            text = broken
        if found:
            if not self.n_broken:
                log.warning("text of a dialogue holds the control string %r; such strings are broken up", found[0])
            self.n_broken += len(found)
        return text

    def _broken(self, text: str, found: list[str]) -> str:
        starts = [start for start in self._by_start if start in text]
        if not starts:
            return text
        at = sorted(index for start in starts for index in _places(text, start))
        pieces, done = [], 0
        for index in at:
            strings = self._by_start[text[index]]
            if index < done or not text.startswith(strings, index):
                continue
            string = next(string for string in strings if text.startswith(string, index))
            found.append(string)
            # Behind a character that white space follows a space might change nothing.
            first = "" if string[1:2].strip() == "" else string[0]
            pieces += [text[done:index], first, " ", string[1:]]
            done = index + len(string)
        return "".join([*pieces, text[done:]])


@dataclass(frozen=True)
class MessageGuard:
    """Breaks up control strings in the contents of chat messages.

    The tags of RLFF-ESC's form stay in system and assistant messages, which give and keep to that form.

    Attributes:
        dialogue: Control strings in user messages.
        form: Those in system and assistant messages.
    """

    dialogue: Controls
    form: Controls

    @classmethod
    def of(cls, tokenizer: AddedTokens) -> MessageGuard:
        """Return the guard of a tokenizer."""
        return cls(Controls.of(tokenizer), Controls.of(tokenizer, without=REASONING_TAGS))

    @classmethod
    def of_any_format(cls) -> MessageGuard:
        """Return the guard for a server, whose chat format nobody knows."""
        return cls(Controls(ANY_FORMAT), Controls(set(ANY_FORMAT) - REASONING_TAGS))

    @property
    def n_broken(self) -> int:
        """How many control strings were broken up so far."""
        return self.dialogue.n_broken + self.form.n_broken

    def __call__(self, message: Message) -> Message:
        """Return a message that no control string leaves its turn through; the message itself if it holds none."""
        controls = self.dialogue if message.role == "user" else self.form
        content = controls.neutralise(message.content)
        return message if content is message.content else Message(message.role, content)


def _places(text: str, character: str) -> Iterable[int]:
    at = text.find(character)
    while at >= 0:
        yield at
        at = text.find(character, at + 1)


# One block reads better than a list of a hundred lines.
_FORMATS = """
<|im_start|> <|im_end|> <|im_sep|> <|endoftext|> <|startoftext|> <|end_of_text|> <|begin_of_text|> <|eot_id|> <|eom_id|>
<|start_header_id|> <|end_header_id|> <|header_start|> <|header_end|> <|eot|> <|python_tag|> <start_of_turn>
<end_of_turn> <|turn> <turn|> <|channel> <channel|> <|think|> <bos> <eos> <pad> <unk> <s> </s> [INST] [/INST] <<SYS>>
<</SYS>> [SYSTEM_PROMPT] [/SYSTEM_PROMPT] [AVAILABLE_TOOLS] [/AVAILABLE_TOOLS] [TOOL_CALLS] [TOOL_RESULTS]
[/TOOL_RESULTS] [THINK] [/THINK] <|start|> <|end|> <|message|> <|channel|> <|return|> <|call|> <|constrain|> <|system|>
<|user|> <|assistant|> <|observation|> <|tool|> <|endofprompt|> <|START_OF_TURN_TOKEN|> <|END_OF_TURN_TOKEN|>
<|SYSTEM_TOKEN|> <|USER_TOKEN|> <|CHATBOT_TOKEN|> <|START_THINKING|> <|END_THINKING|> <|START_RESPONSE|>
<|END_RESPONSE|> <BOS_TOKEN> <EOS_TOKEN> <|start_of_role|> <|end_of_role|> <|role_start|> <|role_end|> [gMASK] <sop>
<eop> [BOS] [EOS] <\uff5cbegin\u2581of\u2581sentence\uff5c> <\uff5cend\u2581of\u2581sentence\uff5c> <\uff5cUser\uff5c>
<\uff5cAssistant\uff5c> <seed:bos> <seed:eos> <tool_call> </tool_call> <tool_response> </tool_response>
<|im_user|> <|im_system|> <|im_assistant|> <|im_middle|> [|system|] [|user|] [|assistant|] [|endofturn|] <|endofturn|>
<|stop|> <extra_id_0> <extra_id_1> <|User|> <|Assistant|> <|user_start|> <|user_end|> <|system_start|> <|system_end|>
<|assistant_start|> <|assistant_end|> <|turn_start|> <|turn_end|> <|inner_prefix|> <|inner_suffix|> <longcat_user>
<longcat_assistant> <reserved_102> <reserved_103> <reserved_106> <reserved_107> <|tool_call|> <|file_sep|>
<|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|vision_start|> <|vision_end|> <|image_pad|> <|image|>
<start_of_image> <end_of_image>
""".split()  # noqa: SIM905
ANY_FORMAT = (*_FORMATS, *sorted(REASONING_TAGS))
"""Control strings of the chat formats that servers use: ChatML, Llama, Gemma, Mistral, harmony, Phi, GLM, Kimi …"""
