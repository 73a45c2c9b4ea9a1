"""How the tests of endpoints make a model, use it and close it."""

import asyncio
import socket
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from esckit.models.endpoint import EndpointModel
from esckit.models.transport import Timeouts
from esckit.types import Message, Sampling
from tests.models.fake_server import FakeServer

T = TypeVar("T")

KEY = "sk-secret/0123456789"
HELLO = [Message("system", "Be kind."), Message("user", "Hello")]
QUICK = Timeouts(timeout_s=2.0, check_s=2.0, max_retries=3, first_wait_s=0.01, max_wait_s=0.2)


def run(server_or_url: FakeServer | str, use: Callable[[EndpointModel], Awaitable[T]], **options: Any) -> T:
    """Make a model, use it, close it; with ``log_probs`` it offers them as if it had been checked."""
    url = server_or_url if isinstance(server_or_url, str) else server_or_url.url
    options = {"timeouts": QUICK} | options

    is_checked = options.pop("log_probs", False)

    async def go() -> T:
        model = EndpointModel(url, options.pop("model", "m"), **options)
        if is_checked:
            model.capabilities = frozenset({"next_token"})
        try:
            return await use(model)
        finally:
            await model.aclose()
            await model.aclose()

    return asyncio.run(go())


def complete(**sampling: Any) -> Callable[[EndpointModel], Awaitable[Any]]:
    return lambda model: model.complete(HELLO, Sampling.model_validate(sampling), seed=5)


def check(model: EndpointModel) -> Awaitable[None]:
    return model.check()


def dead_url() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}/v1"
