"""Words of a crisis bring up the notice, in any spelling; sayings do not."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esckit.chat.crisis import load_screen, shipped_locales
from esckit.errors import ConfigError

SCREEN = load_screen(None)
MEANT = {
    "I want to die": "en/suicide",
    "I don’t want to live anymore": "en/suicide",
    "Ｉ ｗａｎｔ ｔｏ ｄｉｅ": "en/suicide",
    "sometimes i think of kill-ing... suicide!": "en/suicide",
    "su\u200bicidal thoughts": "en/suicide",
    "I would never kill myself": "en/suicide",
    "I wanted to end my own life": "en/suicide",
    "I keep cutting my arms": "en/self-harm",
    "my husband beats me": "en/violence",
    "Ich möchte einfach sterben": "de/suicide",
    "ICH WILL NICHT MEHR LEBEN": "de/suicide",
    "我真的不想活了": "zh/suicide",
    "我 想 死": "zh/suicide",
}
NOT_MEANT = (
    "I am dying to see you",
    "I could have died laughing, I would die of embarrassment",
    "this deadline is killing me",
    "I want to do better and live",
    "想死你了",
    "Der Stress bringt mich um den Schlaf",
    "",
)


@pytest.mark.parametrize(("text", "mark"), MEANT.items())
def test_what_is_meant_is_noticed(text, mark):
    assert mark in SCREEN.notice(text).marks


@pytest.mark.parametrize("text", NOT_MEANT)
def test_sayings_and_other_words_are_not_noticed(text):
    assert SCREEN.notice(text) is None


@given(st.sampled_from(sorted(MEANT)), st.text(max_size=40), st.text(max_size=40), st.booleans())
def test_nothing_around_the_words_hides_them(words, before, after, upper):
    text = f"{before} . {words.upper() if upper else words} . {after}"
    assert SCREEN.notice(text) is not None


@given(st.lists(st.sampled_from([" ", "  ", "\n", "\t", " - ", " … ", "\u00a0", " \u200b"]), min_size=3, max_size=3))
def test_any_separator_stands_between_words(gaps):
    text = "".join(word + gap for word, gap in zip(["want", "to", "die"], gaps, strict=True))
    assert SCREEN.notice(f"I {text}") is not None


def test_the_text_is_that_of_the_language_or_the_chosen_one():
    assert SCREEN.notice("Ich will sterben").locale.locale == "de"
    chosen = load_screen("zh").notice("Ich will sterben")
    assert (chosen.locale.locale, chosen.marks) == ("zh", ("de/suicide",))


def test_every_shipped_locale_has_resources_with_sources():
    assert shipped_locales() == ("de", "en", "zh")
    for locale in SCREEN.locales:
        assert all(re.match("https://", resource.source) for resource in locale.resources)
        assert "findahelpline.com" in " ".join(locale.lines())


def test_a_file_of_ones_own_is_used_and_checked(tmp_path):
    own = tmp_path / "fr.yaml"
    own.write_text(
        "locale: fr\nwritten: '2026-11-01'\ntext: Ces mots parlent peut-être d'une crise.\n"
        "resources: [{place: France, name: '3114', contact: '3114', source: 'https://3114.fr'}]\n"
        "patterns: {suicide: [veux|voudrais mourir]}\n",
        encoding="utf-8",
    )
    screen = load_screen(str(own))
    assert screen.notice("Je VEUX mourir").marks == ("fr/suicide",)
    assert screen.notice("I want to die").locale.locale == "fr"
    own.write_text(own.read_text(encoding="utf-8").replace("veux|voudrais mourir", "'(veux'"), encoding="utf-8")
    with pytest.raises(ConfigError, match="must be a pattern such as"):
        load_screen(str(own))


def test_an_unknown_locale_is_refused():
    with pytest.raises(ConfigError, match="unknown locale 'dee'"):
        load_screen("dee")
