"""What is shown of an unfinished reply is never taken back."""

from hypothesis import example, given
from hypothesis import strategies as st

from esckit.chat.unfinished import Reveal, settled
from esckit.models.chat import make_reply
from esckit.roles.asking import read_output
from esckit.text import whole_sentences
from esckit.types import StopReason, Usage

PIECES = st.lists(
    st.sampled_from(
        [
            "That ",
            "is hard. ",
            "I see",
            ".",
            "\n",
            " ",
            "It took courage to tell me about all of this",
            "Patient: ",
            "?",
        ]
    ),
    max_size=12,
)


def final(text: str, *, is_cut: bool) -> str:
    """Return the reply as a supporter's parser finds it."""
    found = read_output(make_reply(text, StopReason.STOP, Usage(), max_tokens=10_000).whole)
    if is_cut and found.parse_kind in ("open_response", "untagged"):
        return whole_sentences(found.response)
    return found.response


def shown(text: str, *, in_tags: bool) -> list[str]:
    """Return all that is shown while a text is written character by character."""
    parts: list[str] = []
    reveal = Reveal(lambda written: settled(written, in_tags=in_tags), parts.append)
    for end in range(len(text) + 1):
        reveal.hear(text[:end])
    return parts


@given(PIECES, st.booleans())
@example(["I see", "\n", "Patient: ", "no"], False)
@example(["That ", "is hard. ", "I see"], True)
def test_plain_text_is_shown_and_never_taken_back(pieces, is_cut):
    text = "".join(pieces)
    assert final(text, is_cut=is_cut).startswith("".join(shown(text, in_tags=False)))


@given(PIECES, PIECES, st.booleans(), st.booleans())
def test_reasoning_and_tags_are_never_shown(thoughts, words, is_closed, is_cut):
    text = f"<think>{''.join(thoughts)}</think> <response>{''.join(words)}" + ("</response>" if is_closed else "")
    parts = "".join(shown(text, in_tags=True))
    assert final(text, is_cut=is_cut and not is_closed).startswith(parts)
    assert "<" not in parts


def test_reasoning_alone_shows_nothing():
    assert shown("<think>They seem tired, and I should not say so.", in_tags=True) == []
    assert shown("They seem tired, and I should not say so", in_tags=True) == []


def test_a_reply_comes_sentence_by_sentence():
    parts = shown("That sounds really hard. What part of it weighs on you most? I am here.", in_tags=False)
    assert parts == ["That sounds really hard.", " What part of it weighs on you most?", " I am here."]
