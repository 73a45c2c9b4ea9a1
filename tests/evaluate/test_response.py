"""Overlap metrics: the worked numbers, agreement with the libraries, and the jackknife of Distinct."""

import math

import numpy as np
import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from esckit.evaluate.suites.response import METEOR_EXACT, PPL, ROUGE_L, ResponseCase, bleu, distinct, response_rows
from esckit.metrics.intervals import jackknife_error
from esckit.metrics.metric import collect
from esckit.metrics.overlap import match_runs, meteor_exact, rouge_l
from esckit.metrics.rows import leave_one_out
from esckit.text import tokenise
from tests.evaluate.casefakes import measurement, response_case

REPLIES = ("I hear how tired you are.", "Have you told your manager?")
REFERENCES = ("I can hear how very tired you are.", "Have you talked to your manager yet?")
CASES = [response_case(index, *pair) for index, pair in enumerate(zip(REPLIES, REFERENCES, strict=True))]


def value(metric: object, cases: list[ResponseCase]) -> float:
    found = metric.finish(collect(metric, cases).stats)  # type: ignore[attr-defined, arg-type]
    assert found is not None
    return float(found)


def test_tokens() -> None:
    assert tokenise("I\u2019m TIRED, you-know…") == ("i", "'", "m", "tired", ",", "you", "-", "know", "…")
    assert [len(tokenise(text)) for text in (*REPLIES, *REFERENCES)] == [7, 6, 9, 8]


def test_the_worked_bleu() -> None:
    stats = np.asarray(collect(bleu(4), CASES).stats).sum(axis=0).tolist()
    assert stats == [12, 6, 2, 1, 13, 11, 9, 7, 13, 17]
    assert value(bleu(2), CASES) == pytest.approx(52.1638, abs=5e-5)
    assert value(bleu(4), CASES) == pytest.approx(26.1392, abs=5e-5)
    assert value(bleu(2), CASES[:1]) == pytest.approx(61.3579, abs=5e-5)
    assert value(bleu(4), CASES[:1]) == pytest.approx(38.1850, abs=5e-5)
    assert value(bleu(2), CASES[1:]) == pytest.approx(41.3690, abs=5e-5)
    assert value(bleu(4), CASES[1:]) == pytest.approx(0.0001, abs=5e-5)


def test_the_worked_rouge_meteor_and_distinct() -> None:
    assert [value(ROUGE_L, [case]) for case in CASES] == pytest.approx([87.5, 71.4286], abs=5e-5)
    assert value(ROUGE_L, CASES) == pytest.approx(79.4643, abs=5e-5)
    tokens = [(tokenise(case.reply or ""), tokenise(case.reference)) for case in CASES]
    assert [match_runs(*pair) for pair in tokens] == [(7, 3), (5, 3)]
    assert [value(METEOR_EXACT, [case]) for case in CASES] == pytest.approx([76.4147, 57.1795], abs=5e-5)
    assert value(METEOR_EXACT, CASES) == pytest.approx(66.7971, abs=5e-5)
    assert value(distinct(1), CASES) == pytest.approx(92.3077, abs=5e-5)
    assert value(distinct(2), CASES) == 100


def test_perplexity_is_no_mean_of_perplexities() -> None:
    cases = [
        CASES[0].model_copy(update={"nll": 12.0, "n_scorer_tokens": 5}),
        CASES[1].model_copy(update={"nll": 30.0, "n_scorer_tokens": 15}),
    ]
    assert value(PPL, cases) == pytest.approx(8.166170, abs=5e-7)
    assert value(PPL, cases) == pytest.approx(math.exp(2.1))


def test_a_failed_scorer_leaves_a_perplexity_with_its_reasons() -> None:
    failed = [CASES[0].model_copy(update={"nll_unscored": "too_long"}), CASES[1]]
    for cases, n in ((failed, 0), ([failed[0], CASES[1].model_copy(update={"nll": 30.0, "n_scorer_tokens": 15})], 1)):
        rows = response_rows(cases, measurement("response", ["d0", "d1"]), scorer=True)
        row = next(row for row in rows if row.name == "response.ppl")
        assert (row.value is None, row.n) == (n == 0, n)
        assert row.reason
        assert row.unscored == {"too_long": 1} | ({"missing": 1} if n == 0 else {})
    rows = response_rows(failed, measurement("response", ["d0", "d1"]))
    assert "response.ppl" not in {row.name for row in rows}


def test_only_outputs_without_the_agreed_form_are_malformed() -> None:
    forms = [("untagged", True), ("untagged", False), ("ok", True), ("open_response", False)]
    cases = [
        response_case(index, "I see.").model_copy(update={"parse_kind": kind, "format_ok": ok})
        for index, (kind, ok) in enumerate(forms)
    ]
    rows = response_rows([*cases, response_case(9, None)], measurement("response", [f"d{n}" for n in range(10)]))
    shares = {row.group["parse_kind"]: row for row in rows if row.name == "response.malformed_share" and row.group}
    found = {kind: row.value for kind, row in shares.items()}
    assert found == {"closed_response": 0.0, "open_response": 0.25, "untagged": 0.25}
    assert {kind: row.unscored for kind, row in shares.items()} == {kind: {"blank": 1} for kind in found}


def test_the_jackknife_of_distinct() -> None:
    texts = [["I hear you.", "That is hard."], ["I hear you.", "Tell me more."], ["What would help you?"]]
    cases = [
        response_case(10 * d + i, text, dialogue=f"d{d}")
        for d, group in enumerate(texts)
        for i, text in enumerate(group)
    ]
    found = collect(distinct(1), cases)
    assert value(distinct(1), cases) == pytest.approx(100 * 14 / 21)
    left_out = leave_one_out(distinct(1), found) / 100
    assert left_out == pytest.approx([0.846154, 0.846154, 0.625], abs=5e-7)
    assert jackknife_error(left_out) == pytest.approx(0.147436, abs=5e-7)


words = st.lists(st.sampled_from(["a", "b", "c", "d", "."]), min_size=4, max_size=12)


@given(st.lists(st.tuples(words, words), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_bleu_is_sacrebleu_where_every_order_matches(pairs: list[tuple[list[str], list[str]]]) -> None:
    replies, references = ([" ".join(side) for side in sides] for sides in zip(*pairs, strict=True))
    cases = [response_case(index, *pair) for index, pair in enumerate(zip(replies, references, strict=True))]
    theirs = sacrebleu.metrics.BLEU(tokenize="none", smooth_method="none", force=True).corpus_score(
        replies, [references]
    )
    if theirs.counts[3]:
        assert value(bleu(4), cases) == pytest.approx(theirs.score)
    else:
        # On purpose: theirs is 0, ours has a floor and stays comparable in a mean of logs.
        assert theirs.score == 0 < value(bleu(4), cases)


@given(words, words)
@settings(max_examples=40, deadline=None)
def test_rouge_l_is_that_of_the_library(reply: list[str], reference: list[str]) -> None:
    assert 0 <= rouge_l(tuple(reply), tuple(reference)) <= 100
    assert rouge_l(tuple(reply), tuple(reply)) == 100
    # Its own tokenizer drops punctuation, so only texts without any give the same number.
    plain = [word for word in reply if word != "."], [word for word in reference if word != "."]
    if all(plain):
        theirs = RougeScorer(["rougeL"]).score(" ".join(plain[1]), " ".join(plain[0]))["rougeL"].fmeasure
        assert rouge_l(tuple(plain[0]), tuple(plain[1])) == pytest.approx(100 * theirs)


@given(words, words)
@settings(max_examples=40, deadline=None)
def test_meteor_stays_in_its_range(reply: list[str], reference: list[str]) -> None:
    assert 0 <= meteor_exact(tuple(reply), tuple(reference)) <= 100
    assert meteor_exact(tuple(reply), tuple(reply)) == pytest.approx(100 * (1 - 0.5 / len(reply) ** 3))


def test_a_blank_reply_is_no_reply() -> None:
    with pytest.raises(ValueError, match="unscored"):
        ResponseCase(id="x", dialogue_id="x", context_id="x", reply=" ", reference="Yes.")


def test_unscored_replies_change_coverage_and_no_value() -> None:
    scored = [response_case(index, f"I hear you number {index}.", "I hear you.") for index in range(40)]
    silent = [response_case(100 + index, None) for index in range(5)]
    rows = [
        response_rows(cases, measurement("response", [case.dialogue_id for case in scored + silent]))
        for cases in (scored, scored + silent)
    ]
    for alone, both in zip(*rows, strict=True):
        assert alone.value == both.value
        assert (both.n_unscored, both.unscored, both.coverage) == (5, {"blank": 5}, 40 / 45)
        assert "low_coverage" in both.flags
        assert "low_coverage" not in alone.flags


def test_without_a_scored_case_there_is_no_number() -> None:
    rows = response_rows([response_case(0, None)], measurement("response", ["d0"]))
    assert all(row.value is None and row.reason and row.interval is None for row in rows)


def test_distinct_replays_any_selection_of_dialogues() -> None:
    texts = ["a b a", "b c", "a b", "d d d", "e"]
    cases = [response_case(index, text) for index, text in enumerate(texts)]
    metric = distinct(1)
    found = collect(metric, cases)
    draws = np.array([[1, 0, 1, 0, 1], [0, 1, 0, 2, 1], [1, 1, 1, 1, 1]], dtype=float)
    replayed = metric.estimator.replay(found.stats, np.arange(5), draws)
    assert replayed == pytest.approx([100 * 3 / 6, 100 * 4 / 9, value(metric, cases)])


def test_a_perplexity_beyond_any_float_is_no_value() -> None:
    cases = [case.model_copy(update={"nll": 9000.0, "n_scorer_tokens": 3}) for case in CASES]
    found = response_rows(cases, measurement("response", [case.dialogue_id for case in cases]), scorer=True)
    row = next(row for row in found if row.name == "response.ppl")
    assert (row.value, row.interval, row.n) == (None, None, len(CASES))
    assert row.reason == "needs 1 scored token, and a perplexity that a float can hold"
