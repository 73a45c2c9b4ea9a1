"""Perplexity under a local model: of the reply alone, given the conversation."""

import math

import pytest
import torch
from torch.nn import functional as F

from esckit.errors import BackendError
from esckit.models.backbones import tiny_random
from esckit.models.local import PerplexityScorer
from esckit.types import Turn

TALK = (Turn(speaker="seeker", text="I lost my job."),)


@pytest.fixture(scope="module")
def scorer() -> PerplexityScorer:
    model, tokenizer = tiny_random()
    return PerplexityScorer(model, tokenizer, name="tiny-random")


def test_the_reply_alone_is_counted_and_the_context_only_read(scorer: PerplexityScorer) -> None:
    model, tokenizer = tiny_random()
    context = tokenizer.encode("Seeker: I lost my job.\nSupporter:", add_special_tokens=False)
    reply = tokenizer.encode(" I hear you.", add_special_tokens=False)
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([context + reply])).logits[0, len(context) - 1 : -1]
    expected = F.cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
    found = scorer.score(TALK, "I hear you.")
    assert found.n_tokens == len(reply)
    assert math.isclose(found.nll, expected, rel_tol=1e-5)
    assert scorer.score((), "I hear you.").nll != found.nll


def test_an_overlong_conversation_loses_its_oldest_part(scorer: PerplexityScorer) -> None:
    long = tuple(Turn(speaker="seeker", text="word " * 3000) for _ in range(3))
    assert scorer.score(long, "I hear you.").n_tokens == scorer.score(TALK, "I hear you.").n_tokens


def test_a_reply_that_cannot_be_read_at_all_is_a_typed_failure(scorer: PerplexityScorer) -> None:
    with pytest.raises(BackendError) as caught:
        scorer.score(TALK, "word " * 20_000)
    assert caught.value.kind == "too_long"


def test_a_likelihood_that_is_not_finite_is_a_typed_failure() -> None:
    model, tokenizer = tiny_random()
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(BackendError) as caught:
        PerplexityScorer(model, tokenizer, name="broken").score(TALK, "I hear you.")
    assert caught.value.kind == "not_finite"
