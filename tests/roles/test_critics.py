"""The critics of RLFF-ESC: both read-outs, retries, batches, and that nonsense never becomes a number."""

import asyncio
import math
from collections.abc import Sequence

import pytest

from esckit.config import sections
from esckit.errors import BackendError, BudgetError, ConfigError, NotFiniteError, UnscoredError
from esckit.ledger import Ledger
from esckit.models.budget import Budget
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.critics import ResolutionCritic, RewardCritic, level_weights
from esckit.roles.verdicts import load_preset
from esckit.types import ChoiceScore, ChoiceScores, Limits, Sampling, Scenario, Turn, Usage
from tests.fakes import FakeModel

TURNS = (Turn(speaker="seeker", text="I failed."), Turn(speaker="supporter", text="That hurts."))
SCENARIO = Scenario(id="s-1", situation="exam", emotion_type="shame", problem_type="academic pressure")
LOG_P = dict(zip(load_preset("rlff7").levels, (-2.0, -1.2, -0.7, -2.5, -5.0, -6.0, -7.0), strict=True))


def critic(model: FakeModel, *, temperature: float = 1.1, **settings: object) -> ResolutionCritic:
    return ResolutionCritic(
        Voice(model, sections.RoleOptions(sampling=Sampling(temperature=temperature, max_tokens=16))),
        load_prompt("critic_resolution"),
        load_preset("rlff7"),
        sections.ResolutionCritic(**settings),
    )


def read(found: ResolutionCritic, ledger: Ledger | None = None):
    scope = (ledger or Ledger(7, "c-1")).at(0, 1)
    return asyncio.run(found.score(SCENARIO, TURNS, scope))


def test_sampled_asks_with_one_prompt_and_as_many_seeds() -> None:
    model = FakeModel(lambda messages, seed: "Moderately better" if seed % 2 else "I cannot say")
    reading = read(critic(model)).reading
    assert len({messages for messages, _ in model.asked}) == 1
    assert len({seed for _, seed in model.asked}) == 10
    assert reading.n_parsed + reading.n_unparsed == 10
    assert (reading.num, reading.den) == (1, 2)
    assert reading.counts == (0, 0, reading.n_parsed, 0, 0, 0, 0)
    assert len(reading.unparsed) == min(3, reading.n_unparsed)


def test_nonsense_is_asked_again_and_then_unscored_never_zero() -> None:
    model = FakeModel(lambda messages, seed: "What a nice day")
    with pytest.raises(UnscoredError) as error:
        read(critic(model))
    assert len(model.asked) == len({seed for _, seed in model.asked}) == 20
    assert (error.value.kind, error.value.attempts, len(error.value.samples)) == ("unparsed", 2, 3)


def test_the_compatible_zero_is_marked() -> None:
    reading = read(critic(FakeModel(lambda messages, seed: "?"), ppdpp_compat=True)).reading
    assert (reading.value, reading.compat_zero, reading.n_parsed) == (0.0, True, 0)


def test_min_parsed_can_be_raised() -> None:
    answers = iter(["Same"] * 4 + ["?"] * 6 + ["Same"] * 5 + ["?"] * 5)
    reading = read(critic(FakeModel(lambda messages, seed: next(answers)), min_parsed=5)).reading
    assert (reading.attempts, reading.n_parsed) == (2, 5)


def test_a_backend_error_passes_through_after_all_samples() -> None:
    def answer(messages: object, seed: int) -> str:
        if seed % 2:
            raise BackendError("gone")
        return "Same"

    model, ledger = FakeModel(answer), Ledger(7, "c-1")
    with pytest.raises(BackendError):
        read(critic(model), ledger)
    assert len(model.asked) == 10
    assert ledger.usage["critic"].calls == sum(seed % 2 == 0 for _, seed in model.asked)  # what came back was paid for


@pytest.mark.parametrize(("kind", "value"), [("sequence", 0.391914), ("length_normalised", 0.381210)])
def test_expected_equals_the_worked_numbers(kind: str, value: float) -> None:
    # The fake counts one token a word, as the worked example does.
    reading = read(critic(FakeModel(log_p=LOG_P.__getitem__), readout="expected", expected_score=kind)).reading
    assert reading.value == pytest.approx(value, abs=5e-7)
    assert reading.fraction.limit_denominator(10**6) == reading.fraction
    assert reading.name_mass == pytest.approx(math.fsum(math.exp(log_p) for log_p in LOG_P.values()))
    assert reading.counts is None


def test_the_weights_of_the_worked_example() -> None:
    scores = ChoiceScores(tuple(ChoiceScore(LOG_P[level], 1) for level in LOG_P), Usage())
    expected = (0.131992, 0.293754, 0.484318, 0.080057, 0.006572, 0.002418, 0.000889)
    assert level_weights(scores, "sequence") == pytest.approx(expected, abs=5e-7)


def test_expected_needs_a_model_that_can_score() -> None:
    with pytest.raises(ConfigError, match=r"critic\.readout: sampled"):
        critic(FakeModel(capabilities=frozenset()), readout="expected")
    with pytest.raises(ConfigError, match="temperature"):
        critic(FakeModel(), readout="expected", temperature=0.0)


def test_a_low_name_mass_warns_once(caplog: pytest.LogCaptureFixture) -> None:
    found = critic(FakeModel(log_p=lambda choice: -9.0), readout="expected")
    for _ in range(30):
        read(found)
    assert len(caplog.records) == 1


def test_the_prompt_shows_types_and_labelled_lines() -> None:
    model = FakeModel(lambda messages, seed: "Same")
    read(critic(model))
    text = model.asked[0][0][1].content
    assert "shame regarding academic pressure" in text
    assert "Patient: I failed.\nTherapist: That hurts." in text
    assert "exam" not in text


def test_usage_is_booked_on_the_critic() -> None:
    ledger = Ledger(7, "c-1")
    read(critic(FakeModel(lambda messages, seed: "Same")), ledger)
    assert ledger.usage == {"critic": Usage(calls=10, prompt_tokens=100, completion_tokens=10)}


def by_letter(label_p) -> ResolutionCritic:
    model = FakeModel(label_p=label_p, capabilities=frozenset({"next_token"}))
    return ResolutionCritic(
        Voice(model, sections.RoleOptions(sampling=Sampling(temperature=1.0))),
        load_prompt("critic_resolution_letters"),
        load_preset("rlff7"),
        sections.ResolutionCritic(readout="expected"),
    )


def test_levels_are_read_by_letter_where_one_token_is_readable() -> None:
    reading = read(by_letter(lambda letter: {"C": 0.3, "D": 0.1}.get(letter, 0.0))).reading
    assert reading.weights == pytest.approx((0, 0, 0.75, 0.25, 0, 0, 0))
    assert (reading.num, reading.den, reading.name_mass) == (5, 8, pytest.approx(0.4))


def test_a_model_that_scores_can_be_read_by_letter() -> None:
    found = critic(
        FakeModel(label_p=lambda letter: {"C": 0.3, "D": 0.1}.get(letter, 0.0)), readout="expected", by="letters"
    )
    assert not found.reads_names
    assert read(found).reading.weights == pytest.approx((0, 0, 0.75, 0.25, 0, 0, 0))
    assert critic(FakeModel(), readout="expected").reads_names
    assert critic(FakeModel(), readout="sampled", by="letters").reads_names


def test_names_are_refused_where_none_can_be_scored() -> None:
    with pytest.raises(ConfigError, match="log-probabilities"):
        critic(FakeModel(capabilities=frozenset({"next_token"})), readout="expected", by="names")


def test_letters_without_any_probability_are_unscored() -> None:
    with pytest.raises(UnscoredError):
        read(by_letter(lambda letter: 0.0))


@pytest.mark.parametrize("name", ["rlff7", "ppdpp4"])
def test_the_prompts_of_a_preset_list_its_levels_in_order(name: str) -> None:
    preset = load_preset(name)
    values = {"emotion_type": "", "problem_type": "", "conversation": ""}
    plain = load_prompt(preset.prompt).render(**values)[1].content
    lettered = load_prompt(f"{preset.prompt}_letters").render(**values)[1].content
    places = [plain.index(f"\n{level}: ") for level in preset.levels]
    assert places == sorted(places)
    assert all(
        f"\n{letter}) {level}: " in lettered for letter, level in zip(preset.letters, preset.levels, strict=True)
    )


class Scorer:
    """Scores a reply by its length; refuses the word "long"."""

    def __init__(self) -> None:
        self.sizes: list[int] = []

    def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
        self.sizes.append(len(responses))
        if "long" in responses:
            raise BackendError("too many tokens", kind="too_long")
        return [len(response) / 100 for response in responses]


def turns(reply: str) -> tuple[Turn, ...]:
    return (Turn(speaker="seeker", text="Hi."), Turn(speaker="supporter", text=reply))


def rate(scorer: Scorer, *replies: str, limits: Limits = Limits()) -> list[object]:
    async def run() -> list[object]:
        critic = RewardCritic(scorer, "run/1", Budget(limits))
        scope = Ledger(1, "t").at("r", 0)
        return await asyncio.gather(
            *(critic.score(SCENARIO, turns(reply), scope) for reply in replies), return_exceptions=True
        )

    return asyncio.run(run())


def test_turns_that_wait_together_are_scored_together() -> None:
    scorer = Scorer()
    scores = rate(scorer, "a" * 10, "b" * 20, "c" * 30)
    assert [score.reward for score in scores] == [0.1, 0.2, 0.3]
    assert scorer.sizes == [3]
    assert scores[0].reading.readout == "reward_model"
    assert scores[0].reading.ratings is None


def test_a_turn_that_does_not_fit_fails_alone() -> None:
    first, second = rate(Scorer(), "a" * 10, "long")
    assert first.reward == 0.1
    assert isinstance(second, BackendError)
    assert second.kind == "too_long"


def test_a_bug_in_the_scorer_reaches_everyone() -> None:
    class Broken(Scorer):
        def score(self, conversations: object, responses: object) -> list[float]:
            raise ZeroDivisionError

    assert all(isinstance(error, ZeroDivisionError) for error in rate(Broken(), "a", "b"))


def test_a_call_is_booked() -> None:
    async def run() -> Ledger:
        ledger = Ledger(1, "t")
        await RewardCritic(Scorer(), "x", Budget(Limits())).score(SCENARIO, turns("a"), ledger.at("r", 0))
        return ledger

    assert asyncio.run(run()).usage == {"critic": Usage(calls=1)}


def test_a_budget_admits_so_many_turns_and_no_more() -> None:
    first, second, third = rate(Scorer(), "a", "b", "c", limits=Limits(max_calls=2))
    assert (first.reward, second.reward) == (0.01, 0.01)
    assert isinstance(third, BudgetError)


@pytest.mark.parametrize("n", [1, 40])
def test_any_number_of_waves_is_answered(n: int) -> None:
    async def run() -> list[float]:
        critic = RewardCritic(Scorer(), "x", Budget(Limits()))
        scope = Ledger(1, "t").at("r", 0)
        found = []
        for _ in range(3):
            scores = await asyncio.gather(*(critic.score(SCENARIO, turns("ab"), scope) for _ in range(n)))
            found += [score.reward for score in scores]
        return found

    assert asyncio.run(run()) == [0.02] * (3 * n)


def test_a_score_that_is_not_finite_fails_its_turn_alone() -> None:
    class Overflowing(Scorer):
        def score(self, conversations: Sequence[Sequence[Turn]], responses: Sequence[str]) -> list[float]:
            if "hot" in responses:
                raise NotFiniteError("p of the reward model", float("nan"))
            return super().score(conversations, responses)

    first, second = rate(Overflowing(), "a" * 10, "hot")
    assert first.reward == 0.1
    assert (type(second), second.kind) == (BackendError, "not_finite")
    (alone,) = rate(Overflowing(), "hot")
    assert (type(alone), alone.kind) == (BackendError, "not_finite")
