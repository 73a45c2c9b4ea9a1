import pytest
import torch
from torch.nn.functional import softplus

from esckit.flow.model import FlowHead, StrategyHead, log_softplus


def test_log_softplus_is_exact_in_the_middle_and_linear_far_below() -> None:
    x = torch.tensor([-14.9, -3.0, 0.0, 2.0, 40.0], dtype=torch.float64)
    assert torch.allclose(log_softplus(x), softplus(x).log(), rtol=1e-12)
    far = torch.tensor([-15.5, -60.0, -1e4])
    assert log_softplus(far).tolist() == far.tolist()


def test_log_softplus_joins_smoothly() -> None:
    around = torch.tensor([-15.0 - 1e-6, -15.0 + 1e-6], dtype=torch.float64)
    assert log_softplus(around)[0].item() == pytest.approx(log_softplus(around)[1].item(), abs=3e-6)


def test_log_softplus_has_finite_gradients_everywhere() -> None:
    x = torch.tensor([-1e4, -100.0, -15.0, -1.0, 0.0, 100.0], requires_grad=True)
    log_softplus(x).sum().backward()
    assert x.grad is not None
    assert x.grad[:2].tolist() == [1.0, 1.0]
    assert torch.isfinite(x.grad).all()
    assert (x.grad > 0).all()


def test_heads_stay_in_float32_under_autocast_and_on_bfloat16_states() -> None:
    hidden = torch.randn(5, 16, dtype=torch.bfloat16)
    policy, flow = StrategyHead(16, 8), FlowHead(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        log_pi, log_value = policy(hidden), flow(hidden)
    assert log_pi.dtype == log_value.dtype == torch.float32
    assert torch.allclose(log_pi.exp().sum(dim=1), torch.ones(5))
    assert torch.equal(log_pi, policy(hidden.float()))
