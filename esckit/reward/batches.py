"""From labelled examples to the batches of a training: tokens, pairs of candidates, and each process's passes."""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor
from torch.utils.data import Dataset

from esckit.ledger import derive_seed
from esckit.reward.examples import RewardExample, preference_pairs
from esckit.reward.model import collate
from esckit.reward.recipe import StepPlan
from esckit.reward.text import RewardInput, RewardText
from esckit.training.run import Process

N_REMEMBERED = 64
"""How many of the latest examples are remembered, for the report of a divergence."""


@dataclass(frozen=True, slots=True)
class Item:
    """What the data loader draws: one example of a classifier, or all candidates of a context of a ranker.

    Attributes:
        ids: Ids of the examples.
        inputs: Their tokens.
        labels: 1 for good futures.
        pairs: Index pairs (better, worse).
        best: Index of the highest reward.
    """

    ids: tuple[str, ...]
    inputs: tuple[RewardInput, ...]
    labels: tuple[int, ...]
    pairs: tuple[tuple[int, int], ...] = ()
    best: int = 0


@dataclass(frozen=True, slots=True)
class Encoded:
    """Examples as tokens; those whose response does not fit are left out.

    Attributes:
        examples: What is left, in order.
        inputs: Their tokens.
        n_too_long: How many were left out.
        n_cut: How many lost oldest turns.
    """

    examples: tuple[RewardExample, ...]
    inputs: tuple[RewardInput, ...]
    n_too_long: int
    n_cut: int


def encode_examples(examples: Sequence[RewardExample], text: RewardText) -> Encoded:
    """Return examples as tokens."""
    pairs = [(example, text.encode(example.turns, example.response)) for example in examples]
    kept = [(example, tokens) for example, tokens in pairs if tokens is not None]
    return Encoded(
        examples=tuple(example for example, _ in kept),
        inputs=tuple(tokens for _, tokens in kept),
        n_too_long=len(pairs) - len(kept),
        n_cut=sum(tokens.n_dropped_turns > 0 for _, tokens in kept),
    )


def single_items(encoded: Encoded) -> list[Item]:
    """Return one item for each example."""
    return [
        Item((example.id,), (tokens,), (int(example.label),))
        for example, tokens in zip(encoded.examples, encoded.inputs, strict=True)
    ]


def group_items(encoded: Encoded, *, margin: Fraction) -> tuple[list[Item], int]:
    """Return one item for each context whose candidates differ, and the number of contexts that give no pair."""
    groups: dict[str, list[int]] = {}
    for index, example in enumerate(encoded.examples):
        groups.setdefault(example.group, []).append(index)
    items = []
    for members in groups.values():
        values = [encoded.examples[index].reward for index in members]
        pairs = preference_pairs(values, margin)
        if pairs:
            items.append(
                Item(
                    ids=tuple(encoded.examples[index].id for index in members),
                    inputs=tuple(encoded.inputs[index] for index in members),
                    labels=tuple(int(encoded.examples[index].label) for index in members),
                    pairs=pairs,
                    best=values.index(max(values)),
                )
            )
    return items, len(groups) - len(items)


def collate_items(items: Sequence[Item]) -> dict[str, Tensor]:
    """Return one batch: that of :func:`~esckit.reward.model.collate`, ``labels`` (B,) and what rankers need.

    ``pairs`` (P, 2) and ``best`` (C,) index the batch's rows; ``pair_weights`` (P,) sum up to 1.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[float] = []
    best: list[int] = []
    start = 0
    for item in items:
        pairs += [(start + better, start + worse) for better, worse in item.pairs]
        weights += [1.0 / (len(item.pairs) * len(items)) for _ in item.pairs]
        best.append(start + item.best)
        start += len(item.inputs)
    return {
        **collate([tokens for item in items for tokens in item.inputs]),
        "labels": torch.tensor([label for item in items for label in item.labels]),
        "pairs": torch.tensor(pairs, dtype=torch.long).view(-1, 2),
        "pair_weights": torch.tensor(weights),
        "best": torch.tensor(best),
    }


class MicroBatches(Dataset[dict[str, Tensor]]):
    """All forward passes of one process, in the order of training, each epoch shuffled by a seed of its own.

    A step's items are the same whatever the number of processes, and its loss is the mean over them. So a pass carries
    the weight of its items in the step, and where a step has too few items for all processes, an idle pass weighs 0.

    Args:
        items: What to learn from.
        plan: How they come into steps.
        epochs: Passes over the items.
        seed: The run's.
        process: This process.

    Attributes:
        recent: Ids of the latest examples.
    """

    def __init__(self, items: Sequence[Item], *, plan: StepPlan, epochs: int, seed: int, process: Process) -> None:
        self._items = items
        self.recent: deque[str] = deque(maxlen=N_REMEMBERED)
        self._passes: list[tuple[list[int], float]] = []
        n_passes = plan.accumulate * process.count
        batch = plan.micro_batch * n_passes
        for epoch in range(epochs):
            order = list(range(len(items)))
            random.Random(derive_seed(seed, "reward-epoch", epoch)).shuffle(order)
            for start in range(0, len(order), batch):
                step = order[start : start + batch]
                for first in range(process.rank * plan.micro_batch, batch, process.count * plan.micro_batch):
                    own = step[first : first + plan.micro_batch]
                    self._passes.append((own or step[:1], len(own) * n_passes / len(step)))

    def __len__(self) -> int:
        """Return the number of forward passes."""
        return len(self._passes)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """Return one forward pass."""
        own, weight = self._passes[index]
        items = [self._items[item] for item in own]
        self.recent.extend(name for item in items for name in item.ids)
        return {**collate_items(items), "weight": torch.tensor(weight)}
