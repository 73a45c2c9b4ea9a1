"""The prompted supporter: reads the turns, reasons, and writes the next one. It never sees the scenario."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from esckit.dialogue.ask import Voice, ask, need_answer, within_words
from esckit.dialogue.output import asks_for_tags, split_output
from esckit.dialogue.transcript import as_chat, clean_reply, merge_messages
from esckit.dialogue.window import Window
from esckit.errors import ParseError
from esckit.ledger import Scope
from esckit.prompts.prompt import Prompt
from esckit.types import Generation, Message, Reply, StopReason, Turn
from esckit.words import whole_sentences


@dataclass(frozen=True, slots=True)
class PromptedSupporter:
    """A chat model in the supporter's role, with explicit reasoning (RLFF-ESC, arXiv 2508.12935).

    Attributes:
        voice: Model and settings.
        prompt: A prompt whose only variable is the optional ``strategy``.
        definitions: Strategy name to what the supporter is asked to do under it.
        window: How much of the talk the model is shown.
    """

    voice: Voice
    prompt: Prompt
    definitions: Mapping[str, str] = field(default_factory=dict)
    window: Window = field(default_factory=Window)

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn.

        Raises:
            ModelError: If every attempt was blank, or cut off where that is not allowed, or the backend failed.
        """
        told = None if strategy is None else f"{strategy}: {self.definitions[strategy]}"
        opening = self.prompt.render(strategy=told)

        def messages(shown: Sequence[Turn]) -> list[Message]:
            return merge_messages([*opening, *as_chat(shown, speaking="supporter")])

        return await ask(
            self.voice, self.window.fit(messages, turns, scope, "supporter"), scope, "supporter", self._parse
        )

    def _parse(self, reply: Reply) -> Generation:
        found = split_output(reply.whole)
        cut = reply.stop_reason is StopReason.LENGTH
        if cut:
            need_answer(reply)
        if cut and self.voice.on_length == "fail":
            raise ParseError("a reply cut at the token limit", kind="too_long", samples=(reply.whole,))
        response = clean_reply(found.response, speaking="supporter")
        if cut and found.parse_kind in ("open_response", "untagged"):
            response = whole_sentences(response)
        if not response:
            raise ParseError("a blank reply", kind="blank", samples=(reply.whole,))
        # Where the prompt asks for no tags, plain text is what was agreed.
        format_ok = found.format_ok or (found.parse_kind == "untagged" and not asks_for_tags(self.prompt))
        return found.model_copy(
            update={"response": within_words(response, self.voice.max_words), "format_ok": format_ok}
        )
