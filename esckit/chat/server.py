"""``esckit serve``: the supporter of a chat as an OpenAI-compatible server, with a page to talk to it.

On aiohttp. Requests beyond a bounded queue are refused, and a client that goes away gives its place back. By default
only this machine can reach it; there a request must name this machine as its host, so that no web page can reach it by
a name that it makes point here. On any other address every request but that for the page needs a token. Nothing that is
said is kept or logged. What requests and answers look like is in :mod:`esckit.chat.api`.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import hashlib
import hmac
import ipaddress
import json
import logging
import re
import signal
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from esckit.chat.api import (
    Answer,
    ApiError,
    Asked,
    as_api_error,
    failure_error,
    finish_reason,
    models_body,
    own_fields,
    read_dialogue,
    read_request,
)
from esckit.chat.crisis import CrisisScreen, Notice
from esckit.chat.partner import Partner, check, seated
from esckit.chat.recipe import ChatRecipe
from esckit.chat.talk import Entry
from esckit.chat.unfinished import Reveal
from esckit.errors import ConfigError, EsckitError
from esckit.records import dump_line
from esckit.roles.pool import ModelPool

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

_LARGEST_BODY = 1_048_576
_RETRY_AFTER_S = 2
_SHORTEST_TOKEN = 16
_PORTS_TRIED = 50
_PUBLIC = ("/", "/health")


@dataclass(frozen=True, slots=True)
class ServerOptions:
    """How a server is run; none of it changes a reply.

    Attributes:
        host: Address to listen on.
        port: 0 takes any free one.
        token: What clients must send; None asks for none, which only loopback allows.
        at_once: Replies that are written at the same time.
        queue: Requests that may wait beside them.
        drain_s: Longest time that replies in flight have when the server is ended.
        notice_in_reply: Put the notice on crises before the reply's own words too, for clients that show nothing else.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    token: str | None = None
    at_once: int = 4
    queue: int = 16
    drain_s: float = 30.0
    notice_in_reply: bool = False

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return is_loopback_host(self.host)

    def check(self) -> None:
        """Refuse an address that others can reach without a token, and a token that can be guessed.

        Raises:
            ConfigError: If it is so.
        """
        if self.token is None and not self.is_loopback:
            raise ConfigError(
                f"--host {self.host} without a token, where anybody could talk",
                expected="a token in the environment variable ESCKIT_SERVE_TOKEN, or the one that --token-env names",
            )
        if self.token is not None and (len(self.token) < _SHORTEST_TOKEN or not self.token.isascii()):
            raise ConfigError("the token can be guessed", expected=f"at least {_SHORTEST_TOKEN} ASCII characters")


def is_loopback_host(host: str) -> bool:
    """Return whether a host's name or address means this machine."""
    if host.rstrip(".").casefold() == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class Places:
    """Places for requests: some are worked on, some wait, the rest is refused.

    Args:
        at_once: Most that are worked on together.
        queue: Most that wait.
    """

    def __init__(self, at_once: int, queue: int) -> None:
        self._working = asyncio.Semaphore(at_once)
        self._most = at_once + queue
        self.n_held = 0

    @asynccontextmanager
    async def place(self) -> AsyncIterator[None]:
        """Wait for a place and hold it.

        Raises:
            ApiError: If too many wait already.
        """
        if self.n_held >= self._most:
            raise ApiError("too many requests wait already", status=429, kind="rate_limit_error", code="queue_full")
        self.n_held += 1
        try:
            async with self._working:
                yield
        finally:
            self.n_held -= 1


class ChatServer:
    """The routes.

    Args:
        partner: Who answers.
        screen: Looks for words of a crisis.
        options: How it is run.
        model: The name under which the supporter is offered.
    """

    def __init__(self, partner: Partner, screen: CrisisScreen, options: ServerOptions, model: str) -> None:
        self._partner, self._screen, self._options = partner, screen, options
        self.model = model
        self._places = Places(options.at_once, options.queue)
        self._numbers = count(1)
        self._notices = tuple(_notice_text(Notice((), locale)) for locale in screen.locales)
        strategies = partner.taxonomy.names if partner.taxonomy else ()
        self._page, self._policy = page(model, strategies, needs_token=options.token is not None)

    def app(self) -> web.Application:
        """Return them as an application."""
        app = web.Application(client_max_size=_LARGEST_BODY, middlewares=[self._in_our_form, self._guarded])
        app.add_routes(
            [
                web.get("/", self._show_page),
                web.get("/health", self._health),
                web.get("/v1/models", self._models),
                web.post("/v1/chat/completions", self._complete),
                web.post("/dialogue", self._dialogue),
            ]
        )
        return app

    # ------------------------------------------------------------ around every request

    @web.middleware
    async def _in_our_form(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Return every error in the interface's form."""
        try:
            return await handler(request)
        except ApiError as error:
            answer = _error_response(error)
        except EsckitError as error:
            log.error("%s", error.headline)
            answer = _error_response(as_api_error(error))
        except web.HTTPException as error:
            text = "the request is too large" if error.status == 413 else (error.reason or "no such thing").lower()
            answer = _error_response(ApiError(text, status=error.status))
        return answer

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Refuse requests that a foreign web page makes, and those without the token."""
        host = urlsplit(f"//{request.host}").hostname or ""
        if self._options.is_loopback and not is_loopback_host(host):
            raise ApiError(f"the host {host!r} is not this machine", status=403, code="wrong_host")
        origin = request.headers.get("Origin")
        if origin is not None and urlsplit(origin).netloc.casefold() != request.host.casefold():
            raise ApiError("requests from other web pages are refused", status=403, code="wrong_origin")
        if self._options.token is not None and request.path not in _PUBLIC and not self._has_token(request):
            raise ApiError("no token, or a wrong one", status=401, kind="authentication_error", code="invalid_api_key")
        if request.method == "POST" and request.content_type != "application/json":
            raise ApiError("the content type must be application/json", status=415)
        return await handler(request)

    def _has_token(self, request: web.Request) -> bool:
        scheme, _, given = request.headers.get("Authorization", "").partition(" ")
        wanted = (self._options.token or "").encode()
        return scheme.casefold() == "bearer" and hmac.compare_digest(given.strip().encode("utf-8", "replace"), wanted)

    # ------------------------------------------------------------ the routes

    async def _show_page(self, request: web.Request) -> web.Response:
        headers = {
            "Content-Security-Policy": self._policy,
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "no-referrer",
            "Cache-Control": "no-store",
        }
        return web.Response(text=self._page, content_type="text/html", headers=headers)

    async def _health(self, request: web.Request) -> web.Response:
        return web.json_response({"status": "ok", "in_flight": self._places.n_held})

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response(models_body(self.model))

    async def _dialogue(self, request: web.Request) -> web.Response:
        talk = read_dialogue(await request.read(), self._partner, self._notices)
        return web.Response(text=dump_line(talk.dialogue()) + "\n", content_type="application/jsonl")

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = read_request(await request.read(), self.model, self._partner, self._notices)
        last = asked.talk.entries[-1]
        notice = self._screen.notice(last.seeker)
        answer = Answer(f"chatcmpl-{next(self._numbers)}", self.model, int(time.time()))
        async with self._places.place():
            if asked.is_streamed:
                return await self._stream(request, asked, notice, answer)
            entry = await self._partner.answer(asked.talk, strategy=asked.strategy)
        if entry.failure is not None or entry.supporter is None:
            raise failure_error(entry)
        content = self._opening(notice) + entry.supporter.response
        own = own_fields(entry, self._partner, notice, asked.ignored)
        return web.json_response(answer.completion(entry, content, own), dumps=_dumps)

    def _opening(self, notice: Notice | None) -> str:
        return f"{_notice_text(notice)}\n\n" if notice and self._options.notice_in_reply else ""

    async def _stream(
        self, request: web.Request, asked: Asked, notice: Notice | None, answer: Answer
    ) -> web.StreamResponse:
        """Write the reply as it comes; when the client is gone, nobody goes on writing it."""
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-store"})
        await response.prepare(request)
        pieces: asyncio.Queue[str | None] = asyncio.Queue()
        reveal = Reveal(self._partner.settled, pieces.put_nowait)
        answering = asyncio.create_task(
            self._partner.answer(asked.talk, strategy=asked.strategy, hear=reveal.hear), name="answer"
        )
        answering.add_done_callback(lambda _: pieces.put_nowait(None))
        first = {"notice": notice.facts() if notice else None}
        try:
            opening = {"role": "assistant", "content": self._opening(notice)}
            await _send(response, answer.chunk(opening, esckit=first))
            while (piece := await pieces.get()) is not None:
                await _send(response, answer.chunk({"content": piece}))
            for event in self._ending(await answering, reveal, pieces, asked, notice, answer):
                await _send(response, event)
        except EsckitError as error:
            log.error("%s", error.headline)
            await _send(response, as_api_error(error).body())
        except ConnectionError:
            return response
        finally:
            answering.cancel()
        await response.write(b"data: [DONE]\n\n")
        await response.write_eof()
        return response

    def _ending(
        self,
        entry: Entry,
        reveal: Reveal,
        pieces: asyncio.Queue[str | None],
        asked: Asked,
        notice: Notice | None,
        answer: Answer,
    ) -> list[dict[str, Any]]:
        """Return the events that are left once the reply is there."""
        if entry.failure is not None or entry.supporter is None:
            return [failure_error(entry).body()]
        if not reveal.finish(entry.supporter.response):
            words = "the reply is another one than what was sent of it; ask without stream"
            return [ApiError(words, status=500, kind="server_error", code="reply_replaced").body()]
        rest = [answer.chunk({"content": piece}) for piece in _left(pieces)]
        own = own_fields(entry, self._partner, notice, asked.ignored)
        rest.append(answer.chunk({}, finish=finish_reason(entry), esckit=own))
        return [*rest, answer.usage_chunk(entry)] if asked.wants_usage else rest


def _left(pieces: asyncio.Queue[str | None]) -> list[str]:
    found = []
    while not pieces.empty():
        if (piece := pieces.get_nowait()) is not None:
            found.append(piece)
    return found


def _notice_text(notice: Notice) -> str:
    return "\n".join(notice.locale.lines())


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


async def _send(response: web.StreamResponse, event: dict[str, Any]) -> None:
    await response.write(f"data: {_dumps(event)}\n\n".encode("utf-8", "replace"))


def _error_response(error: ApiError) -> web.Response:
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if error.status == 429 else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    return web.json_response(error.body(), status=error.status, headers=headers)


# ---------------------------------------------------------------- the page


def page(model: str, strategies: Sequence[str], *, needs_token: bool) -> tuple[str, str]:
    """Return the chat page, and the policy that allows its own script and style, this server, and nothing else."""
    text = (Path(__file__).parent / "page.html").read_text(encoding="utf-8")
    settings = json.dumps({"model": model, "strategies": [*strategies], "needsToken": needs_token})
    text = text.replace("{{settings}}", re.sub("[<>&]", lambda found: f"\\u{ord(found[0]):04x}", settings))
    style, script = (re.findall(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[0] for tag in ("style", "script"))
    hashes = [base64.b64encode(hashlib.sha256(part.encode()).digest()).decode() for part in (script, style)]
    policy = (
        f"default-src 'none'; script-src 'sha256-{hashes[0]}'; style-src 'sha256-{hashes[1]}'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; img-src data:; "
        "require-trusted-types-for 'script'; trusted-types 'none'"
    )
    return text, policy


# ---------------------------------------------------------------- running it


def bound_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens on an address.

    Raises:
        ConfigError: If the port is taken, or the address is not this machine's.
    """
    try:
        family, kind, proto, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except OSError as error:
        raise ConfigError(f"--host {host}: {error.strerror or error}", expected="an address of this machine") from error
    sock = socket.socket(family, kind, proto)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind(address)
        sock.listen(128)
    except OSError as error:
        sock.close()
        if error.errno == errno.EADDRINUSE:
            raise ConfigError(
                f"port {port} of {host} is taken", expected="a free port", hint=_free_port(host, port)
            ) from error
        if error.errno == errno.EACCES:
            raise ConfigError(
                f"port {port} needs the rights of an administrator", expected="--port 1024 or more"
            ) from error
        raise ConfigError(
            f"cannot listen on {host}:{port}: {error.strerror}", expected="an address of this machine"
        ) from error
    return sock


def _free_port(host: str, port: int) -> str:
    for other in range(port + 1, min(port + _PORTS_TRIED, 65_536)):
        try:
            bound_socket(host, other).close()
        except ConfigError:
            continue
        return f"Try --port {other}, or --port 0 for any free one"
    return "Try --port 0 for any free one"


async def serve(
    recipe: ChatRecipe, *, model: str, screen: CrisisScreen, options: ServerOptions, ready: Callable[[str], None]
) -> None:
    """Serve until SIGTERM, SIGINT or SIGHUP; replies in flight are finished then, for a bounded time.

    Args:
        recipe: Who answers.
        model: The name under which the supporter is offered.
        screen: Looks for words of a crisis.
        options: How it is run.
        ready: Takes the address once requests are answered.

    Raises:
        EsckitError: If it cannot be started.
    """
    options.check()
    check(recipe)
    sock = bound_socket(options.host, options.port)  # before models are loaded, which takes long
    try:
        async with ModelPool(recipe.executor, recipe.budget, recipe.cache) as pool:
            app = ChatServer(await seated(pool, recipe), screen, options, model).app()
            runner = web.AppRunner(
                app, access_log=None, handler_cancellation=True, handle_signals=False, shutdown_timeout=options.drain_s
            )
            await runner.setup()
            try:
                await web.SockSite(runner, sock).start()
                host, port = sock.getsockname()[:2]
                ready(f"http://{f'[{host}]' if ':' in host else host}:{port}")
                await _told_to_end()
                log.info("ending: replies in flight have %g s", options.drain_s)
            finally:
                await runner.cleanup()
    finally:
        sock.close()


async def _told_to_end() -> None:
    """Wait for a signal that ends the server; a second one ends it at once."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, told.set)
    try:
        await told.wait()
    finally:
        for number in numbers:
            loop.remove_signal_handler(number)
