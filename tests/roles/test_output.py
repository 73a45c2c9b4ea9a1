"""Output splitting: the agreed form, every malformed kind, and that nothing is lost or leaked."""

import asyncio
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.ledger import Ledger
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice, split_output
from esckit.roles.supporters import PromptedSupporter
from esckit.types import Sampling, Turn
from tests.fakes import FakeModel

VECTORS = [
    ("<think>a</think> <response>Hi.</response>", "ok", "Hi."),
    ("<response>Hi.</response>", "closed_response", "Hi."),
    ("<think>a</think> Hi.", "untagged", "Hi."),
    ("<think>a</think><response>Hi.", "open_response", "Hi."),
    ("a</think> Hi.", "untagged", "Hi."),
    ("<think>a <response>Hi.</response>", "closed_response", "Hi."),
    ("<think>a</think> <response> </response>", "blank", ""),
    ("<think>a</think> <response>Hi.</response> Bye.", "closed_response", "Hi."),
    ("<think>a", "blank", ""),
    ("<think></think> <response>Hi.</response>", "closed_response", "Hi."),
    ("<think>say <response>x</response></think> <response>Hi.</response>", "closed_response", "Hi."),
    ("<response>Hi.</response> <think>a</think>", "closed_response", "Hi."),
]


@pytest.mark.parametrize(("text", "kind", "reply"), VECTORS)
def test_vectors(text: str, kind: str, reply: str) -> None:
    found = split_output(text)
    assert (found.parse_kind, found.response) == (kind, reply)
    assert found.format_ok is (kind == "ok")
    assert found.raw == text


def test_white_space_around_the_agreed_form_is_fine() -> None:
    found = split_output("\n <think>so\nsad</think>\n\n<response>I hear you.\n</response> \n")
    assert (found.parse_kind, found.reasoning, found.response) == ("ok", "so\nsad", "I hear you.")


def test_tags_are_case_sensitive() -> None:
    assert split_output("<Think>a</Think> <response>Hi.</response>").parse_kind == "closed_response"


pieces = st.lists(
    st.sampled_from(["<think>", "</think>", "<response>", "</response>", "a", " ", "\n", "Hi."]), max_size=12
)


@given(pieces)
def test_no_tag_reaches_a_reply_and_blank_means_blank(parts: list[str]) -> None:
    found = split_output("".join(parts))
    assert not any(tag in found.response for tag in ("<think>", "</think>", "<response>", "</response>"))
    assert (found.response == "") == (found.parse_kind == "blank")
    assert found.format_ok == (found.parse_kind == "ok")


@pytest.mark.parametrize(
    ("prompt", "text", "format_ok"),
    [
        ("supporter_rlff", "<think>a</think> <response>Hi.</response>", True),
        ("supporter_rlff", "Hi.", False),
        ("supporter_ppdpp", "Hi.", True),
        ("supporter_ppdpp", "<response>Hi.", False),
    ],
)
def test_plain_text_is_the_agreed_form_where_the_prompt_asks_for_no_tags(
    prompt: str, text: str, format_ok: bool
) -> None:
    voice = Voice(FakeModel(lambda messages, seed: text), Sampling(temperature=0.0))
    talk = [Turn(speaker="seeker", text="I am low.")]
    found = asyncio.run(PromptedSupporter(voice, load_prompt(prompt)).reply(talk, Ledger(7, "d").at(1)))
    assert (found.response, found.format_ok) == ("Hi.", format_ok)


@pytest.mark.parametrize(
    "piece", ["<response>", "<think>", "</think>", "<response>a</response>", "<think> </think>", " "]
)
def test_splitting_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    split_output(piece * 64_000)
    split_output(f"<think>a</think>{' ' * 80_000}b<response>")
    assert time.process_time() - began < 2.0
