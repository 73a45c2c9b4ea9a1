"""The predictions file: what any system says to the cases of an evaluation, keyed by case id.

A line is ``{"schema": "esckit.prediction/1", "id": "esconv-9b1f37be6d7e#m5", "strategy": "Question", "probabilities":
null, "reply": "…"}``. ``esckit predict`` writes such files, and anybody else may; ``esckit evaluate`` reads them.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from esckit.errors import DataError
from esckit.models.chat import split_reasoning
from esckit.records import read_records
from esckit.text import listed
from esckit.types import Record

if TYPE_CHECKING:
    from esckit.metrics.metric import Unscored


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
    probabilities: tuple[float, ...] | None = None
    reply: str | None = None


def read_predictions(path: Path, case_ids: Collection[str]) -> dict[str, Prediction]:
    """Return the predictions of a file by case id; a case without a line is unscored (``missing``).

    Reasoning that a reply brings along is no part of it.

    Raises:
        DataError: If there is no line, or an id stands there twice or belongs to no case.
    """
    found: dict[str, Prediction] = {}
    for prediction in read_records(Prediction, path):
        if prediction.id in found:
            raise DataError(f"id {prediction.id!r} twice", path=str(path), expected="one line for each case")
        found[prediction.id] = _answer_alone(prediction)
    if not found:
        raise DataError("no prediction", path=str(path), expected="one line for each case")
    known = set(case_ids)
    if unknown := [name for name in found if name not in known]:
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
    return _given(prediction.reply if prediction else None)


def predicted_label(prediction: Prediction | None) -> str | Unscored:
    """Return the strategy label of a case's prediction as it stands there, or why it has none."""
    return _given(prediction.strategy if prediction else None)


def _given(text: str | None) -> str | Unscored:
    from esckit.metrics.metric import Unscored

    if text is None:
        return Unscored("missing")
    return text if text.strip() else Unscored("blank")
