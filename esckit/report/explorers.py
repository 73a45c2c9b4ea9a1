"""Trees, futures and dialogues of a run as the page's script walks through them.

What is embedded is compact JSON with short keys. A text is a string, or the number of its words where texts are left
out. A page holds as many records as fit ``EXPLORER_BYTES`` and says how many there are; on paper and in Markdown a
table stands for them.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esckit.report.blocks import Explorer, Table
from esckit.report.source import ABSENT, Run, number, section
from esckit.roles.verdicts import PRESETS
from esckit.text import n_words
from esckit.types import (
    Context,
    CriticReading,
    EpisodeTurn,
    Exchange,
    Future,
    Scenario,
    SearchTree,
    Turn,
    main_line,
)

EXPLORER_BYTES = 2_000_000

EPISODES = "episodes.jsonl"
"""The self-played dialogues of an evaluation."""

_PRINTED = 24


class Redactor:
    """Returns texts as an explorer may show them."""

    def __init__(self, quotes: bool) -> None:
        self.quotes = quotes

    def __call__(self, text: str | None) -> str | int | None:
        """Return a text, or its number of words where texts are left out."""
        return text if self.quotes or text is None else n_words(text)

    def turns(self, turns: Iterable[Turn]) -> list[list[Any]]:
        """Return turns as [speaker, text, strategy]."""
        return [[turn.speaker, self(turn.text), turn.strategy] for turn in turns]

    def scenario(self, scenario: Scenario) -> dict[str, Any]:
        """Return a scenario: its labels, and the situation as a text."""
        return {
            "situation": self(scenario.situation or None),
            "labels": [x for x in (scenario.emotion_type, scenario.problem_type, scenario.experience_type) if x],
        }


def fitting(items: Iterable[dict[str, Any]], budget: int = EXPLORER_BYTES) -> list[dict[str, Any]]:
    """Return the first items whose JSON fits the budget, at least one if there is any."""
    kept: list[dict[str, Any]] = []
    for item in items:
        budget -= len(json.dumps(item, ensure_ascii=False).encode("utf-8", "replace"))
        if budget < 0 and kept:
            break
        kept.append(item)
    return kept


def presets() -> dict[str, Any]:
    """Return level names and values in quarters per critic preset, so that the page can draw readings."""
    return {name: {"levels": preset.levels, "quarters": preset.quarters} for name, preset in PRESETS.items()}


# ---------------------------------------------------------------- trees


def trees_explorer(run: Run, trees: Sequence[SearchTree]) -> Explorer:
    """Return the trees of a run, to be walked node by node."""
    shown = Redactor(run.quotes)
    data = {"items": fitting(_tree(tree, shown) for tree in trees), "n": len(trees)}
    return Explorer("trees", data, (_tree_table(trees),))


def _tree(tree: SearchTree, shown: Redactor) -> dict[str, Any]:
    index_of = {node.id: index for index, node in enumerate(tree.nodes)}
    strategy_of = {name: index for index, name in enumerate(tree.strategies)}
    return {
        "id": tree.id,
        **shown.scenario(tree.scenario),
        "split": tree.split,
        "status": tree.status,
        "round": tree.round,
        "strategies": tree.strategies,
        "failures": [[failure.stage, failure.kind, failure.place] for failure in tree.failures],
        "nodes": [
            {
                "id": node.id,
                "p": -1 if node.parent is None else index_of[node.parent],
                "s": -1 if node.strategy is None else strategy_of[node.strategy],
                "n": node.visits,
                "v": _round(node.value),
                "r": _round(node.reward),
                "f": _round(node.first_return),
                "o": node.outcome.value if node.outcome else None,
                "q": node.ratings,
                "a": None if node.prior is None else [_round(p) for p in node.prior],
                "t": shown.turns(node.turns),
            }
            for node in tree.nodes
        ],
    }


def _tree_table(trees: Sequence[SearchTree]) -> Table:
    rows = [
        (
            tree.id,
            tree.status,
            number(len(tree.nodes)),
            number(tree.nodes[0].visits),
            number(max(node.depth for node in tree.nodes)),
            number(tree.nodes[0].value),
            " → ".join(
                f"{node.id.rpartition('.')[2]} ({node.visits}×, {number(node.value)})" for node in main_line(tree)[1:]
            )
            or ABSENT,
        )
        for tree in trees[:_PRINTED]
    ]
    columns = ("tree", "status", "nodes", "simulations", "depth", "mean return", "most visited path")
    return Table(columns, tuple(rows), note=_of(len(rows), len(trees), "trees"))


# ---------------------------------------------------------------- futures


def futures_explorer(run: Run, contexts: Sequence[Context], futures: Sequence[Future], other: Run | None) -> Explorer:
    """Return contexts, their candidates and futures; those of another run beside them."""
    shown = Redactor(run.quotes)
    sides = [_by_context(futures, shown)]
    if other is not None:
        sides.append(_by_context(other.records(Future, "futures.jsonl"), Redactor(other.quotes)))
    items = (
        {
            "id": context.id,
            **shown.scenario(context.scenario),
            "turns": shown.turns(context.turns),
            "dropped": context.n_dropped_turns,
            "reference": shown.turns([context.reference]) if context.reference else [],
            "sides": [side.get(context.id, []) for side in sides],
        }
        for context in contexts
    )
    return Explorer("futures", _compared(items, len(contexts), run, other), (_future_table(futures),))


def _compared(items: Iterable[dict[str, Any]], n: int, run: Run, other: Run | None) -> dict[str, Any]:
    """Return the data of an explorer that shows two runs beside each other."""
    names = [run.name] if other is None else [run.name, other.name]
    return {"items": fitting(items), "n": n, "names": names, "presets": presets()}


def _by_context(futures: Sequence[Future], shown: Redactor) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = {}
    for future in futures:
        failure = future.failure
        found.setdefault(future.context_id, []).append(
            {
                "c": future.candidate,
                "o": future.outcome.value,
                "k": future.k,
                "r": None if future.reward_num is None else [future.reward_num, future.reward_den],
                "x": [
                    _exchange(each.k, each, {r.critic.partition("/")[0]: r} if (r := each.reading) else {}, shown)
                    for each in future.exchanges
                ],
                "f": None if failure is None else [failure.stage, failure.kind, shown(failure.message)],
            }
        )
    return found


def _exchange(
    k: int, exchange: Exchange | EpisodeTurn, readings: Mapping[str, CriticReading], shown: Redactor
) -> dict[str, Any]:
    generation = exchange.supporter
    return {
        "k": k,
        "s": exchange.strategy,
        "reply": shown(generation.response),
        "why": shown(generation.reasoning),
        "form": None if generation.format_ok else generation.parse_kind,
        "seeker": shown(exchange.seeker),
        "reads": {
            preset: {
                "c": reading.counts,
                "w": None if reading.weights is None else [_round(weight) for weight in reading.weights],
                "m": _round(reading.name_mass),
                "u": reading.n_unparsed,
                "r": [reading.num, reading.den],
                "v": _round(reading.value),
                "z": reading.compat_zero,
            }
            for preset, reading in readings.items()
        },
    }


def _future_table(futures: Sequence[Future]) -> Table:
    rows = [
        (
            future.id,
            future.outcome.value,
            number(future.k),
            ABSENT if future.fraction is None else f"{future.fraction} = {number(future.reward)}",
            " ".join(number(x.reading.value) for x in future.exchanges if x.reading is not None) or ABSENT,
        )
        for future in futures[: 3 * _PRINTED]
    ]
    columns = ("future", "outcome", "k", "reward", "critic value by exchange")
    return Table(columns, tuple(rows), note=_of(len(rows), len(futures), "futures"))


# ---------------------------------------------------------------- episodes


def episodes_explorer(run: Run, other: Run | None) -> Explorer | None:
    """Return the self-played dialogues of an evaluation, beside those of another; None where there are none."""
    episodes = run.lines(EPISODES)
    if not episodes:
        return None
    shown = Redactor(run.quotes)
    sides = [
        (Redactor(each.quotes), {str(episode.get("id")): episode for episode in each.lines(EPISODES)})
        for each in ([run] if other is None else [run, other])
    ]
    items = (
        {
            "id": key,
            "situation": shown(section(episode, "scenario").get("situation")),
            "labels": [
                str(label)
                for name in ("emotion_type", "problem_type", "experience_type")
                if (label := section(episode, "scenario").get(name))
            ],
            "sides": [_episode(side[key], redactor) if key in side else None for redactor, side in sides],
        }
        for key, episode in sides[0][1].items()
    )
    return Explorer("episodes", _compared(items, len(episodes), run, other), (_episode_table(episodes),))


def _episode(episode: Mapping[str, Any], shown: Redactor) -> dict[str, Any]:
    failure = section(episode, "failure")
    return {
        "critics": list(episode.get("critics") or ()),
        "max": episode.get("max_turns"),
        "solved": {critic: solved_at(episode, critic) for critic in episode.get("critics") or ()},
        "f": [failure.get("stage"), failure.get("kind"), shown(failure.get("message"))] if failure else None,
        "x": [
            {**_exchange(turn.t, turn, turn.readings, shown), "q": turn.ratings and turn.ratings.model_dump()}
            for turn in map(EpisodeTurn.model_validate, episode.get("turns") or ())
        ],
    }


def solved_at(episode: Mapping[str, Any], critic: str) -> int | None:
    """Return the first turn at which a critic's mean is above one half, exactly; None if there is none."""
    for turn in episode.get("turns") or ():
        reading = section(section(turn, "readings"), critic)
        if reading and 2 * int(reading["num"]) > int(reading["den"]):
            return int(turn["t"])
    return None


def _episode_table(episodes: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for episode in episodes[: 3 * _PRINTED]:
        solved = [f"{critic} {solved_at(episode, critic) or ABSENT}" for critic in episode.get("critics") or ()]
        turns = episode.get("turns") or ()
        chosen = " → ".join(str(turn["strategy"]) for turn in turns if turn.get("strategy")) or ABSENT
        rows.append((str(episode.get("id")), number(len(turns)), ", ".join(solved), chosen))
    columns = ("dialogue", "turns", "first turn with a value above 1/2", "strategies")
    return Table(columns, tuple(rows), note=_of(len(rows), len(episodes), "dialogues"))


def _of(shown: int, n: int, what: str) -> str:
    return "" if shown == n else f"The first {number(shown)} of {number(n)} {what}."


def _round(value: float | None) -> float | None:
    return None if value is None else round(value, 4)
