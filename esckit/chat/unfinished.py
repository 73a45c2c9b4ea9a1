"""What of a reply can be shown before it is finished: only what no later word can take back.

A supporter's reply is what is found in its output (:func:`esckit.roles.asking.read_output`), without reasoning, tags
and labels, and without an unfinished last sentence if it was cut at the token limit. So nothing is shown of what may
still turn out to be one of these. Where a whole reply can be refused at its end, and asked for again, it comes in one
piece.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial

from esckit.config.sections import RoleOptions
from esckit.models.chat import make_reply
from esckit.protocols import Supporter
from esckit.roles.asking import asks_for_tags, read_output
from esckit.roles.players import FlowSupporter, PromptedSupporter
from esckit.text import whole_sentences
from esckit.types import StopReason, Usage

_BEGUN_TAG = re.compile(r"[<\[◁][^<>\[\]\n]{0,40}$")

_LONGEST_LABEL = 24

_FOUND_IN_TAGS = ("ok", "closed_response", "open_response")

_ANY_LENGTH = 2**31

Settled = Callable[[str], str]
"""Returns the part of a reply that is settled, of all that the model has written so far."""


def settled(written: str, *, in_tags: bool) -> str:
    """Return the part of a reply that no later word takes back.

    Args:
        written: All that the model has written so far, reasoning included.
        in_tags: Whether the prompt asks for ``<response>`` tags; what stands before them may be reasoning.
    """
    whole = make_reply(
        _BEGUN_TAG.sub("", written), StopReason.STOP, Usage(), max_tokens=_ANY_LENGTH
    ).whole  # reasoning in whatever form a model has is between tags now
    found = read_output(whole)
    if in_tags and found.parse_kind not in _FOUND_IN_TAGS:
        return ""
    if found.parse_kind in ("ok", "closed_response"):
        return found.response
    before, _, line = found.response.rpartition("\n")
    if len(line) < _LONGEST_LABEL:  # it may become a label
        return whole_sentences(before)
    return whole_sentences(found.response)


def settled_of(supporter: Supporter) -> Settled | None:
    """Return how the replies of a supporter are shown while they are written; None if they come in one piece."""
    match supporter:
        case PromptedSupporter(voice=voice, prompt=prompt):
            options, in_tags = voice.options, asks_for_tags(prompt)
        case FlowSupporter(options=options):
            in_tags = False
        case _:
            return None
    return partial(settled, in_tags=in_tags) if _is_never_refused(options) else None


def _is_never_refused(options: RoleOptions) -> bool:
    return options.on_length == "last_sentence" and options.max_words is None


class Reveal:
    """Shows a reply bit by bit.

    Args:
        settled: See :func:`settled_of`; None shows nothing before the end.
        show: Takes what is to be added to what was shown.

    Attributes:
        shown: What was shown so far.
    """

    def __init__(self, settled: Settled | None, show: Callable[[str], None]) -> None:
        self._settled, self._show = settled, show
        self.shown = ""

    def hear(self, written: str) -> None:
        """Take all that the model has written so far."""
        text = self._settled(written) if self._settled is not None else ""
        if len(text) > len(self.shown) and text.startswith(self.shown):
            self._add(text)

    def finish(self, reply: str) -> bool:
        """Show the rest; return False, and show nothing, if the reply is another one than what was begun."""
        if not reply.startswith(self.shown):
            return False
        self._add(reply)
        return True

    def _add(self, text: str) -> None:
        added, self.shown = text[len(self.shown) :], text
        if added:
            self._show(added)
