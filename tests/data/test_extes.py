"""ExTES: what becomes of each quirk."""

from pathlib import Path
from typing import Any

import pytest

from esckit.data.readers import scenes
from esckit.errors import DataError
from esckit.types import Dialogue
from tests.data.corpus_files import extes, read, write

USER, AI = {"User": "Hello."}, {"AI Strategy": "Clarification", "AI": "Go on."}


def one(folder: Path, *items: dict[str, Any], **changes: Any) -> tuple[Dialogue, dict[str, int]]:
    """Read one record of these items; return it and the codes noted, warnings with a ``!``."""
    corpus, codes = read(write(folder, [extes(*items, **changes)]), format="extes")
    return corpus.dialogues[0], {code + ("!" if severity == "W" else ""): n for (code, severity), n in codes.items()}


def spoken(dialogue: Dialogue) -> list[tuple[str, str, str | None]]:
    return [(turn.speaker, turn.text, turn.source_strategy) for turn in dialogue.turns]


def test_the_layout(tmp_path: Path) -> None:
    dialogue, codes = one(tmp_path)
    assert codes == {}
    assert dialogue.id.startswith("extes-")
    assert (dialogue.scenario.problem_type, dialogue.scenario.situation) == ("Academic Stress", "An invented exam.")
    assert (dialogue.scenario.emotion_type, dialogue.survey) == (None, None)
    assert spoken(dialogue) == [("seeker", "Hello.", None), ("supporter", "That is hard.", "Emotional Validation")]


@pytest.mark.parametrize("label", ["", None, "absent"])
def test_greetings_have_no_label(tmp_path: Path, label: str | None) -> None:
    item = {"AI": "Hello."} if label == "absent" else {"AI Strategy": label, "AI": "Hello."}
    dialogue, codes = one(tmp_path, USER, item)
    assert dialogue.turns[1].source_strategy is None
    assert codes == {"unlabelled": 1}


@pytest.mark.parametrize("key", ["ai strategy", "AI_Strategy", "AI strategy", "Ai__STRATEGY"])
def test_keys_in_other_spelling(tmp_path: Path, key: str) -> None:
    dialogue, codes = one(tmp_path, {"user": "Hello."}, {key: "Clarification", "ai": "Go on."})
    assert spoken(dialogue) == [("seeker", "Hello.", None), ("supporter", "Go on.", "Clarification")]
    assert codes == {"key_alias": 3}


def test_one_key_in_two_spellings_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"content\[1\]: found the key 'AI' in two spellings"):
        one(tmp_path, USER, {"AI": "a", "ai": "b"})


def test_an_item_with_both_sides_becomes_two_turns(tmp_path: Path) -> None:
    both = USER | AI
    seeker, supporter = ("seeker", "Hello.", None), ("supporter", "Go on.", "Clarification")
    assert one(tmp_path, both) == (one(tmp_path, both)[0], {"both_speakers!": 1})
    assert spoken(one(tmp_path, both)[0]) == [seeker, supporter]
    assert spoken(one(tmp_path, AI, both)[0]) == [supporter, seeker, supporter]
    after_seeker, codes = one(tmp_path, USER, both)
    assert spoken(after_seeker) == [seeker, supporter, seeker]
    assert codes == {"both_speakers!": 1}


def test_items_without_speaker_or_text_are_dropped(tmp_path: Path) -> None:
    dialogue, codes = one(tmp_path, USER, {}, {"AI Strategy": "Others"}, {"User": None}, {"AI": None}, {"AI": " "}, AI)
    assert spoken(dialogue) == [("seeker", "Hello.", None), ("supporter", "Go on.", "Clarification")]
    assert codes == {"no_speaker!": 2, "empty_text!": 3, "white_space": 1}


def test_a_dialogue_of_dropped_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no utterance"):
        one(tmp_path, {}, {"User": None})


def test_a_list_of_strings_is_joined(tmp_path: Path) -> None:
    dialogue, codes = one(tmp_path, {"User": ["One.", "Two."]}, AI)
    assert dialogue.turns[0].text == "One. Two."
    assert codes == {"text_list!": 1}
    with pytest.raises(DataError, match=r"content\[0\].User: found an array of other things"):
        one(tmp_path, {"User": ["One.", 2]}, AI)


@pytest.mark.parametrize("key", ["Response", "response", "AI", "text", "content"])
@pytest.mark.parametrize("label_key", ["AI Strategy", "AI strategy", "strategy"])
def test_a_text_that_is_an_object(tmp_path: Path, key: str, label_key: str) -> None:
    inner = {key: "Go on.", label_key: "Clarification"}
    dialogue, codes = one(tmp_path, USER, {"AI": inner})
    assert spoken(dialogue)[1] == ("supporter", "Go on.", "Clarification")
    assert codes == {"text_object!": 1}
    dialogue, _ = one(tmp_path, USER, {"AI Strategy": "Affirmation", "AI": inner})
    assert dialogue.turns[1].source_strategy == "Affirmation"


@pytest.mark.parametrize("value", [7, True, {"Reply": "Go on."}, {"text": 7}])
def test_other_texts_are_refused(tmp_path: Path, value: Any) -> None:
    with pytest.raises(DataError, match=r"content\[1\].AI: found an? (number|boolean|object); expected a string"):
        one(tmp_path, USER, {"AI": value})


def test_a_label_that_is_no_string_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"content\[1\].AI Strategy: found an array; expected a string"):
        one(tmp_path, USER, {"AI Strategy": ["Others"], "AI": "Go on."})


def test_a_label_on_the_seeker_is_ignored(tmp_path: Path) -> None:
    assert one(tmp_path, USER | {"AI Strategy": "Others"}, AI)[1] == {"misplaced_annotation!": 1}


def test_there_are_36_scenes() -> None:
    assert len(set(scenes().values())) == 36


@pytest.mark.parametrize(
    ("scene", "kept", "code"),
    [
        ("Depression and Low Mood", "Depression and Low Mood", None),
        ("Financial Worries and UncertAInty", "Financial Worries and Uncertainty", "scene_alias"),
        ("Unemployment-related stress", "Unemployment-related Stress", "scene_alias"),
        (
            "Coping with the illness or death of a loved one",
            "Coping with the Death of a Loved One",
            "scene_alias",
        ),
        ("Job Promotion Stress", "Job Promotion Stress", "scene_unknown!"),
        (None, None, "metadata_missing!"),
    ],
)
def test_scenes(tmp_path: Path, scene: str | None, kept: str | None, code: str | None) -> None:
    dialogue, codes = one(tmp_path, scene=scene)
    assert dialogue.scenario.problem_type == kept
    assert codes == ({code: 1} if code else {})


def test_extra_keys_are_noted(tmp_path: Path) -> None:
    assert one(tmp_path, USER | {"mood": 1}, AI, id=3)[1] == {"extra_key": 2}
