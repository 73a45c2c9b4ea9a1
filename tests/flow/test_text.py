import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Bpe
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from esckit.flow.text import FlowText, drop_oldest, exchange_starts, scene
from esckit.types import Scenario, Turn
from tests.flow.flow_fakes import ids_of

SCENARIO = Scenario(id="x", situation="My manager ignores me.", problem_type="job crisis", emotion_type="anger")
SEEKER = Turn(speaker="seeker", text="I do not know.")
SUPPORTER = Turn(speaker="supporter", text="That hurts.", strategy="Validate")


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE whose merges cross word and turn borders when it may."""
    bpe = Bpe(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=["<s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    lines = ["Seeker: I do not know.\nSupporter: That hurts.\nSeeker: It does.\n"] * 4 + ["Scene: job\nTask: choose\n"]
    bpe.train_from_iterator(lines, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<s>")


def test_the_text_form(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=True)
    assert tokenizer.decode(text.ids(SCENARIO, [SEEKER, SUPPORTER, SEEKER])) == (
        "<s>Scene: job crisis, anger\nSituation: My manager ignores me.\nTask: choose the next support strategy.\n"
        "Seeker: I do not know.\nSupporter: That hurts.\nSeeker: I do not know.\n"
    )


def test_a_deployed_supporter_knows_no_situation(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=False)
    assert tokenizer.decode(text.ids(SCENARIO, [])) == "<s>Task: choose the next support strategy.\n"


def test_strategy_tags_are_abbreviations(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=False, tags={"Validate": "EV", "Plan": "CP"})
    assert tokenizer.decode(text.turn(SUPPORTER).ids) == "Supporter [EV]: That hurts.\n"
    assert tokenizer.decode(text.turn(SUPPORTER, strategy="Plan").ids) == "Supporter [CP]: That hurts.\n"
    assert tokenizer.decode(text.turn(SUPPORTER).words) == " That hurts.\n"
    untagged = FlowText(tokenizer, situation=False)
    assert tokenizer.decode(untagged.turn(SUPPORTER).ids) == "Supporter: That hurts.\n"


def test_a_whole_string_would_break_at_the_borders(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=False)
    ours = ids_of(text.turn(turn).ids for turn in (SEEKER, SUPPORTER))
    whole = tokenizer.encode("Seeker: I do not know.\nSupporter: That hurts.\n", add_special_tokens=False)
    assert tokenizer.decode(ours) == tokenizer.decode(whole)
    assert list(ours) != whole


utterances = st.text(max_size=30).filter(str.strip)


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(utterances, min_size=1, max_size=5))
def test_the_ids_of_a_prefix_begin_the_ids_of_the_path(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> None:
    text = FlowText(tokenizer, situation=True)
    turns = [Turn(speaker=("seeker", "supporter")[i % 2], text=words) for i, words in enumerate(texts)]
    path = text.ids(SCENARIO, turns)
    for n_turns in range(len(turns) + 1):
        prefix = text.ids(SCENARIO, turns[:n_turns])
        assert path[: len(prefix)] == prefix


def test_a_long_situation_is_cut(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=True)
    short = len(text.header(SCENARIO.model_copy(update={"situation": ""})))
    long = len(text.header(SCENARIO.model_copy(update={"situation": "q" * 2000})))
    assert long == short - len(tokenizer.encode(" unknown", add_special_tokens=False)) + 256


def test_too_long_a_dialogue_loses_its_oldest_exchanges(tokenizer: PreTrainedTokenizerFast) -> None:
    text = FlowText(tokenizer, situation=False)
    turns = [SEEKER, SUPPORTER, SEEKER, SUPPORTER, SEEKER]
    header, one = text.header(SCENARIO), ids_of(text.turn(turn).ids for turn in (SUPPORTER, SEEKER))
    for kept, spared in ((2, len(text.turn(SEEKER).ids) - 1), (1, len(one) - 1), (1, 0)):
        assert text.ids(SCENARIO, turns, max_tokens=len(header) + kept * len(one) + spared) == header + kept * one
    old = FlowText(tokenizer, situation=False, single_turns=True)  # as checkpoints of 0.1.0
    seeker = text.turn(SEEKER).ids
    assert old.ids(SCENARIO, turns, max_tokens=len(header) + len(seeker + one)) == header + seeker + one


def test_an_exchange_is_a_supporter_turn_and_what_answers_it() -> None:
    assert exchange_starts([SEEKER, SUPPORTER, SEEKER, SUPPORTER, SUPPORTER, SEEKER]) == [0, 1, 3]
    assert exchange_starts([SUPPORTER, SEEKER]) == [0]
    assert exchange_starts([]) == []


def test_the_newest_piece_is_kept_at_least_in_part() -> None:
    assert drop_oldest([(1, 2), (3, 4), (5,)], 3) == [(3, 4), (5,)]
    assert drop_oldest([(1, 2), (3, 4, 5)], 2) == [(4, 5)]
    assert drop_oldest([], 2) == []


def test_the_scene_names_what_is_known() -> None:
    assert scene(SCENARIO) == "job crisis, anger"
    assert scene(Scenario(id="x", problem_type="job crisis")) == "job crisis"
    assert scene(Scenario(id="x")) == "unknown"
