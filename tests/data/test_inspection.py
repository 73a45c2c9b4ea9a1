"""The inspection report: every count of the real corpora as pinned, and its form."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.data.corpus import Corpus, read_corpus
from esckit.data.inspection import Reading, Report, build_report, render, spread, totals
from esckit.data.layouts import IssueList
from esckit.errors import DataError
from esckit.protocols import Issue
from esckit.types import Dialogue, Survey
from tests.data.dialogues import corpus, dialogue, real, turn

KEYS = [
    "schema",
    "format",
    "files",
    "names",
    "n_records",
    "n_dialogues",
    "n_refused",
    "splits",
    "utterances",
    "strategies",
    "words",
    "runs",
    "speakers_first",
    "speakers_last",
    "problem_types",
    "emotion_types",
    "experience_types",
    "ratings",
    "feedback",
    "duplicates",
    "issues",
    "refusals",
    "ids_digest",
]


def _reading(whole: Corpus, dialogues: tuple[Dialogue, ...], sink: IssueList) -> Reading:
    return Reading(whole, dialogues, None, (), None, sink.issues, sink.refusals)


class Real:
    """A real folder read once, with reports of the whole and of its splits."""

    def __init__(self, folder: Path) -> None:
        self.sink = IssueList(go_on=True)
        self.corpus = read_corpus(folder, sink=self.sink)
        self.reports: dict[str, Report] = {}

    def report(self, split: str) -> Report:
        if split not in self.reports:
            members = tuple(
                one for one in self.corpus.dialogues if split == "all" or (one.source and one.source.split == split)
            )
            self.reports[split] = build_report(_reading(self.corpus, members, self.sink))
        return self.reports[split]


@pytest.fixture(scope="module")
def hub(corpora: Path) -> Real:
    return Real(real(corpora, "esconv"))


@pytest.fixture(scope="module")
def ppdpp(corpora: Path) -> Real:
    return Real(real(corpora, "ppdpp"))


# ---------------------------------------------------------------- golden counts

COUNTS = {
    "dialogues": (910, 195, 195, 1300, 1040, 130, 130),
    "utterances": (26648, 5678, 6039, 38365, 30621, 3724, 4020),
    "of seekers": (13889, 2956, 3144, 19989, 15965, 1952, 2072),
    "of supporters": (12759, 2722, 2895, 18376, 14656, 1772, 1948),
    "merged turns": (21173, 4467, 4752, 30392, 24306, 2977, 3109),
    "merged supporter turns": (10679, 2257, 2389, 15325, 12250, 1502, 1573),
    "two strategies or more": (1488, 344, 367, 2199, 1727, 202, 270),
    "same-speaker pairs": (5475, 1211, 1287, 7973, 6315, 747, 911),
    "dialogues with such pairs": (821, 181, 176, 1178, 939, 117, 122),
    "verbatim repeats": (72, 16, 11, 99, 79, 6, 14),
    "supporter first": (488, 101, 94, 683, 545, 63, 75),
    "supporter last": (607, 141, 127, 875, 689, 94, 92),
    "contexts, unmerged": (12271, 2621, 2801, 17693, 14111, 1709, 1873),
    "contexts, merged": (10191, 2156, 2295, 14642, 11705, 1439, 1498),
}


def _counts(report: Report) -> dict[str, int]:
    utterances, runs = report["utterances"], report["runs"]
    return {
        "dialogues": report["n_dialogues"],
        "utterances": utterances["n"],
        "of seekers": utterances["seeker"],
        "of supporters": utterances["supporter"],
        "merged turns": runs["merged_turns"],
        "merged supporter turns": runs["merged_supporter_turns"],
        "two strategies or more": runs["multi_strategy_turns"],
        "same-speaker pairs": runs["pairs"],
        "dialogues with such pairs": runs["dialogues"],
        "verbatim repeats": runs["repeats"],
        "supporter first": report["speakers_first"]["supporter"],
        "supporter last": report["speakers_last"]["supporter"],
        "contexts, unmerged": utterances["contexts"]["unmerged"],
        "contexts, merged": utterances["contexts"]["merged"],
    }


@pytest.mark.parametrize(("column", "split"), [(0, "train"), (1, "valid"), (2, "test"), (3, "all")])
def test_counts_of_hub(hub: Real, column: int, split: str) -> None:
    assert _counts(hub.report(split)) == {name: row[column] for name, row in COUNTS.items()}


@pytest.mark.parametrize(("column", "split"), [(4, "train"), (5, "valid"), (6, "test")])
def test_counts_of_ppdpp(ppdpp: Real, column: int, split: str) -> None:
    assert _counts(ppdpp.report(split)) == {name: row[column] for name, row in COUNTS.items()}


def test_both_families_have_the_same_totals(hub: Real, ppdpp: Real) -> None:
    assert _counts(ppdpp.report("all")) == _counts(hub.report("all"))


def test_digests_and_first_ids(hub: Real, ppdpp: Real) -> None:
    digests = [hub.report(split)["ids_digest"][:16] for split in ("train", "valid", "test", "all")]
    assert digests == ["8208b396bfa8e4e4", "b194e01eb3665841", "b0540533b910d284", "4898fdbbade0e85c"]
    digests = [ppdpp.report(split)["ids_digest"][:16] for split in ("train", "valid", "test")]
    assert digests == ["f6b624b8a7488280", "29687b10d9286503", "ecf783e5e5a53a4c"]
    assert {split: found["ids_digest"] for split, found in hub.report("all")["splits"].items()} == {
        split: hub.report(split)["ids_digest"] for split in ("train", "valid", "test")
    }
    assert _first_ids(hub) == ["esconv-a2e71fab0cc9", "esconv-967d212ca612", "esconv-b3732e047ef6"]
    assert _first_ids(ppdpp) == ["esconv-bceee9e10bbf", "esconv-967d212ca612", "esconv-d76017fa0d05"]


def _first_ids(folder: Real) -> list[str]:
    first: dict[str | None, str] = {}
    for one in folder.corpus.dialogues:
        first.setdefault(one.source.split if one.source else None, one.id)
    return list(first.values())


LABELS = {
    "Question": ((2622, 549, 630), 3801, (2125, 442, 475), (2393, 518, 580), (3041, 360, 400)),
    "Restatement or Paraphrasing": ((798, 138, 153), 1089, (721, 125, 140), (674, 117, 126), (908, 93, 88)),
    "Reflection of feelings": ((990, 211, 235), 1436, (874, 184, 201), (768, 159, 174), (1163, 133, 140)),
    "Self-disclosure": ((1185, 264, 264), 1713, (979, 214, 219), (892, 199, 194), (1345, 161, 207)),
    "Affirmation and Reassurance": ((1988, 402, 437), 2827, (1721, 355, 381), (1600, 307, 337), (2265, 269, 293)),
    "Providing Suggestions": ((1987, 459, 508), 2954, (1603, 358, 415), (1664, 373, 430), (2313, 312, 329)),
    "Information": ((835, 194, 186), 1215, (685, 157, 155), (687, 150, 155), (949, 117, 149)),
    "Others": ((2354, 505, 482), 3341, (1971, 422, 403), (2001, 434, 393), (2672, 327, 342)),
}


@pytest.mark.parametrize("label", LABELS)
def test_strategies(hub: Real, ppdpp: Real, label: str) -> None:
    def column(folder: Real, key: str) -> tuple[int, ...]:
        splits = ("train", "valid", "test")
        return tuple(folder.report(split)["strategies"]["labels"][label][key] for split in splits)

    whole = hub.report("all")["strategies"]["labels"][label]
    assert LABELS[label] == (
        column(hub, "n"),
        whole["n"],
        column(hub, "merged_first"),
        column(hub, "merged_last"),
        column(ppdpp, "n"),
    )
    assert tuple(whole["splits"].values()) == column(hub, "n")
    assert whole["share"] == whole["n"] / 18376


def _shape(values: dict[str, float]) -> tuple[float, ...]:
    return values["median"], values["p95"], values["max"]


def test_lengths_and_runs(hub: Real) -> None:
    report = hub.report("all")
    utterances, words, runs = report["utterances"], report["words"], report["runs"]
    assert (utterances["per_dialogue"]["min"], *_shape(utterances["per_dialogue"])) == (16, 27, 48, 120)
    assert (utterances["merged_per_dialogue"]["min"], *_shape(utterances["merged_per_dialogue"])) == (8, 22, 36, 87)
    assert _shape(words["utterance"]["seeker"]) == (12, 39, 158)
    assert _shape(words["utterance"]["supporter"]) == (15, 44, 166)
    assert _shape(words["merged_turn"]["seeker"]) == (16, 51, 205)
    assert _shape(words["merged_turn"]["supporter"]) == (18, 54, 260)
    assert runs["longest"] == {"seeker": 14, "supporter": 7}
    assert runs["distinct_strategies"] == {"1": 13126, "2": 2055, "3": 132, "4": 11, "5": 1}


def test_types(hub: Real) -> None:
    report = hub.report("all")
    assert report["problem_types"] == {
        "ongoing depression": 351,
        "job crisis": 280,
        "breakup with partner": 239,
        "problems with friends": 179,
        "academic pressure": 156,
        "Sleep Problems": 28,
        "conflict with parents": 18,
        "Procrastination": 13,
        "Appearance Anxiety": 12,
        "Alcohol Abuse": 12,
        "Issues with Children": 10,
        "School Bullying": 2,
    }
    assert report["emotion_types"] == {
        "anxiety": 354,
        "depression": 334,
        "sadness": 308,
        "anger": 111,
        "fear": 95,
        "shame": 42,
        "disgust": 40,
        "nervousness": 13,
        "guilt": 1,
        "jealousy": 1,
        "pain": 1,
    }
    assert report["experience_types"] == {"Current Experience": 991, "Previous Experience": 309}


def test_ratings(hub: Real) -> None:
    missing = {split: hub.report(split)["ratings"]["missing"] for split in ("train", "valid", "test", "all")}
    assert [found["final_intensity"] for found in missing.values()] == [110, 21, 19, 150]
    # Ratings of "0" read as missing too.
    zeros = dict.fromkeys(missing, 0)
    for issue in hub.sink.issues:
        if issue.code == "rating_zero":
            zeros[issue.file.removesuffix(".txt")] += 1
            zeros["all"] += 1
    assert zeros["all"] == 4
    assert [missing[split]["supporter_relevance"] - zeros[split] for split in missing] == [135, 28, 22, 185]


def test_duplicates_and_findings(hub: Real, ppdpp: Real) -> None:
    for folder in (hub, ppdpp):
        report = folder.report("all")
        assert report["duplicates"]["dialogues"] == 0
        assert len(report["duplicates"]["situations"]) == 5
        assert totals(report) == (0, 0)


def test_original_layout(corpora: Path) -> None:
    sink = IssueList(go_on=True)
    whole = read_corpus(real(corpora, "esconv/original_record_0.json"), sink=sink)
    (one,) = whole.dialogues
    report = build_report(_reading(whole, whole.dialogues, sink))
    assert one.id == "esconv-9b1f37be6d7e"
    assert (report["utterances"]["n"], report["utterances"]["seeker"], report["runs"]["merged_turns"]) == (27, 13, 22)
    rated = {index: found.feedback for index, found in enumerate(one.turns) if found.feedback is not None}
    assert rated == {4: 5, 8: 5, 11: 5, 15: 4, 18: 5, 23: 4}
    assert report["feedback"] == {"n": 6, "dialogues": 1, "values": {"4": 2, "5": 4}, "without_target": 0}


def test_neither_report_nor_text_quotes_a_corpus(hub: Real) -> None:
    shown = json.dumps(hub.report("all")) + render(hub.report("all"))
    texts = [text for one in hub.corpus.dialogues for text in (one.scenario.situation, *(t.text for t in one.turns))]
    assert sum(text in shown for text in texts if len(text.split()) > 4) == 0


# ---------------------------------------------------------------- form


def _small(**changes: Any) -> Reading:
    talk = dialogue(
        turn("s", "hello you", feedback=2),
        turn("c", "hi", "Question"),
        turn("c", "so", "Sympathy"),
        turn("c", "hm"),
        split="train",
    )
    rated = talk.model_copy(update={"survey": Survey(initial_intensity=5)})
    whole = corpus([rated])
    sink = IssueList(go_on=True)
    for record in range(5):
        sink.note(Issue("repeat", "N", "some.json", record))
    sink.note(Issue("empty_text", "W", "some.json", 7, "dialog[1].content"))
    sink.refuse(DataError("one", path="some.json", record=8))
    sink.refuse(DataError("two", path="some.json", record=9))
    resolved = turn("c", "hi", "Question").model_copy(update={"strategy": "Question"})
    found = rated.model_copy(update={"turns": (rated.turns[0], resolved, *rated.turns[2:]), "taxonomy": "esconv"})
    reading = Reading(whole, (found,), "esconv", ("Question", "Others"), None, sink.issues, sink.refusals)
    return reading if not changes else Reading(**{**{f: getattr(reading, f) for f in reading.__slots__}, **changes})


def test_keys_and_their_order() -> None:
    assert list(build_report(_small())) == KEYS
    assert json.loads(json.dumps(build_report(_small()))) == build_report(_small())


def test_labels_unknown_and_missing_ones_are_told_apart() -> None:
    found = build_report(_small())["strategies"]
    assert {label: entry["n"] for label, entry in found["labels"].items()} == {"Question": 1, "Others": 0}
    assert (found["n_labelled"], found["n_unlabelled"], found["n_unknown"], found["n_unmapped"]) == (1, 1, 1, 0)
    mapped = build_report(_small(mapping="some"))["strategies"]
    assert (mapped["n_unknown"], mapped["n_unmapped"]) == (0, 1)
    raw = build_report(_small(taxonomy=None, labels=()))["strategies"]
    assert {label: entry["n"] for label, entry in raw["labels"].items()} == {"Question": 1, "Sympathy": 1}


def test_merged_report_counts_turns() -> None:
    report = build_report(_small(), merge=True)
    assert report["utterances"]["n"] == 2
    assert report["strategies"]["n_labelled"] == 1
    assert report["runs"]["pairs"] == 2


def test_issues_and_refusals_are_limited() -> None:
    report = build_report(_small(), limit_problems=1)
    assert list(report["issues"]) == ["empty_text", "repeat"]
    assert report["issues"]["empty_text"]["places"] == ["some.json: record 7, dialog[1].content"]
    assert report["issues"]["repeat"] == {
        "severity": "N",
        "n": 5,
        "places": [f"some.json: record {record}" for record in range(3)],
    }
    assert len(report["refusals"]) == 1
    assert totals(report) == (2, 1)
    text = render(report)
    assert "and 1 more (--limit-problems)" in text
    assert "W empty_text: 1" in text


def test_feedback_ratings_and_runs_of_the_small_one() -> None:
    report = build_report(_small())
    assert report["feedback"] == {"n": 1, "dialogues": 1, "values": {"2": 1}, "without_target": 1}
    assert report["ratings"]["missing"]["final_intensity"] == 1
    assert report["ratings"]["values"]["initial_intensity"] == {"5": 1}
    assert report["runs"]["longest"] == {"seeker": 1, "supporter": 3}


def test_an_empty_corpus_can_be_rendered() -> None:
    report = build_report(_small(dialogues=(), taxonomy=None, labels=()))
    assert report["n_dialogues"] == 0
    assert "0 dialogues" in render(report)


def test_spread_uses_the_nearest_rank() -> None:
    assert spread(list(range(1, 21))) == {"min": 1, "mean": 10.5, "median": 10.5, "p95": 19, "max": 20}
    assert spread([3]) == {"min": 3, "mean": 3, "median": 3, "p95": 3, "max": 3}
    assert set(spread([]).values()) == {None}
