"""The prompted seeker: plays the person of a scenario in one short sentence at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from esckit.dialogue.ask import Voice, ask, finished_text, within_words
from esckit.dialogue.transcript import as_chat, clean_reply, merge_messages
from esckit.dialogue.window import Window
from esckit.errors import ParseError
from esckit.ledger import Scope
from esckit.prompts.prompt import Prompt
from esckit.protocols import SeekerTurn
from esckit.types import Message, Reply, Scenario, Turn


@dataclass(frozen=True, slots=True)
class PromptedSeeker:
    """A chat model in the seeker's role (RLFF-ESC, arXiv 2508.12935); it cannot leave the conversation.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``emotion_type``, ``problem_type`` and the optional ``situation``.
        window: How much of the talk the model is shown.
    """

    voice: Voice
    prompt: Prompt
    window: Window = field(default_factory=Window)

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
        told = scenario.situation and turns and turns[0].speaker == "seeker" and turns[0].text == scenario.situation
        said = turns[1:] if told else turns

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return merge_messages([*opening, *as_chat(shown, speaking="seeker")])

        text = await ask(self.voice, self.window.fit(messages, said, scope, "seeker"), scope, "seeker", self._parse)
        return SeekerTurn(text)

    def _parse(self, reply: Reply) -> str:
        text = clean_reply(finished_text(reply, self.voice.on_length), speaking="seeker")
        if not text:
            raise ParseError("a blank reply", kind="blank", samples=(reply.text,))
        return within_words(text, self.voice.max_words)
