"""HTTP to one server, on aiohttp: its connections, its key, proxies, redirects, and bodies of bounded size.

What a status or a body means is not known here, nor when to ask again (:mod:`esckit.models.transport`).
"""

from __future__ import annotations

import json
import os
import ssl
import zlib
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urljoin, urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
import certifi

from esckit.errors import ConfigError

_LARGEST_BODY = 8 * 2**20
_LARGEST_HEADER = 2**16
_MOST_HOPS = 3
# Shorter than what servers allow (uvicorn: 5 s), so that no request goes into a connection that is just being closed.
_KEPT_S = 4.0
_KEPT_METHOD = (307, 308)
_EVENTS = "text/event-stream"
_OTHER_ENCODINGS = ("br", "compress", "zstd")

_ENCODER = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


class UnreachableError(Exception):
    """No answer came, or it broke off; the text may hold what the server sent."""


class UnreadableError(Exception):
    """A body that is not read, since it is too large or in an encoding that was not requested."""


class HttpAnswer(NamedTuple):
    """An answer with any status: its headers by names in any case, and its body, unpacked, as text."""

    status: int
    phrase: str
    headers: Mapping[str, str]
    text: str


class HttpClient:
    """Connections to one server; they are made at the first request, in the event loop that makes it.

    Proxies come from the environment (``HTTP_PROXY``, ``HTTPS_PROXY``, ``ALL_PROXY``, ``NO_PROXY``), certificates from
    ``SSL_CERT_FILE`` and ``SSL_CERT_DIR``, or else from the system and certifi. Cookies are not kept. Time limits are
    the caller's.

    Args:
        base_url: Address up to the API's version.
        key: Sent as a bearer token; without one, a word that stands for none.
        n_connections: Connections that may be open at once.

    Raises:
        ConfigError: If the environment names a proxy that cannot be used.
    """

    def __init__(self, base_url: str, key: str, n_connections: int) -> None:
        self._base_url = base_url
        self._headers = {
            "Authorization": f"Bearer {key or 'no-key'}",
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            "User-Agent": "esckit",
        }
        self._proxy = _proxy_of(base_url)
        self._n_connections = n_connections
        self._session: aiohttp.ClientSession | None = None

    def __repr__(self) -> str:
        """Return the address; the headers hold the key."""
        return f"HttpClient({self._base_url!r})"

    async def send(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        on_piece: Callable[[bytes], None] | None = None,
    ) -> HttpAnswer:
        """Return the answer to a request, whatever its status; a redirect is followed within one origin only.

        Args:
            method: ``GET`` or ``POST``.
            path: Below the base URL, with a leading slash.
            body: Sent as JSON.
            on_piece: Takes the pieces of a body of events as they arrive.

        Raises:
            UnreachableError: If no whole answer came.
            UnreadableError: If its body is too large, or packed in another way than gzip.
        """
        session = self._session = self._session or self._connected()
        data = None if body is None else _ENCODER.encode(body).encode("utf-8", "replace")
        url = self._base_url + path
        try:
            for _ in range(_MOST_HOPS):
                async with session.request(
                    method, url, data=data, proxy=self._proxy, allow_redirects=False
                ) as response:
                    raw = await _read(response, on_piece if response.content_type == _EVENTS else None)
                onward = _onward(url, response.headers.get("Location")) if response.status in _KEPT_METHOD else None
                if onward is None:
                    break
                url = onward
        except (aiohttp.ClientError, OSError) as error:
            why = _why(error)
        else:
            packed = response.headers.get("Content-Encoding", "").strip().lower()
            text = _unpacked(raw, packed).decode("utf-8", "replace")
            return HttpAnswer(response.status, response.reason or "", response.headers, text)
        # Outside of the handler: what was raised may hold the key, and must not be chained.
        raise UnreachableError(why)

    async def aclose(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    def _connected(self) -> aiohttp.ClientSession:
        connector = aiohttp.TCPConnector(
            limit=self._n_connections,
            keepalive_timeout=_KEPT_S,
            ssl=_tls() if self._base_url.startswith("https") else True,
        )
        return aiohttp.ClientSession(
            connector=connector,
            headers=self._headers,
            timeout=aiohttp.ClientTimeout(total=None),
            cookie_jar=aiohttp.DummyCookieJar(),
            auto_decompress=False,
            max_line_size=_LARGEST_HEADER,
            max_field_size=_LARGEST_HEADER,
        )


def is_loopback(base_url: str) -> bool:
    """Return whether a URL names this machine."""
    host = urlsplit(base_url).hostname or ""
    return host in ("localhost", "::1") or host.startswith("127.")


def _proxy_of(base_url: str) -> str | None:
    """Return the proxy that the environment names for an address; none could reach this machine's own loopback."""
    parts = urlsplit(base_url)
    if is_loopback(base_url) or proxy_bypass(parts.netloc):
        return None
    named = getproxies()
    proxy = named.get(parts.scheme) or named.get("all")
    if proxy is None:
        return None
    scheme, is_whole, _ = proxy.partition("://")
    if is_whole and scheme not in ("http", "https"):
        # Not shown: it may hold a password.
        raise ConfigError(f"a proxy of the kind {scheme} in the environment", expected="an http or https proxy")
    return proxy if is_whole else f"http://{proxy}"


def _tls() -> ssl.SSLContext:
    """Return what certificates are checked against."""
    context = ssl.create_default_context()
    if not {"SSL_CERT_FILE", "SSL_CERT_DIR"} & os.environ.keys():
        # Some systems and some builds of Python come without a list.
        context.load_verify_locations(certifi.where())
    return context


def _why(error: aiohttp.ClientError | OSError) -> str:
    """Return the words of an error, without an address, which may hold the password of a proxy."""
    if isinstance(error, aiohttp.ClientResponseError):
        return f"{error.status} {error.message}"
    return str(error) or type(error).__name__


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    return parts.scheme, parts.hostname, parts.port


def _onward(url: str, location: str | None) -> str | None:
    """Return where a redirect leads, None if it leaves the origin or leads nowhere."""
    try:
        target = urljoin(url, location or "")
        return target if location and _origin(target) == _origin(url) else None
    except ValueError:
        return None


async def _read(response: aiohttp.ClientResponse, on_piece: Callable[[bytes], None] | None) -> bytes:
    """Return the body as it was sent.

    Raises:
        UnreadableError: If it is too large.
    """
    raw = bytearray()
    async for piece in response.content.iter_any():
        raw += piece
        if on_piece is not None:
            on_piece(piece)
        if len(raw) > _LARGEST_BODY:
            response.close()
            raise UnreadableError(f"an answer of more than {_LARGEST_BODY:,} bytes")
    return bytes(raw)


def _unpacked(raw: bytes, packed: str) -> bytes:
    """Return a body that was packed with gzip or deflate, or not at all.

    Raises:
        UnreadableError: If it is packed in another way, is not valid, or is too large.
    """
    if packed in ("", "identity"):
        return raw
    if packed not in ("gzip", "x-gzip", "deflate"):
        # A word that nobody knows may be anything, the key included.
        shown = f"the content encoding {packed!r}" if packed in _OTHER_ENCODINGS else "an unknown content encoding"
        raise UnreadableError(f"an answer in {shown}")
    unpacker = zlib.decompressobj(wbits=zlib.MAX_WBITS | 32)
    try:
        body = unpacker.decompress(raw, _LARGEST_BODY + 1)
    except zlib.error as error:
        raise UnreadableError(f"an answer that is not valid {packed} ({error})") from error
    if len(body) > _LARGEST_BODY:
        raise UnreadableError(f"an answer of more than {_LARGEST_BODY:,} bytes when unpacked")
    if not unpacker.eof:
        raise UnreadableError(f"an answer that is not valid {packed} (it breaks off)")
    return body
