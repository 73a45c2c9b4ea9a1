import json
from importlib import resources
from typing import get_args

import pytest

from esckit.documents import parse_yaml
from esckit.errors import DataError
from esckit.flow.trainer import TERMS
from esckit.records import write_json
from esckit.report.blocks import Bars, Facts, Lines, Note, Table, Tiles
from esckit.report.run import build_report
from esckit.report.source import open_run
from esckit.report.training import training_sections
from esckit.rl import monitor
from esckit.rl.dialogues import End
from tests.report.run_folders import (
    evaluate_run,
    flow_training_run,
    manifest,
    rl_run,
    search_run,
    simulate_run,
    training_run,
)


def blocks_of(folder, kind, **options):
    (part,) = build_report([open_run(folder)], **options).parts
    return [block for section in part.sections for block in section.blocks if isinstance(block, kind)]


def facts_of(folder):
    return dict(pair for block in blocks_of(folder, Facts) for pair in block.pairs)


@pytest.mark.parametrize("bins", [[{"mean_p": {}, "mean_y": 1}], [{"mean_p": 0.1, "mean_y": 1, "n": [1]}]])
def test_a_value_that_cannot_be_shown_is_an_error_of_ours(tmp_path, bins):
    folder = training_run(tmp_path / "t")
    write_json(folder / "calibration.json", {"bins": bins})
    with pytest.raises(DataError, match="t: found a value that cannot be shown"):
        build_report([open_run(folder)])


def test_a_simulation_shows_rewards_by_outcome_and_exchange(tmp_path):
    folder = simulate_run(tmp_path / "s")
    tiles = {tile.label: tile.value for tiles in blocks_of(folder, Tiles) for tile in tiles.tiles}
    assert (tiles["futures"], tiles["failed"]) == ("8", "1")
    (bars,) = blocks_of(folder, Bars)
    assert sum(sum(values) for _, values in bars.series) == 7
    (lines,) = blocks_of(folder, Lines)
    assert lines.series[0].x[0] == 1.0
    assert lines.series[0].n[0] == 7
    by_candidate = next(table for table in blocks_of(folder, Table) if table.title == "Outcome by candidate")
    assert [row[1] for row in by_candidate.rows] == ["4", "4"]


def test_a_search_shows_its_forest(tmp_path):
    folder = search_run(tmp_path / "t")
    tiles = {tile.label: tile.value for tiles in blocks_of(folder, Tiles) for tile in tiles.tiles}
    assert (tiles["trees"], tiles["simulations"]) == ("3", "60")
    visits, prior = next((t.rows, t.columns) for t in blocks_of(folder, Table) if "prior" in t.title)
    assert prior == ("strategy", "visits", "share of visits", "mean prior")
    assert len(visits) == 8
    (by_split,) = (table for table in blocks_of(folder, Table) if table.title == "Return by split")
    assert [row[:2] for row in by_split.rows] == [("train", "3")]


def test_a_training_run_shows_curves_calibration_and_its_card(tmp_path):
    folder = training_run(tmp_path / "r")
    charts = {chart.name: chart for chart in blocks_of(folder, Lines)}
    sections = {section.title: section for section in training_sections(open_run(folder))}
    assert list(charts) == ["curve_loss", "curve_auc", "curve_lr", "curve_log_loss", "calibration"]
    assert [chart.name for chart in sections["Further curves"].blocks] == ["curve_lr", "curve_log_loss"]
    assert sections["Further curves"].folded
    (tiles,) = (block for block in sections["Training"].blocks if isinstance(block, Tiles))
    assert [tile.label for tile in tiles.tiles] == ["Loss · dev", "AUC · dev"][-len(tiles.tiles) :]
    assert [series.name for series in charts["curve_auc"].series] == ["dev"]
    assert charts["curve_auc"].series[0].x == (0, 15, 30, 45)
    assert charts["calibration"].diagonal
    assert len(charts["calibration"].series[0].low) == 10
    assert any("does not beat much" in note.text for note in blocks_of(folder, Note))
    beside = next(table for table in blocks_of(folder, Table) if "dev" in table.columns)
    assert beside.rows == (("AUC", "0.725", "0.500"), ("Accuracy", "0.660", "0.600"))


def test_a_ranker_is_shown_by_the_order_of_its_candidates(tmp_path):
    folder = training_run(tmp_path / "r")
    written = json.loads((folder / "manifest.json").read_text())
    written["recipe"]["objective"] = {"kind": "pairwise"}
    write_json(folder / "manifest.json", written)
    rows = [{"step": step, "dev": {"auc": 0.6, "pair_accuracy": 0.5 + step / 10}} for step in (0, 1)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    tiles = next(block for block in blocks_of(folder, Tiles))
    assert [tile.label for tile in tiles.tiles] == ["Right order of two candidates · dev", "AUC · dev"]
    # What it says of one candidate is no probability.
    assert "calibration" not in points_of(folder)


def test_quantities_of_trainings_have_plain_names_that_stand_for_them(tmp_path):
    rows = [
        {"step": step, "rl/episode/potential": step, "valid/macro_f1@0.5": step, "rl/mine": step} for step in (1, 2)
    ]
    folder = rl_run(tmp_path / "l")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (last,) = (table for table in blocks_of(folder, Table) if table.title == "Last values")
    assert [(str(row[0]), row[0].stands_for) for row in last.rows] == [
        ("Critic at the end of a dialogue · rl", "rl/episode/potential"),
        ("mine · rl", "rl/mine"),
        ("Macro-F1, τ = 0.5 · valid", "valid/macro_f1@0.5"),
    ]


def test_every_quantity_of_train_rl_and_train_flow_has_a_name():
    names = parse_yaml((resources.files("esckit.report") / "training_names.yaml").read_text(), "training_names.yaml")
    watched = {name.partition("/")[2] for name in (*monitor._NAMES.values(), "rl/malformed_share")}
    watched |= {f"episode/ended/{end}" for end in get_args(End)} | {f"episode/{name}" for name in ("turns", "tokens")}
    assert watched | {*TERMS} <= names.keys()


def points_of(folder):
    return {
        chart.name: {series.name: list(zip(series.x, series.y, strict=True)) for series in chart.series}
        for chart in blocks_of(folder, Lines)
    }


def test_curves_of_train_flow_follow_the_order_of_the_log(tmp_path):
    folder = flow_training_run(tmp_path / "f")
    assert {chart.x_label for chart in blocks_of(folder, Lines)} == {"update"}
    assert points_of(folder)["curve_loss"] == {
        "train": [(1, 29), (2, 32), (3, 27), (4, 34), (5, 25), (6, 36)],
        "valid": [(3, 25), (6, 22)],
    }


def test_points_of_one_x_stay_in_the_order_of_the_log(tmp_path):
    folder = flow_training_run(tmp_path / "f")
    rows = [{"epoch": 1, "train/loss": 3.0}, {"epoch": 1, "train/loss": 1.0}, {"epoch": 1, "train/loss": 2.0}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert points_of(folder)["curve_loss"]["train"] == [(1, 3), (1, 1), (1, 2)]


def test_what_never_changes_has_no_chart_and_is_named(tmp_path):
    folder = flow_training_run(tmp_path / "f")
    assert list(points_of(folder)) == ["curve_loss", "curve_lr"]
    (still,) = (note.text for note in blocks_of(folder, Note) if note.text.startswith("Never changed"))
    assert still == ("Never changed, so without a chart: valid/best_action 0.250, train/resp 0, tokens/padded 4,096.")


def test_quantities_of_train_rl_keep_the_name_of_their_group(tmp_path):
    assert points_of(rl_run(tmp_path / "l")) == {
        "curve_reward/future": {"dev": [(0, 0.2), (2, 0.4)], "rl": [(1, 0.3), (2, 0.6)]},
        "curve_completion_tokens/mean": {"rl": [(1, 15), (2, 14)]},
    }


@pytest.mark.parametrize(
    ("readout", "shown"), [("sampled", "readout sampled, samples 10"), ("expected", "readout expected")]
)
def test_the_critic_of_a_training_is_shown_where_it_plays(tmp_path, readout, shown):
    folder = rl_run(tmp_path / "l")
    written = json.loads((folder / "manifest.json").read_text())
    critic = {"readout": readout, "samples": 10}
    written["recipe"] |= {"algorithm": "grpo", "reward": {"kind": "online"}, "online": {"critic": critic}}
    write_json(folder / "manifest.json", written)
    assert facts_of(folder)["critic"] == shown


def test_a_training_names_its_data_backbone_and_objective(tmp_path):
    facts = facts_of(flow_training_run(tmp_path / "f"))
    assert facts["data"] == "runs/search-smoke · split train, valid"
    assert facts["model"] == "backbone tiny-random, trainable lora"
    assert facts["objective"] == "subtb"
    gold = {"dataset": "esconv", "path": "data/esconv", "scheme": "hub", "split": "train", "valid_split": "valid"}
    data = {"trees": [], "split": "train", "valid_split": "valid", "gold": gold}
    facts = facts_of(flow_training_run(tmp_path / "g", data=data))
    assert facts["data"] == "data/esconv · scheme hub · split train, valid"


@pytest.mark.parametrize("command", ["simulate", "search", "evaluate", "train-flow"])
def test_a_run_that_has_done_nothing_yet_has_a_report(tmp_path, command):
    write_json(tmp_path / "manifest.json", manifest(command) | {"status": "running"})
    warnings = [note for note in blocks_of(tmp_path, Note) if note.kind == "warning"]
    assert len(warnings) == 2
    assert "not finished" in warnings[0].text


def test_a_bare_manifest_is_enough(tmp_path):
    bare = {"schema": "esckit.manifest/1", "command": "train-rl", "recipe": {}, "recipe_digest": "0"}
    write_json(tmp_path / "manifest.json", bare)
    assert facts_of(tmp_path) == {"recipe digest": "0"}


def test_roles_are_shown_with_the_model_names_of_the_manifest(tmp_path):
    folder = simulate_run(
        tmp_path / "s",
        models={"seeker": {"scripted": "seeker", "sampling": {"temperature": 0.7, "max_tokens": 64}}, "critic": None},
    )
    facts = json.loads((folder / "manifest.json").read_text())
    facts |= {"models": {'{"scripted":"seeker"}': {"name": "scripted/seeker-1"}}, "prompts": {"seeker": "seeker/ab"}}
    write_json(folder / "manifest.json", facts | {"notes": ["the endpoint takes no seed"]})
    table = next(table for table in blocks_of(folder, Table) if table.title == "Models")
    assert table.rows == (("seeker", "scripted/seeker-1", "seeker/ab", "T 0.7, max tokens 64"),)
    texts = [note.text for note in blocks_of(folder, Note)]
    assert "the endpoint takes no seed" in texts
    assert any("no meaning as a score" in text for text in texts)


def test_leaving_texts_out_is_said(tmp_path):
    folder = simulate_run(tmp_path / "s", data={"path": "data/esconv"})
    assert any("--quotes" in note.text for note in blocks_of(folder, Note))
    assert not any("--quotes" in note.text for note in blocks_of(simulate_run(tmp_path / "q"), Note))


def test_two_runs_stand_side_by_side(tmp_path):
    runs = [open_run(simulate_run(tmp_path / name, simulation={"horizon": n})) for n, name in enumerate("ab")]
    for run, share in zip(runs, (0.9, 0.8), strict=True):
        write_json(run.path / "summary.json", {"goal_share": share, "reward": {"mean": 0.4}})
    part = build_report(runs[:1], against=runs[1]).parts[-1]
    differs, numbers = (section.blocks[0] for section in part.sections)
    assert differs.rows == (("simulation.horizon", "0", "1"),)
    assert numbers.rows[0] == ("goal share", "0.900", "0.800", "+0.100")


def test_two_evaluations_show_n_and_interval_without_a_test(tmp_path):
    runs = [open_run(evaluate_run(tmp_path / "a", lift=0.1)), open_run(evaluate_run(tmp_path / "b"))]
    section = build_report(runs[:1], against=runs[1]).parts[-1].sections[1]
    strategy = next(block for block in section.blocks if isinstance(block, Table) and block.title == "strategy")
    assert strategy.columns == ("metric", "a", "interval", "n", "b", "interval", "n", "difference")
    assert strategy.rows[0] == (
        "accuracy",
        "51.0 %",
        "[43.0, 59.0]",
        "300",
        "41.0 %",
        "[33.0, 49.0]",
        "300",
        "+10.0 pp",
    )
    assert "without a test" in section.blocks[-1].text


def test_seeds_of_one_recipe_are_averaged_other_recipes_are_not(tmp_path):
    runs = [open_run(evaluate_run(tmp_path / str(s), seed=s, lift=s / 100)) for s in (1, 2, 3)]
    last = build_report(runs).parts[-1]
    assert last.title == "Across seeds"
    accuracy = last.sections[0].blocks[0].rows[0]
    assert accuracy == ("strategy.accuracy", "43.0 %", "1.0 %", "3")
    other = open_run(evaluate_run(tmp_path / "other", seed=4, taxonomy="aflow"))
    assert [part.title for part in build_report([*runs, other]).parts] == ["1", "2", "3", "other"]


def test_models_trained_under_several_seeds_are_averaged_too(tmp_path):
    def evaluated(name: str, **training: object):
        trained = tmp_path / f"trained-{name}"
        trained.mkdir()
        facts = manifest("train-flow")
        write_json(trained / "manifest.json", facts | {"recipe": {**facts["recipe"], **training}})
        models = {"strategist": {"checkpoint": str(trained)}}
        return open_run(evaluate_run(tmp_path / name, models=models))

    runs = [evaluated(f"s{seed}", seed=seed) for seed in (1, 2)]
    assert build_report(runs).parts[-1].title == "Across seeds"
    same_seed = evaluated("again", seed=1)
    other_recipe = evaluated("other", seed=3, optim={"lr": 0.5})
    for more in (same_seed, other_recipe):
        assert build_report([*runs, more]).parts[-1].title != "Across seeds"


def test_fields_that_change_no_result_do_not_part_seeds(tmp_path):
    def evaluated(seed: int, **operational: object):
        trained = tmp_path / f"trained-{seed}"
        trained.mkdir()
        facts = manifest("train-flow")
        recipe = {**facts["recipe"], "seed": seed, "executor": {"threads": seed}, "checkpoints": {"every": seed}}
        write_json(trained / "manifest.json", facts | {"recipe": recipe})
        models = {"strategist": {"checkpoint": str(trained)}}
        return open_run(evaluate_run(tmp_path / str(seed), models=models, **operational))

    runs = [
        evaluated(1, concurrency={"cases": 4}, statistics={"resamples": 100}, budget={"max_calls": 9}),
        evaluated(2, concurrency={"cases": 8}, compare_to="runs/base", gates={"strategy.accuracy": 0.1}),
    ]
    assert build_report(runs).parts[-1].title == "Across seeds"


def test_a_run_of_another_command_shows_its_summary(tmp_path):
    write_json(tmp_path / "manifest.json", manifest("predict"))
    write_json(tmp_path / "summary.json", {"schema": "x", "cases": 12, "warnings": ["three are blank"]})
    assert facts_of(tmp_path)["cases"] == "12"
    assert "three are blank" in [note.text for note in blocks_of(tmp_path, Note)]
