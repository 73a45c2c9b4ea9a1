"""What a study finds: win rates and means by hand, agreement as published, and the judge beside people."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from esckit.errors import ConfigError
from esckit.metrics.calibration import fleiss_kappa, rater_alpha
from esckit.report.grid import markdown
from esckit.report.source import Run, open_run
from esckit.study.key import Question, StudyKey
from esckit.study.results import StudyResults, study_results
from esckit.study.sheets import read_answers
from esckit.study.tables import study_data, study_grids
from tests.evaluate.evalrecipes import scripted
from tests.evaluate.evalruns import result
from tests.study.studies import Rule, answered, evaluations, study


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    return evaluations(tmp_path_factory.mktemp("runs"))


def found(folder: Path, key: StudyKey, rule: Rule, **options: int) -> StudyResults:
    answered(folder, key, rule)
    return study_results(key, read_answers(key, folder, []), **options)


def test_win_rates_are_shares_of_answers(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path, n_items=6)
    cases = sorted({each.case_id for each in key.questions.values() if not each.is_check})

    def rule(rater: str, question: Question, dimension: str) -> str:
        # r1 prefers ours in four of six cases; r2 sees no difference anywhere.
        if rater == "r2":
            return "tie"
        return "win" if cases.index(question.case_id) < 4 else "lose"

    overall = next(each for each in found(tmp_path, key, rule).preferences if each.dimension == "overall")
    assert (overall.first, overall.second) == ("ours", "base")
    shares = {label: row.value for label, row in overall.rows.items()}
    assert shares == pytest.approx({"first": 4 / 12, "tie": 6 / 12, "second": 2 / 12})
    assert overall.net.difference == pytest.approx(2 / 12)
    # Six differences of ±½: as extreme as four to two are 2·(1 + 6 + 15) of 64 sign patterns.
    assert overall.net.p == pytest.approx(44 / 64)
    assert overall.net.n == 6


def test_names_of_systems_in_another_order_swap_the_rates(runs: dict[str, Run], tmp_path: Path) -> None:
    rates = []
    for place, order in enumerate((("ours", "base"), ("base", "ours"))):
        folder = tmp_path / str(place)
        key = study({name: runs[name] for name in order}, folder, n_items=5)
        results = found(folder, key, lambda _, question, __: "win" if question.systems[0] == "ours" else "lose")
        rates.append(results.preferences[0].rows["first"].value)
    assert rates == [1.0, 0.0]


def test_holm_is_over_the_whole_study(runs: dict[str, Run], tmp_path: Path) -> None:
    results = found(tmp_path, study(runs, tmp_path), lambda *_: "win")
    assert results.n_tests == 2
    assert all(each.net.p_holm == pytest.approx(2 * (each.net.p or 0)) for each in results.preferences)


def test_mean_ratings_and_their_differences(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path, kind="rating", n_items=6)
    rated = {"ours": {"r1": "5", "r2": "4"}, "base": {"r1": "3", "r2": "3"}}
    results = found(
        tmp_path, key, lambda rater, question, _: rated[question.systems[0]][rater] if question.systems else ""
    )
    means = {(each.system, each.dimension): each.row.value for each in results.means}
    assert means["ours", "overall"] == 4.5
    first, dimension, test = results.differences[0]
    assert (first, dimension, test.other, test.difference) == ("ours", "comfort", "base", 1.5)
    shown = "\n".join(map(markdown, study_grids(results)))
    assert "**4.50**" in shown
    assert "+1.50" in shown


def test_a_rater_is_left_out_only_by_the_stated_rule(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path, n_checks=2)
    answered(tmp_path, key, lambda rater, *_: "win" if rater == "r1" else "lose")
    answers = read_answers(key, tmp_path, [])
    failed = type(answers)(answers.given, {"r1": (), "r2": ("q1", "q2")}, answers.missing)
    assert study_results(key, failed).preferences[0].rows["first"].value == 0.5
    kept = study_results(key, failed, max_failed=1)
    assert (kept.left_out, kept.preferences[0].rows["first"].value) == (("r2",), 1.0)
    assert study_data(kept)["raters"]["r2"] == {"missing": 0, "failed_checks": ["q1", "q2"], "counted": False}
    both = type(answers)(answers.given, {"r1": ("q1",), "r2": ("q1",)}, answers.missing)
    with pytest.raises(ConfigError, match="leaves no rater"):
        study_results(key, both, max_failed=0)


def test_the_pairwise_judge_stands_beside_people(runs: dict[str, Run], tmp_path: Path) -> None:
    judged = {"models": {"supporter": scripted("supporter")}}
    opponent = {"settings": {"pairwise": {"opponent": str(runs["base"].path), "contexts": 12}}}
    result(tmp_path, "response", "pairwise", name="judged", **judged, **opponent)
    both = {"ours": open_run(tmp_path / "judged"), "base": runs["base"]}
    folder = tmp_path / "study"
    key = study(both, folder, n_items=66, suite="response")
    results = found(folder, key, lambda rater, *_: "win")
    rows = {row.name: row for row in results.agreement["overall"] if row.group is None}
    assert rows["reliability.overall.agreement_judge"].n == 12
    equal, majority = (rows[f"reliability.overall.{name}"].value for name in ("judge_equals_rater", "agreement_judge"))
    assert equal == majority
    cells = [row for row in results.agreement["overall"] if row.group is not None]
    assert sum(row.value or 0 for row in cells) == 12
    assert {row.group["human"] for row in cells if row.group} == {"win"}


def test_critics_are_correlated_with_ratings_of_dialogues(tmp_path: Path) -> None:
    runs = evaluations(tmp_path / "runs", "dialogue")
    key = study(runs, tmp_path / "study", kind="rating", n_items=6, suite="dialogue")
    grades = {each.case_id: str(1 + place % 5) for place, each in enumerate(key.questions.values())}
    results = found(tmp_path / "study", key, lambda _, question, __: grades[question.case_id])
    assert [row.name for row in results.judge] == ["judge.rlff7.spearman_overall"]
    assert results.judge[0].n == 12


def test_runs_that_are_gone_leave_people_alone(runs: dict[str, Run], tmp_path: Path) -> None:
    key = study(runs, tmp_path).model_copy(update={"systems": {"ours": "gone/a", "base": "gone/b"}})
    results = found(tmp_path, key, lambda *_: "tie")
    assert "agreement_judge" not in {row.name.rpartition(".")[2] for row in results.agreement["overall"]}


# ---------------------------------------------------------------- published worked examples

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section C: 4 observers, 12 units.
OBSERVERS = (
    (1, 2, 3, 3, 2, 1, 4, 1, 2, None, None, None),
    (1, 2, 3, 3, 2, 2, 4, 1, 2, 5, None, 3),
    (None, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, None),
    (1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, None),
)

# Fleiss' κ of 10 subjects by 14 raters in 5 categories; κ = 0.210 (en.wikipedia.org/wiki/Fleiss'_kappa).
SUBJECTS = (
    (0, 0, 0, 0, 14), (0, 2, 6, 4, 2), (0, 0, 3, 5, 6), (0, 3, 9, 2, 0), (2, 2, 8, 1, 1),
    (7, 7, 0, 0, 0), (3, 2, 6, 3, 0), (2, 5, 3, 2, 2), (6, 5, 2, 1, 0), (0, 2, 2, 3, 7),
)  # fmt: skip


@pytest.mark.parametrize(("level", "value"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_alpha_is_that_of_its_authors_example(level: str, value: float) -> None:
    units = [tuple(float(label) for label in unit if label is not None) for unit in zip(*OBSERVERS, strict=True)]
    assert rater_alpha(level).finish([unit for unit in units if len(unit) > 1]) == pytest.approx(value, abs=5e-4)


def test_kappa_is_that_of_the_worked_example() -> None:
    stats = []
    for counts in SUBJECTS:
        n = sum(counts)
        agreeing = sum(count * (count - 1) for count in counts) / (n * (n - 1))
        stats.append((agreeing, 1.0, *(count / n for count in counts)))
    assert fleiss_kappa.finish(stats) == pytest.approx(0.210, abs=5e-4)
    assert fleiss_kappa.finish([(1.0, 1.0, 1.0, 0.0)]) is None
    assert np.isnan(fleiss_kappa.value(np.array([[3.0, 3.0, 3.0, 0.0]]))[0])
