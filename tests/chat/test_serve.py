"""``esckit serve`` as clients see it: the openai package, plain HTTP, and a browser where there is one."""

import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import openai
import pytest

from esckit.chat.server import bound_socket, is_loopback_host
from esckit.config.data import DataConfig
from esckit.data.selection import select_dialogues
from esckit.errors import ConfigError
from tests.chat.chat_models import WORDS
from tests.report.browser import Browser, find_chromium
from tests.shell import ROOT, started

HELLO = [{"role": "user", "content": "I failed my exam."}]
TOKEN = "a-token-of-the-tests"
CHROMIUM, NODE = find_chromium(), shutil.which("node")


class Server:
    """A server of the tests, and a client of it."""

    def __init__(self, process, address, log):
        self.process, self.address, self.log = process, address, log
        self.client = openai.OpenAI(base_url=f"{address}/v1", api_key=TOKEN, max_retries=0, timeout=60)

    @property
    def model(self):
        return self.client.models.list().data[0].id

    def ask(self, messages=HELLO, **more):
        return self.client.chat.completions.create(model="chat/scripted", messages=messages, **more)

    def get(self, path, body=None, **headers):
        data = None if body is None else body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {"Content-Type": "application/json", **{k.replace("_", "-"): v for k, v in headers.items()}}
        request = urllib.request.Request(self.address + path, data, headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read().decode(), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode(), error.headers


@contextmanager
def running(folder, *words, supporter=None):
    log = folder / "log"
    changes = ()
    if supporter is not None:
        binding = f"models.supporter={{scripted: 'tests.chat.chat_models:{supporter}', on_length: last_sentence}}"
        changes = ("--set", binding, "--set", "prompts.supporter=supporter_ppdpp")
    process = started("serve", "chat/scripted", "--port", "0", *words, *changes, log=log)
    try:
        deadline = time.monotonic() + 60
        while "page " not in (log.read_text(encoding="utf-8") if log.exists() else ""):
            assert process.is_alive(), log.read_text(encoding="utf-8")
            assert time.monotonic() < deadline
            time.sleep(0.05)
        address = log.read_text(encoding="utf-8").split()[1].rstrip("/")
        yield Server(process, address, log)
    finally:
        process.terminate()
        process.join(30)
    assert process.exitcode == 0, log.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with running(tmp_path_factory.mktemp("serve")) as found:
        yield found


def refused(call, **more):
    with pytest.raises(openai.APIStatusError) as raised:
        call(**more)
    error = raised.value
    assert set(error.body) == {"message", "type", "param", "code"}
    return error.status_code, error.code or error.body["type"]


def test_the_same_request_gets_the_same_reply_streamed_or_not(server):
    assert server.model == "chat/scripted"
    whole = server.ask()
    chunks = list(server.ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == whole.choices[0].message.content
    assert text
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage
    assert server.ask(seed=5).choices[0].message.content != text
    assert whole.esckit["strategy"] == "Empathetic Statements"
    assert whole.esckit["reasoning"]
    assert sum(whole.esckit["probabilities"].values()) == pytest.approx(1.0)


def test_a_conversation_with_a_strategy_and_what_is_ignored(server):
    said = [{"role": "system", "content": "Be a pirate."}, *HELLO, {"role": "assistant", "content": "Oh."}]
    words = [{"type": "text", "text": "I feel "}, {"type": "text", "text": "low."}]
    named = {"esckit": {"strategy": "clarification"}}
    answer = server.ask([*said, {"role": "user", "content": words}], temperature=0.2, max_tokens=9, extra_body=named)
    assert answer.esckit["ignored"] == ["max_tokens", "temperature", "system messages"]
    assert (answer.esckit["strategy"], answer.esckit["strategy_is_forced"]) == ("Clarification", True)


def test_the_notice_stands_beside_the_reply(server, tmp_path):
    crisis = [{"role": "user", "content": "I want to die"}]
    notice = server.ask(crisis).esckit["notice"]
    assert notice["marks"] == ["en/suicide"]
    assert any("988" in resource["contact"] for resource in notice["resources"])
    first = next(iter(server.ask(crisis, stream=True)))
    assert first.esckit["notice"] == notice
    assert "988" not in server.ask(crisis).choices[0].message.content
    with running(tmp_path, "--crisis-in-reply", "--locale", "de") as other:
        content = other.ask(crisis).choices[0].message.content
        assert content.startswith("Was Sie geschrieben haben")
        _, reply = content.rsplit("\n\n", 1)
        kept = [*crisis, {"role": "assistant", "content": content}, *HELLO]
        plain = [*crisis, {"role": "assistant", "content": reply}, *HELLO]
        assert other.ask(kept).choices == other.ask(plain).choices


@pytest.mark.parametrize(
    ("wrong", "expected"),
    [
        ({"model": "gpt"}, (404, "model_not_found")),
        ({"n": 2}, (400, "unsupported_parameter")),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, (400, "unsupported_parameter")),
        ({"messages": []}, (400, "invalid_request_error")),
        ({"messages": [{"role": "assistant", "content": "x"}]}, (400, "invalid_request_error")),
        ({"messages": [{"role": "user", "content": "  "}]}, (400, "invalid_request_error")),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]}, (400, "invalid_request_error")),
        ({"extra_body": {"esckit": {"strategy": "Nonsense"}}}, (400, "unknown_strategy")),
        ({"extra_body": {"esckit": {"stratgy": "x"}}}, (400, "invalid_request_error")),
        ({"messages": [{"role": "user", "content": "x" * 1_100_000}]}, (413, "invalid_request_error")),
    ],
)
def test_wrong_requests_are_refused_in_the_apis_form(server, wrong, expected):
    usual = {"model": "chat/scripted", "messages": HELLO}
    assert refused(server.client.chat.completions.create, **usual | wrong) == expected


def test_foreign_pages_reach_nothing(server):
    assert server.get("/v1/models", Host="evil.example")[0] == 403
    assert server.get("/", Host="evil.example:80")[0] == 403
    assert server.get("/v1/models", Origin="https://evil.example")[0] == 403
    assert server.get("/v1/models", Origin="null")[0] == 403
    body = {"model": "chat/scripted", "messages": HELLO}
    assert server.get("/v1/chat/completions", body, Content_Type="text/plain")[0] == 415
    status, _, headers = server.get("/v1/models")
    assert (status, "Access-Control-Allow-Origin" in headers) == (200, False)
    assert server.get("/v1/chat/completions", b"{")[0] == 400
    assert server.get("/nothing")[0] == 404


def test_the_page_allows_nothing_but_itself_and_its_server(server):
    status, text, headers = server.get("/")
    policy = headers["Content-Security-Policy"]
    assert status == 200
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "connect-src 'self'" in policy
    assert "unsafe" not in policy
    assert "http://" not in text.replace("http://127.0.0.1", "")
    for needed in ('lang="en"', "width=device-width", 'role="log" aria-live="polite"', 'for="words"', "no therapist"):
        assert needed in text
    assert " style=" not in text
    assert " onclick=" not in text


def test_a_page_saves_a_dialogue_that_commands_read(server, tmp_path):
    messages = [*HELLO, {"role": "assistant", "content": "Oh."}, {"role": "user", "content": "Yes."}]
    status, text, _ = server.get("/dialogue", {"messages": messages, "strategies": ["Clarification"]})
    assert status == 200
    (tmp_path / "dialogue.jsonl").write_text(text, encoding="utf-8")
    (dialogue,) = select_dialogues(DataConfig(dataset="auto", path=str(tmp_path / "dialogue.jsonl"))).dialogues
    assert [turn.text for turn in dialogue.turns] == ["I failed my exam.", "Oh.", "Yes."]
    assert (dialogue.turns[1].source_strategy or dialogue.turns[1].strategy) == "Clarification"
    assert server.get("/dialogue", {"messages": [{"role": "assistant", "content": "x"}]})[0] == 400


def test_a_token_is_asked_for_and_never_shown(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_TOKEN", TOKEN)
    with running(tmp_path, "--token-env", "MY_TOKEN", "--host", "0.0.0.0") as server:
        server.address = server.address.replace("0.0.0.0", "127.0.0.1")
        server.client = server.client.with_options(base_url=f"{server.address}/v1")
        assert server.ask().choices
        wrong = server.client.with_options(api_key=TOKEN + "x")
        assert refused(wrong.models.list) == (401, "invalid_api_key")
        assert server.get("/dialogue", {"messages": HELLO})[0] == 401
        assert server.get("/")[0] == server.get("/health")[0] == 200
        assert TOKEN not in server.get("/")[1]
        assert TOKEN not in server.log.read_text(encoding="utf-8")


def test_a_full_queue_refuses_and_who_leaves_frees_a_place(tmp_path):
    with running(tmp_path, "--at-once", "1", "--queue", "0", supporter="slow") as server:
        stream = server.ask(stream=True)
        assert next(iter(stream)).choices[0].delta.role == "assistant"
        with pytest.raises(openai.RateLimitError) as raised:
            server.ask()
        assert raised.value.code == "queue_full"
        assert raised.value.response.headers["Retry-After"]
        stream.close()
        deadline = time.monotonic() + 20
        while json.loads(server.get("/health")[1])["in_flight"]:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        assert server.ask().choices[0].message.content == " ".join(WORDS)


def test_waiting_requests_are_answered_in_turn(tmp_path):
    with running(tmp_path, "--at-once", "1", "--queue", "2", supporter="slow") as server:
        found = []
        threads = [threading.Thread(target=lambda: found.append(server.ask().choices[0])) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [choice.message.content for choice in found] == [" ".join(WORDS)] * 3


def test_a_reply_in_flight_ends_before_the_server(tmp_path):
    with running(tmp_path, supporter="slow") as server:
        stream = server.ask(stream=True)
        words = [next(iter(stream)).choices[0].delta.content]
        os.kill(server.process.pid, signal.SIGTERM)
        words += [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(words) == " ".join(WORDS)
        server.process.join(30)
        assert server.process.exitcode == 0


def test_failures_come_in_the_apis_form(tmp_path):
    said = [*HELLO, {"role": "assistant", "content": "Hello."}, {"role": "user", "content": "And more."}]
    with running(tmp_path, supporter="failing") as server:
        assert refused(server.ask, messages=said) == (500, "backend")
        with pytest.raises(openai.APIError, match="the backend is tired"):
            list(server.ask(said, stream=True))
        assert server.ask().choices[0].message.content == "Hello."


def test_a_reply_that_turns_out_another_ends_as_an_error(tmp_path):
    with running(tmp_path, supporter="fickle") as server:
        with pytest.raises(openai.APIError, match="another one than what was sent"):
            list(server.ask(stream=True))
        assert server.ask().choices[0].message.content == "No."


def test_a_taken_port_names_a_free_one():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(ConfigError, match="is taken") as raised:
            bound_socket("127.0.0.1", taken.getsockname()[1])
    assert "--port " in raised.value.hint


@pytest.mark.parametrize(
    ("host", "is_ours"),
    [("localhost", True), ("LOCALHOST.", True), ("127.0.0.2", True), ("::1", True), ("[::1]", True),
     ("0.0.0.0", False), ("localhost.evil.example", False), ("", False), ("127.0.0.1.evil.example", False)],
)  # fmt: skip
def test_only_this_machines_names_are_loopback(host, is_ours):
    assert is_loopback_host(host) is is_ours


@pytest.mark.skipif(NODE is None, reason="no node found")
def test_the_pages_script_talks_to_the_server(server):
    words = [NODE, str(ROOT / "tests" / "chat" / "page_in_node.mjs"), server.address]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["seen"].index("988") < shown["seen"].index(shown["spoken"][1]["content"])
    assert [turn["role"] for turn in shown["spoken"]] == ["user", "assistant"] * 2
    assert shown["spoken"][3]["strategy"] == "Clarification"
    assert shown["saved"].startswith("Saved")
    assert (shown["left"], shown["back"], shown["boxes"]) == (2, "And <b>now</b>?", 3)
    assert shown["leads"] == [True, False]
    assert shown["draft"] == "I want to die\nMy draft"
    answered, saved = shown["gone"]
    assert answered.startswith("No reply: The server does not answer; is esckit serve still running? What you said")
    assert saved == "Not saved: The server does not answer; is esckit serve still running?"


@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium found; set ESCKIT_CHROMIUM")
def test_the_page_works_by_keyboard_on_a_phone(server, tmp_path):
    with Browser(CHROMIUM, tmp_path / "profile") as browser:
        browser.resize(360, 640, mobile=True)
        browser.call("Page.navigate", url=f"{server.address}/")
        deadline = time.monotonic() + 20
        while browser.run("document.activeElement && document.activeElement.id") != "words":
            assert time.monotonic() < deadline
            time.sleep(0.1)
        browser.call("Input.insertText", text="I want to die")
        browser.key("Enter")
        while not browser.run("document.querySelector('.supporter details') !== null"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert "988" in browser.run("document.querySelector('.notice').innerText")
        assert browser.run("document.documentElement.scrollWidth") <= 360
        top = "document.querySelector('{}').getBoundingClientRect().top"
        is_covered = f"{top.format('.supporter')} >= {top.format('form')}"
        assert browser.run(is_covered)
        assert browser.run("document.querySelector('.notice').getBoundingClientRect().top") >= 0
        browser.run("document.querySelector('#below').click()")
        while browser.run("!document.querySelector('#below').hidden"):
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert not browser.run(is_covered)
        assert browser.run("document.querySelectorAll('.supporter .words')[0].innerText").strip()
        assert all(url.startswith((server.address, "data:")) for url in browser.requests())
        assert browser.complaints() == []
