"""A trained policy in use: what it says are numbers, and prefixes read piece by piece are exact."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.tuners_utils import BaseTunerLayer
from transformers import MambaConfig, MambaModel

from esckit.errors import BackendError
from esckit.flow.model import FlowModel, load_flow_model
from esckit.flow.policy import CheckpointPolicy, PrefixReader
from esckit.flow.run import run
from esckit.flow.text import FlowText, read_metadata
from esckit.ledger import Ledger
from esckit.models.in_memory import build_tokenizer
from esckit.protocols import Decision
from esckit.types import Scenario, Turn
from tests.flow.flow_fakes import NAMES, flow_text, tiny_model
from tests.flow.flow_runs import policy_of, recipe, some_trees, write_trees


def test_numbers_that_are_not_finite_fail_the_call() -> None:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight[...] = torch.nan
    policy = CheckpointPolicy(model, flow_text(), name="broken")
    scope = Ledger(1, "t").at("r", 0)
    with pytest.raises(BackendError, match="of broken that are not finite") as caught:
        asyncio.run(policy.decide(Scenario(id="s"), (Turn(speaker="seeker", text="Hi."),), scope))
    assert caught.value.kind == "not_finite"


PREFIX = tuple(range(3, 103))
TURN = (*PREFIX, *range(41, 54))
SIBLING = (*PREFIX, 44, 45, *range(71, 90))


def whole(model: FlowModel, ids: tuple[int, ...]) -> torch.Tensor:
    with torch.no_grad():
        return model.backbone(input_ids=torch.tensor([ids]), use_cache=False).last_hidden_state[:, -1]


def shapes_read(model: FlowModel) -> list[int]:
    read: list[int] = []
    model.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return read


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_prefix_read_behind_another_is_the_prefix(family: str) -> None:
    model = tiny_model(family)
    reader = PrefixReader(model)
    for ids in (PREFIX[:40], PREFIX, TURN, SIBLING, PREFIX, PREFIX[:7]):
        torch.testing.assert_close(reader.read(ids), whole(model, ids), atol=2e-5, rtol=1e-4)


def test_gemma_beyond_its_window_is_still_the_prefix() -> None:
    model = tiny_model("gemma2")
    for layer in model.backbone.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 16
    model.backbone.config.sliding_window = 16
    reader = PrefixReader(model)
    for ids in (PREFIX[:40], PREFIX, TURN, SIBLING):
        torch.testing.assert_close(reader.read(ids), whole(model, ids), atol=2e-5, rtol=1e-4)


def test_a_cold_prefix_is_one_pass_and_later_only_what_is_new() -> None:
    model = tiny_model()
    read = shapes_read(model)
    reader = PrefixReader(model)
    for ids in (PREFIX, TURN, SIBLING, SIBLING):
        reader.read(ids)
    assert read == [100, 13, 21, 1]
    nothing_held = PrefixReader(model, held_bytes=0)
    nothing_held.read(TURN)
    nothing_held.read(TURN)
    assert read[4:] == [113, 113]


def test_a_dialogue_decision_is_one_pass_however_many_turns() -> None:
    model = tiny_model()
    read = shapes_read(model)
    policy = CheckpointPolicy(model, flow_text(), name="policy")
    talk = tuple(Turn(speaker=("seeker", "supporter")[at % 2], text=f"turn {at}") for at in range(9))
    policy.read(Scenario(id="s"), talk)
    policy.read(Scenario(id="s"), talk[:5])
    assert len(read) == 2


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_prefixes_read_together_are_the_prefixes(family: str) -> None:
    model = tiny_model(family)
    read = shapes_read(model)
    reader = PrefixReader(model)
    reader.read(PREFIX)
    reader.read(PREFIX[:60])
    asked = [TURN, PREFIX[:70], tuple(range(5, 90)), SIBLING, PREFIX[:33]]
    for _ in range(2):  # the second time nearly all of it is held
        before = len(read)
        states = reader.read_all(asked)
        assert len(read) - before < len(asked)
        for ids, state in zip(asked, states, strict=True):
            torch.testing.assert_close(state[None], whole(model, ids), atol=2e-5, rtol=1e-4)
    torch.testing.assert_close(reader.read((*TURN, 7, 8)), whole(model, (*TURN, 7, 8)), atol=2e-5, rtol=1e-4)


def test_decisions_in_flight_together_are_one_pass() -> None:
    model = tiny_model()
    read = shapes_read(model)
    policy = CheckpointPolicy(model, flow_text(), name="policy")
    talks = [(Turn(speaker="seeker", text=f"I failed exam {number}, badly."),) for number in range(32)]
    alone = [policy.read(Scenario(id=f"s{at}"), talk) for at, talk in enumerate(talks)]
    n_alone, fresh = len(read), CheckpointPolicy(model, flow_text(), name="policy")

    async def decide() -> list[Decision]:
        scopes = [Ledger(1, f"s{at}").at(0) for at in range(len(talks))]
        asked = zip(talks, scopes, strict=True)
        return await asyncio.gather(*(fresh.decide(Scenario(id=f"s{at}"), *one) for at, one in enumerate(asked)))

    together = asyncio.run(decide())
    assert (n_alone, len(read) - n_alone) == (32, 1)
    assert [one.strategy for one in together] == [one.strategy for one in alone]
    for one, other in zip(together, alone, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)


def test_decisions_of_an_invariant_policy_are_equal_in_every_bit() -> None:
    talks = [tuple(Turn(speaker="seeker", text=f"I failed exam {at}.") for at in range(n)) for n in range(1, 9)]

    async def decide(order: Sequence[int]) -> list[Decision]:
        policy = CheckpointPolicy(tiny_model(), flow_text(), name="policy", is_invariant=True)
        asked = [policy.decide(Scenario(id="s"), talks[at], Ledger(1, "s").at(at)) for at in order]
        return await asyncio.gather(*asked)

    together = asyncio.run(decide(range(8)))
    assert asyncio.run(decide(range(7, -1, -1))) == together[::-1]
    assert [asyncio.run(decide([at]))[0] for at in range(8)] == together


def test_a_broken_decision_fails_alone() -> None:
    model = tiny_model()
    policy = CheckpointPolicy(model, flow_text(), name="policy")
    judge = model.judge

    def broken(states: torch.Tensor) -> Any:
        found = judge(states)
        found.log_pi[1] = torch.nan
        return found

    model.judge = broken  # type: ignore[method-assign]
    talks = [(Turn(speaker="seeker", text=f"I failed exam {number}."),) for number in range(3)]

    async def decide() -> list[Any]:
        asked = (policy.decide(Scenario(id="s"), talk, Ledger(1, "s").at(at)) for at, talk in enumerate(talks))
        return await asyncio.gather(*asked, return_exceptions=True)

    kinds = [getattr(answer, "kind", None) for answer in asyncio.run(decide())]
    assert kinds == [None, "not_finite", None]


def test_a_few_equal_tokens_of_another_dialogue_are_not_used() -> None:
    model = tiny_model()
    reader = PrefixReader(model)
    other = (*PREFIX[:10], *range(150, 200))
    reader.read(other)
    assert torch.equal(reader.read(PREFIX), PrefixReader(model).read(PREFIX))


def test_a_recurrent_backbone_reads_the_whole() -> None:
    torch.manual_seed(0)
    mamba = MambaModel(MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)).eval()
    model = FlowModel(mamba, NAMES, attention="eager").eval()
    read = shapes_read(model)
    reader = PrefixReader(model)
    for ids in (PREFIX, TURN):
        torch.testing.assert_close(reader.read(ids), whole(model, ids))
    assert read[::2] == [100, 113]
    for ids, state in zip((PREFIX, TURN), reader.read_all((PREFIX, TURN)), strict=True):
        torch.testing.assert_close(state[None], whole(model, ids))


def test_a_loaded_policy_has_its_adapter_merged_and_says_the_same(tmp_path: Path) -> None:
    trees = write_trees(tmp_path, some_trees())
    lora = {"targets": ["q_proj", "v_proj", "embed_tokens"]}
    run(recipe(trees, lora=lora, optim={"lr": 0.02, "select": "last"}), out=tmp_path / "run")
    adapted = load_flow_model(tmp_path / "run", trainable=True).model.eval()
    policy = policy_of(tmp_path / "run", device="cpu")
    assert any(isinstance(module, BaseTunerLayer) for module in adapted.modules())
    assert not any(isinstance(module, BaseTunerLayer) for module in policy._model.modules())
    scenario, turns = Scenario(id="s"), (Turn(speaker="seeker", text="I failed my exam."),)
    found, expected = policy.read(scenario, turns), policy_like(policy, adapted).read(scenario, turns)
    assert found.probabilities == pytest.approx(expected.probabilities, abs=1e-5)
    assert found.values == pytest.approx(expected.values, rel=1e-5)


def policy_like(policy: CheckpointPolicy, model: FlowModel) -> CheckpointPolicy:
    return CheckpointPolicy(model, policy._text, name="adapted")


@pytest.mark.parametrize(("encoding", "limit"), [({}, 4096), ({"mode": "prefix", "max_prefix_tokens": 64}, 64)])
def test_a_policy_reads_as_long_dialogues_as_it_was_trained_on(
    tmp_path: Path, encoding: dict[str, object], limit: int
) -> None:
    trees = write_trees(tmp_path, some_trees())
    run(recipe(trees, encoding=encoding, optim={"epochs": 1}), out=tmp_path / "run")
    assert read_metadata(tmp_path / "run").max_tokens == limit
    talk = tuple(Turn(speaker=("seeker", "supporter")[at % 2], text=f"turn {at}") for at in range(41))
    text = FlowText(build_tokenizer("tiny-random"), situation=True)
    scenario = Scenario(id="s", situation="Short.")
    found = policy_of(tmp_path / "run").read(scenario, talk)
    assert found.n_tokens == len(text.ids(scenario, talk, max_tokens=limit)) <= limit
    # A checkpoint of 0.1.0 says no limit: 4,096 tokens, and single oldest turns go.
    file = tmp_path / "run/checkpoint/flow.json"
    file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "max_tokens"}) + "\n")
    old = FlowText(build_tokenizer("tiny-random"), situation=True, single_turns=True)
    long = talk * 20
    assert policy_of(tmp_path / "run").read(scenario, long).n_tokens == len(old.ids(scenario, long, max_tokens=4096))
