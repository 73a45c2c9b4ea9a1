"""A trained policy in use: what it says are numbers, and prefixes read piece by piece are exact."""

import asyncio
from itertools import accumulate

import pytest
import torch
from transformers import MambaConfig, MambaModel

from esckit.errors import BackendError
from esckit.flow.model import FlowModel
from esckit.flow.policy import CheckpointPolicy, PrefixReader
from esckit.ledger import Ledger
from esckit.types import Scenario, Turn
from tests.flow.flow_fakes import NAMES, flow_text, tiny_model


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


PIECES = [tuple(range(3, 40)), (41, 42), (43,), tuple(range(50, 70)), (71, 72, 73)]
SIBLING = [*PIECES[:3], (44, 45), (71, 72, 73)]


def whole(model: FlowModel, pieces: list[tuple[int, ...]]) -> torch.Tensor:
    ids = torch.tensor([[token for piece in pieces for token in piece]])
    with torch.no_grad():
        return model.backbone(input_ids=ids, use_cache=False).last_hidden_state[:, -1]


def shapes_read(model: FlowModel) -> list[int]:
    read: list[int] = []
    model.backbone.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    return read


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma2"])
def test_a_prefix_read_in_pieces_is_the_prefix(family: str) -> None:
    model = tiny_model(family)
    reader = PrefixReader(model)
    for pieces in (PIECES[:1], PIECES[:3], PIECES, SIBLING):
        torch.testing.assert_close(reader.read(pieces), whole(model, pieces), atol=2e-5, rtol=1e-4)


def test_gemma_beyond_its_window_is_still_the_prefix() -> None:
    model = tiny_model("gemma2")
    for layer in model.backbone.layers:
        if getattr(layer.self_attn, "sliding_window", None):
            layer.self_attn.sliding_window = 16
    model.backbone.config.sliding_window = 16
    reader = PrefixReader(model)
    for end in (1, 3, 4, 5):
        torch.testing.assert_close(reader.read(PIECES[:end]), whole(model, PIECES[:end]), atol=2e-5, rtol=1e-4)


def test_the_same_bits_whatever_was_read_before() -> None:
    model = tiny_model()
    fresh = [PrefixReader(model).read(pieces) for pieces in (PIECES, SIBLING, PIECES[:3])]
    reader = PrefixReader(model)
    for order in ((0, 1, 2), (2, 1, 0), (1, 1, 0)):
        for which in order:
            pieces = (PIECES, SIBLING, PIECES[:3])[which]
            assert torch.equal(reader.read(pieces), fresh[which])
    nothing_held = PrefixReader(model, held_bytes=0)
    assert torch.equal(nothing_held.read(PIECES), fresh[0])


def test_only_what_is_new_is_read() -> None:
    model = tiny_model()
    read = shapes_read(model)
    reader = PrefixReader(model)
    for end in (3, 5):
        reader.read(PIECES[:end])
    reader.read(SIBLING)
    reader.read(SIBLING)
    assert read == [37, 2, 1, 20, 3, 2, 3, 3]


def test_a_beginning_that_ends_inside_a_turn_is_not_used() -> None:
    model = tiny_model()
    reader = PrefixReader(model)
    reader.read(PIECES)
    longer = [*PIECES[:3], (*PIECES[3][:7], 99, 98)]
    assert torch.equal(reader.read(longer), PrefixReader(model).read(longer))


def test_a_recurrent_backbone_reads_the_whole() -> None:
    torch.manual_seed(0)
    mamba = MambaModel(MambaConfig(vocab_size=300, hidden_size=32, state_size=4, num_hidden_layers=2)).eval()
    model = FlowModel(mamba, NAMES, attention="eager").eval()
    read = shapes_read(model)
    reader = PrefixReader(model)
    for end in (3, 5):
        torch.testing.assert_close(reader.read(PIECES[:end]), whole(model, PIECES[:end]))
    assert read[::2] == [list(accumulate(map(len, PIECES)))[end - 1] for end in (3, 5)]
