"""The nouns of esckit: what a conversation is, and what a run writes to disk.

Records that touch disk are frozen pydantic models which refuse unknown keys; those that stand alone on a line of a file
carry a ``SCHEMA`` (see :mod:`esckit.records`). What only lives in memory is a frozen slotted dataclass. Collections are
tuples. ``None`` means "the source may lack it", never "not computed yet".
"""

from esckit.types.chat import (
    FREE,
    ChoiceScore,
    ChoiceScores,
    Limits,
    Message,
    NextToken,
    Prices,
    Reasoned,
    Reply,
    Role,
    Sampling,
    StopReason,
    Thought,
    Usage,
)
from esckit.types.conversation import (
    Context,
    Dialogue,
    Scenario,
    Source,
    Speaker,
    Survey,
    Turn,
    TurnPart,
)
from esckit.types.record import Record
from esckit.types.simulation import (
    CriticReading,
    Exchange,
    Failure,
    FailureStage,
    Future,
    Generation,
    Outcome,
    ParseKind,
    RubricReading,
    Score,
)
from esckit.types.tree import (
    SearchTree,
    TreeNode,
)

__all__ = [
    "FREE",
    "ChoiceScore",
    "ChoiceScores",
    "Context",
    "CriticReading",
    "Dialogue",
    "Exchange",
    "Failure",
    "FailureStage",
    "Future",
    "Generation",
    "Limits",
    "Message",
    "NextToken",
    "Outcome",
    "ParseKind",
    "Prices",
    "Reasoned",
    "Record",
    "Reply",
    "Role",
    "RubricReading",
    "Sampling",
    "Scenario",
    "Score",
    "SearchTree",
    "Source",
    "Speaker",
    "StopReason",
    "Survey",
    "Thought",
    "TreeNode",
    "Turn",
    "TurnPart",
    "Usage",
]
