"""A flow checkpoint as supporter: adapter on if it was trained to write, adapter off as its plain backbone."""

import asyncio
import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import Qwen2Config, Qwen2ForCausalLM

from esckit.config.sections import Executor, RoleOptions, SupporterCheckpoint
from esckit.documents import parse_yaml
from esckit.errors import BudgetError, CheckpointError, ConfigError
from esckit.flow.model import load_flow_model
from esckit.flow.policy import FlowWriter, load_writer
from esckit.flow.run import run as train_flow
from esckit.ledger import Ledger
from esckit.models.budget import Budget
from esckit.models.in_memory import build_tokenizer
from esckit.records import read_records
from esckit.roles.cast import Casting
from esckit.roles.pool import ModelPool
from esckit.runs import read_manifest
from esckit.search.run import plan as plan_search
from esckit.search.run import run as search
from esckit.simulate.run import plan as plan_simulation
from esckit.simulate.run import run as simulate
from esckit.types import Limits, Sampling, SearchTree, Turn
from tests.flow.flow_runs import AFLOW, recipe, sparse_tree, write_trees
from tests.search.test_run import recipe as search_recipe
from tests.simulate.test_run import recipe as simulate_recipe

ABBREVIATIONS = dict(zip(AFLOW.names, AFLOW.abbrs, strict=True))
TURNS = (Turn(speaker="seeker", text="I failed my exam."),)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One checkpoint that was trained to write, and one that was not."""
    folder = tmp_path_factory.mktemp("flow")
    trees = write_trees(
        folder, [sparse_tree(f"jsonl-{n}", split, n) for n, split in enumerate(("train", "train", "valid"))]
    )
    brief = {"epochs": 1, "paths_per_update": 32}
    writing = recipe(
        trees, response_weight=1.0, encoding={"strategy_tags": True, "situation": False, "mode": "tree"}, optim=brief
    )
    train_flow(writing, out=folder / "writing")
    train_flow(recipe(trees, optim=brief), out=folder / "silent")
    return {"writing": folder / "writing", "silent": folder / "silent"}


def write(run: Path, strategy: str, seed: int = 1) -> str:
    async def once() -> str:
        writer = FlowWriter.load(run, abbreviations=ABBREVIATIONS, dtype="float32")
        scope = Ledger(seed, "t").at("r", 0)
        reply = await writer.write(TURNS, strategy, Sampling(temperature=0.9, max_tokens=12), scope)
        await writer.aclose()
        return reply.text

    return asyncio.run(once())


def test_what_it_writes_is_one_line_and_a_function_of_its_seed(runs: dict[str, Path]) -> None:
    first = write(runs["writing"], "Clarification")
    assert "\n" not in first
    assert write(runs["writing"], "Clarification") == first
    assert write(runs["writing"], "Clarification", seed=2) != first


def test_a_checkpoint_that_was_not_trained_to_write_says_so(runs: dict[str, Path]) -> None:
    with pytest.raises(CheckpointError, match=r"response_weight above 0.*adapter: off"):
        write(runs["silent"], "Clarification")


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A backbone whose output layer is its input embeddings."""
    folder = tmp_path_factory.mktemp("backbone") / "tied"
    heads = {"num_attention_heads": 2, "num_key_value_heads": 1, "num_hidden_layers": 2}
    config = Qwen2Config(vocab_size=512, hidden_size=16, intermediate_size=32, tie_word_embeddings=True, **heads)
    torch.manual_seed(0)
    Qwen2ForCausalLM(config).save_pretrained(folder)
    build_tokenizer("tiny-random").save_pretrained(folder)
    return folder


@pytest.mark.parametrize("trainable", ["full", "lora"])
def test_a_tied_backbone_writes_with_the_head_it_was_trained_with(tied: Path, tmp_path: Path, trainable: str) -> None:
    trees = write_trees(tmp_path, [sparse_tree(f"t-{n}", split, n) for n, split in enumerate(("train", "valid"))])
    writing = recipe(
        trees,
        model={"backbone": str(tied), "trainable": trainable},
        lora={"targets": ["q_proj", "embed_tokens"]},
        response_weight=1.0,
        encoding={"strategy_tags": True, "situation": False},
        optim={"epochs": 3, "lr": 1e-2, "select": "last"},
    )
    train_flow(writing, out=tmp_path / "run")
    assert "\n" not in write(tmp_path / "run", "Clarification")
    causal, _ = load_writer(tmp_path / "run")
    before = load_file(tied / "model.safetensors")["model.embed_tokens.weight"]
    inputs, outputs = causal.get_input_embeddings().weight, causal.get_output_embeddings().weight
    assert (inputs - before).abs().max() > 1e-3
    # The response term saw the embeddings themselves, or an output layer beside the adapter.
    assert torch.equal(outputs, inputs if trainable == "full" else before)
    if trainable == "full":
        again = load_flow_model(tmp_path / "run", with_lm_head=True, trainable=True).model
        assert again.lm_head is not None
        assert again.lm_head.weight is again.backbone.get_input_embeddings().weight


def supported(run: Path, tmp_path: Path, **options: object) -> list[SearchTree]:
    supporter = {
        "checkpoint": str(run),
        "sampling": {"max_tokens": 8},
        "on_length": "last_sentence",
        "max_words": None,
        **options,
    }
    brief = {"n_simulations": 3, "max_depth": 2, "rollout_turns": 0}
    search(
        search_recipe(models={"supporter": supporter}, data={"limit": 1}, mcts=brief, max_failure_rate=1.0),
        out=tmp_path / "trees",
    )
    return list(read_records(SearchTree, tmp_path / "trees/trees.jsonl"))


@pytest.mark.parametrize(("kind", "adapter"), [("writing", "on"), ("silent", "off")])
def test_a_search_can_be_supported_by_a_checkpoint(
    runs: dict[str, Path], tmp_path: Path, kind: str, adapter: str
) -> None:
    (tree,) = supported(runs[kind], tmp_path, adapter=adapter)
    assert tree.usage["supporter"].calls > 0


def test_a_writer_needs_a_strategist(runs: dict[str, Path]) -> None:
    from esckit.roles.players import FlowSupporter

    class Silent:
        name = "silent"

        async def write(self, *args: object) -> object:
            raise AssertionError("not asked")

    with pytest.raises(ConfigError, match="without a strategy"):
        asyncio.run(FlowSupporter(Silent(), RoleOptions(), Budget(Limits())).reply(TURNS, Ledger(1, "t").at("r", 0)))


def test_a_writer_counts_against_the_budget(runs: dict[str, Path]) -> None:
    async def twice() -> dict[str, object]:
        async with ModelPool(Executor(), Limits(max_calls=1)) as pool:
            supporter = Casting(pool, {"supporter": writer_of(runs["writing"])}, {}, 1, AFLOW).supporter()
            scope = Ledger(1, "t").at("r", 0)
            await supporter.reply(TURNS, scope, strategy="Clarification")
            with pytest.raises(BudgetError):
                await supporter.reply(TURNS, scope, strategy="Clarification")
            return pool.spent()

    spent = asyncio.run(twice())
    assert spent["calls"] == 1
    assert spent["completion_tokens"] > 0


def test_writers_are_shared_only_where_they_are_loaded_alike(runs: dict[str, Path]) -> None:
    pool = ModelPool(Executor(), Limits())
    kinds = (writer_of(runs["writing"]), writer_of(runs["writing"], dtype="bfloat16"), writer_of(runs["writing"]))
    first, narrow, again = (pool.trained(binding, "writer", AFLOW).model for binding in kinds)
    assert first is again
    assert first is not narrow


def writer_of(run: Path, dtype: str = "float32") -> SupporterCheckpoint:
    sampling = {"max_tokens": 8}
    return SupporterCheckpoint(
        checkpoint=str(run), adapter="on", dtype=dtype, sampling=sampling, on_length="last_sentence"
    )


def test_a_simulation_is_supported_by_its_plain_backbone(runs: dict[str, Path], tmp_path: Path) -> None:
    supporter = {"checkpoint": str(runs["silent"]), "sampling": {"max_tokens": 8}, "on_length": "last_sentence"}
    given = {"models": {**scripted_models(), "supporter": supporter}, "data": {"limit": 1}, "max_failure_rate": 1.0}
    simulate(simulate_recipe(**given), out=tmp_path / "run")
    assert "supporter_rlff" in json.dumps(read_manifest(tmp_path / "run")["prompts"]["supporter"])


def scripted_models() -> dict[str, object]:
    return simulate_recipe().models.model_dump(exclude_unset=True)


@pytest.mark.parametrize("word", ["on", "off"])
def test_on_and_off_need_no_quotes_in_a_recipe(word: str) -> None:
    binding = parse_yaml(f"checkpoint: runs/x\nadapter: {word}", "recipe")
    assert SupporterCheckpoint.model_validate(binding).adapter == word


def test_a_plan_refuses_a_checkpoint_that_cannot_write(runs: dict[str, Path]) -> None:
    supporter = {"checkpoint": str(runs["silent"]), "adapter": "on"}
    with pytest.raises(CheckpointError, match="was not trained to write"):
        plan_search(search_recipe(models={"supporter": supporter}))
    with pytest.raises(ConfigError, match="without a taxonomy"):
        plan_simulation(simulate_recipe(models={**scripted_models(), "supporter": supporter}))
