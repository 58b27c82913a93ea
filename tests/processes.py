"""Other processes that tests start, on this machine's loopback: they know no virtual time."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import httpx
import pytest

DEADLINE_SECONDS = 30


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def program(*arguments: str, log: Path, **environ: str) -> AbstractContextManager[subprocess.Popen[bytes]]:
    """The exporter's command line in a process of its own."""
    return running(sys.executable, "-m", "exporter", *arguments, log=log, **environ)


@contextmanager
def running(*command: str, log: Path, **environ: str) -> Iterator[subprocess.Popen[bytes]]:
    """Any program, killed at the end."""
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env={**os.environ, **environ})
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


def wait_until(
    probe: Callable[[], bool], what: object, seconds: float = DEADLINE_SECONDS, *, poll_seconds: float = 0.05
) -> None:
    """Wait for something that another process does; `what` is told as it is then, when it does not."""
    deadline = time.monotonic() + seconds
    while not probe():
        if time.monotonic() > deadline:
            pytest.fail(f"not within {seconds} s: {what}")
        time.sleep(poll_seconds)


def is_serving(url: str) -> Callable[[], bool]:
    def probe() -> bool:
        try:
            return httpx.get(url, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False

    return probe
