"""A cluster that cannot be had: one message, soon."""

import asyncio
import importlib.util
import socket

import pytest

from esckit.config.load import load_recipe
from esckit.config.sections import RayExecutor
from esckit.errors import ConfigError, EsckitError
from esckit.play.connection import connected
from esckit.simulate.run import SimulateRecipe


def join(**fields: object) -> None:
    async def enter() -> None:
        async with connected(RayExecutor.model_validate({"kind": "ray", "workers": 1, **fields})):
            raise AssertionError("joined")

    asyncio.run(enter())


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


def test_an_address_where_nothing_listens_is_refused() -> None:
    pytest.importorskip("ray", reason="pip install 'esckit[ray]'")
    with pytest.raises(ConfigError, match=r"no Ray cluster can be reached .*refused") as error:
        join(address=f"127.0.0.1:{free_port()}", wait_s=0.1)
    assert "ray start --head" in str(error.value)


def test_an_address_where_something_else_listens_is_refused() -> None:
    pytest.importorskip("ray", reason="pip install 'esckit[ray]'")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(ConfigError, match="no answer within 1 s"):
            join(address=f"127.0.0.1:{other.getsockname()[1]}", wait_s=1)


def test_what_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec

    def without(name: str) -> object:
        return None if name in hidden else found(name)

    monkeypatch.setattr(importlib.util, "find_spec", without)
    hidden = {"ray"}
    with pytest.raises(ConfigError, match=r"pip install 'esckit\[ray\]'"):
        join(address="local")
    hidden = {"grpc"}
    if found("ray") is not None:
        with pytest.raises(ConfigError, match=r"pip install 'ray\[client\]'"):
            join(address="ray://127.0.0.1:10001")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (["executor.kind=slurm"], "kind 'local' or 'ray', not 'slurm'"),
        (["executor.kind=rayy"], "not 'rayy'; did you mean 'ray'?"),
        (["executor.kind=ray"], "workers"),
        (["executor.kind=ray", "executor.workers=2", "executor.address=http://head"], "address"),
        (["executor.kind=ray", "executor.workers=2", "executor.runtime_env={env_vars: {API_KEY: x}}"], "no secret"),
        (["executor.workers=2"], "workers"),
    ],
)
def test_a_wrong_executor_is_refused(changes: list[str], message: str) -> None:
    with pytest.raises(EsckitError, match=message):
        load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=changes)


def test_settings_of_one_machine_stay_valid() -> None:
    recipe = load_recipe("smoke/simulate_scripted", SimulateRecipe, overrides=["executor.threads=2"]).recipe
    assert (recipe.executor.kind, recipe.executor.threads) == ("local", 2)
    assert {"executor.threads", "executor.kind"} <= set(recipe.OPERATIONAL)
    assert "executor.batching" not in recipe.OPERATIONAL  # it changes bytes
