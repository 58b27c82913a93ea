"""Hostile clients: many at once, and requests beyond all limits, against the real program."""

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
def test_who_does_not_finish_a_handshake_is_cut(tmp_path: Path) -> None:
    flags, trusting = with_tls(tmp_path)
    with real_world(tmp_path, *flags, tls=trusting) as it, connected(it) as silent:
        assert is_cut(silent, 20)  # after ten seconds; asyncio's own limit is a minute


@pytest.mark.parametrize("tls", [False, True], ids=["plain", "TLS"])
def test_a_crowd_of_connections_takes_nothing_from_polls_and_scrapes(tmp_path: Path, tls: bool) -> None:
    """With TLS they are in the middle of a handshake, which costs a server most."""
    flags, trusting = with_tls(tmp_path) if tls else ((), None)
    with real_world(tmp_path, *flags, tls=trusting) as it, ExitStack() as sockets:
        for _ in range(600):
            sockets.enter_context(connected(it))

        polled = len(it.api.arrivals)
        wait_until(lambda: len(it.api.arrivals) > polled + 30, "polls go on at their pace", 5)
        assert it.http.get("/-/healthy").status_code == 200


def with_tls(directory: Path) -> tuple[tuple[str, ...], ssl.SSLContext]:
    """The flags that ask for TLS, and what a client needs that trusts the certificate."""
    ca = trustme.CA()
    certificate, trusting = ca.issue_cert("localhost"), ssl.create_default_context()
    ca.configure_trust(trusting)
    certificate.private_key_pem.write_to_path(str(directory / "key.pem"))
    certificate.cert_chain_pems[0].write_to_path(str(directory / "cert.pem"))
    (directory / "web.yml").write_text("tls_server_config: {cert_file: cert.pem, key_file: key.pem}")
    return ("--web.config.file", str(directory / "web.yml")), trusting


def connected(it: RealWorld) -> socket.socket:
    return socket.create_connection(("127.0.0.1", it.port), timeout=10)


def is_cut(one: socket.socket, seconds: float) -> bool:
    one.settimeout(seconds)
    try:
        return one.recv(1) == b""
    except TimeoutError:
        return False
    except OSError:
        return True


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RealWorld]:
    with real_world(tmp_path_factory.mktemp("limits")) as it:
        yield it


@pytest.mark.parametrize(
    "request_bytes",
    [
        b"GET / HTTP/1.1\r\nhost: x\r\n" + b"x: " + b"y" * 100_000 + b"\r\n\r\n",
        b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
        b"\0\1\2\3" * 100,
    ],
    ids=["header", "path", "no HTTP"],
)
def test_requests_beyond_the_limits_are_answered_and_cost_nothing(running: RealWorld, request_bytes: bytes) -> None:
    with connected(running) as one:
        try:
            one.sendall(request_bytes)
            status = one.recv(12)
        except OSError:
            status = b""  # cut before we had sent all
        assert status in (b"", b"HTTP/1.1 400", b"HTTP/1.1 431")
        assert running.http.get("/-/healthy").status_code == 200
        assert "Traceback" not in running.log.read_text()


def test_clients_do_not_write_the_log(running: RealWorld) -> None:
    before = running.log.read_text()
    upgrade = b"GET /-/healthy HTTP/1.1\r\nhost: x\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n"
    for sent in (b"\0\r\n\r\n", upgrade, b"GET / HTTP/1.1\r\nhost: x\r\n\r\n" * 5 + b"\0\r\n\r\n"):
        for _ in range(20):
            with connected(running) as one:
                one.sendall(sent)
                one.recv(1)
    assert running.http.get("/-/healthy").status_code == 200

    assert running.log.read_text() == before
