"""Replies as files for other trainers: TRL itself reads them."""

from pathlib import Path

import datasets
from trl.data_utils import is_conversational
from typer.testing import CliRunner

from esckit.cli.common import Settings
from esckit.cli.data import app
from tests.data.test_own_data import MINE, OPTIONS


def test_trl_takes_the_replies_of_a_corpus(tmp_path: Path) -> None:
    mine, out = tmp_path / "mine.csv", tmp_path / "sft.jsonl"
    mine.write_text(MINE, encoding="utf-8")
    words = ["--taxonomy", "esconv", "--strategy", "tag", "--prompt", "supporter_rlff", *OPTIONS]
    done = CliRunner().invoke(
        app, ["convert", str(mine), "--to", "prompt-completion", "--out", str(out), *words], obj=Settings()
    )
    assert done.exit_code == 0, done.output
    rows = datasets.load_dataset("json", data_files=str(out), split="train", cache_dir=str(tmp_path / "cache"))
    assert is_conversational(rows[0])
    assert [message["role"] for message in rows[1]["prompt"]] == ["system", "user", "assistant", "user"]
    assert rows[1]["completion"] == [
        {"role": "assistant", "content": "<think>Strategy: Others.</think> <response>I see.</response>"}
    ]
