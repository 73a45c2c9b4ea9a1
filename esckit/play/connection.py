"""The connection of a command to a Ray cluster: joined or started for one run, and always with a bound on waiting."""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import math
import os
import secrets
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any

from esckit.config.sections import RayExecutor
from esckit.errors import ConfigError, MissingExtraError

_LOCAL = "127.0.0.1"

_OBJECT_BYTES = 128 * 1024**2


@asynccontextmanager
async def connected(settings: RayExecutor) -> AsyncIterator[None]:
    """Join or start the cluster that a recipe names, and leave or stop it at the end.

    Raises:
        ConfigError: If Ray is not installed, or the cluster cannot be reached within ``settings.wait_s``.
    """
    if importlib.util.find_spec("ray") is None:
        raise MissingExtraError("executor.kind: ray", "ray")
    if settings.address.startswith("ray://") and importlib.util.find_spec("grpc") is None:
        raise MissingExtraError(f"executor.address: {settings.address}", "grpcio", command="pip install 'ray[client]'")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if settings.address == "local" and "RAY_AUTH_MODE" not in os.environ and "ray" not in sys.modules:
        # Nobody else on the machine may use the cluster. Ray would keep a token of its own in the home folder.
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    import ray

    if ray.is_initialized():  # by a program that calls esckit as a library
        yield
        return
    left = threading.Event()
    try:
        await _join(settings, left)
        yield
    finally:
        ray.shutdown()
        left.set()


async def _join(settings: RayExecutor, left: threading.Event) -> None:
    """Join or start the cluster.

    Args:
        settings: Where it is.
        left: To be set when it was left.

    Raises:
        ConfigError: If it cannot be reached in time, or cannot be given its runtime environment.
    """
    import ray

    # Folders travel with the whole job only, not with a single worker.
    options: dict[str, Any] = {"address": settings.address, "runtime_env": settings.runtime_env or None}
    if settings.address == "local":
        options |= {
            "num_cpus": max(1, math.ceil(settings.workers * settings.cpus)),
            "include_dashboard": False,
            "object_store_memory": _OBJECT_BYTES,
            "_node_ip_address": _LOCAL,
            **({} if settings.gpus else {"num_gpus": 0}),
        }
    elif settings.address != "auto":
        await _require_listening(settings)
    try:
        joining = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, **options)
        await asyncio.wait_for(_beside(joining, left), settings.wait_s)
    except TimeoutError as error:
        raise _unreachable(settings, f"no answer within {settings.wait_s:g} s") from error
    except (ValueError, TypeError, ray.exceptions.RuntimeEnvSetupError) as error:
        if not settings.runtime_env:
            raise _unreachable(settings, _first_line(error)) from error
        raise ConfigError(
            f"executor.runtime_env: {_first_line(error)}",
            expected="what Ray's documentation calls a runtime environment",
        ) from error
    except (ConnectionError, RuntimeError, ray.exceptions.RayError) as error:
        raise _unreachable(settings, _first_line(error)) from error


async def _beside(call: Callable[[], object], over: threading.Event) -> None:
    """Make a call in a thread of its own, for which nobody waits at the end of the process.

    So Ctrl-C is heard meanwhile. And Ray would take SIGTERM for itself in the main thread. The thread lives until what
    it began is over: a cluster that a thread has started no longer answers once the thread has ended (Ray 2.60).
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error is not None else done.set_result(None)

    def run() -> None:
        error: BaseException | None = None
        try:
            call()
        except BaseException as raised:  # noqa: BLE001 - raised again where the call is awaited
            error = raised
        with suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(tell, error)
        over.wait()

    threading.Thread(target=run, name="esckit-ray", daemon=True).start()
    await done


def what_it_has() -> str:
    """Return what the cluster has and what of it is free, for messages."""
    import ray

    has, free = ray.cluster_resources(), ray.available_resources()
    n_nodes = sum(bool(node["Alive"]) for node in ray.nodes())
    parts = [f"{has.get(name, 0):g} {name}s ({free.get(name, 0):g} free)" for name in ("CPU", "GPU")]
    return f"{' and '.join(parts)} on {n_nodes} {'node' if n_nodes == 1 else 'nodes'}"


def fits_nowhere(settings: RayExecutor) -> bool:
    """Return whether no node of the cluster is large enough for a worker, even if all of it were free."""
    import ray

    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return not any(node.get("CPU", 0) >= settings.cpus and node.get("GPU", 0) >= settings.gpus for node in nodes)


async def _require_listening(settings: RayExecutor) -> None:
    """Wait until something listens where the cluster is said to be; Ray itself would wait much longer.

    Raises:
        ConfigError: If nothing does within ``wait_s``.
    """
    host, _, port = settings.address.removeprefix("ray://").rpartition(":")
    ends_s = time.monotonic() + settings.wait_s
    while True:
        try:
            with await asyncio.to_thread(socket.create_connection, (host, int(port)), 5.0):
                return
        except OSError as error:
            if time.monotonic() >= ends_s or isinstance(error, socket.gaierror):
                raise _unreachable(settings, f"{error} after {settings.wait_s:g} s") from error
        await asyncio.sleep(0.5)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]


def _unreachable(settings: RayExecutor, reason: str) -> ConfigError:
    return ConfigError(
        f"executor.address {settings.address}: no Ray cluster can be reached ({reason})",
        expected="local, or the address of a running cluster of the same Ray and Python version",
        hint="Start one with 'ray start --head' and join others with 'ray start --address HOST:PORT' (docs/scaling.md)",
    )
