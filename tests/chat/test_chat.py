"""``esckit chat`` as a user types it: through a pipe, and on a terminal."""

import json
import os
import pty
import select
import signal
import subprocess
import sys
import time

import pytest

from esckit.chat.session import DIALOGUE, ENTRIES, opened
from esckit.chat.target import load_target
from esckit.cli.app import main
from esckit.cli.terminal import Chat, View, Wrapped, stepwise
from esckit.records import read_records
from esckit.types import Dialogue
from tests.shell import ROOT, esckit

SCRIPTED = ("chat", "chat/scripted")


def supporter(name):
    return ("--set", f"models.supporter={{scripted: 'tests.chat.chat_models:{name}', on_length: last_sentence}}")


def talked(tmp_path, typed, *words, code=0):
    out = tmp_path / "talk"
    done = esckit(*SCRIPTED, "--out", str(out), *words, typed=typed)
    assert done.returncode == code, done.stdout + done.stderr
    (dialogue,) = read_records(Dialogue, out / DIALOGUE)
    return done, dialogue


def entries(tmp_path):
    return [json.loads(line) for line in (tmp_path / "talk" / ENTRIES).read_text(encoding="utf-8").splitlines()]


def test_a_conversation_is_kept_as_a_dialogue(tmp_path):
    saved = tmp_path / "mine.jsonl"
    lines = ["I failed again.", "//why me", "/strategy Clarification", "So tired.", "/undo", "/why", "/critic"]
    done, dialogue = talked(tmp_path, "\n".join([*lines, f"/save {saved}", "/quit", "not said"]))
    assert [turn.speaker for turn in dialogue.turns] == ["seeker", "supporter"] * 2
    assert [turn.text for turn in dialogue.turns[::2]] == ["I failed again.", "/why me"]
    assert (dialogue.source.corpus, dialogue.taxonomy, dialogue.id) == ("chat", "aflow", "talk")
    assert dialogue.turns[1].strategy == "Empathetic Statements"
    assert "reasoning: " in done.stdout
    assert "critic rlff7/" in done.stdout
    assert "no therapist" in done.stderr
    assert list(read_records(Dialogue, saved)) == [dialogue]
    inspected = json.loads(esckit("data", "inspect", str(saved), "--json").stdout)
    assert inspected["format"] == "jsonl"
    again = esckit(*SCRIPTED, "--out", str(tmp_path / "other"), typed=f"Hello.\n/save {saved}\n")
    assert "is there already" in again.stderr
    assert list(read_records(Dialogue, saved)) == [dialogue]


def test_the_notice_comes_before_the_reply(tmp_path):
    done, _ = talked(tmp_path, "I want to die\n")
    lines = done.stdout.splitlines()
    assert any("988" in line for line in lines[:-1])
    assert lines[-1] == entries(tmp_path)[0]["supporter"]["response"]
    assert entries(tmp_path)[0]["notice"] == ["en/suicide"]


def test_a_failure_keeps_the_conversation(tmp_path):
    done, dialogue = talked(tmp_path, "One.\nTwo.\nThree again.\n", *supporter("failing"), code=3)
    assert [turn.text for turn in dialogue.turns] == ["One.", "Hello.", "Two.", "Three again.", "Hello."]
    assert "the supporter failed (the backend is tired)" in done.stderr
    assert [entry["failure"] and entry["failure"]["kind"] for entry in entries(tmp_path)] == [None, "backend", None]


def test_a_conversation_goes_on(tmp_path):
    talked(tmp_path, "One.\n")
    done = esckit("chat", "--resume", str(tmp_path / "talk"), typed="Two.\n")
    assert done.returncode == 0, done.stderr
    straight = esckit(*SCRIPTED, "--out", str(tmp_path / "x" / "talk"), typed="One.\nTwo.\n")
    assert straight.stdout.splitlines()[-1] == done.stdout.splitlines()[-1]
    assert (tmp_path / "talk" / DIALOGUE).read_bytes() == (tmp_path / "x" / "talk" / DIALOGUE).read_bytes()


def test_what_models_write_is_only_text(tmp_path):
    done, _ = talked(tmp_path, "\udcff [link=x]hi[/link]\x07\n", *supporter("hostile"))
    assert "\x1b" not in done.stdout + done.stderr
    assert "\x07" not in done.stdout + done.stderr
    assert "\\u001b[31m[bold]red[/bold] \\u202e" in done.stdout
    assert "[link=x]hi[/link]" in done.stdout


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("chat",), "nobody to talk to"),
        (("chat", "nonesuch"), "neither a run folder nor a recipe"),
        (("chat", "runs/nope"), "'esckit runs list' shows those that are there"),
        (("chat", "chat/scripted", "--locale", "xx"), "unknown locale 'xx'"),
        (("chat", "chat/scripted", "--resume", "x"), "--resume with other settings"),
        (("chat", "--resume", "nowhere"), "'esckit runs list' shows those that are there"),
        (("serve", "chat/scripted", "--host", "0.0.0.0"), "without a token"),
        (("serve", "chat/scripted", "--host", "192.0.2.1", "--token-env", "A_TOKEN"), "an address of this machine"),
        (("serve", "chat/scripted", "--token-env", "A_SHORT_TOKEN"), "can be guessed"),
    ],
)
def test_wrong_words_are_refused(words, message, monkeypatch, capsys):
    monkeypatch.setenv("A_TOKEN", "a" * 16)
    monkeypatch.setenv("A_SHORT_TOKEN", "a" * 15)
    monkeypatch.setattr(sys, "argv", ["esckit", *words])
    with pytest.raises(SystemExit) as left:
        main()
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_wrong_commands_are_answered_and_the_chat_goes_on(tmp_path):
    file = tmp_path / "file"
    file.touch()
    typed = (
        f"/undo\n/bogus\n/strategy Nonsense\n/save\n/critic\n\nHello.\n/undo x\n/save {file}\n/save {file}/x\nAnd?\n"
    )
    done, dialogue = talked(tmp_path, typed)
    for message in ("nothing was said yet", "no command /bogus", "no strategy 'Nonsense'", "/save without a file"):
        assert message in done.stderr
    assert "is there already" in done.stderr
    assert "/undo with 'x'" in done.stderr
    assert "a file is where a folder is needed" in done.stderr
    assert len(dialogue.turns) == 4


def test_a_chat_without_words_leaves_no_folder(tmp_path):
    done = esckit(*SCRIPTED, "--out", str(tmp_path / "talk"), typed="/strategy\n")
    assert (done.returncode, list(tmp_path.iterdir())) == (0, []), done.stderr
    talked(tmp_path, "One.\n/undo\nTwo.\n")
    esckit("chat", "--resume", str(tmp_path / "talk"), typed="")
    assert len(entries(tmp_path)) == 1


class Interrupting:
    """A screen for words of a crisis during whose work the user presses Ctrl-C."""

    def notice(self, text):
        signal.raise_signal(signal.SIGINT)


def test_ctrl_c_before_a_reply_begins_stops_it(tmp_path, capsys):
    recipe = load_target("chat/scripted", {}, ()).recipe
    with stepwise(opened(recipe, tmp_path / "talk", Interrupting())) as (steps, session):
        chat = Chat(session, steps, View(is_terminal=True))
        assert chat.take("I feel low.")
        assert [entry["failure"]["kind"] for entry in entries(tmp_path)] == ["stopped"]
        assert list(read_records(Dialogue, tmp_path / "talk" / DIALOGUE)) == [session.talk.dialogue()]
        assert chat.take("/again")
        signal.raise_signal(signal.SIGINT)  # heard at the prompt
        with pytest.raises(KeyboardInterrupt):
            steps.read(lambda: "never read")
        signal.raise_signal(signal.SIGINT)  # while it leaves
    assert "The reply was stopped." in capsys.readouterr().out
    assert [entry["failure"] for entry in entries(tmp_path)] == [None]


def test_a_dry_run_names_who_takes_part():
    done = esckit(*SCRIPTED, "--dry-run", "--json")
    assert json.loads(done.stdout)["supporter"] == "scripted supporter"


def test_words_are_wrapped_as_they_come():
    written: list[str] = []
    wrapped = Wrapped(written.append, 20)
    for piece in ("That so", "unds really ha", "rd. 很难过很难过很难过很难过", "\n\nI am ", "x" * 45, " here"):
        wrapped.add(piece)
    wrapped.end()
    lines = "".join(written).split("\n")
    assert lines[0] == "That sounds really"
    assert "".join(lines).replace(" ", "") == f"Thatsoundsreallyhard.{'很难过' * 4}Iam{'x' * 45}here"
    assert max(sum(2 if ord(char) > 0x2E80 else 1 for char in line) for line in lines) <= 20


class Screen:
    """A terminal with a chat on it."""

    def __init__(self, *words, width=40, **variables):
        ours, theirs = pty.openpty()
        environment = {**os.environ, "COLUMNS": str(width), "TERM": "dumb", **variables}
        self.process = subprocess.Popen(
            [sys.executable, "-m", "esckit", *words],
            cwd=ROOT, env=environment, stdin=theirs, stdout=theirs, stderr=theirs, start_new_session=True,
        )  # fmt: skip
        os.close(theirs)
        self._fd, self.text, self._at = ours, "", 0

    def until(self, words):
        """Wait until something is shown, and return all that was shown from where the last call ended."""
        begin, deadline = self._at, time.monotonic() + 60
        while words not in self.text[begin:]:
            ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.text
            self.text += os.read(self._fd, 65536).decode()
        self._at = self.text.index(words, begin) + len(words)
        return self.text[begin : self._at]

    def type(self, words):
        os.write(self._fd, words.encode())

    def end(self):
        code = self.process.wait(timeout=60)
        os.close(self._fd)
        return code


def test_ctrl_c_stops_a_reply_and_keeps_the_chat(tmp_path):
    screen = Screen(
        *SCRIPTED, "--out", str(tmp_path / "talk"), *supporter("slow"), "--set", "prompts.supporter=supporter_ppdpp"
    )
    begun = screen.until("you> ")
    assert max(map(len, begun.replace("\r", "").split("\n"))) <= 40
    assert "\x1b" not in begun
    screen.type("I feel low.\n")
    screen.until("word3")
    screen.process.send_signal(signal.SIGINT)
    assert "The reply was stopped." in screen.until("you> ")
    screen.process.send_signal(signal.SIGINT)
    screen.until("leaves.")
    screen.type("/again\n")
    screen.until("word15")
    screen.until("you> ")
    screen.type("\x04")
    assert screen.end() == 0
    (entry,) = entries(tmp_path)
    assert (entry["draw"], entry["failure"]) == (1, None)


def test_a_terminal_that_is_told_to_end_keeps_the_chat(tmp_path):
    screen = Screen(
        *SCRIPTED, "--out", str(tmp_path / "talk"), *supporter("slow"), "--set", "prompts.supporter=supporter_ppdpp"
    )
    screen.until("you> ")
    screen.type("I feel low.\n")
    screen.until("word3")
    screen.process.send_signal(signal.SIGTERM)
    screen.until("Interrupted.")
    assert screen.end() == 130
    (entry,) = entries(tmp_path)
    assert (entry["seeker"], entry["failure"]["kind"]) == ("I feel low.", "stopped")


def test_a_reply_that_turns_out_another_is_shown_again(tmp_path):
    screen = Screen(
        *SCRIPTED, "--out", str(tmp_path / "talk"), *supporter("fickle"), "--set", "prompts.supporter=supporter_ppdpp"
    )
    screen.until("you> ")
    screen.type("Will I be well?\n")
    shown = " ".join(screen.until("you> ").split())
    assert "well soon. The reply is another one than what began: No. strategy:" in shown
    screen.type("\x04")
    assert screen.end() == 0
