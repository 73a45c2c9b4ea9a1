"""How much of a conversation a prompt shows."""

from collections.abc import Sequence

import pytest

from esckit.ledger import Ledger
from esckit.roles.asking import Window
from esckit.types import Message, Turn

TURNS = [Turn(speaker="seeker", text=str(index)) for index in range(800)]


def fitted(max_tokens: int, n_turns: int = 800) -> tuple[list[str], int, int]:
    """Return the turns shown, the turns dropped and the tokens counted, where a turn is a token beside 10 others."""
    counted = []

    def count(messages: Sequence[Message]) -> int:
        counted.append(10 + len(messages))
        return counted[-1]

    ledger = Ledger(0, "u")
    messages = Window(max_tokens, count).fit(
        lambda turns: [Message("user", turn.text) for turn in turns], TURNS[:n_turns], ledger.at(), "critic"
    )
    dropped = ledger.usage["critic"].dropped_turns if ledger.usage else 0
    return [message.content for message in messages], dropped, sum(counted)


@pytest.mark.parametrize("max_tokens", [11, 12, 100, 500, 809, 810, 900])
def test_as_many_of_the_latest_turns_as_fit_are_shown(max_tokens: int) -> None:
    shown, dropped, _ = fitted(max_tokens)
    n = min(800, max_tokens - 10)
    assert shown == [str(index) for index in range(800 - n, 800)]
    assert dropped == 800 - n


def test_the_last_turn_always_stays() -> None:
    assert fitted(3)[:2] == (["799"], 799)
    assert fitted(3, n_turns=1)[:2] == (["0"], 0)


def test_a_long_conversation_is_read_a_few_times_only() -> None:
    assert fitted(12)[2] < 3 * 810
