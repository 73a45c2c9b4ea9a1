import pytest

from esckit.text import NOTHING, dialogue_id, ids_digest, json_type, listed, normalise, quoted, without_formulas
from esckit.types import Dialogue, Scenario


@pytest.mark.parametrize(
    ("raw", "text", "codes"),
    [
        ("as it is", "as it is", ()),
        ("  two  spaces\tand\r\nlines\n", "two spaces and lines", ("white_space",)),
        ("a\u2028b\u0085c\u00a0d\x1fe", "a b c d e", ("white_space",)),
        ("a\x00b\x7fc\x9f", "abc", ("control_character",)),
        ("a\ud800b\udfff", "a\ufffdb\ufffd", ("surrogate",)),
        ("\x00 \ud800 ", "\ufffd", ("surrogate", "control_character", "white_space")),
        ("It’s ❤\ufe0f, café, cafe\u0301, \u200bZERO", "It’s ❤\ufe0f, café, cafe\u0301, \u200bZERO", ()),
        (" \n", "", ("white_space",)),
    ],
)
def test_normalise(raw: str, text: str, codes: tuple[str, ...]) -> None:
    assert normalise(raw) == (text, codes)
    assert normalise(text) == (text, ())


def test_an_id_is_a_hash_of_who_said_what() -> None:
    # printf 'seeker\tHi.\nsupporter\tHello.' | sha256sum
    assert dialogue_id("esconv", [("seeker", "Hi."), ("supporter", "Hello.")]) == "esconv-12c7c551e366"


def test_the_digest_leaves_the_corpus_out_of_computed_ids() -> None:
    def named(name: str) -> Dialogue:
        return Dialogue(scenario=Scenario(id=name), turns=())

    plain = ids_digest([named("esconv-0123456789ab"), named("own:1")])
    assert plain == ids_digest([named("own:1"), named("jsonl-0123456789ab")])
    assert plain != ids_digest([named("0123456789ab"), named("own:2")])


def test_what_is_quoted_is_short_and_harmless() -> None:
    assert quoted("Question") == "'Question'"
    assert quoted("\x1b[31m\n\u2028\ud800é") == r"'\x1b[31m\n\u2028\ud800é'"
    assert len(quoted("x" * 1000)) == 62
    assert len(quoted("\x00" * 1000)) == 62
    assert listed("abc", limit=2) == "'a', 'b' and 1 more"
    assert listed([]) == "none"


def test_json_types_have_articles() -> None:
    values = {"a": 1}, [1], "a", 1, 1.5, True, None, NOTHING
    assert [json_type(value) for value in values] == [
        "an object", "an array", "a string", "a number", "a number", "a boolean", "null", "nothing",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("cell", "shown"),
    [
        ("=HYPERLINK(1)", " =HYPERLINK(1)"),
        ("@SUM(1)", " @SUM(1)"),
        ("-2+3+cmd|' /C calc'!A0", " -2+3+cmd|' /C calc'!A0"),
        ("Person: hi\n+1", "Person: hi\n +1"),
        ("hi;=1", "hi; =1"),
        ("hi,\t=1", "hi, \t =1"),
        ("Thanks ;-) 1 + 1 = 2, a-b", "Thanks ;-) 1 + 1 = 2, a-b"),
        ("", ""),
    ],
)
def test_no_cell_and_no_part_of_one_is_a_formula(cell: str, shown: str) -> None:
    assert without_formulas(cell) == shown
