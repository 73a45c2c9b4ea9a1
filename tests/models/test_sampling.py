import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from esckit.models.engine import Settings, draw, penalise, uniforms
from esckit.types import Sampling

CPU = torch.device("cpu")


def logits(rows: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed)) * 3


def share(row: torch.Tensor, sampling: Sampling, n: int = 4000) -> torch.Tensor:
    """Frequencies of the tokens drawn at ``n`` evenly spaced uniform numbers."""
    settings = Settings.of([sampling] * n, CPU)
    uniform = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    return torch.bincount(draw(row.expand(n, -1), settings, uniform), minlength=row.numel()) / n


@pytest.mark.parametrize(
    ("sampling", "warpers"),
    [
        (Sampling(temperature=1.0), []),
        (Sampling(temperature=0.7), []),
        (Sampling(top_k=5), [TopKLogitsWarper(5)]),
        (Sampling(top_p=0.8), [TopPLogitsWarper(0.8)]),
        (Sampling(temperature=1.5, top_k=8, top_p=0.7), [TopKLogitsWarper(8), TopPLogitsWarper(0.7)]),
    ],
)
def test_draws_follow_the_distribution_of_transformers(sampling, warpers):
    row = logits(1, 40)
    expected = TemperatureLogitsWarper(sampling.temperature)(None, row)
    for warper in warpers:
        expected = warper(None, expected)
    torch.testing.assert_close(share(row, sampling), expected.softmax(-1)[0], atol=1e-3, rtol=0)


def test_temperature_zero_takes_the_likeliest():
    table = logits(3, 20)
    settings = Settings.of([Sampling(temperature=0, top_p=0.5)] * 3, CPU)
    assert torch.equal(draw(table, settings, torch.full((3,), 0.99)), table.argmax(-1))


def test_a_row_does_not_depend_on_its_neighbours():
    table, uniform = logits(6, 5000), uniforms(3, 6)
    mixed = [
        Sampling(temperature=0),
        Sampling(temperature=2.0),
        Sampling(top_p=0.9),
        Sampling(top_p=0.999, temperature=5.0),  # needs more than the 256 likeliest
        Sampling(top_k=3),
        Sampling(top_k=400, top_p=0.95, temperature=3.0),
    ]
    together = draw(table, Settings.of(mixed, CPU), uniform)
    alone = [draw(table[i : i + 1], Settings.of([mixed[i]], CPU), uniform[i : i + 1]).item() for i in range(6)]
    assert together.tolist() == alone


def test_repetition_penalty_equals_that_of_transformers():
    table, ids = logits(2, 12), torch.tensor([[1, 4, 4], [0, 11, 7]])
    seen = torch.zeros(2, 12, dtype=torch.bool).scatter(1, ids, value=True)
    expected = RepetitionPenaltyLogitsProcessor(1.3)(ids, table.clone())
    torch.testing.assert_close(penalise(table, seen, torch.full((2,), 1.3)), expected)


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2**-53])
def test_the_ends_of_the_unit_interval_draw_possible_tokens(uniform):
    row = torch.tensor([[-torch.inf, 0.0, -torch.inf, 1.0, -torch.inf]])
    for sampling in (Sampling(), Sampling(top_k=2), Sampling(top_p=0.9)):
        token = draw(row, Settings.of([sampling], CPU), torch.tensor([uniform], dtype=torch.float64)).item()
        assert token in {1, 3}


def test_uniforms_are_a_function_of_the_seed_alone():
    assert torch.equal(uniforms(2**63 - 1, 8), uniforms(2**63 - 1, 8))
    assert torch.equal(uniforms(5, 40)[:8], uniforms(5, 8))
    assert not torch.equal(uniforms(5, 8), uniforms(6, 8))
