"""Measures a scrape, compared with nginx (same bytes from a file) and prometheus_client (same values).

    python tests/benchmarks/scrape.py

The scrapes are HTTP requests on loopback, during polls with the maximum qps. Scrapes of the exporter and of nginx
alternate, and the medians are compared. prometheus_client is measured before, with the median of three runs.
"""

import json
import signal
import socket
import statistics
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

import yaml
from api import serving
from fleet import Fleet
from measure import Client, Server, Table, exporter, median_seconds, milliseconds, nginx
from processes import free_port, running, serving_probe, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from stored_view import view_of

LATENCY = 0.025
PAIRS = 25
ACCEPT = {"text": "text/plain;version=0.0.4", "openmetrics": "application/openmetrics-text;version=1.0.0"}
ENCODERS: Mapping[str, Callable[[CollectorRegistry], object]] = {
    "text": generate_latest,
    "openmetrics": generate_openmetrics,
}
SIZES = (Fleet(10_000, 3_000), Fleet(50_000, 10_000))
HEARTBEAT = Path(__file__).parent / "heartbeat.py"
REPETITIONS = 10
LONG_PART_BYTES = 15_000
"""Length of a long target or header. The server accepts requests of up to 16 kB."""


def request(target: str, method: str = "GET", headers: str = "") -> bytes:
    """Return a request with `Connection: close`."""
    return f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n".encode()


def repeated(text: str) -> str:
    """Repeat the text up to LONG_PART_BYTES. Each {} is replaced by a different number."""
    return "".join(text.format(number) for number in range(LONG_PART_BYTES // len(text) // 2))


REQUESTS = {
    "none": b"",
    "/metrics": request("/metrics"),
    "/metrics, gzip": request("/metrics", headers="accept-encoding: gzip\r\n"),
    "/metrics, OpenMetrics": request("/metrics", headers=f"accept: {ACCEPT['openmetrics']}\r\n"),
    "HEAD /metrics": request("/metrics", "HEAD"),
    "/metrics, one name": request("/metrics?name[]=chatapp_space_up"),
    "/metrics, many names": request("/metrics?" + repeated("name[]={}&")),
    "/metrics, long Accept": request("/metrics?name[]=x", headers=f"accept: {'a,' * (LONG_PART_BYTES // 2)}\r\n"),
    "/": request("/"),
    "/, search with 1,000 results": request("/?per_page=1000&q=contoso+emea&state=green&page=2"),
    "/, long search": request("/?q=" + "a+" * 100),
    "/space": request("/space?account=account-0&space=cams-0000000001"),
    "numbers, 1,000": request("/api/v1/phone-numbers?per_page=1000"),
    "numbers, many states": request("/api/v1/phone-numbers?" + "state=red&" * (LONG_PART_BYTES // 10)),
    "spaces, 1,000": request("/api/v1/spaces?per_page=1000"),
    "spaces, many wrong keys": request("/api/v1/spaces?" + repeated("{}=1&")),
    "spaces, many empty keys": request("/api/v1/spaces?" + repeated("{}=&")),
    "spaces, many wrong states": request("/api/v1/spaces?" + repeated("state={}&")),
    "/-/config": request("/-/config"),
    "/-/ready": request("/-/ready"),
    "404": request("/" + "x" * LONG_PART_BYTES),
    "many headers": request("/-/healthy", headers=repeated("a:{}\r\n")),
    "long Authorization header": request("/-/healthy", headers=f"authorization: Basic {'a' * LONG_PART_BYTES}\r\n"),
    "body in 1-byte chunks": request("/metrics", "POST", "transfer-encoding: chunked\r\n") + b"1\r\nx\r\n" * 40_000,
    "many requests at once": b"GET /-/healthy HTTP/1.1\r\nhost: x\r\n\r\n" * 1000 + request("/-/healthy"),
}
"""Usual and unusual requests of clients."""


def prometheus_client_seconds(config: Path) -> Mapping[str, float]:
    """Return the median seconds of prometheus_client for the same values, by format."""
    registry = CollectorRegistry()
    registry.register(view_of(config).collector())
    return {kind: median_seconds(partial(encode, registry), 3) for kind, encode in ENCODERS.items()}


def scrape_seconds(server: Server, nginx_server: Server, kind: str, encoding: str) -> tuple[float, float, int]:
    """Return the median seconds of the exporter and of nginx, and the size of the exporter's response."""
    clients, seconds, size = (Client(server.port), Client(nginx_server.port)), ([0.0] * PAIRS, [0.0] * PAIRS), 0
    for index in range(PAIRS):
        seconds[0][index], size = clients[0].get("/metrics", accept=ACCEPT[kind], accept_encoding=encoding)
        seconds[1][index], _ = clients[1].get(f"/{kind}", accept_encoding=encoding)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), size


def scrapes(table: Table, fleet: Fleet, config: Path, client_seconds: Mapping[str, float]) -> None:
    with exporter(config) as server:
        for kind, accept in ACCEPT.items():
            request = urllib.request.Request(f"http://127.0.0.1:{server.port}/metrics", headers={"accept": accept})
            (config.parent / kind).write_bytes(urllib.request.urlopen(request).read())
        with nginx(config.parent) as nginx_server:
            for kind in ACCEPT:
                for encoding in ("identity", "gzip"):
                    seconds, nginx_seconds, size = scrape_seconds(server, nginx_server, kind, encoding)
                    name = f"{fleet.numbers} numbers, {kind}, {encoding}, {size / 1e6:.1f} MB"
                    table.row_with_limit(
                        name,
                        milliseconds(seconds),
                        f"nginx {milliseconds(nginx_seconds)}",
                        value=seconds / nginx_seconds,
                        limit=2.5,
                    )
                    table.row_with_limit(
                        name,
                        milliseconds(seconds),
                        f"prometheus_client {milliseconds(client_seconds[kind])}",
                        value=seconds / client_seconds[kind],
                        limit=1 / 40,
                    )
            prometheus_scrapes(table, fleet, config.parent, server, nginx_server)


def prometheus_scrapes(table: Table, fleet: Fleet, directory: Path, server: Server, nginx_server: Server) -> None:
    """Compare the scrape durations measured by a real Prometheus."""
    seconds = 2 + fleet.numbers // 5_000
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{target.port}"]}]}
        for name, path, target in (("exporter", "/metrics", server), ("nginx", "/openmetrics", nginx_server))
    ]
    times = {"scrape_interval": f"{seconds}s", "scrape_timeout": f"{seconds}s"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump({"global": times, "scrape_configs": jobs}))
    port = free_port()
    flags = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb")
    with running("prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}", log=directory / "prometheus.log"):
        wait_until(serving_probe(f"http://127.0.0.1:{port}/-/ready"), (directory / "prometheus.log").read_text)
        time.sleep(seconds * 16)
        query = f"http://127.0.0.1:{port}/api/v1/query?query=quantile_over_time(0.5,scrape_duration_seconds[1h])"
        results = json.load(urllib.request.urlopen(query))["data"]["result"]
    medians = {series["metric"]["job"]: float(series["value"][1]) for series in results}
    name = f"{fleet.numbers} numbers, scrape_duration_seconds of Prometheus"
    median, nginx_median = medians["exporter"], medians["nginx"]
    compared = f"nginx {milliseconds(nginx_median)}"
    table.row_with_limit(name, milliseconds(median), compared, value=median / nginx_median, limit=1.25)


def event_loop_gaps(table: Table, fleet: Fleet, config: Path) -> None:
    """Measure how long each request blocks the event loop."""
    with exporter(config, main=(str(HEARTBEAT),)) as server:
        log = config.with_suffix(".log")
        for name, sent in REQUESTS.items():
            server.process.send_signal(signal.SIGUSR1)
            before = sum(server.cpu_seconds())
            for _ in range(REPETITIONS):
                send(server.port, sent)
            used = (sum(server.cpu_seconds()) - before) / REPETITIONS
            server.process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            cpu, wall = map(float, log.read_text().splitlines()[-1].split())
            title = f"{fleet.numbers} numbers, longest block of the event loop, {name}"
            cells = title, f"{milliseconds(wall)} elapsed, {milliseconds(used)} of CPU per request", "ms of CPU"
            if sent:
                table.row_with_limit(*cells, value=cpu * 1000, limit=20)
            else:  # no limit, because the first polls import modules
                table.row(*cells, f"{cpu * 1000:.3g}", "", "")


def send(port: int, payload: bytes) -> None:
    """Send a request and read the response. Without a payload, wait 0.2 s."""
    if not payload:
        time.sleep(0.2)
        return
    with socket.create_connection(("127.0.0.1", port), timeout=60) as client, suppress(ConnectionError):
        client.sendall(payload)
        while client.recv(1024 * 1024):
            pass


def main() -> int:
    table = Table(("scrape", "exporter", "compared with", "ratio", "limit", "within limit"))
    for fleet in SIZES:
        with tempfile.TemporaryDirectory() as directory, serving(fleet, LATENCY) as api:
            config = fleet.write(Path(directory), api.endpoint)
            client_seconds = prometheus_client_seconds(config)
            scrapes(table, fleet, config, client_seconds)
            event_loop_gaps(table, fleet, config)
    return len(table.exceeded)


if __name__ == "__main__":
    sys.exit(main())
