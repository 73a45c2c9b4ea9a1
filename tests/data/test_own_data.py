"""Data of one's own through the command line: in, out again without loss, through a run, and out as SFT data."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from typer.testing import CliRunner, Result

from esckit.cli.common import Settings
from esckit.cli.data import app
from esckit.data.chat import messages_record, sharegpt_record
from esckit.data.containers import RawRecord
from esckit.data.fields import RecordFields
from esckit.data.writers import chat_line
from esckit.errors import EsckitError
from esckit.types import Dialogue
from tests.data.corpus_files import chat, lines, multiesc, read, write
from tests.data.dialogues import dialogues
from tests.shell import esckit

MINE = "conv,who,utterance,act\n" + "".join(
    f"{n},Nora,Invented worry {n}.,\n{n},Max,Since when?,Question\n{n},Nora,Since May.,\n{n},Max,I see.,Others\n"
    for n in range(3)
)
OPTIONS = (
    *("--column", "dialogue=conv", "--column", "speaker=who", "--column", "strategy=act"),
    *("--role", "Nora=seeker", "--role", "Max=supporter"),
)
NAMED = {
    "roles": {"Nora": "seeker", "Max": "supporter"},
    "columns": {"dialogue": "conv", "speaker": "who", "strategy": "act"},
}


def run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], obj=Settings())


def report(*words: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("inspect", *words, "--json").stdout)
    return found


def error(*words: object) -> EsckitError:
    result = run(*words)
    assert isinstance(result.exception, EsckitError), result.output
    return result.exception


def records(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


# ---------------------------------------------------------------- in


def test_inspect_shows_which_name_stands_for_what(tmp_path: Path) -> None:
    path = write(tmp_path, MINE)
    found = report(path, *OPTIONS)["names"]
    assert found["roles"] == {"Max": {"side": "supporter", "n": 6}, "Nora": {"side": "seeker", "n": 6}}
    assert found["columns"] == {**NAMED["columns"], "text": "utterance"}
    shown = run("inspect", path, *OPTIONS).stdout
    assert "Nora        seeker      6" in shown
    assert "dialogue is 'conv', speaker is 'who', text is 'utterance', strategy is 'act'" in shown


@pytest.mark.parametrize(
    ("option", "says"),
    [
        (("--role", "Nora=patient"), "'patient' is not one of seeker, supporter, situation"),
        (("--role", "Nora"), "'Nora' is not NAME=SIDE"),
        (("--column", "text="), "'text=' is not WHAT=NAME"),
        (("--role", "A=seeker", "--role", "A=supporter"), "'A' is given twice"),
    ],
)
def test_options_that_say_nothing_are_refused(tmp_path: Path, option: tuple[str, ...], says: str) -> None:
    result = run("inspect", write(tmp_path, MINE), *option)
    assert result.exit_code == 2
    assert says in " ".join(result.stderr.replace("│", " ").split())


def test_multiesc_is_read_under_its_own_labels(tmp_path: Path) -> None:
    path = write(tmp_path, lines(multiesc(1), multiesc(2)))
    found = report(path)
    assert (found["format"], found["n_refused"], found["strategies"]["taxonomy"]) == ("multiesc", 0, "multiesc")
    assert found["strategies"]["labels"]["Greeting"]["n"] == 2
    assert found["ratings"]["values"]["initial_intensity"] == {"4": 2}
    assert found["feedback"]["n"] == 2
    assert found["issues"]["several_strategies"]["n"] == 2


def test_a_recipe_reads_a_csv_and_a_run_plays_it(tmp_path: Path) -> None:
    write(tmp_path, MINE, "mine.csv")
    recipe = {
        "command": "simulate",
        "seed": 7,
        "data": {"path": "mine.csv", "format": "table", **NAMED},
        "contexts": {"per_dialogue": 1},
        "models": {role: {"scripted": role} for role in ("supporter", "seeker", "critic")},
        "simulation": {"candidates": 1, "horizon": 1},
    }
    write(tmp_path, recipe, "mine.yaml")
    done = esckit("simulate", "mine.yaml", "--out", "run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    contexts = records(tmp_path / "run/contexts.jsonl")
    assert contexts[0]["turns"][0]["text"].startswith("Invented worry")
    manifest = json.loads((tmp_path / "run/manifest.json").read_text())
    assert {name: manifest["recipe"]["data"][name] for name in ("format", "roles")} == {
        "format": "table",
        "roles": NAMED["roles"],
    }
    assert manifest["data"]["ids"][0].startswith("own-")
    turned = "data.roles={Nora: supporter, Max: seeker}"
    other = esckit("simulate", "mine.yaml", "--out", "run", f"--set={turned}", cwd=tmp_path)
    assert other.returncode == 2
    assert "data.roles.Max, data.roles.Nora differ" in other.stderr


def test_a_wrong_mapping_in_a_recipe_is_named(tmp_path: Path) -> None:
    write(tmp_path, MINE, "mine.csv")
    sets = ("data={path: mine.csv, roles: {Nora: patient}, columns: {txt: utterance}}", "contexts.per_dialogue=1")
    done = esckit("simulate", "smoke/simulate_scripted", *(f"--set={one}" for one in sets), "--dry-run", cwd=tmp_path)
    assert done.returncode == 2
    assert "data.roles.Nora" in done.stderr
    assert "data.columns.txt" in done.stderr
    assert "did you mean 'text'?" in done.stderr


# ---------------------------------------------------------------- out and in again


def _said(dialogue: Dialogue) -> list[tuple[str, str, str | None]]:
    return [(turn.speaker, turn.text, turn.source_strategy) for turn in dialogue.turns]


@pytest.mark.parametrize("to", ["esckit", "messages", "sharegpt", "esconv-hub"])
def test_what_is_converted_reads_back_as_the_same(tmp_path: Path, to: str) -> None:
    out = tmp_path / "out"
    assert run("convert", "sample:esconv", "--to", to, "--out", out).exit_code == 0
    before, after = read("sample:esconv")[0].dialogues, read(out)[0].dialogues
    assert [_said(one) for one in after] == [_said(one) for one in before]
    assert [one.id for one in after] == [one.id for one in before]
    assert [one.scenario for one in after] == [one.scenario for one in before]


@settings(max_examples=40, deadline=None)
@given(dialogues)
def test_any_dialogue_comes_back_from_a_chat_record(any_dialogue: Dialogue) -> None:
    for to, reader in (("messages", messages_record), ("sharegpt", sharegpt_record)):
        line = json.loads(chat_line(any_dialogue, to))  # type: ignore[arg-type]
        found = reader(RecordFields(RawRecord(0, 1, line, "lines"), Path("out")))
        assert [(turn.speaker, turn.text) for turn in found.turns] == [
            (turn.speaker, turn.text) for turn in any_dialogue.turns
        ]


def test_what_a_chat_record_cannot_hold_is_said(tmp_path: Path) -> None:
    source = write(tmp_path, json.dumps([multiesc()]))
    result = run("convert", source, "--to", "messages", "--out", tmp_path / "out", "--merge")
    assert "messages cannot hold 1 turns with the seeker's feedback" in result.stderr
    assert "messages cannot hold 1 surveys" in result.stderr


def test_conversion_says_what_was_no_utterance(tmp_path: Path) -> None:
    thought = {"messages": [*chat()["messages"], {"role": "assistant", "content": "<think>a</think>Yes."}]}
    result = run("convert", write(tmp_path, lines(thought)), "--to", "esckit", "--out", tmp_path / "out")
    assert "note: normalised not_a_turn: 1 ('system')" in result.stderr
    assert "note: normalised reasoning: 1" in result.stderr


def test_a_role_that_no_record_has_is_named(tmp_path: Path) -> None:
    result = run(
        "convert", write(tmp_path, MINE), *OPTIONS, "--role", "Bo=ignore", "--to", "esckit", "--out", tmp_path / "o"
    )
    assert "warning: role_unused: 1 ('Bo')" in result.stderr


def test_own_labels_are_those_that_a_mapping_leads_from(tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = (*OPTIONS, "--map", "esconv_to_aflow", "--to", "esckit", "--out", out)
    assert run("convert", write(tmp_path, MINE), *words).exit_code == 0
    assert [turn["strategy"] for turn in records(out)[0]["turns"]] == [None, "Clarification", None, None]


def test_no_command_writes_over_what_it_reads(tmp_path: Path) -> None:
    source = write(tmp_path, MINE)
    before = source.read_bytes()
    link = tmp_path / "link"
    link.symlink_to(source)
    for to, out in itertools.product(
        ("esckit", "prompt-completion"), (source, link, tmp_path / "none" / ".." / source.name)
    ):
        says = str(error("convert", source, *OPTIONS, "--to", to, "--out", out, "--force"))
        assert "is read and would be written over" in says
    (tmp_path / "own").mkdir()
    (tmp_path / "own/train.csv").write_bytes(before)
    words = ("--scheme", "ratio", "--ratios", "0.5,0.5,0", "--force")
    assert run("split", tmp_path / "own/train.csv", *OPTIONS, *words, "--out", tmp_path / "own").exit_code == 0
    (tmp_path / "own/train.csv").unlink()
    says = str(error("split", tmp_path / "own", *words, "--out", tmp_path / "own"))
    assert "train.jsonl" in says
    assert source.read_bytes() == before


def test_tables_are_split(tmp_path: Path) -> None:
    path = write(tmp_path, MINE)
    options = (*OPTIONS, "--scheme", "ratio", "--ratios", "0.5,0.5,0", "--out", tmp_path / "split")
    assert run("split", path, *options).exit_code == 0
    assert sum(json.loads((tmp_path / "split/split.json").read_text())["counts"].values()) == 3


# ---------------------------------------------------------------- SFT data


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs")
    for command in ("simulate", "search"):
        done = esckit(command, f"smoke/{command}_scripted", "--out", command, "--set=data.limit=2", cwd=folder)
        assert done.returncode == 0, done.stderr
    return folder


def test_good_futures_are_written_as_sft_data(runs: Path, tmp_path: Path) -> None:
    rewards = [future["reward"] for future in records(runs / "simulate/futures.jsonl")]
    for option, n in (((), None), (("--min-score", "-1"), len(rewards))):
        out = tmp_path / f"out{len(option)}"
        result = run("convert", runs / "simulate", "--to", "messages", "--out", out, *option)
        assert result.exit_code == 0, result.output
        found = records(out)
        assert 0 < len(found) <= (n or len(found))
        assert found[0]["messages"][-1]["role"] == "assistant"
        assert found[0]["dialogue_id"].startswith("esconv-")
    says = error("convert", runs / "simulate", "--to", "messages", "--out", tmp_path / "no", "--min-score", "1")
    assert "no reply to write (not good" in str(says)
    assert "lower --min-score" in str(says)


def test_best_paths_of_trees_are_written_as_sft_data(runs: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ("--to", "prompt-completion", "--out", out, "--strategy", "prompt", "--prompt", "supporter_rlff")
    assert run("convert", runs / "search", *words).exit_code == 0
    assert "use this support strategy" in records(out)[0]["prompt"][0]["content"]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("simulate", "--to", "esckit"), "--to esckit for replies of a run; expected prompt-completion, messages"),
        (("simulate", "--to", "messages", "--role", "a=seeker"), "options of a corpus for a run"),
        (("simulate", "--to", "messages", "--strategy", "prompt"), "--strategy prompt without a prompt"),
        (("sample:esconv", "--to", "messages", "--reasoning"), "for whole dialogues"),
        (("sample:esconv", "--to", "prompt-completion", "--reasoning"), "no reply to write (without reasoning"),
        (("sample:esconv", "--to", "prompt-completion", "--min-score", "1"), "--min-score for the replies of a corpus"),
    ],
)
def test_what_cannot_be_written_is_said(runs: Path, tmp_path: Path, words: tuple[str, ...], says: str) -> None:
    source = words[0] if ":" in words[0] else runs / words[0]
    out = tmp_path / "out"
    assert says in str(error("convert", source, *words[1:], "--out", out))
    assert not out.exists()
