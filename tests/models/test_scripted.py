import asyncio
import json
import math
import re
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esckit.errors import BackendError, ConfigError
from esckit.models.scripted import Script, ScriptedModel, load_scripted, n_turns
from esckit.protocols import ChatModel
from esckit.registry import shipped_dir
from esckit.types import Message, Reply, Sampling, StopReason

HELLO = [Message("system", "Play a therapist."), Message("user", "I feel low")]
SHIPPED = sorted(path.stem for path in (shipped_dir("recipes") / "scripted").glob("*.yaml"))
LEVELS = [f"{size} {side}" for side in ("Better", "Worse") for size in ("Slightly", "Moderately", "Significantly")]
ABBREVIATIONS = ["RS", "Cla", "EV", "ES", "Aff", "CP", "SO", "SI"]


def scripted(*rules: dict[str, object], **script: object) -> ScriptedModel:
    return ScriptedModel(Script.model_validate({"rules": list(rules), **script}), name="scripted/test")


def complete(model: ChatModel, messages: Sequence[Message] = HELLO, *, seed: int = 0, **sampling: object) -> Reply:
    return asyncio.run(model.complete(messages, Sampling.model_validate(sampling), seed=seed))


def talk(n: int) -> list[Message]:
    return [Message("user" if i % 2 == 0 else "assistant", f"turn {i}") for i in range(n)]


def answer_in_capitals(messages: Sequence[Message], sampling: Sampling, seed: int) -> str:
    return f"{messages[-1].content.upper()} {seed}"


def answer_with_a_number(messages: Sequence[Message], sampling: Sampling, seed: int) -> int:
    return seed


OBJECT = scripted({"replies": ["I am an object"]})


# ---------------------------------------------------------------- rules and draws


def test_the_first_rule_that_matches_answers() -> None:
    model = scripted(
        {"when": {"system": "(?i)critic"}, "replies": ["Same"]},
        {"when": {"user": "low", "min_turns": 2}, "replies": ["late"]},
        {"when": {"user": "low", "max_turns": 1}, "replies": ["early"]},
        {"replies": ["other"]},
    )

    assert complete(model).text == "early"
    assert complete(model, [*talk(2), Message("user", "I feel low")]).text == "late"
    assert complete(model, [Message("system", "You are a Critic")]).text == "Same"
    assert complete(model, talk(1)).text == "other"


def test_a_prompt_without_rule_is_an_error_without_its_text() -> None:
    with pytest.raises(ConfigError) as caught:
        complete(scripted({"when": {"user": "never"}, "replies": ["x"]}))
    assert "I feel low" not in str(caught.value)


def test_a_reply_depends_only_on_the_seed_and_each_is_drawn() -> None:
    model = scripted({"replies": ["a", "b", {"text": "c", "weight": 2.0}]})

    drawn = [complete(model, seed=seed).text for seed in range(400)]

    assert drawn == [complete(model, seed=seed).text for seed in range(400)]
    assert 60 < drawn.count("a") < 140
    assert 160 < drawn.count("c") < 240


@settings(max_examples=25, deadline=None)
@given(st.permutations(range(8)), st.integers(1, 8))
def test_order_and_concurrency_do_not_matter(order: list[int], n_workers: int) -> None:
    rule = {"replies": ["${a} ${b}", "${b}"], "latency_s": [0.0, 0.0005], "faults": [{"kind": "blank", "p": 0.3}]}
    model = scripted(rule, pieces={"a": ["1", "2", "3"], "b": ["4", "5"]})

    async def ask_all() -> dict[int, str]:
        slots = asyncio.Semaphore(n_workers)

        async def ask(seed: int) -> str:
            async with slots:
                return (await model.complete(HELLO, Sampling(), seed=seed)).text

        return dict(zip(order, await asyncio.gather(*map(ask, order)), strict=True))

    assert asyncio.run(ask_all()) == {seed: complete(model, seed=seed).text for seed in range(8)}


def test_temperature_zero_draws_the_same_for_every_seed() -> None:
    model = scripted({"replies": ["a", "b", "c"]})
    assert len({complete(model, seed=seed, temperature=0.0).text for seed in range(20)}) == 1


def test_replies_may_follow_the_length_of_the_conversation() -> None:
    model = scripted({"replies": ["first", "second", "last"], "choose": "turns"})
    assert [complete(model, talk(n)).text for n in (1, 2, 3, 4, 9)] == ["first", "second", "second", "last", "last"]


def test_turns_are_messages_or_labelled_lines() -> None:
    lines = "The talk:\nSeeker: I am low\nSupporter [Clarification]: Since when?\nSeeker: May\n\nSame: no change"
    assert n_turns(talk(5)) == 5
    assert n_turns([Message("system", "x"), Message("user", lines)]) == 3


# ---------------------------------------------------------------- limits and faults


def test_a_reply_is_cut_at_the_token_limit_and_at_stop_texts() -> None:
    model = scripted({"replies": ["one two\nthree four"]})

    cut = complete(model, max_tokens=3)
    assert (cut.text, cut.stop_reason, cut.usage.completion_tokens) == ("one two\nthree", StopReason.LENGTH, 3)
    whole = complete(model, max_tokens=4)
    assert (whole.text, whole.stop_reason) == ("one two\nthree four", StopReason.STOP)
    assert complete(model, stop=["\n"]).text == "one two"


def test_usage_counts_words() -> None:
    usage = complete(scripted({"replies": ["one two"]})).usage
    assert (usage.calls, usage.prompt_tokens, usage.completion_tokens) == (1, 6, 2)


def test_faults() -> None:
    def faulty(kind: str) -> ScriptedModel:
        return scripted({"replies": ["one two three four"], "faults": [{"kind": kind}]})

    assert complete(faulty("blank")).text == ""
    assert "one" not in complete(faulty("nonsense")).text
    cut = complete(faulty("length"))
    assert (cut.text, cut.stop_reason) == ("one two", StopReason.LENGTH)
    with pytest.raises(BackendError, match="scripted"):
        complete(faulty("backend"))


def test_a_fault_with_a_probability_is_drawn_from_the_seed() -> None:
    model = scripted({"replies": ["x"], "faults": [{"kind": "blank", "p": 0.25}]})
    n_blank = sum(not complete(model, seed=seed).text for seed in range(400))
    assert 70 < n_blank < 130


# ---------------------------------------------------------------- read-outs


def test_scores_follow_the_weights_of_the_replies() -> None:
    model = scripted({"replies": [{"text": "Same", "weight": 1}, {"text": "Slightly Better", "weight": 3}]})

    scores = asyncio.run(model.score(HELLO, ["Same", "Slightly Better"])).choices

    assert [math.exp(score.log_p) for score in scores] == pytest.approx([0.25, 0.75])
    assert [score.n_tokens for score in scores] == [1, 2]
    sharper = asyncio.run(model.score(HELLO, ["Same", "Slightly Better"], temperature=0.5)).choices
    assert [math.exp(score.log_p) for score in sharper] == pytest.approx([0.1, 0.9])


def test_an_unlisted_choice_is_nearly_impossible_but_finite() -> None:
    model = scripted({"replies": ["Same"], "scores": {"Same": 2.0}})
    listed, unlisted = asyncio.run(model.score(HELLO, ["Same", "Never"], temperature=0.01)).choices
    assert listed.log_p == pytest.approx(0.0)
    assert unlisted.log_p == pytest.approx(math.log(1e-6) / 0.01)


def test_next_token_gives_nothing_to_unlisted_labels() -> None:
    model = scripted({"replies": ["x"], "next_token": {"1": 1, "5": 2, "zzz": 1}})
    token = asyncio.run(model.next_token(HELLO, ["1", "2", "5"]))
    assert token.probabilities == pytest.approx((0.25, 0.0, 0.5))
    assert token.label_mass == pytest.approx(0.75)


def test_spread_moves_weights_between_prompts_not_between_calls() -> None:
    model = scripted({"replies": ["x"], "next_token": {"1": 1, "5": 1}, "spread": 1.0})
    read = [asyncio.run(model.next_token(talk(n), ["1", "5"])).probabilities for n in (1, 2, 1)]
    assert read[0] == read[2]
    assert read[0] != read[1]


def test_a_script_may_offer_no_readouts() -> None:
    model = scripted({"replies": ["x"]}, capabilities=[])
    assert model.capabilities == frozenset()
    with pytest.raises(ConfigError):
        asyncio.run(model.score(HELLO, ["x"]))
    with pytest.raises(ConfigError):
        asyncio.run(model.next_token(HELLO, ["x"]))


# ---------------------------------------------------------------- loading


def test_all_faults_of_a_file_are_named_at_once(tmp_path: Path) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text('rules:\n  - reply: [a]\n    when: {user: "("}\n    faults: [{kind: bored}]\nextra: 1\n')

    with pytest.raises(ConfigError) as caught:
        load_scripted(str(path))

    text = str(caught.value)
    for expected in (
        "rules.0.replies",
        "did you mean 'replies'",
        "rules.0.when.user",
        "rules.0.faults.0.kind",
        "extra",
    ):
        assert expected in text


@pytest.mark.parametrize(
    "text",
    ["", "[1, 2]", "rules: []", "rules: [{replies: [], choose: seed}]", "rules: [", "rules: [{replies: ['$$ ${no}']}]"],
)
def test_what_is_no_script_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_scripted(str(path))


@pytest.mark.parametrize("number", [".nan", ".inf"])
@pytest.mark.parametrize("field", ["spread", "latency_s", "scores: {a: 1, b", "faults: [{kind: blank, p"])
def test_a_script_with_a_number_that_is_not_finite_is_refused(tmp_path: Path, field: str, number: str) -> None:
    closing = "}" * field.count("{") + "]" * field.count("[")
    path = tmp_path / "bad.yaml"
    path.write_text(f"rules: [{{replies: [x], {field}: {number}{closing}}}]")
    with pytest.raises(ConfigError, match=re.escape(str(path))):
        load_scripted(str(path))


def test_the_name_holds_the_digest_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rules: [{replies: [a]}]")
    first = load_scripted(str(path)).name
    path.write_text("rules: [{replies: [b]}]")
    assert re.fullmatch(r"scripted/mine-[0-9a-f]{8}", first)
    assert load_scripted(str(path)).name != first


def test_an_unknown_script_names_the_shipped_ones() -> None:
    with pytest.raises(ConfigError, match=r"did you mean 'seeker'") as caught:
        load_scripted("seker")
    assert "supporter" in str(caught.value)


def test_functions_and_models_are_plugged_in_by_module_and_name() -> None:
    function = load_scripted(f"{__name__}:answer_in_capitals")
    assert complete(function, seed=4).text == "I FEEL LOW 4"
    assert function.capabilities == frozenset()
    with pytest.raises(ConfigError):
        asyncio.run(function.score(HELLO, ["x"]))
    assert load_scripted(f"{__name__}:OBJECT") is OBJECT
    with pytest.raises(ConfigError, match="is a class"):
        load_scripted(f"{__name__}:ScriptedModel")
    with pytest.raises(ConfigError, match="is a list"):
        load_scripted(f"{__name__}:HELLO")
    with pytest.raises(ConfigError, match="returned a int"):
        complete(load_scripted(f"{__name__}:answer_with_a_number"))


# ---------------------------------------------------------------- the scripts that ship


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_scripts_load_by_name_and_by_path(name: str) -> None:
    assert load_scripted(name).name == load_scripted(f"recipes/scripted/{name}.yaml").name
    if name != "judge":  # a judge answers its own questions only, and takes no part in a talk
        assert not any(complete(load_scripted(name), talk(n), seed=3).text == "" for n in range(1, 30))


def replies(name: str) -> set[str]:
    model = load_scripted(name)
    prompts = [[*talk(n), Message("user", f"This is your turn number {n}.")] for n in (1, 6, 12, 30)]
    return {complete(model, prompt, seed=seed, max_tokens=256).whole for prompt in prompts for seed in range(60)}


def test_the_shipped_supporter_keeps_to_the_form_and_varies() -> None:
    texts = replies("supporter")
    assert len(texts) > 40
    assert all(re.fullmatch(r"<think>[^<>]+</think> <response>[^<>]+</response>", text) for text in texts)


def test_the_shipped_supporter_of_search_is_short_and_plain() -> None:
    assert all(len(text.split()) <= 25 and "<" not in text for text in replies("supporter_aflow"))


def test_shipped_seekers_are_short_and_one_of_them_ends_talks() -> None:
    plain, ending = replies("seeker"), replies("seeker_aflow")
    assert all(len(text.split()) <= 20 for text in plain | ending)
    assert not any("<" in text for text in plain)
    assert "</end/>" in ending
    assert any(text.endswith(" <ok>") for text in ending)
    assert all(text == "</end/>" or re.fullmatch(r"[^<>]+( <ok>)?", text) for text in ending)


def test_the_shipped_critic_answers_level_names_that_get_better() -> None:
    assert {"Same", *LEVELS} - {"Significantly Worse"} <= replies("critic") <= {"Same", *LEVELS}
    critic = load_scripted("critic")

    def better(n: int) -> float:
        scores = asyncio.run(critic.score(talk(n), ["Same", *LEVELS])).choices
        return sum(math.exp(score.log_p) for score in scores[1:4])

    assert better(20) > better(2)
    assert asyncio.run(critic.next_token(talk(3), list("ABCDEFG"))).label_mass == pytest.approx(1.0)


def test_the_shipped_rubric_critic_answers_four_ratings() -> None:
    assert all(re.fullmatch(r"1: [1-5]\n2: [1-5]\n3: [1-5]\n4: [1-5]", text) for text in replies("critic_rubric"))
    token = asyncio.run(load_scripted("critic_rubric").next_token(talk(3), list("12345")))
    assert token.label_mass == pytest.approx(1.0)


def test_the_shipped_strategist_gives_probabilities_of_all_eight() -> None:
    for text in replies("strategist"):
        weights = json.loads(text)
        assert list(weights) == ABBREVIATIONS
        assert sum(weights.values()) == pytest.approx(1.0)


def test_what_is_loaded_is_a_chat_model() -> None:
    assert isinstance(load_scripted("seeker"), ScriptedModel)
    assert isinstance(load_scripted(f"{__name__}:answer_in_capitals"), ScriptedModel)
