"""The three stages of a supportive conversation, by position (AFlow, arXiv 2602.08826)."""

from __future__ import annotations

from typing import Literal

Stage = Literal["Exploration", "Comforting", "Action"]
STAGES: tuple[Stage, ...] = ("Exploration", "Comforting", "Action")


def stage_of(index: int, n_turns: int) -> Stage:
    """Return the stage of the 0-based supporter turn ``index`` of ``n_turns``.

    Exploration if 3i < T' − 1, Comforting if 3i < 2(T' − 1), else Action; the only turn of a dialogue is Exploration.
    """
    if n_turns == 1 or 3 * index < n_turns - 1:
        return "Exploration"
    return "Comforting" if 3 * index < 2 * (n_turns - 1) else "Action"
