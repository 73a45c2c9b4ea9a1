"""Who trains, validates and tests: dialogues are assigned before any context, window or merge is made.

``hub`` (70/15/15) and ``ppdpp`` (80/10/10) are the two published cuts of ESConv. Both shuffle the 1,300 dialogues alike
and cut differently, so they overlap: see :func:`shared_ids`.

Which dialogues are held out while training: by a hash of their id, so that every command holds out the same ones.

Two rules against testing on what a model has seen.

Rule 1: no evaluated dialogue was trained, tuned or searched on. Rule 2: training and evaluation use one family of
splits, even where they share no dialogue, because tuning on ``hub`` valid and testing on ``ppdpp`` test share 65
dialogues and such pairs creep in unnoticed.
"""

from __future__ import annotations

import hashlib
import logging
import math
import random
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from esckit.data.corpus import Corpus
from esckit.errors import DataError
from esckit.protocols import Issue, IssueSink
from esckit.types import Dialogue

log = logging.getLogger(__name__)


Scheme = Literal["hub", "ppdpp", "ratio", "files"]

SPLITS = ("train", "valid", "test")

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
    sink: IssueSink | None = None,
) -> dict[str, tuple[Dialogue, ...]]:
    """Return the dialogues of ``train``, ``valid`` and ``test``, each in load order.

    Args:
        corpus: The whole corpus.
        scheme: ``hub`` or ``ppdpp`` (ESConv only), ``files`` (as the folder says) or ``ratio``.
        seed: Of ``ratio``.
        ratios: Of ``ratio``: train, valid, test; not negative, sum 1.
        sink: Takes the warnings ``corpus_differs`` and ``lopsided_split``; without one they are logged.

    Raises:
        DataError: If the scheme does not fit the corpus, or a positive ratio gets no dialogue.
    """
    if scheme == "files":
        names = _file_splits(corpus)
    elif scheme == "ratio":
        names = _ratio_splits(corpus, seed, ratios, sink)
    else:
        names = _published_splits(corpus, scheme, sink)
    parts: dict[str, list[Dialogue]] = {split: [] for split in SPLITS}
    for dialogue, split in zip(corpus.dialogues, names, strict=True):
        parts[split].append(dialogue)
    return {split: tuple(dialogues) for split, dialogues in parts.items()}


def esconv_permutation() -> list[int]:
    """Return the shuffled positions (0-based, in ``ESConv.json``) behind both published cuts."""
    positions = list(range(ESCONV_SIZE))
    random.Random(13).shuffle(positions)
    return positions


def _joined_sha256(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


# ---------------------------------------------------------------- schemes


def _file_splits(corpus: Corpus) -> list[str]:
    """Return per dialogue the split that its file is named after."""
    names = [dialogue.source.split if dialogue.source else None for dialogue in corpus.dialogues]
    unassigned = names.count(None)
    if unassigned:
        raise DataError(
            f"{unassigned} of {len(names)} dialogues without a split of their own",
            path=str(corpus.path),
            expected="for scheme files: a folder with train, valid and test files",
            hint="Choose scheme ratio, or hub or ppdpp for ESConv",
        )
    return [name for name in names if name is not None]


def _published_splits(corpus: Corpus, scheme: str, sink: IssueSink | None) -> list[str]:
    """Return per dialogue its split in one of the published cuts of ESConv."""
    n_found = len(corpus.dialogues)
    if n_found != ESCONV_SIZE:
        raise DataError(
            f"{n_found:,} records",
            path=str(corpus.path),
            expected=f"exactly {ESCONV_SIZE:,}, all of ESConv, for scheme {scheme}",
            hint="Scheme ratio splits any corpus",
        )
    permutation = esconv_permutation()
    order = _shuffled_order(corpus, permutation)
    _check_order(corpus, order, permutation, sink)
    end_valid, end_test = _CUTS[scheme]
    names = [""] * ESCONV_SIZE
    for rank, index in enumerate(order):
        names[index] = "valid" if rank < end_valid else "test" if rank < end_test else "train"
    return names


def _shuffled_order(corpus: Corpus, permutation: list[int]) -> list[int]:
    """Return the load indices of the dialogues in the shuffled order.

    A folder cut from ESConv gives that order as valid, test, train; a single file is in the original order.
    """
    by_split: dict[str | None, list[int]] = defaultdict(list)
    for index, dialogue in enumerate(corpus.dialogues):
        by_split[dialogue.source.split if dialogue.source else None].append(index)
    if len(corpus.files) > 1 and None not in by_split:
        return [*by_split["valid"], *by_split["test"], *by_split["train"]]
    return permutation


def _check_order(corpus: Corpus, order: list[int], permutation: list[int], sink: IssueSink | None) -> None:
    """Refuse ESConv in a wrong order; warn if the records are not ESConv's."""
    original = [""] * ESCONV_SIZE
    for position, index in zip(permutation, order, strict=True):
        original[position] = corpus.dialogues[index].id[-_DIGITS:]
    if _joined_sha256(original) == _ORDER_SHA256:
        return
    if _joined_sha256(sorted(original)) == _SORTED_SHA256:
        raise DataError(
            "ESConv, but its records are not in their original order",
            path=str(corpus.path),
            expected="the order of ESConv.json, or the folder of a published split",
        )
    _warn(corpus, sink, "corpus_differs", "not the records of ESConv; split by position")


def _warn(corpus: Corpus, sink: IssueSink | None, code: str, detail: str) -> None:
    if sink is not None:
        sink.note(Issue(code, "W", str(corpus.path), 0, detail=detail))
    else:
        log.warning("%s: %s", code, detail)


def _ratio_splits(corpus: Corpus, seed: int, ratios: Sequence[float], sink: IssueSink | None) -> list[str]:
    """Return per dialogue its split by a hash of its id; dialogues with equal situations stay together."""
    if len(ratios) != len(SPLITS) or min(ratios) < 0 or not math.isclose(sum(ratios), 1.0, abs_tol=1e-9):
        raise DataError(f"ratios {', '.join(map(str, ratios))}", expected="three of at least 0 that sum to 1")
    smallest: dict[str, str] = {}
    for dialogue in corpus.dialogues:
        situation = dialogue.scenario.situation.casefold()
        smallest[situation] = min(dialogue.id, smallest.get(situation, dialogue.id))
    keys = []
    for dialogue in corpus.dialogues:
        situation = dialogue.scenario.situation.casefold()
        keys.append(smallest[situation] if situation else dialogue.id)
    names = _hashed(keys, seed, ratios)
    _check_filled(corpus, keys, names, seed, ratios)
    expected = {split: ratio * len(names) for split, ratio in zip(SPLITS, ratios, strict=True)}
    off = {split: abs(names.count(split) - size) for split, size in expected.items()}
    if any(off[split] >= 2 and off[split] > _LOPSIDED * size for split, size in expected.items()):
        found = ", ".join(f"{split} {names.count(split):,} instead of about {expected[split]:.3g}" for split in SPLITS)
        _warn(corpus, sink, "lopsided_split", f"{found}; another seed draws other dialogues")
    return names


def _hashed(keys: Iterable[str], seed: int, ratios: Sequence[float]) -> list[str]:
    """Return the split of each key by its hash."""
    shares = [int(hashlib.sha256(f"{seed}:{key}".encode()).hexdigest()[:16], 16) / 16**16 for key in keys]
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
            path=str(corpus.path),
            expected=f"at least {len(wanted)}, since dialogues of one situation stay together",
            hint="Add dialogues, or give a ratio of 0 to the splits that you do not need",
        )
    filling = next((other for other in range(_SEEDS_TRIED) if set(wanted) <= {*_hashed(keys, other, ratios)}), None)
    raise DataError(
        f"no dialogue for {', '.join(empty)} among {len(names)} with seed {seed}",
        path=str(corpus.path),
        hint="Choose larger ratios" if filling is None else f"Seed {filling} fills every split",
    )


# ---------------------------------------------------------------- leakage


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


def shared_ids(
    evaluated: Iterable[str],
    trained: Collection[str],
    *,
    scheme: str | None,
    trained_scheme: str | None,
    allow_overlap: bool = False,
) -> frozenset[str]:
    """Return the dialogue ids to be evaluated that a model was trained or searched on.

    Args:
        evaluated: Ids to be evaluated.
        trained: Ids that the model, or what it was made from, has seen.
        scheme: Split scheme of the evaluation.
        trained_scheme: Split scheme of the training.
        allow_overlap: Return shared ids, so that rows can be marked, instead of raising.

    Raises:
        DataError: If there are any and ``allow_overlap`` is not set.
    """
    shared = sorted(set(evaluated).intersection(trained))
    if shared and not allow_overlap:
        raise DataError(
            f"{len(shared)} dialogues in both training (scheme {trained_scheme or 'none'}) and evaluation "
            f"(scheme {scheme or 'none'}), such as {', '.join(shared[:3])}",
            expected="none",
            hint="Evaluate on another split; allow_overlap: true runs all the same and marks every row",
        )
    return frozenset(shared)


def dev_position(seed: int, dialogue_id: str) -> float:
    """Return u in [0, 1]: the first 16 hex digits of SHA-256 of ``{seed}:dev:{id}``, over 16^16."""
    digest = hashlib.sha256(f"{seed}:dev:{dialogue_id}".encode()).hexdigest()
    return int(digest[:16], 16) / 16**16


def is_dev(seed: int, dialogue_id: str, share: float) -> bool:
    """Return whether a dialogue, with all its contexts and candidates, is held out."""
    return dev_position(seed, dialogue_id) < share


@dataclass(frozen=True, slots=True)
class Seen:
    """What a used model has seen, itself or inherited.

    Attributes:
        model: Name of the model in messages.
        ids: Dialogue ids.
        corpus: Name of the corpus; the schemes of two corpora are not compared.
        scheme: Split scheme with all that decides it, such as ``hub`` or ``ratio/13/0.8,0.1,0.1``.
    """

    model: str
    ids: frozenset[str]
    corpus: str | None
    scheme: str | None


@dataclass(frozen=True, slots=True)
class LeakageRules:
    """What the user allows.

    Attributes:
        allow_overlap: Run in spite of rule 1, flagging every row ``overlap``.
        allow_cross_family: Run in spite of rule 2, flagging every row ``cross_family``.
    """

    allow_overlap: bool = False
    allow_cross_family: bool = False

    def flags(
        self, evaluated: Collection[str], *, corpus: str | None, scheme: str | None, seen: Iterable[Seen]
    ) -> tuple[str, ...]:
        """Return the flags of an evaluation.

        Raises:
            DataError: If a rule is broken and not allowed.
        """
        flags: dict[str, None] = {}
        for model in seen:
            if shared_ids(
                evaluated, model.ids, scheme=scheme, trained_scheme=model.scheme, allow_overlap=self.allow_overlap
            ):
                flags["overlap"] = None
            if model.ids and model.corpus == corpus and model.scheme != scheme:
                if not self.allow_cross_family:
                    raise DataError(
                        f"{model.model} was made with scheme {model.scheme or 'none'}, the evaluation has scheme "
                        f"{scheme or 'none'}",
                        expected="one scheme for both",
                        hint="data.allow_cross_family: true runs all the same and marks every row",
                    )
                flags["cross_family"] = None
        return tuple(flags)
