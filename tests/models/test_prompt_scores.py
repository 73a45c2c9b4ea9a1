"""Given answers on a server that returns the log-probabilities of its prompts, beside the local model."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch

from esckit.errors import BackendError, ConfigError
from esckit.models.answer_form import AnswerForm, PromptToken
from esckit.models.endpoint import EndpointModel
from esckit.types import ChoiceScores, Message, Usage
from tests.models.endpoint_calls import run
from tests.models.fake_server import Canned, FakeServer, completion, refusal
from tests.models.local_fakes import tiny_local
from tests.tiny import TinyFamily, tiny_random

LEVELS = ["much worse", "worse", "the same", "better", "much better", "No, the same"]
ASK = [Message("system", "You judge conversations."), Message("user", "Patient: I feel awful.\nHow do I feel?")]


class PromptServer(FakeServer):
    """Answers as vLLM does: a tiny model's own template, tokens and log-probabilities."""

    def __init__(self, family: TinyFamily = "qwen2") -> None:
        super().__init__()
        self.model, self.tokenizer = tiny_random(family)
        self.torch_lock = threading.Lock()

    def _answer(self, path: str, body: dict[str, Any]) -> Canned:
        if path != "/v1/chat/completions" or self.queue:
            return super()._answer(path, body)
        try:
            text = self.tokenizer.apply_chat_template(
                body["messages"], tokenize=False, add_generation_prompt=body.get("add_generation_prompt", True)
            )
        except Exception as error:  # noqa: BLE001  (a template refuses by an exception, and vLLM says so)
            return refusal(str(error))
        answer = completion("x", "length", logprobs={"content": [{"token": "x", "logprob": -1.0, **TOP}]})
        if "prompt_logprobs" in body:
            answer.body["prompt_logprobs"] = self.prompt_log_probs(text)
        return answer

    def prompt_log_probs(self, text: str) -> list[dict[str, Any] | None]:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        with self.torch_lock, torch.inference_mode():
            log_p = torch.log_softmax(self.model(input_ids=torch.tensor([ids])).logits[0].float(), dim=-1)
        listed = [
            {str(token): {"logprob": float(log_p[at, token]), "rank": 1, "decoded_token": "?"}}
            for at, token in enumerate(ids[1:])
        ]
        return [None, *listed]


TOP = {"top_logprobs": [{"token": "x", "logprob": -1.0}]}


@pytest.fixture
def vllm() -> Iterator[PromptServer]:
    with PromptServer().running() as running:
        yield running


async def scores(model: EndpointModel, asked: Sequence[Message] = ASK, temperature: float = 1.0) -> ChoiceScores:
    await model.check()
    return await model.score(asked, LEVELS, temperature=temperature)


@pytest.mark.parametrize("family", ["qwen2", "llama", "gemma2"])
def test_answers_score_as_they_do_on_the_local_model(family: TinyFamily) -> None:
    with PromptServer(family).running() as server:
        found = run(server, scores)
    expected = asyncio.run(tiny_local(family).score(ASK, LEVELS))
    assert [one.log_p for one in found.choices] == pytest.approx([one.log_p for one in expected.choices], abs=1e-3)
    assert [one.n_tokens for one in found.choices] == [one.n_tokens for one in expected.choices]


def test_check_finds_out_that_answers_are_scored(vllm: PromptServer) -> None:
    async def capabilities(model: EndpointModel) -> frozenset[str]:
        await model.check()
        return model.capabilities

    assert run(vllm, capabilities) == {"next_token", "score_at_1"}
    assert [len(body["messages"]) for body in vllm.chats] == [1, 1, 2, 2]


def test_a_call_is_one_call_whose_requests_are_all_counted(vllm: PromptServer) -> None:
    found = run(vllm, scores)
    n = len(LEVELS)
    assert found.usage == Usage(calls=1, prompt_tokens=7 * n, completion_tokens=3 * n)


def test_answers_are_learnt_once(vllm: PromptServer) -> None:
    async def twice(model: EndpointModel) -> None:
        await scores(model)
        await model.score(ASK, LEVELS)

    run(vllm, twice)
    assert len(vllm.chats) == 4 + 3 * len(LEVELS)


def test_another_temperature_is_refused(vllm: PromptServer) -> None:
    with pytest.raises(ConfigError, match="at temperature 1 only"):
        run(vllm, lambda model: scores(model, temperature=1.1))


def test_a_server_that_refuses_the_field_scores_nothing(vllm: PromptServer) -> None:
    vllm.refused_fields = {"prompt_logprobs": "Unrecognized request argument supplied: prompt_logprobs"}
    vllm._answer = super(PromptServer, vllm)._answer  # type: ignore[method-assign]
    vllm.usual = completion("x", "length", logprobs={"content": [{"token": "x", "logprob": -1.0, **TOP}]})

    async def capabilities(model: EndpointModel) -> frozenset[str]:
        await model.check()
        return model.capabilities

    assert run(vllm, capabilities) == {"next_token"}
    assert len(vllm.chats) == 2


def test_what_is_read_does_not_depend_on_a_bad_moment(vllm: PromptServer) -> None:
    async def capabilities(model: EndpointModel) -> frozenset[str]:
        await model.check()
        return model.capabilities

    vllm.models = Canned("no list", 404)
    found = completion("x", "length", logprobs={"content": [{"token": "x", "logprob": -1.0, **TOP}]})
    vllm.queue.extend([found, *[refusal("busy", status=503)] * 4])
    with pytest.raises(BackendError, match="busy"):
        run(vllm, capabilities)


def test_a_failed_answer_bills_those_that_came(vllm: PromptServer) -> None:
    async def ask(model: EndpointModel) -> None:
        await scores(model)
        vllm.queue.append(refusal("no such thing"))
        await model.score(ASK, LEVELS)

    with pytest.raises(BackendError, match="no such thing") as caught:
        run(vllm, ask)
    assert caught.value.billed == Usage(calls=1, prompt_tokens=7 * 5, completion_tokens=3 * 5).model_dump()


@pytest.mark.parametrize(
    ("prompt", "kind"),
    [
        ([None, {"1": {"logprob": -1.0}}], "unreadable"),
        (None, "unreadable"),
        ([None, *({str(token): {"logprob": 0.5}} for token in range(40))], "not_finite"),
    ],
)
def test_prompts_that_do_not_hold_the_answer_are_failures(vllm: PromptServer, prompt: object, kind: str) -> None:
    async def ask(model: EndpointModel) -> None:
        await scores(model)
        odd = completion()
        odd.body["prompt_logprobs"] = prompt
        vllm.queue.append(odd)
        await model.score(ASK, LEVELS)

    with pytest.raises(BackendError) as caught:
        run(vllm, ask)
    assert caught.value.kind == kind


def tokens(text: str) -> list[PromptToken]:
    return [PromptToken(letter, -1.0) for letter in text]


def test_the_form_is_what_all_answers_have_around_them() -> None:
    form = AnswerForm.learnt(tokens("Hello>"), tokens("Hello>yes|."), tokens("Hello>no|."))
    assert form == AnswerForm(tuple("Hello>"), 1)
    assert form.answer_in(tokens("Hello>same|.")) == tuple("same|")
    assert form.score(tokens("What?>same|."), tuple("same|")).log_p == -5.0


@pytest.mark.parametrize(
    ("begun", "yes", "no"),
    [
        ("Hello><think>", "Hello>yes|", "Hello>no|"),  # a template that opens reasoning
        ("Hello>", "Hello>yes", "Hello>no"),  # no end of a turn
        ("Hello>", "Hello>", "Hello>"),
        ("Hello>", "Hello>|", "Hello>|"),
        ("", "", ""),
    ],
)
def test_a_template_of_another_form_has_none(begun: str, yes: str, no: str) -> None:
    assert AnswerForm.learnt(tokens(begun), tokens(yes), tokens(no)) is None
