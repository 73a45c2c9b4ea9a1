"""Numbers of the reward model's losses, and the head they sit on."""

import math

import pytest
import torch

from esckit.reward.model import RewardHead, pool, probability
from esckit.reward.trainer import classifier_loss, pairwise_loss, rrhf_loss


def test_the_heads_numbers():
    logits = torch.tensor([[0.2, 1.0]])
    assert float(probability("classifier", logits)[0]) == pytest.approx(0.689974, abs=1e-6)
    assert float(classifier_loss(logits, torch.tensor([1]))) == pytest.approx(0.371101, abs=1e-6)
    score, pair, one = torch.tensor([1.2, 0.4]), torch.tensor([[0, 1]]), torch.ones(1)
    assert float(pairwise_loss(score, pair, one)) == pytest.approx(0.371101, abs=1e-6)


def test_rrhf_ranks_and_keeps_the_best_likely():
    score = torch.tensor([-0.9, -0.7, -1.2])
    pairs = torch.tensor([[0, 1], [0, 2], [1, 2]])
    n_tokens = torch.tensor([4, 2, 3])
    likelihood = 0.9 * 4
    assert float(rrhf_loss(score, pairs, torch.tensor([0]), n_tokens)) - likelihood == pytest.approx(0.2, abs=1e-6)


def test_class_weights_do_not_hang_on_how_inputs_meet():
    logits, label = torch.randn(6, 2), torch.tensor([0, 1, 0, 0, 0, 1])
    weight = torch.tensor([0.75, 1.5])
    one_by_one = [float(classifier_loss(logits[i : i + 1], label[i : i + 1], weight)) for i in range(6)]
    assert float(classifier_loss(logits, label, weight)) == pytest.approx(math.fsum(one_by_one) / 6, rel=1e-6)


def test_a_batch_of_contexts_is_the_mean_of_contexts():
    score = torch.tensor([0.3, -0.2, 1.1, 0.0, 0.4])
    first = pairwise_loss(score, torch.tensor([[0, 1]]), torch.ones(1))
    second = pairwise_loss(score, torch.tensor([[2, 3], [2, 4]]), torch.full((2,), 0.5))
    both = pairwise_loss(score, torch.tensor([[0, 1], [2, 3], [2, 4]]), torch.tensor([0.5, 0.25, 0.25]))
    assert float(both) == pytest.approx(float(first + second) / 2)


def test_pooling_reads_real_tokens_only():
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    hidden = torch.arange(8.0).view(2, 4, 1)
    hidden[0, 2:] = torch.nan
    assert pool(hidden, mask, "last").flatten().tolist() == [1.0, 7.0]
    assert pool(hidden, mask, "mean").flatten().tolist() == [0.5, 5.5]


def test_the_head_stays_in_float32():
    head = RewardHead(8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert head(torch.randn(3, 8, dtype=torch.bfloat16)).dtype == torch.float32
