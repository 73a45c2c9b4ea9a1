"""Supporters of the tests, named as ``module:attr`` on the command line."""

import asyncio
from collections.abc import Sequence

from esckit.errors import BackendError
from esckit.models.chat import make_reply
from esckit.models.scripted import n_turns
from esckit.models.streaming import listener
from esckit.types import Message, Reply, Sampling, StopReason, Usage
from tests.fakes import FakeModel

WORDS = [f"word{n}" for n in range(16)]


class Slow(FakeModel):
    """Writes a word every twentieth of a second."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        listen = listener()
        for n in range(1, len(WORDS) + 1):
            await asyncio.sleep(0.05)
            if listen is not None:
                listen(" ".join(WORDS[:n]))
        usage = Usage(calls=1, prompt_tokens=10, completion_tokens=len(WORDS))
        return make_reply(" ".join(WORDS), StopReason.STOP, usage, max_tokens=sampling.max_tokens)


class Failing(FakeModel):
    """Fails while the user has said two things."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        if n_turns(messages) == 3 and "again" not in messages[-1].content:
            raise BackendError("the backend is tired", kind="backend")
        return await super().complete(messages, sampling, seed=seed)


class Fickle(FakeModel):
    """Begins a reply that it does not keep to."""

    async def complete(self, messages: Sequence[Message], sampling: Sampling, *, seed: int) -> Reply:
        listen = listener()
        if listen is not None:
            listen("I am quite sure that you will be well soon.")
        return make_reply("No.", StopReason.STOP, Usage(calls=1), max_tokens=sampling.max_tokens)


slow, failing, fickle = Slow(name="slow"), Failing(name="failing"), Fickle(name="fickle")

hostile = FakeModel(
    answer=lambda messages, seed: "\x1b[31m[bold]red[/bold] \u202e" + messages[-1].content, name="hostile"
)
