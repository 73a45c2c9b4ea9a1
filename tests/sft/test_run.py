"""`train-sft` as a pipeline: what it leaves, resume to the same bytes, and where its supporter is used."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from esckit.chat.target import load_target
from esckit.errors import CheckpointError, ConfigError, DataError, TrainingError
from esckit.export.run import export
from esckit.export.run import plan as plan_export
from esckit.models.checkpoint import FOLDER, read_metadata
from esckit.prompts.prompt import load_prompt, prompt_text
from esckit.report.run import write_report
from esckit.report.source import open_run
from esckit.report.training import training_sections
from esckit.rl.recipe import TrainRlRecipe
from esckit.rl.run import plan as plan_rl
from esckit.rl.run import run as run_train_rl
from esckit.runs import read_manifest
from esckit.sft.examples import build_rows, collect
from esckit.sft.run import run
from esckit.simulate.run import run as run_simulate
from esckit.training.policy import PolicyMetadata, PolicyPrompt, SftMetadata, load_merged, load_policy, training_format
from tests.rl import rl_runs
from tests.sft.sft_runs import recipe

FULL = {"trainable": "full"}


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def weights(out: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for path in sorted((out / "checkpoint").rglob("*.safetensors")):
        found |= {f"{path.parent.name}:{name}": tensor for name, tensor in load_file(path).items()}
    return found


@pytest.fixture(scope="module")
def lora(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "lora"
    run(recipe(), out=out)
    return out


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sft") / "full"
    run(recipe(model=FULL, optim={"lr": 1e-3}), out=out)
    return out


def dev_loss(out: Path, settings: Any) -> float:
    """Compute the dev loss of a run's supporter one example after the other, from its checkpoint."""
    model, tokenizer = load_merged(out)
    prompt = PolicyPrompt(load_prompt(settings.prompt), training_format(tokenizer, []), 1600)
    examples = collect(settings).dev[: settings.dev.max_examples]
    found, _ = build_rows(examples, prompt, settings.form, max_completion_tokens=400)
    total, n = 0.0, 0
    for row in found:
        ids = torch.tensor([[*row.prompt, *row.completion]])
        with torch.no_grad():
            log_p = model(input_ids=ids).logits[0, :-1].double().log_softmax(-1)
        learnt = log_p[torch.arange(ids.shape[1] - 1), ids[0, 1:]][len(row.prompt) - 1 :]
        total, n = total - float(learnt.sum()), n + len(learnt)
    return total / n


def test_a_run_leaves_checkpoint_metrics_card_and_summary(lora: Path) -> None:
    metadata, manifest = read_metadata(SftMetadata, lora), read_manifest(lora)
    assert (metadata.backbone, metadata.trainable, metadata.step) == ("tiny-random", "lora", 3)
    assert (metadata.source, metadata.reasoning, metadata.strategy) == ("corpus", False, "tag")
    assert metadata.prompt == manifest["prompts"]["supporter"]
    assert list(metadata.dialogue_ids) == manifest["data"]["ids"]
    assert manifest["status"] == "complete"
    assert [row["step"] for row in rows(lora)] == [0, 1, 2, 2, 3, 3]
    assert not (lora / "states").exists()
    summary = json.loads((lora / "summary.json").read_text())
    assert summary["dev"].keys() == {"before training", "after training"}
    assert "its strategy in `<think>`" in (lora / "checkpoint/README.md").read_text()


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_training_lowers_the_loss_that_the_checkpoint_has(kind: str, request: pytest.FixtureRequest) -> None:
    out: Path = request.getfixturevalue(kind)
    before, after = (next(r["dev/loss"] for r in rows(out) if r["step"] == s and "dev/loss" in r) for s in (0, 3))
    assert after < before
    assert dev_loss(out, recipe()) == pytest.approx(after, rel=1e-5)


def test_the_loss_of_a_step_is_the_mean_over_its_replies_tokens(tmp_path: Path) -> None:
    settings = recipe(optim={"max_steps": 1, "batch_size": 4, "micro_batch": 4})
    run(settings, out=tmp_path / "at-once")
    run(recipe(optim={"max_steps": 1, "batch_size": 4, "micro_batch": 1}), out=tmp_path / "one-by-one")
    first, second = (rows(tmp_path / name)[-1]["sft/loss"] for name in ("at-once", "one-by-one"))
    assert first == pytest.approx(second, rel=1e-5)


def test_the_report_shows_the_card(lora: Path) -> None:
    (card,) = next(part for part in training_sections(open_run(lora)) if part.title == "Model card").blocks
    assert "learnt from" in str(card)


@pytest.mark.parametrize("model", [{}, FULL])
def test_a_run_that_was_stopped_goes_on_to_the_same_bytes(model: dict[str, Any], tmp_path: Path) -> None:
    settings = recipe(model=model)
    run(settings, out=tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        run(settings, out=tmp_path / "cut", progress=rl_runs.StopAt(3))
    assert (tmp_path / "cut/states").is_dir()
    run(settings, out=tmp_path / "cut")
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")


def test_the_state_of_the_lowest_dev_loss_is_kept(tmp_path: Path) -> None:
    settings = recipe(optim={"lr": 5.0, "select": "best_dev"}, monitor={"dev_every": 1})
    run(settings, out=tmp_path / "run")
    losses = {row["step"]: row["dev/loss"] for row in rows(tmp_path / "run") if "dev/loss" in row and row["step"]}
    best = min(losses, key=losses.__getitem__)
    assert read_metadata(SftMetadata, tmp_path / "run").step == best
    assert dev_loss(tmp_path / "run", settings) == pytest.approx(losses[best], rel=1e-4)


def test_without_dev_nothing_is_measured(tmp_path: Path) -> None:
    run(recipe(dev={"share": 0.0}), out=tmp_path / "run")
    assert all("dev/loss" not in row for row in rows(tmp_path / "run"))


def test_replies_that_are_all_too_long_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="that are too long are left out"):
        run(recipe(encoding={"max_completion_tokens": 3}), out=tmp_path / "run")


def test_a_training_that_diverges_says_on_what(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="diverged"):
        run(recipe(optim={"lr": 1e30, "max_grad_norm": 1e30}), out=tmp_path / "run")
    assert json.loads((tmp_path / "run/diverged.json").read_text())["input_ids"]


# ---------------------------------------------------------------- in other commands


def test_a_prompt_of_ones_own_travels_with_the_checkpoint(tmp_path: Path) -> None:
    text, mine, out = prompt_text("supporter_rlff"), tmp_path / "mine.yaml", tmp_path / "run"
    mine.write_text(text.replace("name: supporter_rlff", "name: mine").replace("therapist", "friend"))
    run(recipe(prompt=str(mine), optim={"max_steps": 1}), out=out)
    trained = read_metadata(SftMetadata, out).prompt
    mine.unlink()
    assert trained.startswith("mine/")
    assert load_prompt(load_target(str(out), {}, ()).recipe.prompts.supporter).identity == trained
    assert "friend" in plan_export(out, tmp_path / "out").source.system_prompt
    # A checkpoint of an earlier version keeps no copy.
    (out / FOLDER / "prompt.yaml").unlink()
    with pytest.raises(ConfigError, match="no such file"):
        load_target(str(out), {}, ())
    mine.write_text(text.replace("name: supporter_rlff", "name: mine"))
    with pytest.raises(CheckpointError, match=f"was trained with prompt {trained}"):
        load_target(str(out), {}, ())


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_simulate_takes_it_as_supporter(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    out: Path = request.getfixturevalue(kind)
    run_simulate(rl_runs.simulated_recipe(out), out=tmp_path / "futures")
    assert len((tmp_path / "futures/futures.jsonl").read_text().splitlines()) == 1
    assert f"sft/{kind}" in json.dumps(read_manifest(tmp_path / "futures")["models"])


def rl_recipe(start: Path) -> TrainRlRecipe:
    given = rl_runs.recipe(optim={"lr": 1e-3, "max_steps": 3}, monitor={"dev_every": None}).resolved()
    return TrainRlRecipe.model_validate({**given, "models": {"policy": {"checkpoint": str(start)}}})


@pytest.mark.parametrize("kind", ["lora", "full"])
def test_train_rl_begins_with_it_and_takes_it_along(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    start = tmp_path / "start"
    shutil.copytree(request.getfixturevalue(kind), start)
    run_train_rl(rl_recipe(start), out=tmp_path / "rl")
    metadata = read_metadata(PolicyMetadata, tmp_path / "rl")
    assert metadata.start is not None
    assert (metadata.start.run, metadata.start.trainable, metadata.backbone) == (str(start), kind, "tiny-random")
    assert set(read_metadata(SftMetadata, start).dialogue_ids) <= set(metadata.dialogue_ids)
    card = (tmp_path / "rl/checkpoint/README.md").read_text()
    assert f"| backbone | tiny-random, with the weights of {start} (train-sft) |" in card
    report = write_report([tmp_path / "rl"]).markdown.read_text()
    assert "- **episode**: reply" in report
    assert "- **reward**: kind " in report
    begun = load_merged(start)[0].state_dict()
    shutil.rmtree(start)  # the policy stands on its own
    policy, _ = load_merged(tmp_path / "rl")
    trained = policy.state_dict()
    moved = {name for name in begun if not torch.equal(begun[name], trained[name])}
    assert moved
    # What the adapter leaves alone is the supporter's own.
    assert all("embed" not in name for name in moved)
    assert all(float((begun[name] - trained[name]).abs().max()) < 0.1 for name in moved)
    load_policy(tmp_path / "rl", dtype="float32")


def test_a_start_that_is_no_run_of_it_is_refused_by_its_field(lora: Path, begun: Path) -> None:
    with pytest.raises(CheckpointError, match=r"models\.policy\.checkpoint: .* holds no .*: it is a run of train-rl"):
        plan_rl(rl_recipe(begun))
    with pytest.raises(DataError, match=r"models\.policy\.checkpoint: .*: found no run folder"):
        plan_rl(rl_recipe(lora / "checkpoint"))


def test_a_start_that_was_taught_no_form_is_told_of(
    lora: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan_rl(rl_recipe(lora))
    assert "have no <think>" not in caplog.text
    start = tmp_path / "start"
    shutil.copytree(lora, start)
    metadata = read_metadata(SftMetadata, start).model_copy(update={"strategy": "none"})
    (start / "checkpoint/sft.json").write_text(metadata.model_dump_json())
    plan_rl(rl_recipe(start))
    assert "whose outputs have no <think> and <response>" in caplog.text


@pytest.fixture(scope="module")
def begun(lora: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rl") / "run"
    run_train_rl(rl_recipe(lora), out=out)
    return out


def test_the_kl_is_measured_from_it(begun: Path) -> None:
    first = next(row for row in rows(begun) if "rl/kl" in row)
    assert first["rl/kl"] == pytest.approx(0.0, abs=1e-6)


def test_train_rl_refuses_another_kind_of_run(begun: Path, lora: Path) -> None:
    with pytest.raises(CheckpointError) as caught:
        plan_rl(rl_recipe(begun))
    assert caught.value.expected == "a run folder of train-sft"
    policy = {"policy": {"checkpoint": str(lora), "backbone": "tiny-random"}}
    with pytest.raises(ValueError, match="needs either backbone or checkpoint"):
        rl_runs.recipe(models=policy)


def test_a_start_without_weights_is_named(begun: Path, tmp_path: Path) -> None:
    shutil.copytree(begun, tmp_path / "rl")
    shutil.rmtree(tmp_path / "rl" / FOLDER / "start/adapter")
    with pytest.raises(CheckpointError, match=r"start/adapter lacks adapter_config\.json"):
        load_merged(tmp_path / "rl")


@pytest.mark.parametrize("kind", ["lora", "full", "begun"])
def test_it_is_exported_whole(kind: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    facts = export(plan_export(request.getfixturevalue(kind), tmp_path / "out"))
    assert (facts["form"], facts["backbone"]) == ("AutoModelForCausalLM", "tiny-random")
    assert facts["largest_difference"] <= 1e-5


@pytest.mark.parametrize(("kind", "why"), [("full", "has no adapter"), ("begun", "does not stand on a backbone")])
def test_only_an_adapter_of_a_backbone_is_exported(
    kind: str, why: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=why):
        plan_export(request.getfixturevalue(kind), tmp_path / "out", adapter=True)
