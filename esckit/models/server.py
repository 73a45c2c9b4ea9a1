"""Servers that a run starts, uses and stops: ``endpoint: {serve: COMMAND}`` in a recipe.

A server is one command on this machine, of any program with an OpenAI-compatible interface. It listens on a free port
of the loopback and is ready once it has written one token. Between esckit and the command stands a small process
(:mod:`esckit.models.watchdog`) which ends it with all its children when the run is over, however it ends. What the
server prints goes into a temporary file; its last lines are shown if the server fails. Requests and answers are not
made here but in :mod:`esckit.models.endpoint`, as for any other server.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from contextlib import suppress
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from typing import NamedTuple

from esckit.config.sections import EndpointBinding, ManagedServer
from esckit.errors import BackendError, ConfigError, OutageError
from esckit.models import watchdog
from esckit.models.faults import Redactor

log = logging.getLogger(__name__)

_LOOK_EVERY_S = 0.1
_QUIET_FOR_S = 10.0
_LONGEST_WAIT_S = 1.0
_LOOKS = 5
_PORTS = range(20_000, 32_768)
_STOP_WITHIN_S = 3 * watchdog.GRACE_S
_SHOWN_LINES = 20
_SHOWN_CHARS = 300
_TAIL_BYTES = 32_768

_NOT_YET = (429, 502, 503, 504)
"""What servers answer while they load a model."""

_COLOURS = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")

_OF_LAUNCHERS = re.compile(
    r"(LOCAL_|GROUP_|ROLE_)?(RANK|WORLD_SIZE)|ROLE_NAME|MASTER_(ADDR|PORT)|(TORCHELASTIC|ACCELERATE|FSDP)_\w+"
)
"""Variables that tell a process its place in a training; a server would take them for its own."""


class _Key(NamedTuple):
    """By what servers of a run are told apart."""

    serve: str
    devices: str | None


def _key(section: ManagedServer) -> _Key:
    return _Key(" ".join(shlex.split(section.serve)), section.devices)


def server_name(section: ManagedServer) -> str:
    """Return what records call a server: the same in every run, whatever its port and devices."""
    words = shlex.split(section.serve)
    return section.name or f"{Path(words[0]).name}-{sha256(_key(section).serve.encode()).hexdigest()[:8]}"


def is_managed(binding: object) -> bool:
    """Return whether a binding names a server to start."""
    return isinstance(binding, EndpointBinding) and isinstance(binding.endpoint, ManagedServer)


def _managed(bindings: Iterable[object]) -> list[tuple[ManagedServer, str]]:
    """Return the servers to start that bindings name, each with the id of its model, in order."""
    return [
        (binding.endpoint, binding.model)
        for binding in bindings
        if isinstance(binding, EndpointBinding) and isinstance(binding.endpoint, ManagedServer)
    ]


def check_servers(bindings: Iterable[object]) -> None:
    """Refuse roles that name one server in two ways, and warn of servers that share devices; starts nothing.

    Raises:
        ConfigError: If two sections have one command with other settings, or one model with other commands.
    """
    firsts: dict[_Key, ManagedServer] = {}
    for (one, one_model), (other, other_model) in combinations(_managed(bindings), 2):
        same = _key(one) == _key(other)
        settings = [
            name for name in ("environment", "api_key_env", "name") if getattr(one, name) != getattr(other, name)
        ]
        if same and settings:
            raise ConfigError(
                f"two roles name the server `{one.serve}` with another {settings[0]}",
                expected="the same section in both, or other devices for a second server",
            )
        if not same and one_model == other_model and one.devices == other.devices:
            raise ConfigError(
                f"two roles start servers for the model {one_model!r} on the same devices: `{one.serve}` and "
                f"`{other.serve}`",
                expected="one command, which the roles then share, or devices for each",
            )
    for section, _ in _managed(bindings):
        firsts.setdefault(_key(section), section)
    for one, other in combinations(firsts.values(), 2):
        shared = set((one.devices or "").split(",")) & set((other.devices or "").split(","))
        if one.devices is None or other.devices is None or shared - {""}:
            log.warning(
                "the servers `%s` and `%s` use the same devices: give each its own in `devices`, or its share of the "
                "memory in its command",
                one.serve,
                other.serve,
            )


class Server:
    """One server process.

    Args:
        section: Its command and settings.

    Attributes:
        base_url: Where it answers.

    Raises:
        ConfigError: If there is no such program.
    """

    def __init__(self, section: ManagedServer) -> None:
        self._section = section
        self._redact = Redactor(os.environ.get(section.api_key_env or "", ""))
        self._port = _pick_port(_key(section))
        self.base_url = f"http://127.0.0.1:{self._port}/v1"
        self._words = [word.replace("{port}", str(self._port)) for word in shlex.split(section.serve)]
        self._is_first = _starts_servers()
        if self._is_first and shutil.which(self._words[0]) is None:
            raise ConfigError(
                f"there is no program {self._words[0]!r} for `{section.serve}`",
                expected="a program on the PATH, or its full path",
                hint="Install the server in an environment of its own and name its program there (docs/servers.md)",
            )
        self._is_started = False
        self._has_failed = False
        self._process: subprocess.Popen[bytes] | None = None
        self._log = Path(os.devnull)
        self._lock = asyncio.Lock()

    def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not _OF_LAUNCHERS.fullmatch(name)}
        environment |= self._section.environment
        if self._section.devices is not None:
            environment["CUDA_VISIBLE_DEVICES"] = self._section.devices
        own = [sys.executable, "-I", "-S", str(Path(watchdog.__file__)), str(os.getpid())]
        descriptor, log_file = tempfile.mkstemp(prefix="esckit-server-", suffix=".log")
        with open(descriptor, "wb") as output:
            self._process = subprocess.Popen(
                [*own, *self._words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C in the terminal is esckit's to handle
            )
        self._log = Path(log_file)
        log.info("started `%s` on port %d; its log is %s", self._section.serve, self._port, log_file)

    async def wait_until_ready(self, model: str) -> None:
        """Start the server, if that was not done, and wait until it has written a token or has refused to.

        Why it refused is found out by the model's own check.

        Args:
            model: The id of a model of the server.

        Raises:
            ConfigError: If it ends, or does not answer within ``ready_s``. The message has the end of its log.
        """
        async with self._lock:
            if self._is_started:
                return
            self._is_started = True
            if self._is_first:
                self._start()
            await self._first_answer(model)

    async def _first_answer(self, model: str) -> None:
        limit_s, is_quiet, began_s = self._section.ready_s, True, time.monotonic()
        asking = asyncio.create_task(_ask_until_answered(self.base_url, self._section.api_key_env, model, limit_s))
        try:
            while not (await asyncio.wait({asking}, timeout=_LOOK_EVERY_S))[0]:
                waited_s = time.monotonic() - began_s
                if (ended := self._ended()) is not None:
                    raise self._failed_to_start(f"{ended} before it answered", None)
                if waited_s > limit_s:
                    raise self._failed_to_start(
                        f"has not answered on port {self._port} within {limit_s:g} s",
                        "a server that listens on 127.0.0.1 and {port}; if it needs longer to load, raise ready_s",
                    )
                if is_quiet and waited_s > _QUIET_FOR_S:
                    is_quiet = False
                    log.warning("waiting up to %g s for `%s` (log: %s)", limit_s, self._section.serve, self._log)
            asking.result()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)

    def _failed_to_start(self, what: str, expected: str | None) -> ConfigError:
        self._has_failed = True
        hint = f"Its whole log is {self._log}" if self._process is not None else None
        return ConfigError(
            f"the server `{self._section.serve}` {what}{self._end_of_log()}", expected=expected, hint=hint
        )

    async def outage(self) -> OutageError | None:
        """Return why no answer will come any more, None if the server runs as far as is known."""
        # Connections are closed a moment before the exit code is known.
        for _ in range(_LOOKS):
            if (ended := self._ended()) is not None:
                self._has_failed = True
                return OutageError(
                    f"the server `{self._section.serve}` {ended}{self._end_of_log()}",
                    hint="What is done is kept. Fix the cause, then run the same command again: it starts the server "
                    f"and goes on. The server's whole log is {self._log}",
                )
            await asyncio.sleep(_LOOK_EVERY_S)
        return None

    def _ended(self) -> str | None:
        """Return how the process ended, None while it runs."""
        code = None if self._process is None else self._process.poll()
        if code is None:
            return None
        # A process that a signal ended has the code of a shell here, or a negative one.
        number = code - 128 if code > 128 else -code
        return f"was ended by signal {number}" if code > 128 or code < 0 else f"ended with exit code {code}"

    def ask_to_stop(self) -> None:
        """Ask the server and all its children to end."""
        if self._process is not None:
            self._process.terminate()

    async def stop(self) -> None:
        """End the server and all its children, and wait until they are gone; calling it twice is harmless."""
        self.ask_to_stop()
        until = time.monotonic() + _STOP_WITHIN_S
        while self._process is not None and self._ended() is None:
            if time.monotonic() > until:
                log.warning("`%s` does not end; look for what it has left running", self._section.serve)
                return
            await asyncio.sleep(_LOOK_EVERY_S / 2)
        if self._process is not None and not self._has_failed:
            self._log.unlink(missing_ok=True)

    def _end_of_log(self) -> str:
        """Return the last lines that the server printed, without colours and without its key, for a message."""
        if self._process is None:
            return ""
        with self._log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = _COLOURS.sub("", self._redact(file.read().decode("utf-8", "replace")))
        # A progress bar writes over itself.
        lines = [line.rstrip().rpartition("\r")[2][:_SHOWN_CHARS] for line in text.split("\n") if line.strip()]
        shown = "".join(f"\n    {line}" for line in lines[-_SHOWN_LINES:])
        return f"; the end of its log:{shown}" if lines else "; it printed nothing"


class Servers:
    """The servers of a run, one for each command and its devices; closing them ends them all."""

    def __init__(self) -> None:
        self._known: dict[_Key, Server] = {}

    def of(self, section: ManagedServer) -> Server:
        """Return the server of a section, which is started when its first model is checked.

        Raises:
            ConfigError: If there is no such program.
        """
        key = _key(section)
        if key not in self._known:
            self._known[key] = Server(section)
        return self._known[key]

    async def aclose(self) -> None:
        """End all servers, at once."""
        for server in self._known.values():
            server.ask_to_stop()
        for server in self._known.values():
            await server.stop()


async def _ask_until_answered(base_url: str, api_key_env: str | None, model: str, limit_s: float) -> None:
    """Ask for one token until there is an answer, or an error that waiting does not mend."""
    from esckit.models.transport import HttpFailure, Timeouts, Transport

    body = {"model": model, "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 1}
    transport = Transport(base_url, api_key_env, Timeouts(timeout_s=limit_s, max_retries=0, concurrency=1))
    wait_s = _LOOK_EVERY_S
    try:
        while True:
            try:
                await transport.post("/chat/completions", body)
                return
            except HttpFailure as failure:
                if failure.fault.status not in _NOT_YET:
                    return
            except BackendError as error:
                if error.kind == "unreadable":
                    return
            await asyncio.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)
    finally:
        await transport.aclose()


def _starts_servers() -> bool:
    """Return whether this process starts servers: of several that a launcher started on one machine, the first."""
    environment = os.environ.get
    rank = environment("LOCAL_RANK", environment("RANK", "0"))
    return environment("WORLD_SIZE", "1") == "1" or rank == "0"


def _pick_port(key: _Key) -> int:
    """Return a free port below those that systems give to outgoing connections.

    Processes that one launcher started on a machine find the same one without having to ask each other.
    """
    if os.environ.get("WORLD_SIZE", "1") != "1":
        seed = f"{os.getppid()} {os.environ.get('MASTER_ADDR')} {os.environ.get('MASTER_PORT')} {key}"
        return random.Random(seed).choice(_PORTS)
    while True:
        port = random.SystemRandom().choice(_PORTS)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
