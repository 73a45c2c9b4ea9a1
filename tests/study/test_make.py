"""A study is blind, balanced and the same for the same seed; its sheets open anywhere and run nothing."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path

import pytest

from esckit.errors import ConfigError, DataError
from esckit.report.source import Run, open_run
from esckit.study.form import Shown, render_form
from esckit.study.key import FORMS, KEY, SHEETS
from esckit.study.make import StudyPlan, known_dimensions, make_study
from tests.report.run_folders import HOSTILE
from tests.study.studies import evaluations, rows_of, study


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return evaluations(tmp_path_factory.mktemp("runs"))


def test_sides_are_balanced_for_raters_and_questions(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path / "study", n_items=6, n_raters=4)
    swapped = {
        rater: {each.question: each.is_swapped for each in asked if each.expected is None}
        for rater, asked in key.raters.items()
    }
    assert all(Counter(sides.values()) == {True: 3, False: 3} for sides in swapped.values())
    for question in swapped["r1"]:
        assert sum(sides[question] for sides in swapped.values()) == 2
    orders = {tuple(each.question for each in asked) for asked in key.raters.values()}
    assert len(orders) == 4


def test_checks_ask_for_different_answers_and_look_like_others(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path / "study", n_checks=3)
    for rater, asked in key.raters.items():
        expected = {each.question: each.expected for each in asked if each.expected}
        assert sorted(expected.values()) == ["1", "2", "tie"]
        sheet = {row[2]: row for row in rows_of(tmp_path / "study" / SHEETS / f"{rater}.csv")[1:]}
        assert all(f"answer {value} in every line" in sheet[question][5] for question, value in expected.items())
        assert all(sheet[question][4] for question in expected)


def test_sheets_and_forms_tell_no_system_run_or_case(runs: dict[str, Run], tmp_path: Path) -> None:
    folder = tmp_path / "study"
    key = study({"alpha-system": runs["ours"], "beta-system": runs["base"]}, folder)
    told = ["alpha-system", "beta-system", str(runs["ours"].path), *{each.case_id for each in key.questions.values()}]
    for path in (*folder.glob(f"{SHEETS}/*"), *folder.glob(f"{FORMS}/*"), folder / "instructions.md"):
        text = path.read_text(encoding="utf-8")
        assert [secret for secret in told if secret in text] == [], path.name


def test_the_same_seed_makes_the_same_study(runs: dict[str, Run], tmp_path: Path) -> None:
    keys = [study(runs, tmp_path / str(place), seed=seed) for place, seed in enumerate((1, 1, 2))]
    assert keys[0] == keys[1]
    assert keys[0].study != keys[2].study
    sheets = [(tmp_path / str(place) / SHEETS / "r1.csv").read_bytes() for place in range(2)]
    assert sheets[0] == sheets[1]


def test_one_rating_question_per_case_and_system(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path / "study", kind="rating", n_items=5)
    systems = Counter(question.systems for question in key.questions.values())
    assert systems == {("ours",): 5, ("base",): 5, (): 3}
    assert "answer_1" not in rows_of(tmp_path / "study" / SHEETS / "r1.csv")[0]


def test_dialogues_are_shown_from_the_situation_on(tmp_path: Path) -> None:
    runs = evaluations(tmp_path / "runs", "dialogue")
    study(runs, tmp_path / "study", n_items=2, n_checks=0)
    first = rows_of(tmp_path / "study" / SHEETS / "r1.csv")[1]
    assert first[4].startswith("Person: ")
    assert first[5].startswith("Supporter: ")
    assert "\nPerson: " in first[5]


def test_a_cell_is_never_a_formula(runs: dict[str, Run], tmp_path: Path) -> None:
    path = runs["ours"].path / "examples" / "response.jsonl"
    copy = tmp_path / "ours"
    copy.mkdir()
    (copy / "manifest.json").write_text((runs["ours"].path / "manifest.json").read_text())
    (copy / "examples").mkdir()
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (copy / "examples" / "response.jsonl").write_text(
        "".join(json.dumps({**line, "reply": '=HYPERLINK("x")\n=1;@2'}) + "\n" for line in lines)
    )
    study({"ours": open_run(copy), "base": runs["base"]}, tmp_path / "study")
    cells = [cell for row in rows_of(tmp_path / "study" / SHEETS / "r1.csv") for cell in row]
    assert any("HYPERLINK" in cell for cell in cells)
    assert not any(part.startswith(("=", "+", "-", "@")) for cell in cells for part in re.split("[\n;]", cell))


def test_hostile_texts_stay_texts_in_the_form(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path / "study")
    page = render_form(key, "r1", [Shown("q1", HOSTILE, ((HOSTILE, HOSTILE),), (((HOSTILE, HOSTILE),),) * 2)])
    assert page.count("<script") == 2
    assert "default-src &#39;none&#39;; script-src &#39;sha256-" in page


def test_a_closed_corpus_needs_consent(runs: dict[str, Run], tmp_path: Path) -> None:
    closed = {name: Run(run.path, run.manifest, quotes=False) for name, run in runs.items()}
    with pytest.raises(DataError, match="research use only") as caught:
        study(closed, tmp_path / "study")
    assert "--quotes" in (caught.value.expected or "")
    assert not (tmp_path / "study").exists()


def test_what_cannot_be_asked_is_refused_and_writes_nothing(runs: dict[str, Run], tmp_path: Path) -> None:
    out = tmp_path / "study"
    with pytest.raises(DataError, match="66 cases of response") as caught:
        make_study(runs, StudyPlan("ab", 1000, 2), out)
    assert caught.value.expected == "--items 66 at most"
    with pytest.raises(ConfigError, match="one run"):
        make_study({"ours": runs["ours"]}, StudyPlan("ab", 5, 2), out)
    with pytest.raises(ConfigError, match="warmth"):
        known_dimensions("fluency,warmth")
    assert not out.exists()
    study(runs, out)
    before = (out / KEY).read_bytes()
    with pytest.raises(ConfigError, match="not empty"):
        study(runs, out, seed=5)
    assert (out / KEY).read_bytes() == before
