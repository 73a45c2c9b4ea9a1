"""Fakes of the seams: chat models whose answers are plain functions of the call."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path

from esckit.models.chat import make_reply
from esckit.protocols import Capability
from esckit.records import write_json
from esckit.runs import MANIFEST, attempts_of, read_manifest
from esckit.types import ChoiceScore, ChoiceScores, Message, NextToken, Reply, Sampling, StopReason, Usage

Answer = Callable[[Sequence[Message], int], str]


@dataclass
class FakeModel:
    """A chat model that answers by a function of (messages, seed) and remembers what it was asked."""

    answer: Answer = lambda messages, seed: "Hello."
    log_p: Callable[[str], float] = lambda choice: -1.0
    label_p: Callable[[str], float] = lambda label: 0.1
    stop_reason: StopReason = StopReason.STOP
    capabilities: frozenset[Capability] = frozenset({"score", "next_token"})
    name: str = "fake"
    usage: Usage | None = None
    asked: list[tuple[tuple[Message, ...], int]] = field(default_factory=list)

    async def check(self) -> None:
        return

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        self.asked.append((tuple(messages), seed))
        text = self.answer(messages, seed)
        usage = self.usage or Usage(calls=1, prompt_tokens=10, completion_tokens=len(text.split()))
        return make_reply(text, self.stop_reason, usage, max_tokens=sampling.max_tokens)

    async def score(
        self, messages: Sequence[Message], choices: Sequence[str], *, temperature: float = 1.0
    ) -> ChoiceScores:
        self.asked.append((tuple(messages), -1))
        scored = tuple(ChoiceScore(self.log_p(choice), len(choice.split())) for choice in choices)
        return ChoiceScores(scored, Usage(calls=1, prompt_tokens=10))

    async def next_token(
        self, messages: Sequence[Message], labels: Sequence[str], *, temperature: float = 1.0
    ) -> NextToken:
        self.asked.append((tuple(messages), -1))
        probabilities = tuple(self.label_p(label) for label in labels)
        return NextToken(probabilities, sum(probabilities), Usage(calls=1, prompt_tokens=10))

    async def aclose(self) -> None:
        return


def aged(run: Path, *, hours: float) -> None:
    """Let a run folder look as if all of it had been done some hours earlier."""

    def earlier(text: str | None) -> str | None:
        return text and (datetime.fromisoformat(text) - timedelta(hours=hours)).isoformat(timespec="seconds")

    manifest = read_manifest(run)
    attempts = [
        each | {name: earlier(each[name]) for name in ("began", "ended") if name in each}
        for each in attempts_of(manifest)
    ]
    write_json(run / MANIFEST, manifest | {"created": earlier(manifest["created"]), "attempts": attempts})
