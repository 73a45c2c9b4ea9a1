"""Replies while they are written: whoever asks a role may listen to the model that answers.

A listener is set around a call (:func:`listening`) and found by the model that is called in it (:func:`listener`), so
that roles, budget and cache need not know of it. It changes no reply. A model that cannot be listened to, and an answer
of the response cache, come whole.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str], None]
"""Takes all that the model has written so far, reasoning included, whenever there is more; after a retry, from the
start again. It is called in the event loop, never after the reply itself was returned."""

_LISTENER: ContextVar[Listener | None] = ContextVar("listener", default=None)


@contextmanager
def listening(listen: Listener | None) -> Iterator[None]:
    """Let a listener hear what models write in this task inside the block; None lets nobody hear it."""
    token = _LISTENER.set(listen)
    try:
        yield
    finally:
        _LISTENER.reset(token)


def listener() -> Listener | None:
    """Return who listens to the calls of this task; None if nobody does."""
    return _LISTENER.get()
