"""Flow objectives: hand-computed values, equivalences, and torchgfn's own numbers.

``fixtures/make_torchgfn_values.py`` makes the latter.
"""

import json
import math
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.flow.objectives import (
    db,
    db_terms,
    objective,
    path_terms,
    policy_value,
    potentials,
    subtb,
    subtb_terms,
    tb,
    without_terminal,
)

Q_HAT = (0.70, 0.60, 0.80, 0.90)
VALUES = (1.5, 0.8, 1.2)
POLICY = (0.5, 0.25, 0.4)


def worked_path(leaf: float = 0.90, eps: float = 1e-3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    q_hat = torch.tensor([*Q_HAT[:3], max(leaf, eps)], dtype=torch.float64)
    log_flow = q_hat.log() + torch.tensor([*VALUES, 1.0], dtype=torch.float64).log()
    return (
        torch.tensor([POLICY], dtype=torch.float64).log(),
        log_flow.unsqueeze(0),
        torch.ones(1, 3, dtype=torch.bool),
    )


def brute_force(phi: list[float], decay: float) -> float:
    pairs = [(m, n) for n in range(len(phi)) for m in range(n)]
    total = sum(decay ** (n - m) * (phi[n] - phi[m]) ** 2 for m, n in pairs)
    return total / sum(decay ** (n - m) for m, n in pairs) if pairs else 0.0


def test_potentials_of_the_worked_example() -> None:
    log_pf, log_flow, mask = worked_path()
    assert log_flow[0].tolist() == pytest.approx([0.048790, -0.733969, -0.040822, -0.105361], abs=5e-7)
    assert potentials(log_pf, log_flow, mask)[0].tolist() == pytest.approx(
        [0.048790, -0.040822, 2.038620, 2.890372], abs=5e-7
    )


@pytest.mark.parametrize(
    ("name", "decay", "with_boundary", "without_boundary"),
    [
        ("subtb", 1.0, 4.280582, 2.763843),
        ("subtb", 0.9, 4.080961, 2.722616),
        ("tb", 1.0, 8.074586, 3.959421),
        ("db", 1.0, 1.685863, 2.166054),
    ],
)
def test_losses_of_the_worked_example(name: str, decay: float, with_boundary: float, without_boundary: float) -> None:
    loss = objective(name, subtb_lambda=decay)
    path = worked_path()
    assert loss(*path).item() == pytest.approx(with_boundary, abs=5e-7)
    assert loss(*without_terminal(*path)).item() == pytest.approx(without_boundary, abs=5e-7)


def test_residuals_of_the_worked_example() -> None:
    phi = potentials(*worked_path())[0]
    found = {(m, n): (phi[n] - phi[m]).item() for n in range(4) for m in range(n)}
    expected = {(0, 1): -0.089612, (0, 2): 1.989829, (0, 3): 2.841582}
    expected |= {(1, 2): 2.079442, (1, 3): 2.931194, (2, 3): 0.851752}
    assert found == pytest.approx(expected, abs=5e-7)
    assert sum(residual**2 for residual in found.values()) == pytest.approx(25.683493, abs=5e-7)


def test_recursion_of_the_worked_example() -> None:
    log_pf, log_flow, mask = worked_path()
    phi = potentials(log_pf, log_flow, mask)
    added, weights = subtb_terms(phi, mask, subtb_lambda=0.9)
    assert weights[0].tolist() == pytest.approx([0.9, 1.71, 2.439], abs=5e-7)
    assert added[0].tolist() == pytest.approx([0.007227, 7.098800, 13.498743], abs=5e-7)
    assert added.sum().item() == pytest.approx(20.604771, abs=1e-6)
    assert weights.sum().item() == pytest.approx(5.049, abs=1e-9)


def test_gradient_of_the_worked_example() -> None:
    log_pf, log_flow, mask = worked_path()
    log_flow.requires_grad_(True)
    subtb(log_pf, log_flow, mask).sum().backward()
    assert log_flow.grad is not None
    assert log_flow.grad[0].tolist() == pytest.approx([-1.580600, -1.700082, 1.072506, 2.208176], abs=5e-7)


def test_a_disengaged_leaf() -> None:
    path = worked_path(leaf=0.0)
    assert path[1][0, -1].item() == pytest.approx(-6.907755, abs=5e-7)
    assert potentials(*path)[0, -1].item() == pytest.approx(-3.912023, abs=5e-7)
    assert subtb(*path).item() == pytest.approx(12.395986, abs=5e-7)


def test_the_sum_of_log_probabilities_excludes_the_upper_end() -> None:
    log_pf, log_flow, mask = worked_path()
    log_pf, log_flow, mask = without_terminal(log_pf, log_flow, mask)
    inclusive = 0.0
    full = torch.tensor(POLICY, dtype=torch.float64).log()
    pairs = [(m, n) for n in range(3) for m in range(n)]
    for m, n in pairs:
        inclusive += ((log_flow[0, n] - log_flow[0, m] - full[m : n + 1].sum()) ** 2).item()
    assert inclusive / len(pairs) == pytest.approx(6.367110, abs=5e-7)
    assert subtb(log_pf, log_flow, mask).item() != pytest.approx(6.367110, abs=1e-3)


paths = st.integers(0, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.floats(-6, 0), min_size=n, max_size=n), st.lists(st.floats(-7, 3), min_size=n + 1, max_size=n + 1)
    )
)


@settings(max_examples=60, deadline=None)
@given(
    batch=st.lists(paths, min_size=1, max_size=5), decay=st.floats(0.05, 1.0), garbage=st.sampled_from([7.0, math.nan])
)
def test_brute_force_over_pairs_equals_both_closed_forms(
    batch: list[tuple[list[float], list[float]]], decay: float, garbage: float
) -> None:
    width = max(len(log_pf) for log_pf, _ in batch) + 1
    log_pf = torch.full((len(batch), width), garbage, dtype=torch.float64)
    log_flow = torch.full((len(batch), width + 1), garbage, dtype=torch.float64)
    mask = torch.zeros(len(batch), width, dtype=torch.bool)
    for row, (steps, flows) in enumerate(batch):
        log_pf[row, : len(steps)] = torch.tensor(steps, dtype=torch.float64)
        log_flow[row, : len(flows)] = torch.tensor(flows, dtype=torch.float64)
        mask[row, : len(steps)] = True
    phis = [[flow - sum(steps[:t]) for t, flow in enumerate(flows)] for steps, flows in batch]
    geometric = subtb(log_pf, log_flow, mask, subtb_lambda=decay)
    assert geometric.tolist() == pytest.approx([brute_force(phi, decay) for phi in phis], rel=1e-9, abs=1e-9)
    uniform = [brute_force(phi, 1.0) for phi in phis]
    assert subtb(log_pf, log_flow, mask).tolist() == pytest.approx(uniform, rel=1e-9, abs=1e-9)
    squares, weights = subtb_terms(potentials(log_pf, log_flow, mask), mask, subtb_lambda=1.0)
    recursion = squares.sum(1) / weights.sum(1).clamp(min=1)
    assert recursion.tolist() == pytest.approx(uniform, rel=1e-9, abs=1e-9)
    steps_only = [sum((b - a) ** 2 for a, b in pairwise(phi)) / max(len(phi) - 1, 1) for phi in phis]
    assert db(log_pf, log_flow, mask).tolist() == pytest.approx(steps_only, rel=1e-9, abs=1e-9)
    ends = [(phi[-1] - phi[0]) ** 2 for phi in phis]
    assert tb(log_pf, log_flow, mask).tolist() == pytest.approx(ends, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ["subtb", "tb", "db"])
@pytest.mark.parametrize("decay", [1.0, 0.9])
def test_masked_nans_reach_neither_value_nor_gradient(name: str, decay: float) -> None:
    log_pf, log_flow, mask = worked_path()
    wide = (
        torch.cat([log_pf, torch.full((1, 2), torch.nan)], dim=1).requires_grad_(True),
        torch.cat([log_flow, torch.full((1, 2), torch.nan)], dim=1).requires_grad_(True),
        torch.cat([mask, torch.zeros(1, 2, dtype=torch.bool)], dim=1),
    )
    loss = objective(name, subtb_lambda=decay)
    padded = loss(*wide)
    assert padded.item() == pytest.approx(loss(log_pf, log_flow, mask).item(), rel=1e-12)
    padded.sum().backward()
    for tensor, n_real in ((wide[0], 3), (wide[1], 4)):
        assert tensor.grad is not None
        assert torch.isfinite(tensor.grad).all()
        assert (tensor.grad[:, n_real:] == 0).all()


@pytest.mark.parametrize("name", ["subtb", "tb", "db"])
def test_a_path_without_actions_costs_nothing(name: str) -> None:
    loss = objective(name, subtb_lambda=1.0)(
        torch.full((1, 2), torch.nan), torch.randn(1, 3), torch.zeros(1, 2, dtype=torch.bool)
    )
    assert loss.item() == 0.0


def test_two_nodes_make_all_objectives_equal() -> None:
    generator = torch.Generator().manual_seed(0)
    log_pf, log_flow = torch.randn(6, 1, generator=generator), torch.randn(6, 2, generator=generator)
    mask = torch.ones(6, 1, dtype=torch.bool)
    expected = tb(log_pf, log_flow, mask)
    assert torch.allclose(db(log_pf, log_flow, mask), expected)
    for decay in (1.0, 0.3):
        assert torch.allclose(subtb(log_pf, log_flow, mask, subtb_lambda=decay), expected)


def test_small_lambda_tends_to_single_steps() -> None:
    path = worked_path()
    assert subtb(*path, subtb_lambda=1e-9).item() == pytest.approx(db(*path).item(), rel=1e-6)


def test_terms_are_the_objectives_before_division() -> None:
    log_pf, log_flow, mask = worked_path()
    phi = potentials(log_pf, log_flow, mask)
    for name in ("subtb", "tb", "db"):
        squares, weights = path_terms(name, subtb_lambda=0.9)(phi, mask)
        expected = objective(name, subtb_lambda=0.9)(log_pf, log_flow, mask)
        assert (squares.sum() / weights.sum()).item() == pytest.approx(expected.item(), rel=1e-12)
    assert db_terms(phi, mask)[0].shape == (1, 3)


def exact_flow_tree(
    generator: torch.Generator, depth: int, scale: float, path: tuple[float, ...] = ()
) -> tuple[float, list[tuple[list[float], list[float]]]]:
    """Grow a random tree with exact flows; return F(root) and, per leaf, log π and log F along its path."""
    n_children = int(torch.randint(1, 4, (1,), generator=generator)) if depth else 0
    if not n_children:
        leaf = 0.05 + float(torch.rand((), generator=generator))
        return leaf, [([], [math.log(leaf)])]
    subtrees = [exact_flow_tree(generator, depth - 1, scale) for _ in range(n_children)]
    flow = scale * sum(child for child, _ in subtrees)
    return flow, [
        ([math.log(child / flow), *log_pf], [math.log(flow), *log_flow])
        for child, leaves in subtrees
        for log_pf, log_flow in leaves
    ]


@pytest.mark.parametrize("scale", [1.0, 1.7])
def test_constructed_flows_are_zeros_of_every_objective(scale: float) -> None:
    _, leaves = exact_flow_tree(torch.Generator().manual_seed(3), 5, scale)
    assert len(leaves) > 4
    for log_pf, log_flow in leaves:
        path = (
            torch.tensor([log_pf], dtype=torch.float64),
            torch.tensor([log_flow], dtype=torch.float64),
            torch.ones(1, len(log_pf), dtype=torch.bool),
        )
        for name, decay in (("subtb", 1.0), ("subtb", 0.7), ("tb", 1.0), ("db", 1.0)):
            assert objective(name, subtb_lambda=decay)(*path).item() == pytest.approx(0.0, abs=1e-24)


def test_policy_value_is_a_mean_without_gradient_to_the_policy() -> None:
    log_pi = torch.tensor([[0.5, 0.25, 0.25]]).log().requires_grad_(True)
    log_value = torch.tensor([[2.0, 4.0, 8.0]]).log().requires_grad_(True)
    mean = policy_value(log_pi, log_value)
    assert mean.exp().item() == pytest.approx(4.0)
    mean.sum().backward()
    assert log_pi.grad is None
    assert log_value.grad is not None


TORCHGFN = json.loads((Path(__file__).parent / "fixtures" / "torchgfn_values.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(
    "case", TORCHGFN["cases"], ids=lambda case: f"T{len(case['log_pf'][0])}-{case['subtb_lambda']}"
)
def test_losses_equal_those_of_torchgfn(case: dict) -> None:
    log_pf = torch.tensor(case["log_pf"], dtype=torch.float64)
    log_flow = torch.tensor(case["log_flow"], dtype=torch.float64)
    mask = torch.arange(log_pf.shape[1]) < torch.tensor(case["lengths"]).unsqueeze(1)
    found = subtb(log_pf, log_flow, mask, subtb_lambda=case["subtb_lambda"]).mean().item()
    assert found == pytest.approx(case["subtb"], rel=1e-12)
    assert tb(log_pf, log_flow, mask).mean().item() == pytest.approx(case["tb"], rel=1e-12)
    assert db(log_pf, log_flow, mask).mean().item() == pytest.approx(case["db"], rel=1e-12)
