"""Splits: the pinned permutation, the published cuts from either source, and hashing by ratio."""

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.data import splits
from esckit.data.corpus import Corpus, read_corpus
from esckit.data.layouts import IssueList
from esckit.data.splits import dev_position, esconv_permutation, is_dev, shared_situations
from esckit.errors import DataError
from esckit.text import ids_digest
from esckit.types import Dialogue
from tests.data.dialogues import corpus, dialogue, dialogues, real, turn

Parts = dict[str, tuple[Dialogue, ...]]
DIGESTS = {
    "hub": {"train": "8208b396bfa8e4e4", "valid": "b194e01eb3665841", "test": "b0540533b910d284"},
    "ppdpp": {"train": "f6b624b8a7488280", "valid": "29687b10d9286503", "test": "ecf783e5e5a53a4c"},
}


def assign_splits(whole: Corpus, *, sink: IssueList | None = None, **options: Any) -> Parts:
    return splits.assign_splits(whole, sink=sink or IssueList(), **options)


def _numbered(n: int) -> list[Dialogue]:
    return [dialogue(turn("s", f"number {i}"), turn("c", "yes"), situation=f"s {i}", record=i) for i in range(n)]


def _ids(parts: Parts) -> dict[str, set[str]]:
    return {split: {one.id for one in found} for split, found in parts.items()}


def test_the_permutation_is_pinned() -> None:
    permutation = esconv_permutation()
    assert permutation[:10] == [844, 1063, 1268, 1179, 1002, 1083, 405, 905, 205, 428]
    assert [permutation[i] for i in (130, 195, 260, 390)] == [978, 566, 363, 1068]
    assert permutation[-3:] == [380, 595, 530]
    assert sorted(permutation) == list(range(1300))


# ---------------------------------------------------------------- the published cuts


@pytest.fixture(scope="module")
def folders(corpora: Path) -> dict[str, Corpus]:
    """Both published folders of ESConv."""
    return {
        name: read_corpus(real(corpora, folder), sink=IssueList())
        for name, folder in (("hub", "esconv"), ("ppdpp", "ppdpp"))
    }


@pytest.fixture(scope="module")
def original(folders: dict[str, Corpus]) -> Corpus:
    """All of ESConv in the order of its original file."""
    parts = {split: [d for d in folders["hub"].dialogues if d.source and d.source.split == split] for split in
             ("train", "valid", "test")}  # fmt: skip
    in_order: list[Dialogue | None] = [None] * 1300
    for position, one in zip(esconv_permutation(), parts["valid"] + parts["test"] + parts["train"], strict=True):
        assert one.source is not None
        source = one.source.model_copy(update={"split": None, "record": position})
        in_order[position] = one.model_copy(update={"source": source})
    return corpus([one for one in in_order if one is not None])


@pytest.mark.parametrize("source", ["hub", "ppdpp", "original"])
@pytest.mark.parametrize("scheme", ["hub", "ppdpp"])
def test_either_cut_comes_from_every_source(
    folders: dict[str, Corpus], original: Corpus, source: str, scheme: str
) -> None:
    whole = original if source == "original" else folders[source]
    sink = IssueList()
    parts = assign_splits(whole, scheme=scheme, sink=sink)  # type: ignore[arg-type]
    assert {split: ids_digest(found)[:16] for split, found in parts.items()} == DIGESTS[scheme]
    assert sink.issues == []


def test_the_record_behind_the_first_original_one(original: Corpus) -> None:
    assert original.dialogues[0].id == "esconv-9b1f37be6d7e"


def test_the_cuts_overlap_as_stated(folders: dict[str, Corpus]) -> None:
    hub, ppdpp = (_ids(assign_splits(folders[name], scheme="files")) for name in ("hub", "ppdpp"))
    overlap = {(a, b): len(ppdpp[a] & hub[b]) for a in ppdpp for b in hub}
    assert overlap == {
        ("train", "train"): 910,
        ("train", "valid"): 0,
        ("train", "test"): 130,
        ("valid", "train"): 0,
        ("valid", "valid"): 130,
        ("valid", "test"): 0,
        ("test", "train"): 0,
        ("test", "valid"): 65,
        ("test", "test"): 65,
    }


def test_situations_across_splits(original: Corpus) -> None:
    hub = shared_situations(assign_splits(original, scheme="hub"))
    assert [group["splits"] for group in hub] == [["train", "test"]] * 2
    assert shared_situations(assign_splits(original, scheme="ppdpp")) == []


def test_ratio_on_esconv(original: Corpus, folders: dict[str, Corpus]) -> None:
    parts = assign_splits(original, scheme="ratio")
    assert [len(parts[split]) for split in ("train", "valid", "test")] == [1026, 137, 137]
    assert _ids(parts) == _ids(assign_splits(folders["ppdpp"], scheme="ratio"))
    assert shared_situations(parts) == []


def test_a_wrong_number_or_order_of_records_is_refused(original: Corpus) -> None:
    with pytest.raises(DataError, match=r"1,299 records.*1,300"):
        assign_splits(replace(original, dialogues=original.dialogues[1:]), scheme="hub")
    shuffled = list(original.dialogues)
    random.Random(1).shuffle(shuffled)
    with pytest.raises(DataError, match="not in their original order"):
        assign_splits(replace(original, dialogues=tuple(shuffled)), scheme="hub")


def test_other_records_are_split_by_position_with_a_warning() -> None:
    other, sink = corpus(_numbered(1300)), IssueList()
    parts = assign_splits(other, scheme="hub", sink=sink)
    assert [(issue.code, issue.severity) for issue in sink.issues] == [("corpus_differs", "W")]
    assert {one.source.record for one in parts["valid"] if one.source} == set(esconv_permutation()[:195])


# ---------------------------------------------------------------- files and ratio


def test_files_need_splits() -> None:
    with pytest.raises(DataError, match="2 of 2 dialogues without a split"):
        assign_splits(corpus(_numbered(2)), scheme="files")
    known = [dialogue(turn("s", "a"), split="valid"), dialogue(turn("s", "b"), split="train")]
    parts = assign_splits(corpus(known), scheme="files")
    assert parts == {"train": (known[1],), "valid": (known[0],), "test": ()}


@pytest.mark.parametrize("ratios", [(0.5, 0.5), (0.5, 0.6, -0.1), (0.5, 0.5, 0.5)])
def test_ratios_must_be_three_that_sum_to_one(ratios: tuple[float, ...]) -> None:
    with pytest.raises(DataError, match="sum to 1"):
        assign_splits(corpus(_numbered(9)), scheme="ratio", ratios=ratios)


def test_an_empty_split_is_refused_unless_its_ratio_is_zero() -> None:
    with pytest.raises(
        DataError, match=r"no dialogue for .* among 4 .*Seed \d+ fills every split \(in a recipe: data: \{seed: \d+\}\)"
    ) as caught:
        assign_splits(corpus(_numbered(4)), scheme="ratio")
    seed = int(str(caught.value).split("Seed ")[1].split()[0])
    assert all(assign_splits(corpus(_numbered(4)), scheme="ratio", seed=seed).values())
    parts = assign_splits(corpus(_numbered(2)), scheme="ratio", ratios=(1.0, 0.0, 0.0))
    assert [len(found) for found in parts.values()] == [2, 0, 0]


def test_too_few_dialogues_for_the_splits_are_said_to_be_too_few() -> None:
    with pytest.raises(DataError, match=r"2 dialogues, too few for 3 splits; expected at least 3"):
        assign_splits(corpus(_numbered(2)), scheme="ratio")
    one_situation = [dialogue(turn("s", word), situation="Exams") for word in "abcd"]
    with pytest.raises(DataError, match=r"dialogues of 1 different situations, too few for 3 splits"):
        assign_splits(corpus(one_situation), scheme="ratio")


def test_a_lopsided_ratio_split_is_warned_of() -> None:
    sink = IssueList()
    assign_splits(corpus(_numbered(1000)), scheme="ratio", sink=sink)
    assert sink.issues == []
    one_situation = [dialogue(turn("s", str(number)), situation="Exams") for number in range(40)]
    parts = assign_splits(corpus([*_numbered(60), *one_situation]), scheme="ratio", sink=sink)
    (issue,) = sink.issues
    assert (issue.code, issue.severity) == ("lopsided_split", "W")
    assert issue.detail is not None
    assert f"valid {len(parts['valid'])} instead of about 10" in issue.detail


@settings(max_examples=30, deadline=None)
@given(st.lists(dialogues, min_size=3, max_size=20, unique_by=lambda one: one.id), st.randoms(use_true_random=False))
def test_ratio_depends_on_no_order_and_is_disjoint_and_complete(found: list[Dialogue], shuffler: random.Random) -> None:
    shuffled = list(found)
    shuffler.shuffle(shuffled)
    try:
        parts = assign_splits(corpus(found), scheme="ratio", ratios=(0.5, 0.25, 0.25))
    except DataError:
        with pytest.raises(DataError):
            assign_splits(corpus(shuffled), scheme="ratio", ratios=(0.5, 0.25, 0.25))
        return
    assert _ids(parts) == _ids(assign_splits(corpus(shuffled), scheme="ratio", ratios=(0.5, 0.25, 0.25)))
    assert sorted(one.id for members in parts.values() for one in members) == sorted(one.id for one in found)
    assert shared_situations(parts) == []


def test_ids_digest_takes_whole_ids_of_other_forms() -> None:
    one = dialogue(turn("s", "a"))
    named = one.model_copy(update={"scenario": one.scenario.model_copy(update={"id": "my:own.id"})})
    assert ids_digest([named]) != ids_digest([one])
    assert ids_digest([one, named]) == ids_digest([named, one])


def test_the_position_of_a_dialogue_is_pinned():
    assert dev_position(7, "esconv-9b1f37be6d7e") == pytest.approx(0.161541, abs=1e-6)
    assert dev_position(7, "esconv-a2e71fab0cc9") == pytest.approx(0.466798, abs=1e-6)


def test_the_share_is_a_bound_on_the_position():
    assert is_dev(7, "esconv-9b1f37be6d7e", 0.17)
    assert not is_dev(7, "esconv-9b1f37be6d7e", 0.16)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**63 - 1), st.text())
def test_positions_lie_between_0_and_1(seed, dialogue_id):
    assert 0.0 <= dev_position(seed, dialogue_id) < 1.0
