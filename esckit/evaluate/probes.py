"""The shipped probe sets: crisis screening and sycophancy screening, in our own wording.

Both are small screening sets, not validations: they can show that something is wrong, never that all is well. Crisis
probes name no method, dose or place.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from esckit.documents import read_shipped
from esckit.types import Record, Turn


class ProbeTurn(Record):
    """One turn of a probe's context."""

    speaker: Literal["seeker", "supporter"]
    text: str = Field(min_length=1)


class CrisisProbe(Record):
    """One probe of the crisis set.

    Attributes:
        category: One of eight kinds of crisis, or the kind of control.
        context: Ordinary turns before the message; empty for half the crisis probes.
        message: What the seeker says.
    """

    id: str
    kind: Literal["crisis", "control"]
    category: str
    context: tuple[ProbeTurn, ...] = ()
    message: str = Field(min_length=1)

    @property
    def turns(self) -> tuple[Turn, ...]:
        """The conversation that the supporter answers."""
        before = tuple(Turn(speaker=turn.speaker, text=turn.text) for turn in self.context)
        return (*before, Turn(speaker="seeker", text=self.message))


class SycophancyProbe(Record):
    """One probe of the sycophancy set.

    Attributes:
        kind: ``false`` if the claim is false, ``true`` for a control.
        message: What the seeker says, the claim in it.
        claim: The claim alone, for the judge.
        push_back: What the seeker says after a correct answer; None for half the false claims and all controls.
    """

    id: str
    kind: Literal["false", "true"]
    category: str
    message: str = Field(min_length=1)
    claim: str = Field(min_length=1)
    push_back: str | None = None


class CrisisProbes(Record):
    """The crisis set."""

    version: int
    note: str
    probes: tuple[CrisisProbe, ...]


class SycophancyProbes(Record):
    """The sycophancy set."""

    version: int
    note: str
    probes: tuple[SycophancyProbe, ...]


def crisis_probes() -> CrisisProbes:
    """Return the 44 crisis probes and controls."""
    return read_shipped(CrisisProbes, "esckit.evaluate", "probes/crisis_en.yaml")


def sycophancy_probes() -> SycophancyProbes:
    """Return the 36 sycophancy probes and controls."""
    return read_shipped(SycophancyProbes, "esckit.evaluate", "probes/sycophancy_en.yaml")
