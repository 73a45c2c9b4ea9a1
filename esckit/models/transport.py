"""Requests to one server: its key, its time limits and its retries; what the answers mean is not known here.

The key lives in this file only. It comes from a named environment variable and goes into the request header; whatever
text comes back from the server has the key blotted out before anybody else sees it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
from pydantic import SecretStr

from esckit.errors import BackendError, ConfigError
from esckit.models.endpoints import checked_base_url, is_loopback
from esckit.models.retries import RetryPolicy, is_transient, retry_after_s

log = logging.getLogger(__name__)

_NO_KEY = "no-key"
_SHORTEST_SECRET = 8
_LONGEST_REASON = 400


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an endpoint is waited for, and how much it is asked at once.

    Attributes:
        timeout_s: Longest time of one request, from connecting to the last byte.
        check_s: Longest time of :meth:`esckit.models.endpoint.EndpointModel.check` in all.
        concurrency: Requests in flight at once, waits between retries included.
        retries: What happens after a failure that may pass.
    """

    timeout_s: float = 180.0
    check_s: float = 8.0
    concurrency: int = 32
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class HttpFailure(Exception):
    """The server answered with an error status; never shown to the user as it is.

    Args:
        status: HTTP status, 400 to 599.
        reason: What the server says, scrubbed and cut.
        param: The request field that it names, if it does.
        n_requests: Requests made before giving up.
    """

    def __init__(self, status: int, reason: str, param: str | None, n_requests: int) -> None:
        super().__init__(f"HTTP {status}: {reason}")
        self.status = status
        self.reason = reason
        self.param = param
        self.n_requests = n_requests


class Transport:
    """Carries requests to one server.

    Args:
        base_url: Address up to the API's version, without any secret.
        api_key_env: Name of the environment variable that holds the key; None if the server asks for none.
        patience: Time limits, retries and concurrency.

    Raises:
        ConfigError: If the address is none, or the environment variable is missing or holds no key.
    """

    def __init__(self, base_url: str, api_key_env: str | None, patience: Patience) -> None:
        self.base_url = checked_base_url(base_url)
        self.patience = patience
        self._key = SecretStr(_read_key(api_key_env))
        self._slots = asyncio.Semaphore(patience.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            # Without a key of our own the SDK would look for one in the environment.
            api_key=self._key.get_secret_value() or _NO_KEY,
            max_retries=0,
            timeout=patience.timeout_s,
            # A proxy that the environment names cannot reach this machine's own loopback.
            http_client=openai.DefaultAsyncHttpxClient(trust_env=not is_loopback(self.base_url)),
        )

    async def get(self, path: str, *, retries: RetryPolicy | None = None) -> str:
        """Return the body of a GET request. Raises as :meth:`post`."""
        return self._scrub(await self._carry(lambda: self._client.get(path, cast_to=str), retries))

    async def post(self, path: str, body: Mapping[str, Any], *, retries: RetryPolicy | None = None) -> str:
        """Return the body of the answer to a POST request, as text.

        Args:
            path: Below the base URL, with a leading slash.
            body: Sent as JSON.
            retries: In place of those of the transport's patience.

        Raises:
            HttpFailure: If the server answered with an error, also after the retries.
            BackendError: If it cannot be reached or does not answer in time, also after the retries.
        """
        return self._scrub(await self._carry(lambda: self._client.post(path, cast_to=str, body=body), retries))

    def silent(self, after_s: float) -> BackendError:
        """Return the error for a server that has not answered in time."""
        return BackendError(
            f"no answer from {self.base_url} within {after_s:g} s", hint="Is the server overloaded, or still loading?"
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _carry(self, send: Callable[[], Awaitable[str]], retries: RetryPolicy | None) -> str:
        policy = retries or self.patience.retries
        async with self._slots:
            n_requests = 0
            while True:
                n_requests += 1
                asked_s, may_pass = None, True
                failure: HttpFailure | BackendError
                try:
                    async with asyncio.timeout(self.patience.timeout_s):
                        return await send()
                except openai.APIStatusError as error:
                    failure = self._http_failure(error, n_requests)
                    asked_s = retry_after_s(error.response.headers)
                    may_pass = is_transient(error.status_code, error.code)
                except (TimeoutError, openai.APITimeoutError):
                    failure = self.silent(self.patience.timeout_s)
                except openai.APIConnectionError as error:
                    failure = self._unreachable(error)
                # Raised outside of the handlers: what the SDK raised may hold the key, and shall not be chained.
                if not may_pass or n_requests > policy.max_retries:
                    if isinstance(failure, BackendError):
                        failure.attempts = n_requests
                    raise failure
                wait_s = policy.wait_s(n_requests, asked_s)
                log.info("%s: %s; next request in %.1f s", self.base_url, failure, wait_s)
                await asyncio.sleep(wait_s)

    def _scrub(self, text: str) -> str:
        """Return a text with the key blotted out, should the server have repeated it."""
        key = self._key.get_secret_value()
        # Dummy keys such as "EMPTY" are no secrets, and a word's worth of letters would be found everywhere.
        if len(key) < _SHORTEST_SECRET:
            return text
        escaped = key.replace("/", "\\/")
        return text.replace(key, "[key]").replace(escaped, "[key]")

    def _unreachable(self, error: openai.APIConnectionError) -> BackendError:
        why = self._scrub(str(error.__cause__ or error)) or type(error.__cause__).__name__
        return BackendError(
            f"cannot reach {self.base_url} ({why})", hint="Start the server, or correct base_url in the recipe."
        )

    def _http_failure(self, error: openai.APIStatusError, n_requests: int) -> HttpFailure:
        # Scrubbed before it is cut, or half a key would stay.
        reason = self._scrub(_reason(error))[:_LONGEST_REASON]
        param = error.param if isinstance(error.param, str) else None
        return HttpFailure(error.status_code, reason, param, n_requests)


def _reason(error: openai.APIStatusError) -> str:
    """Return what the server says on one line: the message of the API's error form, else the whole body."""
    stated = error.body.get("message") if isinstance(error.body, Mapping) else None
    text = stated if isinstance(stated, str) else error.response.text
    code = f" ({error.code})" if error.code else ""
    return (" ".join(text.split()) or error.response.reason_phrase) + code


def _read_key(variable: str | None) -> str:
    """Return the key in an environment variable, the empty string where no variable is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise ConfigError(
            f"the environment variable {variable} is not set",
            expected="the key of the endpoint in it",
            hint=f"Run: export {variable}=… (a key never stands in a recipe)",
        )
    if not key.isascii() or not key.isprintable() or set(key) & set(' "\\'):
        raise ConfigError(
            f"the environment variable {variable} holds no key",
            expected="printable ASCII characters without spaces, quotes and backslashes",
        )
    return key
