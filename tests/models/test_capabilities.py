"""One name for what the releases of a library call differently, found by asking and not by version."""

import warnings
from dataclasses import dataclass

import pytest
import torch
from torch import nn
from transformers import TrainingArguments
from transformers.cache_utils import DynamicCache

from esckit.models.loading import cache_parameter, checkpoint_activations, checkpointing_arguments
from tests.tiny import tiny_random

pytestmark = pytest.mark.smoke


class TakesCache(nn.Module):
    def forward(self, input_ids, cache=None, **kwargs): ...


class TakesPastKeyValues(nn.Module):
    def forward(self, input_ids, past_key_values=None, **kwargs): ...


def test_a_cache_goes_by_the_name_that_the_model_takes() -> None:
    assert cache_parameter(TakesCache()) == "cache"
    assert cache_parameter(TakesPastKeyValues()) == "past_key_values"


def test_a_cache_is_given_without_a_warning_and_used() -> None:
    model, _ = tiny_random()
    cache = DynamicCache()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(input_ids=torch.tensor([[3, 4, 5]]), use_cache=True, **{cache_parameter(model): cache})
    assert cache.get_seq_length() == 3


def test_soft_capped_attention_is_capped_in_every_release() -> None:
    model, _ = tiny_random("gemma2")
    assert model.config._attn_implementation == "eager"


class Decoder:
    """Takes note of which of its methods was called."""

    def __init__(self, *methods: str) -> None:
        self.called: list[tuple[str, dict[str, bool]]] = []
        for name in methods:
            setattr(self, name, lambda settings, name=name: self.called.append((name, settings)))


@pytest.mark.parametrize(
    "methods",
    [("activation_checkpointing_enable", "gradient_checkpointing_enable"), ("gradient_checkpointing_enable",)],
)
def test_checkpointing_is_turned_on_by_the_newest_method_once(methods: tuple[str, ...]) -> None:
    decoder = Decoder(*methods)
    checkpoint_activations(decoder)
    assert decoder.called == [(methods[0], {"use_reentrant": False})]


@dataclass
class NewArguments:
    activation_checkpointing: bool = False
    gradient_checkpointing: bool = False


@dataclass
class OldArguments:
    gradient_checkpointing: bool = False


def test_checkpointing_goes_by_the_name_that_the_arguments_have() -> None:
    assert checkpointing_arguments(NewArguments, wanted=True) == {
        "activation_checkpointing": True,
        "activation_checkpointing_kwargs": {"use_reentrant": False},
    }
    assert checkpointing_arguments(OldArguments, wanted=False) == {
        "gradient_checkpointing": False,
        "gradient_checkpointing_kwargs": None,
    }


@pytest.mark.parametrize("wanted", [True, False])
def test_training_arguments_say_whether_activations_are_kept(tmp_path, wanted: bool) -> None:
    given = checkpointing_arguments(TrainingArguments, wanted=wanted)
    arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", **given)
    assert arguments.gradient_checkpointing is wanted
