"""What every suite hands to the pipeline: its cases, what they will cost, and what plays one of them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

from esckit.evaluate.cases import Case
from esckit.pipelines.evaluate_players import Casting

if TYPE_CHECKING:
    from esckit.evaluate.predictions import Prediction

Done = Mapping[str, Mapping[str, Case]]
"""Cases of this run that are there already, by file and id."""

Player = Callable[["Unit"], Awaitable[Case]]
Prepare = Callable[[Casting, Done], Player]


@dataclass(frozen=True, slots=True)
class Unit:
    """One case to be played.

    Attributes:
        id: Stable id, also of its seeds.
        dialogue_id: The resampling unit.
        what: What the suite needs to play it.
    """

    id: str
    dialogue_id: str
    what: Any = None


@dataclass(frozen=True, slots=True)
class Work:
    """One file of cases.

    Attributes:
        suite: The suite.
        file: Name of its file under ``examples/``, without ending; a suite may have several.
        kind: Class of its cases.
        units: In the order of the file.
        calls: Calls to models per role at most, without asking again.
        prepare: Returns what plays a case, given the roles and the files before.
        roles: Roles whose models it needs; without any, no model is loaded for it.
        left_out: Counted contexts that are no case, by reason.
        conditions: What else must be equal for two runs to be compared on this file.
    """

    suite: str
    file: str
    kind: type[Case]
    units: tuple[Unit, ...]
    calls: dict[str, int]
    prepare: Prepare
    roles: tuple[str, ...] = ()
    left_out: dict[str, int] = field(default_factory=dict)
    conditions: dict[str, str] = field(default_factory=dict)


Predictions: TypeAlias = "Mapping[str, Prediction]"


def has_strategies(predictions: Predictions | None) -> bool:
    """Return whether a predictions file speaks about strategies at all."""
    return predictions is not None and any(entry.strategy is not None for entry in predictions.values())


def has_replies(predictions: Predictions | None) -> bool:
    """Return whether a predictions file holds replies at all."""
    return predictions is not None and any(entry.reply is not None for entry in predictions.values())
