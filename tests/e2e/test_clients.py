"""Hostile clients of a real process: many connections, and oversized or malformed requests."""

import socket
import ssl
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import trustme
from processes import wait_until
from real_world import RealWorld, real_world


@pytest.mark.slow
def test_a_connection_with_an_unfinished_handshake_is_closed_within_20_seconds(tmp_path: Path) -> None:
    flags, tls_context = with_tls(tmp_path)
    with real_world(tmp_path, *flags, tls=tls_context) as world, connect(world) as client:
        assert is_closed(client, 20)  # the exporter's time limit is 10 seconds; the default of asyncio is 60 seconds


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_600_open_connections_do_not_delay_polls_or_scrapes(tmp_path: Path, tls: bool) -> None:
    """With TLS, the handshake of each connection is unfinished."""
    flags, tls_context = with_tls(tmp_path) if tls else ((), None)
    with real_world(tmp_path, *flags, tls=tls_context) as world, ExitStack() as sockets:
        for _ in range(600):
            sockets.enter_context(connect(world))

        polled = len(world.api.arrivals)
        wait_until(lambda: len(world.api.arrivals) > polled + 30, "polling continues at the usual rate", 5)
        assert world.http.get("/-/healthy").status_code == 200


def with_tls(directory: Path) -> tuple[tuple[str, ...], ssl.SSLContext]:
    """Return the flags that enable TLS, and an SSL context for clients that trusts the certificate."""
    ca = trustme.CA()
    certificate, tls_context = ca.issue_cert("localhost"), ssl.create_default_context()
    ca.configure_trust(tls_context)
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    (directory / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    return ("--web.config.file", str(directory / "web.yml")), tls_context


def connect(world: RealWorld) -> socket.socket:
    return socket.create_connection(("127.0.0.1", world.port), timeout=10)


def is_closed(client: socket.socket, seconds: float) -> bool:
    client.settimeout(seconds)
    try:
        return client.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.fixture(scope="module")
def shared_world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("limits")) as world:
        yield world


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\0\1\2\3" * 100,
    ],
    ids=["long header", "long path", "not HTTP"],
)
def test_the_server_keeps_serving_after_oversized_and_malformed_requests(
    shared_world: RealWorld, request_bytes: bytes
) -> None:
    with connect(shared_world) as client:
        try:
            client.sendall(request_bytes)
            status = client.recv(12)
        except OSError:
            status = b""  # the server closed the connection before the request was complete
        assert status in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert shared_world.http.get("/-/healthy").status_code == 200
        assert "Traceback" not in shared_world.log.read_text()


def test_clients_cannot_write_to_the_log(shared_world: RealWorld) -> None:
    before = shared_world.log.read_text()
    upgrade = b"GET /-/healthy HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    for request_bytes in (b"\0\r\n\r\n", upgrade, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 5 + b"\0\r\n\r\n"):
        for _ in range(20):
            with connect(shared_world) as client:
                client.sendall(request_bytes)
                client.recv(1)
    assert shared_world.http.get("/-/healthy").status_code == 200

    assert shared_world.log.read_text() == before
