"""What is said in the practice world is read back as it was meant."""

from __future__ import annotations

from itertools import product
from typing import Any

import pytest

from esckit.practice.language import (
    content_words,
    function_of,
    language,
    seeker_line,
    shown_need,
    slip,
    strategy_functions,
    supporter_line,
    supporter_thought,
)
from esckit.practice.world import FUNCTIONS, NEEDS, Function, Need, State
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Turn

TOPICS = [topic for topics in language().topics.values() for topic in topics]

HEARD = Turn(speaker="seeker", text="My manager moved the deadline and my sister called about the hospital.")


def seeker_turn(need: Need, place: int, topic: str, **facts: Any) -> str:
    state = State(need, 2, facts.pop("intensity", 4))
    return seeker_line(state, **{"fit": "good", "is_shown": True, "topic": topic, "place": (place,), **facts})


@pytest.mark.parametrize("need", NEEDS)
def test_a_shown_need_is_read(need: Need) -> None:
    texts = {seeker_turn(need, place, topic) for place in range(40) for topic in TOPICS}
    assert {shown_need(text) for text in texts} == {need}
    cores = {seeker_turn(need, place, "rent", fit=None, intensity=2) for place in range(400)}
    assert len(cores) >= 30


def test_a_hidden_need_is_not_read() -> None:
    texts = {seeker_turn("act", place, topic, is_shown=False) for place in range(40) for topic in TOPICS}
    assert {shown_need(text) for text in texts} == {None}


def test_every_seeker_turn_can_be_reflected() -> None:
    for need, topic, place, shown in product(NEEDS, TOPICS, range(12), (True, False)):
        assert len(content_words(seeker_turn(need, place, topic, is_shown=shown))) >= 2


@pytest.mark.parametrize("function", FUNCTIONS)
def test_the_grammar_does_what_it_means(function: Function) -> None:
    forms = set()
    for place in range(150):
        turns = [Turn(speaker="seeker", text=seeker_turn(NEEDS[place % 3], place, TOPICS[place % len(TOPICS)]))]
        for again in range(8):
            line = supporter_line(function, turns, (place, again))
            assert function_of(line, turns) == function
            forms.add(line)
            turns.append(Turn(speaker="supporter", text=line))
            turns.append(Turn(speaker="seeker", text=seeker_turn("heard", again, TOPICS[again])))
    assert len(forms) >= 30


@pytest.mark.parametrize(
    ("reply", "function"),
    [
        ("That sounds really hard, and it is understandable that you feel like this.", "comfort"),
        ("That sounds really hard, and you could talk to your manager about it tomorrow.", "act"),
        ("That sounds really hard. What was the worst moment of that day for you?", "explore"),
        ("That sounds really hard for anyone to go through, isn't it?", "comfort"),
        ("So your manager and the hospital both came upon you at the same time.", "reflect"),
        ("So the two of them came upon you at the very same time.", "other"),
        ("Have you thought about asking for a few days off from the office?", "act"),
        ("I understand.", "other"),
        ("What happened then?", "other"),
        ("word " * 61, "other"),
        ("", "other"),
    ],
)
def test_a_reply_is_read_by_its_words(reply: str, function: Function) -> None:
    assert function_of(reply, [HEARD]) == function


def test_a_repeated_reply_does_nothing() -> None:
    reply = "That sounds really hard, and it is understandable that you feel like this."
    turns = [HEARD, Turn(speaker="supporter", text=reply), HEARD]
    assert function_of(reply, turns) == "other"
    assert function_of(reply.replace("really", "very"), turns) == "other"


@pytest.mark.parametrize("function", FUNCTIONS)
def test_a_slip_does_nothing_once_there_is_something_to_say_again(function: Function) -> None:
    first = Turn(speaker="supporter", text=supporter_line(function, [HEARD], ("first",)))
    lines = {slip(function, [HEARD, first, HEARD], ("slip", number)) for number in range(50)}
    assert {function_of(line, [HEARD, first, HEARD]) for line in lines} == {"other"}
    if function == "reflect":
        assert len(lines) > 30
    else:
        assert lines == {first.text}
        assert function_of(slip(function, [HEARD], ("slip", 0)), [HEARD]) == function


@pytest.mark.parametrize(
    ("reply", "words"),
    [
        ("So your manager and the hospital both came upon you at the same time.", "manager and hospital"),
        ("That sounds really hard. What was the worst moment of that day for you?", "called and hospital"),
    ],
)
def test_a_thought_names_words_of_the_seeker(reply: str, words: str) -> None:
    assert (supporter_thought(reply, [HEARD]) or "").startswith(f"They talk of {words}. They have not shown")


@pytest.mark.parametrize("name", ["aflow", "esconv", "extes", "cso"])
def test_every_shipped_strategy_has_a_function(name: str) -> None:
    taxonomy = load_taxonomy(name)
    found = strategy_functions(taxonomy)
    assert set(found) == set(taxonomy.names)
    if name != "cso":
        assert set(FUNCTIONS) <= set(found.values())


def test_the_eight_strategies_of_aflow() -> None:
    found = list(strategy_functions(load_taxonomy("aflow")).values())
    assert [found.count(function) for function in FUNCTIONS] == [1, 1, 3, 3]
