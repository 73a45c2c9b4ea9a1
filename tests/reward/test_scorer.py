"""A reward model as scorer: grouped, batched and shared scores are those of each input alone."""

import pytest
import torch

from esckit.errors import BackendError, CheckpointError
from esckit.reward.model import collate, probability
from tests.reward.reward_fakes import grouped_inputs, talk, tiny_net, tiny_reward


def alone(model, turns, response):
    batch = collate([model.text.encode(turns, response)])
    with torch.no_grad():
        net, _ = tiny_net(model.net.kind, pooling=model.net.pooling)
        net.load_state_dict(model.net.state_dict())
        return float(probability(net.kind, net(**batch))[0])


@pytest.mark.parametrize("kind", ["classifier", "pairwise", "rrhf"])
@pytest.mark.parametrize("pooling", ["last", "mean"])
@pytest.mark.parametrize("max_batch_tokens", [200, 8192])
def test_scores_are_those_of_each_input_alone(kind, pooling, max_batch_tokens):
    model = tiny_reward(kind, pooling=pooling, max_batch_tokens=max_batch_tokens)
    conversations, responses = grouped_inputs()
    scores = model.score(conversations, responses)
    expected = [alone(model, turns, response) for turns, response in zip(conversations, responses, strict=True)]
    assert scores == pytest.approx(expected, rel=1e-4, abs=1e-6)
    assert len({round(score, 9) for score in scores}) > len(scores) // 2


@pytest.mark.parametrize("kind", ["classifier", "pairwise", "rrhf"])
def test_an_invariant_scorer_reads_each_input_alone(kind):
    model = tiny_reward(kind, is_invariant=True)
    conversations, responses = grouped_inputs()
    together = model.score(conversations, responses)
    assert [
        model.score([turns], [response])[0] for turns, response in zip(conversations, responses, strict=True)
    ] == together
    assert model.score(conversations[::-1], responses[::-1]) == together[::-1]


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_other_architectures_score_alike_in_company_and_alone(family):
    model = tiny_reward(family=family)
    conversations, responses = grouped_inputs(2, 2)
    together = model.score(conversations, responses)
    one_by_one = [model.score([turns], [response])[0] for turns, response in zip(conversations, responses, strict=True)]
    assert together == pytest.approx(one_by_one, rel=1e-4)


def test_equal_inputs_are_scored_once_and_order_does_not_matter():
    model = tiny_reward()
    conversations, responses = grouped_inputs(1, 2)
    once = model.score(conversations, responses)
    spent = model.states.n_read
    twice = model.score([*conversations, *conversations[::-1]], [*responses, *responses[::-1]])
    assert model.states.n_read == 2 * spent
    assert twice == [*once, *once[::-1]]
    assert spent < 0.6 * sum(len(model.text.encode(t, r).ids) for t, r in zip(conversations, responses, strict=True))


def test_nothing_to_score_is_no_error():
    assert tiny_reward().score([], []) == []


def test_a_response_that_does_not_fit_is_refused():
    with pytest.raises(BackendError) as caught:
        tiny_reward().score([talk(1, 3)], ["so " * 2000])
    assert caught.value.kind == "too_long"


def test_a_number_that_is_not_finite_is_an_error_at_once():
    model = tiny_reward()
    model.net.head.out.weight.data.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="not finite"):
        model.score([talk(1, 3)], ["Hello."])
