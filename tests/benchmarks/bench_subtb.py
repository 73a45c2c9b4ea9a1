"""Our subpath loss against torchgfn's: seconds of forward and backward pass, and equal values.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_subtb

Runs wherever torch is; the comparison needs torchgfn, in an environment of its own (``pip install torch==2.13.0``, then
``pip install torchgfn``), started in the repository's root.
"""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable

import torch
from torch import Tensor

from esckit.flow.objectives import subtb

N_PATHS = 64
CASES = [(10, 1.0), (10, 0.9), (32, 1.0), (32, 0.9), (128, 1.0), (128, 0.9)]


def ours(log_pf: Tensor, log_flow: Tensor, lengths: Tensor, decay: float) -> Callable[[], Tensor]:
    """Return our loss of paths given as (T, B)."""
    mask = torch.arange(log_pf.shape[0]) < lengths.unsqueeze(1)
    return lambda: subtb(log_pf.T, log_flow.T, mask, subtb_lambda=decay).mean()


def theirs(log_pf: Tensor, log_flow: Tensor, lengths: Tensor, decay: float) -> Callable[[], Tensor]:
    """Return torchgfn's loss of the same paths."""
    from tests.flow.fixtures.make_torchgfn_values import ReadyPaths
    from tests.flow.fixtures.make_torchgfn_values import subtb as torchgfn_subtb

    loss = torchgfn_subtb("equal_within" if decay == 1.0 else "geometric_within", decay)
    return lambda: loss.loss(object(), ReadyPaths(log_pf, log_flow, lengths), reduction="sum")


def seconds(loss: Callable[[], Tensor], leaves: tuple[Tensor, ...]) -> float:
    """Return the least time of a forward and backward pass over at least a second of trying."""
    best, spent = float("inf"), 0.0
    while spent < 1.0:
        for leaf in leaves:
            leaf.grad = None
        start = time.perf_counter()
        loss().backward()
        taken = time.perf_counter() - start
        best, spent = min(best, taken), spent + taken
    return best


def main() -> None:
    torch.set_default_dtype(torch.float64)
    has_torchgfn = importlib.util.find_spec("gfn") is not None
    generator = torch.Generator().manual_seed(0)
    for length, decay in CASES:
        log_pf = (-3 * torch.rand(length, N_PATHS, generator=generator)).requires_grad_(True)
        log_flow = torch.randn(length + 1, N_PATHS, generator=generator).requires_grad_(True)
        lengths = torch.randint(1, length + 1, (N_PATHS,), generator=generator)
        leaves = (log_pf, log_flow)
        mine = ours(*leaves, lengths, decay)
        row = {"T": length, "lambda": decay, "paths": N_PATHS, "ours_ms": 1e3 * seconds(mine, leaves)}
        if has_torchgfn:
            other = theirs(*leaves, lengths, decay)
            row["torchgfn_ms"] = 1e3 * seconds(other, leaves)
            row["ratio"] = row["torchgfn_ms"] / row["ours_ms"]
            row["relative_difference"] = abs(mine().item() / other().item() - 1.0)
        print(json.dumps({name: float(f"{value:.3g}") for name, value in row.items()}), flush=True)


if __name__ == "__main__":
    main()
