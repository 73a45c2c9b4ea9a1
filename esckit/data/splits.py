"""Which dialogues train, validate and test: split before any context, window or merge is made.

``hub`` (70/15/15) and ``ppdpp`` (80/10/10) are the two published cuts of ESConv. Both shuffle the 1,300 dialogues alike
and cut differently, so they overlap: see :func:`esckit.evaluate.setup.leakage_flags`.

Trainings hold out dialogues for development by a hash of their id, so every command holds out the same ones.
"""

from __future__ import annotations

import hashlib
import math
import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Literal, NamedTuple, Protocol, TypeVar

from esckit.data.corpus import SPLITS, Corpus
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.types import Dialogue

Scheme = Literal["hub", "ppdpp", "ratio", "files"]

ESCONV_SIZE = 1300

# A split is warned of whose size is off by more than this part of what its ratio asks for, and by two dialogues.
_LOPSIDED = 0.5

_SEEDS_TRIED = 100

# Hex digits at the end of an id; what stands before them names the corpus.
_DIGITS = 12

# Ends of valid and of test in the shuffled order; train is the rest.
_CUTS = {"hub": (195, 390), "ppdpp": (130, 260)}

_ORDER_SHA256 = "5089abb4c92fd6114613734cdbaccd648900a0cc2170307b56e41e3c3681582b"

_SORTED_SHA256 = "4898fdbbade0e85c675e057562f7cb470fc8c611ea49e09899265be0382bf393"


def assign_splits(
    corpus: Corpus,
    *,
    scheme: Scheme,
    seed: int = 13,
    ratios: Sequence[float] = (0.8, 0.1, 0.1),
    sink: IssueSink,
) -> dict[str, tuple[Dialogue, ...]]:
    """Return the dialogues of ``train``, ``valid`` and ``test``, each in load order.

    Args:
        corpus: The whole corpus.
        scheme: ``hub`` or ``ppdpp`` (ESConv only), ``files`` (as the folder says) or ``ratio``.
        seed: Of ``ratio``.
        ratios: Of ``ratio``: train, valid, test; not negative, sum 1.
        sink: Takes the warnings ``corpus_differs`` and ``lopsided_split``.

    Raises:
        DataError: If the scheme does not fit the corpus, or a positive ratio gets no dialogue.
    """
    parts: dict[str, list[Dialogue]] = {split: [] for split in SPLITS}
    names = split_names(corpus, scheme=scheme, seed=seed, ratios=ratios, sink=sink)
    for dialogue, (_, split) in zip(corpus.dialogues, names, strict=True):
        parts[split].append(dialogue)
    return {split: tuple(dialogues) for split, dialogues in parts.items()}


def split_names(
    corpus: Corpus, *, scheme: Scheme, seed: int, ratios: Sequence[float], sink: IssueSink
) -> list[tuple[str, str]]:
    """Return the id of each dialogue and the name of its split; see :func:`assign_splits`. The corpus is read once."""
    heads = [
        _Head(dialogue.id, dialogue.source.split if dialogue.source else None, dialogue.scenario.situation.casefold())
        for dialogue in corpus.dialogues
    ]
    if scheme == "files":
        names = _file_splits(corpus, heads)
    elif scheme == "ratio":
        names = _ratio_splits(corpus, heads, seed, ratios, sink)
    else:
        names = _published_splits(corpus, heads, scheme, sink)
    return [(head.id, name) for head, name in zip(heads, names, strict=True)]


class _Head(NamedTuple):
    """What splits depend on: a dialogue's id, the split that its file is named after, its situation (case-folded)."""

    id: str
    split: str | None
    situation: str


def esconv_permutation() -> list[int]:
    """Return the shuffled positions (0-based, in ``ESConv.json``) behind both published cuts."""
    positions = list(range(ESCONV_SIZE))
    random.Random(13).shuffle(positions)
    return positions


def _joined_sha256(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ---------------------------------------------------------------- schemes


def _file_splits(corpus: Corpus, heads: Sequence[_Head]) -> list[str]:
    """Return per dialogue the split that its file is named after."""
    names = [head.split for head in heads]
    unassigned = names.count(None)
    if unassigned:
        raise DataError(
            f"{unassigned} of {len(names)} dialogues without a split of their own",
            path=corpus.path,
            expected="for scheme files: a folder with train, valid and test files",
            hint="Choose scheme ratio, or hub or ppdpp for ESConv",
        )
    return [name for name in names if name is not None]


def _published_splits(corpus: Corpus, heads: Sequence[_Head], scheme: str, sink: IssueSink) -> list[str]:
    """Return per dialogue its split in one of the published cuts of ESConv."""
    n_found = len(heads)
    if n_found != ESCONV_SIZE:
        raise DataError(
            f"{n_found:,} records",
            path=corpus.path,
            expected=f"exactly {ESCONV_SIZE:,}, all of ESConv, for scheme {scheme}",
            hint="Scheme ratio splits any corpus",
        )
    permutation = esconv_permutation()
    order = permutation
    by_split: dict[str | None, list[int]] = defaultdict(list)
    for index, head in enumerate(heads):
        by_split[head.split].append(index)
    if len(corpus.files) > 1 and None not in by_split:  # a folder cut from ESConv: the order is valid, test, train
        order = [*by_split["valid"], *by_split["test"], *by_split["train"]]
    _check_order(corpus, heads, order, permutation, sink)
    end_valid, end_test = _CUTS[scheme]
    names = [""] * ESCONV_SIZE
    for rank, index in enumerate(order):
        names[index] = "valid" if rank < end_valid else "test" if rank < end_test else "train"
    return names


def _check_order(
    corpus: Corpus, heads: Sequence[_Head], order: list[int], permutation: list[int], sink: IssueSink
) -> None:
    """Refuse ESConv in a wrong order; warn if the records are not ESConv's."""
    original = [""] * ESCONV_SIZE
    for position, index in zip(permutation, order, strict=True):
        original[position] = heads[index].id[-_DIGITS:]
    if _joined_sha256(original) == _ORDER_SHA256:
        return
    if _joined_sha256(sorted(original)) == _SORTED_SHA256:
        raise DataError(
            "ESConv, but its records are not in their original order",
            path=corpus.path,
            expected="the order of ESConv.json, or the folder of a published split",
        )
    sink.note(Issue("corpus_differs", "W", corpus.path, 0, detail="not the records of ESConv; split by position"))


def _ratio_splits(
    corpus: Corpus, heads: Sequence[_Head], seed: int, ratios: Sequence[float], sink: IssueSink
) -> list[str]:
    """Return per dialogue its split by a hash of its id; dialogues with equal situations stay together."""
    if len(ratios) != len(SPLITS) or min(ratios) < 0 or not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise DataError(f"ratios {', '.join(map(str, ratios))}", expected="three of at least 0 that sum to 1")
    smallest: dict[str, str] = {}
    # A dialogue without a situation is a group of its own.
    groups = [head.situation or head.id for head in heads]
    for head, group in zip(heads, groups, strict=True):
        smallest[group] = min(head.id, smallest.get(group, head.id))
    keys = [smallest[group] for group in groups]
    names = _hashed(keys, seed, ratios)
    _check_filled(corpus, keys, names, seed, ratios)
    expected = {split: ratio * len(names) for split, ratio in zip(SPLITS, ratios, strict=True)}
    off = {split: abs(names.count(split) - size) for split, size in expected.items()}
    if any(off[split] >= 2 and off[split] > _LOPSIDED * size for split, size in expected.items()):
        found = ", ".join(f"{split} {names.count(split):,} instead of about {expected[split]:.3g}" for split in SPLITS)
        detail = f"{found}; another seed draws other dialogues"
        sink.note(Issue("lopsided_split", "W", corpus.path, 0, detail=detail))
    return names


def _hashed(keys: Iterable[str], seed: int, ratios: Sequence[float]) -> list[str]:
    """Return the split of each key by its hash."""
    shares = (_position(f"{seed}:{key}") for key in keys)
    end_train, end_valid = ratios[0], ratios[0] + ratios[1]
    return ["train" if share < end_train else "valid" if share < end_valid else "test" for share in shares]


def _check_filled(
    corpus: Corpus, keys: Sequence[str], names: Sequence[str], seed: int, ratios: Sequence[float]
) -> None:
    """Refuse a split that should hold dialogues and got none."""
    wanted = [split for split, ratio in zip(SPLITS, ratios, strict=True) if ratio > 0]
    empty = [split for split in wanted if split not in names]
    if not empty:
        return
    n_groups = len(set(keys))
    if n_groups < len(wanted):
        counted = f"{len(keys)} dialogues" if n_groups == len(keys) else f"dialogues of {n_groups} different situations"
        raise DataError(
            f"{counted}, too few for {len(wanted)} splits",
            path=corpus.path,
            expected=f"at least {len(wanted)}, since dialogues of one situation stay together",
            hint="Add dialogues, or give a ratio of 0 to the splits that you do not need",
        )
    filling = next((other for other in range(_SEEDS_TRIED) if set(wanted) <= {*_hashed(keys, other, ratios)}), None)
    raise DataError(
        f"no dialogue for {', '.join(empty)} among {len(names)} with seed {seed}",
        path=corpus.path,
        hint="Choose larger ratios"
        if filling is None
        else f"Seed {filling} fills every split (in a recipe: data: {{seed: {filling}}})",
    )


def shared_situations(parts: Mapping[str, Sequence[Dialogue]]) -> list[dict[str, list[str]]]:
    """Return groups of dialogues with one situation that lie in several splits, by ids and splits."""
    groups: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for split, dialogues in parts.items():
        for dialogue in dialogues:
            if dialogue.scenario.situation:
                groups[dialogue.scenario.situation.casefold()].append((dialogue.id, split))
    shared = []
    for members in groups.values():
        splits = sorted({split for _, split in members}, key=SPLITS.index)
        if len(splits) > 1:
            shared.append({"ids": sorted(dialogue_id for dialogue_id, _ in members), "splits": splits})
    return sorted(shared, key=lambda group: group["ids"])


def _position(text: str) -> float:
    """Return u in [0, 1]: the first 16 hex digits of the text's SHA-256, over 16^16."""
    return int(hashlib.sha256(text.encode()).hexdigest()[:16], 16) / 16**16


def dev_position(seed: int, dialogue_id: str) -> float:
    """Return u in [0, 1]: where a dialogue lies in the order by which dialogues are held out."""
    return _position(f"{seed}:dev:{dialogue_id}")


def is_dev(seed: int, dialogue_id: str, share: float) -> bool:
    """Return whether a dialogue, with all its contexts and candidates, is held out."""
    return dev_position(seed, dialogue_id) < share


class OfDialogue(Protocol):
    """What belongs to a dialogue: a context, a future, an example."""

    @property
    def dialogue_id(self) -> str:
        """The id of that dialogue."""


D = TypeVar("D", bound=OfDialogue)


def without_dev(items: Iterable[D], *, seed: int, share: float) -> tuple[list[D], list[D]]:
    """Return what belongs to training dialogues, and what to held-out ones, each in order."""
    train, dev = list[D](), list[D]()
    for item in items:
        (dev if is_dev(seed, item.dialogue_id, share) else train).append(item)
    return train, dev
