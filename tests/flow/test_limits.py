"""What the flow loss can and cannot teach, on small trees with exact flows."""

import pytest
import torch

from esckit.flow.batch import LossTerms, chunks, make_update
from esckit.flow.data import FlowNode, FlowPath, FlowTree, StateFacts
from esckit.flow.model import FlowOutputs
from esckit.flow.recipe import FlowEncoding
from esckit.flow.trainer import flow_loss
from tests.flow.flow_fakes import PAPER, changed

TREE = FlowEncoding(mode="tree", max_tokens=1000)
TAKEN = changed(PAPER, rank={"weight": 0.0}, kl={"weight": 0.0})
MEAN = changed(TAKEN, objective={"state_value": "policy_mean"})
LEAVES = (0.9, 0.3, 0.6, 0.2)
Q_HAT = (0.5, 0.7, 0.4)


def complete_tree() -> FlowTree:
    """Two strategies, depth two: root 0 with children 1 and 2, four leaves."""
    nodes = tuple(
        FlowNode(str(index), -1 if index == 0 else 0, (4 + index,), StateFacts(Q_HAT[index], (0.5, 0.5), (0.5, 0.5)))
        for index in range(3)
    )
    paths = tuple(
        FlowPath(f"{first}{second}", (0, 1 + first), (first, second), LEAVES[2 * first + second])
        for first in range(2)
        for second in range(2)
    )
    return FlowTree("7/complete#0", "complete", 1, nodes, paths)


def chain() -> FlowTree:
    """One path of three actions."""
    facts = [StateFacts(value, (0.5, 0.5), (value, None)) for value in (0.5, 0.7, 0.4)]
    nodes = tuple(FlowNode(str(index), index - 1, (4,), fact) for index, fact in enumerate(facts))
    return FlowTree("7/chain#0", "chain", 1, nodes, (FlowPath("only", (0, 1, 2), (0, 0, 0), 0.9),))


def loss_of(tree: FlowTree, pi: torch.Tensor, value: torch.Tensor, settings: LossTerms) -> float:
    (batch,) = make_update(list(chunks(tree, TREE)), TREE, settings)
    outputs = FlowOutputs(log_pi=pi.log(), log_value=value.log(), hidden=torch.zeros(len(pi), 1))
    return flow_loss(outputs, batch, settings)["loss"].item()


def conserved(root_policy: tuple[float, float]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return π, V per action and V per state that conserve flow below the root, whatever the root does."""
    flows = [LEAVES[0] + LEAVES[1], LEAVES[2] + LEAVES[3]]
    pi = torch.tensor(
        [
            root_policy,
            (LEAVES[0] / flows[0], LEAVES[1] / flows[0]),
            (LEAVES[2] / flows[1], LEAVES[3] / flows[1]),
        ]
    )
    by_action = torch.tensor(
        [
            (flows[0] / root_policy[0] / Q_HAT[0], flows[1] / root_policy[1] / Q_HAT[0]),
            (flows[0] / Q_HAT[1],) * 2,
            (flows[1] / Q_HAT[2],) * 2,
        ]
    )
    by_state = torch.tensor([(sum(LEAVES) / Q_HAT[0],) * 2, (flows[0] / Q_HAT[1],) * 2, (flows[1] / Q_HAT[2],) * 2])
    return pi, by_action, by_state


@pytest.mark.parametrize("weighting", ["paths", "unique"])
def test_exact_flows_give_leaves_in_proportion_and_no_loss(weighting: str) -> None:
    pi, _, value = conserved((1.2 / 2.0, 0.8 / 2.0))
    for settings in (TAKEN, MEAN):
        assert loss_of(
            complete_tree(), pi, value, changed(settings, objective={"weighting": weighting})
        ) == pytest.approx(0, abs=1e-10)
    leaf_probabilities = [(pi[0, a] * pi[1 + a, b]).item() for a in range(2) for b in range(2)]
    assert leaf_probabilities == pytest.approx([leaf / sum(LEAVES) for leaf in LEAVES], abs=1e-6)


def test_without_branching_any_policy_has_zero_loss() -> None:
    for seed in range(3):
        pi = torch.randn(3, 2, generator=torch.Generator().manual_seed(seed)).softmax(dim=1)
        flow, values = 0.9, []
        for state in (2, 1, 0):
            flow /= pi[state, 0].item()
            values.insert(0, flow / (0.5, 0.7, 0.4)[state])
        value = torch.tensor(values).unsqueeze(1).expand(3, 2)
        assert loss_of(chain(), pi, value, TAKEN) == pytest.approx(0, abs=1e-10)


def test_the_taken_actions_value_leaves_the_roots_ratio_free() -> None:
    pi, by_action, _ = conserved((0.1, 0.9))
    assert loss_of(complete_tree(), pi, by_action, TAKEN) == pytest.approx(0, abs=1e-10)


def test_the_policys_mean_value_fixes_the_roots_ratio() -> None:
    pi, _, value = conserved((0.1, 0.9))
    losses = [
        loss_of(complete_tree(), pi, scaled_root(value, scale), MEAN) for scale in torch.logspace(-1, 1, 41).tolist()
    ]
    assert min(losses) > 0.5


def scaled_root(value: torch.Tensor, scale: float) -> torch.Tensor:
    return torch.cat([value[:1] * scale, value[1:]])


def test_only_the_boundary_sees_a_common_factor_of_the_value() -> None:
    pi, _, value = conserved((0.6, 0.4))
    without = changed(TAKEN, objective={"terminal_boundary": False})
    assert loss_of(complete_tree(), pi, 3 * value, without) == pytest.approx(
        loss_of(complete_tree(), pi, value, without), abs=1e-9
    )
    assert loss_of(complete_tree(), pi, 3 * value, TAKEN) > 0.5
