"""A secret is found however a server writes it down."""

import base64
import json
import time
from urllib.parse import quote

import pytest

from esckit.models.faults import Redactor

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


@pytest.mark.parametrize("piece", ["\\", "&amp;", "%25", "SENTINELKEY", "a"])
def test_redaction_takes_linear_time(piece: str) -> None:
    began = time.process_time()
    redacted(piece * (400_000 // len(piece)))
    assert time.process_time() - began < 3.0
