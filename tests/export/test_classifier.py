"""A head with a bias as a model without one: numbers, and what has no such form."""

from typing import Any

import pytest
import torch

from esckit.errors import CheckpointError
from esckit.export.classifier import sequence_classifier
from esckit.reward.model import RewardNet, probability
from tests.tiny import TinyFamily, tiny_random


def net_on(family: TinyFamily, kind: Any = "classifier", *, bias: float = 3.0) -> RewardNet:
    torch.manual_seed(0)
    net = RewardNet(tiny_random(family)[0].base_model, kind).eval()
    assert net.head is not None
    net.head.out.weight.data.normal_(0, 1)
    net.head.out.bias.data.copy_(
        torch.tensor([0.0, bias])[: len(net.head.out.bias)] + (bias if kind != "classifier" else 0)
    )
    return net


@torch.no_grad()
@pytest.mark.parametrize("kind", ["classifier", "pairwise"])
@pytest.mark.parametrize("family", ["qwen2", "llama", "gpt2"])
def test_the_bias_of_the_head_is_kept(family: TinyFamily, kind: str) -> None:
    net = net_on(family, kind)
    ids = torch.randint(3, 300, (4, 40))
    mask = torch.ones_like(ids)
    expected = probability(net.kind, net(ids, mask, mask.bool()))
    model, _ = sequence_classifier(net, pad_token_id=0)
    assert model.config.num_labels == 1
    padded = torch.cat([ids, torch.zeros(4, 3, dtype=torch.long)], dim=1)
    for batch in (ids, padded):
        found = torch.sigmoid(model(batch, attention_mask=(batch > 0).long()).logits[:, 0].double())
        torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)
    assert expected.std() > 0.01


def test_without_a_bias_the_architecture_stays() -> None:
    model, where = sequence_classifier(net_on("qwen2", bias=0.0), pad_token_id=0)
    assert (type(model).__name__, where) == ("Qwen2ForSequenceClassification", "nowhere: it is 0")


def test_a_bias_that_nothing_can_carry_is_refused() -> None:
    with pytest.raises(CheckpointError, match="Gemma2Model has no place for"):
        sequence_classifier(net_on("gemma2"), pad_token_id=0)
