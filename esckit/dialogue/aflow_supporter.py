"""The supporter of AFlow (arXiv 2602.08826): words the next utterance under a given strategy, seeing only the talk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from esckit.dialogue.ask import Voice, ask, need_answer
from esckit.dialogue.output import split_output
from esckit.dialogue.utterance import UtteranceRules, as_tagged_lines
from esckit.dialogue.window import Window
from esckit.errors import ConfigError
from esckit.ledger import Scope
from esckit.prompts.prompt import Prompt
from esckit.types import Generation, Message, Reply, StopReason, Turn


@dataclass(frozen=True, slots=True)
class AFlowSupporter:
    """A chat model that carries out a strategy in one utterance; it sees neither scene nor earlier strategies.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``strategy``, ``definition`` and ``transcript``.
        rules: What an utterance may look like, and the taxonomy of the strategies.
        window: How much of the talk the model is shown.
    """

    voice: Voice
    prompt: Prompt
    rules: UtteranceRules
    window: Window = field(default_factory=Window)

    async def reply(self, turns: Sequence[Turn], scope: Scope, *, strategy: str | None = None) -> Generation:
        """Answer the last seeker turn under a strategy.

        Raises:
            ConfigError: If no strategy is given.
            ModelError: If no usable reply came within the allowed attempts.
        """
        if strategy is None:
            raise ConfigError("the supporter_aflow prompt without a strategy", expected="a strategist beside it")
        definition = self.rules.taxonomy.by_name(strategy).definition

        def messages(shown: Sequence[Turn]) -> list[Message]:
            transcript = as_tagged_lines(shown, show_strategy=False)
            return self.prompt.render(strategy=strategy, definition=definition, transcript=transcript)

        return await ask(
            self.voice, self.window.fit(messages, turns, scope, "supporter"), scope, "supporter", self._parse
        )

    def _parse(self, reply: Reply) -> Generation:
        # A policy that was trained to reason does so under any prompt; what it thinks is for nobody else.
        if reply.stop_reason is StopReason.LENGTH:
            need_answer(reply)
        found = split_output(reply.whole)
        response = self.rules.check(self.rules.text_of(replace(reply, text=found.response)))
        return found.model_copy(update={"response": response, "format_ok": True})
