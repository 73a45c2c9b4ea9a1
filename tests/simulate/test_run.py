"""`simulate` as a pipeline: the same bytes whatever the schedule or a crash, and failures that stay failures."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from esckit.errors import BudgetError, ConfigError, FailureRateError
from esckit.models.in_memory import build
from esckit.records import read_records
from esckit.registry import shipped_dir
from esckit.simulate.run import SimulateRecipe, plan, run
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Context, Future, Outcome

DATA_FILES = ("contexts.jsonl", "futures.jsonl", "failures.jsonl", "summary.json")


def recipe(**sections: Any) -> SimulateRecipe:
    models = {role: {"scripted": f"tests.evaluate.talk:{role}"} for role in ("supporter", "seeker", "critic")}
    base: dict[str, Any] = {
        "command": "simulate",
        "seed": 7,
        "data": {"dataset": "esconv", "path": "sample:esconv", "scheme": "files", "split": "valid", "merge": True},
        "contexts": {"per_dialogue": 2},
        "models": models,
        "simulation": {"candidates": 2, "horizon": 3},
        "max_failure_rate": 0.5,
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return SimulateRecipe.model_validate(base)


def data_bytes(out: Path) -> dict[str, bytes]:
    return {name: (out / name).read_bytes() for name in DATA_FILES}


def test_any_concurrency_writes_the_same_bytes(tmp_path: Path) -> None:
    for n in (1, 64):
        run(recipe(concurrency={"futures": n}), out=tmp_path / str(n))
    assert data_bytes(tmp_path / "1") == data_bytes(tmp_path / "64")


def test_every_future_is_there_once_and_in_order(tmp_path: Path) -> None:
    result = run(recipe(), out=tmp_path / "run")
    contexts = [context.id for context in read_records(Context, tmp_path / "run/contexts.jsonl")]
    futures = [future.id for future in read_records(Future, tmp_path / "run/futures.jsonl")]
    assert futures == [f"{context}:c{candidate}" for context in contexts for candidate in range(2)]
    assert result.summary["futures"] == len(futures)


@pytest.mark.parametrize("cut", [0, 1, 700, 5000])
def test_a_run_cut_anywhere_and_resumed_equals_an_unbroken_one(tmp_path: Path, cut: int) -> None:
    run(recipe(), out=tmp_path / "whole")
    run(recipe(), out=tmp_path / "cut")
    broken = tmp_path / "cut/futures.jsonl"
    broken.write_bytes(broken.read_bytes()[:cut])
    for name in ("failures.jsonl", "summary.json"):
        (tmp_path / "cut" / name).unlink()
    run(recipe(), out=tmp_path / "cut")
    assert data_bytes(tmp_path / "whole") == data_bytes(tmp_path / "cut")


def test_a_finished_run_is_left_as_it_is(tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    before = data_bytes(tmp_path / "run")
    timings = (tmp_path / "run/metrics.jsonl").read_bytes()
    run(recipe(), out=tmp_path / "run")
    assert data_bytes(tmp_path / "run") == before
    assert (tmp_path / "run/metrics.jsonl").read_bytes() == timings


def test_another_recipe_is_refused_with_the_field_that_differs(tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    run(recipe(concurrency={"futures": 3}), out=tmp_path / "run")
    with pytest.raises(ConfigError, match=r"simulation\.horizon"):
        run(recipe(simulation={"candidates": 2, "horizon": 4}), out=tmp_path / "run")


def test_a_nonsense_critic_yields_failures_and_no_number(tmp_path: Path) -> None:
    spoilt = recipe(models={"critic": {"scripted": "tests.evaluate.talk:nonsense"}})
    with pytest.raises(FailureRateError):
        run(spoilt, out=tmp_path / "run")
    futures = list(read_records(Future, tmp_path / "run/futures.jsonl"))
    assert futures
    assert all(future.outcome is Outcome.FAILED and future.reward is None for future in futures)
    failure = json.loads((tmp_path / "run/failures.jsonl").read_text().splitlines()[0])
    assert (failure["stage"], failure["kind"], failure["attempts"]) == ("critic", "unparsed", 2)
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["reward"] is None
    assert summary["positive_share"] == {"goal": None, "threshold 0.5": None, "quantile 0.7": None}


def test_the_compatible_zero_is_counted(tmp_path: Path) -> None:
    spoilt = recipe(models={"critic": {"scripted": "tests.evaluate.talk:nonsense"}}, critic={"ppdpp_compat": True})
    summary = run(spoilt, out=tmp_path / "run").summary
    assert summary["compat_zeros"] == summary["futures"] * 3
    assert summary["outcomes"]["FAILED"] == 0


def test_siblings_outlive_a_failure_and_failures_can_be_retried(tmp_path: Path) -> None:
    spoilt = recipe(models={"critic": {"scripted": "tests.evaluate.talk:sometimes_nonsense"}}, max_failure_rate=0.9)
    summary = run(spoilt, out=tmp_path / "run").summary
    assert 0 < summary["outcomes"]["FAILED"] < summary["futures"]
    before = data_bytes(tmp_path / "run")
    again = spoilt.model_copy(update={"simulation": spoilt.simulation.model_copy(update={"retry_failed": True})})
    run(again, out=tmp_path / "run")
    assert data_bytes(tmp_path / "run") == before


def test_a_budget_stops_the_run_and_a_larger_one_resumes_it(tmp_path: Path) -> None:
    with pytest.raises(BudgetError):
        run(recipe(budget={"max_calls": 200}, concurrency={"futures": 2}), out=tmp_path / "run")
    done = len((tmp_path / "run/futures.jsonl").read_bytes().splitlines())
    assert 0 < done < 16
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"
    run(recipe(budget={"max_calls": 100_000}), out=tmp_path / "run")
    run(recipe(), out=tmp_path / "whole")
    assert data_bytes(tmp_path / "run") == data_bytes(tmp_path / "whole")


def test_the_plan_bounds_the_calls() -> None:
    found = plan(recipe()).facts()
    n = found["futures"]
    assert found["calls_at_most"] == {"supporter": 4 * n, "seeker": 4 * n, "critic": 30 * n}
    scored = plan(recipe(critic={"readout": "expected"}, simulation={"candidates": 2, "horizon": 3}))
    assert scored.calls_at_most["critic"] == 3 * n


def test_the_situation_can_open_every_context(tmp_path: Path) -> None:
    run(recipe(contexts={"per_dialogue": 1, "situation_first": True}), out=tmp_path / "run")
    for context in read_records(Context, tmp_path / "run/contexts.jsonl"):
        assert context.turns[0].text == context.scenario.situation


def test_the_manifest_says_what_made_the_run(tmp_path: Path) -> None:
    run(recipe(), out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["status"] == "complete"
    assert manifest["prompts"]["critic"].startswith("critic_resolution/")
    assert manifest["determinism"].startswith("identical bytes")
    assert manifest["data"]["scheme"] == "files"
    assert manifest["spent"]["calls"] > 0


def counts_as_failed(future: Future) -> bool:
    readings = [exchange.reading for exchange in future.exchanges if exchange.reading]
    return future.outcome is Outcome.FAILED or any(r.n_unparsed >= r.n_parsed for r in readings)


def test_many_unreadable_answers_cause_a_warning_and_a_failure(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    vague = {"models": {"critic": {"scripted": "tests.evaluate.talk:mostly_nonsense"}}}
    summary = run(recipe(**vague, max_failure_rate=1.0), out=tmp_path / "run").summary
    assert 0.5 < summary["unparsed_share"] < 0.8
    assert f"critic: {100 * summary['unparsed_share']:.0f} % of the answers name no level" in caplog.text
    with pytest.raises(FailureRateError, match="rest on a critic reading with half of its answers unreadable"):
        run(recipe(**vague), out=tmp_path / "run")
    assert json.loads((tmp_path / "run/summary.json").read_text()) == summary
    # Nothing was left to play, so that the run is as complete as it was.
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "complete"


def test_a_few_unreadable_answers_are_no_failure(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    critic = {"critic": {"scripted": "tests.evaluate.talk:rarely_nonsense"}}
    summary = run(recipe(models=critic, max_failure_rate=0.0), out=tmp_path / "run").summary
    assert 0 < summary["unparsed_share"] < 0.1
    assert "name no level" not in caplog.text


def test_failures_before_a_resume_are_judged_together(tmp_path: Path) -> None:
    spoilt = recipe(
        contexts={"per_dialogue": None},
        models={"critic": {"scripted": "tests.evaluate.talk:sometimes_nonsense"}},
        max_failure_rate=0.9,
    )
    summary = run(spoilt, out=tmp_path / "run").summary
    futures = list(read_records(Future, tmp_path / "run/futures.jsonl"))
    share = sum(map(counts_as_failed, futures)) / len(futures)
    assert len(futures) > 50
    assert 0 < share < 0.5
    done = tmp_path / "run/futures.jsonl"
    lines = sorted(done.read_text().splitlines(keepends=True), key=lambda line: '"outcome":"FAILED"' not in line)
    done.write_text("".join(lines))
    again = spoilt.model_copy(update={"max_failure_rate": share + 0.001})
    assert run(again, out=tmp_path / "run").summary == summary


def test_a_corpus_that_changed_under_a_run_is_refused(tmp_path: Path) -> None:
    corpus = tmp_path / "corpus.json"
    records = json.loads((shipped_dir("data") / "esconv_sample.json").read_text())
    corpus.write_text(json.dumps(records[:3]))
    mine = recipe(data={"path": str(corpus), "scheme": None, "split": None}, contexts={"per_dialogue": 1})
    run(mine, out=tmp_path / "run")
    corpus.write_text(json.dumps(records[1:4]))
    with pytest.raises(ConfigError, match=r"data\.files\.corpus\.json"):
        run(mine, out=tmp_path / "run")


def test_a_strategist_names_the_strategy_of_every_supporter_turn(tmp_path: Path) -> None:
    models = {**recipe().models.model_dump(), "strategist": {"scripted": "strategist"}}
    guided = recipe(
        data={"mapping": "esconv_to_aflow"}, models=models, simulation={"strategy": "predicted", "horizon": 2}
    )
    assert plan(guided).calls_at_most["strategist"] == plan(guided).calls_at_most["supporter"]
    run(guided, out=tmp_path / "run")
    names = load_taxonomy("aflow").names
    for future in read_records(Future, tmp_path / "run/futures.jsonl"):
        assert {exchange.strategy for exchange in future.exchanges} <= set(names)
        assert future.usage["strategist"].calls == len(future.exchanges)
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert manifest["prompts"]["strategist"].startswith("strategist/")
    assert manifest["roles"]["strategist"].startswith("scripted/strategist-")


def test_a_strategist_of_another_taxonomy_needs_a_mapping() -> None:
    models = {**recipe().models.model_dump(), "strategist": {"scripted": "strategist"}}
    with pytest.raises(ConfigError, match="esconv_to_aflow"):
        plan(recipe(models=models, simulation={"strategy": "predicted"}))


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"prompts": {"seeker": "seekr"}}, "unknown prompt 'seekr'"),
        ({"models": {"critic": {"scripted": "critik"}}}, "no script 'critik'"),
    ],
)
def test_a_dry_run_looks_everything_up(sections: dict[str, Any], message: str) -> None:
    if "models" in sections:
        sections = {"models": {**recipe().models.model_dump(exclude={"strategist"}), **sections["models"]}}
    with pytest.raises(ConfigError, match=message):
        plan(recipe(**sections))


def test_a_model_of_nan_fails_its_futures_and_the_run_resumes(tmp_path: Path) -> None:
    model, tokenizer = build("tiny-random")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path / "broken")
    critic = {"critic": {"backbone": str(tmp_path / "broken"), "dtype": "float32", "device": "cpu"}}
    spoilt = recipe(models=critic, critic={"readout": "expected"}, data={"limit": 2}, simulation={"horizon": 1})
    with pytest.raises(FailureRateError):
        run(spoilt, out=tmp_path / "run")
    before = (tmp_path / "run/futures.jsonl").read_bytes()
    summary = run(spoilt.model_copy(update={"max_failure_rate": 1.0}), out=tmp_path / "run").summary
    assert summary["failed"] == {"critic/not_finite": summary["futures"]}
    assert summary["reward"] is None
    assert (tmp_path / "run/futures.jsonl").read_bytes() == before
