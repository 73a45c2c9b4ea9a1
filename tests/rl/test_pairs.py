"""Which simulated candidates become a preference pair."""

from fractions import Fraction

import pytest

from esckit.models.backbones import tiny_tokenizer
from esckit.prompts.prompt import load_prompt
from esckit.rl.policy import training_format
from esckit.rl.rows import PolicyPrompt, best_and_worst, build_pairs
from esckit.roles.asking import split_output
from esckit.types import Exchange, Future, Outcome
from tests.rl.rl_fakes import contexts

GOOD = "<think>a</think> <response>reply {}</response>"


def future(context_id: str, candidate: int, reward: str | None, text: str = GOOD, seed: int = 7) -> Future:
    value = None if reward is None else Fraction(reward)
    return Future(
        id=f"{context_id}:c{candidate}",
        context_id=context_id,
        dialogue_id=context_id.partition("#")[0],
        candidate=candidate,
        run_seed=seed,
        outcome=Outcome.FAILED if value is None else Outcome.MAX_TURNS,
        k=2,
        reward_num=value.numerator if value is not None else None,
        reward_den=value.denominator if value is not None else None,
        reward=float(value) if value is not None else None,
        exchanges=(Exchange(k=0, supporter=split_output(text.format(candidate))),),
    )


def built(futures, **options):
    prompt = PolicyPrompt(load_prompt("supporter_rlff"), training_format(tiny_tokenizer(), []), 2048)
    settings = {"require_format": True, "max_completion_tokens": 512, **options}
    return build_pairs({context.id: context for context in contexts(2)}, futures, prompt, **settings)


def test_highest_against_lowest_and_the_first_among_equals():
    futures = [future("d0#m1", i, reward) for i, reward in enumerate(("1/3", "1/2", "1/2", "-1/4", "-1/4", None))]
    ((best, worst),) = best_and_worst(futures)
    assert (best.candidate, worst.candidate) == (1, 3)
    (row,) = built(futures).rows
    assert row["chosen"] == [{"role": "assistant", "content": GOOD.format(1)}]
    assert row["rejected"] == [{"role": "assistant", "content": GOOD.format(3)}]
    assert [message["role"] for message in row["prompt"]] == ["system", "user"]


@pytest.mark.parametrize("rewards", [("1/2", "1/2"), ("1/2", None), (None, None)])
def test_without_two_different_rewards_there_is_no_pair(rewards):
    found = built([future("d0#m1", i, reward) for i, reward in enumerate(rewards)])
    assert (found.rows, found.counts["equal"]) == ((), 1)


def test_both_outputs_must_have_the_form_unless_the_recipe_says_otherwise():
    futures = [future("d0#m1", 0, "1/2"), future("d0#m1", 1, "0", "reply {}")]
    assert (built(futures).rows, built(futures).counts["malformed"]) == ((), 1)
    assert len(built(futures, require_format=False).rows) == 1


def test_outputs_that_do_not_fit_are_counted_and_run_seeds_kept_apart():
    futures = [future("d0#m1", 0, "1/2"), future("d0#m1", 1, "0")]
    assert built(futures, max_completion_tokens=4).counts["too_long"] == 1
    twice = [*futures, future("d0#m1", 0, "0", seed=8), future("d0#m1", 1, "1/2", seed=8)]
    assert len(built(twice).rows) == 2
