"""Reasoning and answer are told apart the same way for every backend."""

import time

import pytest

from esckit.errors import BackendError
from esckit.models.chat import Split, make_reply, opened_by, split_reasoning
from esckit.types import Reply, StopReason, Usage


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("I slept badly.", Split(None, "I slept badly.")),
        (" as it stands \n", Split(None, " as it stands \n")),
        ("<think>Sound tired.</think>\n\nI slept badly.", Split("Sound tired.", "I slept badly.")),
        ("<THINK>a</Think>b", Split("a", "b")),
        ("\n<think>\n\n</think>\n\nHi.", Split(None, "Hi.")),
        ("<think>a</think><think>b</think>c", Split("a\nb", "c")),
        ("Well. <think>a</think> Yes.", Split("a", "Well.  Yes.")),
        ("a</think>b", Split("a", "b")),
        ("<think>a</think>b</think>c", Split("a\nb", "c")),
        ("<think>is it </thought>?</think>b", Split("is it </thought>?", "b")),
        ("[THINK]a[/THINK]b", Split("a", "b")),
        ("◁think▷a◁/think▷b", Split("a", "b")),
        ("<|channel>thought\na<channel|>b", Split("a", "b")),
        ("<think>Significantly Better", Split("Significantly Better", "", is_open=True)),
        ("<think>", Split("", "", is_open=True)),
        ("Same <think>or", Split("or", "", is_open=True)),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>b<|return|>",
            Split("a", "b"),
        ),
        ("<|channel|>analysis<|message|>Solved, perhaps", Split("Solved, perhaps", "", is_open=True)),
        ("<think mode='deep'>a</think >b", Split("a", "b")),
        ("<think\n>a</think>b", Split("a", "b")),
        ("<thoughts>a</thoughts>b", Split("a", "b")),
        ("<scratchpad>Solved", Split("Solved", "", is_open=True)),
        ("<|begin_of_thought|>a<|end_of_thought|>b", Split("a", "b")),
        ("<unused94>thought\na<unused95>b", Split("a", "b")),
        ("analysis We weigh.assistantfinalSame", Split("We weigh.", "Same")),
        ("<|channel|>commentary to=x<|message|>a<|call|>", Split("a", "", is_open=True)),
        ("analysisWe weigh.assistantfinalSame", Split("We weigh.", "Same")),
        ("analysisWe weigh it as Solved", Split("We weigh it as Solved", "", is_open=True)),
        ("analysis is hard", Split(None, "analysis is hard")),
    ],
)
def test_reasoning_and_answer_are_told_apart(text: str, found: Split) -> None:
    assert split_reasoning(text) == found


@pytest.mark.parametrize("piece", ["<think>", "</think>", "<think></think>", "<|channel|>", "<|message|>", "analysisA"])
def test_splitting_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    split_reasoning(piece * 40_000)
    assert time.process_time() - began < 2.0


@pytest.mark.parametrize(
    ("prompt", "mark"),
    [
        ("<|im_start|>assistant\n<think>\n", "<think>"),
        ("<|im_start|>assistant\n<think>\n\n</think>\n\n", ""),
        ("<|im_start|>assistant\n", ""),
    ],
)
def test_an_opening_mark_in_the_prompt_is_seen(prompt: str, mark: str) -> None:
    assert opened_by(prompt) == mark


def reply(text: str, stop: StopReason = StopReason.STOP, **more: str) -> Reply:
    return make_reply(text, stop, Usage(calls=1), max_tokens=100, reasoning=more.get("reasoning"))


def test_what_a_model_says_can_be_written_to_a_file() -> None:
    found = reply("Hi \ud83d.", reasoning="\udc00a")
    assert (found.text, found.reasoning) == ("Hi \ufffd.", "\ufffda")
    assert reply("\U0001f600").text == "\U0001f600"


def test_a_reply_without_reasoning_is_its_text() -> None:
    assert reply(" Hi. ") == Reply(" Hi. ", StopReason.STOP, Usage(calls=1))
    assert reply(" Hi. ").whole == " Hi. "


def test_the_whole_reply_has_the_agreed_form_however_it_came() -> None:
    text = "<think>a</think> <response>b</response>"
    assert reply(text).whole == text
    assert reply("<response>b</response>", reasoning="a").whole == "<think>a</think><response>b</response>"
    assert reply("a</think> <response>b</response>").whole == "<think>a</think><response>b</response>"


def test_reasoning_of_a_field_and_of_the_text_come_together() -> None:
    found = reply("<think>b</think>c", reasoning="<think>a</think>")
    assert (found.reasoning, found.text) == ("a\nb", "c")


def test_a_reply_cut_inside_its_reasoning_has_no_answer() -> None:
    for found in (reply("<think>Solved", StopReason.LENGTH), reply("", StopReason.LENGTH, reasoning="Solved")):
        assert found.only_reasoned
        assert (found.text, found.reasoning, found.whole) == ("", "Solved", "<think>Solved")
    assert not reply("", StopReason.LENGTH).only_reasoned
    assert not reply("<think>a</think>b").only_reasoned


def test_a_reply_far_beyond_its_token_limit_is_refused() -> None:
    with pytest.raises(BackendError, match="10000000 characters where 512 tokens") as caught:
        make_reply("x" * 10_000_000, StopReason.STOP, Usage(calls=1), max_tokens=512)
    assert caught.value.kind == "too_long"
