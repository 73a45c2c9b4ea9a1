"""Replies can be heard while they are written, and are the same replies."""

import asyncio
import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.errors import BackendError
from esckit.models.events import EventReader
from esckit.models.scripted import ScriptedModel
from esckit.models.streaming import listening
from esckit.types import Message, Sampling
from tests.models.endpoint_calls import HELLO, run
from tests.models.fake_server import Canned, FakeServer, completion, refusal
from tests.models.local_fakes import prompts, tiny_local

EVENTS = {"Content-Type": "text/event-stream"}
USAGE = {"prompt_tokens": 7, "completion_tokens": 3}


def chunk(finish=None, **delta):
    return {"choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def streamed(*events, is_over=True):
    lines = [": hold on", *(f"data: {json.dumps(event, ensure_ascii=False)}" for event in events)]
    return Canned("\n\n".join([*lines, *(["data: [DONE]"] if is_over else [])]) + "\n\n", headers=EVENTS)


def heard(model, messages, sampling, seed):
    """Return the reply, and all that a listener heard of it."""
    pieces = []

    async def complete():
        with listening(pieces.append):
            return await model.complete(messages, sampling, seed=seed)

    return complete, pieces


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), Sampling(max_tokens=12, stop=("e",))])
def test_a_local_reply_is_the_same_when_it_is_heard(sampling):
    model = tiny_local()
    for seed, messages in enumerate(prompts(3)):
        alone = asyncio.run(model.complete(messages, sampling, seed=seed))
        complete, pieces = heard(model, messages, sampling, seed)
        assert asyncio.run(complete()) == alone
        assert pieces[-1].strip() == alone.whole.rstrip("\ufffd").strip()
        assert all(alone.whole.strip().startswith(piece.strip()) for piece in pieces)
        assert len(pieces) >= alone.usage.completion_tokens - 1


def test_a_scripted_reply_comes_word_by_word():
    model = ScriptedModel(lambda messages, sampling, seed: "one two three", name="words")
    complete, pieces = heard(model, [Message("user", "Hello")], Sampling(), 0)
    assert asyncio.run(complete()).text == "one two three"
    assert pieces == ["one ", "one two ", "one two three"]


def from_server(*answers, sampling=Sampling()):
    server, pieces = FakeServer(), []
    server.queue.extend(answers)

    async def use(model):
        with listening(pieces.append):
            return await model.complete(HELLO, sampling, seed=3)

    with server.running():
        try:
            return run(server, use), pieces, server.chats
        except BackendError as error:
            return error, pieces, server.chats


def test_a_servers_events_make_the_whole_answer():
    events = [
        chunk(reasoning_content="They "),
        chunk(reasoning_content="fret."),
        chunk(content="That "),
        chunk(content="is hard — 很难。"),
        chunk("stop"),
        {"choices": [], "usage": USAGE},
    ]
    reply, pieces, chats = from_server(streamed(*events))
    assert (reply.text, reply.reasoning) == ("That is hard — 很难。", "They fret.")
    assert (reply.usage.prompt_tokens, reply.usage.completion_tokens) == (7, 3)
    assert pieces[1:] == [
        "<think>They fret.",
        "<think>They fret.</think>That ",
        "<think>They fret.</think>That is hard — 很难。",
        "<think>They fret.</think>That is hard — 很难。",
    ]
    assert chats[0]["stream"] is True


def test_events_that_break_off_are_asked_for_again():
    broken = streamed(chunk(content="That "), is_over=False)
    reply, pieces, chats = from_server(broken, streamed(chunk(content="I see."), chunk("stop")))
    assert reply.text == "I see."
    assert pieces[0] == "That "
    assert len(chats) == 2


def test_an_error_inside_a_stream_is_a_failure():
    fault = {"error": {"message": "the prompt is too long", "code": 400}}
    error, _, _ = from_server(streamed(chunk(content="That "), fault))
    assert isinstance(error, BackendError)
    assert "too long" in str(error)


def test_a_server_that_refuses_to_stream_answers_whole():
    refused = refusal("stream is not supported here")
    reply, pieces, chats = from_server(refused, completion("hello"))
    assert (reply.text, pieces) == ("hello", [])
    assert ["stream" in body for body in chats] == [True, False]


def test_nobody_listens_and_nothing_is_streamed():
    with FakeServer().running() as server:
        run(server, lambda model: model.complete(HELLO, Sampling(), seed=0))
    assert "stream" not in server.chats[0]


@given(cuts=st.lists(st.integers(0, 200), max_size=8))
def test_pieces_may_be_cut_anywhere(cuts):
    body = streamed(chunk(content="Grüße "), chunk(content="you"), chunk("stop")).body.encode()
    texts: list[str] = []
    reader = EventReader(texts.append)
    places = sorted({0, len(body), *(min(cut, len(body)) for cut in cuts)})
    for start, end in pairwise(places):
        reader.feed(body[start:end])
    assert json.loads(reader.completion())["choices"][0]["message"]["content"] == "Grüße you"
    assert texts[-1] == "Grüße you"
