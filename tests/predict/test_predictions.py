"""Predictions files: every line belongs to one case; silence is unscored."""

from pathlib import Path

import pytest

from esckit.errors import DataError
from esckit.metrics.metric import Unscored
from esckit.predict.run import Prediction, predicted, read_predictions


def written(tmp_path: Path, *lines: str) -> Path:
    path = tmp_path / "predictions.jsonl"
    path.write_text("".join(line + "\n" for line in lines))
    return path


def test_lines_are_found_by_case_id(tmp_path: Path) -> None:
    path = written(tmp_path, '{"id": "a", "strategy": "Question"}', '{"id": "b", "reply": "I hear you."}')
    found = read_predictions(path, ["a", "b", "c"])
    assert predicted(found["a"], "strategy") == "Question"
    assert predicted(found["b"], "reply") == "I hear you."
    assert predicted(found.get("c"), "reply") == predicted(found["a"], "reply") == Unscored("missing")


def test_reasoning_is_no_part_of_a_predicted_reply(tmp_path: Path) -> None:
    path = written(tmp_path, '{"id": "a", "reply": "<think>Hm.</think>Hi."}', '{"id": "b", "reply": "<think>Hm."}')
    found = read_predictions(path, ["a", "b"])
    assert [predicted(found[name], "reply") for name in "ab"] == ["Hi.", Unscored("blank")]


def test_a_blank_reply_is_unscored() -> None:
    assert predicted(Prediction(id="a", reply=" \n"), "reply") == Unscored("blank")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (('{"id": "a"}', '{"id": "a"}'), "id 'a' twice"),
        (('{"id": "x"}', '{"id": "y"}'), "2 unknown ids"),
        ((), "no prediction"),
        (('{"id": "a", "stratgy": "Q"}',), "unknown key"),
    ],
)
def test_wrong_files_are_refused(tmp_path: Path, lines: tuple[str, ...], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_predictions(written(tmp_path, *lines), ["a"])
