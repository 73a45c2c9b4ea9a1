"""A server whose answers depend only on the question, and that knows what it was asked: what was paid for."""

import hashlib
import json
from typing import Any

from tests.models.fake_server import Canned, FakeServer, completion

_ROLES = ("supporter", "seeker", "critic")
_LEVELS = ("Same", "Slightly better", "Moderately better", "Slightly worse")


class PaidServer(FakeServer):
    """Answers equal questions alike, and takes a moment, so that several are in flight."""

    def words(self) -> tuple[str, ...]:
        """Return the changes to a recipe that bind every role to it."""
        binding = f"{{endpoint: {{base_url: '{self.url}'}}, model: m, prices: {{prompt: 1, completion: 1}}}}"
        return tuple(word for role in _ROLES for word in ("--set", f"models.{role}={binding}"))

    def paid(self) -> list[dict[str, Any]]:
        """Return the questions of the run; that of the check is not among them."""
        return [body for body in self.chats if body["messages"][0]["content"] != "Hello"]

    def forget(self) -> None:
        """Begin to count anew."""
        self.requests.clear()
        self.most_at_once = 0

    def _answer(self, path: str, body: dict[str, Any]) -> Canned:
        if path == "/v1/models":
            return self.models
        asked = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
        number = int(asked[:8], 16)
        is_verdict = body["max_tokens"] == 16
        answer = completion(_LEVELS[number % 4] if is_verdict else f"<think>a</think> <response>{number}.</response>")
        answer.wait_s = 0.002
        return answer
