import json

import pytest

from esckit.errors import DataError
from esckit.records import write_json
from esckit.report.about import failures
from esckit.report.source import open_run
from esckit.report.training import training_sections
from tests.report.run_folders import manifest, search_run, simulate_run, training_run


def test_reports_hold_texts_of_the_sample_or_when_asked_to(tmp_path):
    sample = simulate_run(tmp_path / "a")
    corpus = simulate_run(tmp_path / "b", data={"path": "data/esconv"})
    allowed = simulate_run(tmp_path / "c", data={"path": "data/esconv"}, report={"quotes": True})
    assert open_run(sample).quotes
    assert not open_run(corpus).quotes
    assert open_run(corpus, quotes=True).quotes
    assert open_run(allowed).quotes


def test_a_run_without_data_quotes_nothing(tmp_path):
    write_json(tmp_path / "manifest.json", manifest("train-rl", data=None))
    assert not open_run(tmp_path).quotes


def test_what_is_not_there_is_empty_and_a_cut_line_is_left_out(tmp_path):
    run = open_run(simulate_run(tmp_path / "run"))
    assert run.json("metrics.json") is None
    assert run.lines("episodes.jsonl") == []
    (run.path / "metrics.jsonl").write_text('{"a": 1}\n\n{"b": ')
    assert run.lines("metrics.jsonl") == [{"a": 1}]


@pytest.mark.parametrize("content", ["{\n", "[1]\n", '"x"\n', "\xff\n"])
def test_a_broken_file_is_named(tmp_path, content):
    run = open_run(simulate_run(tmp_path / "run"))
    (run.path / "episodes.jsonl").write_text(content, encoding="latin-1")
    with pytest.raises(DataError, match=r"episodes\.jsonl.*line 1"):
        run.lines("episodes.jsonl")
    (run.path / "metrics.json").write_text("{", encoding="latin-1")
    with pytest.raises(DataError, match=r"metrics\.json"):
        run.json("metrics.json")


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no manifest\.json"):
        open_run(tmp_path)


def test_failures_are_counted_in_either_form(tmp_path):
    simulated, searched = open_run(simulate_run(tmp_path / "a")), open_run(search_run(tmp_path / "b"))
    assert failures(simulated)[0].blocks[0].rows == (("seeker", "blank", "1"),)
    assert failures(searched)[0].blocks[0].rows == (("critic", "unparsed", "1"),)
    (simulated.path / "failures.jsonl").write_text(json.dumps({"kind": "backend"}) + "\n")
    assert failures(simulated)[0].blocks[0].rows == (("?", "backend", "1"),)


def test_a_card_behind_a_link_is_not_shown(tmp_path):
    run = training_run(tmp_path / "run")
    card = run / "reward_model/README.md"
    card.rename(tmp_path / "elsewhere")
    card.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match="a symbolic link"):
        training_sections(open_run(run))
