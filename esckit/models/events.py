"""A chat completion that comes as a stream of server-sent events: what of it can be shown early, and the whole of it.

The whole is put together as the completion that the same server would have sent in one piece, so that it is read and
judged as every other answer is (:mod:`esckit.models.chat_api`, :mod:`esckit.models.faults`).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from esckit.text import without_surrogates

STREAMED: Mapping[str, Any] = {"stream": True, "stream_options": {"include_usage": True}}
"""Fields of a request whose answer is to come as events."""

_REASONING = ("reasoning_content", "reasoning")


class EventReader:
    """Takes the pieces of a body as they arrive.

    Args:
        listen: Takes all that was written so far, with ``<think>`` around reasoning that the server sends apart.
    """

    def __init__(self, listen: Callable[[str], None]) -> None:
        self._listen = listen
        self._rest: list[bytes] = []  # joined once its line ends, or a long line in small pieces takes for ever
        self._content = self._reasoning = self._refusal = ""
        self._finish_reason: Any = None
        self._usage: Any = None
        self._is_over = False

    def feed(self, piece: bytes) -> None:
        """Take the next piece; it may end anywhere."""
        first, *others = piece.split(b"\n")
        self._rest.append(first)
        for other in others:
            self._take(b"".join(self._rest))
            self._rest = [other]

    def completion(self) -> str | None:
        """Return the completion that the events make, as JSON; None if they broke off before its end."""
        self._take(b"".join(self._rest))
        self._rest = []
        if self._finish_reason is None and not self._is_over:
            return None
        message = {"role": "assistant", "content": self._content}
        apart = {"reasoning_content": self._reasoning, "refusal": self._refusal}
        message |= {name: text for name, text in apart.items() if text}
        choice = {"index": 0, "message": message, "finish_reason": self._finish_reason}
        return json.dumps({"choices": [choice], "usage": self._usage})

    def _take(self, line: bytes) -> None:
        if not line.startswith(b"data:"):
            return
        text = line.removeprefix(b"data:").strip().decode("utf-8", "replace")
        if text == "[DONE]":
            self._is_over = True
            return
        try:
            event = json.loads(text)
        except (ValueError, RecursionError):
            return
        if not isinstance(event, dict):
            return
        self._usage = event.get("usage") or self._usage
        choices = event.get("choices")
        choice = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else {}
        delta = choice.get("delta")
        if isinstance(delta, dict):
            self._add(delta)
        self._finish_reason = choice.get("finish_reason") or self._finish_reason

    def _add(self, delta: Mapping[str, Any]) -> None:
        content, refusal = delta.get("content"), delta.get("refusal")
        thought = next((delta[name] for name in _REASONING if isinstance(delta.get(name), str)), "")
        self._reasoning += thought
        self._content += content if isinstance(content, str) else ""
        self._refusal += refusal if isinstance(refusal, str) else ""
        closing = "</think>" if self._content else ""
        written = (f"<think>{self._reasoning}{closing}" if self._reasoning else "") + self._content
        self._listen(without_surrogates(written))  # half a pair can be written nowhere
