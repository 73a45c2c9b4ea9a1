"""The local chat model against plain transformers, and the perplexity scorer."""

import asyncio
import dataclasses
import math

import pytest
import torch
from tokenizers.processors import TemplateProcessing
from torch.nn import functional as F

from esckit.config.sections import Executor
from esckit.errors import BackendError, ConfigError
from esckit.models.in_memory import build
from esckit.models.local import LocalModel, PerplexityScorer, batch_tokens
from esckit.protocols import ChatModel
from esckit.types import Message, Sampling, StopReason, Turn
from tests.models.local_fakes import LONG, Naive, ask_all, prompts, tiny_local

FAMILIES = ["qwen2", "llama", "gemma2"]
LEVELS = ["Much worse", "Worse", "Slightly worse", "No change", "Slightly better", "Better", "Much better"]
ASK = [Message("system", LONG), Message("user", "How do I feel?")]
ASK_ABOUT_1 = [Message("user", "1")]


def score(model: LocalModel, choices: list[str], temperature: float = 1.0):
    return asyncio.run(model.score(ASK, choices, temperature=temperature)).choices


@pytest.mark.smoke
@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_texts_agree_with_transformers_alone_and_together(family):
    asked, greedy = prompts(), Sampling(temperature=0, max_tokens=16)
    naive = Naive(family)
    expected = [naive.complete(messages, max_new_tokens=16) for messages in asked]
    model = tiny_local(family)
    assert [reply.text for reply in ask_all(model, asked, greedy)] == expected
    assert [reply.text for reply in ask_all(model, asked, greedy)] == expected  # now with a warm prefix store
    assert [ask_all(tiny_local(family), [messages], greedy)[0].text for messages in asked] == expected


def test_repetition_penalty_agrees_with_plain_transformers():
    naive, asked = Naive(), prompts(3)
    expected = [naive.complete(messages, max_new_tokens=16, repetition_penalty=1.3) for messages in asked]
    sampling = Sampling(temperature=0, max_tokens=16, repetition_penalty=1.3)
    assert [reply.text for reply in ask_all(tiny_local(), asked, sampling)] == expected


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=12), Sampling(max_tokens=12, top_p=0.8, top_k=20)])
def test_draws_do_not_depend_on_the_company(sampling):
    asked, seeds = prompts(), [11, 5, 5, 2**63 - 1, 0, 3, 4, 9]
    together = ask_all(tiny_local(), asked, sampling, seeds)
    order = [6, 2, 0, 7, 5, 1, 4, 3]
    shuffled = ask_all(tiny_local(max_batch_tokens=300), [asked[i] for i in order], sampling, [seeds[i] for i in order])
    assert [shuffled[order.index(i)] for i in range(len(asked))] == together
    assert [ask_all(tiny_local(), [m], sampling, [s])[0] for m, s in zip(asked, seeds, strict=True)] == together


def everything_asked(model: LocalModel, places: list[int]) -> list[object]:
    """Ask for a reply, a score and a read-out of some prompts at once; numbers are returned in every bit."""

    async def gather() -> list[object]:
        asked = [prompts()[place] for place in places]
        replies = [model.complete(each, Sampling(max_tokens=12), seed=3) for each in asked]
        scores = [model.score(each, LEVELS) for each in asked]
        tokens = [model.next_token(each, ["A", "B"]) for each in asked]
        found = [await asyncio.gather(*calls) for calls in (replies, scores, tokens)]
        await model.aclose()
        return [*zip(*found, strict=True)]

    return asyncio.run(gather())


@pytest.mark.parametrize("family", FAMILIES)
def test_an_invariant_model_answers_alike_in_every_bit(family):
    together = everything_asked(tiny_local(family, is_invariant=True), [*range(8)])
    warm = tiny_local(family, is_invariant=True)
    for places in ([5, 0, 3], [3], [7, 1]):
        assert everything_asked(warm, places) == [together[place] for place in places]


def test_seeds_make_the_difference():
    replies = ask_all(tiny_local(), [ASK] * 6, Sampling(max_tokens=12), [1, 2, 3, 4, 1, 2])
    assert replies[:2] == replies[4:]
    assert len({reply.text for reply in replies}) == 4


def test_a_cancelled_call_does_not_disturb_the_others():
    sampling = Sampling(temperature=0, max_tokens=40)
    expected = ask_all(tiny_local(), prompts()[:3], sampling)

    async def talk():
        model = tiny_local()
        calls = [asyncio.create_task(model.complete(m, sampling, seed=i)) for i, m in enumerate(prompts()[:3])]
        await asyncio.sleep(0.02)
        calls[1].cancel()
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        await model.aclose()
        return outcomes

    first, second, third = asyncio.run(talk())
    assert isinstance(second, asyncio.CancelledError)
    assert [first, third] == [expected[0], expected[2]]


def test_a_model_that_fails_is_a_typed_failure():
    model, tokenizer = build("tiny-random")
    chat = LocalModel(model, tokenizer, name="broken")
    model.model.layers[1].mlp.down_proj.weight.data = torch.zeros(3, 3)
    with pytest.raises(BackendError, match="the local model failed"):
        asyncio.run(chat.complete(ASK, Sampling(), seed=0))


def test_usage_counts_the_shared_prefix_for_every_call():
    model = tiny_local()
    replies = ask_all(model, [ASK] * 3, Sampling(max_tokens=4, temperature=0))
    n_prompt = model.count_tokens(ASK)
    assert {reply.usage.prompt_tokens for reply in replies} == {n_prompt}
    assert all(reply.usage.calls == 1 and reply.usage.completion_tokens == 4 for reply in replies)
    assert all(reply.stop_reason is StopReason.LENGTH for reply in replies)


def test_a_stop_string_ends_and_is_cut_off():
    greedy = Sampling(temperature=0, max_tokens=24)
    whole = ask_all(tiny_local(), [ASK], greedy)[0].text
    stop = whole[len(whole) // 2 :][:2]
    reply = ask_all(tiny_local(), [ASK], greedy.model_copy(update={"stop": (stop,)}))[0]
    assert reply.text == whole[: whole.index(stop)]
    assert reply.stop_reason is StopReason.STOP
    assert reply.usage.completion_tokens < 24


def test_the_end_of_turn_stops_and_is_not_text():
    replies = ask_all(tiny_local(), [ASK] * 40, Sampling(max_tokens=60, temperature=2.0))
    stopped = [reply for reply in replies if reply.stop_reason is StopReason.STOP]
    assert stopped
    assert all("<|im_end|>" not in reply.text for reply in replies)


@pytest.mark.smoke
@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_score_equals_a_full_forward_pass(family, temperature):
    naive = Naive(family)
    prompt = naive.chat.encode(ASK)
    for choice, got in zip(LEVELS, score(tiny_local(family), LEVELS, temperature), strict=True):
        answer = naive.chat.answer(choice)
        with torch.no_grad():
            logits = naive.model(torch.tensor([[*prompt, *answer]])).logits[0].double()
        table = torch.log_softmax(logits / temperature, dim=-1)[len(prompt) - 1 : -1]
        expected = table[torch.arange(len(answer)), list(answer)].sum().item()
        assert got.log_p == pytest.approx(expected, abs=1e-4)
        assert got.n_tokens == len(answer)
        assert answer[-1] == naive.chat.end_of_turn


def test_a_score_does_not_depend_on_the_other_choices():
    together = score(tiny_local(), LEVELS)
    assert [score(tiny_local(), [level])[0].log_p for level in LEVELS] == pytest.approx(
        [choice.log_p for choice in together], abs=1e-4
    )
    assert score(tiny_local(), []) == ()


def test_next_token_sums_the_tokens_that_read_as_a_label():
    model, naive = tiny_local(), Naive()
    found = asyncio.run(model.next_token(ASK, ["A", "B", "I"]))
    p = naive.log_probs(naive.chat.encode(ASK))[-1].exp()
    texts = [naive.chat.decode((token,)).strip() for token in range(len(p))]
    expected = [sum(float(q) for q, text in zip(p, texts, strict=True) if text == label) for label in "ABI"]
    assert found.probabilities == pytest.approx(expected, abs=1e-6)
    assert found.label_mass == pytest.approx(sum(expected), abs=1e-6)
    assert 0 < found.label_mass <= 1
    with pytest.raises(ConfigError, match="no single token"):
        asyncio.run(model.next_token(ASK, ["A", "Slightly better"]))


def test_all_single_tokens_together_have_at_most_probability_one():
    model = tiny_local()
    labels = sorted(model._label_tokens)
    found = asyncio.run(model.next_token(ASK, labels))
    assert 0.5 < found.label_mass <= 1.0


def test_a_prompt_that_is_too_long_is_typed():
    model = tiny_local()
    asked = [Message("user", LONG * 40)]
    with pytest.raises(BackendError, match="2048") as caught:
        ask_all(model, [asked], Sampling())
    assert caught.value.kind == "too_long"


def test_a_reply_ends_where_the_context_does():
    model = tiny_local()
    model.context_length = model.count_tokens(ASK) + 5
    reply = ask_all(model, [ASK], Sampling(temperature=0, max_tokens=50))[0]
    assert reply.usage.completion_tokens == 5
    assert reply.stop_reason is StopReason.LENGTH


def test_loading_twice_gives_the_same_copy():
    first = LocalModel.load("tiny-random", dtype="float32", device="cpu")
    assert first is LocalModel.load("tiny-random", dtype="float32", device="cpu")
    assert first is not LocalModel.load("tiny-random", dtype="bfloat16", device="cpu")
    assert first.name == "tiny-random"


def test_bfloat16_runs():
    model = LocalModel.load("tiny-random", dtype="bfloat16", device="cpu")
    assert all(reply.usage.completion_tokens for reply in ask_all(model, prompts(), Sampling(max_tokens=6)))


@pytest.mark.parametrize(("setting", "message"), [({"dtype": "int4"}, "dtype"), ({"device": "abacus"}, "device")])
def test_wrong_settings_are_clear(setting, message):
    with pytest.raises(ConfigError, match=message):
        LocalModel.load("tiny-random", **setting)


def test_a_folder_that_transformers_cannot_load_is_clear(tmp_path):
    for name, text in {"config.json": "{}", "tokenizer.json": "{}", "model.safetensors": ""}.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match="cannot be loaded: KeyError"):
        LocalModel.load(str(tmp_path), dtype="float32")


def test_it_is_a_chat_model():
    model: ChatModel = tiny_local()
    assert model.capabilities == {"score", "next_token"}
    asyncio.run(model.check())
    assert dataclasses.is_dataclass(asyncio.run(model.complete(ASK, Sampling(max_tokens=1), seed=0)))


def test_reasoning_that_the_template_opens_is_no_answer() -> None:
    model, tokenizer = build("tiny-random")
    opening = "assistant\\n<think>\\n' }}{% endif"
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\\n' }}{% endif", opening)
    reply = asyncio.run(LocalModel(model, tokenizer, name="t").complete(ASK, Sampling(max_tokens=4), seed=0))
    assert reply.only_reasoned
    assert reply.whole.startswith("<think>")


def poisoned(word: str) -> LocalModel:
    """A model whose numbers are NaN as soon as it has read a word."""
    model, tokenizer = build("tiny-random")
    ids = tokenizer.encode(word, add_special_tokens=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[ids] = torch.nan
    return LocalModel(model, tokenizer, name="poisoned")


@pytest.mark.parametrize("sampling", [Sampling(max_tokens=30), Sampling(max_tokens=30, temperature=0)])
def test_logits_that_are_not_finite_fail_their_call_alone(sampling):
    word = " exam"
    asked = [[Message("user", text)] for text in ("How bad is it, all in all?", f"{word} x y z" * 8, "Bad?")]
    healthy = ask_all(tiny_local(), [asked[0], asked[2]], sampling, [0, 2])

    async def talk():
        model = poisoned(word)
        calls = [model.complete(messages, sampling, seed=i) for i, messages in enumerate(asked)]
        found = await asyncio.gather(*calls, return_exceptions=True)
        found.append(await model.complete(asked[2], sampling, seed=2))
        await model.aclose()
        return found

    first, broken, third, later = asyncio.run(talk())
    assert (broken.kind, "not finite" in str(broken)) == ("not_finite", True)
    assert [first, third] == healthy
    assert later == third


def test_read_outs_that_are_not_finite_are_typed_failures():
    model = poisoned("1")
    for call in (model.score(ASK_ABOUT_1, LEVELS), model.next_token(ASK_ABOUT_1, ("1", "2", "3"))):
        with pytest.raises(BackendError) as caught:
            asyncio.run(call)
        assert caught.value.kind == "not_finite"


def test_a_gpu_has_more_tokens_in_flight_unless_the_recipe_says():
    cpu, cuda = torch.device("cpu"), torch.device("cuda", 1)
    assert (batch_tokens(cpu), batch_tokens(cuda), batch_tokens(cuda, 4096)) == (16_384, 65_536, 4096)
    assert Executor().batch_tokens is None


TALK = (Turn(speaker="seeker", text="I lost my job."),)


@pytest.fixture(scope="module")
def scorer() -> PerplexityScorer:
    model, tokenizer = build("tiny-random")
    return PerplexityScorer(model, tokenizer, name="tiny-random")


def test_the_reply_alone_is_counted_and_the_context_only_read(scorer: PerplexityScorer) -> None:
    model, tokenizer = build("tiny-random")
    context = tokenizer.encode("Seeker: I lost my job.\nSupporter:", add_special_tokens=False)
    reply = tokenizer.encode(" I hear you.", add_special_tokens=False)
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([context + reply])).logits[0, len(context) - 1 : -1]
    expected = F.cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
    found = scorer.score(TALK, "I hear you.")
    assert found.n_tokens == len(reply)
    assert math.isclose(found.nll, expected, rel_tol=1e-5)
    assert scorer.score((), "I hear you.").nll != found.nll


@pytest.mark.parametrize("adds_it_itself", [False, True])
def test_the_bos_token_is_read_once_and_not_counted(adds_it_itself: bool) -> None:
    model, tokenizer = build("tiny-random")
    tokenizer.bos_token = "<|endoftext|>"
    if adds_it_itself:
        special = ("<|endoftext|>", tokenizer.bos_token_id)
        template = {"single": "<|endoftext|> $A", "pair": "<|endoftext|> $A $B", "special_tokens": [special]}
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing(**template)
        assert tokenizer.encode("Hi.")[0] == tokenizer.bos_token_id
    context = tokenizer.encode("<|endoftext|>Seeker: I lost my job.\nSupporter:", add_special_tokens=False)
    assert context.count(tokenizer.bos_token_id) == 1
    reply = tokenizer.encode(" I hear you.", add_special_tokens=False)
    with torch.inference_mode():
        logits = model.eval()(torch.tensor([context + reply])).logits[0, len(context) - 1 : -1]
    expected = F.cross_entropy(logits, torch.tensor(reply), reduction="sum").item()
    scorer = PerplexityScorer(model, tokenizer, name="tiny")
    found = scorer.score(TALK, "I hear you.")
    assert scorer.name == "tiny, after <|endoftext|>"
    assert found.n_tokens == len(reply)
    assert math.isclose(found.nll, expected, rel_tol=1e-5)


def test_an_overlong_conversation_keeps_its_bos() -> None:
    model, tokenizer = build("tiny-random")
    tokenizer.bos_token = "<|endoftext|>"
    seen = []
    model.register_forward_pre_hook(lambda _, args, options: seen.append(options["input_ids"]), with_kwargs=True)
    PerplexityScorer(model, tokenizer, name="tiny").score((Turn(speaker="seeker", text="word " * 3000),), "Hi.")
    assert (seen[0].shape, int(seen[0][0, 0])) == ((1, 2048), tokenizer.bos_token_id)


def test_an_overlong_conversation_loses_its_oldest_part(scorer: PerplexityScorer) -> None:
    long = tuple(Turn(speaker="seeker", text="word " * 3000) for _ in range(3))
    assert scorer.score(long, "I hear you.").n_tokens == scorer.score(TALK, "I hear you.").n_tokens


def test_a_reply_that_cannot_be_read_at_all_is_a_typed_failure(scorer: PerplexityScorer) -> None:
    with pytest.raises(BackendError) as caught:
        scorer.score(TALK, "word " * 20_000)
    assert caught.value.kind == "too_long"


def test_a_likelihood_that_is_not_finite_is_a_typed_failure() -> None:
    model, tokenizer = build("tiny-random")
    with torch.no_grad():
        model.model.norm.weight[0] = torch.nan
    with pytest.raises(BackendError) as caught:
        PerplexityScorer(model, tokenizer, name="broken").score(TALK, "I hear you.")
    assert caught.value.kind == "not_finite"
