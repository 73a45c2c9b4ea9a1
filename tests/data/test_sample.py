"""The sample corpus holds what newcomers, smoke recipes and docs count on, and data/README.md says so truly."""

import hashlib
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import cache
from itertools import chain, groupby, pairwise
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from esckit.cli.data import app
from esckit.registry import shipped_dir

DATA = shipped_dir("data")
SPLITS = {"train": (0, 10), "valid": (10, 14), "test": (14, 20)}
ESCONV_LABELS = (
    "Question",
    "Restatement or Paraphrasing",
    "Reflection of feelings",
    "Self-disclosure",
    "Affirmation and Reassurance",
    "Providing Suggestions",
    "Information",
    "Others",
)
EXTES_LABELS = (
    "Reflective Statements",
    "Clarification",
    "Emotional Validation",
    "Empathetic Statements",
    "Affirmation",
    "Offer Hope",
    "Avoid Judgment and Criticism",
    "Suggest Options",
    "Collaborative Planning",
    "Provide Different Perspectives",
    "Reframe Negative Thoughts",
    "Share Information",
    "Normalize Experiences",
    "Promote Self-Care Practices",
    "Stress Management",
    "Others",
)
VARIATION_SELECTOR = "\ufe0f"


@cache
def _esconv() -> list[dict[str, Any]]:
    return json.loads((DATA / "esconv_sample.json").read_text(encoding="utf-8"))


@cache
def _extes() -> list[dict[str, Any]]:
    return json.loads((DATA / "extes_sample.json").read_text(encoding="utf-8"))


@cache
def _inspect(name: str) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["inspect", str(DATA / name), "--json"])
    assert result.exit_code == 0, result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _hub_lines(split: str) -> list[str]:
    return (DATA / "esconv_sample" / f"{split}.txt").read_text(encoding="ascii").splitlines()


def _contents(record: dict[str, Any]) -> list[str]:
    return [item["content"] for item in record["dialog"]]


def _runs(record: dict[str, Any], speaker: str) -> list[list[dict[str, Any]]]:
    """Return the runs of one speaker, each as the annotations in it."""
    grouped = groupby(record["dialog"], key=lambda item: item["speaker"])
    return [[item["annotation"] for item in run] for who, run in grouped if who == speaker]


def _strategy_counts() -> Counter[str]:
    return Counter(label["strategy"] for record in _esconv() for run in _runs(record, "supporter") for label in run)


def _intensities(record: dict[str, Any]) -> tuple[int, int]:
    seeker = record["survey_score"]["seeker"]
    return int(seeker["initial_emotion_intensity"]), int(seeker["final_emotion_intensity"])


def _rated() -> list[dict[str, Any]]:
    return [record for record in _esconv() if "final_emotion_intensity" in record["survey_score"]["seeker"]]


# ---------------------------------------------------------------- layouts


def test_original_layout_has_its_keys_in_order_and_only_strings() -> None:
    for record in _esconv():
        assert list(record) == [
            "experience_type",
            "emotion_type",
            "problem_type",
            "situation",
            "survey_score",
            "dialog",
            "seeker_question1",
            "seeker_question2",
            "supporter_question1",
            "supporter_question2",
        ]
        assert list(record["survey_score"]) == ["seeker", "supporter"]
        ratings = chain.from_iterable(side.values() for side in record["survey_score"].values())
        assert all(isinstance(value, str) for value in chain(ratings, _contents(record)))
        for item in record["dialog"]:
            assert list(item) == ["speaker", "annotation", "content"]
            allowed = {"strategy"} if item["speaker"] == "supporter" else {"feedback"}
            assert set(item["annotation"]) <= allowed
            assert item["speaker"] == "seeker" or item["annotation"]


def _as_hub_line(record: dict[str, Any]) -> str:
    items = []
    for item in record["dialog"]:
        text = " ".join(item["content"].split())
        if item["speaker"] == "seeker":
            items.append({"text": text, "speaker": "usr"})
        else:
            items.append({"text": text, "speaker": "sys", "strategy": item["annotation"]["strategy"]})
    return json.dumps({**record, "dialog": items})


@pytest.mark.parametrize("split", SPLITS)
def test_hub_layout_is_the_original_one_converted(split: str) -> None:
    start, stop = SPLITS[split]
    assert _hub_lines(split) == [_as_hub_line(record) for record in _esconv()[start:stop]]


def test_hub_layout_escapes_and_keeps_situations_raw() -> None:
    text = "\n".join(chain.from_iterable(_hub_lines(split) for split in SPLITS))
    assert r"\u2019" in text
    assert r"\ufe0f" in text
    assert any("\n" in json.loads(line)["situation"] for line in text.split("\n"))


def test_layouts_give_the_same_dialogues_and_ids() -> None:
    original, hub = _inspect("esconv_sample.json"), _inspect("esconv_sample")
    assert (original["format"], hub["format"]) == ("esconv", "esconv-hub")
    assert original["ids_digest"] == hub["ids_digest"] == _ids_digest()
    assert [hub["splits"][split]["dialogues"] for split in ("train", "valid", "test")] == [10, 4, 6]


def _ids_digest() -> str:
    ids = []
    for record in _esconv():
        turns = "\n".join(f"{item['speaker']}\t{' '.join(item['content'].split())}" for item in record["dialog"])
        ids.append(hashlib.sha256(turns.encode()).hexdigest()[:12])
    return hashlib.sha256("\n".join(sorted(ids)).encode()).hexdigest()


# ---------------------------------------------------------------- ESConv-style dialogues


def test_sizes() -> None:
    lengths = [len(record["dialog"]) for record in _esconv()]
    assert len(lengths) == 20
    assert len(_extes()) == 8
    assert lengths.count(2) == 1
    assert max(lengths) >= 40
    assert sum(12 <= length <= 24 for length in lengths) > len(lengths) / 2


def test_every_strategy_occurs_three_times_and_in_every_split() -> None:
    assert set(_strategy_counts()) == set(ESCONV_LABELS)
    assert min(_strategy_counts().values()) >= 3
    labels = _inspect("esconv_sample")["strategies"]["labels"]
    assert all(labels[label]["splits"][split] >= 1 for label in ESCONV_LABELS for split in SPLITS)


def test_problem_emotion_and_experience_types() -> None:
    problems = {record["problem_type"] for record in _esconv()}
    assert len(problems) >= 7
    assert {"conflict with parents", "Issues with Parents", "Procrastination"} <= problems
    assert len({record["emotion_type"] for record in _esconv()}) >= 6
    assert {record["experience_type"] for record in _esconv()} == {"Current Experience", "Previous Experience"}


def test_who_speaks_first_and_in_runs() -> None:
    assert sum(record["dialog"][0]["speaker"] == "supporter" for record in _esconv()) >= 4
    assert any(len(run) == 3 for record in _esconv() for run in _runs(record, "seeker"))
    distinct = [{label["strategy"] for label in run} for record in _esconv() for run in _runs(record, "supporter")]
    assert {2, 3} <= {len(strategies) for strategies in distinct}
    assert sum(len(strategies) == 3 for strategies in distinct) >= 1


def test_one_speaker_repeats_an_utterance_verbatim() -> None:
    pairs = chain.from_iterable(pairwise(record["dialog"]) for record in _esconv())
    assert sum((a["speaker"], a["content"]) == (b["speaker"], b["content"]) for a, b in pairs) == 1


def test_half_have_feedback_once_on_the_second_of_a_run() -> None:
    runs = [_runs(record, "seeker") for record in _esconv()]
    assert sum(any("feedback" in turn for run in found for turn in run) for found in runs) == 10
    assert any("feedback" in run[1] for found in runs for run in found if len(run) > 1)


def test_raw_white_space_and_characters() -> None:
    contents = [content for record in _esconv() for content in _contents(record)]
    assert any(content.endswith("\n") for content in contents)
    assert any("  " in content for content in contents)
    assert any("\n" in content.strip() for content in contents)
    text = "".join(contents)
    assert {"’", "é", VARIATION_SELECTOR} <= set(text)
    assert f"\u2764{VARIATION_SELECTOR}" in text


def test_two_dialogues_of_one_split_share_a_situation() -> None:
    situations = [record["situation"] for record in _esconv()]
    shared = [situation for situation, n in Counter(situations).items() if n > 1]
    assert len(shared) == 1
    places = [index for index, situation in enumerate(situations) if situation == shared[0]]
    assert len(places) == 2
    assert max(places) < SPLITS["train"][1]


def test_survey_quirks() -> None:
    surveys = [record["survey_score"] for record in _esconv()]
    assert {"seeker": {"initial_emotion_intensity": "4"}, "supporter": {}} in surveys
    assert sum("0" in side.values() for survey in surveys for side in survey.values()) == 1
    answers = [record[key] for record in _esconv() for key in record if key.endswith(("question1", "question2"))]
    assert "" in answers
    assert any(answers)


def test_intensity_falls_unless_the_support_is_poor() -> None:
    changes = [(record, *_intensities(record)) for record in _rated()]
    poor = [record for record, initial, final in changes if initial == final]
    assert len(poor) == 2
    assert sum(final < initial for _, initial, final in changes) == len(changes) - 2 == 17
    ratings = [int(turn["feedback"]) for record in poor for run in _runs(record, "seeker") for turn in run if turn]
    assert ratings
    assert max(ratings) <= 2
    assert all(int(record["survey_score"]["seeker"]["empathy"]) <= 2 for record in poor)


# ---------------------------------------------------------------- ExTES-style dialogues


def _items() -> list[dict[str, Any]]:
    return [item for record in _extes() for item in record["content"]]


def test_every_extes_strategy_occurs() -> None:
    labels = _inspect("extes_sample.json")["strategies"]["labels"]
    assert list(labels) == list(EXTES_LABELS)
    assert all(entry["n"] >= 1 for entry in labels.values())


def test_extes_scenes() -> None:
    scenes = [record["scene"] for record in _extes()]
    assert len(set(scenes)) == 8
    assert sum("UncertAInty" in scene for scene in scenes) == 1
    assert all(list(record) == ["scene", "description", "content"] for record in _extes())


def test_extes_quirks() -> None:
    items = _items()
    assert sum(item.get("AI Strategy") == "" for item in items) >= 8
    assert sum(item.get("AI Strategy") == "Emotional Validation (EV)" for item in items) == 1
    assert sum({"User", "AI"} <= set(item) for item in items) == 1
    assert sum(isinstance(item.get("AI"), list) for item in items) == 1
    assert sum(isinstance(item.get("AI"), dict) for item in items) == 1
    assert {"User": None} in items
    assert sum("User" not in record["content"][0] for record in _extes()) == 1


def test_samples_give_exactly_the_warnings_that_they_should() -> None:
    for name in ("esconv_sample.json", "esconv_sample"):
        assert all(entry["severity"] == "N" for entry in _inspect(name)["issues"].values())
    issues = _inspect("extes_sample.json")["issues"]
    warned = {code: entry["n"] for code, entry in issues.items() if entry["severity"] == "W"}
    assert warned == {"both_speakers": 1, "empty_text": 1, "text_list": 1, "text_object": 1}


# ---------------------------------------------------------------- what must not be there


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        yield from chain.from_iterable(map(_strings, value.values()))
    elif isinstance(value, list):
        yield from chain.from_iterable(map(_strings, value))


def _word_runs(texts: Iterable[str], n: int = 12) -> Iterator[tuple[str, ...]]:
    for text in texts:
        words = re.findall(r"\w+", text.casefold())
        yield from (tuple(words[start : start + n]) for start in range(len(words) - n + 1))


def test_no_crisis_hotline_link_or_address() -> None:
    text = " ".join(_strings([_esconv(), _extes()])).casefold()
    for word in (
        "suicid",
        "kill",
        "self-harm",
        "hotline",
        "lifeline",
        "emergency",
        "diagnos",
        "medication",
        "http",
        "@",
    ):
        assert word not in text


def test_no_twelve_words_in_a_row_come_from_a_real_corpus(corpora: Path) -> None:
    files = [path for path in sorted(corpora.rglob("*")) if path.suffix in {".txt", ".json"}]
    if not files:
        pytest.skip("real corpora not found: set ESCKIT_DATA (see docs/data.md)")
    ours = set(_word_runs(_strings([_esconv(), _extes()])))
    for path in files:
        text = path.read_text(encoding="utf-8")
        records = [json.loads(line) for line in text.split("\n") if line] if path.suffix == ".txt" else json.loads(text)
        shared = ours.intersection(_word_runs(_strings(records)))
        assert not shared, f"{path.name} shares {len(shared)} runs of 12 words with the sample corpus"


# ---------------------------------------------------------------- data/README.md


def _table(title: str) -> dict[str, list[int]]:
    """Return the rows of a table of numbers in data/README.md by name."""
    section = (DATA / "README.md").read_text(encoding="utf-8").split(f"### {title}\n", 1)[1].split("\n#", 1)[0]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in section.split("\n") if line[:1] == "|"]
    return {name: [int(cell) for cell in cells] for name, *cells in rows[2:]}


def test_readme_counts_sizes_as_inspect_does() -> None:
    expected: dict[str, list[int]] = {}
    for name in ("esconv_sample", "extes_sample.json"):
        report = _inspect(name)
        for row, value in {
            "dialogues": report["n_dialogues"],
            "utterances": report["utterances"]["n"],
            "of seekers": report["utterances"]["seeker"],
            "of supporters": report["utterances"]["supporter"],
            "shortest dialogue": report["utterances"]["per_dialogue"]["min"],
            "longest dialogue": report["utterances"]["per_dialogue"]["max"],
            "turns after merging": report["runs"]["merged_turns"],
            "supporter turns after merging": report["runs"]["merged_supporter_turns"],
            "with two or more strategies": report["runs"]["multi_strategy_turns"],
            "same-speaker pairs": report["runs"]["pairs"],
            "verbatim repeats": report["runs"]["repeats"],
            "contexts": report["utterances"]["contexts"]["unmerged"],
            "contexts after merging": report["utterances"]["contexts"]["merged"],
            "supporter first": report["speakers_first"]["supporter"],
            "supporter last": report["speakers_last"]["supporter"],
            "without a label": report["strategies"]["n_unlabelled"],
        }.items():
            expected.setdefault(row, []).append(value)
    assert _table("Sizes") == expected


def test_readme_counts_splits_and_strategies_as_inspect_does() -> None:
    report = _inspect("esconv_sample")
    splits = [report["splits"][split] for split in SPLITS]
    expected = {
        "dialogues": [split["dialogues"] for split in splits],
        "utterances": [split["utterances"]["n"] for split in splits],
        "of supporters": [split["utterances"]["supporter"] for split in splits],
    }
    for label, entry in report["strategies"]["labels"].items():
        expected[label] = [entry["splits"][split] for split in SPLITS]
    totals = {name: [*cells, sum(cells)] for name, cells in expected.items()}
    assert _table("ESConv-style: splits and strategies") == totals


def test_readme_counts_extes_strategies_as_inspect_does() -> None:
    labels = _inspect("extes_sample.json")["strategies"]["labels"]
    assert _table("ExTES-style: strategies") == {label: [entry["n"]] for label, entry in labels.items()}


def test_readme_and_inspect_count_the_same() -> None:
    original = _inspect("esconv_sample.json")
    types = [original["problem_types"], original["emotion_types"], original["experience_types"]]
    expected = {name: [n] for counts in types for name, n in counts.items()}
    expected |= {
        "feedback ratings": [original["feedback"]["n"]],
        "dialogues with feedback": [original["feedback"]["dialogues"]],
        "without final intensity": [original["ratings"]["missing"]["final_intensity"]],
        "without supporter relevance": [original["ratings"]["missing"]["supporter_relevance"]],
    }
    assert _table("ESConv-style: types and ratings") == expected
