"""Updates of flow training: everything once an epoch, in seeded order, shared out to processes."""

from pathlib import Path

import pytest
import torch

from esckit.flow.batch import Chunk, FlowBatch, Updates, chunks, make_update
from esckit.flow.data import FlowTree, collect, flow_trees
from esckit.flow.recipe import FlowEncoding, FlowOptim
from esckit.flow.trainer import TreeValidation, best_actions, confusions
from esckit.training.run import Process
from tests.flow.flow_fakes import PAPER, changed, flow_text, some_flow_tree, tiny_model
from tests.flow.flow_runs import complete_tree, recipe, write_trees

ENCODING = FlowEncoding(mode="tree", max_tokens=2048)


def some_chunks(n: int = 6) -> list[Chunk]:
    return [chunk for seed in range(n) for chunk in chunks(some_flow_tree(seed, n_nodes=20), ENCODING)]


def updates(seed: int = 1, process: Process = Process()) -> Updates:
    trees = [some_flow_tree(seed, n_nodes=20) for seed in range(6)]
    optim = FlowOptim(epochs=2, paths_per_update=12)
    return Updates(trees, ENCODING, PAPER, optim, seed=seed, process=process)


def test_every_path_comes_once_an_epoch_and_epochs_differ() -> None:
    found = updates()
    n_paths = sum(len(chunk.paths) for chunk in some_chunks())
    sizes = [sum(len(batch.mask) for batch in found[index]) for index in range(len(found))]
    first, last = found.epoch_ends
    assert sum(sizes[:first]) == sum(sizes[first:last]) == n_paths
    assert all(size >= 12 for size in sizes[: first - 1])
    orders = [[found.tree_ids(index) for index in part] for part in (range(first), range(first, last))]
    assert orders[0] != orders[1]
    assert orders == [[updates().tree_ids(index) for index in part] for part in (range(first), range(first, last))]
    assert [updates(2).tree_ids(index) for index in range(first)] != orders[0]


def test_processes_share_an_update_and_make_as_many_passes() -> None:
    alone = updates()
    shares = [updates(process=Process(rank, 2)) for rank in range(2)]
    for index in range(len(alone)):
        passes = [share[index] for share in shares]
        assert len(passes[0]) == len(passes[1])
        assert sum(len(b.mask) for part in passes for b in part) == sum(len(b.mask) for b in alone[index])
        assert {b.denominators for part in passes for b in part} == {alone[index][0].denominators}


@pytest.mark.parametrize("state_value", ["policy_mean", "taken"])
def test_two_rounds_of_one_seed_share_no_pair(tmp_path: Path, state_value: str) -> None:
    width = {"0": 2, "1": 3}  # the same run seed, scene and strategies: the paths of the first have their twins
    files = [
        write_trees(tmp_path / name, [complete_tree("scene", "train", lambda _: 0.5, width=n, round=int(name))])
        for name, n in width.items()
    ]
    wanted = {"weighting": "unique", "state_value": state_value}
    data = {"trees": [str(file) for file in files], "valid_split": None}
    of_both = recipe(files[0], data=data, objective=wanted, optim={"select": "last"})
    trees = flow_trees(collect(of_both.data), "train", of_both, flow_text())
    assert {path.id for path in trees[0].paths} <= {path.id for path in trees[1].paths}
    settings = changed(PAPER, objective=wanted)

    def pairs(*some: FlowTree) -> float:
        found = [chunk for tree in some for chunk in chunks(tree, ENCODING)]
        return make_update(found, ENCODING, settings)[0].denominators.flow

    # By hand: a root, n states and n^2 leaves; pairs of states (1 each), then 2 for each leaf, or of edges and leaves.
    assert pairs(trees[0]) == (2 + 4 * 2 if state_value == "policy_mean" else 4 + 4 * 2)
    assert pairs(*trees) == pairs(trees[0]) + pairs(trees[1])


def all_in_one() -> list[FlowBatch]:
    return make_update(some_chunks(2), ENCODING, PAPER)


def test_the_best_action_is_counted_where_there_is_a_choice() -> None:
    model = tiny_model()
    (batch,) = all_in_one()
    with torch.no_grad():
        outputs = model(batch.rows)
    right, compared, entropy, n_states = best_actions(outputs, batch)
    chosen = (outputs.log_pi + outputs.log_value.exp()).argmax(dim=1)
    by_hand = [
        (int(action) in visited and values[int(action)] == max(values[v] for v in visited))
        for action, visited, values in (
            (action, [i for i in range(8) if flags[i]], values)
            for action, flags, values in zip(chosen, batch.visited, batch.child_value, strict=True)
        )
        if len(visited) >= 2
    ]
    assert (int(right), int(compared)) == (sum(by_hand), len(by_hand))
    assert int(n_states) == len(chosen)
    assert 0 < float(entropy) / len(chosen) <= torch.log(torch.tensor(8.0))


def test_validation_adds_up_over_passes() -> None:
    model = tiny_model()
    small = FlowEncoding(mode="tree", max_tokens=120)
    parts = [chunk for seed in range(2) for chunk in chunks(some_flow_tree(seed, n_nodes=20), small)]
    device = torch.device("cpu")
    one = TreeValidation(all_in_one(), PAPER)(model, device, lambda x: x)
    many = TreeValidation(make_update(parts, small, PAPER), PAPER)(model, device, lambda x: x)
    assert one.keys() == many.keys()
    assert all(abs(one[name] - many[name]) < 1e-4 for name in one)


def test_confusions_count_every_decision_once_per_way() -> None:
    model = tiny_model()
    passes = all_in_one()
    push = torch.zeros(2, 8)
    push[1, 3] = 1e3
    found = confusions(model, passes, push, torch.device("cpu"))
    n = sum(int(batch.mask.sum()) for batch in passes)
    assert found.sum(dim=(1, 2)).tolist() == [n, n]
    assert int(found[1, 3].sum()) == n
    assert torch.equal(found[0].sum(dim=0), found[1].sum(dim=0))
