"""Tables with one utterance a row, from every container; columns and speakers found and not found."""

import gzip
from pathlib import Path
from typing import Any

import pytest

from esckit.data.names import Names
from esckit.errors import DataError
from tests.data.corpus_files import chat, lines, read, read_skipping, rows, write
from tests.data.test_packed import table

HEAD = "dialogue,speaker,text,strategy\n"


def csv(items: list[dict[str, Any]], delimiter: str = ",") -> str:
    """Rows as a table; no cell needs quotes."""
    body = [[str(value if value is not None else "") for value in item.values()] for item in items]
    return "".join(delimiter.join(row) + "\n" for row in [list(items[0]), *body])


def refused(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        read(path, **options)
    assert "nvented" not in str(caught.value)
    assert caught.value.whole_file
    return str(caught.value)


ROWS = [*rows(1), *rows(2)]


@pytest.mark.parametrize(
    "content",
    [
        csv(ROWS),
        csv(ROWS, "\t"),
        csv(ROWS, ";"),
        "\ufeff" + csv(ROWS).replace("\n", "\r\n"),
        gzip.compress(csv(ROWS).encode()),
        gzip.compress(lines(*ROWS).encode()),
        table(*ROWS),
        ROWS,
        lines(*ROWS),
    ],
    ids=["csv", "tsv", "semicolons", "excel", "gzip csv", "gzip lines", "parquet", "array", "lines"],
)
def test_every_container_gives_the_same_dialogues(tmp_path: Path, content: Any) -> None:
    corpus, _ = read(write(tmp_path, content))
    assert (corpus.format, len(corpus.dialogues), corpus.n_records) == ("table", 2, 2)
    said = [(turn.speaker, turn.text, turn.source_strategy) for turn in corpus.dialogues[1].turns]
    assert said == [("seeker", "Invented opening 2.", None), ("supporter", "Go on.", "Question")]
    assert corpus.names.found == {"dialogue": "dialogue", "speaker": "speaker", "text": "text", "strategy": "strategy"}


def test_rows_of_a_dialogue_need_not_be_adjacent(tmp_path: Path) -> None:
    corpus, _ = read(write(tmp_path, HEAD + "b,user,one,\na,user,two,\nb,assistant,three,\na,assistant,four,\n"))
    assert [[turn.text for turn in one.turns] for one in corpus.dialogues] == [["one", "three"], ["two", "four"]]


def test_quoted_cells_may_hold_line_ends_and_delimiters(tmp_path: Path) -> None:
    corpus, _ = read(write(tmp_path, HEAD + '1,user,"one,\ntwo ""three""",\n\n1,assistant,four\n'))
    assert [turn.text for turn in corpus.dialogues[0].turns] == ['one, two "three"', "four"]


def test_facts_come_from_the_first_row_that_has_them(tmp_path: Path) -> None:
    content = (
        "dialogue,speaker,text,situation,Problem Type\n1,user,a,,job\n1,ai,b,An invented exam.,job\n1,ai,c,Other.,\n"
    )
    corpus, codes = read(write(tmp_path, content))
    scenario = corpus.dialogues[0].scenario
    assert (scenario.situation, scenario.problem_type) == ("An invented exam.", "job")
    assert codes["metadata_differs", "W"] == 1


def test_columns_and_speakers_are_named_by_the_user(tmp_path: Path) -> None:
    content = "n,who,what is said,act\n1,0,one,\n1,1,two,Question\n1,note,x,\n"
    given = {"dialogue": "n", "speaker": "who", "text": "what is said", "strategy": "act"}
    names = Names({"0": "seeker", "1": "supporter", "note": "ignore"}, given)
    corpus, codes = read(write(tmp_path, content), names=names)
    assert [turn.text for turn in corpus.dialogues[0].turns] == ["one", "two"]
    assert codes["not_a_turn", "N"] == 1
    assert corpus.names.found == given


@pytest.mark.parametrize(
    ("header", "given", "says"),
    [
        ("conv_id,who,utterance", {}, "no column for speaker among 'conv_id', 'who', 'utterance'"),
        ("conv,speakers,texts", {}, "--column speaker=speakers --column text=texts"),
        ("conv,role,utterance", {"text": "utterence"}, "text ('utterence') among 'conv', 'role', 'utterance'"),
        ("conv,role,utterance", {"text": "utterence"}, "data: {columns: {text: utterance}}"),
        ("conv,role,utterance", {"strategy": "label"}, "no column for strategy ('label')"),
        ("conv,role,text,utterance", {}, "--column text=text or --column text=utterance"),
    ],
)
def test_columns_that_are_not_there_are_named(tmp_path: Path, header: str, given: dict[str, str], says: str) -> None:
    body = ",".join("Invented" for _ in header.split(","))
    assert says in refused(write(tmp_path, f"{header}\n{body}\n"), names=Names(columns=given))


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (HEAD + "1,user,one,,\n1,user,x,\n", "5 cells in the row that ends on line 2"),
        (HEAD + "1,user,x,\n" + '1,user,"Invented\n', "a row that cannot be read at line"),
        (HEAD, "a header without rows"),
        (HEAD + "1,user,Invented, or not,\n", "5 cells in the row that ends on line 2"),
        (HEAD + "1,user,x,\n,user,x,\n", "row 1 (line 3), dialogue: found nothing"),
        (
            HEAD + "1,A,x,\n1,B,x,\n",
            "record 0, line 2, speaker: found speakers whose side cannot be told: 'A' (1), 'B' (1)",
        ),
        (lines(rows()[0], 7), "a number in row 1"),
        (lines(rows()[0]) + "{\n", "no JSON at line 2"),
        ("Invented, or so\nhe said, again\n", "CSV"),
    ],
)
def test_a_broken_table_is_refused_as_a_whole(tmp_path: Path, content: str, says: str) -> None:
    assert says in refused(write(tmp_path, content))


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("2,user,,\n2,,x,\n", "row 2 (line 4), speaker: found nothing"),
        ("2,user\n", "row 1 (line 3), text: found nothing"),
    ],
)
def test_a_broken_dialogue_is_refused_alone(tmp_path: Path, row: str, says: str) -> None:
    path = write(tmp_path, HEAD + "1,user,one,\n" + row + "3,user,two,\n")
    with pytest.raises(DataError) as caught:
        read(path)
    assert says in str(caught.value)
    corpus, _ = read_skipping(path)
    assert [dialogue.turns[0].text for dialogue in corpus.dialogues] == ["one", "two"]


def test_two_columns_of_one_name_are_named(tmp_path: Path) -> None:
    path = write(tmp_path, "conv,who,said,said\n1,user,a,b\n")
    for given in ({}, {"speaker": "who", "text": "said"}):
        assert "2 columns that are called 'said'" in refused(path, names=Names(columns=given))
    assert "that are called" not in refused(write(tmp_path, "nvented,nvented,speaker of a nvented\na,b,c\n"))


def test_a_strategy_of_a_seeker_is_warned_of(tmp_path: Path) -> None:
    corpus, codes = read(write(tmp_path, HEAD + "1,user,one,Question\n1,assistant,two,\n1,user,three,\n"))
    assert codes["misplaced_annotation", "W"] == 1
    assert [turn.source_strategy for turn in corpus.dialogues[0].turns] == [None, None, None]


def test_a_column_that_no_row_reaches_holds_nothing(tmp_path: Path) -> None:
    names = Names(columns={"strategy": "tactic"})
    path = write(tmp_path, "dialogue,speaker,text,tactic\n1,user,one\n1,assistant,two\n")
    corpus, _ = read(path, names=names)
    assert names.found["strategy"] == "tactic"
    assert [turn.source_strategy for turn in corpus.dialogues[0].turns] == [None, None]


def test_split_files_may_be_tables(tmp_path: Path) -> None:
    write(tmp_path, csv(rows(1)), "mine-train.csv")
    write(tmp_path, gzip.compress(csv(rows(2), "\t").encode()), "mine-test.tsv.gz")
    assert [file.split for file in read(tmp_path)[0].files] == ["train", "test"]


def test_a_table_is_not_another_format(tmp_path: Path) -> None:
    assert "an utterance a row" in refused(write(tmp_path, csv(rows())), format="messages")
    assert "no column for dialogue, speaker, text among 'messages'" in refused(
        write(tmp_path, lines(chat())), format="table"
    )
