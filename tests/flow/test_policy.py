"""A trained policy in use: what it says must be numbers."""

import asyncio

import pytest
import torch

from esckit.errors import BackendError
from esckit.flow.policy import CheckpointPolicy
from esckit.ledger import Ledger
from esckit.types import Scenario, Turn
from tests.flow.flow_fakes import flow_text, tiny_model


def test_numbers_that_are_not_finite_fail_the_call() -> None:
    model = tiny_model()
    with torch.no_grad():
        for weight in model.backbone.parameters():
            weight[...] = torch.nan
    policy = CheckpointPolicy(model, flow_text(), name="broken")
    scope = Ledger(1, "t").at("r", 0)
    with pytest.raises(BackendError, match="of broken that are not finite") as caught:
        asyncio.run(policy.decide(Scenario(id="s"), (Turn(speaker="seeker", text="Hi."),), scope))
    assert caught.value.kind == "not_finite"
