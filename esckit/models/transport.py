"""Requests to one server: its key, its limits and its retries; what a good answer means is not known here.

The key lives in this file only. It comes from a named environment variable and goes into the request header; whatever
text comes back from the server has the key blotted out before anybody else sees it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

import openai
from pydantic import SecretStr

from esckit.errors import BackendError, ConfigError, OutageError
from esckit.models.endpoints import checked_base_url, is_loopback
from esckit.models.faults import Fault, Redactor, RetryPolicy, fault_in, fault_of, retry_after_s

log = logging.getLogger(__name__)


_NO_KEY = "no-key"

_LONGEST_REASON = 400

_LONGEST_NAME = 16

_LARGEST_BODY = 8 * 2**20

_MOST_HOPS = 3

_ALIVE_WITHIN_S = 10.0

# What a gateway answers for a server behind it that does not.
_NOBODY_THERE = (502, 503, 504)

_MAY_BE_A_SLIP = (401, 404)


@dataclass(frozen=True, slots=True)
class Patience:
    """How long an endpoint is waited for, and how much it is asked at once.

    Attributes:
        timeout_s: Longest time of one request, from connecting to the last byte.
        check_s: Longest time that :meth:`esckit.models.endpoint.EndpointModel.check` waits for the list of models.
        outage_s: How long a server that answered before may be silent before the run stops.
        concurrency: Requests in flight at once, waits between retries included.
        retries: What happens after a failure that may pass.
    """

    timeout_s: float = 180.0
    check_s: float = 8.0
    outage_s: float = 60.0
    concurrency: int = 32
    retries: RetryPolicy = field(default_factory=RetryPolicy)


class HttpFailure(Exception):
    """The server answered with an error; never shown to the user as it is.

    Args:
        fault: What it said, scrubbed and cut.
        n_requests: Requests made before giving up.
        in_body: Whether the HTTP status was 200 and the error stood in the body.
    """

    def __init__(self, fault: Fault, n_requests: int = 1, *, in_body: bool = False) -> None:
        super().__init__(f"HTTP {fault.status}: {fault.reason}")
        self.fault = fault
        self.n_requests = n_requests
        self.in_body = in_body


class _Unread(openai.OpenAIError):
    """A body that is not read, since it is too large or in an encoding that nobody asked for."""


class _BoundedClient(openai.DefaultAsyncHttpxClient):
    """Reads bodies up to a limit, also unpacked, and follows redirects within one origin only."""

    async def send(self, request: Any, **options: Any) -> Any:
        """Send one request and return its whole response."""
        options |= {"stream": True, "follow_redirects": False}
        for _ in range(_MOST_HOPS):
            response = await super().send(request, **options)
            try:
                body = await _read(response)
            finally:
                await response.aclose()
            onward = response.next_request
            if onward is None or response.status_code not in (307, 308) or _origin(onward) != _origin(request):
                break
            request = onward
        # The body is unpacked, and JSON is in UTF-8 whatever the header says.
        gone = ("content-encoding", "content-length", "transfer-encoding", "content-type")
        headers = [(name, value) for name, value in response.headers.multi_items() if name not in gone]
        return type(response)(response.status_code, headers=headers, content=body, request=response.request)


def _origin(request: Any) -> tuple[str, str, int | None]:
    return request.url.scheme, request.url.host, request.url.port


async def _read(response: Any) -> bytes:
    """Return the body of a streamed response, unpacked.

    Raises:
        _Unread: If it is too large, or packed in another way than gzip.
    """
    raw = bytearray()
    async for piece in response.aiter_raw():
        raw += piece
        if len(raw) > _LARGEST_BODY:
            raise _Unread(f"an answer of more than {_LARGEST_BODY:,} bytes")
    packed = response.headers.get("content-encoding", "").strip().lower()
    if packed in ("", "identity"):
        return bytes(raw)
    if packed not in ("gzip", "x-gzip", "deflate"):
        raise _Unread(f"an answer in the content encoding {packed[:40]!r}")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        body = unpacker.decompress(bytes(raw), _LARGEST_BODY + 1)
    except zlib.error as error:
        raise _Unread(f"an answer that is no {packed} ({error})") from error
    if len(body) > _LARGEST_BODY:
        raise _Unread(f"an answer of more than {_LARGEST_BODY:,} bytes when unpacked")
    if not unpacker.eof:
        raise _Unread(f"an answer that is no {packed} (it breaks off)")
    return body


class Transport:
    """Carries requests to one server.

    Args:
        base_url: Address up to the API's version, without any secret.
        api_key_env: Name of the environment variable that holds the key; None if the server asks for none.
        patience: Time limits, retries and concurrency.
        clock: Seconds on a clock that never goes back.

    Attributes:
        has_answered: Whether a request was answered as it should be.

    Raises:
        ConfigError: If the address is none, or the environment variable is missing or holds no key.
    """

    def __init__(
        self,
        base_url: str,
        api_key_env: str | None,
        patience: Patience,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.base_url = checked_base_url(base_url)
        self.patience = patience
        self.has_answered = False
        self._clock = clock
        self._heard_s: float | None = None
        self._silent_since_s: float | None = None
        self._key = SecretStr(_read_key(api_key_env))
        self._scrub = Redactor(self._key.get_secret_value())
        self._slots = asyncio.Semaphore(patience.concurrency)
        self._client = openai.AsyncOpenAI(
            base_url=self.base_url,
            # Without a key of our own the SDK would look for one in the environment.
            api_key=self._key.get_secret_value() or _NO_KEY,
            max_retries=0,
            timeout=patience.timeout_s,
            default_headers={"Accept-Encoding": "identity"},
            # A proxy that the environment names cannot reach this machine's own loopback.
            http_client=_BoundedClient(trust_env=not is_loopback(self.base_url)),
        )

    async def get(self, path: str, *, retries: RetryPolicy | None = None) -> str:
        """Return the body of a GET request. Raises as :meth:`post`, but takes any body of a 200 for an answer."""
        return await self._carry(lambda: self._client.get(path, cast_to=str), retries)

    async def post(self, path: str, body: Mapping[str, Any], *, retries: RetryPolicy | None = None) -> str:
        """Return the body of the answer to a POST request, as text.

        Args:
            path: Below the base URL, with a leading slash.
            body: Sent as JSON.
            retries: In place of those of the transport's patience.

        Raises:
            HttpFailure: If the server answered with an error, as status or in the body, also after the retries.
            BackendError: If it cannot be reached or does not answer in time, also after the retries.
            OutageError: If a server that answered before has become silent for good.
        """
        text = await self._carry(lambda: self._client.post(path, cast_to=str, body=body), retries, fault_in)
        self.has_answered = True
        return text

    def silent(self, after_s: float) -> BackendError:
        """Return the error for a server that has not answered in time."""
        return BackendError(
            f"no answer from {self.base_url} within {after_s:g} s",
            kind="timeout",
            hint="Is the server overloaded, or still loading?",
        )

    async def aclose(self) -> None:
        """Close the connections."""
        await self._client.close()

    async def _carry(
        self,
        send: Callable[[], Awaitable[str]],
        retries: RetryPolicy | None,
        find_fault: Callable[[str], Fault | None] = lambda body: None,
    ) -> str:
        policy = retries or self.patience.retries
        async with self._slots:
            n_requests = n_failed = 0
            was_out = False
            while True:
                n_requests += 1
                outcome, asked_s = await self._try(send, find_fault, n_requests)
                if isinstance(outcome, str):
                    return outcome
                n_failed += 1
                gives_up = not self._may_pass(outcome) or n_failed > policy.max_retries
                if _is_silence(outcome) and self._heard_s is not None:
                    is_out = await self._is_out(outcome, gives_up=gives_up)
                    if is_out or (gives_up and was_out):
                        # The server is down, or was: the request has all its tries before it.
                        n_failed, gives_up, was_out = 1, False, is_out
                # Raised outside of the handlers: what the SDK raised may hold the key, and shall not be chained.
                if gives_up:
                    raise outcome
                wait_s = policy.wait_s(n_failed, asked_s)
                log.info("%s: %s; next request in %.1f s", self.base_url, outcome, wait_s)
                await asyncio.sleep(wait_s)

    async def _try(
        self, send: Callable[[], Awaitable[str]], find_fault: Callable[[str], Fault | None], n_requests: int
    ) -> tuple[str | HttpFailure | BackendError, float | None]:
        """Make one request; return the answer, or why there is none and how long the server asks to wait."""
        began_s = self._clock()
        asked_s: float | None = None
        outcome: str | HttpFailure | BackendError
        try:
            async with asyncio.timeout(self.patience.timeout_s):
                outcome = self._scrub(await send())
        except openai.APIStatusError as error:
            outcome = HttpFailure(self._shortened(_fault(error, self.base_url)), n_requests)
            asked_s = retry_after_s(error.response.headers)
        except (TimeoutError, openai.APITimeoutError):
            outcome = self.silent(self.patience.timeout_s)
        except openai.OpenAIError as error:
            outcome = self._unreachable(error)
        else:
            if fault := find_fault(outcome):
                outcome = HttpFailure(self._shortened(fault), n_requests, in_body=True)
        if isinstance(outcome, BackendError):
            outcome.attempts = n_requests
        if not _is_silence(outcome):
            self._hear()
        elif self._silent_since_s is None:
            self._silent_since_s = max(began_s, self._heard_s or began_s)
        return outcome, asked_s

    def _hear(self) -> None:
        """Take note of a sign of life."""
        self._heard_s = self._clock()
        self._silent_since_s = None

    def _may_pass(self, failure: HttpFailure | BackendError) -> bool:
        """Return whether the same request may succeed later; where others have, no key or model is taken for wrong."""
        if isinstance(failure, BackendError):
            return failure.kind != "unreadable"
        return failure.fault.may_pass or (self.has_answered and failure.fault.status in _MAY_BE_A_SLIP)

    async def _is_out(self, failure: HttpFailure | BackendError, *, gives_up: bool) -> bool:
        """Return whether the server is down, so that a request which nobody answered is not to blame.

        Args:
            failure: What happened to the request.
            gives_up: Whether it would be given up; before that, and for a while, nobody looks after the server.

        Raises:
            OutageError: If nothing was heard of the server for so long that the run has to stop.
        """
        now_s = self._clock()
        is_long = now_s - (self._silent_since_s or now_s) >= self.patience.outage_s
        if not gives_up and not is_long:
            return False
        if await self._is_alive():
            self._hear()
            return False
        if not is_long:
            return True
        why = failure.found if isinstance(failure, BackendError) else failure
        raise OutageError(
            f"{self.base_url} has stopped answering: {why}",
            hint="What is done is kept. Start the server and run the same command again to go on.",
        )

    async def _is_alive(self) -> bool:
        """Return whether the server answers a simpler question."""
        try:
            async with asyncio.timeout(_ALIVE_WITHIN_S):
                await self._client.get("/models", cast_to=str)
        except openai.APIStatusError as error:
            return error.status_code not in _NOBODY_THERE
        except (TimeoutError, openai.OpenAIError):
            return False
        return True

    def _shortened(self, fault: Fault) -> Fault:
        # Scrubbed before it is cut, or half a key would stay; at first only cut far behind what is kept.
        return replace(fault, reason=self._scrub(fault.reason[: 500 * _LONGEST_REASON])[:_LONGEST_REASON])

    def _unreachable(self, error: openai.OpenAIError) -> BackendError:
        cause = error if isinstance(error, _Unread) else error.__cause__
        if isinstance(cause, _Unread):
            return BackendError(self._scrub(str(cause)), kind="unreadable")
        why = self._scrub(str(cause or error)) or type(cause).__name__
        return BackendError(
            f"cannot reach {self.base_url} ({why})",
            kind="unreachable",
            hint="Start the server, or correct base_url in the recipe.",
        )


def _is_silence(outcome: str | HttpFailure | BackendError) -> bool:
    """Return whether a request met nobody: not the server, or not the one behind a gateway."""
    if isinstance(outcome, HttpFailure):
        return outcome.fault.status in _NOBODY_THERE and not outcome.in_body
    return isinstance(outcome, BackendError) and outcome.kind != "unreadable"


def _fault(error: openai.APIStatusError, base_url: str) -> Fault:
    response = error.response
    if error.status_code >= 400:
        return fault_of(error.status_code, response.text, response.reason_phrase)
    try:
        target = urlsplit(urljoin(base_url, response.headers.get("location", "")))
        where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"
    except ValueError:
        where = "an address that is none"
    return Fault(error.status_code, f"{base_url} redirects to {where}, which is not followed")


def _read_key(variable: str | None) -> str:
    """Return the key in an environment variable, the empty string where no variable is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        # A key in the wrong place shall not be shown.
        shown = variable if variable.isupper() or len(variable) < _LONGEST_NAME else f"{variable[:4]}…"
        raise ConfigError(
            f"the environment variable {shown} is not set",
            expected="the key of the endpoint in it",
            hint=f"Run: export {shown}=… (a key never stands in a recipe)",
        )
    if not key.isascii() or not key.isprintable() or set(key) & set(' "\\'):
        raise ConfigError(
            f"the environment variable {variable} holds no key",
            expected="printable ASCII characters without spaces, quotes and backslashes",
        )
    return key
