import random

import pytest
import torch

from esckit.flow.batch import chunks, groups, n_tokens, pack
from esckit.flow.data import flow_tree, token_counts
from esckit.flow.recipe import FlowEncoding
from esckit.models.packing import additive_mask, allowed
from esckit.types import Turn
from tests.flow.flow_fakes import counting_tree, flow_text, search_tree, some_flow_tree

TREE = FlowEncoding(mode="tree", max_tokens=100_000)
PATH = TREE.model_copy(update={"mode": "path"})
PREFIX = TREE.model_copy(update={"mode": "prefix"})


def test_the_five_token_counts() -> None:
    counts = {"padded": 5120, "steps": 1400, "prefixes": 600, "paths": 700, "tree": 250}
    assert token_counts([counting_tree()]) == counts
    assert token_counts([counting_tree()] * 2) == {name: 2 * n for name, n in counts.items()}


def test_the_tree_with_its_leaves() -> None:
    tree = counting_tree()
    with_leaves = sum(len(node.tokens) for node in tree.nodes) + 4 * 50
    assert with_leaves == 450
    assert n_tokens(list(chunks(tree, TREE)), TREE) == 250


def test_a_budget_splits_the_tree_and_repeats_the_shared_prefix() -> None:
    encoding = TREE.model_copy(update={"max_tokens": 200})
    found = list(chunks(counting_tree(), encoding))
    assert [[chunk.tree.nodes[node].key for node in chunk.nodes] for chunk in found] == [["r", "a", "c"], ["r", "b"]]
    assert [chunk.paths for chunk in found] == [(0, 1, 2), (3,)]
    assert [n_tokens([chunk], encoding) for chunk in found] == [200, 150]


@pytest.mark.parametrize("mode", ["tree", "path", "prefix"])
@pytest.mark.parametrize("budget", [1, 300, 900, 10_000])
def test_every_path_is_in_exactly_one_chunk(mode: str, budget: int) -> None:
    tree = some_flow_tree(1)
    encoding = FlowEncoding(mode=mode, max_tokens=budget)
    found = list(chunks(tree, encoding))
    assert [path for chunk in found for path in chunk.paths] == list(range(len(tree.paths)))
    for chunk in found:
        assert len(chunk.paths) == 1 or n_tokens([chunk], encoding) <= budget


def test_a_chunk_has_a_limit_of_paths() -> None:
    found = list(chunks(some_flow_tree(2), TREE.model_copy(update={"max_paths_per_chunk": 3})))
    assert max(len(chunk.paths) for chunk in found) == 3


def test_the_mask_is_the_ancestor_relation_and_causal() -> None:
    trees = [some_flow_tree(seed, n_nodes=30) for seed in (3, 4)]
    group = [chunk for tree in trees for chunk in chunks(tree, TREE)]
    rows = pack(group, TREE)
    assert rows.subtree_end is not None
    assert rows.spans is not None
    owner = [index for index, span in enumerate(rows.spans) for _ in range(span.end - span.start)]
    above: list[set[int]] = []
    for index, span in enumerate(rows.spans):
        above.append({index} | (above[span.parent] if span.parent >= 0 else set()))
    expected = torch.tensor(
        [[k <= q and owner[k] in above[owner[q]] for k in range(len(owner))] for q in range(len(owner))]
    )
    assert torch.equal(allowed(rows.subtree_end)[0], expected)
    for index, span in enumerate(rows.spans):
        before = sum(rows.spans[node].end - rows.spans[node].start for node in above[index] - {index})
        positions = rows.position_ids[0, span.start : span.end].tolist()
        assert positions == list(range(before, before + span.end - span.start))


def test_the_mask_is_additive_and_never_boolean() -> None:
    mask = additive_mask(torch.tensor([[3, 2, 3]]), torch.bfloat16)
    assert mask.dtype == torch.bfloat16
    assert mask.shape == (1, 1, 3, 3)
    assert mask[0, 0].tolist()[2] == [0.0, torch.finfo(torch.bfloat16).min, 0.0]


def test_readouts_stand_at_the_end_of_each_state() -> None:
    tree = some_flow_tree(5)
    for encoding in (TREE, PATH, PREFIX):
        group = list(chunks(tree, encoding))
        rows = pack(group, encoding)
        states = [node for chunk in group for node in chunk.states]
        assert rows.readout_row.shape == (len(states),)
        for row, column, state in zip(rows.readout_row, rows.readout_column, states, strict=True):
            assert rows.position_ids[row, column] == tree.prefix_length(state) - 1
            assert rows.input_ids[row, column] == tree.nodes[state].tokens[-1]


def test_chunks_share_a_forward_pass_within_the_budget() -> None:
    encoding = TREE.model_copy(update={"max_tokens": 1500})
    group = [chunk for seed in range(6) for chunk in chunks(some_flow_tree(seed, n_nodes=12), encoding)]
    found = groups(group, encoding)
    assert [chunk for part in found for chunk in part] == group
    assert all(len(part) == 1 or n_tokens(part, encoding) <= 1500 for part in found)
    assert len(found) < len(group)


def test_long_paths_are_dropped_and_counted() -> None:
    tree = search_tree(6)
    whole = flow_tree(tree, flow_text(), min_actions=2, max_path_tokens=4096)
    assert whole is not None
    longest = max(whole.prefix_length(path.states[-1]) for path in whole.paths)
    cut = flow_tree(tree, flow_text(), min_actions=2, max_path_tokens=longest - 1)
    assert cut is not None
    assert cut.n_dropped > 0
    assert cut.n_dropped + len(cut.paths) == len(whole.paths)
    assert flow_tree(tree, flow_text(), min_actions=2, max_path_tokens=10) is None


@pytest.mark.parametrize("spared", [1, 30, 90])
def test_training_cuts_a_long_state_as_use_does(spared: int) -> None:
    whole, text = search_tree(7), flow_text()
    opening = (*whole.nodes[0].turns, *(Turn(speaker=who, text=f"{who} again") for who in ("supporter", "seeker")))
    whole = whole.model_copy(update={"nodes": (whole.nodes[0].model_copy(update={"turns": opening}), *whole.nodes[1:])})
    tree = flow_tree(whole, text, min_actions=2, max_path_tokens=4096)
    assert tree is not None
    turns = {node.id: node.turns for node in whole.nodes}
    limit = max(tree.prefix_length(path.states[-1]) for path in tree.paths) - spared
    encoding = PREFIX.model_copy(update={"max_prefix_tokens": limit})
    (chunk,) = chunks(tree, encoding.model_copy(update={"max_tokens": 10**6}))
    rows = pack([chunk], encoding)
    for state, row, end in zip(chunk.states, rows.readout_row.tolist(), rows.readout_column.tolist(), strict=True):
        said = [turn for node in tree.lineage(state) for turn in turns[tree.nodes[node].key]]
        assert tuple(rows.input_ids[row, : end + 1].tolist()) == text.ids(whole.scenario, said, max_tokens=limit)
        assert end < limit


def test_response_targets_are_the_supporters_words() -> None:
    encoding = TREE
    text = flow_text(strategy_tags=True)
    tree = flow_tree(search_tree(8), text, min_actions=2, max_path_tokens=4096, responses=True)
    assert tree is not None
    group = list(chunks(tree, encoding))
    rows = pack(group, encoding)
    assert rows.target_ids is not None
    assert rows.target_column is not None
    assert torch.equal(rows.input_ids[0, rows.target_column + 1], rows.target_ids)
    said = bytes(token - 3 for token in rows.target_ids.tolist()).decode()
    turns = {node.id: node.turns[0].text for node in search_tree(8).nodes}
    packed = [tree.nodes[node].key for chunk in group for node in chunk.nodes]
    assert said == "".join(f" {turns[key]}\n" for key in packed if key != "r")
    assert set(packed) > {tree.nodes[path.states[-1]].key for path in tree.paths}
    assert max(path.response_weight for path in tree.paths) == 1.0


def test_any_order_of_children_gives_the_same_tokens() -> None:
    tree = search_tree(9)
    nodes = list(tree.nodes[1:])
    random.Random(0).shuffle(nodes)
    nodes.sort(key=lambda node: node.depth)
    shuffled = tree.model_copy(update={"nodes": (tree.nodes[0], *nodes)})
    first, second = (flow_tree(t, flow_text(), min_actions=2, max_path_tokens=4096) for t in (tree, shuffled))
    assert first == second
