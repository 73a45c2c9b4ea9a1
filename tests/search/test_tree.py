"""Trees and their records: what is refused."""

import pytest

from esckit.errors import DataError
from esckit.search.tree import thaw
from esckit.types import TreeNode
from tests.search.fakes import AFLOW, World, grown


def nodes() -> tuple[TreeNode, ...]:
    return grown(World(), n_simulations=4).tree.nodes


def test_a_thawed_node_knows_its_whole_dialogue() -> None:
    tree = thaw(nodes(), AFLOW.names)
    node = max(tree.nodes, key=lambda node: node.depth)
    assert [turn.speaker for turn in node.dialogue()] == ["seeker", *["supporter", "seeker"] * node.depth]
    assert node.parent is not None
    assert node in list(node.parent.grown())


@pytest.mark.parametrize(
    ("number", "change"),
    [
        (1, {"parent": "r.nowhere"}),
        (1, {"strategy": "Small talk"}),
        (1, {"depth": 2}),
        (1, {"id": "r"}),
        (0, {"strategy": AFLOW.names[0]}),
    ],
)
def test_records_that_are_no_tree_are_refused(number: int, change: dict[str, object]) -> None:
    broken = list(nodes())
    broken[number] = broken[number].model_copy(update=change)
    with pytest.raises(DataError):
        thaw(broken, AFLOW.names)


def test_a_second_child_of_one_strategy_is_refused() -> None:
    root, first, *_ = nodes()
    with pytest.raises(DataError, match="second child"):
        thaw([root, first, first.model_copy(update={"id": "r.other"})], AFLOW.names)


def test_a_tree_without_nodes_is_refused() -> None:
    with pytest.raises(DataError):
        thaw([], AFLOW.names)
