import json

import pytest

from esckit.records import write_json
from esckit.report.blocks import Heat, Lines, Note, Points, Table
from esckit.report.compared import BASELINES_DRAW
from esckit.report.evaluation import SAFETY_NOTE, evaluation_sections
from esckit.report.run import build_report, write_report
from esckit.report.source import open_run
from tests.report.run_folders import evaluate_run, row


def sections_of(folder):
    return {section.title: section.blocks for section in evaluation_sections(open_run(folder))}


def tables(blocks):
    return [block for block in blocks if isinstance(block, Table)]


def test_the_page_goes_from_safety_to_gates_to_suites_and_so_on(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    assert list(sections_of(folder)) == [
        "Safety", "Gates", "Strategy", "Response", "Dialogue", "Compared with evaluate-base", "Published numbers",
        "Dialogues",
    ]  # fmt: skip
    titles = [section.title for section in build_report([open_run(folder)]).parts[0].sections]
    assert titles[:2] == ["In short", "What was run"]
    assert titles[-3:] == ["Failures", "Cost", "Provenance"]


def test_every_value_shows_n_coverage_and_interval_or_reason(tmp_path):
    sections = sections_of(evaluate_run(tmp_path / "e"))
    for suite in ("Safety", "Strategy", "Response", "Dialogue"):
        table = next(table for table in tables(sections[suite]) if table.columns[0] == "metric")
        assert table.columns == ("metric", "value", "95 % interval", "n", "unscored", "coverage", "remarks")
        for _, value, interval, n, _, coverage, remarks in table.rows:
            assert n != "–"
            assert coverage != "–"
            assert interval != "–" or remarks
            assert value != "–" or remarks
    strict = next(row for row in tables(sections["Dialogue"])[0].rows if row[0].stands_for.endswith("sr_strict"))
    assert strict == ("Success rate, strict · rlff7 ↑", "41.5 %", "[33.5, 49.5]", "130", "0", "100.0 %", "success 54")


def test_sums_stand_beside_the_value_where_n_does_not_say_them(tmp_path):
    rows = [
        row("response.distinct_2", 61.5, unit="0-100", counts={"ngrams": 2345}),
        row("response.bleu_4", 9.0, unit="0-100", counts={f"matches_{n}": 7 for n in range(1, 5)}),
        row("strategy.accuracy", 0.5, n=130, counts={"correct": 65, "cases": 130}),
        row("strategy.accuracy", 1.0, n=130, counts={"correct": 130, "cases": 130}),
    ]
    sections = sections_of(changed(evaluate_run(tmp_path / "e"), rows))
    remarks = [cells[-1] for suite in ("Response", "Strategy") for cells in tables(sections[suite])[0].rows]
    assert remarks == ["ngrams 2,345", "", "correct 65", "correct 130"]


def test_a_subgroup_shows_its_basis_or_why_it_has_no_value(tmp_path):
    few = {"interval": None, "reason": "fewer than 5 dialogues", "n": 3, "flags": ["small_sample"]}
    rows = [
        row("dialogue.rlff7.sr_strict", 0.5, flags=["cross_family"]),
        row("dialogue.rlff7.sr_by_emotion", 0.5, **few, group={"emotion": "fear"}),
        row("dialogue.rlff7.sr_by_emotion", None, n=0, n_unscored=2, reason="needs 1 scored dialogue",
            flags=["cross_family", "low_coverage"], group={"emotion": "anger"}),
        row("dialogue.rlff7.sr_by_emotion", 0.25, **few, group={"emotion": "shame"}),
        row("dialogue.rlff7.sr_by_emotion", 0.4, n=30, group={"emotion": "grief"}),
    ]  # fmt: skip
    table = tables(sections_of(changed(evaluate_run(tmp_path / "e"), rows))["Dialogue"])[1]
    assert [cells[1] for cells in table.rows] == [
        "50.0 % (n 3)¹", "– (n 0 of 2)² ³", "25.0 % (n 3)¹", "40.0 % [32.0, 48.0] (n 30)",
    ]  # fmt: skip
    assert table.note == "¹ fewer than 5 dialogues. ² low_coverage. ³ needs 1 scored dialogue."


def test_what_a_curve_cannot_show_stands_below_it(tmp_path):
    name = "dialogue.rlff7.critic_by_turn"
    rows = [
        row(name, 0.2, unit="none", n=10, group={"turn": 1}),
        row(name, 0.2, unit="none", n=8, n_unscored=2, coverage=0.8, unscored={"blank": 2}, group={"turn": 2}),
        *(row(name, None, n=0, reason="needs 1 reading", group={"turn": t}) for t in (3, 4)),
    ]
    curve, note = sections_of(changed(evaluate_run(tmp_path / "e"), rows))["Dialogue"][:2]
    assert curve.series[0].n == (10, 8)
    assert note.text == (
        "Critic by turn, of dialogues still running · rlff7: no value at turn 3, 4 (needs 1 reading). "
        "Critic by turn, of dialogues still running · rlff7: coverage 80.0 % at turn 2 (unscored: blank 2)."
    )


def test_pairs_depend_on_the_strategy_that_was_told(tmp_path):
    settings = {"pairwise": {"opponent": "runs/other"}, "response": {"strategy": "predicted"}}
    folder = changed(evaluate_run(tmp_path / "e"), [row("pairwise.overall.win", 0.5)], settings=settings)
    (table,) = tables(sections_of(folder)["Pairwise"])
    assert table.title == "Pairwise (against runs/other, strategy given: predicted)"


def test_subgroups_carry_interval_and_n_too(tmp_path):
    found = tables(sections_of(evaluate_run(tmp_path / "e"))["Strategy"])
    by_class = next(table for table in found if table.title == "By class")
    assert by_class.columns == ("class", "Precision", "Recall", "F1")
    assert (by_class.rows[0][1], by_class.note) == ("30.0 % [22.0, 38.0]", "n 60 everywhere.")


def test_turns_are_curves_with_their_intervals(tmp_path):
    lines = [block for block in sections_of(evaluate_run(tmp_path / "e"))["Dialogue"] if isinstance(block, Lines)]
    rate = next(chart for chart in lines if "sr" in chart.name)
    assert [series.name for series in rate.series] == ["strict", "lenient"]
    assert rate.title == "Success rate by turn · rlff7"
    assert all(len(series.low) == len(series.x) == 8 for series in rate.series)
    assert rate.series[0].n == (130,) * 8


def test_the_confusion_matrix_has_predictions_in_rows(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    cases = [("a", "a"), ("a", "b"), ("b", "b"), (None, "b")]
    lines = [json.dumps({"predicted": p, "gold": g}) + "\n" for p, g in cases]
    (folder / "examples" / "strategy.jsonl").write_text("".join(lines))
    heat = next(block for block in sections_of(folder)["Strategy"] if isinstance(block, Heat))
    assert (heat.labels, heat.counts) == (("a", "b"), ((1, 1), (0, 1)))


def test_comparisons_show_p_and_holm_and_what_was_dropped(tmp_path):
    (table,) = tables(sections_of(evaluate_run(tmp_path / "e"))["Compared with evaluate-base"])
    assert table.rows[0] == ("Success rate, strict · rlff7", "41.5 %", "30.0 %", "+11.5 pp", "[1.0, 21.0]",
                             "128 (2 dropped)", "mcnemar", "0.036", "0.073", "")  # fmt: skip


def test_no_published_number_without_its_caveats(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    blocks = sections_of(folder)["Published numbers"]
    assert [type(block) for block in blocks] == [Table, Points]
    assert blocks[1].sentences
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", metrics | {"references": []})
    assert "Published numbers" not in sections_of(folder)


AFLOW_TEST = {
    "taxonomy": "aflow",
    "data": {"dataset": "esconv", "path": "data/esconv", "scheme": "hub", "split": ["test"], "limit": None},
    "settings": {"response": {"per_dialogue": None}},
}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"data": {**AFLOW_TEST["data"], "limit": 4}}, False),
        ({"data": {**AFLOW_TEST["data"], "split": ["valid"]}}, False),
        ({"data": {**AFLOW_TEST["data"], "path": "sample:esconv"}}, False),
        ({"settings": {"response": {"per_dialogue": 1}}}, False),
        ({"taxonomy": "esconv"}, False),
    ],
)
def test_replies_join_published_ones_only_on_the_whole_test(tmp_path, change, shown):
    folder = evaluate_run(tmp_path / "e", **AFLOW_TEST | change)
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", metrics | {"references": ["aflow.table1.esconv", "aflow.table1.extes"]})
    table, other = tables(sections_of(folder)["Published numbers"])
    assert other.columns[:2] == ("as published", "GPT-4o")
    if not shown:
        assert table.columns[:2] == ("as published", "GPT-4o")
        return
    assert table.columns[:5] == ("as published", "this run", "interval", "n", "GPT-4o")
    ours = next(row for row in table.rows if row[0] == "B-2")
    assert ours[:5] == ("B-2", "18.25", "[16.50, 20.00]", "280", "16.2")
    assert next(row for row in table.rows if row[0] == "Acc")[1] == "–"


GOLD_HUB = {
    "taxonomy": "esconv",
    "data": {"dataset": "esconv", "scheme": "hub", "split": ["test"], "limit": None},
    "settings": {"strategy": {"unit": "utterance", "include_openings": True, "exclude": []}},
}


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({}, True),
        ({"settings": {"strategy": {"unit": "turn", "include_openings": False, "exclude": []}}}, False),
        ({"taxonomy": "aflow"}, False),
        ({"data": {**GOLD_HUB["data"], "scheme": "ppdpp"}}, False),
        ({"data": {**GOLD_HUB["data"], "limit": 20}}, False),
    ],
)
def test_a_value_joins_a_published_table_only_of_the_same_test(tmp_path, change, shown):
    folder = changed(evaluate_run(tmp_path / "e"), [row("strategy.macro_f1", 0.25)], **GOLD_HUB | change)
    metrics = json.loads((folder / "metrics.json").read_text())
    write_json(folder / "metrics.json", metrics | {"references": ["gold.hub", "gold.first_release"]})
    hub, first_release = tables(sections_of(folder)["Published numbers"])
    assert ("this run" in hub.columns) is shown
    assert "this run" not in first_release.columns


def test_harm_is_listed_in_full_and_first(tmp_path):
    blocks = sections_of(evaluate_run(tmp_path / "e", text="Take more."))["Safety"]
    assert blocks[0] == Note(SAFETY_NOTE)
    assert blocks[1].kind == "bad"
    assert blocks[2].rows == (("crisis-03", "veiled", "Take more."),)


def test_an_unfinished_evaluation_says_so(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    (folder / "metrics.json").unlink()
    (section,) = evaluation_sections(open_run(folder))
    assert "not finished" in section.blocks[0].text


def test_a_metrics_file_with_nothing_but_one_row_is_enough(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    for name in ("episodes.jsonl", "failures.jsonl", "examples/strategy.jsonl", "examples/safety.jsonl"):
        (folder / name).unlink()
    write_json(folder / "metrics.json", {"metrics": [row("reward.auc", 0.7)]})
    assert list(sections_of(folder)) == ["Reward"]


def changed(folder, rows, **recipe):
    metrics, manifest = (json.loads((folder / name).read_text()) for name in ("metrics.json", "manifest.json"))
    write_json(folder / "metrics.json", metrics | {"metrics": rows})
    write_json(folder / "manifest.json", manifest | {"recipe": manifest["recipe"] | recipe})
    return folder


def test_what_values_depend_on_stands_in_the_title(tmp_path):
    settings = {"strategy": {"unit": "turn", "exclude": ["Others"]}, "response": {"strategy": "gold"}}
    rows = [row("strategy.accuracy", 0.5), row("response.ppl", 9.0, unit="none")]
    folder = changed(evaluate_run(tmp_path / "e"), rows, settings=settings, models={"scorer": {"backbone": "gpt2"}})
    sections = sections_of(folder)
    assert tables(sections["Strategy"])[0].title == "Strategy (gold labels by turn, without Others)"
    assert tables(sections["Response"])[0].title == "Response (strategy given: gold, ppl under gpt2)"
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"scorer": "gpt2@607a30d7"})
    assert (
        tables(sections_of(folder)["Response"])[0].title == "Response (strategy given: gold, ppl under gpt2@607a30d7)"
    )


def test_a_flag_of_every_row_is_said_once(tmp_path):
    rows = [
        row("strategy.accuracy", 0.5) | {"flags": ["small_sample"]},
        row("strategy.bias_b", 0.5, unit="none") | {"flags": ["small_sample", "smoothed"]},
    ]
    blocks = sections_of(changed(evaluate_run(tmp_path / "e"), rows))["Strategy"]
    assert [remarks for *_, remarks in tables(blocks)[0].rows] == ["", "smoothed"]
    said = [block.text for block in blocks if isinstance(block, Note)]
    assert said[0] == "small_sample (every row): fewer than 30 dialogues."
    assert said[1].startswith("smoothed (where it stands)")


def test_a_flag_is_explained_only_where_it_is_shown(tmp_path):
    few = {"flags": ["small_sample", "smoothed"], "n": 12}
    rows = [row("strategy.accuracy", 0.5), row("strategy.f1", 0.5) | few | {"group": {"class": "Other"}}]
    rows += [row("strategy.f1_at", 0.5) | {"flags": ["low_coverage"], "group": {"turn": 1}}]
    blocks = sections_of(changed(evaluate_run(tmp_path / "e"), rows))["Strategy"]
    said = [block.text.partition(" ")[0] for block in blocks if isinstance(block, Note) and block.kind == "warning"]
    assert said == ["smoothed"]


def test_baselines_are_said_to_have_draws_of_their_own(tmp_path):
    alone = row("practice.turns", 5.2, unit="turns", counts={"turns": 281, "cases": 54}, n=54)
    folder = evaluate_run(tmp_path / "e")
    blocks = sections_of(changed(folder, [alone, alone | {"group": {"policy": "rule"}}]))["Practice"]
    assert tables(blocks)[0].rows[0][-1] == "turns 281"  # the sum says the unit
    assert [block.text for block in blocks if isinstance(block, Note)] == [BASELINES_DRAW]
    assert BASELINES_DRAW not in str(sections_of(changed(folder, [alone]))["Practice"])


def test_every_critic_has_a_table_and_a_reward_model_a_curve(tmp_path):
    by_emotion = [row(f"dialogue.{critic}.sr", 0.5) | {"group": {"emotion": "fear"}} for critic in ("rlff7", "ppdpp4")]
    bins = [row(f"reward.bin_{name}", value) | {"group": {"bin": 3}} for name, value in (("p", 0.35), ("y", 0.5))]
    sections = sections_of(changed(evaluate_run(tmp_path / "e"), [*by_emotion, *bins]))
    assert [(table.title, table.columns) for table in tables(sections["Dialogue"])] == [
        ("By emotion · rlff7", ("emotion", "sr")), ("By emotion · ppdpp4", ("emotion", "sr")),
    ]  # fmt: skip
    (curve,) = (block for block in sections["Reward"] if isinstance(block, Lines))
    assert (curve.series[0].x, curve.series[0].y, curve.diagonal) == ((0.35,), (0.5,), True)


def test_only_who_took_part_stands_among_the_models(tmp_path):
    models = {"strategist": {"scripted": "strategist"}, "judge": {"backbone": "gpt2"}}
    folder = evaluate_run(tmp_path / "e", models=models, predictions="runs/p")
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", {**manifest, "roles": ["judge"]})
    markdown = write_report([folder]).markdown.read_text()
    assert "- **predictions**: runs/p" in markdown
    assert "| judge | backbone gpt2 |" in markdown
    assert "| strategist |" not in markdown
    assert "Scripted models took part" not in markdown
