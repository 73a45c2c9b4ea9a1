"""Where OpenAI-compatible servers are and which environment variable holds their key; no client, no key."""

from __future__ import annotations

from importlib.resources import files
from urllib.parse import urlsplit

from esckit.documents import parse_yaml
from esckit.errors import ConfigError
from esckit.registry import did_you_mean
from esckit.types import Record


class EndpointSpec(Record):
    """Address of a server.

    Attributes:
        base_url: Up to and including the API's version, such as ``http://127.0.0.1:8000/v1``.
        api_key_env: Name of the environment variable that holds the key; None if the server asks for none.
        lacks: Sampling fields that the server is known to refuse.
    """

    base_url: str
    api_key_env: str | None = None
    lacks: tuple[str, ...] = ()


def load_endpoints() -> dict[str, EndpointSpec]:
    """Return the endpoints that ship with esckit, by name."""
    text = files("esckit.models").joinpath("endpoints.yaml").read_text(encoding="utf-8")
    return {name: EndpointSpec.model_validate(fields) for name, fields in parse_yaml(text, "endpoints.yaml").items()}


def load_endpoint(name: str) -> EndpointSpec:
    """Return a shipped endpoint by name.

    Raises:
        ConfigError: If there is none of this name.
    """
    known = load_endpoints()
    if "://" in name:
        # Not shown: it may hold a key.
        raise ConfigError(
            "an address as the name of an endpoint", expected="endpoint: {base_url: ADDRESS, api_key_env: VARIABLE}"
        )
    if name not in known:
        raise ConfigError(
            f"unknown endpoint {name!r}",
            expected=f"one of {', '.join(known)}, or base_url and api_key_env",
            hint=did_you_mean(name, known) or None,
        )
    return known[name]


def checked_base_url(base_url: str) -> str:
    """Return a base URL that can be called and shown: http(s), with a host, and nowhere a place for a secret.

    Raises:
        ConfigError: If it is not. The message does not repeat a URL that may hold a secret.
    """
    try:
        parts = urlsplit(base_url.strip())
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if "@" in parts.netloc or parts.query or parts.fragment:
        raise ConfigError(
            "base_url holds a user name, a password, a query or a fragment",
            expected="a plain address such as http://127.0.0.1:8000/v1",
            hint="A key belongs into the environment variable that api_key_env names.",
        )
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigError(f"base_url {base_url!r}", expected="an address such as http://127.0.0.1:8000/v1")
    return base_url.strip().rstrip("/")


def is_loopback(base_url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")
