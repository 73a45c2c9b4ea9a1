"""What a run may cost at most, measured by rehearsing a sample of its units with stand-ins; calls no model.

Calls are the bounds of the command's plan. Tokens of prompts are those of the prompts that a sample of units leads to
(:mod:`esckit.roles.rehearsal`), for the calls of all units; three standard errors are added where not every unit was
rehearsed. A model writes as much as its sampling allows. Retries are not included.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from esckit.config.sections import (
    BackboneBinding,
    Binding,
    Checkpoint,
    EndpointBinding,
    ModelRecipe,
)
from esckit.errors import EsckitError
from esckit.ledger import derive_seed, uniform
from esckit.models.backbones import find_backbone, local_folder
from esckit.models.cache import CacheFile, cache_path
from esckit.models.checkpoint import FOLDER
from esckit.play.executor import Cast
from esckit.records import dump_line
from esckit.roles.rehearsal import BYTES_PER_TOKEN, Rehearsal
from esckit.types import FREE, Prices, Usage

MOST_CALLS = 1_500
"""So many calls of stand-ins a rehearsal makes, about; it takes a second."""

MOST_UNITS = 48

LEAST_UNITS = 2

_MARGIN = 3.0
"""Standard errors that are added to what was measured on a sample."""

_TIMING_BYTES = 200
"""What ``metrics.jsonl`` holds of a unit, at most."""


@dataclass(frozen=True, slots=True)
class StagedFile:
    """The units of one file, as they can be rehearsed.

    Attributes:
        n_units: How many there are.
        unit: Returns the unit at a place in their order.
        calls: Bounds on the calls of all units together, by role.
    """

    n_units: int
    unit: Callable[[int], Any]
    calls: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Staged:
    """A run as it can be rehearsed.

    Attributes:
        recipe: Its recipe.
        cast: Says who plays.
        given: What ``cast`` needs beside the pool and the recipe.
        files: By the name under which the players know them.
        answers: What stand-ins say, by role; see :class:`~esckit.roles.rehearsal.Rehearsal`.
        keeps_records: Whether the records of its units are written; a training plays units and keeps none.
    """

    recipe: ModelRecipe
    cast: Cast
    given: tuple[Any, ...]
    files: Mapping[str, StagedFile]
    answers: Mapping[str, str]
    keeps_records: bool = True


class Measured(NamedTuple):
    """What one rehearsed unit took, by role.

    Attributes:
        calls: Calls.
        read: Bytes of the prompts, without what the tokenizer says of them.
        written: Tokens that were allowed to be written.
        n_bytes: What it left on the disk.
    """

    calls: Mapping[str, int]
    read: Mapping[str, int]
    written: Mapping[str, int]
    n_bytes: int


def spread(n_units: int, n_wanted: int, seed: int, *place: str) -> list[int]:
    """Return the indices of a seeded sample: one unit out of each of as many equal parts of the units in their order.

    Units that stand beside each other are alike (of one dialogue, of one context), so such a sample tells more of the
    whole than one that is drawn freely.
    """
    n = min(n_units, n_wanted)
    edges = [part * n_units // n for part in range(n + 1)] if n else [0]
    numbers = (uniform(derive_seed(seed, "sample", *place, part)) for part in range(n))
    return [low + int(number * (high - low)) for low, high, number in zip(edges[:-1], edges[1:], numbers, strict=True)]


def forecast(staged: Staged, *, rate: float | None = None) -> dict[str, Any]:
    """Return what a run may cost at most, as plain data; None is unknown.

    Args:
        staged: The run.
        rate: Calls per second that the servers or the machine manage, for the hours.

    Raises:
        EsckitError: If the recipe's roles cannot be built, or its response cache cannot be used.
    """
    pool = Rehearsal(staged.answers)
    samples = asyncio.run(_rehearse(staged, pool))
    path = cache_path(staged.recipe.cache)
    if path is not None and path.exists() and any(isinstance(one, EndpointBinding) for one in pool.bindings.values()):
        with CacheFile(path):
            pass
    roles: dict[str, dict[str, Any]] = {}
    n_bytes = 0.0
    for name, file in staged.files.items():
        sample = samples[name]
        n_bytes += _upper([one.n_bytes for one in sample], file.n_units) + _TIMING_BYTES * file.n_units
        for role, calls in file.calls.items():
            one = roles.setdefault(role, {"calls": 0, "read": 0.0, "completion_tokens": 0})
            one["calls"] += calls
            asked = [unit.calls.get(role, 0) for unit in sample]
            one["read"] += calls * _rate([unit.read.get(role, 0) for unit in sample], asked, file.n_units)
            written = _rate([unit.written.get(role, 0) for unit in sample], asked, file.n_units)
            one["completion_tokens"] += math.ceil(calls * written)
    for role, one in roles.items():
        one |= _in_tokens(role, one.pop("read"), one["calls"], one["completion_tokens"], pool)
    whole: dict[str, Any] = {
        name: _total([one[name] for one in roles.values()])
        for name in ("calls", "prompt_tokens", "completion_tokens", "cost")
    }
    hours = None if rate is None else round(whole["calls"] / rate / 3600, 2)
    return {
        "roles": roles,
        **whole,
        "hours": hours,
        "disk_bytes": math.ceil(n_bytes) if staged.keeps_records else None,
        "units": sum(file.n_units for file in staged.files.values()),
        "rehearsed_units": sum(map(len, samples.values())),
    }


async def _rehearse(staged: Staged, pool: Rehearsal) -> dict[str, list[Measured]]:
    """Play a sample of the units of every file."""
    players = await staged.cast(pool, staged.recipe, *staged.given)
    found: dict[str, list[Measured]] = {}
    for name, file in staged.files.items():
        n_units = file.n_units
        calls_each = sum(file.calls.values()) / max(1, n_units)
        n_wanted = int(MOST_CALLS / len(staged.files) / max(1.0, calls_each))
        chosen = spread(n_units, min(MOST_UNITS, max(LEAST_UNITS, n_wanted)), staged.recipe.seed, "rehearsal", name)
        found[name] = []
        for index in chosen:
            before = pool.budget.spent()["roles"]
            records = await players.play[name](file.unit(index))
            lines = [dump_line(record) for record in (records if isinstance(records, tuple) else (records,))]
            n_bytes = sum(len(line.encode("utf-8", "replace")) + 1 for line in lines)
            found[name].append(_measured(before, pool.budget.spent()["roles"], n_bytes))
    return found


def _measured(before: Mapping[str, Any], after: Mapping[str, Any], n_bytes: int) -> Measured:
    """Return what was added to the amounts of each role."""

    def added(what: str) -> dict[str, int]:
        return {role: one[what] - before.get(role, {}).get(what, 0) for role, one in after.items()}

    return Measured(added("calls"), added("prompt_tokens"), added("completion_tokens"), n_bytes)


def _rate(amounts: Sequence[float], calls: Sequence[int], n_units: int) -> float:
    """Return an upper bound of the amount per call over all units: the ratio of a sample and its standard errors."""
    n, n_calls = len(amounts), sum(calls)
    if not n_calls:
        return 0.0
    ratio = sum(amounts) / n_calls
    if n == n_units or n < 2:
        return ratio
    residuals = [amount - ratio * asked for amount, asked in zip(amounts, calls, strict=True)]
    variance = sum(each * each for each in residuals) / (n - 1)
    error = math.sqrt(variance * (1 - n / n_units) / n) / (n_calls / n)
    return ratio + _MARGIN * error


def _upper(amounts: Sequence[float], n_units: int) -> float:
    """Return an upper bound of the sum over all units."""
    return n_units * _rate(amounts, [1] * len(amounts), n_units)


def _total(parts: Sequence[float | None]) -> float | None:
    known = [part for part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _in_tokens(role: str, n_bytes: float, n_calls: int, written: int, pool: Rehearsal) -> dict[str, Any]:
    """Return what a role reads in tokens of its model, what that costs, and how its tokens were counted."""
    binding = pool.bindings.get(role)
    per_token, counted_by = BYTES_PER_TOKEN, None
    texts = pool.stand_ins[role].read if role in pool.stand_ins else []
    if binding is not None and texts and (file := tokenizer_file(binding)) is not None:
        per_token, counted_by = bytes_per_token(file, texts), str(file)
    prompt = math.ceil(n_bytes / per_token)
    prices = binding.prices if isinstance(binding, EndpointBinding) else FREE
    usage = Usage(calls=n_calls, prompt_tokens=prompt, completion_tokens=written)
    cost = prices.cost(usage) if isinstance(prices, Prices) else None
    return {
        "prompt_tokens": prompt,
        "completion_tokens": written,
        "cost": None if cost is None else round(cost, 2),
        "bytes_per_token": round(per_token, 2),
        "tokenizer": counted_by,
    }


def tokenizer_file(binding: Binding) -> Path | None:
    """Return the tokenizer of a binding's model if it lies on this machine; of a server under its model's hub id."""
    return next((file for folder in _folders(binding) if (file := folder / "tokenizer.json").is_file()), None)


def _folders(binding: Binding) -> Iterator[Path]:
    if isinstance(binding, Checkpoint):
        yield from (Path(binding.checkpoint) / FOLDER / name for name in ("tokenizer", "backbone", "."))
        return
    name = binding.backbone if isinstance(binding, BackboneBinding) else None
    if isinstance(binding, EndpointBinding) and "/" in binding.model:
        name = binding.model
    if name is None:
        return
    try:
        folder = local_folder(find_backbone(name))
    except EsckitError:
        return
    if folder is not None:
        yield folder


def bytes_per_token(file: Path, texts: Sequence[str]) -> float:
    """Return how many bytes of UTF-8 a token of a tokenizer takes, on average over some texts."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    n_tokens = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in texts)
    n_bytes = sum(len(text.encode("utf-8", "replace")) for text in texts)
    return n_bytes / n_tokens if n_tokens and n_bytes else BYTES_PER_TOKEN
