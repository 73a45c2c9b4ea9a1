"""Everything that reads what others wrote, as functions of bytes: each returns, or raises an error of ours.

What is read: corpora, recipes and overrides, prompts, taxonomies, mappings, scripts, answers of models, answers of
servers, records, trees, and the files of run folders and studies. ``fuzz.py`` and ``test_fuzz.py`` feed them.
"""

import json
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from esckit.chat.api import ApiError, read_dialogue, read_request
from esckit.chat.talk import Entry
from esckit.config.load import Source, apply_overrides, load_any_recipe
from esckit.data.corpus import read_corpus
from esckit.data.layouts import IssueList
from esckit.errors import EsckitError
from esckit.evaluate.reliability import Label
from esckit.evaluate.suites.response import ResponseCase
from esckit.evaluate.suites.strategy import StrategyCase
from esckit.flow.text import FlowMetadata
from esckit.metrics.rows import MetricsFile
from esckit.models.chat import make_reply, split_reasoning
from esckit.models.chat_api import label_probabilities, parse_answer
from esckit.models.events import EventReader
from esckit.models.faults import fault_in, fault_of, retry_after_s
from esckit.models.scripted import load_scripted
from esckit.play.trees import read_trees
from esckit.play.unit_file import UnitFile
from esckit.predict.run import Prediction
from esckit.prompts.prompt import parse_prompt
from esckit.records import dump_line, parse_line, quick_id
from esckit.roles.asking import clean_output, one_line, read_output, split_output
from esckit.roles.critics import parse_verdicts
from esckit.roles.players import parse_probabilities, parse_seeker
from esckit.roles.rubric import parse_ratings
from esckit.roles.verdicts import load_preset, parse_yes_no
from esckit.runs import read_manifest
from esckit.strategies.mapping import load_mapping
from esckit.strategies.taxonomy import load_taxonomy, read_taxonomy
from esckit.study.key import Asked, Question, StudyKey, read_key
from esckit.study.sheets import read_answers
from esckit.types import Context, Dialogue, Future, Record, SearchTree, StopReason, Usage, trajectories
from tests.shell import ROOT

OLD_RUNS = ROOT / "tests/old_runs/runs"

TOKENS = [
    *(b"{", b"}", b"[", b"]", b'"', b":", b",", b"\n", b"\r\n", b"- ", b"  ", b"&a ", b"*a", b"!!int ", b"~", b"|\n "),
    *(b"null", b"true", b"NaN", b"Infinity", b"-1", b"1e999", b"9" * 400, b"0x_", b"1_0", b"\\ud800", b"\x00", b"\xff"),
    *(b"\xef\xbb\xbf", b"\xe2\x80\xa8", b"<think>", b"</think>", b"<response>", b"</response>", b"<ok>", b"</end/>"),
    *(b"yes", b"no", b"not ", b"same", b"1: 5\n", b"```json\n", b"```", b"**", b"Patient: ", b"data: ", b"[DONE]"),
    *(b'"schema":', b'"id":"a"', b'"choices":', b'"message":', b'"content":', b'"error":', b'"turns":', b"\xc4\xb0"),
]
"""Pieces that mean something to a reader."""


@dataclass(frozen=True)
class Reader:
    """A function of bytes, and good content that changes begin with."""

    read: Callable[[bytes], object]
    seeds: tuple[bytes, ...] = ()


@cache
def _folder() -> Path:
    """Return a folder for what is read from files; it stays for the process."""
    return Path(tempfile.mkdtemp(prefix="fuzz-"))


def _file(name: str, content: bytes) -> Path:
    path = _folder() / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    return path


def _text(content: bytes) -> str:
    return content.decode("utf-8", "replace")


@contextmanager
def _ours() -> Iterator[None]:
    """Let errors of ours pass, so that the next reader gets the same bytes."""
    try:
        yield
    except (EsckitError, ApiError) as error:
        str(error)


def corpus(content: bytes) -> None:
    path = _file("corpus", content)
    with _ours():
        found = read_corpus(path, format="auto", sink=IssueList(go_on=True), max_refused_share=1.0)
        for dialogue in found.dialogues:
            dump_line(dialogue)


def recipe(content: bytes) -> None:
    with _ours():
        load_any_recipe(str(_file("recipe.yaml", content)))


def overrides(content: bytes) -> None:
    with _ours():
        load_any_recipe("smoke/simulate_scripted", overrides=_text(content).split("\n"))
    with _ours():
        apply_overrides(Source("r.yaml", {}), [f"x={_text(content)}"])


def prompt(content: bytes) -> None:
    with _ours():
        parse_prompt(_text(content), "p.yaml")


def taxonomy(content: bytes) -> None:
    with _ours():
        read_taxonomy(str(_file("taxonomy.yaml", content)))


def mapping(content: bytes) -> None:
    with _ours():
        load_mapping(str(_file("mapping.yaml", content)))


def script(content: bytes) -> None:
    with _ours():
        load_scripted(str(_file("script.yaml", content)))


def verdict(content: bytes) -> None:
    text = _text(content)
    for preset in ("rlff7", "ppdpp4"):
        with _ours():
            load_preset(preset).parse(text)
    with _ours():
        parse_yes_no(text)
    with _ours():
        parse_ratings(text, 4)
    with _ours():
        parse_verdicts(text, ("comfort", "overall"))
    with _ours():
        assert abs(sum(parse_probabilities(text, ("EV", "Cla"))) - 1.0) < 1e-9


def utterance(content: bytes) -> None:
    text = _text(content)
    split_output(text)
    assert "<response>" not in read_output(text).response
    clean_output(split_output(text))
    with _ours():
        reply = make_reply(text, StopReason.STOP, Usage(calls=1), max_tokens=100_000)
        split_reasoning(text)
        said = parse_seeker(one_line(reply, "last_sentence"), load_taxonomy("aflow"), 60)
        assert "\n" not in said.text


def completion(content: bytes) -> None:
    text = _text(content)
    fault_in(text)
    assert fault_of(500, text, "Phrase").kind
    for call in (
        lambda: dump_line(parse_answer(text).reply(16).usage),
        lambda: parse_answer(text).replies(16, 2),
        lambda: parse_answer(text).prompt,
        lambda: label_probabilities(parse_answer(text).alternatives, ("A", "B"), 0.7),
    ):
        with _ours():
            call()


def events(content: bytes) -> None:
    reader = EventReader(str.encode)
    for at in range(0, len(content), 40):
        reader.feed(content[at : at + 40])
    whole = reader.completion()
    if whole is not None:
        completion(whole.encode("utf-8", "replace"))


def header(content: bytes) -> None:
    seconds = retry_after_s({"retry-after": content.decode("latin-1"), "retry-after-ms": content[:9].decode("latin-1")})
    assert seconds is None or 0.0 <= seconds < float("inf")


RECORDS: tuple[type[Record], ...] = (
    *(Dialogue, Context, Future, SearchTree, Prediction, Entry, Label, MetricsFile),
    *(ResponseCase, StrategyCase, FlowMetadata),
)


def record(content: bytes) -> None:
    for kind in RECORDS:
        quick_id(kind, content)
        with _ours():
            found = parse_line(kind, _text(content))
            assert parse_line(kind, dump_line(found)) == found


def trees(content: bytes) -> None:
    with _ours():
        for tree in read_trees(_file("trees.jsonl", content)):
            list(trajectories(tree, min_actions=1))


def units(content: bytes) -> None:
    path = _file("run/futures.jsonl", content)
    known = ("a", "b", "a")
    file: Any = UnitFile(
        "futures.jsonl", Future, known, unit=lambda number: number, is_failed=lambda one: one.failure is not None
    )
    with _ours():
        file.read(path.parent)
        file.settle()
        list(file.records())


def manifest(content: bytes) -> None:
    with _ours():
        read_manifest(_file("made/manifest.json", content).parent)


def study(content: bytes) -> None:
    key = _key()
    with _ours():
        read_answers(key, _folder(), [_file("sheet.csv", content)], partial=True)
    with _ours():
        read_key(_file("study/key.json", content).parent)


@cache
def _key() -> StudyKey:
    questions = {name: Question(case_id=name, dialogue_id=name, systems=("a", "b")) for name in ("q0", "q1")}
    raters = {rater: tuple(Asked(question=name) for name in questions) for rater in ("r1", "r2")}
    return StudyKey(
        study="5",
        kind="ab",
        suite="response",
        seed=1,
        dimensions=("comfort", "overall"),
        systems={"a": "x", "b": "y"},
        questions=questions,
        raters=raters,
    )


_NOBODY: Any = SimpleNamespace(taxonomy=None, strategy_named=lambda name: name)


def request(content: bytes) -> None:
    with _ours():
        read_request(content, "m", _NOBODY)
    with _ours():
        read_dialogue(content, _NOBODY)


def _lines(*names: str) -> tuple[bytes, ...]:
    """Return the first line of files of old runs, the longest at most 12,000 bytes."""
    firsts = ((OLD_RUNS / name).read_bytes().partition(b"\n")[0] for name in names)
    return tuple(line for line in firsts if line and len(line) <= 12_000)


def _small_tree() -> bytes:
    """Return the tree of an old run, cut down to its root and what stands right below it."""
    tree = json.loads((OLD_RUNS / "search/trees.jsonl").read_bytes().partition(b"\n")[0])
    return _json({**tree, "nodes": [node for node in tree["nodes"] if node["depth"] < 2][:3]}) + b"\n"


def _shipped(*names: str) -> tuple[bytes, ...]:
    return tuple((ROOT / name).read_bytes() for name in names)


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


_CHAT = {"messages": [{"role": "user", "content": "I failed."}, {"role": "assistant", "content": "Tell me more."}]}
_ASKED = {"model": "m", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "stream": True}
_ANSWER = {
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": [{"type": "text", "text": "So"}], "reasoning": "why"},
            "finish_reason": "stop",
            "logprobs": {"content": [{"token": "A", "top_logprobs": [{"token": "A", "logprob": -0.1}]}]},
        }
    ],
    "usage": {"prompt_tokens": 7, "completion_tokens": 3, "prompt_tokens_details": {"cached_tokens": 1}},
    "prompt_logprobs": [None, {"5": {"logprob": -1.0}}],
}
_ERROR = {
    "error": {"message": "slow", "code": 429, "status": "RESOURCE_EXHAUSTED"},
    "detail": [{"loc": ["a"], "msg": "b"}],
}
_EVENT = {"choices": [{"delta": {"content": "So", "reasoning": "why"}, "finish_reason": "stop"}]}
_ROWS = b"dialogue,speaker,text\n1,user,I failed.\n1,assistant,Tell me more.\n"

READERS: dict[str, Reader] = {
    "corpus": Reader(corpus, (_json(_CHAT), _json([{"dialog": [{"speaker": "seeker", "content": "Hi"}]}]), _ROWS)),
    "recipe": Reader(recipe, _shipped("recipes/smoke/simulate_scripted.yaml", "recipes/smoke/train_flow_tiny.yaml")),
    "overrides": Reader(overrides, (b"seed=8\nmodels.critic={endpoint: openai, model: m}\nbudget={max_calls: 3}",)),
    "prompt": Reader(prompt, _shipped("esckit/prompts/supporter_rlff.yaml", "esckit/prompts/judge_pairwise.yaml")),
    "taxonomy": Reader(taxonomy, _shipped("esckit/strategies/aflow.yaml")),
    "mapping": Reader(
        mapping, tuple(path.read_bytes() for path in sorted((ROOT / "esckit/strategies/mappings").iterdir()))
    ),
    "script": Reader(script, tuple(path.read_bytes() for path in sorted((ROOT / "recipes/scripted").glob("*.yaml")))),
    "verdict": Reader(
        verdict,
        (
            b"No, but the patient feels better.",
            b'```json\n{"EV": 0.6, "Cla": 0.4}\n```',
            b'{"comfort": 1, "overall": "tie"}',
            b"1: 5\n2: 4\n3: 3\n4: 1",
        ),
    ),
    "utterance": Reader(
        utterance,
        (
            b"<think>why</think> <response>Tell me more.</response>",
            b"Patient: I see. <ok>",
            b"[Question] Why?",
            b"</end/>",
        ),
    ),
    "completion": Reader(completion, (_json(_ANSWER), _json(_ERROR), b"<html><title>502</title></html>")),
    "events": Reader(
        events, (b"data: " + _json(_EVENT) + b"\n\ndata: [DONE]\n\n", b": wait\n\ndata: " + _json(_ERROR))
    ),
    "header": Reader(header, (b"5", b"Fri, 31 Dec 2027 23:59:59 GMT", b"1e5")),
    "record": Reader(
        record,
        _lines(
            "simulate/contexts.jsonl",
            "simulate/futures.jsonl",
            "predict-played/predictions.jsonl",
            "evaluate/examples/response.jsonl",
            "evaluate/examples/strategy.jsonl",
            "flow/checkpoint/flow.json",
        ),
    ),
    "trees": Reader(trees, (_small_tree(),)),
    "units": Reader(units, _lines("simulate/futures.jsonl")),
    "manifest": Reader(manifest, _shipped("tests/old_runs/runs/simulate/manifest.json")),
    "study": Reader(study, (b"study,rater,question,comfort,overall\n5,r1,q0,1,2\n5,r1,q1,tie,1\n",)),
    "request": Reader(request, (_json(_ASKED), _json({**_CHAT, "strategies": ["Question"]}))),
}
"""Every reader by name."""
