"""Several replies in one request: the samples of a critic as the choices of one answer."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from esckit.errors import BackendError, ConfigError
from esckit.models.endpoint import EndpointModel
from esckit.types import Replies, Sampling, StopReason, Usage
from tests.models.endpoint_calls import HELLO, run
from tests.models.fake_server import Canned, FakeServer, completion, refusal


class ChoiceServer(FakeServer):
    """Returns as many choices as are asked for, out of order.

    Attributes:
        says: Words a choice, given its place and the seed of the request.
    """

    says: Callable[[int, int], str] = staticmethod(lambda at, seed: f"{at} of seed {seed}")

    def _answer(self, path: str, body: dict[str, Any]) -> Canned:
        answer = super()._answer(path, body)
        if answer is self.usual and answer.status == 200 and "n" in body:
            answer = completion()
            places = reversed(range(body["n"]))
            texts = {at: self.says(at, body["seed"]) for at in places}
            answer.body["choices"] = [
                {"index": at, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
                for at, text in texts.items()
            ]
        return answer


@pytest.fixture
def choices() -> Iterator[ChoiceServer]:
    with ChoiceServer().running() as running:
        yield running


async def ten(model: EndpointModel) -> Replies:
    return await model.complete_several(HELLO, Sampling(max_tokens=16), seed=5, n=10)


def test_choices_come_in_their_order_and_cost_one_call(choices: ChoiceServer) -> None:
    found = run(choices, ten)
    assert [reply.text for reply in found.replies] == [f"{at} of seed 5" for at in range(10)]
    assert found.usage == Usage(calls=1, prompt_tokens=7, completion_tokens=3)
    assert [reply.usage.calls for reply in found.replies] == [1, *[0] * 9]


def test_a_server_is_tried_once(choices: ChoiceServer) -> None:
    async def twice(model: EndpointModel) -> None:
        await ten(model)
        await ten(model)

    run(choices, twice)
    assert [body["n"] for body in choices.chats] == [8, 10, 10]


def test_a_server_without_choices_is_a_config_error(server: FakeServer) -> None:
    with pytest.raises(ConfigError, match=r"returned 1 of 8 choices.*samples_as: null"):
        run(server, ten)
    server.usual = refusal("n must be 1")
    with pytest.raises(ConfigError, match=r"n must be 1.*samples_as: null"):
        run(server, ten)


def test_a_server_whose_choices_share_their_seed_is_a_config_error(choices: ChoiceServer) -> None:
    choices.says = lambda at, seed: "always the same"
    with pytest.raises(ConfigError, match="8 equal choices"):
        run(choices, ten)


def test_a_server_that_is_away_is_no_config_error(choices: ChoiceServer) -> None:
    choices.usual = refusal("busy", status=503)
    with pytest.raises(BackendError, match="busy"):
        run(choices, ten)


def test_fewer_choices_in_the_middle_of_a_run_are_a_failure(choices: ChoiceServer) -> None:
    async def then_fewer(model: EndpointModel) -> None:
        await ten(model)
        choices.queue.append(completion())
        await ten(model)

    with pytest.raises(BackendError, match="1 replies where 10 were asked for") as caught:
        run(choices, then_fewer)
    assert caught.value.billed == Usage(calls=1, prompt_tokens=7, completion_tokens=3).model_dump()


def test_where_no_reason_is_given_a_full_share_of_tokens_is_a_cut(choices: ChoiceServer) -> None:
    async def two(model: EndpointModel, n_tokens: int) -> set[StopReason]:
        await ten(model)
        answer = completion()
        answer.body["choices"] = [{"index": at, "message": {"content": f"text {at}"}} for at in range(2)]
        answer.body["usage"]["completion_tokens"] = n_tokens
        choices.queue.append(answer)
        found = await model.complete_several(HELLO, Sampling(max_tokens=16), seed=5, n=2)
        return {reply.stop_reason for reply in found.replies}

    assert run(choices, lambda model: two(model, 32)) == {StopReason.LENGTH}
    assert run(choices, lambda model: two(model, 20)) == {StopReason.STOP}
