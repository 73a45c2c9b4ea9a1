"""Seekers: chat models that play the person of a scenario, one short utterance at a time.

The seeker of RLFF-ESC (arXiv 2508.12935) stays until others end the conversation; the seeker of AFlow (arXiv
2602.08826) remembers its seed dialogue and may be relieved, or leave.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from esckit.errors import ParseError
from esckit.ledger import Scope
from esckit.prompts.prompt import Prompt
from esckit.protocols import SeekerTurn
from esckit.roles.asking import (
    LEAVES,
    RESOLVED,
    UtteranceRules,
    Voice,
    as_chat,
    as_tagged_lines,
    ask,
    clean_reply,
    finished_text,
    merge_messages,
    scene_of,
    within_words,
)
from esckit.text import is_spaceless, tokenise
from esckit.types import Message, Outcome, Reply, Scenario, Turn


@dataclass(frozen=True, slots=True)
class PromptedSeeker:
    """A chat model in the seeker's role (RLFF-ESC, arXiv 2508.12935); it cannot leave the conversation.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``emotion_type``, ``problem_type`` and the optional ``situation``.
    """

    voice: Voice
    prompt: Prompt

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn.

        Raises:
            ModelError: If every attempt was blank, or cut off where that is not allowed, or the backend failed.
        """
        opening = self.prompt.render(
            emotion_type=scenario.emotion_type or "None",
            problem_type=scenario.problem_type or "None",
            situation=scenario.situation or None,
        )
        # The prompt states the situation already, so an opening that repeats it is not shown.
        opening_text = turns[0].text if turns and turns[0].speaker == "seeker" else ""
        talk = turns[1:] if scenario.situation and opening_text == scenario.situation else turns

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return merge_messages([*opening, *as_chat(shown, speaking="seeker")])

        text = await ask(
            self.voice, self.voice.window.fit(messages, talk, scope, "seeker"), scope, "seeker", self._parse
        )
        return SeekerTurn(text)

    def _parse(self, reply: Reply) -> str:
        text = clean_reply(finished_text(reply, self.voice.on_length), speaking="seeker")
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return within_words(text, self.voice.max_words)


_QUOTE_WORDS = 8

_QUOTE_CHARACTERS = 16

_PUNCTUATION = re.compile(r"[^\w\s]|_")


@dataclass(frozen=True, slots=True)
class AFlowSeeker:
    """A chat model that plays the seeker of a seed dialogue.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``scene``, ``situation``, ``memory``, ``own_turn`` and ``transcript``.
        rules: What an utterance may look like.
        memories: Scenario id to the turns of its seed dialogue, which only the seeker knows.
        memory_guard: Refuse replies that quote eight words in a row from one turn of the memory, so that the corpus
            text does not leak into trees.
    """

    voice: Voice
    prompt: Prompt
    rules: UtteranceRules
    memories: Mapping[str, Sequence[Turn]]
    memory_guard: bool

    async def reply(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> SeekerTurn:
        """Answer the last supporter turn, be relieved, or leave.

        Raises:
            ModelError: If no usable reply came within the allowed attempts.
        """
        memory = self.memories.get(scenario.id, ())
        own_turn = 1 + sum(turn.speaker == "seeker" for turn in turns)

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return self.prompt.render(
                scene=scene_of(scenario),
                situation=scenario.situation or "not stated",
                memory=as_tagged_lines(memory, show_strategy=False) or "nothing more",
                own_turn=str(own_turn),
                transcript=as_tagged_lines(shown, show_strategy=False),
            )

        def parse(reply: Reply) -> SeekerTurn:
            answer = parse_seeker(self.rules.text_of(reply), self.rules)
            if self.memory_guard and quotes(answer.text, memory):
                raise ParseError("a reply that quotes the seeker's memory", kind="memory", samples=(answer.text,))
            return answer

        return await ask(self.voice, self.voice.window.fit(messages, turns, scope, "seeker"), scope, "seeker", parse)


def parse_seeker(text: str, rules: UtteranceRules) -> SeekerTurn:
    """Return what a seeker's text says and how the conversation ends with it.

    ``</end/>`` alone means leaving, ``<ok>`` at the end of an utterance means relief; anywhere else they are invalid.

    Raises:
        ParseError: If the text is not one valid utterance.
    """
    if text == LEAVES:
        return SeekerTurn("", Outcome.DISENGAGED)
    if text.endswith(RESOLVED):
        return SeekerTurn(rules.check(text.removesuffix(RESOLVED).rstrip()), Outcome.RESOLVED)
    return SeekerTurn(rules.check(text))


def quotes(text: str, memory: Sequence[Turn]) -> bool:
    """Return whether eight consecutive words of a text stand in the same order in one turn of a memory.

    Case and punctuation do not count. In scripts without spaces it takes sixteen characters.
    """
    words = tokenise(_bare(text))
    spaceless = 2 * sum(map(is_spaceless, words)) > len(words)
    n = _QUOTE_CHARACTERS if spaceless else _QUOTE_WORDS
    remembered = [f" {' '.join(tokenise(_bare(turn.text)))} " for turn in memory]
    runs = (f" {' '.join(words[start : start + n])} " for start in range(len(words) - n + 1))
    return any(run in turn for run in runs for turn in remembered)


def _bare(text: str) -> str:
    return _PUNCTUATION.sub("", text.casefold())
