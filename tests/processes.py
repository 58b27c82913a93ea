"""Start other processes on the loopback interface and wait for them, in real time."""

import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from socketserver import TCPServer

import httpx
import pytest

DEADLINE_SECONDS = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def program(*arguments: str, log: Path, **environ: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """Run the exporter in its own process. `environ` has additional environment variables."""
    return running(sys.executable, "-m", "exporter", *arguments, log=log, **environ)


@contextmanager
def running(*command: str, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Run any program, and kill it at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environ})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


@contextmanager
def serving(server: TCPServer) -> Iterator[int]:
    """Run the server in a thread and yield its port."""
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield int(server.server_address[1])
    server.shutdown()
    server.server_close()


def wait_until(
    probe: Callable[[], bool], condition: object, seconds: float = DEADLINE_SECONDS, *, poll_seconds: float = 0.05
) -> None:
    """Wait until `probe` returns True. After `seconds`, fail the test with the current text of `condition`."""
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            pytest.fail(f"timeout after {seconds} s: {condition}")
        time.sleep(poll_seconds)


def serving_probe(url: str) -> Callable[[], bool]:
    """Return a probe for `wait_until`. The probe returns whether a GET request for `url` has the status 200."""

    def probe() -> bool:
        try:
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    return probe
