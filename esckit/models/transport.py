"""Requests to one server: its address, its key, its time limits and its retries.

What a good answer means is not known here (:mod:`esckit.models.endpoint`), nor how an error is read
(:mod:`esckit.models.faults`). The key is read here and nowhere else: it comes from a named environment variable and
goes into the request header. Text that comes back from the server has the key removed before anybody else sees it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any
from urllib.parse import urljoin, urlsplit

from esckit.config.sections import EndpointBinding
from esckit.errors import BackendError, ConfigError, OutageError
from esckit.models.events import EventReader
from esckit.models.faults import STREAM_INSTEAD, Fault, Redactor, fault_in, fault_of, retry_after_s, shown_name
from esckit.models.http import HttpAnswer, HttpClient, UnreachableError, UnreadableError
from esckit.models.limit import AdaptiveLimit
from esckit.models.streaming import listener

log = logging.getLogger(__name__)

_LONGEST_REASON = 400
_ALIVE_WITHIN_S = 10.0
# What a gateway answers for a server behind it that does not.
_NOBODY_THERE = (502, 503, 504)
_BROKE_OFF = 502


FindOutage = Callable[[], Awaitable[OutageError | None]]
"""Of a server that is watched: why it does not answer any more, None if it runs."""

_BINDING = EndpointBinding.model_fields  # what a recipe can set has its default there


@dataclass(frozen=True, slots=True)
class Timeouts:
    """How long to wait for a server, how often to ask it again, and how much to ask at once.

    Waits between retries have no jitter, so that they follow from these numbers alone.

    Attributes:
        timeout_s: Longest time of one request, from connecting to the last byte.
        check_s: Longest time that :meth:`esckit.models.endpoint.EndpointModel.check` waits for the list of models.
        outage_s: How long a server that answered before may be silent before the run stops.
        concurrency: Most requests in flight at once, waits between retries included; see
            :mod:`esckit.models.limit`.
        max_retries: Requests made again after the first, at least 0.
        first_wait_s: Wait before the first retry; every further wait is twice as long.
        max_wait_s: Longest single wait, also where the server asks for more.
    """

    timeout_s: float = _BINDING["timeout_s"].default
    check_s: float = 8.0
    outage_s: float = 60.0
    concurrency: int = _BINDING["concurrency"].default
    max_retries: int = 5
    first_wait_s: float = 1.0
    max_wait_s: float = 60.0

    def wait_s(self, n_failed: int, asked_s: float | None = None) -> float:
        """Return the wait after ``n_failed`` ≥ 1 failed requests; what the server asks for goes first."""
        wanted = self.first_wait_s * 2.0 ** (n_failed - 1) if asked_s is None else asked_s
        return min(wanted, self.max_wait_s)


class HttpFailure(Exception):
    """The server answered with an error; never shown to the user as it is.

    Attributes:
        fault: Its error text, redacted and cut.
        n_requests: Requests made so far.
        in_body: Whether the HTTP status was 200 and the error stood in the body.
        asked_s: Seconds that the server asks to wait, None if it does not.
    """

    def __init__(self, fault: Fault, n_requests: int, *, in_body: bool = False, asked_s: float | None = None) -> None:
        super().__init__(f"HTTP {fault.status}: {fault.reason}")
        self.fault = fault
        self.n_requests = n_requests
        self.in_body = in_body
        self.asked_s = asked_s


class Transport:
    """Carries requests to one server.

    Args:
        base_url: Address up to the API's version, without any secret.
        api_key_env: Name of the environment variable that holds the key; None if the server asks for none.
        timeouts: Time limits, retries and concurrency.
        outage: Says why no answer will come any more, where that is known; asked whenever none came.

    Attributes:
        has_answered: Whether a request was answered as it should be.
        failing: Why the last request that has ended brought no answer, None if it brought one, or if the server only
            asks to wait (429).
        limit: How many requests may be in flight.

    Raises:
        ConfigError: If the address cannot be used, or the environment variable is missing or holds no key.
    """

    def __init__(
        self, base_url: str, api_key_env: str | None, timeouts: Timeouts, outage: FindOutage | None = None
    ) -> None:
        self.base_url = checked_base_url(base_url)
        self._outage = outage
        self.timeouts = timeouts
        self.has_answered = False
        self.failing: HttpFailure | BackendError | None = None
        self._last_answer_s: float | None = None
        self._silent_since_s: float | None = None
        key = _read_key(api_key_env)
        self._redact = Redactor(key)
        self.limit = AdaptiveLimit(timeouts.concurrency)
        # Every request in flight keeps a connection, and one more asks if the server lives.
        self._client = HttpClient(self.base_url, key, timeouts.concurrency + 1)

    async def models(self) -> str:
        """Return what the server answers when asked for its list of models; any body of a 200 will do.

        It is asked once more after a failure, since some servers drop a kept connection after an error.

        Raises:
            HttpFailure: As :meth:`post`.
            BackendError: As :meth:`post`.
            OutageError: As :meth:`post`.
        """
        briefly = replace(self.timeouts, max_retries=1, first_wait_s=0.2, max_wait_s=1.0)
        return await self._carry("GET", "/models", None, briefly)

    async def post(self, path: str, body: Mapping[str, Any]) -> str:
        """Return the body of the answer to a POST request, as text.

        Args:
            path: Below the base URL, with a leading slash.
            body: Sent as JSON.

        Raises:
            HttpFailure: If the server answered with an error, as status or in the body, also after the retries.
            BackendError: If it cannot be reached or does not answer in time, also after the retries.
            OutageError: If a server that answered before has been silent for too long.
        """
        text = await self._carry("POST", path, body, self.timeouts)
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
        await self._client.aclose()

    async def _carry(self, method: str, path: str, body: Mapping[str, Any] | None, limits: Timeouts) -> str:
        async with self.limit:
            n_requests = n_failed = 0
            was_out = False
            while True:
                n_requests += 1
                outcome = await self._try(method, path, body, n_requests)
                if isinstance(outcome, str):
                    return outcome
                if _is_silence(outcome) and self._outage is not None and (ended := await self._outage()):
                    raise ended
                n_failed += 1
                gives_up = not self._may_pass(outcome) or n_failed > limits.max_retries
                if _is_silence(outcome) and self._last_answer_s is not None:
                    is_out = await self._is_out(outcome, gives_up=gives_up)
                    if is_out or (gives_up and was_out):
                        # The server is down, or was: the request has all its tries before it.
                        n_failed, gives_up, was_out = 1, False, is_out
                if gives_up:
                    raise outcome
                wait_s = limits.wait_s(n_failed, outcome.asked_s if isinstance(outcome, HttpFailure) else None)
                log.info("%s: %s; next request in %.1f s", self.base_url, outcome, wait_s)
                await asyncio.sleep(wait_s)

    async def _try(
        self, method: str, path: str, body: Mapping[str, Any] | None, n_requests: int
    ) -> str | HttpFailure | BackendError:
        """Make one request; return the answer, or why there is none."""
        began_s, n_halvings = time.monotonic(), self.limit.n_halvings
        events = self._events(body)
        outcome: str | HttpFailure | BackendError
        try:
            async with asyncio.timeout(self.timeouts.timeout_s):
                answer = await self._client.send(method, path, body, None if events is None else events.feed)
                outcome = self._judged(answer, n_requests, is_post=body is not None, events=events)
        except TimeoutError:
            outcome = self.silent(self.timeouts.timeout_s)
        except UnreadableError as error:
            outcome = BackendError(self._redact(str(error)), kind="unreadable")
        except UnreachableError as error:
            outcome = BackendError(
                f"cannot reach {self.base_url} ({self._redact(str(error))})",
                kind="unreachable",
                hint="Start the server, or correct base_url in the recipe.",
            )
        if body is not None:
            kind = body.get("max_tokens") or body.get("max_completion_tokens")
            seconds = time.monotonic() - began_s
            self.limit.note(kind, seconds, n_halvings=n_halvings, is_refused=_is_too_much(outcome))
        if isinstance(outcome, BackendError):
            outcome.attempts = n_requests
        # A server that loads, or has too much to do, may say when to come back: it is not one that only fails.
        is_asked_to_wait = isinstance(outcome, HttpFailure) and (
            outcome.fault.kind == "rate_limit" or (outcome.fault.may_pass and outcome.asked_s is not None)
        )
        self.failing = None if isinstance(outcome, str) or is_asked_to_wait else outcome
        if not _is_silence(outcome):
            self._note_answer()
        elif self._silent_since_s is None:
            self._silent_since_s = max(began_s, self._last_answer_s or began_s)
        return outcome

    def _events(self, body: Mapping[str, Any] | None) -> EventReader | None:
        """Return what reads the events of an answer, if somebody listens and the request asks for them."""
        listen = listener()
        if listen is None or body is None or not body.get("stream"):
            return None
        return EventReader(lambda text: listen(self._redact(text)))

    def _judged(
        self, answer: HttpAnswer, n_requests: int, *, is_post: bool, events: EventReader | None
    ) -> str | HttpFailure:
        """Return the body of a good answer; of another one, what is wrong with it. A list of models may be anything.

        The body of a streamed answer is the completion that its events make.
        """
        text = self._redact(answer.text)
        if answer.status >= 300:
            fault = _status_fault(answer, text, self.base_url)
            # The phrase of the status and the address of a redirect may hold the key as well.
            fault = replace(fault, reason=self._redact(fault.reason))
            return HttpFailure(_shortened(fault), n_requests, asked_s=retry_after_s(answer.headers))
        fault_inside = fault_in(text) if is_post else None
        # A stream of events is a fault where none was asked for, unless it holds an error of its own.
        if events is not None and fault_inside is not None and fault_inside.status == STREAM_INSTEAD:
            if (whole := events.completion()) is not None:
                return self._redact(whole)
            fault_inside = Fault(_BROKE_OFF, "a stream of events that broke off", is_answer=False)
        return text if fault_inside is None else HttpFailure(_shortened(fault_inside), n_requests, in_body=True)

    def _note_answer(self) -> None:
        """Remember that the server answers, if only with an error."""
        self._last_answer_s = time.monotonic()
        self._silent_since_s = None

    def _may_pass(self, failure: HttpFailure | BackendError) -> bool:
        """Return whether the same request may succeed later; a key or a model that worked before may work again."""
        if isinstance(failure, BackendError):
            return failure.kind != "unreadable"
        return failure.fault.may_pass or (self.has_answered and failure.fault.status in (401, 404))

    async def _is_out(self, failure: HttpFailure | BackendError, *, gives_up: bool) -> bool:
        """Return whether the server is down, so that an unanswered request does not count as a failure.

        Args:
            failure: What happened to the request.
            gives_up: Whether it would be given up; before that, and for a while, the server is not asked.

        Raises:
            OutageError: If the server has been silent for so long that the run has to stop.
        """
        now_s = time.monotonic()
        is_long = now_s - (self._silent_since_s or now_s) >= self.timeouts.outage_s
        if not gives_up and not is_long:
            return False
        if await self._is_alive():
            self._note_answer()
            return False
        if not is_long:
            return True
        why = failure.found if isinstance(failure, BackendError) else failure
        raise OutageError(
            f"{self.base_url} has stopped answering: {why}",
            hint="What is done is kept. Start the server, then run the same command again to go on.",
        )

    async def _is_alive(self) -> bool:
        """Return whether the server answers a simpler question."""
        try:
            async with asyncio.timeout(min(_ALIVE_WITHIN_S, self.timeouts.timeout_s)):
                return (await self._client.send("GET", "/models")).status not in _NOBODY_THERE
        except (TimeoutError, UnreachableError, UnreadableError):
            return False


def _is_silence(outcome: str | HttpFailure | BackendError) -> bool:
    """Return whether the server gave no answer: there was none at all, or only one of a gateway before it."""
    if isinstance(outcome, BackendError):
        return outcome.kind != "unreadable"
    return isinstance(outcome, HttpFailure) and not outcome.in_body and outcome.fault.status in _NOBODY_THERE


def _is_too_much(outcome: str | HttpFailure | BackendError) -> bool:
    """Return whether the server says that it has too much to do, or does not answer in time."""
    if isinstance(outcome, str):
        return False
    kind = outcome.kind if isinstance(outcome, BackendError) else outcome.fault.kind
    return kind in ("rate_limit", "timeout")


def _status_fault(answer: HttpAnswer, text: str, base_url: str) -> Fault:
    """Return what an answer with an error status says; a redirect that was not followed is one.

    Args:
        answer: The answer.
        text: Its body without the key.
        base_url: Where it came from.
    """
    if answer.status >= 400:
        return fault_of(answer.status, text, answer.phrase)
    try:
        target = urlsplit(urljoin(base_url, answer.headers.get("location", "")))
        where = f"{target.scheme}://{target.netloc.rpartition('@')[2]}{target.path}"
    except ValueError:
        where = "an invalid address"
    return Fault(answer.status, f"{base_url} redirects to {where}, which is not followed")


def _shortened(fault: Fault) -> Fault:
    return replace(fault, reason=fault.reason[:_LONGEST_REASON])


def checked_base_url(base_url: str) -> str:
    """Return a base URL that can be called and shown: http(s), with a host, and nowhere a place for a secret.

    Raises:
        ConfigError: If it is not. The message does not repeat a URL that may hold a secret.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    # A password may hold a slash, behind which it would count as a part of the path.
    if "@" in base_url or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds a user name, a password, a query or a fragment",
            expected="a plain address such as http://127.0.0.1:8000/v1",
            hint="A key belongs into the environment variable that api_key_env names.",
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"base_url {base_url!r}", expected="an address such as http://127.0.0.1:8000/v1")
    return base_url.strip().rstrip("/")


def _read_key(variable: str | None) -> str:
    """Return the key in an environment variable, the empty string where no variable is named."""
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        shown = shown_name(variable)
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
