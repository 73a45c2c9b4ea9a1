"""A comparison as Markdown, LaTeX, CSV and JSON: what is bold, what is marked, and what is never hidden."""

from __future__ import annotations

import csv
import io
import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from esckit.metrics.rows import Comparison
from esckit.records import write_json
from esckit.report.compared import Compared, System, adjustment
from esckit.report.grid import latex_escaped
from esckit.report.source import Run, open_run
from esckit.report.table import render_table
from tests.report.run_folders import evaluate_run, row

SR, AT = "dialogue.rlff7.sr_strict", "dialogue.rlff7.at_strict"


def comparison(system: str, metric: str, p: float, p_holm: float) -> tuple[tuple[str, str], Comparison]:
    entry = Comparison(
        name=metric, other="base", n=130, n_dropped=0, value=0.5, other_value=0.4, difference=0.1, interval=None,
        test="mcnemar", p=p, p_holm=p_holm,
    )  # fmt: skip
    return (system, metric), entry


def make(tmp_path: Path, **values: tuple[float | None, float | None]) -> Compared:
    """Return systems with a success rate and a mean turn, of which the first is the baseline."""
    run = open_run(evaluate_run(tmp_path / "run"))
    systems = [
        System(
            name,
            run,
            name if name == "optimum" else None,
            {
                SR: row(SR, sr, reason=None if sr is not None else "needs 1 scored dialogue"),
                AT: row(AT, at, unit="turns", higher_is_better=False),
            },
        )
        for name, (sr, at) in values.items()
    ]
    tests = dict([comparison("ours", SR, 0.002, 0.004), comparison("ours", AT, 0.03, 0.03)])
    return Compared((SR, AT), tuple(systems), baseline="base", tests=tests)


def bold(markdown: str) -> list[str]:
    return re.findall(r"\*\*(.*?)\*\*", markdown)


def test_best_is_by_unrounded_values_and_never_a_reference(tmp_path: Path) -> None:
    found = make(tmp_path, base=(0.40004, 7.0), ours=(0.40001, 6.0), optimum=(0.9, 1.0))
    shown = render_table(found, "md", digits=1)
    assert bold(shown) == ["40.0", "6.0"]
    assert bold(shown.splitlines()[2]) == ["40.0"]
    equal = render_table(make(tmp_path / "2", base=(0.5, 6.0), ours=(0.4, 6.0)), "md")
    assert bold(equal) == ["50.0 %".removesuffix(" %")]


def test_marks_name_the_baseline_the_family_and_the_adjustment(tmp_path: Path) -> None:
    shown = render_table(make(tmp_path, base=(0.4, 7.0), ours=(0.5, 6.0)), "md")
    assert "50.0**‡ [42.0, 58.0]" in shown
    assert "6.000**† [" in shown
    assert "against base" in shown
    assert "Holm-adjusted over the 2 tests" in shown
    assert adjustment(1, "this table") == "one test, so not adjusted"


def test_numbers_of_a_column_have_the_same_decimals(tmp_path: Path) -> None:
    run = open_run(evaluate_run(tmp_path / "run"))

    def turns(at: float, low: float | None = None) -> System:
        ends = None if low is None else {"low": low, "high": 8.0, "level": 0.95, "method": "jackknife"}
        return System(f"s{at}", run, None, {AT: {**row(AT, at, unit="turns"), "interval": ends}})

    shown = render_table(Compared((AT,), (turns(7.0, 5.8333), turns(8.0), turns(6.8333))), "md")
    assert "| 7.000 [5.833, 8.000]" in shown
    assert "8.000**" in shown
    whole = render_table(Compared((AT,), (turns(7.0), turns(8.0))), "md")
    assert "| 7 |" in whole or "| 7<sup>" in whole


def test_a_table_wider_than_a_page_names_metrics(tmp_path: Path) -> None:
    run = open_run(evaluate_run(tmp_path / "run"))
    names = tuple(f"response.bleu_{n}" for n in range(7))
    found = Compared(names, (System("a", run, None, {name: row(name, 0.4) for name in names}),))
    assert render_table(found, "latex").startswith("% 7 metrics are wider than a page: choose about 6 with --metrics")
    assert "wider" not in render_table(replace(found, metrics=names[:6]), "latex")


def test_unknown_is_a_dash_with_its_reason_and_never_0(tmp_path: Path) -> None:
    found = make(tmp_path, base=(None, 7.0), ours=(0.5, 6.0))
    shown = render_table(found, "md")
    assert "| base | –<sup>1</sup> |" in shown
    assert "1. Needs 1 scored dialogue." in shown
    (first, _) = csv.DictReader(io.StringIO(render_table(found, "csv")))
    assert (first[SR], first[f"{SR}_reason"]) == ("", "needs 1 scored dialogue")
    assert json.loads(render_table(found, "json"))["systems"][0]["metrics"][SR]["value"] is None


def test_latex_is_a_booktabs_table_with_balanced_braces(tmp_path: Path) -> None:
    found = make(tmp_path, **{"base": (0.4, 7.0), "ours": (0.5, 6.0), "100% & _x_ ~ {y} \\n #1 ^2": (0.3, 5.0)})
    shown = render_table(found, "latex", cost=True)
    lines = [line.strip() for line in shown.splitlines()]
    assert lines[0] == r"% \usepackage{booktabs}"
    body = lines[lines.index(r"\toprule") + 1 : lines.index(r"\bottomrule")]
    rows = [line for line in body if line != r"\midrule"]
    columns = re.search(r"\\begin\{tabular\}\{(l(r+))\}", shown)
    assert columns is not None
    assert all(len(re.findall(r"(?<!\\)&", line)) == len(columns[2]) and line.endswith(r"\\") for line in rows)
    plain = re.sub(r"\\[{}]", "", shown)
    assert plain.count("{") == plain.count("}")
    assert re.sub(r"\\\$", "", shown).count("$") % 2 == 0
    assert r"100\% \& \_x\_ \textasciitilde{} \{y\} \textbackslash{}n \#1 \textasciicircum{}2" in shown
    assert shown.isascii()


@pytest.mark.parametrize(("text", "safe"), [("a_b", r"a\_b"), ("p < 0.05", "p $<$ 0.05"), ("two\nlines", "two lines")])
def test_latex_reads_no_character_as_a_command(text: str, safe: str) -> None:
    assert latex_escaped(text) == safe


def test_csv_and_json_hold_every_number_unrounded(tmp_path: Path) -> None:
    found = make(tmp_path, base=(0.4, 7.0), ours=(1 / 3, 6.0))
    rows = list(csv.DictReader(io.StringIO(render_table(found, "csv"))))
    assert float(rows[1][SR]) == 1 / 3
    assert (rows[1][f"{SR}_p"], rows[1][f"{SR}_p_holm"], rows[1][f"{SR}_difference"]) == ("0.002", "0.004", "0.1")
    data = json.loads(render_table(found, "json"))
    assert data["adjustment"] == {"method": "holm", "tests": 2}
    assert data["systems"][1]["metrics"][SR]["against_baseline"]["p_holm"] == 0.004


def spent(run: Run, roles: Any) -> Run:
    write_json(run.path / "manifest.json", {**run.manifest, "spent": {"calls": 9, "roles": roles}})
    return open_run(run.path)


def test_cost_is_the_systems_own_and_unknown_money_is_a_dash(tmp_path: Path) -> None:
    own = {"calls": 5, "prompt_tokens": 100, "completion_tokens": 20, "cost": None, "seconds": 2.5}
    run = spent(open_run(evaluate_run(tmp_path / "run")), {"supporter": own, "judge": {**own, "calls": 99}})
    found = Compared((SR,), (System("a", run, None, {SR: row(SR, 0.4)}),))
    assert "| 5 | 120 | – | 2.500 |" in render_table(found, "md", cost=True)


def test_published_values_stand_apart_with_their_caveats(tmp_path: Path) -> None:
    data = {"dataset": "esconv", "path": "data/esconv", "scheme": "hub", "split": ["test"], "limit": None}
    settings = {"strategy": {"unit": "utterance", "include_openings": True, "exclude": []}}
    run = open_run(evaluate_run(tmp_path / "run", data=data, settings=settings))
    name = "strategy.accuracy"
    found = Compared(
        (name,), (System("a", run, None, {name: row(name, 0.3)}), System("b", run, None, {name: row(name, 0.2)}))
    )
    shown = render_table(found, "md", published=True)
    assert "| EmoDynamiX (published)<sup>1,2</sup> | 33.61 |" in shown
    assert "1. EmoDynamiX (NAACL 2025)" in shown
    assert "2. Never compare across test sets" in shown
    assert bold(shown) == ["30.0"]
    assert "published" not in render_table(found, "md")
    data["limit"] = 5
    other = open_run(evaluate_run(tmp_path / "other", data=data, settings=settings))
    cut = Compared((name,), (System("a", other, None, {name: row(name, 0.3)}),))
    assert "EmoDynamiX (published)" not in render_table(cut, "md", published=True)


def test_runs_under_other_conditions_have_no_best_value(tmp_path: Path) -> None:
    run = open_run(evaluate_run(tmp_path / "run"))
    systems = tuple(System(name, run, None, {SR: row(SR, value)}) for name, value in (("a", 0.3), ("b", 0.4)))
    shown = render_table(Compared((SR,), systems, is_paired=False), "md")
    assert bold(shown) == []
    assert "not compared" in shown
