"""Pilots and forecasts: what is estimated from a few units, and what is at most possible, against what runs take."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest

from esckit.play.forecast import forecast, spread
from esckit.play.pilot import Pilot, PilotPlayed, UnitCosts, estimate
from esckit.play.pilot import _student as student
from esckit.search.recipe import SearchRecipe
from esckit.search.run import plan as plan_search
from esckit.search.run import run as search
from esckit.simulate.run import plan as plan_simulate
from esckit.simulate.run import run as simulate
from tests.simulate.test_run import recipe


def costs(units: list[float]) -> list[dict[str, Any]]:
    return [
        {"calls": n, "from_cache": 0, "prompt_tokens": 10 * n, "completion_tokens": n, "cost": n / 100} for n in units
    ]


def test_a_sample_takes_one_unit_of_every_part() -> None:
    for n_units, n in ((100, 10), (7, 3), (5, 9), (1, 1)):
        found = spread(n_units, n, 3, "x")
        assert len(found) == min(n_units, n)
        assert found == sorted(set(found))
        assert all(part * n_units // len(found) <= at for part, at in enumerate(found))
    assert spread(100, 10, 3, "x") == spread(100, 10, 3, "x") != spread(100, 10, 4, "x")


def test_a_pilot_shares_its_units_among_files() -> None:
    drawn = Pilot(20, seed=1).draw({"a": 300, "b": 100, "tiny": 3, "none": 0})
    assert {name: len(found) for name, found in drawn.items()} == {"a": 15, "b": 5, "tiny": 2}


def test_an_estimate_from_known_numbers() -> None:
    found = estimate([UnitCosts(10, costs([2, 4, 6]), costs([3]))], pace_s=36.0)
    # 15 calls are known; six units more take 4 each, ± t(2) · 6 · sqrt(4/3).
    width = 4.303 * 6 * math.sqrt(4 / 3)
    assert found["calls"] == {"value": 39, "low": max(15, round(39 - width)), "high": round(39 + width)}
    assert found["cost"]["value"] == pytest.approx(0.39)
    assert (found["hours_left"], found["units"], found["pilot_units"]) == (0.06, 10, 3)


def test_a_pilot_of_all_units_is_exact_and_unknown_stays_unknown() -> None:
    assert estimate([UnitCosts(3, costs([2, 4, 6]), [])])["calls"] == {"value": 12, "low": 12, "high": 12}
    unknown = [{**one, "prompt_tokens": None, "cost": None} for one in costs([1, 2])]
    found = estimate([UnitCosts(9, unknown, [])])
    assert (found["prompt_tokens"], found["cost"], found["calls"]["value"]) == (None, None, 14)


@pytest.mark.parametrize(("n_free", "expected"), [(1, 12.706), (2, 4.303), (3, 3.182), (5, 2.571), (10, 2.228)])
def test_quantiles_of_student_are_those_of_tables(n_free: int, expected: float) -> None:
    assert student(n_free) == pytest.approx(expected, rel=0.01)
    assert student(math.inf) == pytest.approx(1.95996, abs=1e-4)


def test_intervals_hold_the_truth_about_as_often_as_they_say() -> None:
    draws = random.Random(5)
    held = 0
    for trial in range(400):
        units = [1 + draws.randrange(9) * draws.choice((1, 1, 12)) for _ in range(300)]
        chosen = Pilot(30, seed=trial).draw({"a": 300})["a"]
        found = estimate([UnitCosts(300, costs([units[at] for at in chosen]), [])])["calls"]
        held += found["low"] <= sum(units) <= found["high"]
    assert 0.88 <= held / 400 <= 0.99


def taken(out: Path) -> dict[str, Any]:
    return json.loads((out / "manifest.json").read_text())["spent"]


def pilot_of(run, made, out: Path, n: int) -> dict[str, Any]:
    with pytest.raises(PilotPlayed) as played:
        run(made, out=out, pilot=n)
    return played.value.estimate


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_a_run_takes_what_its_pilot_said(seed: int, tmp_path: Path) -> None:
    sizes = {"contexts": {"per_dialogue": None}, "simulation": {"candidates": 4}, "critic": {"samples": 2}}
    made = recipe(seed=seed, max_failure_rate=1.0, **sizes)
    out, whole = tmp_path / "run", tmp_path / "whole"
    found = pilot_of(simulate, made, out, 40)
    assert json.loads((out / "manifest.json").read_text())["status"] == "stopped"
    assert taken(out)["calls"] == found["pilot_calls"]
    simulate(made, out=out)
    simulate(made, out=whole)
    assert (out / "futures.jsonl").read_bytes() == (whole / "futures.jsonl").read_bytes()
    for name in ("calls", "prompt_tokens", "completion_tokens"):
        assert taken(out)[name] == taken(whole)[name]
        assert found[name]["value"] == pytest.approx(taken(whole)[name], rel=0.25)


def test_a_pilot_that_was_played_is_not_played_again(tmp_path: Path) -> None:
    made = recipe()
    first = pilot_of(simulate, made, tmp_path, 4)
    before = (tmp_path / "futures.jsonl").read_bytes()
    again = pilot_of(simulate, made, tmp_path, 4)
    assert again | {"hours_left": None} == first | {"hours_left": None}
    assert again["hours_left"] is None
    assert (tmp_path / "futures.jsonl").read_bytes() == before


def test_units_that_were_finished_before_count_with_what_they_took(tmp_path: Path) -> None:
    made = recipe()
    simulate(made, out=tmp_path)
    spent = taken(tmp_path)
    found = pilot_of(simulate, made, tmp_path, 2)
    assert found["calls"] == dict.fromkeys(("value", "low", "high"), spent["calls"])


@pytest.mark.parametrize("room", ["simulate", "search"])
def test_no_run_takes_more_than_its_forecast(room: str, tmp_path: Path) -> None:
    if room == "simulate":
        made, run, plan = recipe(), simulate, plan_simulate
    else:
        from esckit.config.load import load_recipe

        made = load_recipe("smoke/search_scripted", SearchRecipe, overrides=["data.limit=3"]).recipe
        run, plan = search, plan_search
    planned = plan(made)
    found = forecast(planned.staged, rate=10.0)
    assert {role: one["calls"] for role, one in found["roles"].items()} == dict(planned.calls_at_most)
    run(made, out=tmp_path)
    spent = taken(tmp_path)
    for role, used in spent["roles"].items():
        for name in ("calls", "prompt_tokens", "completion_tokens"):
            assert used[name] <= found["roles"][role][name]
    written = sum(path.stat().st_size for path in tmp_path.glob("*.jsonl") if path.name != "contexts.jsonl")
    assert written <= found["disk_bytes"]
    assert found["hours"] == pytest.approx(found["calls"] / 36_000, abs=0.01)
