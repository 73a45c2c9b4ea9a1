"""A chat server with every fault: each answer is drawn from a table that also says how the call must end.

A draw depends on the seed, the request and how often that request came before, so the same run meets the same faults.
The table has one line for each form of a fault (:data:`FAULTS`), and one for each bad list of log-probabilities
(:data:`LOG_PROBS`). Greetings and the list of models are always answered well: a server that fails from the start is
another subject.
"""

import asyncio
import gzip
import hashlib
import json
import socket
import struct
import threading
from base64 import b64encode
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any, Literal
from urllib.parse import quote

from esckit.ledger import derive_seed, uniform

Step = bytes | float | Literal["reset", "close", "stall"]
"""Bytes to send, seconds to wait, or how a connection ends; a stalled one says nothing more and stays open."""

STALLED_S = 60.0


@dataclass(frozen=True)
class Ask:
    """One request: what it is known by, its last message, and the key that came with it."""

    id: str
    said: str
    key: str

    @property
    def text(self) -> str:
        """The one good answer."""
        return f"That is a lot to carry, number {self.id}."


@dataclass(frozen=True)
class Act:
    """One way to answer.

    Attributes:
        name: What it is called in a report.
        steps: What is sent.
        kind: How the failure is counted if this is the last answer; None if it is an answer of the model.
        again: Whether the client must ask again, as long as it may.
        says: The text that the client must read, if it is an answer.
    """

    name: str
    steps: Callable[[Ask], list[Step]]
    kind: str | None = None
    again: bool = False
    says: Callable[[Ask], str] = lambda ask: ask.text


def http(body: Any, status: int = 200, headers: Mapping[str, str] = {}, *, length: int | None = None) -> bytes:
    """Return a whole HTTP answer; a body that is not bytes is sent as JSON."""
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    fields = {"Content-Type": "application/json", "Content-Length": str(len(data) if length is None else length)}
    head = "".join(f"{name}: {value}\r\n" for name, value in {**fields, **headers}.items())
    return f"HTTP/1.1 {status} Said\r\n{head}\r\n".encode() + data


def completion(message: Any, finish: Any = "stop", **more: Any) -> dict[str, Any]:
    """Return a chat completion; a message that is text is its content."""
    message = {"role": "assistant", "content": message} if isinstance(message, str) else message
    choice = {"index": 0, "message": message, "finish_reason": finish}
    usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
    return {"object": "chat.completion", "choices": [choice], "usage": usage, **more}


def _error(
    name: str, kind: str, body: Any, status: int = 200, *, again: bool = False, headers: Mapping[str, str] = {}
) -> Act:
    return Act(name, lambda ask: [http(body, status, headers)], kind, again)


def _said(name: str, message: Callable[[Ask], Any], finish: Any = "stop", **more: Any) -> Act:
    """Return an answer in an odd form, of which the good text must be read."""
    return Act(name, lambda ask: [http(completion(message(ask), finish, **more))])


def _unsaid(name: str, kind: str, message: Any, finish: Any = "stop") -> Act:
    """Return a completion that holds no answer."""
    return Act(name, lambda ask: [http(completion(message, finish))], kind)


def _broken(name: str, *steps: Step, kind: str = "unreachable", again: bool = True) -> Act:
    return Act(name, lambda ask: list(steps), kind, again)


def _slow_down(value: str | None) -> Act:
    headers = {} if value is None else {"Retry-After": value}
    body = {"error": {"message": "Rate limit reached", "code": "rate_limit_exceeded"}}
    return _error(f"429, retry after {value}", "rate_limit", body, 429, again=True, headers=headers)


def _on_a_date(ask: Ask) -> list[Step]:
    moment = format_datetime(datetime.now(UTC) + timedelta(seconds=1), usegmt=True)
    return [http({"error": "slow down"}, 429, {"Retry-After": moment})]


_GOOD = completion("Good.")
_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
_EVENTS = {"Content-Type": "text/event-stream"}
_BOMB = gzip.compress(bytes(64 * 2**20), 1)
_HTML = {"Content-Type": "text/html"}


def _holding_the_key(status: int, kind: str, *, again: bool) -> Act:
    """Return an error that repeats the key in its text and its headers, in five spellings."""

    def steps(ask: Ask) -> list[Step]:
        spelt = (ask.key, quote(ask.key, safe=""), ask.key.encode().hex(), b64encode(ask.key.encode()).decode())
        words = f"refused: Bearer {' '.join(spelt)} {''.join(f'&#{ord(char)};' for char in ask.key)}"
        return [http({"error": {"message": words}}, status, {"X-Seen": ask.key, "Set-Cookie": f"key={ask.key}"})]

    return Act(f"{status} with the key", steps, kind, again)


def _packed(ask: Ask) -> list[Step]:
    return [http(gzip.compress(json.dumps(completion(ask.text)).encode()), headers={"Content-Encoding": "gzip"})]


def _key_in_the_head(ask: Ask) -> list[Step]:
    """Return an error whose words are only those of the status line."""
    return [http(b"", 503).replace(b" Said", f" Busy {ask.key}".encode(), 1)]


def _key_as_an_encoding(ask: Ask) -> list[Step]:
    return [http(b"{}", headers={"Content-Encoding": ask.key})]


def _piecemeal(ask: Ask) -> list[Step]:
    whole = http(completion(ask.text))
    return [piece for at in range(0, len(whole), 60) for piece in (whole[at : at + 60], 0.01)]


STATUSES = [
    *map(_slow_down, ("0.02", "0", None, "soon", "-5", "1e99", "nan", "inf", "99999", "Fri, 31 Dec 9999 23:59:59 GMT")),
    Act("429, retry after a date", _on_a_date, "rate_limit", again=True),
    _error("429, no credit", "quota", {"error": {"message": "no", "code": "insufficient_quota"}}, 429),
    _error("402", "quota", {"error": "pay"}, 402),
    _error("400", "bad_request", {"error": {"message": "odd request"}}, 400),
    _error("400, too long", "too_long", {"error": {"message": "maximum context length is 4096"}}, 400),
    _error("400, filtered", "content_filter", {"error": {"code": "content_filter", "message": "no"}}, 400),
    _error("401", "no_access", {"error": "expired"}, 401, again=True),
    _error("403", "no_access", {"error": "no"}, 403),
    _error("404", "not_found", {"error": "gone"}, 404, again=True),
    _error("408", "timeout", {"detail": "slow"}, 408, again=True),
    _error("409", "server_error", {"detail": "conflict"}, 409, again=True),
    _error("413, a page", "bad_request", b"<html><title>413</title></html>", 413, headers=_HTML),
    _error("500", "server_error", {"message": "boom"}, 500, again=True),
    _error("500, empty", "server_error", b"", 500, again=True),
    _error("502, a page", "server_error", b"<html><h1>Bad Gateway</h1></html>", 502, again=True, headers=_HTML),
    _error("503", "server_error", {"error": {"message": "Loading model"}}, 503, again=True),
    _error("504", "timeout", b"upstream request timeout", 504, again=True),
    _error("529", "server_error", {"type": "error", "error": {"type": "overloaded_error"}}, 529, again=True),
    _holding_the_key(400, "bad_request", again=False),
    _holding_the_key(500, "server_error", again=True),
    Act("the key in the status line", _key_in_the_head, "server_error", again=True),
]
"""Errors that have a status."""

CONNECTIONS = [
    Act("slow headers", lambda ask: [0.05, http(completion(ask.text))]),
    Act("a slow body", _piecemeal),
    _broken("no answer at all", "stall", kind="timeout"),
    _broken("a stall in the body", _HEAD + b"Content-Length: 500\r\n\r\n{", "stall", kind="timeout"),
    _broken("a reset before the answer", "reset"),
    _broken("a reset in the headers", _HEAD, "reset"),
    _broken("a reset in the body", _HEAD + b'Content-Length: 500\r\n\r\n{"choices"', "reset"),
    _broken("closed without an answer", "close"),
    _broken("closed in the body", http(_GOOD, length=10_000), "close"),
    _broken("a broken chunk", _HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n{", "close"),
    _broken("a negative length", _HEAD + b"Content-Length: -1\r\n\r\n{}", "close"),
    _broken("no HTTP", b"SSH-2.0-OpenSSH_9.6\r\n", "close"),
    _broken("a header of 1 MB", _HEAD + b"X: " + b"x" * 2**20 + b"\r\n\r\n", "close"),
]
"""Answers that come late, in part or not at all."""


def _redirect(name: str, status: int, where: str) -> Act:
    return Act(name, lambda ask: [http(b"", status, {"Location": where.format(key=ask.key)})], "redirect")


BODIES = [
    _error("nothing", "unreadable", b"", again=True),
    _error("204", "unreadable", b"", 204, again=True),
    _error("null", "unreadable", None, again=True),
    _error("cut JSON", "unreadable", b'{"choices": [{"message": {"content": "So', again=True),
    _error("nested JSON", "unreadable", b"[" * 100_000, again=True),
    _error("no choices", "unreadable", {"choices": []}, again=True),
    _error("another object", "unreadable", {"object": "list", "data": []}, again=True),
    _error("a choice without a message", "unreadable", {"choices": [{"index": 0}]}),
    _error("a number of 9,000 digits", "unreadable", b'{"choices": ' + b"9" * 9000 + b"}", again=True),
    _error("a page", "unreadable", b"<!doctype html><p>Log in</p>", again=True, headers=_HTML),
    _error("a page about 502", "unreadable", b"<html><title>502 Bad Gateway</title></html>", again=True),
    _error("events", "unreadable", b'data: {"choices": []}\n\ndata: [DONE]\n\n', headers=_EVENTS),
    _error("events with an error", "rate_limit", b'data: {"error": {"code": 429}}\n\n', again=True, headers=_EVENTS),
    _error("200, code 429", "rate_limit", {"error": {"message": "later", "code": 429}}, again=True),
    _error("200, code as text", "server_error", {"error": {"message": "no", "code": "502"}}, again=True),
    _error("200, only words", "server_error", {"error": "model is overloaded"}, again=True),
    _error("200, detail", "server_error", {"detail": "Internal Server Error"}, again=True),
    _error(
        "200, validator", "bad_request", {"detail": [{"loc": ["body", "x"], "msg": "extra", "type": "value_error"}]}
    ),
    _error("200, message and code", "bad_request", {"object": "error", "message": "odd", "code": 400}),
    _error("200, errors", "server_error", {"errors": [{"message": "request timed out"}]}, again=True),
    _error("200, base_resp", "rate_limit", {"base_resp": {"status_code": 1, "status_msg": "rate limit"}}, again=True),
    _error("200, a list", "rate_limit", [{"error": {"code": 429, "message": "out"}}], again=True),
    _error("200, errorCode", "rate_limit", {"errorCode": 429, "errorMessage": "slow"}, again=True),
    _error("200, fault", "rate_limit", {"fault": {"faultstring": "Rate limit quota violation"}}, again=True),
    _error("200, in a choice", "timeout", {"choices": [{"error": {"code": 504}, "message": {}}]}, again=True),
    _error("200, no credit", "quota", {"error": {"message": "Insufficient Balance"}}),
    _error("10 MB", "unreadable", completion("x" * 10_000_000)),
    _error("6 MB of text", "too_long", completion("x" * 6_000_000)),
    _error("a gzip bomb", "unreadable", _BOMB, headers={"Content-Encoding": "gzip"}),
    _error("broken gzip", "unreadable", b"\x1f\x8b\x08no", headers={"Content-Encoding": "gzip"}),
    _error("cut gzip", "unreadable", gzip.compress(bytes(999))[:-9], headers={"Content-Encoding": "gzip"}),
    _error("brotli", "unreadable", b"\x0b\x02\x80{}\x03", headers={"Content-Encoding": "br"}),
    Act("the key as an encoding", _key_as_an_encoding, "unreadable"),
    Act("gzip", _packed),
    _redirect("a redirect to another host", 302, "https://elsewhere.invalid/v1?key={key}"),
    _redirect("a kept redirect to another host", 307, "http://{key}@elsewhere.invalid/v1/chat/completions"),
    _redirect("a redirect with the key in its path", 302, "https://elsewhere.invalid/{key}"),
    _redirect("a redirect in a circle", 308, "/v1/circle/chat/completions"),
    _redirect("a redirect to nothing", 301, "http://[::1"),
    Act("a redirect on the same host", lambda ask: [http(b"", 307, {"Location": "/v1/moved/chat/completions"})]),
]
"""Bodies that are no completion, or hardly one."""


def _parts(*parts: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": list(parts)}


COMPLETIONS = [
    Act("empty content", lambda ask: [http(completion(""))], says=lambda ask: ""),
    Act("cut while it reasons", lambda ask: [http(completion("<think>I", "length"))], says=lambda ask: ""),
    Act("an echo of the prompt", lambda ask: [http(completion(ask.said))], says=lambda ask: ask.said.strip()),
    _unsaid("half a surrogate pair", "unreadable", "a\ud800b"),
    Act("the key in the text", lambda ask: [http(completion(f"So {ask.key}"))], says=lambda ask: "So [key]"),
    _unsaid("null content", "no_text", {"role": "assistant", "content": None}),
    _unsaid("no content", "no_text", {"role": "assistant"}),
    _unsaid("no parts", "no_text", _parts()),
    _unsaid("an image", "no_text", _parts({"type": "image_url", "image_url": {"url": "data:,"}})),
    _unsaid("content that is a number", "unreadable", {"role": "assistant", "content": 5}),
    _unsaid("content that is an object", "unreadable", {"role": "assistant", "content": {"text": "so"}}),
    _unsaid("a refusal", "refusal", {"role": "assistant", "content": None, "refusal": "I cannot"}),
    _unsaid("a refusal as a part", "refusal", _parts({"type": "refusal", "refusal": "I cannot"})),
    _unsaid("finish: content_filter", "content_filter", "so far", "content_filter"),
    _unsaid("finish: SAFETY", "content_filter", "", "SAFETY"),
    _unsaid("finish: refusal", "refusal", "so far", "refusal"),
    _unsaid("finish: tool_calls", "no_text", {"role": "assistant", "content": None}, "tool_calls"),
    _error("finish: error", "server_error", completion("so far", "error"), again=True),
    _error("finish: abort", "server_error", completion("so far", "abort"), again=True),
    _said("text parts", lambda ask: _parts({"type": "text", "text": ask.text})),
    _said("plain parts", lambda ask: _parts(ask.text[:9], ask.text[9:])),
    *(
        _said(f"finish: {word!r}", lambda ask: ask.text, word)
        for word in ("eos", "END_TURN", None, 7, {"a": 1}, "length")
    ),
    _said("think tags", lambda ask: f"<think>why</think>\n{ask.text}"),
    *(
        _said(f"reasoning in {name}", lambda ask, name=name: {"content": ask.text, name: "why"})
        for name in ("reasoning_content", "reasoning", "thinking")
    ),
    _said("a thinking part", lambda ask: _parts({"type": "thinking", "thinking": "why"}, {"text": ask.text})),
    _said("a thought part", lambda ask: _parts({"thought": True, "text": "why"}, {"text": ask.text})),
    _said("no usage", lambda ask: ask.text, usage=None),
    _said("an odd usage", lambda ask: ask.text, usage={"prompt_tokens": -1, "completion_tokens": 1e300}),
    _said("a usage of NaN", lambda ask: ask.text, usage={"prompt_tokens": float("nan"), "completion_tokens": "3"}),
    _said("an empty error beside", lambda ask: ask.text, error={"code": 0, "message": ""}),
    Act("a byte order mark", lambda ask: [http(b"\xef\xbb\xbf" + json.dumps(completion(ask.text)).encode())]),
]
"""Completions in odd forms, and those without an answer."""

FAULTS: Sequence[Act] = (*STATUSES, *CONNECTIONS, *BODIES, *COMPLETIONS)


def _listing(name: str, log_probs: Any, kind: str | None = "not_finite") -> Act:
    """Return one token with the log-probabilities of A and B."""
    listed = [{"token": token, "logprob": log_p} for token, log_p in zip("AB", log_probs, strict=True)]
    return Act(name, lambda ask: [http(_one_token({"content": [{**listed[0], "top_logprobs": listed}]}))], kind)


def _one_token(log_probs: Any) -> dict[str, Any]:
    answer = completion("A", "length")
    answer["choices"][0]["logprobs"] = log_probs
    return answer


LOG_PROBS: Sequence[Act] = [
    _listing("a NaN", (float("nan"), -1.0)),
    _listing("infinity", (float("inf"), -1.0)),
    _listing("no probability", (float("-inf"), -1.0)),
    _listing("a null", (None, -1.0)),
    _listing("a probability above 1", (2.5, -1.0)),
    _listing("text", ("-1", -1.0)),
    _listing("more than 1 together", (-0.1, -0.1)),
    _listing("capped at -9999", (-0.1, -9999.0), None),
    _listing("capped at -1e30", (-0.1, -1e30), None),
    _listing("an integer of 400 digits", (-0.1, -(10**400)), None),
    *(
        Act(f"listed as {log_probs!r}", lambda ask, log_probs=log_probs: [http(_one_token(log_probs))], "no_log_probs")
        for log_probs in (None, {}, {"content": None}, {"content": []}, {"content": [{}]}, [1], "none")
    ),
]
"""Answers to a request for log-probabilities; -inf is what JSON cannot hold, and so no number."""


def request_id(messages: Sequence[Mapping[str, str]], seed: int | None) -> str:
    """Return what a request is known by, whatever else is sent with it."""
    return hashlib.sha256(json.dumps([list(map(dict, messages)), seed], sort_keys=True).encode()).hexdigest()[:12]


@dataclass
class HostileServer:
    """Answers chat requests on loopback, a share of them badly.

    Args:
        share: Share of requests that get one of ``faults``.
        seed: Of all draws.
        faults: Drawn from with equal shares.
        chosen: Decides in place of a draw.
        is_dead: Whether all requests are answered as chosen, greetings and the list of models too.
        good: Text of a good answer to a request; None takes :attr:`Ask.text`.

    Attributes:
        played: The answers that each request got, in order.
        seen: Everything that was received beside chat requests and the list of models.
    """

    share: float
    seed: int = 0
    faults: Sequence[Act] = FAULTS
    chosen: Callable[[Ask], Act] | None = None
    is_dead: bool = False
    good: Callable[[Ask], str] | None = None
    url: str = ""
    played: dict[str, list[Act]] = field(default_factory=lambda: defaultdict(list))
    seen: list[str] = field(default_factory=list)

    def drawn(self, ask: Ask, n_before: int, *, is_listing: bool) -> Act:
        """Return how a request is answered that came ``n_before`` times before."""
        if self.chosen is not None:
            return self.chosen(ask)
        faults = LOG_PROBS if is_listing else self.faults
        is_bad, which = (uniform(derive_seed(self.seed, ask.id, n_before, what)) for what in ("is bad", "which"))
        if is_bad < self.share:
            return faults[int(which * len(faults))]
        if is_listing:
            return _listing("good", (-0.5, -1.5), None)
        good = self.good or (lambda ask: ask.text)
        return Act("good", lambda ask: [http(completion(good(ask)))], says=good)

    def _answer(self, path: str, headers: Mapping[str, str], body: bytes) -> list[Step]:
        if self.is_dead and self.chosen is not None:
            return self.chosen(Ask("dead", "", "")).steps(Ask("dead", "", ""))
        if path == "/v1/models":
            return [http({"object": "list", "data": [{"id": "m", "object": "model"}]})]
        asked = json.loads(body)
        said = asked["messages"][-1]["content"]
        key = headers.get("authorization", "").removeprefix("Bearer ")
        ask = Ask(request_id(asked["messages"], asked.get("seed")), said, key)
        is_listing = bool(asked.get("logprobs"))
        if path == "/v1/moved/chat/completions":
            return [http(completion(ask.text))]
        if path == "/v1/circle/chat/completions":
            return [http(b"", 308, {"Location": path})]
        if path != "/v1/chat/completions":
            self.seen.append(path)
        if said == "Hello":
            act = _listing("good", (-0.5, -1.5), None) if is_listing else Act("good", lambda ask: [http(_GOOD)])
            return act.steps(ask)
        before = self.played[ask.id]
        act = self.drawn(ask, len(before), is_listing=is_listing)
        before.append(act)
        return act.steps(ask)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                line, *fields = head.split("\r\n")
                headers = {name.lower(): value.strip() for name, _, value in (one.partition(":") for one in fields)}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                for step in self._answer(line.split()[1], headers, body):
                    if isinstance(step, bytes):
                        writer.write(step)
                        await writer.drain()
                    elif isinstance(step, float):
                        await asyncio.sleep(step)
                    elif step == "stall":
                        # Until the client hangs up.
                        with suppress(TimeoutError):
                            await asyncio.wait_for(reader.read(1), STALLED_S)
                        return
                    elif step == "reset":
                        linger = struct.pack("ii", 1, 0)
                        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                        writer.transport.abort()
                        return
                    else:
                        return

    async def _handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(asyncio.CancelledError):  # the server ends; asyncio would report it as an error
            await self._serve(reader, writer)
        writer.close()

    @contextmanager
    def running(self) -> Iterator["HostileServer"]:
        """Serve in a thread until the block ends."""
        loop = asyncio.new_event_loop()
        thread = threading.Thread(target=loop.run_forever, daemon=True)
        thread.start()

        def do(work: Any) -> Any:
            return asyncio.run_coroutine_threadsafe(work, loop).result()

        server = do(asyncio.start_server(self._handle, "127.0.0.1", 0, limit=2**20, backlog=512))
        self.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1"
        try:
            yield self
        finally:
            do(_stop(server))
            loop.call_soon_threadsafe(loop.stop)
            thread.join()
            loop.close()


async def _stop(server: asyncio.Server) -> None:
    server.close()
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)
