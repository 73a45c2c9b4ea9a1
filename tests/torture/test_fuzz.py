"""Whatever the bytes are, a reader returns or raises an error of ours; soon, and in little memory."""

import random
import resource

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.models.events import EventReader
from tests.torture.readers import READERS, TOKENS, Reader

LARGEST = 4096


def changed(seed: int, reader: Reader) -> bytes:
    """Return good content with up to eight pieces cut, doubled, replaced or put in, or pieces alone."""
    draw = random.Random(seed)
    content = draw.choice([*reader.seeds, b""])
    for _ in range(draw.randint(1, 8)):
        at = draw.randint(0, len(content))
        end = min(len(content), at + draw.choice([0, 0, 1, 2, 8, 64, 1024]))
        piece = draw.choice([draw.choice(TOKENS), draw.randbytes(draw.randint(0, 4)), content[at:end] * 2, b""])
        content = content[:at] + piece * draw.choice([1, 1, 1, 2, 20]) + content[end:]
    return content[: 4 * LARGEST]


@pytest.mark.parametrize("name", READERS)
def test_a_changed_file_is_a_value_or_an_error_of_ours(name: str) -> None:
    @settings(max_examples=40)
    @given(st.binary(max_size=60) | st.integers(0, 2**32).map(lambda seed: changed(seed, READERS[name])))
    def check(content: bytes) -> None:
        READERS[name].read(content)

    check()


LIKE_RECIPES = {"overrides", "prompt", "mapping", "script"}
"""Readers of YAML, which is slow; they read it as ``recipe`` does."""


def hard(n: int) -> dict[str, bytes]:
    """Return content that costs much where a reader counts badly: nesting, huge numbers, long lines, repeated marks.

    Args:
        n: How long it is, from 1 (tens of kilobytes) to 20 (up to 1 MB).
    """
    aliases = b"".join(b"%c: &%c [*%c,*%c,*%c]\n" % (c + 1, c + 1, c, c, c) for c in range(97, 110))
    return {
        **{f"{depth} lists": b"[" * depth + b"]" * depth for depth in (100, 900, 960, 990, 5000 * n)},
        **{f"{depth} objects": b'{"a":' * depth + b"1" + b"}" * depth for depth in (100, 900, 960, 990, 5000 * n)},
        "deep under a key": b'{"comfort": ' + b"[" * 985 + b"]" * 985 + b', "overall": 1}',
        "yaml indents": b"".join(b" " * depth + b"a:\n" for depth in range(500)),
        "yaml dashes": b"- " * 5000 + b"a",
        "aliases": b"a: &a [x,x,x,x,x,x,x,x,x]\n" + aliases,
        "digits": b"9" * 10_000 * n,
        "digits in JSON": b'{"a": ' + b"9" * 10_000 * n + b"}",
        "a huge exponent": b'{"reward": 1e999999999, "seed": 1E400}',
        "a huge exponent in YAML": b"seed: 1e999999999",
        "hexadecimal digits": b"title: 0x" + b"f" * 5000,
        "sexagesimal digits": b"seed: " + b"1:" * 5000 + b"1",
        "the same key again and again": b"a: 1\n" * 1000 * n,
        "one long line": b"a" * 50_000 * n,
        "one long string": b'{"content": "' + b"a" * 50_000 * n + b'"}',
        "one long event": b'data: {"choices": [{"delta": {"content": "' + b"a" * 50_000 * n + b'"}}]}',
        "a word and spaces": b"a" + b" " * 20_000 * n + b"b",
        **{
            f"many of {mark.decode()!r}": mark * (100_000 // len(mark) // 4) * n
            for mark in (
                *(b"\n", b",", b'"', b"<", b"\x00", b"[Question ", b"```json\n", b"<think><response>", b"{{ a }}"),
                *(b"<response></response>", b"not ", b"yes ", b"- - ", b"\xe2\x80\xa8Patient: ", b"data: {}\n"),
            )
        },
    }


@pytest.mark.parametrize("name", sorted(READERS.keys() - LIKE_RECIPES))
def test_hard_content_is_read_in_little_memory(name: str) -> None:
    read_all(name, hard(1))


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(READERS.keys() - LIKE_RECIPES))
def test_long_hard_content_ends_soon(name: str) -> None:
    read_all(name, hard(20))


def read_all(name: str, contents: dict[str, bytes]) -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for content in contents.values():
        READERS[name].read(content)
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown_mb < 300


def test_a_long_event_may_come_in_small_pieces() -> None:
    """A line that is joined again for each of its pieces takes minutes."""
    heard: list[str] = []
    reader = EventReader(heard.append)
    line = b'data: {"choices": [{"delta": {"content": "' + b"a" * 4_000_000 + b'"}, "finish_reason": "stop"}]}\n'
    for at in range(0, len(line), 20):
        reader.feed(line[at : at + 20])
    assert reader.completion() is not None
    assert len(heard[-1]) == 4_000_000


def test_half_a_surrogate_pair_reaches_no_listener() -> None:
    heard: list[str] = []
    EventReader(heard.append).feed(b'data: {"choices": [{"delta": {"content": "a\\ud800"}}]}\n')
    assert heard == ["a\ufffd"]
