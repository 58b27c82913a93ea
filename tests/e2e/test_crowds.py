"""More clients than the process has file descriptors, with a real process on real sockets."""

import os
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import httpx
import pytest
from processes import wait_until
from real_world import RealWorld, real_world

from exporter.web.connections import raise_descriptor_limit

INCOMPLETE_REQUEST = b"GET /metrics HTTP/1.1\r\nhost: x\r\nx: "
MAIN = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))
from exporter.cli import main
main()
"""


@contextmanager
def exporter_with_limit(directory: Path, descriptors: int) -> Iterator[RealWorld]:
    (directory / "main.py").write_text(MAIN.format(descriptors=descriptors))
    raise_descriptor_limit()  # this process opens the client sockets
    with real_world(directory, main=directory / "main.py") as world:
        yield world


@contextmanager
def slow_clients(port: int, count: int) -> Iterator[list[socket.socket]]:
    """Connect `count` clients, each of which sends an incomplete request."""
    with ExitStack() as stack:
        clients = []
        for _ in range(count):
            client = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            clients.append(client)
            with suppress(ConnectionError):  # the exporter closes the longest idle connections at its limit
                client.sendall(INCOMPLETE_REQUEST)
        yield clients


def scrape_statuses(port: int, count: int) -> list[int]:
    """Scrape `count` times, each time over a new connection. Return the status codes."""
    url = f"http://127.0.0.1:{port}/metrics"
    return [httpx.get(url, trust_env=False, timeout=30).status_code for _ in range(count)]


def poll_failure_samples(world: RealWorld) -> list[str]:
    return [line for line in world.http.get("/metrics").text.splitlines() if "poll_failures_total{" in line]


@pytest.mark.parametrize(("descriptors", "clients"), [(64, 200), (20, 60), (1024, 1000), (4096, 1200)])
def test_many_incomplete_requests_block_neither_scrapes_nor_polls(
    descriptors: int, clients: int, tmp_path: Path
) -> None:
    with exporter_with_limit(tmp_path, descriptors) as world:
        with slow_clients(world.port, clients):
            assert scrape_statuses(world.port, 5) == [200] * 5
            polled = len(world.api.arrivals)
            wait_until(lambda: len(world.api.arrivals) > polled + 20, "polling continues")
        assert poll_failure_samples(world) == []
        log = world.log.read_text()
        assert log.count("connection limit reached") == 1
        assert "Traceback" not in log
        assert len(log.splitlines()) < 20


@pytest.mark.slow
def test_incomplete_requests_below_the_connection_limit_are_closed_at_the_time_limit(tmp_path: Path) -> None:
    with exporter_with_limit(tmp_path, 1024) as world, slow_clients(world.port, 200) as clients:
        assert scrape_statuses(world.port, 5) == [200] * 5
        assert open_descriptors(world) > 200

        wait_until(lambda: open_descriptors(world) < 50, "slow requests are closed")
        assert [client.recv(1) for client in clients] == [b""] * 200
        assert "connection limit reached" not in world.log.read_text()


def open_descriptors(world: RealWorld) -> int:
    return len(os.listdir(f"/proc/{world.process.pid}/fd"))
