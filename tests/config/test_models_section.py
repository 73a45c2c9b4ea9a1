import math
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from esckit.config.sections import (
    BackboneBinding,
    CheckpointBinding,
    EndpointAddress,
    EndpointBinding,
    ModelBinding,
    ScriptedBinding,
    check_prices,
    role_defaults,
)
from esckit.types import Limits

BINDING = TypeAdapter(ModelBinding)


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        ({"backbone": "tiny-random", "dtype": "float32", "device": "cuda:1"}, BackboneBinding),
        ({"endpoint": "openai", "model": "m"}, EndpointBinding),
        ({"endpoint": {"base_url": "http://127.0.0.1:8000/v1", "api_key_env": "KEY"}, "model": "m"}, EndpointBinding),
        ({"endpoint": {"serve": "vllm serve X --port {port}", "devices": (0, 1)}, "model": "m"}, EndpointBinding),
        ({"endpoint": "local", "model": "policy", "checkpoint": "runs/x"}, EndpointBinding),
        ({"checkpoint": "runs/x"}, CheckpointBinding),
        ({"scripted": "critic"}, ScriptedBinding),
    ],
)
def test_the_kind_decides_the_class(data, kind):
    assert type(BINDING.validate_python(data, strict=True)) is kind


def test_an_address_is_told_from_a_name():
    binding = BINDING.validate_python({"endpoint": {"base_url": "http://x/v1"}, "model": "m"}, strict=True)
    assert binding.endpoint == EndpointAddress(base_url="http://x/v1")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"endpoint": "openai", "scripted": "x", "model": "m"}, "names endpoint and scripted"),
        ({"bakbone": "x"}, "did you mean 'backbone'?"),
        ({}, "names no model"),
        (None, "must be a mapping with one of backbone"),
        ("gpt2", "must be a mapping with one of backbone"),
        ({"endpoint": "openai"}, "Field required"),
        ({"backbone": "x", "device": "gpu"}, "device"),
        ({"backbone": "x", "prices": {"prompt": 1.0, "completion": 1.0}}, "prices"),
        ({"endpoint": {"base_url": "ftp://x"}, "model": "m"}, "base_url"),
        ({"endpoint": {"serve": "vllm serve X"}, "model": "m"}, "must contain {port}"),
        ({"endpoint": {"serve": "vllm 'X --port {port}"}, "model": "m"}, "cannot be split into words"),
        ({"endpoint": {"serve": "{port}"}, "model": "m"}, "must begin with a program"),
        ({"endpoint": {"serve": "x {port}", "base_url": "http://x/v1"}, "model": "m"}, "names base_url and serve"),
        ({"endpoint": {"serve": "x {port}", "devices": "0 1"}, "model": "m"}, "devices"),
        ({"endpoint": {"serve": "x {port}", "environment": {"HF_TOKEN": "x"}}, "model": "m"}, "must hold no secret"),
        ({"endpoint": {"serve": "x {port} --api-key sk-1"}, "model": "m"}, "must hold no secret (--api-key)"),
        ({"endpoint": {"serve": "env HF_TOKEN=sk-1 x {port}"}, "model": "m"}, "must hold no secret (HF_TOKEN)"),
        ({"endpoint": {"base_url": "http://me:a/b@host/v1"}, "model": "m"}, "no user name, password or query"),
        ({"endpoint": {"base_url": "https://host/v1?key=a"}, "model": "m"}, "no user name, password or query"),
        ({"endpoint": {"serve": "x {port}", "environment": {"a b": "x"}}, "model": "m"}, "is not the name"),
        ({"endpoint": {"serve": "x {port}", "ready_s": 0.0}, "model": "m"}, "ready_s"),
        ({"backbone": "x", "on_length": "cut"}, "on_length"),
        ({"backbone": "x", "concurrency": 4}, "concurrency"),
        *(
            ({"endpoint": "openai", "model": "m", name: value}, name)
            for name, value in [
                ("concurrency", 0),
                ("concurrency", 100_000),
                ("concurrency", 2.5),
                ("timeout_s", 0.0),
                ("timeout_s", math.inf),
                ("timeout_s", math.nan),
            ]
        ),
    ],
)
def test_what_is_refused(data, message):
    with pytest.raises(ValidationError) as caught:
        BINDING.validate_python(data, strict=True)
    assert message in str(caught.value)


def test_devices_and_environment_may_be_numbers():
    server = {"serve": "x {port}", "devices": (0, 1), "environment": {"OMP_NUM_THREADS": 4}}
    section = BINDING.validate_python({"endpoint": server, "model": "m"}, strict=True).endpoint
    assert (section.devices, section.environment) == ("0,1", {"OMP_NUM_THREADS": "4"})


def test_the_roles_defaults_fill_what_is_left_out():
    adapter = TypeAdapter(Annotated[ModelBinding, role_defaults(sampling={"temperature": 0.7}, max_words=60)])
    binding = adapter.validate_python({"scripted": "x", "sampling": {"max_tokens": 5, "stop": ("a",)}}, strict=True)
    assert (binding.sampling.temperature, binding.sampling.max_tokens, binding.max_words) == (0.7, 5, 60)
    built = ScriptedBinding(scripted="x")
    assert adapter.validate_python(built) == built


def test_a_limit_of_cost_needs_prices():
    free = EndpointBinding(endpoint="openai", model="m")
    with pytest.raises(ValueError, match="max_cost needs prices"):
        check_prices(Limits(max_cost=1.0), [None, free])
    check_prices(Limits(), [free])
    check_prices(Limits(max_cost=1.0), [ScriptedBinding(scripted="x")])


@pytest.mark.parametrize("option", [{"adapter": "on"}, {"value_weight": 0.5}, {"top_k": 2}])
def test_options_of_other_roles_are_refused(option: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="Extra inputs"):
        BINDING.validate_python({"checkpoint": "runs/x", **option})
