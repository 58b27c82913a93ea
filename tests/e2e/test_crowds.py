"""More clients than the process has file descriptors for: with the real program, for the faults are in asyncio and the
kernel."""

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

HALF = b"GET /metrics HTTP/1.1\r\nhost: x\r\nx: "
LIMITED = """
import resource
resource.setrlimit(resource.RLIMIT_NOFILE, ({descriptors}, {descriptors}))
from exporter.cli import main
main()
"""


@contextmanager
def limited(directory: Path, descriptors: int) -> Iterator[RealWorld]:
    (directory / "main.py").write_text(LIMITED.format(descriptors=descriptors))
    raise_descriptor_limit()  # of the crowd
    with real_world(directory, main=directory / "main.py") as it:
        yield it


@contextmanager
def crowd(port: int, size: int) -> Iterator[list[socket.socket]]:
    """So many clients, each with half a request."""
    with ExitStack() as stack:
        clients = []
        for _ in range(size):
            one = stack.enter_context(socket.create_connection(("127.0.0.1", port), timeout=30))
            clients.append(one)
            with suppress(ConnectionError):  # it was closed to make room
                one.sendall(HALF)
        yield clients


def scrapes(port: int, times: int) -> list[int]:
    """The status of so many scrapes, each on a connection of its own."""
    url = f"http://127.0.0.1:{port}/metrics"
    return [httpx.get(url, trust_env=False, timeout=30).status_code for _ in range(times)]


def failed_polls(it: RealWorld) -> list[str]:
    return [line for line in it.http.get("/metrics").text.splitlines() if "poll_failures_total{" in line]


@pytest.mark.parametrize(("descriptors", "clients"), [(64, 200), (20, 60), (1024, 1000), (4096, 1200)])
def test_a_crowd_of_half_requests_shuts_out_no_scrape_and_no_poll(
    descriptors: int, clients: int, tmp_path: Path
) -> None:
    with limited(tmp_path, descriptors) as it:
        with crowd(it.port, clients):
            assert scrapes(it.port, 5) == [200] * 5
            polled = len(it.api.arrivals)
            wait_until(lambda: len(it.api.arrivals) > polled + 20, "polls go on")
        assert failed_polls(it) == []
        log = it.log.read_text()
        assert log.count("connection limit reached") == 1
        assert "Traceback" not in log
        assert len(log.splitlines()) < 20


@pytest.mark.slow
def test_a_crowd_within_the_limit_is_left_alone_until_its_time_is_up(tmp_path: Path) -> None:
    with limited(tmp_path, 1024) as it, crowd(it.port, 200) as clients:
        assert scrapes(it.port, 5) == [200] * 5
        assert open_descriptors(it) > 200

        wait_until(lambda: open_descriptors(it) < 50, "slow requests are closed")
        assert [client.recv(1) for client in clients] == [b""] * 200
        assert "connection limit reached" not in it.log.read_text()


def open_descriptors(it: RealWorld) -> int:
    return len(os.listdir(f"/proc/{it.process.pid}/fd"))
