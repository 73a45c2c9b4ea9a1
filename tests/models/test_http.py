"""What stands between us and a server: proxies, certificates, large headers, and none of the environment's secrets."""

import asyncio
import ssl
from pathlib import Path

import pytest

from esckit.errors import BackendError, ConfigError
from esckit.models.endpoint import EndpointModel
from esckit.models.http import HttpClient, UnreachableError, _proxy_of, _tls
from tests.models.endpoint_calls import KEY, complete, run
from tests.models.fake_server import Canned, FakeServer, completion

PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_a_proxy_carries_what_goes_elsewhere(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", server.url.removesuffix("/v1"))
    assert run("http://models.example/v1", complete()).text == "hello"
    assert server.requests[0].path == "http://models.example/v1/chat/completions"


def test_no_proxy_stands_before_this_machine(server: FakeServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:1")
    assert run(server, complete()).text == "hello"


@pytest.mark.parametrize(
    ("variables", "url", "expected"),
    [
        ({"https_proxy": "http://p:1"}, "https://host/v1", "http://p:1"),
        ({"https_proxy": "http://p:1"}, "http://host/v1", None),
        ({"all_proxy": "p:1"}, "https://host/v1", "http://p:1"),
        ({"all_proxy": "http://p:1", "no_proxy": "host"}, "https://host/v1", None),
        ({"all_proxy": "http://p:1", "no_proxy": "host"}, "https://other/v1", "http://p:1"),
        ({"all_proxy": "http://p:1"}, "http://localhost:8000/v1", None),
    ],
)
def test_proxies_come_from_the_environment(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], url: str, expected: str | None
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert _proxy_of(url) == expected


def test_a_proxy_of_another_kind_is_a_config_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("all_proxy", "socks5://me:hunter2@p:1")
    with pytest.raises(ConfigError, match="kind socks5") as caught:
        EndpointModel("https://host/v1", "m")
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize("url", ["http://models.example/v1", "https://models.example/v1"])
def test_the_password_of_a_proxy_is_in_no_message(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    proxy = server.url.removesuffix("/v1").replace("http://", "http://me:hunter2@")
    monkeypatch.setenv("all_proxy", proxy)
    server.usual = Canned("who are you?", 407)
    with pytest.raises(BackendError) as caught:
        run(url, complete())
    assert "hunter2" not in f"{caught.value!r} {caught.value} {caught.value.__cause__} {caught.value.__context__}"


def test_a_netrc_file_is_not_read(server: FakeServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("default login me password hunter2")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert run(server, complete()).text == "hello"
    assert server.requests[0].key == "Bearer no-key"


def test_a_certificate_that_nobody_vouches_for_is_refused(tmp_path: Path) -> None:
    async def go() -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        served = await asyncio.start_server(lambda reader, writer: writer.close(), "127.0.0.1", 0, ssl=context)
        port = served.sockets[0].getsockname()[1]
        client = HttpClient(f"https://127.0.0.1:{port}/v1", KEY, 2)
        try:
            with pytest.raises(UnreachableError) as caught:
                await client.send("GET", "/models")
            assert KEY not in f"{caught.value} {caught.value.__cause__} {caught.value.__context__}"
        finally:
            await client.aclose()
            served.close()

    asyncio.run(go())


def test_certificates_are_checked_against_a_list(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    monkeypatch.delenv("SSL_CERT_DIR", raising=False)
    context = _tls()
    assert (context.verify_mode, context.check_hostname) == (ssl.CERT_REQUIRED, True)
    assert context.cert_store_stats()["x509_ca"] > 50


def test_large_headers_are_taken(server: FakeServer) -> None:
    server.usual = completion()
    server.usual.headers = {"Content-Security-Policy": "x" * 20_000}
    assert run(server, complete()).text == "hello"


HALF = b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhalf"


@pytest.mark.parametrize("sent", [b"not http at all\r\n\r\n", HALF, b""])
def test_what_is_no_answer_is_no_answer(sent: bytes) -> None:
    async def go() -> None:
        async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.readuntil(b"\r\n\r\n")
            writer.write(sent)
            await writer.drain()
            writer.close()

        served = await asyncio.start_server(talk, "127.0.0.1", 0)
        client = HttpClient(f"http://127.0.0.1:{served.sockets[0].getsockname()[1]}/v1", KEY, 2)
        try:
            with pytest.raises(UnreachableError):
                await client.send("GET", "/models")
        finally:
            await client.aclose()
            served.close()

    asyncio.run(go())
