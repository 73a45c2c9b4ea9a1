"""`train-reward` as a pipeline: every objective, resume bit for bit, refusals, and checkpoints that score alike."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from esckit.errors import CheckpointError, ConfigError, DataError, MissingRunsError, TrainingError
from esckit.models.checkpoint import read_metadata
from esckit.play.runner import NoProgress
from esckit.records import read_records
from esckit.reward.quality import DevPrediction, dev_metrics
from esckit.reward.run import RewardKind, plan, run
from esckit.reward.trainer import classifier_loss
from esckit.sft.run import run as run_train_sft
from esckit.training.policy import SftMetadata
from esckit.types import Context, Future
from tests.reward.reward_runs import reward_recipe, simulated
from tests.sft.sft_runs import recipe as sft_recipe


@pytest.fixture(scope="module")
def futures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return simulated(tmp_path_factory.mktemp("futures") / "simulate")


def weights(out: Path) -> dict[str, torch.Tensor]:
    files = sorted((out / "checkpoint").rglob("*.safetensors"))
    return {f"{path.name}:{name}": tensor for path in files for name, tensor in load_file(path).items()}


def equal_weights(a: Path, b: Path) -> bool:
    ours, theirs = weights(a), weights(b)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def rescored(out: Path, futures: Path) -> tuple[list[float], list[float]]:
    """Return p of dev as training wrote it, and as the checkpoint gives it when it is loaded as a scorer."""
    predictions = list(read_records(DevPrediction, out / "dev_predictions.jsonl"))
    contexts = {context.id: context for context in read_records(Context, futures / "contexts.jsonl")}
    by_id = {f"{f.run_seed}/{f.id}": f for f in read_records(Future, futures / "futures.jsonl")}
    played = [by_id[prediction.id] for prediction in predictions]
    turns = [contexts[future.context_id].turns for future in played]
    replies = [future.exchanges[0].supporter.response for future in played]
    return [prediction.p for prediction in predictions], RewardKind().load(out, "scorer", {}).score(turns, replies)


@pytest.mark.parametrize(
    "sections",
    [
        {},
        {"model": {"trainable": "head", "pooling": "mean"}},
        {"model": {"trainable": "lora"}},
        {"objective": {"class_weight": "balanced"}, "dev": {"select_by": "auc"}},
        {"objective": {"kind": "pairwise"}, "label": {"rule": "goal"}},
        {"objective": {"kind": "rrhf"}, "model": {"trainable": "lora"}},
        {"objective": {"kind": "rrhf"}, "dev": {"select_by": "last"}},
    ],
    ids=["full", "head-mean", "lora", "balanced", "pairwise", "rrhf-lora", "rrhf-full"],
)
def test_every_kind_trains_and_scores_as_it_was_judged(tmp_path: Path, futures: Path, sections: dict[str, Any]) -> None:
    summary = run(reward_recipe(futures, **sections), out=tmp_path / "run").summary
    assert summary["steps"] > 0
    then, now = rescored(tmp_path / "run", futures)
    assert now == pytest.approx(then, abs=1e-5)
    assert {path.name for path in (tmp_path / "run").iterdir()} >= {
        "manifest.json", "checkpoint", "metrics.jsonl", "dev_predictions.jsonl", "calibration.json", "calibration.svg",
    }  # fmt: skip
    assert not (tmp_path / "run/states").exists()


class Crash(NoProgress):
    """Interrupts a run after so many steps."""

    def __init__(self, after: int) -> None:
        self.left = after

    def advance(self, n: int = 1, **counts: int) -> None:
        self.left -= n
        if not self.left:
            raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("after", [5, 8])
@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_stopped_run_goes_on_bit_for_bit(tmp_path: Path, futures: Path, trainable: str, after: int) -> None:
    recipe = reward_recipe(futures, model={"trainable": trainable}, logging={"save_every": 3})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=tmp_path / "cut", progress=Crash(after))
    assert (tmp_path / "cut/states").is_dir()
    run(recipe, out=tmp_path / "cut")
    run(recipe, out=tmp_path / "whole")
    assert equal_weights(tmp_path / "cut", tmp_path / "whole")
    for name in ("metrics.jsonl", "dev_predictions.jsonl", "summary.json", "calibration.svg", "checkpoint/reward.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize("number", [1, 2, 3])
def test_a_run_cut_inside_an_evaluation_makes_it_again(
    tmp_path: Path, futures: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    recipe = reward_recipe(futures, logging={"save_every": 1}, dev={"select_by": "last"})
    judged: list[int] = []

    def cut(p: Any, examples: Any) -> dict[str, float | int | None]:
        judged.append(1)
        if len(judged) == number:
            raise KeyboardInterrupt
        return dev_metrics(p, examples)

    with monkeypatch.context() as patched:
        patched.setattr("esckit.reward.trainer.dev_metrics", cut)
        with pytest.raises(KeyboardInterrupt):
            run(recipe, out=tmp_path / "cut")
    run(recipe, out=tmp_path / "cut")
    run(recipe, out=tmp_path / "whole")
    assert equal_weights(tmp_path / "cut", tmp_path / "whole")
    for name in ("metrics.jsonl", "dev_predictions.jsonl", "summary.json", "checkpoint/reward.json"):
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


def test_a_run_killed_inside_an_evaluation_makes_it_again(
    tmp_path: Path, futures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A copy of the folder as it lies there is what SIGKILL leaves: nothing is flushed and nobody tidies up."""
    recipe = reward_recipe(futures, logging={"save_every": 1}, dev={"select_by": "last"})
    killed: list[Path] = []

    def copied(p: Any, examples: Any) -> dict[str, float | int | None]:
        killed.append(tmp_path / f"killed{len(killed)}")
        shutil.copytree(tmp_path / "whole", killed[-1])
        return dev_metrics(p, examples)

    with monkeypatch.context() as patched:
        patched.setattr("esckit.reward.trainer.dev_metrics", copied)
        run(recipe, out=tmp_path / "whole")
    assert len(killed) > 2
    for cut in killed:
        run(recipe, out=cut)
        assert equal_weights(cut, tmp_path / "whole"), cut.name
        for name in ("metrics.jsonl", "dev_predictions.jsonl", "summary.json", "checkpoint/reward.json"):
            assert (cut / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), (cut.name, name)


def test_a_run_killed_while_its_checkpoint_was_replaced_keeps_it(tmp_path: Path, futures: Path) -> None:
    recipe = reward_recipe(futures, logging={"save_every": 3})
    with pytest.raises(KeyboardInterrupt):
        run(recipe, out=tmp_path / "cut", progress=Crash(8))
    (tmp_path / "cut/checkpoint").rename(tmp_path / "cut/.checkpoint.old")
    (tmp_path / "cut/.checkpoint.new").mkdir()
    run(recipe, out=tmp_path / "cut")
    run(recipe, out=tmp_path / "whole")
    assert equal_weights(tmp_path / "cut", tmp_path / "whole")
    assert not list((tmp_path / "cut").glob(".checkpoint.*"))


def test_a_finished_run_is_left_as_it_is(tmp_path: Path, futures: Path) -> None:
    recipe = reward_recipe(futures, optim={"epochs": 1})
    first = run(recipe, out=tmp_path / "run")
    before = (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns
    assert run(recipe, out=tmp_path / "run").summary == json.loads(json.dumps(first.summary))
    assert (tmp_path / "run/metrics.jsonl").stat().st_mtime_ns == before


def test_a_loss_that_is_nan_stops_the_run_with_a_checkpoint(
    tmp_path: Path, futures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = []

    def spoilt(logits: torch.Tensor, label: torch.Tensor, weight: torch.Tensor | None = None) -> torch.Tensor:
        if logits.requires_grad:
            losses.append(1)
        return classifier_loss(logits, label, weight) * (float("nan") if len(losses) == 26 else 1.0)

    monkeypatch.setattr("esckit.reward.trainer.classifier_loss", spoilt)
    with pytest.raises(TrainingError, match="step 6: the gradient is not finite"):
        run(reward_recipe(futures), out=tmp_path / "run")
    diverged = json.loads((tmp_path / "run/diverged.json").read_text())
    assert diverged["rows"][-1]["step"] == 6
    dev = {prediction.id for prediction in read_records(DevPrediction, tmp_path / "run/dev_predictions.jsonl")}
    assert diverged["input_ids"]
    assert not dev & set(diverged["input_ids"])
    then, now = rescored(tmp_path / "run", futures)
    assert now == pytest.approx(then, abs=1e-5)
    assert json.loads((tmp_path / "run/manifest.json").read_text())["status"] == "stopped"


def test_a_prediction_that_is_no_number_leaves_the_same(
    tmp_path: Path, futures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("esckit.reward.trainer.probability", lambda kind, out: out[:, 0].double() * float("nan"))
    with pytest.raises(TrainingError, match="at step 0: p of a dev example is nan"):
        run(reward_recipe(futures), out=tmp_path / "run")
    diverged = json.loads((tmp_path / "run/diverged.json").read_text())
    assert (diverged["what"], len(diverged["input_ids"])) == ({"p of a dev example": "nan"}, 6)


def test_the_manifest_and_the_checkpoint_name_what_was_used(tmp_path: Path, futures: Path) -> None:
    run(reward_recipe(futures, optim={"epochs": 1}), out=tmp_path / "run")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    used = json.loads((futures / "manifest.json").read_text())["data"]["ids"]
    assert manifest["data"]["ids"] == used
    assert manifest["prompts"]["reward_model"].startswith("reward_model/")
    metadata = RewardKind().load(tmp_path / "run", "scorer", {}).metadata
    assert metadata is not None
    assert list(metadata.dialogue_ids) == used
    assert set(metadata.dev_ids) < set(used)
    assert metadata.simulation["preset"] == "rlff7"
    assert (metadata.label["rule"], metadata.kind) == ("quantile", "classifier")


def test_it_begins_with_the_weights_of_a_supporter(
    tmp_path: Path, futures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    taught = sft_recipe(model={"trainable": "full"}, optim={"lr": 1e-3, "max_steps": 1}, dev={"share": 0.0})
    run_train_sft(taught, out=tmp_path / "sft")
    own = {"model": {"start": str(tmp_path / "sft")}, "optim": {"epochs": 1, "lr": 1e-9}}
    assert "was trained on" in plan(reward_recipe(futures, **own))["warnings"][-1]
    run(reward_recipe(futures, **own), out=tmp_path / "run")
    begun, ours = weights(tmp_path / "sft"), weights(tmp_path / "run")
    name = "model.safetensors:layers.0.self_attn.q_proj.weight"
    torch.testing.assert_close(ours[name], begun[name.replace(":", ":model.")], atol=1e-6, rtol=0)
    metadata = RewardKind().load(tmp_path / "run", "scorer", {}).metadata
    assert metadata is not None
    assert metadata.start is not None
    assert metadata.start.run == str(tmp_path / "sft")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    seen = read_metadata(SftMetadata, tmp_path / "sft").dialogue_ids
    assert set(seen) <= set(metadata.dialogue_ids) & set(manifest["data"]["ids"])
    assert manifest["start"]["manifest"] == metadata.start.manifest
    card = (tmp_path / "run/checkpoint/README.md").read_text()
    assert f"| backbone | tiny-random, with the weights of {tmp_path / 'sft'} (train-sft) |" in card
    assert "was trained on" in caplog.text
    assert "dev dialogues" in caplog.text


def test_what_it_cannot_begin_with_is_refused(tmp_path: Path, futures: Path) -> None:
    with pytest.raises(ValueError, match="start needs trainable: full, not lora"):
        reward_recipe(futures, model={"start": "runs/sft", "trainable": "lora"})
    with pytest.raises(MissingRunsError) as missing:
        run(reward_recipe(futures, model={"start": str(tmp_path / "gone")}), out=tmp_path / "run")
    assert "esckit train-sft RECIPE" in (missing.value.hint or "")
    with pytest.raises(CheckpointError, match=r"model\.start: .* holds no supporter of train-sft: it is a run of sim"):
        plan(reward_recipe(futures, model={"start": str(futures)}))
    run_train_sft(sft_recipe(optim={"max_steps": 1}), out=tmp_path / "sft")
    with pytest.raises(CheckpointError, match="is a supporter on tiny-random"):
        plan(reward_recipe(futures, model={"start": str(tmp_path / "sft"), "backbone": "practice-speaker"}))
    with pytest.raises(DataError, match=r"model\.start: .*: found no run folder"):
        plan(reward_recipe(futures, model={"start": str(tmp_path / "sft/checkpoint")}))
    with pytest.raises(DataError, match=r"inputs: .*: found a run of 'train-sft'"):
        plan(reward_recipe(tmp_path / "sft"))


def test_a_supporter_that_is_not_finished_is_told_of(tmp_path: Path, futures: Path) -> None:
    run_train_sft(sft_recipe(optim={"max_steps": 1}, dev={"share": 0.0}), out=tmp_path / "sft")
    manifest = tmp_path / "sft/manifest.json"
    manifest.write_text(manifest.read_text().replace('"status": "complete"', '"status": "stopped"'))
    ours = reward_recipe(futures, model={"start": str(tmp_path / "sft")})
    assert "which is not finished" in plan(ours)["warnings"][-2]
    shutil.rmtree(tmp_path / "sft/checkpoint")
    with pytest.raises(CheckpointError, match=r"holds no supporter of train-sft yet: it is .*\(stopped") as refused:
        plan(ours)
    assert refused.value.hint == "Finish it: give its command, esckit train-sft …, again"


def test_a_ranker_keeps_the_state_with_the_best_order(tmp_path: Path, futures: Path) -> None:
    ranker = {"objective": {"kind": "pairwise"}, "dev": {"select_by": "pair_accuracy"}, "optim": {"epochs": 3}}
    run(reward_recipe(futures, **ranker), out=tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    measured = [row["dev"]["pair_accuracy"] for row in rows if "dev" in row and row["step"]]
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    assert summary["dev"]["pair_accuracy"] == max(measured)
    with pytest.raises(ValueError, match="pair_accuracy is for rankers"):
        reward_recipe(futures, dev={"select_by": "pair_accuracy"})


def test_a_model_of_another_prompt_version_is_refused(
    tmp_path: Path, futures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run(reward_recipe(futures, optim={"epochs": 1}), out=tmp_path / "run")
    manifest = tmp_path / "run/manifest.json"
    manifest.write_text(manifest.read_text().replace('"complete"', '"stopped"'))
    RewardKind().load(tmp_path / "run", "scorer", {})
    assert "is not complete (stopped)" in caplog.text
    source = tmp_path / "run/checkpoint/reward.json"
    metadata = json.loads(source.read_text())
    metadata["template"]["prompt"] = "reward_model/0123456789abcdef"
    source.write_text(json.dumps(metadata))
    with pytest.raises(CheckpointError, match="reward_model/0123456789abcdef"):
        RewardKind().load(tmp_path / "run", "scorer", {})
    with pytest.raises(CheckpointError, match="'simulate'"):
        RewardKind().load(futures, "scorer", {})
    with pytest.raises(CheckpointError, match="is not a run folder"):
        RewardKind().load(tmp_path, "scorer", {})


def test_a_run_goes_on_only_with_the_futures_that_it_began_with(tmp_path: Path, futures: Path) -> None:
    shutil.copytree(futures, tmp_path / "futures")
    recipe = reward_recipe(tmp_path / "futures", optim={"epochs": 1})
    run(recipe, out=tmp_path / "run")
    source = tmp_path / "futures/futures.jsonl"
    source.write_text("".join(source.read_text().splitlines(keepends=True)[:-1]))
    with pytest.raises(ConfigError, match="other inputs: data"):
        run(recipe, out=tmp_path / "run")


def test_the_plan_shows_the_shares_of_all_rules(futures: Path) -> None:
    found = plan(reward_recipe(futures, label={"rule": "threshold", "delta": "0.7"}))
    assert set(found["positive_share"]) == {"threshold 0.7", "goal", "threshold 0.5", "quantile 0.7"}
    assert found["examples"] == {"train": 24, "dev": 6}
    assert found["steps_at_most"] == 12


def test_one_class_says_what_there_is_and_what_to_change(tmp_path: Path, futures: Path) -> None:
    recipe = reward_recipe(futures, label={"rule": "threshold", "delta": "0.99"})
    with pytest.raises(
        DataError, match=r"0 of 24 futures are positive, δ 99/100 .* rewards from -?0\.\d+ to 0\.\d+"
    ) as caught:
        run(recipe, out=tmp_path / "run")
    assert "--dry-run" in str(caught.value)
    assert not (tmp_path / "run").exists()
    assert str(plan(recipe)["refusal"]).startswith("one class only")


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"critic": {"samples": 3, "threshold": "0.25"}}, "threshold 1/4"),
        ({"simulation": {"candidates": 3, "horizon": 2}}, "horizon 2"),
        ({"critic": {"readout": "expected"}}, "readout expected"),
        ({"simulation": {"candidates": 3, "horizon": 3, "score_first_exchange": True}}, "score_first_exchange True"),
    ],
)
def test_futures_of_different_kinds_do_not_mix(
    tmp_path: Path, futures: Path, sections: dict[str, Any], field: str
) -> None:
    other = simulated(tmp_path / "other", **sections)
    with pytest.raises(DataError, match=field):
        plan(reward_recipe(futures, other))


def test_readings_must_be_what_the_manifest_says(tmp_path: Path, futures: Path) -> None:
    mixed = tmp_path / "mixed"
    shutil.copytree(futures, mixed)
    source = mixed / "futures.jsonl"
    source.write_text(source.read_text().replace("rlff7/", "rlff7/0", 1))
    with pytest.raises(DataError, match="rlff7/0"):
        plan(reward_recipe(mixed))


def test_the_same_futures_twice_are_refused(tmp_path: Path, futures: Path) -> None:
    shutil.copytree(futures, tmp_path / "again")
    with pytest.raises(DataError, match="twice"):
        plan(reward_recipe(futures, tmp_path / "again"))


def test_only_runs_of_simulate_are_inputs(tmp_path: Path, futures: Path) -> None:
    with pytest.raises(DataError, match="no run folder"):
        plan(reward_recipe(tmp_path))
