import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import DataError
from esckit.types import Outcome, Scenario, SearchTree, TreeNode, child_values, children_of, trajectories

NAMES = ("EV", "Cla", "SO")
PRIOR = (0.5, 0.3, 0.2)


def node(key: str, *, value: float = 0.5, outcome: Outcome | None = None) -> TreeNode:
    parent, _, name = key.rpartition(".")
    return TreeNode(
        id=key,
        parent=parent or None,
        depth=key.count("."),
        strategy=name if parent else None,
        turns=(),
        prior=None if outcome else PRIOR,
        visits=1,
        value=value,
        outcome=outcome,
    )


def tree_of(*nodes: TreeNode) -> SearchTree:
    return SearchTree(
        id="esconv-a2e71fab0cc9#0",
        scenario=Scenario(id="esconv-a2e71fab0cc9"),
        split="train",
        run_seed=7,
        taxonomy="three",
        strategies=NAMES,
        round=0,
        prior_source="p",
        readout="sampled",
        prompts={},
        mcts={},
        status="complete",
        nodes=nodes,
    )


TREE = tree_of(
    node("r", value=0.6),
    node("r.SO"),
    node("r.EV", value=0.7),
    node("r.EV.SO", value=0.0, outcome=Outcome.DISENGAGED),
    node("r.EV.Cla", value=0.8),
    node("r.EV.Cla.SO", value=0.9, outcome=Outcome.RESOLVED),
)


def test_paths_come_depth_first_in_taxonomy_order() -> None:
    found = trajectories(TREE, min_actions=2)
    assert [path.id for path in found] == [
        "7/esconv-a2e71fab0cc9#0/r.EV.Cla.SO",
        "7/esconv-a2e71fab0cc9#0/r.EV.SO",
    ]
    assert [path.leaf.id for path in trajectories(TREE, min_actions=1)] == ["r.EV.Cla.SO", "r.EV.SO", "r.SO"]


def test_a_step_holds_state_and_action() -> None:
    path = trajectories(TREE, min_actions=3)[0]
    assert [step.state.id for step in path.steps] == ["r", "r.EV", "r.EV.Cla"]
    assert [step.action for step in path.steps] == [0, 1, 2]
    assert [step.state.mean_return for step in path.steps] == [0.6, 0.7, 0.8]
    assert path.leaf_value == 0.9
    assert path.outcome is Outcome.RESOLVED


def test_values_of_strategies_never_tried_are_absent() -> None:
    children = children_of(TREE)
    assert child_values(TREE, TREE.nodes[0], children) == (0.7, None, 0.5)


def test_a_tree_with_a_hole_is_refused() -> None:
    with pytest.raises(DataError, match=r"without its parent r\.EV"):
        trajectories(tree_of(node("r"), node("r.EV.SO")), min_actions=2)
    with pytest.raises(DataError, match="strategy 'XX'"):
        trajectories(tree_of(node("r"), node("r.XX")), min_actions=1)
    with pytest.raises(DataError, match="no positive prior"):
        trajectories(tree_of(node("r", outcome=Outcome.RESOLVED), node("r.EV")), min_actions=1)


@settings(max_examples=40, deadline=None)
@given(st.sets(st.lists(st.sampled_from(NAMES), min_size=1, max_size=5).map(tuple), max_size=12))
def test_every_leaf_is_the_end_of_exactly_one_path(ways: set[tuple[str, ...]]) -> None:
    keys = {".".join(("r", *way[:depth])) for way in ways for depth in range(len(way) + 1)} | {"r"}
    tree = tree_of(*(node(key) for key in sorted(keys, key=lambda key: key.count("."))))
    leaves = {key for key in keys if not any(other.startswith(f"{key}.") for other in keys)} - {"r"}
    found = trajectories(tree, min_actions=1)
    assert {path.leaf.id for path in found} == leaves
    assert len(found) == len(leaves)
