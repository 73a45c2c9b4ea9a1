"""Dialogues of the practice world: seekers to practise on, and what supporters of mixed skill said to them.

A path ``world:PROFILE/N`` names the first N of an endless corpus. Dialogue i depends on the profile and i alone, so a
longer corpus begins with a shorter one. Each is led by one of the baselines that see no more than the words: at
random, in a fixed order, or by the rule.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256

from esckit.errors import DataError
from esckit.ledger import derive_seed
from esckit.practice.language import draw, language, language_digest, situation
from esckit.practice.players import BaselineStrategist, Game, PolicyName, play
from esckit.practice.world import HORIZON, Profile, load_profile, profiles, solution
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Dialogue, Scenario, Source, Survey

CORPUS = "practice"

TAXONOMY = "aflow"

_LEADERS: tuple[PolicyName, ...] = ("random", "fixed", "rule")

_PATH = re.compile(r"world:([a-z0-9_-]+)/([1-9][0-9]{0,6})")


def parse_path(path: str) -> tuple[Profile, int]:
    """Return the profile and the number of dialogues that a path names.

    Raises:
        DataError: If it has another form.
        ConfigError: If there is no such profile.
    """
    found = _PATH.fullmatch(path)
    if found is None:
        raise DataError.of_file(
            path,
            "no corpus of the practice world",
            expected=f"world:PROFILE/N, such as world:default/600; profiles are {', '.join(profiles())}",
        )
    return load_profile(found[1]), int(found[2])


def identity(profile: Profile, n: int) -> str:
    """Return the SHA-256 over everything that the first n dialogues of a profile depend on, in hex."""
    content = [CORPUS, profile.model_dump_json(), language_digest(), str(n)]
    return sha256("\n".join(content).encode()).hexdigest()


def scenario_of(profile: Profile, index: int) -> Scenario:
    """Return the seeker of dialogue ``index``."""
    words, place = language(), (profile.name, index)
    kind = draw(tuple(words.topics), *place, "kind")
    topic = draw(words.topics[kind], *place, "topic")
    return Scenario(
        id=f"{CORPUS}-{profile.name}-{index:06d}",
        situation=situation(topic, ("situation", *place)),
        emotion_type=draw(words.emotions, *place, "emotion"),
        problem_type=kind,
    )


def dialogues(profile: Profile, n: int) -> Iterator[Dialogue]:
    """Yield the first n dialogues of a profile; strategies stand as ``source_strategy``, in AFlow's taxonomy."""
    taxonomy = load_taxonomy(TAXONOMY)
    for index in range(n):
        scenario, game = scenario_of(profile, index), Game(profile)
        leader = _LEADERS[derive_seed(CORPUS, profile.name, index, "leader") % len(_LEADERS)]
        strategist = BaselineStrategist(game, leader, taxonomy.names, solution(profile.name))
        seeds = (derive_seed(CORPUS, profile.name, index, t) for t in range(HORIZON))
        turns = play(game, strategist, scenario, seeds, spoken_in="corpus")
        intensities = game.opening(scenario).intensity, game.state(scenario, turns).intensity
        yield Dialogue(
            scenario=scenario,
            # A loader leaves ``strategy`` to the selection.
            turns=tuple(turn.model_copy(update={"source_strategy": turn.strategy, "strategy": None}) for turn in turns),
            survey=Survey(initial_intensity=intensities[0], final_intensity=intensities[1]),
            source=Source(corpus=CORPUS, format=CORPUS, file=f"world:{profile.name}", record=index),
            taxonomy=TAXONOMY,
        )
