"""An OpenAI-compatible server on loopback whose next answers, faults included, a test lays out."""

import json
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Canned:
    """One HTTP answer: JSON or raw text, after a wait; or a connection that is dropped without one."""

    body: Any
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    wait_s: float = 0.0
    is_dropped: bool = False


def completion(text: Any = "hello", finish: Any = "stop", **choice: Any) -> Canned:
    """A chat completion."""
    message = {"role": "assistant", "content": text}
    return Canned(
        {
            "object": "chat.completion",
            "choices": [{"index": 0, "message": message, "finish_reason": finish, **choice}],
            "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10},
        }
    )


def with_log_probs(listed: Sequence[tuple[str, Any]], text: str = "x") -> Canned:
    """A completion of one token with alternatives."""
    alternatives = [{"token": token, "logprob": log_p} for token, log_p in listed]
    return completion(text, "length", logprobs={"content": [{**alternatives[0], "top_logprobs": alternatives}]})


def refusal(
    message: str, *, status: int = 400, param: str | None = None, code: str | None = None, **more: Any
) -> Canned:
    """An error in the API's form."""
    return Canned({"error": {"message": message, "type": "error", "param": param, "code": code}}, status, **more)


@dataclass
class Request:
    """What a client sent."""

    method: str
    path: str
    key: str | None
    body: dict[str, Any]


class FakeServer:
    """Answers chat requests from a queue, then with ``usual``; keeps what it was sent."""

    def __init__(self) -> None:
        self.queue: deque[Canned] = deque()
        self.usual = completion()
        self.models: Canned = Canned({"object": "list", "data": [{"id": "m", "object": "model"}]})
        self.requests: list[Request] = []
        self.refused_fields: dict[str, str] = {}
        self.n_at_once = 0
        self.most_at_once = 0
        self._lock = threading.Lock()
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                server._serve(self, {})

            def do_POST(self) -> None:
                server._serve(self, json.loads(self.rfile.read(int(self.headers["Content-Length"]))))

            def log_message(self, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            request_queue_size = 512

        self._http = Server(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._http.server_address[1]}/v1"

    @property
    def chats(self) -> list[dict[str, Any]]:
        """The bodies of the chat requests, in order."""
        return [request.body for request in self.requests if request.path == "/v1/chat/completions"]

    def _serve(self, handler: BaseHTTPRequestHandler, body: dict[str, Any]) -> None:
        with self._lock:
            self.requests.append(Request(handler.command, handler.path, handler.headers.get("Authorization"), body))
            self.n_at_once += 1
            self.most_at_once = max(self.most_at_once, self.n_at_once)
            answer = self._answer(handler.path, body)
        time.sleep(answer.wait_s)
        with self._lock:
            self.n_at_once -= 1
        if answer.is_dropped:
            handler.close_connection = True
            return
        body = answer.body if isinstance(answer.body, str | bytes) else json.dumps(answer.body)
        data = body if isinstance(body, bytes) else body.encode()
        try:
            handler.send_response(answer.status)
            for name, value in {"Content-Type": "application/json", **answer.headers}.items():
                handler.send_header(name, value)
            handler.send_header("Content-Length", str(len(data)))
            handler.end_headers()
            handler.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):
            pass  # the client gave up waiting, as some tests want

    def _answer(self, path: str, body: dict[str, Any]) -> Canned:
        if path == "/v1/models":
            return self.models
        for name, message in self.refused_fields.items():
            if name in body:
                return refusal(message)
        return self.queue.popleft() if self.queue else self.usual

    @contextmanager
    def running(self) -> Iterator["FakeServer"]:
        """Serve in a thread until the block ends."""
        thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self._http.shutdown()
            thread.join()
            self._http.server_close()
