"""From logits to tokens, and many jobs worked off together."""

import pytest
import torch
from transformers import RepetitionPenaltyLogitsProcessor, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

from esckit.models.engine import Engine, ReadJob, Settings, WriteJob, Written, draw, penalise, uniforms
from esckit.models.in_memory import build
from esckit.types import Sampling, StopReason
from tests.models.local_fakes import Naive, prompts

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


NEVER = frozenset({-1})


def engine(max_batch_tokens: int = 4096, max_stored_bytes: int = 2**22) -> Engine:
    return Engine(build("tiny-random")[0], max_batch_tokens=max_batch_tokens, max_stored_bytes=max_stored_bytes)


def job(number: int, prompt: tuple[int, ...], max_tokens: int = 8, temperature: float = 0.0) -> WriteJob:
    return WriteJob(prompt, Sampling(temperature=temperature, max_tokens=max_tokens), number, NEVER)


def finish(worker: Engine, jobs: list[WriteJob]) -> list[Written]:
    results = worker.advance(jobs, (), lambda: False)
    while worker.rows or worker.waiting:
        results |= worker.advance([], (), lambda: False)
    return [results[job] for job in jobs]


class Hungry:
    """Lets a model run out of memory on batches above a size."""

    def __init__(self, model: torch.nn.Module, most: int) -> None:
        self.model, self.most = model, most
        self.sizes: list[int] = []
        model.register_forward_pre_hook(self.look, with_kwargs=True)

    def look(self, model: torch.nn.Module, args: tuple[object, ...], given: dict[str, torch.Tensor]) -> None:
        self.sizes.append(len(given["input_ids"]))
        if self.sizes[-1] > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory")


ASKED = [Naive().chat.encode(messages) for messages in prompts()]


def test_a_shared_prefix_is_computed_once():
    worker, seen = engine(), []
    worker.model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    prompt = tuple(range(3, 103))
    finish(worker, [job(i, prompt, max_tokens=3) for i in range(10)])
    assert seen == [(1, 99), (10, 1), (10, 1), (10, 1)]


def test_the_next_turn_reads_on_from_the_last():
    worker, seen = engine(), []
    worker.model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    finish(worker, [job(0, tuple(range(3, 103)), max_tokens=1)])
    finish(worker, [job(1, tuple(range(3, 113)), max_tokens=1)])
    assert seen == [(1, 100), (1, 10)]


def test_finished_rows_leave_and_late_ones_join():
    worker = engine()
    short, long, late = job(0, ASKED[0], max_tokens=2), job(1, ASKED[1], max_tokens=30), job(2, ASKED[6], max_tokens=2)
    assert set(worker.advance([short, long], (), lambda: False)) == {short}
    assert set(worker.advance([late], (), lambda: False)) == {late}
    assert list(worker.advance([], (), lambda: False).values()) == finish(engine(), [long])


def test_an_interruption_is_heard_after_one_step():
    worker = engine()
    assert worker.advance([job(0, ASKED[0], max_tokens=50)], (), lambda: True) == {}
    assert len(worker.rows[0].ids) == 2


def test_dropped_jobs_free_their_place():
    worker, long, short = engine(), job(0, ASKED[0], max_tokens=50), job(1, ASKED[1], max_tokens=5)
    worker.advance([long, short], (), lambda: True)
    results = worker.advance([], {long}, lambda: False)
    assert list(results.values()) == finish(engine(), [short])
    assert not worker.rows
    assert not worker.waiting
    assert worker.slots.layers[0].keys is None


def test_the_budget_holds_back_what_does_not_fit():
    tight = engine(max_batch_tokens=240)
    jobs = [job(i, prompt) for i, prompt in enumerate(ASKED)]
    most = 0

    def watch(*_):
        nonlocal most
        most = max(most, len(tight.rows))

    tight.model.register_forward_pre_hook(watch)
    assert finish(tight, jobs) == finish(engine(), jobs)
    assert most < len(jobs)


def test_a_prompt_longer_than_the_budget_still_runs():
    tight = engine(max_batch_tokens=16, max_stored_bytes=16)
    assert finish(tight, [job(0, ASKED[0])]) == finish(engine(), [job(0, ASKED[0])])


def test_out_of_memory_once_starts_over_with_half_the_batch():
    jobs = [job(i, tuple(range(3 + i, 43 + i)), temperature=1.0) for i in range(4)]
    hungry = Hungry(build("tiny-random")[0], most=2)
    worker = Engine(hungry.model, max_batch_tokens=200, max_stored_bytes=0)
    assert finish(worker, jobs) == finish(engine(), jobs)
    assert max(hungry.sizes) > 2
    assert worker.max_batch_tokens == 100


def test_running_out_of_memory_twice_is_an_error():
    worker = Engine(Hungry(build("tiny-random")[0], most=0).model, max_batch_tokens=200, max_stored_bytes=0)
    assert worker.advance([job(0, ASKED[0])], (), lambda: False) == {}
    with pytest.raises(torch.OutOfMemoryError):
        worker.advance([], (), lambda: False)


def test_a_long_prompt_runs_in_pieces():
    prompt = tuple(3 + i % 300 for i in range(1500))
    worker, seen = engine(), []
    worker.model.register_forward_pre_hook(lambda m, a, k: seen.append(k["input_ids"].shape[1]), with_kwargs=True)
    written = finish(worker, [job(0, prompt, max_tokens=1)])[0]
    assert seen == [1024, 475, 1]
    assert written == Written((int(Naive().log_probs(prompt)[-1].argmax()),), StopReason.LENGTH)


def test_continuations_that_differ_in_the_last_token_are_one_row():
    worker, seen = engine(), []
    worker.model.register_forward_pre_hook(lambda m, a, k: seen.append(tuple(k["input_ids"].shape)), with_kwargs=True)
    asked = ReadJob((5, 6, 7), ((8,), (9,), (8, 9)), 1.0)
    read = worker.advance([asked], (), lambda: False)[asked]
    expected = Naive().log_probs((5, 6, 7, 8))
    wanted = [expected[2, 8], expected[2, 9], expected[2, 8] + expected[3, 9]]
    assert seen == [(1, 2), (2, 2)]
    assert read == pytest.approx([float(p) for p in wanted], abs=1e-4)
