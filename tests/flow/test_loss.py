"""Losses over trees with given head outputs: the numbers of both weightings, and what each term sees."""

import math
from dataclasses import replace

import pytest
import torch

from esckit.flow.batch import FlowBatch, LossTerms, chunks, make_update
from esckit.flow.data import FlowNode, FlowPath, FlowTree, StateFacts
from esckit.flow.model import FlowOutputs
from esckit.flow.objectives import potentials
from esckit.flow.recipe import FlowEncoding
from esckit.flow.trainer import flow_loss, gather_paths
from tests.flow.flow_fakes import PAPER, changed

TREE = FlowEncoding(mode="tree", max_tokens=1000)
FLOW_ONLY = changed(PAPER, rank={"weight": 0.0}, kl={"weight": 0.0})
MEAN = changed(FLOW_ONLY, objective={"state_value": "policy_mean"})

# One path of three actions and, at its last state, a second leaf; actions 0 and 1 of a taxonomy of three.
POLICY = ((0.5, 0.2, 0.3), (0.25, 0.2, 0.55), (0.4, 0.2, 0.4))
PRIORS = ((0.20, 0.30, 0.50), (0.25, 0.30, 0.45), (0.40, 0.30, 0.30))
VALUES = (1.5, 0.8, 1.2)


def worked_tree() -> FlowTree:
    q_hat = (0.70, 0.60, 0.80)
    tried = ((0.60, None, None), (0.80, None, None), (0.90, 0.30, None))
    nodes = tuple(
        FlowNode(f"r{'.x' * depth}", depth - 1, (5 + depth,), StateFacts(q_hat[depth], PRIORS[depth], tried[depth]))
        for depth in range(3)
    )
    paths = (
        FlowPath("leaf", (0, 1, 2), (0, 0, 0), 0.90),
        FlowPath("sibling", (0, 1, 2), (0, 0, 1), 0.30),
    )
    return FlowTree("7/worked#0", "worked", 1, nodes, paths)


def worked_batch(settings: LossTerms) -> FlowBatch:
    (batch,) = make_update(list(chunks(worked_tree(), TREE)), TREE, settings)
    return batch


def outputs(values: tuple[tuple[float, ...], ...] = tuple((v, v, v) for v in VALUES)) -> FlowOutputs:
    return FlowOutputs(
        log_pi=torch.tensor(POLICY).log().requires_grad_(True),
        log_value=torch.tensor(values).log().requires_grad_(True),
        hidden=torch.zeros(3, 1),
    )


@pytest.mark.parametrize(("measure", "loss"), [("prior", 0.0), ("counting", 5.0 * math.log(8.0) ** 2)])
def test_flow_under_the_prior_fits_leaves_at_all_depths(measure: str, loss: float) -> None:
    """Every value is alike and the policy is the prior, uniform over eight: so V = 1 is right at every depth."""
    facts = StateFacts(0.7, (0.125,) * 8, (0.7, 0.7) + (None,) * 6)
    nodes = tuple(FlowNode(f"r{'.x' * depth}", depth - 1, (5 + depth,), facts) for depth in range(3))
    paths = (FlowPath("near", (0,), (1,), 0.7), FlowPath("far", (0, 1, 2), (0, 0, 0), 0.7))
    settings = changed(MEAN, objective={"measure": measure, "name": "tb"})
    (batch,) = make_update(list(chunks(FlowTree("7/even#0", "even", 1, nodes, paths), TREE)), TREE, settings)
    even = FlowOutputs(torch.full((3, 8), 0.125).log(), torch.zeros(3, 8), torch.zeros(3, 1))
    assert flow_loss(even, batch, settings)["flow"].item() == pytest.approx(loss, abs=1e-4)


TAKEN = ((1.5, 9.0, 9.0), (0.8, 9.0, 9.0), (1.2, 0.5, 9.0))


def test_potentials_of_the_two_paths() -> None:
    phi = potentials(*gather_paths(outputs(), worked_batch(MEAN), MEAN))
    assert phi[:, 3].tolist() == pytest.approx([2.890372, 2.484907], abs=2e-6)
    phi = potentials(*gather_paths(outputs(TAKEN), worked_batch(FLOW_ONLY), FLOW_ONLY))
    assert phi[1, 2].item() == pytest.approx(1.163151, abs=2e-6)


@pytest.mark.parametrize(
    ("settings", "values", "expected"),
    [
        (MEAN, None, 3.874014),
        (changed(MEAN, objective={"weighting": "unique"}), None, 4.244070),
        (changed(MEAN, objective={"weighting": "unique", "subtb_lambda": 0.9}), None, 4.043487),
        (FLOW_ONLY, TAKEN, 3.536990),
        (changed(FLOW_ONLY, objective={"weighting": "unique"}), TAKEN, 3.857805),
    ],
)
def test_flow_of_both_weightings(
    settings: LossTerms, values: tuple[tuple[float, ...], ...] | None, expected: float
) -> None:
    found = flow_loss(outputs(values) if values else outputs(), worked_batch(settings), settings)
    assert found["flow"].item() == pytest.approx(expected, abs=2e-6)
    assert found["loss"].item() == pytest.approx(expected, abs=2e-6)


@pytest.mark.parametrize(("settings", "n_pairs"), [(MEAN, 9), (FLOW_ONLY, 11)])
def test_distinct_pairs_are_counted(settings: LossTerms, n_pairs: int) -> None:
    assert worked_batch(changed(settings, objective={"weighting": "unique"})).denominators.flow == n_pairs


@pytest.mark.parametrize(
    ("settings", "values", "expected"), [(MEAN, None, (4.280582, 3.467445)), (FLOW_ONLY, TAKEN, (4.280582, 2.793398))]
)
def test_losses_of_single_paths(
    settings: LossTerms, values: tuple[tuple[float, ...], ...] | None, expected: tuple[float, float]
) -> None:
    for index, loss in enumerate(expected):
        tree = worked_tree()
        tree = replace(tree, paths=(tree.paths[index],))
        (batch,) = make_update(list(chunks(tree, TREE)), TREE, settings)
        found = flow_loss(outputs(values) if values else outputs(), batch, settings)
        assert found["flow"].item() == pytest.approx(loss, abs=2e-6)


def test_the_policys_mean_value_gives_the_policy_no_gradient() -> None:
    ours = outputs(((1.5, 0.1, 0.2), (0.8, 0.3, 0.1), (1.2, 0.2, 0.3)))
    flow = gather_paths(ours, worked_batch(MEAN), MEAN)[1]
    flow.sum().backward()
    assert ours.log_pi.grad is None
    assert ours.log_value.grad is not None


def test_the_leaf_has_no_gradient_without_boundary() -> None:
    settings = changed(FLOW_ONLY, objective={"terminal_boundary": False})
    found = flow_loss(outputs(), worked_batch(settings), settings)["flow"]
    assert found.item() == pytest.approx(2.763843, abs=2e-6)
    unique = changed(MEAN, objective={"terminal_boundary": False, "weighting": "unique"})
    assert worked_batch(unique).denominators.flow == 3
    assert flow_loss(outputs(), worked_batch(unique), unique)["flow"].item() == pytest.approx(2.763843, abs=2e-6)


def test_a_search_value_of_zero_is_clamped() -> None:
    tree = worked_tree()
    tree = replace(tree, paths=(replace(tree.paths[0], leaf_value=0.0),))
    (batch,) = make_update(list(chunks(tree, TREE)), TREE, FLOW_ONLY)
    assert gather_paths(outputs(), batch, FLOW_ONLY)[1][0, 3].item() == pytest.approx(-6.907755, abs=1e-5)
    assert flow_loss(outputs(), batch, FLOW_ONLY)["flow"].item() == pytest.approx(12.395986, abs=1e-5)


def test_kl_of_the_worked_example() -> None:
    tree = worked_tree()
    tree = replace(tree, paths=(tree.paths[0],))
    (batch,) = make_update(list(chunks(tree, TREE)), TREE, PAPER)
    assert flow_loss(outputs(), batch, PAPER)["kl"].item() == pytest.approx(0.305430, abs=2e-6)
    full = changed(PAPER, kl={"form": "full"})
    by_state = [
        sum(p * math.log(p / q) for p, q in zip(*rows, strict=True)) for rows in zip(POLICY, PRIORS, strict=True)
    ]
    assert flow_loss(outputs(), batch, full)["kl"].item() == pytest.approx(sum(by_state) / 3, abs=1e-6)
    uniform = changed(full, kl={"reference": "uniform"})
    entropies = [sum(p * math.log(p * 3) for p in row) for row in POLICY]
    assert flow_loss(outputs(), batch, uniform)["kl"].item() == pytest.approx(sum(entropies) / 3, abs=1e-6)
    assert flow_loss(outputs(), batch, changed(PAPER, kl={"reference": "none"}))["kl"].item() == 0.0


def test_ranking_of_both_weightings() -> None:
    values = ((1.5, 1.0, 1.0), (0.8, 0.2, 0.4), (1.4, 0.9, 9.0))
    # Root: its child is worse than the root itself; second state: a good winner against two untried; third: Q .9 > .3.
    second, third = ((1 - 0.6) + (1 - 0.4)) / 2, 0.5
    found = flow_loss(outputs(values), worked_batch(PAPER), PAPER)["rank"].item()
    assert found == pytest.approx((0.0 + second + third) / 3, abs=1e-6)
    unique = changed(PAPER, objective={"weighting": "unique"})
    assert flow_loss(outputs(values), worked_batch(unique), unique)["rank"].item() == pytest.approx(found, abs=1e-6)


def test_dpo_takes_the_place_of_the_flow_loss() -> None:
    settings = changed(PAPER, objective={"name": "dpo"}, kl={"weight": 0.0}, rank={"negatives": "visited"})
    found = flow_loss(outputs(), worked_batch(settings), settings)["flow"].item()
    margin = math.log(0.4 / 0.40) - math.log(0.2 / 0.30)
    assert found == pytest.approx(math.log1p(math.exp(-margin)) / 3, abs=1e-6)


def test_cloning_is_the_mean_over_decisions() -> None:
    settings = changed(FLOW_ONLY, objective={"name": "bc"})
    taken = [0.5, 0.25, 0.4, 0.5, 0.25, 0.2]
    found = flow_loss(outputs(), worked_batch(settings), settings)["flow"].item()
    assert found == pytest.approx(-sum(map(math.log, taken)) / 6, abs=1e-6)
    weighted = changed(settings, class_weights=(1.0, 3.0, 1.0))
    found = flow_loss(outputs(), worked_batch(weighted), weighted)["flow"].item()
    assert found == pytest.approx(-(sum(map(math.log, taken)) + 2 * math.log(0.2)) / 6, abs=1e-6)


def test_terms_add_up_with_their_weights() -> None:
    settings = changed(PAPER, rank={"weight": 0.5}, kl={"weight": 0.2})
    found = flow_loss(outputs(), worked_batch(settings), settings)
    expected = found["flow"] + 0.5 * found["rank"] + 0.2 * found["kl"]
    assert found["loss"].item() == pytest.approx(expected.item(), rel=1e-6)
