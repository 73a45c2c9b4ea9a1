"""The words of the practice world: what is said in it, and how a supporter's words are read.

Words count. What a supporter turn does is read from its text by a few published rules (:func:`function_of`), whoever
wrote it; so a reply that only claims a strategy gains nothing, and neither does one that repeats itself. The seeker's
text shows, with the probability of its pace, which need it has; :func:`shown_need` reads it back.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Literal

from pydantic import Field

from esckit.documents import read_yaml, strings_in
from esckit.ledger import derive_seed, uniform
from esckit.practice.world import FUNCTIONS, NEEDS, Fit, Function, Need, State
from esckit.strategies.taxonomy import Taxonomy
from esckit.text import n_words, tokenise
from esckit.types import Record, Scenario, Turn

SHORTEST, LONGEST = 8, 60
"""Words of a supporter turn that does anything."""

_SAME = 0.8
"""Share of common words from which on two replies count as the same."""

_MIN_CONTENT = 4
"""Letters of a content word."""

_HEAVY, _LIGHT = 4, 1
"""Intensities from which on, and down to which, a seeker sounds heavy or light."""

_CLAUSE = re.compile(r"[^.!?]+[.!?]?")

_N_TEXTS = 4096
"""Texts whose words are remembered: a conversation is read again after each of its turns."""


class _Lines(Record):
    openers: tuple[str, ...]
    cores: tuple[str, ...]


class _SeekerLines(Record):
    heard: _Lines
    understood: _Lines
    act: _Lines
    hidden: _Lines
    reactions: dict[Fit, tuple[str, ...]]
    moods: dict[str, tuple[str, ...]]
    resolved: tuple[str, ...]
    leaving: tuple[str, ...]


class _Situations(Record):
    topics: tuple[str, ...]
    since: tuple[str, ...]
    effects: tuple[str, ...]


class _Reading(Record):
    act: tuple[re.Pattern[str], ...]
    rhetorical: tuple[re.Pattern[str], ...]
    comfort: tuple[re.Pattern[str], ...]


class _Thoughts(Record):
    words: str
    needs: dict[Need | Literal["hidden"], str]
    functions: dict[Function, str]


class Language(Record):
    """``language.yaml``: forms of turns, and the rules by which turns are read."""

    marks: dict[Need, tuple[str, ...]]
    seeker: _SeekerLines
    supporter: dict[Function, _Lines]
    thoughts: _Thoughts
    reading: _Reading
    topics: dict[str, tuple[str, ...]]
    emotions: tuple[str, ...]
    situations: _Situations
    empty_words: frozenset[str] = Field(repr=False)


@cache
def language() -> Language:
    """Return the language of the practice world."""
    return Language.model_validate(read_yaml(Path(__file__).parent / "language.yaml", "language of the practice world"))


def every_form() -> tuple[str, ...]:
    """Return all that can be said in the practice world, in pieces, and thoughts but for the words that they repeat."""
    said = language().model_dump(include={"seeker", "supporter", "topics", "situations"})
    thoughts = language().thoughts.model_dump(exclude={"words"})
    return tuple(strings_in([said["seeker"], said["supporter"], thoughts, said["topics"], said["situations"]]))


@cache
def language_digest() -> str:
    """Return the SHA-256 of what is said and how it is read, in hex."""
    files = [Path(__file__).parent / name for name in ("language.yaml", "functions.yaml")]
    return sha256(b"\0".join(file.read_bytes() for file in files)).hexdigest()


def draw(forms: Sequence[str], *place: str | int) -> str:
    """Return one of several forms, drawn by stable ids."""
    return forms[int(uniform(derive_seed("practice", *place)) * len(forms))]


# ---------------------------------------------------------------- reading


@lru_cache(maxsize=_N_TEXTS)
def content_words(text: str) -> tuple[str, ...]:
    """Return the words that carry content, in order and without repetition: four letters or more, none of a list."""
    empty = language().empty_words
    found = (word for word in tokenise(text) if len(word) >= _MIN_CONTENT and word.isalpha() and word not in empty)
    return tuple(dict.fromkeys(found))


def function_of(reply: str, turns: Sequence[Turn]) -> Function:
    """Return what a supporter's reply does.

    Advice is advice whatever stands around it; then a question counts, then comfort, then a reflection: at least two
    content words of the seeker's last turn. A reply of fewer than 8 or more than 60 words, or one that says again what
    an earlier reply said, does nothing.

    Args:
        reply: The supporter's words.
        turns: The dialogue before it.
    """
    if not SHORTEST <= n_words(reply) <= LONGEST or _is_repeated(reply, turns):
        return "other"
    rules, text = language().reading, reply.casefold().replace("\u2019", "'")
    clauses = [clause.strip() for clause in _CLAUSE.findall(text)]
    if any(pattern.search(clause) for pattern in rules.act for clause in clauses):
        return "act"
    questions = [clause for clause in clauses if clause.endswith("?")]
    if any(not any(pattern.search(clause) for pattern in rules.rhetorical) for clause in questions):
        return "explore"
    if any(pattern.search(text) for pattern in rules.comfort):
        return "comfort"
    heard = next((turn.text for turn in reversed(turns) if turn.speaker == "seeker"), "")
    return "reflect" if len(set(content_words(reply)) & set(content_words(heard))) >= 2 else "other"


def _is_repeated(reply: str, turns: Sequence[Turn]) -> bool:
    words = _different_words(reply)
    earlier = (_different_words(turn.text) for turn in turns if turn.speaker == "supporter")
    return any(len(words & said) >= _SAME * len(words | said) for said in earlier)


@lru_cache(maxsize=_N_TEXTS)
def _different_words(text: str) -> frozenset[str]:
    return frozenset(tokenise(text))


@lru_cache(maxsize=_N_TEXTS)
def shown_need(text: str) -> Need | None:
    """Return the need that a seeker's words show; None if they show none, or several."""
    shown = [need for need in NEEDS if any(mark in text.casefold() for mark in language().marks[need])]
    return shown[0] if len(shown) == 1 else None


@cache
def _functions() -> Mapping[str, Function]:
    found = read_yaml(Path(__file__).parent / "functions.yaml", "functions")
    return {strategy: function for function, strategies in found.items() for strategy in strategies}


_BY_STAGE: dict[str, Function] = {"exploration": "explore", "comforting": "comfort", "action": "act"}


def strategy_functions(taxonomy: Taxonomy) -> dict[str, Function]:
    """Return what each strategy is meant to do: by a table of the shipped strategies, else by its stage."""
    return {one.name: _functions().get(one.name, _BY_STAGE.get(one.stage, "other")) for one in taxonomy.strategies}


def meant_function(strategy: str) -> Function | None:
    """Return what a shipped strategy is meant to do; None for one that no shipped taxonomy has."""
    return _functions().get(strategy)


# ---------------------------------------------------------------- the seeker


@cache
def every_topic() -> tuple[str, ...]:
    """Return all that a seeker may call its problem."""
    return tuple(topic for topics in language().topics.values() for topic in topics)


def topic_of(scenario: Scenario) -> str:
    """Return what a seeker of the practice world calls its problem: one of its kind of problem, drawn by the id."""
    kind = (scenario.problem_type or "").casefold()
    known = language().topics
    topics = known[kind] if kind in known else (kind,) if kind else every_topic()
    named = next((topic for topic in every_topic() if topic in scenario.situation), None)
    return named or draw(topics, scenario.id, "topic")


def situation(topic: str, place: Sequence[str | int]) -> str:
    """Return a scenario's situation, with which the seeker opens; it shows no need."""
    forms = language().situations
    said = draw(forms.topics, *place, "topic").format(topic=topic)
    return f"{said} {draw(forms.since, *place, 'since')}, {draw(forms.effects, *place, 'effect')}"


def seeker_line(state: State, *, fit: Fit | None, is_shown: bool, topic: str, place: Sequence[str | int]) -> str:
    """Return what the seeker says.

    Args:
        state: After the supporter's turn.
        fit: What that turn was; None at the opening.
        is_shown: Whether the need shows.
        topic: See :func:`topic_of`.
        place: Stable ids of the draw.
    """
    lines = language().seeker
    if state.has_left or state.intensity == 0:
        return draw(lines.leaving if state.has_left else lines.resolved, *place, "end").format(topic=topic)
    forms: _Lines = getattr(lines, state.need if is_shown else "hidden")
    mood = "heavy" if state.intensity >= _HEAVY else "light" if state.intensity <= _LIGHT else "middling"
    said = (
        draw(lines.reactions[fit], *place, "reaction") if fit else "",
        draw(forms.openers, *place, "opener"),
        draw(forms.cores, *place, "core").format(topic=topic),
        draw(lines.moods[mood], *place, "mood"),
    )
    return " ".join(part for part in said if part)


# ---------------------------------------------------------------- the supporter


def supporter_line(function: Function, turns: Sequence[Turn], place: Sequence[str | int]) -> str:
    """Return words that do what they are meant to, after these turns; if no form does, the last that was tried.

    Args:
        function: What the words are meant to do; for ``other`` they comfort.
        turns: The dialogue before.
        place: Stable ids of the draw.
    """
    meant = function if function in FUNCTIONS else "comfort"
    forms = language().supporter[meant]
    heard = next((turn.text for turn in reversed(turns) if turn.speaker == "seeker"), "")
    line = ""
    for attempt in range(len(forms.openers) * len(forms.cores)):
        words = sorted(content_words(heard), key=lambda word: derive_seed("practice", *place, attempt, word))[:2]
        core = draw(forms.cores, *place, "core", attempt).format(words=" and ".join(words) or "these things")
        line = f"{draw(forms.openers, *place, 'opener', attempt)} {core}"
        if function_of(line, turns) == meant:
            return line
    return line


def slip(function: Function, turns: Sequence[Turn], place: Sequence[str | int]) -> str:
    """Return words that do nothing: an earlier reply once more, or a reflection of words that nobody said.

    Args:
        function: What the words should have done; see :func:`supporter_line`.
        turns: The dialogue before.
        place: Stable ids of the draw.

    Returns:
        If neither comes to nothing, as at the opening of a conversation, what :func:`supporter_line` returns.
    """
    said = [turn.text for turn in turns if turn.speaker == "supporter"]
    if function != "reflect":
        again = [line for line in said if function_of(line, []) == function]
        return draw(again, *place, "slip") if again else supporter_line(function, turns, place)
    elsewhere = Turn(speaker="seeker", text=situation(draw(every_topic(), *place, "slip"), (*place, "slip")))
    line = supporter_line(function, [*turns, elsewhere], place)
    return line if function_of(line, turns) == "other" else supporter_line(function, turns, place)


def supporter_thought(reply: str, turns: Sequence[Turn]) -> str | None:
    """Return in the world's own words what a seeker talks of, which need it showed last and what a reply to it does.

    All are read from the words by the published rules, so the sentences are true whoever chose the reply. The seeker's
    words are the two that the reply says back, else the last two: a small model learns to copy if every thought does.

    Args:
        reply: The supporter's words.
        turns: The dialogue before it.

    Returns:
        None if the reply does nothing.
    """
    done, forms = function_of(reply, turns), language().thoughts
    if done not in forms.functions:
        return None
    heard = [turn.text for turn in reversed(turns) if turn.speaker == "seeker"]
    need: Need | Literal["hidden"] = next((need for need in map(shown_need, heard) if need), "hidden")
    words = content_words(heard[0]) if heard else ()
    named = [word for word in content_words(reply) if word in words][:2] if done == "reflect" else words[-2:]
    talk = forms.words.format(words=" and ".join(named) or "these things")
    return f"{talk} {forms.needs[need]} {forms.functions[done]}"
