"""The strategist: the JSON form to the letter, and scored choices."""

import asyncio
import json
import math

import pytest

from esckit.errors import ConfigError, ParseError, UnscoredError
from esckit.ledger import Ledger
from esckit.prompts.prompt import load_prompt
from esckit.roles.asking import Voice
from esckit.roles.players import PromptedStrategist, parse_probabilities
from esckit.strategies.taxonomy import load_taxonomy
from esckit.types import Scenario, Turn
from tests.fakes import FakeModel

AFLOW = load_taxonomy("aflow")
TURNS = (
    Turn(speaker="seeker", text="I failed."),
    Turn(speaker="supporter", text="Oh.", strategy="Affirmation"),
    Turn(speaker="seeker", text="Yes."),
)
GOOD = dict(zip(AFLOW.abbrs, (0.2, 0.1, 0.2, 0.1, 0.1, 0.1, 0.1, 0.11), strict=True))


def strategist(model: FakeModel, readout: str) -> PromptedStrategist:
    return PromptedStrategist(Voice(model), load_prompt("strategist"), AFLOW, readout)


def prior(model: FakeModel, readout: str) -> tuple[float, ...]:
    scope = Ledger(7, "t").at("r", 0)
    return asyncio.run(strategist(model, readout).decide(Scenario(id="s"), TURNS, scope)).probabilities


def test_probabilities_are_normalised_in_taxonomy_order() -> None:
    shuffled = json.dumps(dict(reversed(GOOD.items())))
    for text in (shuffled, f"```json\n{shuffled}\n```", f"\n```\n{shuffled}\n```\n"):
        found = parse_probabilities(text, AFLOW.abbrs)
        assert found == pytest.approx([value / 1.01 for value in GOOD.values()])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "I would say RS.",
        "[0.2, 0.8]",
        json.dumps(GOOD) + " Hope it helps",
        json.dumps({key: value for key, value in GOOD.items() if key != "SI"}),
        json.dumps(GOOD | {"OH": 0.0}),
        json.dumps(GOOD | {"RS": "0.2"}),
        json.dumps(GOOD | {"RS": True}),
        json.dumps(GOOD | {"RS": None}),
        json.dumps(GOOD | {"RS": 0.3}),
        json.dumps(GOOD | {"RS": 0.1}),
        json.dumps(GOOD | {"RS": -0.1, "EV": 0.5}),
        json.dumps(GOOD | {"RS": math.nan}),
        json.dumps(GOOD | {"RS": math.inf}),
        json.dumps(GOOD)[:-1] + ', "RS": 0.2}',
        "[" * 100_000,
    ],
)
def test_anything_else_is_invalid(text: str) -> None:
    with pytest.raises(ParseError):
        parse_probabilities(text, AFLOW.abbrs)


def test_the_json_prompt_shows_tags_definitions_and_keys() -> None:
    model = FakeModel(lambda messages, seed: json.dumps(GOOD))
    assert sum(prior(model, "json")) == pytest.approx(1.0)
    text = model.asked[0][0][1].content
    for shown in ("Supporter [Affirmation]: Oh.", '"RS", "Cla"', AFLOW.strategies[3].definition, '{"KEY": 0.12'):
        assert shown in text


def test_nonsense_is_asked_again_and_then_fails() -> None:
    model = FakeModel(lambda messages, seed: "RS: 5")
    with pytest.raises(ParseError) as error:
        prior(model, "json")
    assert (error.value.attempts, len({seed for _, seed in model.asked})) == (3, 3)


def test_choices_are_one_softmax_over_length_normalised_scores() -> None:
    log_p = dict(zip(AFLOW.names, (-2.0, -0.5, -3.0, -4.0, -1.5, -6.0, -2.0, -5.0), strict=True))
    found = prior(FakeModel(log_p=log_p.__getitem__), "choices")
    means = [log_p[name] / len(name.split()) for name in AFLOW.names]
    total = sum(math.exp(mean) for mean in means)
    assert found == pytest.approx([math.exp(mean) / total for mean in means])


def test_choices_of_an_endpoint_read_letters() -> None:
    model = FakeModel(
        label_p=lambda label: {"A": 0.2, "H": 0.6}.get(label, 0.0), capabilities=frozenset({"next_token"})
    )
    assert prior(model, "choices") == pytest.approx((0.25, 0, 0, 0, 0, 0, 0, 0.75))
    assert "H. Share Information" in model.asked[0][0][1].content
    silent = FakeModel(label_p=lambda label: 0.0, capabilities=frozenset({"next_token"}))
    with pytest.raises(UnscoredError):
        prior(silent, "choices")


def test_a_model_without_log_probs_is_refused_for_choices() -> None:
    with pytest.raises(ConfigError, match="json"):
        strategist(FakeModel(capabilities=frozenset()), "choices")


def test_choosing_takes_the_best_and_draws_between_equals() -> None:
    def choose(model: FakeModel, seed: int) -> str:
        scope = Ledger(seed, "t").at("r", 0)
        return asyncio.run(strategist(model, "choices").decide(Scenario(id="s"), TURNS, scope)).strategy

    best = FakeModel(log_p=lambda choice: -0.1 if choice == "Affirmation" else -5.0)
    assert choose(best, 1) == "Affirmation"
    equal = FakeModel(log_p=lambda choice: -1.0 * len(choice.split()))
    assert len({choose(equal, seed) for seed in range(20)}) > 3
