"""From a recipe's data section to dialogues: read, split, limit, resolve, merge."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.config.data import DataConfig
from esckit.data.layouts import IssueList
from esckit.data.selection import Selection, check_kept, select_dialogues
from esckit.errors import ConfigError, DataError
from esckit.protocols import Issue
from esckit.types import Dialogue
from tests.data.dialogues import dialogue, real, turn


def _selected(taxonomy: str | None = None, **data: Any) -> Selection:
    section = {"dataset": "esconv", "path": "sample:esconv", **data}
    return select_dialogues(DataConfig.model_validate(section), taxonomy=taxonomy)


def own_loader(path: Path, *, sink: IssueList) -> Any:
    """A user's loader, named as ``module:attr``."""
    sink.note(Issue("seen", "N", path.name, 0))
    yield dialogue(turn("s", path.read_text()), turn("c", "hi", "Question"))


def test_the_whole_sample() -> None:
    found = _selected()
    assert len(found.dialogues) == 20
    assert (found.format, found.taxonomy, found.mapping, found.scheme, found.splits) == (
        "esconv-hub",
        "esconv",
        None,
        None,
        None,
    )
    assert sorted(found.files) == ["test.txt", "train.txt", "valid.txt"]
    assert found.counts["n_records"] == found.counts["n_dialogues"] == 20
    assert found.counts["n_unlabelled"] == 0
    assert found.split_of == {}


def test_split_then_limit_in_load_order() -> None:
    whole = _selected()
    found = _selected(scheme="files", split=["test", "train"], limit=12)
    assert found.ids == tuple(one.id for one in whole.dialogues if one.source and one.source.split != "valid")[:12]
    assert list(found.split_of.values()) == ["train"] * 10 + ["test"] * 2
    assert found.splits == ("test", "train")
    assert _selected(scheme="files").splits == ("train", "valid", "test")


def test_a_scheme_writes_the_split_into_the_source() -> None:
    found = _selected(scheme="ratio", split="train", ratios=(0.5, 0.25, 0.25), path="sample:esconv")
    assert {one.source.split for one in found.dialogues if one.source} == {"train"}
    assert len(found.dialogues) < 20


def test_merging_and_its_label() -> None:
    plain, first, last = _selected(), _selected(merge=True), _selected(merge=True, merge_label="last")
    assert plain.ids == first.ids
    assert sum(len(one.turns) for one in first.dialogues) < sum(len(one.turns) for one in plain.dialogues)
    assert first.dialogues != last.dialogues


def test_mapping_is_applied_and_reported() -> None:
    found = _selected(mapping="esconv_to_aflow", taxonomy="aflow")
    assert (found.taxonomy, found.mapping) == ("aflow", "esconv_to_aflow")
    assert found.counts["n_unlabelled"] == found.issues["unmapped"] > 0
    with pytest.raises(ConfigError, match="esconv_to_aflow"):
        _selected(taxonomy="aflow")


def test_facts_are_plain_data_without_text() -> None:
    found = _selected(limit=2)
    facts = json.loads(json.dumps(found.facts()))
    assert facts["ids"] == list(found.ids)
    assert not any(t.text in json.dumps(facts) for one in found.dialogues for t in one.turns)


def test_data_set_and_format_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"sample:extes is in format extes.*esconv"):
        _selected(path="sample:extes")
    assert _selected(path="sample:extes", dataset="auto").taxonomy == "extes"
    with pytest.raises(ConfigError, match="did you mean 'esconv'"):
        _selected(dataset="escon")


def test_a_users_own_loader(tmp_path: Path) -> None:
    path = tmp_path / "talk.txt"
    path.write_text("hello")
    found = _selected(dataset="tests.data.test_selection:own_loader", path=str(path))
    assert found.dialogues[0].turns[0].text == "hello"
    assert found.dialogues[0].turns[1].strategy == "Question"
    assert found.issues == {"seen": 1}


def _write_ppdpp(path: Path, labels: list[str]) -> str:
    rows = [
        {
            "emotion_type": "anger",
            "problem_type": "p",
            "situation": f"s{i}",
            "dialog": [{"text": f"a{i}", "speaker": "usr"}, {"text": "b", "speaker": "sys", "strategy": label}],
        }
        for i, label in enumerate(labels)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_unknown_labels_are_refused_skipped_or_kept(tmp_path: Path) -> None:
    path = _write_ppdpp(tmp_path / "a.txt", ["Question", "Sympathy", "Others"])
    with pytest.raises(DataError, match="record 1"):
        _selected(path=path)
    skipped = _selected(path=path, skip_invalid=True)
    assert (skipped.counts["n_refused"], skipped.counts["n_dialogues"]) == (1, 2)
    kept = _selected(path=path, unknown_strategy="keep")
    assert (kept.counts["n_dialogues"], kept.issues["strategy_unknown"]) == (3, 1)


def test_most_labels_unknown_is_no_matter_of_records(tmp_path: Path) -> None:
    path = _write_ppdpp(tmp_path / "a.txt", ["Question", "Sympathy", "Pity"])
    with pytest.raises(DataError, match=r"more than half of 3 records.*2"):
        _selected(path=path, skip_invalid=True)
    check_kept(1, 2, "a.txt")


def test_mixed_taxonomies_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mixed.jsonl"
    one, other = _selected(limit=1).dialogues[0], _selected(limit=2, mapping="esconv_to_aflow").dialogues[1]
    path.write_text("".join(d.model_dump_json() + "\n" for d in (one, other)))
    with pytest.raises(DataError, match="different taxonomies: aflow by esconv_to_aflow, esconv by no mapping"):
        _selected(dataset="jsonl", path=str(path))


def test_warnings_can_be_refusals() -> None:
    sink = IssueList(strict=True)
    sink.note(Issue("repeat", "N", "a.json", 1))
    assert len(sink.issues) == 1
    with pytest.raises(DataError, match=r"a\.json: record 3, dialog\[1\]: found empty_text"):
        sink.note(Issue("empty_text", "W", "a.json", 3, "dialog[1]"))


def _first(found: Selection) -> Dialogue:
    return found.dialogues[0]


def test_published_cuts_of_the_real_corpus(corpora: Path) -> None:
    folder = str(real(corpora, "esconv"))
    hub = _selected(path=folder, scheme="hub", split="test", merge=True, limit=3, taxonomy="esconv")
    assert (_first(hub).id, len(hub.dialogues), hub.counts["n_read"]) == ("esconv-b3732e047ef6", 3, 1300)
    ppdpp = _selected(path=folder, scheme="ppdpp", split="test")
    assert len(ppdpp.dialogues) == 130
    assert {one.source.split for one in ppdpp.dialogues if one.source} == {"test"}


def test_mappings_of_the_extes_record(corpora: Path) -> None:
    def labels(mapping: str) -> list[str | None]:
        one = _first(_selected(path=str(real(corpora, "extes/sample.json")), dataset="extes", mapping=mapping))
        return [t.strategy for t in one.turns if t.strategy is not None]

    assert labels("extes_to_esconv.published") == [
        "Reflection of feelings",
        "Affirmation and Reassurance",
        "Providing Suggestions",
        "Affirmation and Reassurance",
        "Affirmation and Reassurance",
    ]
    assert labels("extes_to_esconv.proposed") == [
        "Restatement or Paraphrasing",
        "Reflection of feelings",
        "Providing Suggestions",
        "Reflection of feelings",
        "Affirmation and Reassurance",
    ]


def test_what_was_dropped_or_is_doubtful_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    _selected(dataset="extes", path="sample:extes")
    assert "sample:extes: text_list: 1" in caplog.text
    caplog.clear()
    _selected()
    assert caplog.text == ""
