"""Our objectives against torchgfn's own numbers (``fixtures/make_torchgfn_values.py`` makes them)."""

import json
from pathlib import Path

import pytest
import torch

from esckit.flow.objectives import db, subtb, tb

VALUES = json.loads((Path(__file__).parent / "fixtures" / "torchgfn_values.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("case", VALUES["cases"], ids=lambda case: f"T{len(case['log_pf'][0])}-{case['subtb_lambda']}")
def test_losses_equal_those_of_torchgfn(case: dict) -> None:
    log_pf = torch.tensor(case["log_pf"], dtype=torch.float64)
    log_flow = torch.tensor(case["log_flow"], dtype=torch.float64)
    mask = torch.arange(log_pf.shape[1]) < torch.tensor(case["lengths"]).unsqueeze(1)
    found = subtb(log_pf, log_flow, mask, subtb_lambda=case["subtb_lambda"]).mean().item()
    assert found == pytest.approx(case["subtb"], rel=1e-12)
    assert tb(log_pf, log_flow, mask).mean().item() == pytest.approx(case["tb"], rel=1e-12)
    assert db(log_pf, log_flow, mask).mean().item() == pytest.approx(case["db"], rel=1e-12)
