"""Search trees with known values and recipes of train-flow, for its tests."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from esckit.flow.policy import CheckpointPolicy
from esckit.flow.recipe import TrainFlowRecipe
from esckit.records import write_records
from esckit.strategies.taxonomy import Taxonomy, load_taxonomy
from esckit.types import Scenario, SearchTree, TreeNode, Turn

AFLOW = load_taxonomy("aflow")
UNIFORM = (0.125,) * 8


def complete_tree(
    name: str,
    split: str,
    leaf_value: Callable[[tuple[int, ...]], float],
    *,
    depth: int = 2,
    width: int = 8,
    **more: Any,
) -> SearchTree:
    """Return a tree in which every strategy was tried everywhere; a node's value is the mean of its leaves'."""
    nodes: list[TreeNode] = []

    def grow(path: tuple[int, ...]) -> float:
        node_id = ".".join(["r", *(AFLOW.abbrs[action] for action in path)])
        place = len(nodes)
        nodes.append(node(node_id, path, 0.0, is_leaf=len(path) == depth))
        children = [] if len(path) == depth else [grow((*path, action)) for action in range(width)]
        value = sum(children) / len(children) if children else leaf_value(path)
        nodes[place] = node(node_id, path, value, is_leaf=not children)
        return value

    def node(node_id: str, path: tuple[int, ...], value: float, *, is_leaf: bool) -> TreeNode:
        seeker = Turn(speaker="seeker", text=f"{name} {' '.join(map(str, path))}")
        supporter = Turn(speaker="supporter", text=f"I hear {len(path)}.")
        return TreeNode(
            id=node_id,
            parent=node_id.rpartition(".")[0] if path else None,
            depth=len(path),
            strategy=AFLOW.names[path[-1]] if path else None,
            turns=(supporter, seeker) if path else (seeker,),
            prior=None if is_leaf else UNIFORM,
            visits=1,
            value=value,
            reward=value if path else None,
            first_return=value if path else None,
        )

    grow(())
    return tree_of(name, split, tuple(nodes), **more)


def tree_of(name: str, split: str, nodes: tuple[TreeNode, ...], **more: Any) -> SearchTree:
    facts: dict[str, Any] = {
        "id": f"{name}#0",
        "scenario": Scenario(id=name, situation=f"It is about {name}."),
        "split": split,
        "run_seed": 7,
        "taxonomy": "aflow",
        "strategies": AFLOW.names,
        "round": 0,
        "prior_source": "test",
        "readout": "sampled",
        "prompts": {},
        "mcts": {},
        "status": "complete",
        "nodes": nodes,
    }
    return SearchTree(**{**facts, **more})


def sparse_tree(name: str, split: str, seed: int, **more: Any) -> SearchTree:
    """Return a small random part of a complete tree."""
    draw = random.Random(seed)
    whole = complete_tree(name, split, lambda _: round(draw.uniform(0.2, 1.0), 3), depth=3, width=2)
    return whole.model_copy(update=more)


def write_trees(folder: Path, trees: Iterable[SearchTree]) -> Path:
    write_records(folder / "trees.jsonl", trees)
    return folder / "trees.jsonl"


def recipe(trees: Path | None, **sections: Any) -> TrainFlowRecipe:
    """Return a recipe on the tiny backbone; ``section={...}`` changes fields of a section."""
    base: dict[str, Any] = {
        "command": "train-flow",
        "seed": 3,
        "data": {"trees": [str(trees)]} if trees else {},
        "model": {"backbone": "tiny-random", "gradient_checkpointing": False},
        "lora": {"rank": 4, "alpha": 8, "dropout": 0.0, "targets": ["q_proj", "v_proj"]},
        "optim": {"lr": 1.0e-3, "epochs": 2, "paths_per_update": 8},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section} if isinstance(section, dict) else section
    return TrainFlowRecipe.model_validate(base)


def rows(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def some_trees(n: int = 6) -> list[SearchTree]:
    return [sparse_tree(f"s{index}", "valid" if index >= n - 2 else "train", index) for index in range(n)]


def policy_of(out: Path, taxonomy: Taxonomy = AFLOW, **options: Any) -> CheckpointPolicy:
    return CheckpointPolicy.load(out, abbreviations=dict(zip(taxonomy.names, taxonomy.abbrs, strict=True)), **options)


def weights(out: Path) -> dict[str, torch.Tensor]:
    folder = out / "checkpoint"
    return load_file(str(folder / "heads.safetensors")) | load_file(str(folder / "adapter/adapter_model.safetensors"))


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[name], right[name]) for name in left)


def gold(**more: Any) -> TrainFlowRecipe:
    data = {"dataset": "esconv", "path": "sample:esconv", "scheme": "ratio", "ratios": [0.5, 0.25, 0.25], **more}
    return recipe(
        None,
        data={"gold": data},
        objective={"name": "bc", "class_weight": "sqrt", "logit_adjust": (0.0, 0.5, 1.0)},
        encoding={"mode": "path", "strategy_tags": True},
    )
