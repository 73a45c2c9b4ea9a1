"""Chat records and ShareGPT: who speaks, what is an utterance and what is not, and who cannot be told."""

import json
from pathlib import Path
from typing import Any

import pytest

from esckit.data.names import Names
from esckit.errors import ConfigError, DataError
from tests.data.corpus_files import chat, lines, own, read, read_skipping, sharegpt, write

TOLD = [("seeker", "Invented opening 1."), ("supporter", "Go on.")]


def turns(path: Path, **options: Any) -> list[tuple[str, str]]:
    return [(turn.speaker, turn.text) for turn in read(path, **options)[0].dialogues[0].turns]


def messages(*items: dict[str, Any], **facts: Any) -> dict[str, Any]:
    return {"messages": list(items), **facts}


def said(role: str, content: Any, **more: Any) -> dict[str, Any]:
    return {"role": role, "content": content, **more}


@pytest.mark.parametrize(
    ("content", "format"),
    [
        (lines(chat()), "messages"),
        (lines(sharegpt()), "sharegpt"),
        ([chat()], "messages"),
        (lines({"conversations": chat()["messages"]}), "messages"),
        (lines({"conversation": sharegpt()["conversations"], "id": 7}), "sharegpt"),
        (lines(chat()["messages"]), "messages"),
        (chat()["messages"], "messages"),
        (lines(*sharegpt()["conversations"]), "messages"),
        (lines({"text": json.dumps(chat())}), "messages"),
    ],
)
def test_every_way_to_write_a_chat_gives_its_turns(tmp_path: Path, content: Any, format: str) -> None:
    path = write(tmp_path, content)
    assert turns(path) == TOLD
    assert read(path)[0].format == format


def test_messages_that_an_id_tells_apart_are_no_chat(tmp_path: Path) -> None:
    path = write(tmp_path, lines(*(said("user", "Invented.") | {"chat": number} for number in (1, 2))))
    with pytest.raises(DataError, match="comes nearest to table: it has 'role', 'content', lacks 'dialogue'"):
        read(path)
    assert len(read(path, names=Names(columns={"dialogue": "chat"}))[0].dialogues) == 1, "the same words twice"


def test_the_same_dialogue_has_one_id_in_every_own_format(tmp_path: Path) -> None:
    table = "dialogue,speaker,text\n1,user,Invented opening 1.\n1,assistant,Go on.\n"
    ids = {read(write(tmp_path, content))[0].dialogues[0].id for content in (lines(chat()), lines(sharegpt()), table)}
    assert len(ids) == 1
    assert ids.pop().startswith("own-")


def test_a_system_prompt_is_no_turn_and_a_situation_only_if_asked(tmp_path: Path) -> None:
    path = write(tmp_path, lines(chat()))
    corpus, codes = read(path)
    assert corpus.dialogues[0].scenario.situation == ""
    assert codes["not_a_turn", "N"] == 1
    asked, _ = read(path, names=Names({"system": "situation"}))
    assert asked.dialogues[0].scenario.situation == "Be kind."
    assert dict(asked.names.spoken) == {
        ("system", "situation"): 1,
        ("user", "seeker"): 1,
        ("assistant", "supporter"): 1,
    }


def test_roles_can_be_turned_round(tmp_path: Path) -> None:
    names = Names({"User": "supporter", "assistant": "seeker"})
    assert turns(write(tmp_path, lines(chat())), names=names)[0] == ("supporter", "Invented opening 1.")


def test_speakers_of_every_format_can_be_mapped(tmp_path: Path) -> None:
    record = own(turns=[{"speaker": "Nora", "text": "Invented."}, {"speaker": "Max", "text": "Go on."}])
    path = write(tmp_path, lines(record))
    assert turns(path, names=Names({"nora": "seeker", "MAX": "supporter"})) == [
        ("seeker", "Invented."),
        ("supporter", "Go on."),
    ]
    with pytest.raises(DataError, match=r"--role Nora=seeker .*\(in a recipe: data: \{roles: \{Nora: seeker\}\}\)"):
        read(path)
    with pytest.raises(DataError, match="'Nora', who stands for ignore"):
        read(path, names=Names({"nora": "ignore"}))


@pytest.mark.parametrize(
    ("roles", "hint"),
    [
        (
            ("A", "B"),
            "--role A=seeker --role B=supporter (in a recipe: data: {roles: {A: seeker, B: supporter}}), if 'A'",
        ),
        (("human_1", "assistant"), "--role human_1=seeker (in a recipe: data: {roles: {human_1: seeker}})"),
        (("user", "assistant", "tool"), "--role tool=ignore (in a recipe: data: {roles: {tool: ignore}})"),
        (("my client", "assistant"), "--role 'my client=seeker' (in a recipe: data: {roles: {\"my client\": seeker}})"),
    ],
)
def test_speakers_that_cannot_be_told_are_named(tmp_path: Path, roles: tuple[str, ...], hint: str) -> None:
    path = write(tmp_path, lines(messages(*(said(role, "Invented.") for role in roles))))
    with pytest.raises(DataError) as caught:
        read(path)
    assert hint in str(caught.value)
    assert caught.value.whole_file, "the first record tells of the file"
    assert "nvented" not in str(caught.value)


def test_reasoning_is_no_utterance(tmp_path: Path) -> None:
    record = messages(
        said("user", [{"type": "text", "text": "One."}, {"type": "text", "text": "Two."}]),
        said("assistant", "<think>They doubt.</think> <response>Three.</response>"),
        said("user", "Four."),
        said("assistant", "<think>\n</think>\n\nFive.", reasoning_content="Hm."),
        said("assistant", [{"type": "thinking", "thinking": "Hm."}, {"type": "output_text", "text": "Six."}]),
    )
    path = write(tmp_path, lines(record))
    assert [text for _, text in turns(path)] == ["One. Two.", "Three.", "Four.", "Five.", "Six."]
    assert read(path)[1]["reasoning", "N"] == 4


@pytest.mark.parametrize(
    ("message", "says"),
    [
        (said("assistant", None, tool_calls=[{"id": 1}]), r"messages\[1\].tool_calls: found a message with tool_calls"),
        (said("assistant", [{"type": "image_url"}]), r"messages\[1\].content\[0\]: found a part of type 'image_url'"),
        (said("assistant", "<think>Invented"), r"messages\[1\].content: found reasoning that does not end"),
        (said("assistant", None), r"messages\[1\].content: found null"),
        ({"content": "Invented."}, r"messages\[1\].role: found nothing"),
        (said("user", {"text": "Invented."}), r"messages\[1\].content: found an object"),
    ],
)
def test_what_is_no_text_is_refused_and_the_rest_is_read(tmp_path: Path, message: dict[str, Any], says: str) -> None:
    path = write(tmp_path, lines(chat(1), messages(said("user", "Hm."), message), chat(2)))
    with pytest.raises(DataError, match=says) as caught:
        read(path)
    assert "nvented" not in str(caught.value)
    corpus, _ = read_skipping(path)
    assert (len(corpus.dialogues), corpus.n_refused) == (2, 1)


def test_facts_and_labels_come_from_keys_that_can_be_named(tmp_path: Path) -> None:
    items = [{"who": "client", "said": "Hm."}, {"who": "therapist", "said": "Since when?", "act": "Question"}]
    path = write(tmp_path, lines({"talk": items, "story": "An invented exam.", "emotion_type": "fear", "n": 1}))
    given = {"messages": "talk", "speaker": "who", "text": "said", "strategy": "act", "situation": "story"}
    corpus, codes = read(path, names=Names(columns=given))
    (dialogue,) = corpus.dialogues
    assert (dialogue.scenario.situation, dialogue.scenario.emotion_type) == ("An invented exam.", "fear")
    assert dialogue.turns[1].source_strategy == "Question"
    assert codes == {("extra_key", "N"): 1}


def test_a_made_id_is_kept_and_any_other_is_not(tmp_path: Path) -> None:
    made = read(write(tmp_path, lines(chat())))[0].dialogues[0].id
    ids = [f"esconv{made.removeprefix('own')}", "17", f"no id {made.removeprefix('own-')}"]
    found = [read(write(tmp_path, lines(chat(id=one))))[0].dialogues[0].id for one in ids]
    assert found == [ids[0], made, made]


def test_names_that_say_nothing_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"no column can be given for 'txt'.*did you mean 'text'\?"):
        Names(columns={"txt": "a"})
    with pytest.raises(ConfigError, match="two spellings"):
        Names({"A": "seeker", "a ": "supporter"})


def test_a_role_that_no_record_has_is_warned_about(tmp_path: Path) -> None:
    path = write(tmp_path, lines(chat()))
    assert read(path, names=Names({"usr1": "seeker"}))[1]["role_unused", "W"] == 1


def test_columns_of_a_format_with_keys_of_its_own_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="the column text for files of format jsonl"):
        read(write(tmp_path, lines(own())), names=Names(columns={"text": "words"}))
    with pytest.raises(ConfigError, match="the column dialogue for files of format messages"):
        read(write(tmp_path, lines(chat())), names=Names(columns={"dialogue": "id"}))
