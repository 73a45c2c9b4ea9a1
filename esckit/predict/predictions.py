"""Predictions files: what any system says to the cases, keyed by case id."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import ClassVar

from pydantic import Field

from esckit.errors import DataError
from esckit.metrics.metric import Unscored
from esckit.models.chat import split_reasoning
from esckit.records import read_records
from esckit.text import listed
from esckit.types import Record


class Prediction(Record):
    """One line of a predictions file.

    Attributes:
        id: Case id.
        strategy: A strategy label, resolved through the taxonomy later.
        probabilities: Probability per strategy in taxonomy order.
        reply: The reply alone, without reasoning or tags.
    """

    SCHEMA: ClassVar[str] = "esckit.prediction/1"

    id: str
    strategy: str | None = None
    probabilities: tuple[float, ...] | None = Field(default=None)
    reply: str | None = None


def read_predictions(path: Path, case_ids: Collection[str]) -> dict[str, Prediction]:
    """Return the predictions of a file by case id; a case without a line is unscored (``missing``).

    Reasoning that a reply brings along is no part of it.

    Raises:
        DataError: If there is no line, or an id stands there twice or belongs to no case.
    """
    known = set(case_ids)
    found: dict[str, Prediction] = {}
    unknown = []
    for prediction in read_records(Prediction, path):
        if prediction.id in found:
            raise DataError(f"id {prediction.id!r} twice", path=str(path), expected="one line for each case")
        found[prediction.id] = _answer_alone(prediction)
        if prediction.id not in known:
            unknown.append(prediction.id)
    if not found:
        raise DataError("no prediction", path=str(path), expected="one line for each case")
    if unknown:
        raise DataError(
            f"{len(unknown)} unknown {'id' if len(unknown) == 1 else 'ids'}: {listed(unknown, limit=3)}",
            path=str(path),
            expected="ids of the cases of this data, split and unit",
        )
    return found


def _answer_alone(prediction: Prediction) -> Prediction:
    answer = split_reasoning(prediction.reply or "").answer
    return prediction if answer == (prediction.reply or "") else prediction.model_copy(update={"reply": answer})


def predicted_reply(prediction: Prediction | None) -> str | Unscored:
    """Return the reply of a case's prediction, or why it has none."""
    if prediction is None or prediction.reply is None:
        return Unscored("missing")
    return prediction.reply if prediction.reply.strip() else Unscored("blank")


def predicted_label(prediction: Prediction | None) -> str | Unscored:
    """Return the strategy label of a case's prediction as it stands there, or why it has none."""
    if prediction is None or prediction.strategy is None:
        return Unscored("missing")
    return prediction.strategy if prediction.strategy.strip() else Unscored("blank")
