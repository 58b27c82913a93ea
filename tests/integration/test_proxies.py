"""The real HTTP client with a real proxy: which requests use the proxy."""

import asyncio
import base64
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import reduce
from pathlib import Path
from socket import has_dualstack_ipv6

import pytest
import trustme

from exporter.http import http_client


@dataclass
class Proxy:
    """A CONNECT proxy that connects to the API for every requested host."""

    api: tuple[str, int]
    hosts: list[str] = field(default_factory=list)
    credentials: list[str] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first, *headers = (await reader.readuntil(b"\r\n\r\n")).decode().splitlines()
        self.hosts.append(first.split()[1])
        self.credentials += [
            base64.b64decode(line.split()[-1]).decode() for line in headers if "proxy-auth" in line.lower()
        ]
        from_api, to_api = await asyncio.open_connection(*self.api)
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        await asyncio.gather(_copy(reader, to_api), _copy(from_api, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
    await _close(writer)


async def _api(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError, asyncio.IncompleteReadError):
        while await reader.readuntil(b"\r\n\r\n"):
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 3\r\n\r\nAPI")
    await _close(writer)


async def _close(writer: asyncio.StreamWriter) -> None:
    writer.close()
    with suppress(ConnectionError, ssl.SSLError):
        await writer.wait_closed()


def request_api(directory: Path, host: str, environ: Mapping[str, str], *, tls_to_proxy: bool = False) -> Proxy:
    """Send two requests to the API with this environment, and return the proxy. In the values, PROXY is replaced by the
    address of the proxy and PORT by the port of the API."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(str(directory / "ca.pem"))
    api_tls, proxy_tls = (ssl.create_default_context(ssl.Purpose.CLIENT_AUTH) for _ in range(2))
    ca.issue_cert(host).configure_cert(api_tls)
    ca.issue_cert("localhost").configure_cert(proxy_tls)

    async def main() -> Proxy:
        loopback = "::1" if ":" in host else "127.0.0.1"
        api = await asyncio.start_server(_api, loopback, 0, ssl=api_tls)
        proxy = Proxy(api.sockets[0].getsockname()[:2])
        server = await asyncio.start_server(proxy.serve, "127.0.0.1", 0, ssl=proxy_tls if tls_to_proxy else None)
        replaced = {"PROXY": f"localhost:{server.sockets[0].getsockname()[1]}", "PORT": str(proxy.api[1])}
        variables = {"SSL_CERT_FILE": str(directory / "ca.pem")}
        for name, value in environ.items():
            variables[name] = reduce(lambda text, word: text.replace(word, replaced[word]), replaced, value)
        endpoint = f"https://{f'[{host}]' if ':' in host else host}:{proxy.api[1]}"
        async with server, api:
            async with http_client(endpoint, variables) as http:
                assert [(await http.get(endpoint)).text for _ in range(2)] == ["API", "API"]
            connections = asyncio.all_tasks() - {asyncio.current_task()}
            await asyncio.gather(*connections)
        return proxy

    return asyncio.run(main())


LOCAL_ADDRESSES = ["0.0.0.0", pytest.param("::", marks=pytest.mark.skipif(not has_dualstack_ipv6(), reason="no IPv6"))]
"""Addresses of this machine that are not loopback addresses."""


@pytest.mark.parametrize("value", ["http://PROXY", "PROXY", "http://PROXY/"])
@pytest.mark.parametrize("name", ["HTTPS_PROXY", "https_proxy", "ALL_PROXY"])
def test_requests_to_the_api_use_the_proxy(tmp_path: Path, name: str, value: str) -> None:
    proxy = request_api(tmp_path, "cams.example", {name: value, "NO_PROXY": "::1/128,localhost,[::1]:443,10.0.0.0/8"})

    assert proxy.hosts == [f"cams.example:{proxy.api[1]}"]  # one connection for both requests


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_the_proxy_gets_user_and_password_without_percent_encoding(tmp_path: Path, scheme: str) -> None:
    environ = {"HTTPS_PROXY": f"{scheme}://ops%40acme:S3cr3tPw%239%25:%2F@PROXY"}

    proxy = request_api(tmp_path, "cams.example", environ, tls_to_proxy=scheme == "https")

    assert proxy.credentials == ["ops@acme:S3cr3tPw#9%:/"]


@pytest.mark.parametrize("host", LOCAL_ADDRESSES)
def test_an_address_that_is_not_in_no_proxy_uses_the_proxy(tmp_path: Path, host: str) -> None:
    excluded = "0.0.0.0:80,[::]:80,fd00::/8,10.0.0.0/8"

    proxy = request_api(tmp_path, host, {"ALL_PROXY": "http://PROXY", "NO_PROXY": excluded})

    assert len(proxy.hosts) == 1


@pytest.mark.parametrize(
    "entry", ["*", "*:PORT", "0.0.0.0,::", "0.0.0.0:PORT,[::]:PORT", "0.0.0.0/8 , ::/8", "0.0.0.0,[::]"]
)
@pytest.mark.parametrize("host", LOCAL_ADDRESSES)
def test_an_address_in_no_proxy_does_not_use_the_proxy(tmp_path: Path, host: str, entry: str) -> None:
    assert request_api(tmp_path, host, {"HTTPS_PROXY": "http://PROXY", "NO_PROXY": entry}).hosts == []


def test_the_client_ignores_process_variables_that_are_not_in_its_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://proxy.example")
    monkeypatch.setenv("NO_PROXY", "::1/128")
    monkeypatch.setenv("SSL_CERT_FILE", "/nope")

    assert request_api(tmp_path, "0.0.0.0", {}).hosts == []
