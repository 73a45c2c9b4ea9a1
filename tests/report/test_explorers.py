import json

import pytest

from esckit.report.explorers import Redactor, episodes_explorer, fitting, futures_explorer, solved_at, trees_explorer
from esckit.report.run import build_report
from esckit.report.source import open_run
from esckit.types import Context, Future, SearchTree
from tests.report.run_folders import evaluate_run, search_run, simulate_run

SECRET = "nobody may read this"
CORPUS = {"path": "data/esconv", "scheme": "hub", "split": ["test"]}


def futures_of(run, other=None):
    return futures_explorer(run, run.records(Context, "contexts.jsonl"), run.records(Future, "futures.jsonl"), other)


def test_a_text_left_out_is_its_number_of_words():
    assert Redactor(True)("two words") == "two words"
    assert Redactor(False)("two words") == 2
    assert Redactor(False)(None) is None
    assert Redactor(False)("") == 0


@pytest.mark.parametrize("kind", ["futures", "trees", "episodes"])
@pytest.mark.parametrize("quotes", [False, True])
def test_texts_of_a_research_corpus_stand_only_where_asked_for(tmp_path, kind, quotes):
    make = {"futures": simulate_run, "trees": search_run, "episodes": evaluate_run}[kind]
    run = open_run(make(tmp_path / "run", text=SECRET, data=CORPUS), quotes=quotes)
    if kind == "futures":
        explorer = futures_of(run)
    elif kind == "trees":
        explorer = trees_explorer(run, run.records(SearchTree, "trees.jsonl"))
    else:
        explorer = episodes_explorer(run, None)
    assert (SECRET in json.dumps(explorer.data)) is quotes
    assert SECRET not in str(explorer.tables)


def test_a_page_holds_what_fits_and_says_how_many_there_are(tmp_path):
    assert fitting([{"a": "x" * 50}] * 10, budget=200) == [{"a": "x" * 50}] * 3
    assert fitting([{"a": "x" * 500}] * 2, budget=200) == [{"a": "x" * 500}]
    run = open_run(search_run(tmp_path / "run"))
    trees = run.records(SearchTree, "trees.jsonl")
    assert trees_explorer(run, trees).data["n"] == 3


def test_a_tree_keeps_its_edges_and_priors(tmp_path):
    run = open_run(search_run(tmp_path / "run", n_trees=1))
    (tree,) = run.records(SearchTree, "trees.jsonl")
    shown = trees_explorer(run, [tree]).data["items"][0]
    for index, (node, found) in enumerate(zip(tree.nodes, shown["nodes"], strict=True)):
        assert found["p"] < index
        assert (found["p"] == -1) is (node.parent is None)
        assert node.parent is None or tree.nodes[found["p"]].id == node.parent
        assert node.strategy is None or shown["strategies"][found["s"]] == node.strategy
        assert (found["n"], found["v"]) == (node.visits, round(node.value, 4))


def test_rewards_and_readings_are_exact_fractions(tmp_path):
    run = open_run(simulate_run(tmp_path / "run"))
    future = run.records(Future, "futures.jsonl")[0]
    shown = futures_of(run).data["items"][0]["sides"][0][0]
    assert shown["r"] == [future.reward_num, future.reward_den]
    reading = future.exchanges[-1].reading
    assert shown["x"][-1]["reads"]["rlff7"]["r"] == [reading.num, reading.den]
    assert shown["x"][0]["reads"] == {}


def test_two_runs_stand_side_by_side_by_id(tmp_path):
    run, other = open_run(simulate_run(tmp_path / "a")), open_run(simulate_run(tmp_path / "b", n=2))
    data = futures_of(run, other).data
    assert data["names"] == ["a", "b"]
    assert [len(item["sides"][1]) for item in data["items"]] == [2, 2, 0, 0]
    one, two = open_run(evaluate_run(tmp_path / "c")), open_run(evaluate_run(tmp_path / "d", seed=8))
    assert all(len(item["sides"]) == 2 for item in episodes_explorer(one, two).data["items"])


def test_solved_means_strictly_above_one_half():
    turns = [{"t": 1, "readings": {"c": {"num": 1, "den": 2}}}, {"t": 2, "readings": {"c": {"num": 21, "den": 40}}}]
    assert solved_at({"turns": turns}, "c") == 2
    assert solved_at({"turns": turns[:1]}, "c") is None
    assert solved_at({"turns": turns}, "other") is None


def test_without_episodes_there_is_no_explorer(tmp_path):
    assert episodes_explorer(open_run(simulate_run(tmp_path / "run")), None) is None


def test_what_critics_made_of_lost_episodes_is_no_conversation(tmp_path):
    folder = evaluate_run(tmp_path / "e")
    (folder / "episodes.jsonl").unlink()
    (folder / "examples/dialogue.jsonl").write_text('{"id": "d", "dialogue_id": "d", "turns": 4, "outcomes": {}}\n')
    assert episodes_explorer(open_run(folder), None) is None
    build_report([open_run(folder)])
