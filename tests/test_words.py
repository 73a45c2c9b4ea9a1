"""Words, tokens and sentence ends in any script."""

import pytest

from esckit.text import n_words, tokenise, whole_sentences


@pytest.mark.parametrize(
    ("text", "n"),
    [
        ("I feel so - so tired.", 6),
        ("我昨晚没睡好。", 6),
        ("我很 stressed out，你呢？", 6),
        ("ฉันเหนื่อย", 10),
        ("", 0),
        ("...", 1),
    ],
)
def test_words_are_counted_in_any_script(text: str, n: int) -> None:
    assert n_words(text) == n


def test_scripts_without_spaces_are_cut_into_characters() -> None:
    assert tokenise("我很 Stressed，好") == ("我", "很", "stressed", "，", "好")
    assert tokenise("I\u2019m 10, ok") == ("i", "'", "m", "10", ",", "ok")
    assert tokenise("잘 지내요 прив\u0435т") == ("잘", "지내요", "привет")


def test_accents_and_vowel_signs_are_parts_of_their_words() -> None:
    assert tokenise("मैं थका हूँ।") == ("मैं", "थका", "हूँ", "।")
    assert tokenise("متعب جدًا؟") == ("متعب", "جدًا", "؟")
    assert tokenise("cafe\u0301, می\u200cخواهم") == ("cafe\u0301", ",", "می\u200cخواهم")


@pytest.mark.parametrize(
    ("text", "whole"),
    [
        ("لماذا؟ ثم", "لماذا؟"),
        ("मैं थका हूँ। क्यों", "मैं थका हूँ।"),
        ("ខ្ញុំ។ ok", "ខ្ញុំ។"),
        ("听起来很难。我觉得你", "听起来很难。"),
        ("真的吗？「好！」我", "真的吗？「好！」"),
        ("That is hard. I th", "That is hard."),
        ("3.5 is what", "3.5 is what"),
        ("我觉得你", "我觉得你"),
    ],
)
def test_an_unfinished_sentence_goes(text: str, whole: str) -> None:
    assert whole_sentences(text) == whole
