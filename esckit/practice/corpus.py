"""Dialogues of the practice world: seekers to practise on, and what supporters of mixed skill said to them.

A path ``world:PROFILE/N`` names the first N of an endless corpus. Dialogue i depends on the profile and i alone, so a
longer corpus begins with a shorter one. Each is led by one of the baselines that see no more than the words: at
random, in a fixed order, or by the rule. ``world:PROFILE/N/POLICY`` names dialogues with the same seekers that are all
led by one policy, such as ``world:default/600/rule``; they have the same ids.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from hashlib import sha256
from typing import NamedTuple, get_args

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

_PATH = re.compile(r"world:([a-z0-9_-]+)/([1-9][0-9]{0,6})(?:/([a-z]+))?")


class PracticePath(NamedTuple):
    """What a path names: the seekers, how many dialogues, and who leads all of them; None for baselines by turns."""

    profile: Profile
    n: int
    policy: PolicyName | None


def parse_path(path: str) -> PracticePath:
    """Return what a path of the practice world names.

    Raises:
        DataError: If it has another form.
        ConfigError: If there is no such profile.
    """
    found, policies = _PATH.fullmatch(path), get_args(PolicyName)
    policy = next((name for name in policies if found is not None and name == found[3]), None)
    if found is None or (found[3] is not None and policy is None):
        raise DataError.of_file(
            path,
            "no corpus of the practice world",
            expected="world:PROFILE/N or world:PROFILE/N/POLICY, such as world:default/600 or world:default/600/rule; "
            f"profiles are {', '.join(profiles())}, policies {', '.join(policies)}",
        )
    return PracticePath(load_profile(found[1]), int(found[2]), policy)


def identity(path: PracticePath) -> str:
    """Return the SHA-256 over everything that the dialogues of a path depend on, in hex."""
    content = [CORPUS, path.profile.model_dump_json(), language_digest(), str(path.n)]
    content += [path.policy] if path.policy is not None else []
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


def dialogues(path: PracticePath) -> Iterator[Dialogue]:
    """Yield the dialogues of a path; strategies stand as ``source_strategy``, in AFlow's taxonomy."""
    profile, taxonomy = path.profile, load_taxonomy(TAXONOMY)
    for index in range(path.n):
        scenario, game = scenario_of(profile, index), Game(profile)
        leader = path.policy or _LEADERS[derive_seed(CORPUS, profile.name, index, "leader") % len(_LEADERS)]
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
