"""Shared by the benchmarks: processes and their resource usage, nginx for comparison, an HTTP client, and tables."""

import os
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from processes import free_port, running, serving_probe, wait_until

START_SECONDS = 120
_TICK = 1 / os.sysconf("SC_CLK_TCK")

NGINX = """
daemon off;
worker_processes 1;
error_log stderr crit;
pid {directory}/nginx.pid;
events {{}}
http {{
  access_log off;
  sendfile on;
  tcp_nopush on;
  keepalive_requests 100000;
  gzip on;
  gzip_comp_level 1;
  gzip_min_length 0;
  gzip_types text/plain application/openmetrics-text;
  client_body_temp_path {directory}; proxy_temp_path {directory}; fastcgi_temp_path {directory};
  uwsgi_temp_path {directory}; scgi_temp_path {directory};
  server {{
    listen 127.0.0.1:{port};
    root {directory};
    location = /text {{ default_type "text/plain"; }}
    location = /openmetrics {{ default_type "application/openmetrics-text"; }}
  }}
}}
"""


@dataclass(frozen=True)
class Server:
    """A running server process."""

    process: subprocess.Popen[bytes]
    port: int

    def cpu_seconds(self) -> tuple[float, float]:
        """Return the user and system CPU time since the start."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(") ")[2].split()
        return int(fields[11]) * _TICK, int(fields[12]) * _TICK

    def resident_bytes(self) -> int:
        """Return the resident memory."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextmanager
def exporter(config: Path, *, main: Sequence[str] = ("-m", "exporter"), wait_ready: bool = True) -> Iterator[Server]:
    """Run the exporter with this configuration file. With `wait_ready`, wait until it is ready."""
    port, log = free_port(), config.with_suffix(".log")
    flags = ("--config.file", str(config), "--web.listen-address", f"127.0.0.1:{port}", "--log.level", "error")
    with running(sys.executable, *main, *flags, log=log) as process:
        if wait_ready:
            wait_until(serving_probe(f"http://127.0.0.1:{port}/-/ready"), log.read_text(), START_SECONDS)
        yield Server(process, port)


@contextmanager
def nginx(directory: Path) -> Iterator[Server]:
    """Run nginx, which serves the files `text` and `openmetrics` of the directory."""
    port, config = free_port(), directory / "nginx.conf"
    config.write_text(NGINX.format(directory=directory, port=port))
    directory.chmod(0o755)
    command = ("nginx", "-p", str(directory), "-c", str(config), "-g", f"user {_user()};")
    with running(*command, log=directory / "nginx.log") as process:
        wait_until(serving_probe(f"http://127.0.0.1:{port}/text"), (directory / "nginx.log").read_text)
        yield Server(process, port)
        process.terminate()  # after a kill, the worker process would continue
        process.wait()


def _user() -> str:
    return "root" if os.getuid() == 0 else str(os.getuid())


@dataclass
class Client:
    """Sends requests on one connection, as Prometheus does, and discards the responses."""

    port: int
    _buffer: bytearray = field(default_factory=lambda: bytearray(1024 * 1024))

    def __post_init__(self) -> None:
        self._socket = socket.create_connection(("127.0.0.1", self.port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def get(self, path: str, **headers: str) -> tuple[float, int]:
        """Return the seconds until the response is complete, and its size in bytes."""
        lines = [
            f"GET {path} HTTP/1.1",
            "host: localhost",
            *(f"{k.replace('_', '-')}: {v}" for k, v in headers.items()),
        ]
        started = time.perf_counter()
        self._socket.sendall(("\r\n".join(lines) + "\r\n\r\n").encode())
        received = self._receive()
        return time.perf_counter() - started, received

    def _receive(self) -> int:
        count = self._socket.recv_into(self._buffer)
        head, _, body = bytes(self._buffer[:count]).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        lines = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
        length, received, tail = lines.get(b"content-length"), len(body), body[-5:]
        while received < int(length) if length else tail != b"0\r\n\r\n":
            count = self._socket.recv_into(self._buffer)
            assert count, "connection closed"
            received += count
            tail = (tail + self._buffer[max(0, count - 5) : count])[-5:]
        return received


def is_listening(port: int) -> bool:
    """Whether a server accepts connections on this port."""
    try:
        Client(port)
    except ConnectionError:
        return False
    return True


def median_seconds(work: Callable[[], object], times: int) -> float:
    """Return the median duration of `times` runs."""
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return statistics.median(seconds)


@dataclass
class Table:
    """A Markdown table that is printed row by row. `exceeded` lists the rows whose value exceeds the limit."""

    columns: Sequence[str]
    exceeded: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        print(f"\n| {' | '.join(self.columns)} |", f"|{'|'.join('---' for _ in self.columns)}|", sep="\n", flush=True)

    def row(self, *cells: object) -> None:
        print(f"| {' | '.join(map(str, cells))} |", flush=True)

    def row_with_limit(self, *cells: object, value: float, limit: float) -> None:
        """Print a row that ends with a value, its limit, and whether the value is within the limit."""
        self.row(*cells, f"{value:.3g}", f"{limit:g}", "yes" if value <= limit else "NO")
        if value > limit:
            self.exceeded.append(f"{cells[0]}: {value:.3g} of {limit:g}")


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.1f} ms"


def megabytes(count: float) -> str:
    return f"{count / 1e6:.1f} MB"
