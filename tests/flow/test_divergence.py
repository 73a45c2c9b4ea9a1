import pytest
import torch

from esckit.flow.objectives import kl_full, kl_taken


def test_the_taken_form_of_the_worked_example() -> None:
    log_pi = torch.tensor([[0.5, 0.25, 0.4, torch.nan]], dtype=torch.float64).log()
    log_ref = torch.tensor([[0.20, 0.25, 0.40, torch.nan]], dtype=torch.float64).log()
    mask = torch.tensor([[True, True, True, False]])
    assert kl_taken(log_pi, log_ref, mask).item() == pytest.approx(0.305430, abs=5e-7)


def test_the_taken_form_is_never_negative() -> None:
    log_pi, log_ref = torch.tensor([[0.1]]).log(), torch.tensor([[0.9]]).log()
    assert kl_taken(log_pi, log_ref, torch.ones(1, 1, dtype=torch.bool)).item() == 0.0


def test_the_full_form_is_the_divergence() -> None:
    pi, ref = torch.tensor([[0.7, 0.2, 0.1]]), torch.tensor([[0.2, 0.5, 0.3]])
    assert kl_full(pi.log(), ref.log()).item() == pytest.approx(torch.sum(pi * (pi / ref).log()).item(), rel=1e-6)
    assert kl_full(pi.log(), pi.log()).item() == 0.0
