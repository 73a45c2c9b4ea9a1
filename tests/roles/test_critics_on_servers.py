"""The expected read-out of the resolution critic on a server that scores answers, beside the local model."""

import asyncio

import pytest

from esckit.config import sections
from esckit.config.sections import RoleOptions
from esckit.ledger import Ledger
from esckit.models.endpoint import EndpointModel
from esckit.prompts.prompt import load_prompt
from esckit.protocols import ChatModel
from esckit.roles.asking import Voice
from esckit.roles.critics import ResolutionCritic
from esckit.roles.verdicts import load_preset
from esckit.types import Sampling, Scenario, Score, Turn
from tests.models.endpoint_calls import run
from tests.models.local_fakes import tiny_local
from tests.models.test_prompt_scores import PromptServer

TURNS = (Turn(speaker="seeker", text="I feel awful."), Turn(speaker="supporter", text="That sounds hard."))


def critic_on(model: ChatModel, temperature: float) -> ResolutionCritic:
    preset = load_preset("rlff7")
    voice = Voice(model, RoleOptions(sampling=Sampling(temperature=temperature)))
    settings = sections.ResolutionCritic(readout="expected")
    return ResolutionCritic(voice, load_prompt(preset.prompt), preset, settings)


async def scored(model: ChatModel) -> tuple[str, Score]:
    await model.check()
    critic = critic_on(model, 1.0)
    return critic.identity, await critic.score(Scenario(id="s"), TURNS, Ledger(0, "u").at(0))


def test_the_expected_value_is_that_of_the_local_model() -> None:
    with PromptServer().running() as server:
        identity, there = run(server, scored)
    local_identity, here = asyncio.run(scored(tiny_local()))
    assert identity == local_identity
    assert there.reward == pytest.approx(here.reward, abs=1e-3)
    assert there.reading.weights == pytest.approx(here.reading.weights, abs=1e-3)


def test_names_are_read_at_the_temperature_that_servers_score_at() -> None:
    async def reads_names(model: EndpointModel) -> list[bool]:
        await model.check()
        return [critic_on(model, temperature).reads_names for temperature in (1.0, 1.1)]

    with PromptServer().running() as server:
        assert run(server, reads_names) == [True, False]
