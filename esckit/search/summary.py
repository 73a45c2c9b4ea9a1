"""The forest of a run of ``search`` in numbers, for ``summary.json``: size, shape, outcomes, returns, strategies.

The trees are read one after the other. What is kept of each is a few numbers.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import log
from typing import Any

from esckit.ledger import add_usage, usage_facts
from esckit.types import SearchTree, Usage

_SHAPE = ("nodes", "leaves", "leaf_depth_mean", "leaf_depth_max", "children_per_inner", "branching_share")


def summarise(trees: Iterable[SearchTree]) -> dict[str, Any]:
    """Return the summary of some trees; shape, returns and strategies count only those that are not ``failed``.

    ``leaf_depth_max`` is the mean over trees of each tree's deepest leaf; ``strategy_entropy`` is in nats;
    ``return_by_split`` holds what tells when to stop: another round is worth it while the return of ``valid`` rises.
    """
    statuses, failures, outcomes, strategies = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    shapes, returns = {key: array("d") for key in _SHAPE}, array("d")
    by_split: dict[str, array[float]] = {}
    usage: dict[str, Usage] = {}
    for tree in trees:
        statuses[tree.status] += 1
        failures.update(f"{failure.stage}/{failure.kind}" for failure in tree.failures)
        add_usage(usage, tree.usage)
        if tree.status == "failed":
            continue
        outcomes.update(node.outcome.value for node in tree.nodes if node.outcome)
        strategies.update(node.strategy for node in tree.nodes if node.strategy)
        for key, value in _shape(tree).items():
            shapes[key].extend(() if value is None else (value,))
        found = () if tree.nodes[0].value is None else (tree.nodes[0].value,)
        returns.extend(found)
        if tree.split is not None:
            by_split.setdefault(tree.split, array("d")).extend(found)
    shares = _shares(strategies)
    return {
        "trees": statuses.total(),
        "status": dict(sorted(statuses.items())),
        **{key: _mean(values) for key, values in shapes.items()},
        "outcomes": _shares(outcomes),
        "return_mean": _mean(returns),
        "return_by_split": {
            split: {"trees": len(values), "mean": _mean(values)} for split, values in sorted(by_split.items())
        },
        "strategy_shares": shares,
        "strategy_entropy": -sum(share * log(share) for share in shares.values()) if shares else None,
        "failed_simulations": failures.total(),
        "failures": dict(sorted(failures.items())),
        "usage": usage_facts([usage]),
    }


def _shape(tree: SearchTree) -> dict[str, float | None]:
    """Return a tree's nodes, leaves and leaf depth, and how widely its inner nodes branch."""
    children = Counter(node.parent for node in tree.nodes if node.parent is not None)
    depths = [node.depth for node in tree.nodes if node.id not in children]
    return {
        "nodes": len(tree.nodes),
        "leaves": len(depths),
        "leaf_depth_mean": _mean(depths),
        "leaf_depth_max": max(depths),
        "children_per_inner": _mean(list(children.values())),
        "branching_share": _mean([float(count > 1) for count in children.values()]),
    }


def _shares(counts: Mapping[str, int]) -> dict[str, float]:
    total = sum(counts.values())
    return {name: count / total for name, count in sorted(counts.items())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
