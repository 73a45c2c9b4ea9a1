"""`train-rl` as a pipeline: every reward, resume to the same bytes, and the policy as a supporter in other commands."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from esckit.data.splits import is_dev
from esckit.errors import CheckpointError, ConfigError, DataError, FailureRateError, TrainingError
from esckit.models.checkpoint import read_metadata
from esckit.play.forecast import forecast
from esckit.prompts.prompt import load_prompt
from esckit.report.source import open_run
from esckit.report.training import training_sections
from esckit.reward.run import run as run_train_reward
from esckit.rl.monitor import DevSet
from esckit.rl.rewards import open_measure
from esckit.rl.rows import build_pairs, collect
from esckit.rl.run import plan, run
from esckit.rl.trainer import load_learner
from esckit.runs import read_manifest
from esckit.sft.run import run as run_train_sft
from esckit.simulate.run import run as run_simulate
from esckit.training.policy import PolicyMetadata, PolicyPrompt
from esckit.training.run import TrainingRun, training_order
from tests.reward.reward_runs import reward_recipe, simulated
from tests.rl.rl_runs import FAILING_CALLS, StopAt, recipe, simulated_recipe
from tests.sft.sft_runs import recipe as sft_recipe

LEXICON = {"kind": "esckit.rl.rewards:lexicon_reward"}


def rows(out: Path) -> list[dict[str, Any]]:
    found = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if name != "rl/step_s"} for row in found]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rl") / "policy"
    run(recipe(), out=out)
    return out


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "run")


def test_a_run_leaves_policy_metrics_samples_card_and_summary(trained: Path) -> None:
    metadata = read_metadata(PolicyMetadata, trained)
    # Four contexts, two a step: what three steps come to is a pass and a half.
    assert [row["epoch"] for row in rows(trained) if "rl/loss" in row] == [0.5, 1.0, 1.5]
    manifest = json.loads((trained / "manifest.json").read_text())
    assert (metadata.backbone, metadata.algorithm, metadata.step, metadata.diverged) == (
        "tiny-random",
        "grpo",
        3,
        False,
    )
    assert list(metadata.dialogue_ids) == manifest["data"]["ids"]
    assert metadata.prompt == manifest["prompts"]["policy"]
    assert manifest["status"] == "complete"
    assert all(is_dev(7, name, 0.3) for name in metadata.dev_ids)
    assert "tiny-random" in (trained / "checkpoint/README.md").read_text()
    assert not (trained / "states").exists()
    summary = json.loads((trained / "summary.json").read_text())
    assert (summary["steps"], summary["selected_step"]) == (3, 3)
    assert summary["dev"].keys() == {"before training", "after training"}
    files = {path.name for path in (trained / "checkpoint/adapter").iterdir()}
    assert files == {"adapter_model.safetensors", "adapter_config.json"}
    config = json.loads((trained / "checkpoint/adapter/adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "tiny-random"
    assert [row["step"] for row in rows(trained)] == [0, 1, 2, 2, 3, 3]
    sample = json.loads((trained / "samples.jsonl").read_text().splitlines()[0])
    assert {"reply", "reasoning", "raw", "parse_kind", "future", "format", "reward"} <= sample.keys()


def test_the_report_shows_the_card(trained: Path) -> None:
    (card,) = next(part for part in training_sections(open_run(trained)) if part.title == "Model card").blocks
    assert "grpo, 3 steps" in str(card)


def test_a_finished_run_is_left_as_it_is(trained: Path) -> None:
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file() and path.name != "manifest.json"}
    run(recipe(), out=trained)
    assert {path: path.read_bytes() for path in before} == before


def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(recipe(), out=tmp_path / "run", progress=StopAt(3))
    assert (tmp_path / "run/states").is_dir()
    run(recipe(), out=tmp_path / "run")
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        path = f"checkpoint/adapter/{name}"
        assert (tmp_path / "run" / path).read_bytes() == (trained / path).read_bytes()
    assert rows(tmp_path / "run") == rows(trained)
    assert (tmp_path / "run/samples.jsonl").read_bytes() == (trained / "samples.jsonl").read_bytes()


@pytest.mark.parametrize("number", [2, 3])
def test_a_run_cut_inside_a_dev_measurement_makes_it_again(
    trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    measured: list[int] = []

    def cut(dev: DevSet, model: Any, step: int, **share: int) -> dict[str, float | None]:
        measured.append(step)
        if len(measured) == number:
            raise KeyboardInterrupt
        return measure(dev, model, step, **share)

    measure = DevSet.measure
    with monkeypatch.context() as patched:
        patched.setattr(DevSet, "measure", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe(), out=tmp_path / "run")
    assert (tmp_path / "run/states").is_dir()
    run(recipe(), out=tmp_path / "run")
    assert rows(tmp_path / "run") == rows(trained)
    for name in ("policy.json", "adapter/adapter_model.safetensors"):
        assert (tmp_path / "run/checkpoint" / name).read_bytes() == (trained / "checkpoint" / name).read_bytes()


def test_a_run_stopped_before_its_first_state_begins_anew(trained: Path, tmp_path: Path) -> None:
    ours = recipe(logging={"save_every": 100})
    with pytest.raises(KeyboardInterrupt):
        run(ours, out=tmp_path / "run", progress=StopAt(2))
    assert [row["step"] for row in rows(tmp_path / "run")] == [0, 1]
    run(ours, out=tmp_path / "run")
    assert rows(tmp_path / "run") == rows(trained)


def test_a_run_of_another_command_is_no_supporter(futures: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="holds no checkpoint"):
        run_simulate(simulated_recipe(futures), out=tmp_path / "run")


def test_a_reward_model_hands_its_dialogues_on(futures: Path, tmp_path: Path) -> None:
    run_train_reward(reward_recipe(futures, optim={"epochs": 1}), out=tmp_path / "reward")
    models = {"reward": {"checkpoint": str(tmp_path / "reward")}}
    ours = recipe(
        models=models, reward={"kind": "classifier"}, data={"split": "valid", "limit": 8}, optim={"max_steps": 1}
    )
    run(ours, out=tmp_path / "run")
    policy = read_metadata(PolicyMetadata, tmp_path / "run")
    reward_ids = json.loads((tmp_path / "reward/manifest.json").read_text())["data"]["ids"]
    assert set(reward_ids) < set(policy.dialogue_ids)
    assert policy.reward["objective"] == "classifier"
    assert len(policy.reward["manifest"]) == 64
    with pytest.raises(CheckpointError, match="of kind classifier"):
        plan(recipe(models=models, reward={"kind": "ranker"}))
    metadata = tmp_path / "reward/checkpoint/reward.json"
    metadata.write_text(re.sub(r"reward_model/[0-9a-f]+", "reward_model/0123456789abcdef", metadata.read_text()))
    with pytest.raises(CheckpointError, match="reward_model/0123456789abcdef"):
        plan(recipe(models=models, reward={"kind": "classifier"}))


@pytest.mark.parametrize(
    "sections",
    [
        {"reward": {"kind": "untrained", "value": "hard_label"}, "models": {"reward": {"backbone": "tiny-random"}}},
        {
            "reward": {"kind": "online"},
            "models": {role: {"scripted": role} for role in ("seeker", "critic", "supporter")},
            "online": {"horizon": 2, "critic": {"readout": "expected"}},
        },
        {"reward": LEXICON, "grpo": {"loss_type": "dr_grpo"}, "monitor": {"sample_every": None, "dev_every": None}},
    ],
    ids=["untrained", "online", "lexicon"],
)
def test_every_other_reward_trains(tmp_path: Path, sections: dict[str, Any]) -> None:
    ours = recipe(**sections, optim={"max_steps": 1})
    result = run(ours, out=tmp_path / "run")
    assert result.summary["steps"] == 1
    last = rows(tmp_path / "run")[-1]
    assert last.get("rl/unscored_share", last.get("dev/unscored_share")) == 0.0
    spent = read_manifest(tmp_path / "run").get("spent")
    # Only rewards that are played ask models, which cost something.
    assert (spent is not None and spent["calls"] > 0) == (sections["reward"].get("kind") == "online")
    staged = plan(ours)["staged"]
    assert (staged is None) == (spent is None)
    assert staged is None or spent["calls"] <= forecast(staged)["calls"] <= 3 * spent["calls"]


def test_an_untrained_reward_computes_in_the_recipes_type() -> None:
    ours = recipe(reward={"kind": "untrained"}, models={"reward": {"backbone": "tiny-random", "dtype": "bfloat16"}})
    with open_measure(ours, {}, TrainingRun(Path())) as (measure, _):
        model = measure.score.__self__
    assert {weight.dtype for weight in model.net.backbone.parameters()} == {torch.bfloat16}
    assert {weight.dtype for weight in model.net.head.parameters()} == {torch.float32}


def _worthless(conversations: Any, responses: Any) -> Any:
    return (1 / 0 for _ in responses)


def test_a_reward_of_ones_own_that_raises_is_named() -> None:
    ours = recipe(reward={"kind": f"{__name__}:_worthless"})
    with (
        open_measure(ours, {}, TrainingRun(Path())) as (measure, _),
        pytest.raises(ConfigError, match=r"the reward '.*:_worthless' raised ZeroDivisionError"),
    ):
        measure.score([()], ["Fine."])


def test_the_plan_counts_what_online_futures_cost() -> None:
    models = {role: {"scripted": role} for role in ("seeker", "critic")}
    found = plan(recipe(reward={"kind": "online"}, models=models, optim={"max_steps": 9}))
    assert found["outputs_at_most"] == 9 * 8
    n = 72 + 6  # the one dev context: before the first step, after the steps 2, 4, 6 and 8, and at the end
    assert found["calls_at_most"] == {"supporter": n * 8, "seeker": n * 9, "critic": n * 8 * 10}


def test_dpo_learns_from_simulated_candidates(futures: Path, tmp_path: Path) -> None:
    ours = recipe(
        algorithm="dpo", inputs=(str(futures),), data=None, dpo={"batch_size": 4, "max_prompt_tokens": 1600},
        monitor={"sample_every": None, "dev_every": None}, optim={"max_steps": 2},
    )  # fmt: skip
    assert plan(ours)["pairs_at_most"] > 0
    result = run(ours, out=tmp_path / "run")
    metadata = read_metadata(PolicyMetadata, tmp_path / "run")
    assert result.summary["rows"]["rows"] > 0
    assert metadata.inputs.keys() == {str(futures)}
    assert set(metadata.dialogue_ids) == set(json.loads((futures / "manifest.json").read_text())["data"]["ids"])
    assert "rl/dpo/margin" in rows(tmp_path / "run")[-1]


def test_dpo_tells_of_dev_dialogues_that_its_start_was_trained_on(
    futures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_train_sft(sft_recipe(optim={"max_steps": 1}, dev={"share": 0.0}), out=tmp_path / "sft")
    plan(
        recipe(
            algorithm="dpo", inputs=(str(futures),), data=None, dpo={"batch_size": 4},
            models={"policy": {"checkpoint": str(tmp_path / "sft"), "backbone": None}},
        )
    )  # fmt: skip
    assert "begins with a supporter that was trained on" in caplog.text


def test_a_diverged_dpo_run_names_the_pairs_of_the_step(futures: Path, tmp_path: Path) -> None:
    ours = recipe(
        algorithm="dpo", inputs=(str(futures),), data=None, dpo={"batch_size": 2, "max_prompt_tokens": 1600},
        monitor={"dev_every": None}, optim={"lr": 1e30},
    )  # fmt: skip
    with pytest.raises(TrainingError, match="at step 2"):
        run(ours, out=tmp_path / "run")
    material = collect(ours)
    prompt = PolicyPrompt(load_prompt(ours.prompt), load_learner(ours).chat, 1600)
    contexts = {context.id: context for context in material.train}
    pairs = build_pairs(contexts, material.futures, prompt, require_format=True, max_completion_tokens=512).rows
    order = training_order(len(pairs), n_batches=3, batch=2, seed=7)
    found = json.loads((tmp_path / "run/diverged.json").read_text())["input_ids"]
    assert found == [pairs[index]["context_id"] for index in order[4:6]]


@pytest.mark.slow
def test_the_best_dev_policy_is_kept_if_the_recipe_asks(tmp_path: Path) -> None:
    run(recipe(optim={"select": "best_dev", "max_steps": 2}, monitor={"dev_every": 1}), out=tmp_path / "run")
    dev = {row["step"]: row["dev/reward/future"] for row in rows(tmp_path / "run") if "dev/reward/future" in row}
    best = max((value, -step) for step, value in dev.items() if step)
    assert read_metadata(PolicyMetadata, tmp_path / "run").step == -best[1]


def test_outputs_that_nothing_can_measure_stop_the_run(tmp_path: Path) -> None:
    with pytest.raises(FailureRateError):
        run(recipe(reward={"kind": "tests.rl.rl_runs:no_reward"}), out=tmp_path / "run")
    assert rows(tmp_path / "run")[-1]["rl/unscored_share"] == 1.0
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"


def test_failures_before_a_stop_count_after_it(tmp_path: Path) -> None:
    FAILING_CALLS[0] = 1
    ours = recipe(
        reward={"kind": "tests.rl.rl_runs:failing_reward"},
        monitor={"dev_every": None},
        max_failure_rate=0.3,
    )
    with pytest.raises(KeyboardInterrupt):
        run(ours, out=tmp_path / "run", progress=StopAt(2))
    with pytest.raises(FailureRateError, match=r"33\.3% of the outputs of the last 3 steps"):
        run(ours, out=tmp_path / "run")


def test_dev_dialogues_that_the_reward_model_knows_are_named(
    futures: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_train_reward(reward_recipe(futures, seed=7, optim={"epochs": 1}), out=tmp_path / "reward")
    ours = {"models": {"reward": {"checkpoint": str(tmp_path / "reward")}}, "reward": {"kind": "classifier"}}
    ours["data"] = {"limit": 10, "merge": True}
    plan(recipe(**ours))
    assert not [record for record in caplog.records if "dev dialogues" in record.message]
    plan(recipe(**ours, seed=2))
    assert [record.levelname for record in caplog.records if "dev dialogues" in record.message] == ["WARNING"]


@pytest.mark.parametrize(("reward", "what"), [("bad_reward", "the reward"), ("broken_model", "p of the reward model")])
def test_a_diverged_run_keeps_the_last_finite_policy(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, reward: str, what: str
) -> None:
    bad = recipe(reward={"kind": f"tests.rl.rl_runs:{reward}"}, monitor={"dev_every": None})
    with pytest.raises(TrainingError, match=f"at step 0: {what} is nan"):
        run(bad, out=tmp_path / "run")
    told = json.loads((tmp_path / "run/diverged.json").read_text())
    assert (told["step"], told["what"], told["rows"]) == (0, {what: "nan"}, [])
    # Two contexts, four outputs each.
    assert (len(told["input_ids"]), len(set(told["input_ids"]))) == (8, 2)
    assert read_metadata(PolicyMetadata, tmp_path / "run").diverged
    run_simulate(simulated_recipe(tmp_path / "run"), out=tmp_path / "simulated")
    assert "policy/run" in (tmp_path / "simulated/manifest.json").read_text()
    assert [record.levelname for record in caplog.records if "is not complete (stopped)" in record.message] == [
        "WARNING"
    ]


@pytest.mark.parametrize(
    ("sections", "error", "message"),
    [
        ({"reward": {"kind": "nowhere:nothing"}}, ConfigError, "cannot load 'nowhere:nothing'"),
        ({"reward": {"kind": "esckit.rl.rewards:WORDS"}}, ConfigError, "is not a function"),
        ({"models": {"policy": {"backbone": "tiny-randon"}}}, ConfigError, "tiny-randon"),
        ({"dev": {"share": 0.999}}, DataError, "no context to train on"),
        ({"data": {"limit": 1}, "dev": {"share": 0.0}}, DataError, "contexts to train on"),
        ({"prompt": "supporter_rlf"}, ConfigError, "supporter_rlf"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    sections: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        plan(recipe(**sections))


def test_the_text_of_unmeasured_rows_is_not_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    none = recipe(reward={"kind": "tests.rl.rl_runs:no_reward"}, optim={"max_steps": 1}, max_failure_rate=1.0)
    with caplog.at_level("WARNING", logger="trl"):
        run(none, out=tmp_path / "run")
    assert "All reward functions returned None" not in caplog.text


def test_contexts_that_are_all_too_long_name_the_limit(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"once \d+ that are too long") as caught:
        run(recipe(grpo={"max_prompt_tokens": 50}), out=tmp_path / "run")
    assert caught.value.hint == "Raise grpo.max_prompt_tokens"


def test_vllm_is_asked_for_only_where_it_can_run(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="vllm"):
        run(recipe(grpo={"engine": "vllm"}), out=tmp_path / "run")
