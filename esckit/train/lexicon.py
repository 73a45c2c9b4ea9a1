"""A reward that one can check by hand: the share of a short list of supportive words that a reply uses.

It is no measure of support. It shows that training does what it should where no judge is at hand, and how a reward
of one's own is written: a recipe names it as ``reward.kind: esckit.train.lexicon:lexicon_reward``.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from esckit.types import Turn

WORDS = frozenset({"feel", "hear", "sounds", "hard", "sorry", "understand", "together", "help", "what"})
ENOUGH = 3
_WORD = re.compile(r"[a-z']+")


def lexicon_reward(conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
    """Return for each response how many different words of the list it uses, over three, at most 1."""
    return [min(len(WORDS & set(_WORD.findall(text.casefold()))), ENOUGH) / ENOUGH for text in responses]
