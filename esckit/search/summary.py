"""What a forest looks like in numbers: size, shape, outcomes, returns, strategies and failures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from math import log
from typing import Any

from esckit.types import SearchTree, TreeNode, Usage


def summarise(trees: Iterable[SearchTree]) -> dict[str, Any]:
    """Return the summary of some trees; shape, returns and strategies count only those that are not ``failed``.

    ``leaf_depth_max`` is the mean over trees of each tree's deepest leaf; ``strategy_entropy`` is in nats;
    ``return_by_split`` holds what tells when to stop: another round is worth it while the return of ``valid`` rises.
    """
    known = list(trees)
    usable = [tree for tree in known if tree.status != "failed"]
    failures = Counter(f"{failure.stage}/{failure.kind}" for tree in known for failure in tree.failures)
    return {
        "trees": len(known),
        "status": dict(sorted(Counter(tree.status for tree in known).items())),
        **shape(usable),
        "outcomes": _shares(node.outcome.value for tree in usable for node in tree.nodes if node.outcome),
        "return_mean": _mean(_returns(usable)),
        "return_by_split": _by_split(usable),
        **_strategies(usable),
        "failed_simulations": failures.total(),
        "failures": dict(sorted(failures.items())),
        "usage": {role: usage.facts() for role, usage in sorted(_usage(known).items())},
    }


def _returns(trees: Iterable[SearchTree]) -> list[float]:
    return [value for tree in trees if (value := tree.nodes[0].value) is not None]


def _by_split(trees: Sequence[SearchTree]) -> dict[str, dict[str, float | None]]:
    """Return the number of trees and their mean return by split, of the splits that there are."""
    found: dict[str, dict[str, float | None]] = {}
    for split in sorted({tree.split for tree in trees if tree.split is not None}):
        returns = _returns(tree for tree in trees if tree.split == split)
        found[split] = {"trees": len(returns), "mean": _mean(returns)}
    return found


def shape(trees: Sequence[SearchTree]) -> dict[str, float | None]:
    """Return means over trees: nodes, leaves, leaf depth, and how widely inner nodes branch."""
    per_tree = [_tree_shape(tree.nodes) for tree in trees]
    keys = ("nodes", "leaves", "leaf_depth_mean", "leaf_depth_max", "children_per_inner", "branching_share")
    return {key: _mean([row[key] for row in per_tree if row[key] is not None]) for key in keys}


def _tree_shape(nodes: Sequence[TreeNode]) -> dict[str, Any]:
    children = Counter(node.parent for node in nodes if node.parent is not None)
    depths = [node.depth for node in nodes if node.id not in children]
    return {
        "nodes": len(nodes),
        "leaves": len(depths),
        "leaf_depth_mean": _mean(depths),
        "leaf_depth_max": max(depths),
        "children_per_inner": _mean(list(children.values())),
        "branching_share": _mean([float(count > 1) for count in children.values()]),
    }


def _strategies(trees: Sequence[SearchTree]) -> dict[str, Any]:
    """Return each strategy's share of all edges, and the entropy of these shares."""
    shares = _shares(node.strategy for tree in trees for node in tree.nodes if node.strategy)
    entropy = -sum(share * log(share) for share in shares.values())
    return {"strategy_shares": shares, "strategy_entropy": entropy if shares else None}


def _usage(trees: Iterable[SearchTree]) -> dict[str, Usage]:
    total: dict[str, Usage] = {}
    for tree in trees:
        for role, usage in tree.usage.items():
            total[role] = total.get(role, Usage()) + usage
    return total


def _shares(names: Iterable[str]) -> dict[str, float]:
    counts = Counter(names)
    return {name: count / counts.total() for name, count in sorted(counts.items())}


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
