"""The prompted strategist: a prior over strategies at a supporter decision (AFlow, arXiv 2602.08826).

Two read-outs. ``json``: the model writes one probability per strategy. ``choices``: one scoring pass over the names of
the strategies, or over option letters where a model only gives next-token probabilities; deterministic, for small
models that cannot keep to the JSON form. A trained policy stands in the same place.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import exp
from string import ascii_uppercase
from typing import Literal

from esckit.errors import ConfigError, ParseError, UnscoredError
from esckit.ledger import Scope, uniform
from esckit.prompts.prompt import Prompt
from esckit.protocols import Decision
from esckit.roles.asking import Voice, as_tagged_lines, ask
from esckit.roles.verdicts import read_json, verdict_text
from esckit.strategies.taxonomy import Taxonomy
from esckit.types import Message, Reply, Scenario, Turn

_SUM_RANGE = (0.98, 1.02)


@dataclass(frozen=True, slots=True)
class PromptedStrategist:
    """A chat model as the prior of a search, or as the chooser of a simulation.

    Attributes:
        voice: Model and settings.
        prompt: A prompt with ``definitions`` and ``transcript``, and the optional ``keys`` (``json``) and ``options``
            (``choices``).
        taxonomy: The strategies.
        readout: How probabilities are read.
    """

    voice: Voice
    prompt: Prompt
    taxonomy: Taxonomy
    readout: Literal["json", "choices"]

    def __post_init__(self) -> None:
        if self.readout == "choices" and not self.voice.model.capabilities & {"score", "next_token"}:
            raise ConfigError(
                f"model {self.voice.model.name} gives no log-probabilities",
                expected="a model that can score choices",
                hint="Set strategist.readout: json",
            )
        if self.readout == "choices" and len(self.taxonomy.names) > len(ascii_uppercase):
            raise ConfigError(f"{len(self.taxonomy.names)} strategies", expected=f"at most {len(ascii_uppercase)}")

    @property
    def strategies(self) -> tuple[str, ...]:
        """Names in taxonomy order."""
        return self.taxonomy.names

    async def decide(self, scenario: Scenario, turns: Sequence[Turn], scope: Scope) -> Decision:
        """Return the most probable strategy (a seeded draw breaks a tie), and all probabilities; some may be 0.

        Raises:
            ModelError: If no usable answer came within the allowed attempts.
        """
        probabilities = await self._probabilities(turns, scope)
        tied = [name for name, p in zip(self.strategies, probabilities, strict=True) if p == max(probabilities)]
        drawn = int(uniform(scope.seed("tie")) * len(tied)) if len(tied) > 1 else 0
        return Decision(tied[min(drawn, len(tied) - 1)], probabilities)

    async def _probabilities(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        if self.readout == "json":
            messages = self._messages(turns, scope, keys=", ".join(f'"{abbr}"' for abbr in self.taxonomy.abbrs))
            return await ask(self.voice, messages, scope, "strategist", self._parse)
        if "score" in self.voice.model.capabilities:
            return await self._scored(turns, scope)
        return await self._lettered(turns, scope)

    async def _scored(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        """Read the softmax over length-normalised log-probabilities of the names."""
        messages = self._messages(turns, scope, options="\n".join(f"- {name}" for name in self.strategies))
        scores = await self.voice.model.score(messages, self.strategies)
        scope.spend("strategist", scores.usage)
        means = [choice.log_p / choice.n_tokens for choice in scores.choices]
        best = max(means)
        weights = [exp(mean - best) for mean in means]
        return _normalised(weights)

    async def _lettered(self, turns: Sequence[Turn], scope: Scope) -> tuple[float, ...]:
        """Read the next-token probabilities of option letters."""
        letters = ascii_uppercase[: len(self.strategies)]
        options = "\n".join(f"{letter}. {name}" for letter, name in zip(letters, self.strategies, strict=True))
        messages = self._messages(turns, scope, options=f"{options}\nAnswer with the letter alone.")
        found = await self.voice.model.next_token(messages, tuple(letters))
        scope.spend("strategist", found.usage)
        if found.label_mass <= 0.0:
            raise UnscoredError("no option letter among the likely answers", expected=f"one of {', '.join(letters)}")
        return _normalised(found.probabilities)

    def _messages(
        self, turns: Sequence[Turn], scope: Scope, *, keys: str | None = None, options: str | None = None
    ) -> list[Message]:
        definitions = "\n".join(f"{s.abbr} ({s.name}): {s.definition}" for s in self.taxonomy.strategies)

        def messages(shown: Sequence[Turn]) -> list[Message]:
            transcript = as_tagged_lines(shown, show_strategy=True)
            return self.prompt.render(definitions=definitions, transcript=transcript, keys=keys, options=options)

        return self.voice.window.fit(messages, turns, scope, "strategist")

    def _parse(self, reply: Reply) -> tuple[float, ...]:
        return parse_probabilities(verdict_text(reply), self.taxonomy.abbrs)


def parse_probabilities(text: str, keys: Sequence[str]) -> tuple[float, ...]:
    """Return the probabilities of one JSON object, normalised, in the order of ``keys``.

    Args:
        text: One object, with or without code fences; its keys are exactly ``keys``, its values lie in [0, 1] and
            sum to 1 within 0.02.
        keys: Abbreviations in taxonomy order.

    Raises:
        ParseError: If it is anything else.
    """
    found = read_json(text, keys, what="strategies")
    values = [found[key] for key in keys]
    # True is a number to Python.
    if not all(isinstance(p, int | float) and not isinstance(p, bool) and 0 <= p <= 1 for p in values):
        raise ParseError("a value that is not a probability", expected="numbers in [0, 1]", samples=(text,))
    total = sum(values)
    if not _SUM_RANGE[0] <= total <= _SUM_RANGE[1]:
        raise ParseError(f"probabilities that sum to {total:.3g}", expected="a sum of 1", samples=(text,))
    return _normalised(values)


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    total = sum(weights)
    return tuple(weight / total for weight in weights)
