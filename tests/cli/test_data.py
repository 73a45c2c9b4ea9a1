"""``esckit data`` through the command line: reports, conversions and splits, with their exit codes."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from esckit.cli.common import Settings
from esckit.cli.data import app
from esckit.errors import DataError, EsckitError
from esckit.registry import shipped_dir
from tests.data.dialogues import real
from tests.data.test_inspection import KEYS

BROKEN = Path(__file__).resolve().parents[1] / "data" / "broken"


def _run(*words: object) -> Result:
    return CliRunner().invoke(app, [str(word) for word in words], obj=Settings())


def _report(*words: object) -> dict[str, Any]:
    result = _run("inspect", *words, "--json")
    assert result.exit_code in (0, 1), result.output
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _error(*words: object) -> EsckitError:
    result = _run(*words)
    assert isinstance(result.exception, EsckitError), result.output
    return result.exception


# ---------------------------------------------------------------- inspect


def test_inspect_prints_a_report() -> None:
    result = _run("inspect", "sample:esconv", "--strict")
    assert result.exit_code == 0
    assert result.stderr == ""
    for piece in ("format esconv-hub", "20 records, 20 dialogues", "taxonomy esconv", "Affirmation and Reassurance"):
        assert piece in result.stdout


def test_json_has_exactly_the_agreed_keys_in_order() -> None:
    assert list(_report("sample:esconv")) == KEYS


@pytest.mark.parametrize("folder", ["esconv", "ppdpp"])
def test_the_real_corpora_have_no_finding(corpora: Path, folder: str) -> None:
    result = _run("inspect", real(corpora, folder), "--strict", "--json")
    assert result.exit_code == 0
    report = json.loads(result.stdout)
    assert (report["n_dialogues"], report["utterances"]["n"], report["strategies"]["n_labelled"]) == (
        1300,
        38365,
        18376,
    )
    assert report["ids_digest"].startswith("4898fdbbade0e85c")


def test_warnings_are_findings_only_if_strict() -> None:
    assert _run("inspect", "sample:extes").exit_code == 0
    result = _run("inspect", "sample:extes", "--strict")
    assert result.exit_code == 1
    assert "4 warnings" in result.stderr


@pytest.mark.parametrize(
    ("file", "facts"),
    [
        ("strategy_sympathy.json", ("'Sympathy'", "nearest: ", "Question", "unknown_strategy: keep")),
        ("strategy_affirmation.json", ("nearest: Affirmation and Reassurance", "known to taxonomy aflow, cso, extes")),
        ("strategy_fused.json", ("ambiguous", "Providing Suggestions or Information")),
    ],
)
def test_unknown_labels_are_findings(file: str, facts: tuple[str, ...]) -> None:
    result = _run("inspect", BROKEN / file, "--limit-problems", 1)
    assert result.exit_code == 1
    assert all(fact in result.stdout for fact in facts)
    kept = _report(BROKEN / file, "--unknown-strategy", "keep")
    assert (kept["n_refused"], kept["strategies"]["n_unknown"], kept["issues"]["strategy_unknown"]["n"]) == (0, 1, 1)


def test_another_taxonomy_can_be_named() -> None:
    result = _run("inspect", "sample:extes", "--taxonomy", "esconv")
    assert result.exit_code == 1
    assert "extes (mapping: extes_to_esconv.proposed or extes_to_esconv.published)" in result.stdout


@pytest.mark.parametrize("path", sorted(BROKEN.iterdir()), ids=lambda path: path.name)
def test_no_broken_file_gives_anything_but_a_report_or_an_error(path: Path) -> None:
    result = _run("inspect", path)
    assert result.exit_code in (0, 1)
    assert result.exception is None or isinstance(result.exception, (EsckitError, SystemExit))


def test_missing_path_says_how_to_get_the_corpora() -> None:
    assert "docs/data.md" in str(_error("inspect", "no/such/place"))


# ---------------------------------------------------------------- convert


def test_converting_to_records_and_back_loses_nothing(tmp_path: Path) -> None:
    first, second, hub = tmp_path / "a.jsonl", tmp_path / "b.jsonl", tmp_path / "c.txt"
    assert _run("convert", "sample:esconv", "--to", "jsonl", "--out", first).exit_code == 0
    assert _run("convert", first, "--to", "jsonl", "--out", second).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert _run("convert", first, "--to", "esconv-hub", "--out", hub).exit_code == 0
    assert _report(hub)["ids_digest"] == _report("sample:esconv")["ids_digest"] == _report(first)["ids_digest"]


def test_merged_records_read_back_as_they_are(tmp_path: Path) -> None:
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    assert _run("convert", "sample:esconv", "--to", "jsonl", "--out", first, "--merge").exit_code == 0
    assert _run("convert", first, "--to", "jsonl", "--out", second).exit_code == 0
    assert first.read_bytes() == second.read_bytes()
    assert '"parts":[{' in first.read_text(encoding="utf-8")


def test_the_first_original_record_becomes_its_published_line(corpora: Path, tmp_path: Path) -> None:
    out = tmp_path / "one.txt"
    result = _run("convert", real(corpora, "esconv/original_record_0.json"), "--to", "esconv-hub", "--out", out)
    assert result.exit_code == 0
    assert "esconv-hub cannot hold 6 turns with the seeker's feedback" in result.stderr
    assert out.read_bytes() == real(corpora, "esconv/train.txt").read_bytes().split(b"\n")[171] + b"\n"


def test_mapped_labels_are_written(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    mapping = "extes_to_esconv.proposed"
    assert _run("convert", "sample:extes", "--to", "jsonl", "--out", out, "--map", mapping).exit_code == 0
    report = _report(out)["strategies"]
    assert (report["taxonomy"], report["mapping"]) == ("esconv", mapping)
    hub = tmp_path / "a.txt"
    result = _run("convert", out, "--to", "esconv-hub", "--out", hub)
    assert "original labels, replaced by mapped ones" in result.stderr


def test_conversion_says_what_it_normalised(tmp_path: Path) -> None:
    source = tmp_path / "own.jsonl"
    turns = [{"speaker": "client", "text": "Invented \u0007 words."}, {"speaker": "therapist", "text": "Go  on."}]
    source.write_text(json.dumps({"scenario": {"situation": ""}, "turns": turns}) + "\n", encoding="utf-8")
    result = _run("convert", source, "--to", "jsonl", "--out", tmp_path / "out.jsonl")
    assert result.exit_code == 0
    assert "note: normalised speaker_alias: 2 ('client', 'therapist')" in result.stderr
    assert "note: normalised control_character: 1" in result.stderr
    assert "note: normalised white_space: 2" in result.stderr
    assert "Invented" not in result.stderr
    again = _run("convert", tmp_path / "out.jsonl", "--to", "jsonl", "--out", tmp_path / "again.jsonl")
    assert again.stderr == ""


def test_nothing_is_written_over_without_force(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    out.write_text("mine")
    error = _error("convert", "sample:esconv", "--to", "jsonl", "--out", out)
    assert str(out) in str(error)
    assert "--force" in str(error)
    assert out.read_text() == "mine"
    assert _run("convert", "sample:esconv", "--to", "jsonl", "--out", out, "--force").exit_code == 0


def test_a_refused_corpus_leaves_no_file(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    assert isinstance(_error("convert", BROKEN / "strategy_sympathy.json", "--to", "jsonl", "--out", out), DataError)
    error = _error("convert", "sample:extes", "--to", "jsonl", "--out", out, "--strict")
    assert "without --strict" in str(error)
    assert not list(tmp_path.iterdir())


def test_skipped_records_are_said(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    result = _run("convert", BROKEN / "invalid_utf8.jsonl", "--to", "jsonl", "--out", out, "--skip-invalid")
    assert result.exit_code == 0
    assert "skipped 1 records" in result.stderr
    assert "2 dialogues written" in result.stdout


def test_strict_with_skip_invalid_keeps_records_without_warnings(tmp_path: Path) -> None:
    out = tmp_path / "a.jsonl"
    result = _run("convert", "sample:extes", "--to", "jsonl", "--out", out, "--strict", "--skip-invalid")
    assert result.exit_code == 0
    n_kept = len(out.read_text().splitlines())
    assert f"skipped {8 - n_kept} records" in result.stderr
    assert 4 <= n_kept < 8
    assert _report(out)["issues"].keys() <= _report("sample:extes")["issues"].keys()
    assert all(found["severity"] == "N" for found in _report(out)["issues"].values())
    assert _run("inspect", out, "--strict").exit_code == 0


def test_strict_with_skip_invalid_skips_a_repeated_dialogue(tmp_path: Path) -> None:
    records = json.loads((shipped_dir("data") / "esconv_sample.json").read_text())
    source, out = tmp_path / "twice.json", tmp_path / "a.jsonl"
    source.write_text(json.dumps([*records[:3], records[0]]))
    result = _run("convert", source, "--to", "jsonl", "--out", out, "--strict", "--skip-invalid")
    assert (result.exit_code, len(out.read_text().splitlines())) == (0, 3)
    assert "duplicate_dialogue" in result.stderr


# ---------------------------------------------------------------- split


def test_split_by_files_and_by_ratio(tmp_path: Path) -> None:
    assert _run("split", "sample:esconv", "--scheme", "files", "--out", tmp_path / "f").exit_code == 0
    facts = json.loads((tmp_path / "f" / "split.json").read_text())
    assert facts["counts"] == {"train": 10, "valid": 4, "test": 6}
    assert facts["seed"] is None
    report = _report(tmp_path / "f")
    assert facts["ids_digest"] == {split: found["ids_digest"] for split, found in report["splits"].items()}
    assert facts["outputs"] == {file["name"]: file["sha256"] for file in report["files"]["read"]}
    assert facts["inputs"] == {file["name"]: file["sha256"] for file in _report("sample:esconv")["files"]["read"]}

    options = ("--scheme", "ratio", "--ratios", "0.5,0.5,0", "--seed", 3, "--out", tmp_path / "r")
    assert _run("split", "sample:esconv", *options).exit_code == 0
    facts = json.loads((tmp_path / "r" / "split.json").read_text())
    assert (facts["seed"], facts["ratios"], facts["counts"]["test"]) == (3, [0.5, 0.5, 0.0], 0)
    assert facts["shared_situations"] == []
    assert sorted(path.name for path in (tmp_path / "r").iterdir()) == ["split.json", "train.jsonl", "valid.jsonl"]


def test_split_of_the_real_corpus(corpora: Path, tmp_path: Path) -> None:
    result = _run("split", real(corpora, "ppdpp"), "--scheme", "hub", "--out", tmp_path)
    assert result.stdout.startswith("train 910, valid 195, test 195 written to")
    facts = json.loads((tmp_path / "split.json").read_text())
    digests = {split: digest[:16] for split, digest in facts["ids_digest"].items()}
    assert digests == {"train": "8208b396bfa8e4e4", "valid": "b194e01eb3665841", "test": "b0540533b910d284"}
    assert [group["splits"] for group in facts["shared_situations"]] == [["train", "test"]] * 2


def test_split_refuses_what_does_not_fit(tmp_path: Path) -> None:
    assert "1,300" in str(_error("split", "sample:esconv", "--scheme", "hub", "--out", tmp_path))
    assert _run("split", "sample:esconv", "--scheme", "ratio", "--ratios", "a,b", "--out", tmp_path).exit_code == 2
    (tmp_path / "valid.jsonl").write_text("mine")
    error = _error("split", "sample:esconv", "--scheme", "files", "--out", tmp_path)
    assert "valid.jsonl" in str(error)
    assert "--force" in str(error)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["valid.jsonl"]
    assert _run("split", "sample:esconv", "--scheme", "files", "--out", tmp_path, "--force").exit_code == 0


# ---------------------------------------------------------------- weight


def test_inspecting_loads_no_heavy_library() -> None:
    code = (
        "import sys; from typer.testing import CliRunner; from esckit.cli.data import app\n"
        "assert CliRunner().invoke(app, ['inspect', 'sample:esconv']).exit_code == 0\n"
        "print(sorted({'torch', 'transformers', 'numpy', 'datasets', 'aiohttp'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_shows_what_stands_in_brackets() -> None:
    assert "hub:OWNER/NAME[@REVISION]" in _run("inspect", "--help").stdout
