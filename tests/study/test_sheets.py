"""Sheets come back in many forms; what is wrong with them is told at once, and nothing is guessed."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from esckit.errors import DataError
from esckit.study.key import AB_VALUES, Asked, Question, StudyKey
from esckit.study.sheets import read_answers
from tests.study.studies import written

COLUMNS = ("study", "rater", "question", "comfort", "overall")


def small_key(n_questions: int = 3, n_raters: int = 2) -> StudyKey:
    names = [f"q{place}" for place in range(n_questions)]
    asked = (*(Asked(question=name) for name in names), Asked(question="check", expected="tie"))
    questions = {name: Question(case_id=name, dialogue_id=name, systems=("a", "b")) for name in names}
    questions["check"] = Question(case_id="q0", dialogue_id="q0", systems=())
    return StudyKey(
        study="5", kind="ab", suite="response", seed=1, dimensions=("comfort", "overall"), systems={"a": "x", "b": "y"},
        questions=questions, raters={f"r{rater + 1}": asked for rater in range(n_raters)},
    )  # fmt: skip


KEY = small_key()


def sheet(rater: str, value: str = "1") -> list[list[str]]:
    rows = [["5", rater, name, value, value] for name in ("q0", "q1", "q2")]
    return [list(COLUMNS), *rows, ["5", rater, "check", "tie", "tie"]]


def problems(folder: Path, *sheets: Path, partial: bool = False) -> list[str]:
    with pytest.raises(DataError) as caught:
        read_answers(KEY, folder, sheets, partial=partial)
    return str(caught.value).split("\n  ")[1:]


@pytest.mark.parametrize(
    ("delimiter", "encoding"), [(",", "utf-8-sig"), (";", "cp1252"), ("\t", "utf-16"), (";", "utf-8")]
)
def test_sheets_are_read_as_spreadsheets_save_them(tmp_path: Path, delimiter: str, encoding: str) -> None:
    rows = [[*row, "naïve, “quoted”; so"] for row in sheet("r1", "2.0")]
    rows[0][-1], rows[1][3] = "comment", " TIE "
    paths = [written(tmp_path / f"{r}.csv", [[*row[:1], row[1].replace("r1", r), *row[2:]] for row in rows],
                     delimiter=delimiter, encoding=encoding) for r in ("r1", "r2")]  # fmt: skip
    found = read_answers(KEY, tmp_path, paths)
    assert found.given["r1", "q0"] == {"comfort": "tie", "overall": "2"}
    assert found.missing == {"r1": 0, "r2": 0}


def test_all_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    rows = sheet("r1")
    rows[1][3], rows[2][2], rows[3][0] = "7", "q9", "other"
    rows.append(["5", "r7", "q0", "1", "1"])
    assert problems(tmp_path, written(tmp_path / "a.csv", rows)) == [
        "a.csv, row 2: comfort '7'; expected one of 1, 2, tie",
        "a.csv, row 3: unknown question 'q9'",
        "a.csv, row 4: study 'other'; expected '5'",
        "a.csv, row 6: unknown rater 'r7'; expected one of r1, r2",
        "rater r1: 5 of 8 answers missing, in q0, q1, q2",
        "no answers of rater r2",
    ]


def test_two_sheets_of_one_rater_are_one_problem(tmp_path: Path) -> None:
    paths = [written(tmp_path / f"{name}.csv", sheet("r1")) for name in ("a", "b")]
    (found,) = problems(tmp_path, *paths, written(tmp_path / "c.csv", sheet("r2")))
    assert found == "b.csv: r1's q0, r1's q1, r1's q2, r1's check answered twice, first in a.csv"


def test_half_a_sheet_is_taken_only_when_asked_for(tmp_path: Path) -> None:
    rows = sheet("r1")
    rows[2][4] = ""
    path = written(tmp_path / "a.csv", rows[:-2])
    assert problems(tmp_path, path)[0] == "rater r1: 5 of 8 answers missing, in q1, q2, check"
    found = read_answers(KEY, tmp_path, [path], partial=True)
    assert found.missing == {"r1": 5, "r2": 8}
    assert found.given["r1", "q1"] == {"comfort": "1"}


def test_hidden_files_are_no_sheets(tmp_path: Path) -> None:
    (tmp_path / "answers").mkdir()
    for rater in ("r1", "r2"):
        written(tmp_path / "answers" / f"{rater}.csv", sheet(rater))
    (tmp_path / "answers" / "._r1.csv").write_bytes(b"\x00\x05\x16\x07")
    assert read_answers(KEY, tmp_path, ()).missing == {"r1": 0, "r2": 0}


def test_partial_does_not_excuse_what_is_wrong(tmp_path: Path) -> None:
    rows = sheet("r1")
    rows[1][3] = "3"
    assert problems(tmp_path, written(tmp_path / "a.csv", rows), partial=True) == [
        "a.csv, row 2: comfort '3'; expected one of 1, 2, tie"
    ]


def test_failed_checks_are_counted_and_excuse_nothing(tmp_path: Path) -> None:
    rows = sheet("r1")
    rows[-1][4] = "1"
    paths = [written(tmp_path / "a.csv", rows), written(tmp_path / "b.csv", sheet("r2"))]
    assert read_answers(KEY, tmp_path, paths).failed_checks == {"r1": ("check",), "r2": ()}


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"PK\x03\x04rest", "a workbook"),
        (b"", "no column study"),
        (b"study,rater\n5,r1\n", "no column question"),
        (b'study,rater,question,comfort,overall\n5,"r1', "no CSV"),
    ],
)
def test_a_file_that_is_no_sheet_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "x.csv"
    path.write_bytes(content)
    assert said in problems(tmp_path, path)[0]


def test_no_sheet_at_all_says_where_they_belong(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no sheet with answers"):
        read_answers(KEY, tmp_path, [])


@given(
    values=st.lists(st.sampled_from([*AB_VALUES, ""]), min_size=8, max_size=8),
    delimiter=st.sampled_from([",", ";", "\t"]),
    order=st.permutations(range(4)),
    extra=st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
)
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_what_a_rater_wrote_is_what_is_read(
    tmp_path: Path, values: list[str], delimiter: str, order: list[int], extra: str
) -> None:
    names = ["q0", "q1", "q2", "check"]
    rows = [["5", "r1", name, *values[2 * place : 2 * place + 2], extra] for place, name in enumerate(names)]
    path = written(tmp_path / "a.csv", [[*COLUMNS, "comment"], *(rows[place] for place in order)], delimiter=delimiter)
    if not any(values):
        return
    found = read_answers(KEY, tmp_path, [path], partial=True)
    kept = {
        name: {dimension: value for dimension, value in zip(COLUMNS[3:], row[3:5], strict=True) if value}
        for name, row in zip(names, rows, strict=True)
    }
    assert {question: dict(given) for (_, question), given in found.given.items()} == kept
    assert found.missing["r1"] == values.count("")


@given(st.binary(max_size=200))
@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_bytes_are_a_sheet_or_one_error(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "any.csv"
    path.write_bytes(content)
    with pytest.raises(DataError):
        read_answers(KEY, tmp_path, [path])
