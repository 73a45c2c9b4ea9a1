"""Small invented corpora in every layout, and a short way to read them."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

from esckit.data.corpus import Corpus, read_corpus
from esckit.data.layouts import IssueList

DATA = Path(__file__).resolve().parents[1] / "data"
BROKEN = DATA / "broken"


def original(n: int = 1, **changes: Any) -> dict[str, Any]:
    """One record in ESConv's original layout that gives no warning."""
    record = {
        "experience_type": "Current Experience",
        "emotion_type": "anxiety",
        "problem_type": "job crisis",
        "situation": f"Invented case {n}.",
        "survey_score": {
            "seeker": {
                "initial_emotion_intensity": "4",
                "empathy": "5",
                "relevance": "3",
                "final_emotion_intensity": "2",
            },
            "supporter": {"relevance": "1"},
        },
        "dialog": [
            {"speaker": "seeker", "annotation": {}, "content": f"Invented opening {n}."},
            {"speaker": "supporter", "annotation": {"strategy": "Question"}, "content": "What happened?"},
            {"speaker": "seeker", "annotation": {"feedback": "4"}, "content": "The rota changed."},
        ],
        "seeker_question1": "Fine.",
        "seeker_question2": "Good.",
        "supporter_question1": "Well.",
        "supporter_question2": "N.A",
    }
    return record | changes


def hub(n: int = 1, **changes: Any) -> dict[str, Any]:
    """The same dialogue in the Hub layout."""
    record = original(n)
    words = {"seeker": "usr", "supporter": "sys"}
    record["dialog"] = [
        {"text": turn["content"], "speaker": words[turn["speaker"]]}
        | {key: value for key, value in turn["annotation"].items() if key == "strategy"}
        for turn in record["dialog"]
    ]
    return record | changes


def ppdpp(n: int = 1, **changes: Any) -> dict[str, Any]:
    """The same dialogue in PPDPP's layout."""
    return {key: hub(n)[key] for key in ("emotion_type", "problem_type", "situation", "dialog")} | changes


def extes(*items: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """One ExTES record with the given items."""
    usual = ({"User": "Hello."}, {"AI Strategy": "Emotional Validation", "AI": "That is hard."})
    return {"scene": "Academic Stress", "description": "An invented exam.", "content": list(items or usual)} | changes


def own(n: int = 1, **changes: Any) -> dict[str, Any]:
    """One record of the project's own format."""
    turns = [{"speaker": "seeker", "text": f"Invented opening {n}."}, {"speaker": "supporter", "text": "Go on."}]
    return {"schema": "esckit.dialogue/1", "scenario": {"id": f"own:{n}"}, "turns": turns} | changes


def multiesc(n: int = 1, **changes: Any) -> dict[str, Any]:
    """One record in the layout of MultiESC's copy of ESConv."""
    dialog = [
        {"text": f"Invented opening {n} .", "speaker": "usr", "vad": [0.5, 0.5, 0.5], "cause": None, "feedback": None},
        {
            "text": "What happened ? Try a walk .",
            "speaker": "sys",
            "strategy": "Question",
            "all_strategy": ["Question", "Providing Suggestions or Information"],
        },
        {"text": "The rota changed .", "speaker": "usr", "vad": [0.5, 0.5, 0.5], "cause": "", "feedback": "4"},
        {"text": "Bye .", "speaker": "sys", "strategy": "Greeting", "all_strategy": ["Greetings"]},
    ]
    facts = {"emotion_type": "anxiety", "problem_type": "job crisis", "situation": f"Invented case {n}."}
    return {**facts, "init_intensity": 4, "final_intensity": 2, "dialog": dialog} | changes


def chat(n: int = 1, **changes: Any) -> dict[str, Any]:
    """One record of an OpenAI chat file."""
    said = [("system", "Be kind."), ("user", f"Invented opening {n}."), ("assistant", "Go on.")]
    return {"messages": [{"role": role, "content": text} for role, text in said]} | changes


def sharegpt(n: int = 1, **changes: Any) -> dict[str, Any]:
    """One record in ShareGPT's layout."""
    said = [("human", f"Invented opening {n}."), ("gpt", "Go on.")]
    return {"conversations": [{"from": role, "value": text} for role, text in said]} | changes


def rows(n: int = 1, **changes: Any) -> list[dict[str, Any]]:
    """The rows of a table with one dialogue."""
    said = [("client", f"Invented opening {n}.", None), ("therapist", "Go on.", "Question")]
    return [
        {"dialogue": n, "speaker": speaker, "text": text, "strategy": label} | changes for speaker, text, label in said
    ]


def lines(*records: Any) -> str:
    """JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in records)


def write(folder: Path, content: Any, name: str = "corpus") -> Path:
    """Write bytes, a text, or a value as JSON, under a name that says nothing."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def read(path: str | Path, **options: Any) -> tuple[Corpus, Counter[tuple[str, str]]]:
    """Read strictly; return the corpus and how often each (code, class) was noted."""
    sink = IssueList()
    corpus = read_corpus(path, sink=sink, **options)
    return corpus, Counter((issue.code, issue.severity) for issue in sink.issues)


def read_skipping(path: str | Path, **options: Any) -> tuple[Corpus, IssueList]:
    """Read on after refusals; return the corpus and the sink."""
    sink = IssueList(go_on=True)
    return read_corpus(path, sink=sink, **options), sink
