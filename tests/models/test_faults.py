"""What servers say in place of an answer, and secrets in it however they are written down."""

import base64
import json
import time
from typing import Any
from urllib.parse import quote

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esckit.models.faults import Redactor, fault_in, fault_of

GOOD = {"choices": [{"message": {"content": "hi"}, "finish_reason": "stop"}]}


@pytest.mark.parametrize(
    ("body", "status", "kind", "words"),
    [
        ({"error": {"message": "rate limited upstream, retry shortly", "code": 429}}, 429, "rate_limit", "upstream"),
        ({"error": {"message": "Provider returned error", "code": 502}}, 502, "server_error", "Provider"),
        ({"error": {"message": "no", "code": "502"}}, 502, "server_error", "no"),
        ({"error": "model is overloaded"}, 503, "server_error", "model is overloaded"),
        ({"error": "Too Many Requests"}, 429, "rate_limit", "Too Many"),
        ({"detail": "Internal Server Error"}, 503, "server_error", "Internal"),
        (
            {"detail": [{"loc": ["body", "top_k"], "msg": "extra", "type": "extra_forbidden"}]},
            400,
            "bad_request",
            "top_k",
        ),
        ({"message": "Invalid API key", "code": 401}, 401, "no_access", "Invalid API key"),
        ({"message": "oops", "code": "SomethingElse"}, 500, "server_error", "oops (SomethingElse)"),
        ({"object": "error", "message": "System role not supported", "code": 400}, 400, "bad_request", "System role"),
        ({"errors": [{"message": "request timed out"}]}, 503, "server_error", "timed out"),
        ({"base_resp": {"status_code": 1002, "status_msg": "rate limit"}}, 429, "rate_limit", "rate limit"),
        ({"error": {"message": "Insufficient Balance", "type": "unknown"}}, 429, "quota", "Insufficient"),
        ({"error": {"message": "The model `x` does not exist"}}, 404, "not_found", "does not exist"),
        ([{"error": {"code": 429, "message": "out", "status": "RESOURCE_EXHAUSTED"}}], 429, "rate_limit", "out"),
        ({"error": {"status": "RESOURCE_EXHAUSTED", "message": "later"}}, 429, "rate_limit", "later"),
        ({"error": {"status": "INVALID_ARGUMENT", "message": "no"}}, 400, "bad_request", "no"),
        ({"error": {"code": 429.0, "message": "slow"}}, 429, "rate_limit", "slow"),
        ({"errorCode": 429, "errorMessage": "slow"}, 429, "rate_limit", "slow"),
        ({"fault": {"faultstring": "Rate limit quota violation"}}, 429, "rate_limit", "violation"),
        (
            {"detail": [{"loc": ["body", "top_k"], "msg": "extra fields not permitted", "type": "value_error.extra"}]},
            400,
            "bad_request",
            "top_k",
        ),
        ({"choices": [{"error": {"message": "cut", "code": 504}, "message": {}}]}, 504, "timeout", "cut"),
        ({"choices": [{"message": {"content": "so"}, "finish_reason": "error"}]}, 502, "server_error", "broke off"),
        ({"error": {"message": "maximum context length is 4096 tokens", "code": 400}}, 400, "too_long", "4096"),
    ],
)
def test_an_error_in_a_body_stands_for_its_status(body, status: int, kind: str, words: str) -> None:
    fault = fault_in(json.dumps(body))
    assert fault is not None
    assert (fault.status, fault.kind) == (status, kind)
    assert words in fault.reason


@pytest.mark.parametrize(
    ("body", "may_pass", "words"),
    [
        ("", True, "nothing"),
        ("null", True, "no JSON object: null"),
        ("[1, 2]", True, "[1, 2]"),
        ('{"choices": [{"message": {"content": "half', True, "half"),
        ('{"choices": []}', True, "no choices"),
        ('{"choices": null, "error": null}', True, "no choices"),
        ('{"object": "list", "data": []}', True, "no choices"),
        ("<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>", True, "502 Bad Gateway nginx"),
        ("<!doctype html><script>x()</script><p>Log in</p>", True, "Log in"),
        ('data: {"choices": [{"delta": {"content": "hi"}}]}\n\ndata: [DONE]\n', False, "stream of events"),
        ("[" * 100_000, True, "[[["),
    ],
)
def test_a_body_that_is_nothing_is_unreadable(body: str, may_pass: bool, words: str) -> None:
    fault = fault_in(body)
    assert fault is not None
    assert (fault.kind, fault.may_pass) == ("unreadable", may_pass)
    assert words in fault.reason


@pytest.mark.parametrize(
    ("body", "status"),
    [("Too Many Requests", 429), ('"rate limit exceeded"', 429), ("Internal Server Error", 503), ("Unauthorized", 401)],
)
def test_a_plain_text_stands_for_what_it_says(body: str, status: int) -> None:
    fault = fault_in(body)
    assert fault is not None
    assert fault.status == status


def test_an_error_in_a_stream_of_events_is_read() -> None:
    fault = fault_in(': waiting\n\ndata: {"error": {"message": "slow down", "code": 429}}\n\n')
    assert fault is not None
    assert (fault.status, fault.reason) == (429, "slow down")


@pytest.mark.parametrize(
    "more",
    [{}, {"error": None}, {"error": {"code": 0, "message": ""}}, {"base_resp": {"status_code": 0}}, {"code": 200}],
)
def test_an_answer_is_no_fault(more) -> None:
    assert fault_in(json.dumps(GOOD | more)) is None


@pytest.mark.parametrize(
    ("status", "body", "kind", "may_pass"),
    [
        (429, '{"error": {"message": "slow", "code": "rate_limit_exceeded"}}', "rate_limit", True),
        (429, '{"error": {"message": "You exceeded your quota", "code": "insufficient_quota"}}', "quota", False),
        (402, "pay", "quota", False),
        (400, '{"error": {"code": "content_filter", "message": "policy"}}', "content_filter", False),
        (400, '{"error": {"code": "context_length_exceeded", "message": "too much"}}', "too_long", False),
        (403, "no", "no_access", False),
        (404, "", "not_found", False),
        (408, "", "timeout", True),
        (504, "<html>504 Gateway Time-out</html>", "timeout", True),
        (500, "boom", "server_error", True),
        (500, '{"error": {"message": "Jinja Exception: System role not supported"}}', "bad_request", False),
        (422, "odd", "bad_request", False),
        (529, "overloaded", "server_error", True),
    ],
)
def test_every_status_has_its_kind(status: int, body: str, kind: str, may_pass: bool) -> None:
    fault = fault_of(status, body, "Phrase")
    assert (fault.kind, fault.may_pass) == (kind, may_pass)
    assert fault.reason


@pytest.mark.parametrize("depth", [100, 400, 900, 960, 990, 5000])
@pytest.mark.parametrize(
    ("opening", "closing"), [('{"error":', "}"), ("[", "]"), ('{"detail":[', "]}"), ('{"a":', "}")]
)
def test_deep_nesting_ends_no_run(depth: int, opening: str, closing: str) -> None:
    body = opening * depth + "1" + closing * depth
    assert fault_in(body) is not None
    assert fault_of(500, body).kind == "server_error"


def test_what_a_server_says_can_be_written_to_a_file() -> None:
    fault = fault_of(500, '{"error": {"message": "half \\ud83d a\\u2028pair\\n"}}')
    assert fault.reason.encode() == b"half ? a pair"


def test_the_field_that_an_error_names_is_kept() -> None:
    assert fault_of(400, '{"error": {"message": "m", "param": "seed"}}').param == "seed"
    assert fault_of(422, '{"detail": [{"loc": ["body", "seed"], "msg": "m"}]}').param == "seed"


KEY = "SENTINELKEY/xyz+Q=&<a"
redacted = Redactor(KEY)


def in_json(text: str, form: str) -> str:
    return "".join(form.format(ord(char)) for char in text)


@pytest.mark.parametrize(
    "written",
    [
        KEY,
        KEY.replace("/", "\\/"),
        KEY.replace("+", "\\u002b").replace("=", "\\u003D"),
        in_json(KEY, "\\u{:04x}"),
        in_json(KEY, "\\x{:02X}"),
        json.dumps(json.dumps(KEY.replace("/", "\\/"))).strip('\\"'),
        quote(KEY, safe=""),
        quote(quote(KEY, safe=""), safe=""),
        KEY.replace("&", "&amp;").replace("<", "&lt;").replace("+", "&plus;"),
        in_json(KEY, "&#{};"),
        in_json(KEY, "&#x{:X};"),
        KEY.encode().hex(),
        KEY.encode().hex().upper(),
    ],
)
def test_a_secret_is_blotted_out_in_every_encoding(written: str) -> None:
    assert redacted(f"before {written} behind") == "before [key] behind"


@pytest.mark.parametrize("before", ["", "a", "ab", "Bearer "])
@pytest.mark.parametrize("behind", ["", "x", "xy", "\n"])
@pytest.mark.parametrize("encode", [base64.b64encode, base64.urlsafe_b64encode])
def test_a_secret_inside_base64_is_blotted_out(before, behind, encode) -> None:
    encoded = encode(f"{before}{KEY}{behind}".encode()).decode()
    for written in (encoded, quote(encoded, safe=""), encoded.replace("/", "\\/")):
        left = redacted(written).replace("[key]", "")
        assert "[key]" in redacted(written)
        assert len(left) <= len(before) * 4 / 3 + len(behind) * 4 / 3 + 12


def test_dummy_keys_are_no_secrets() -> None:
    assert Redactor("EMPTY")("EMPTY") == "EMPTY"
    assert Redactor("")("anything") == "anything"


def test_its_name_does_not_show_the_secret() -> None:
    assert repr(redacted) == "Redactor()"


FORMS = (
    lambda char: char,
    lambda char: f"\\{char}" if char in "/-" else char,
    lambda char: f"\\u{ord(char):04X}",
    lambda char: f"\\\\u{ord(char):04x}",
    lambda char: f"\\u{{{ord(char):x}}}",
    lambda char: f"\\x{ord(char):02x}",
    lambda char: f"%{ord(char):02X}",
    lambda char: f"%25{ord(char):02x}",
    lambda char: f"&#{ord(char)};",
    lambda char: f"&amp;#x{ord(char):x};",
)


ORDINARY = "sk-Sentinel/0123_x9u00Q="
ordinary = Redactor(ORDINARY)


@given(st.lists(st.sampled_from(FORMS), min_size=len(ORDINARY), max_size=len(ORDINARY)), st.text(max_size=20))
@example([FORMS[0]] * len(ORDINARY), "\\")
def test_a_key_whose_characters_are_all_written_otherwise(forms: list[Any], around: str) -> None:
    written = "".join(form(char) for form, char in zip(forms, ORDINARY, strict=True))
    assert "[key]" in ordinary(f"{around} {written} {around}")


def test_ordinary_answers_are_left_as_they_are() -> None:
    for text in ('{"content": "sk-\\nSentinel is 100 % R&B"}', "sk-Sentinel/0123_x9u00", "\\" * 100_000):
        assert ordinary(text) == text


@pytest.mark.parametrize("piece", ["\\", "&amp;", "%25", "SENTINELKEY", "a"])
def test_redaction_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    redacted(piece * (400_000 // len(piece)))
    assert time.process_time() - began < 3.0
