"""A scrape beside nginx with the same bytes as a file, and beside prometheus_client over the same rows.

    python tests/benchmarks/scrape.py

Over HTTP on loopback, while polls go on as fast as an account allows. Times beside nginx are medians of interleaved
pairs, prometheus_client's are medians of three before them.
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
from measure import Client, Served, Table, exporter, median_seconds, milliseconds, nginx
from processes import free_port, is_serving, running, wait_until
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from shown import view_of

LATENCY = 0.025
PAIRS = 25
ACCEPT = {"text": "text/plain;version=0.0.4", "openmetrics": "application/openmetrics-text;version=1.0.0"}
ENCODERS: Mapping[str, Callable[[CollectorRegistry], object]] = {
    "text": generate_latest,
    "openmetrics": generate_openmetrics,
}
SIZES = (Fleet(10_000, 3_000), Fleet(50_000, 10_000))
BEATS = Path(__file__).parent / "heartbeat.py"
HELD_TIMES = 10
LONG = 15_000
"""Bytes of a request: 16 kB are allowed."""


def request(target: str, method: str = "GET", headers: str = "") -> bytes:
    """A request after which the connection is closed."""
    return f"{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{headers}\r\n".encode()


def repeated(text: str) -> str:
    """As often as a request has room for it, each with another number in the place of {}."""
    return "".join(text.format(number) for number in range(LONG // len(text) // 2))


REQUESTS = {
    "none": b"",
    "/metrics": request("/metrics"),
    "/metrics, gzip": request("/metrics", headers="accept-encoding: gzip\r\n"),
    "/metrics, OpenMetrics": request("/metrics", headers=f"accept: {ACCEPT['openmetrics']}\r\n"),
    "HEAD /metrics": request("/metrics", "HEAD"),
    "/metrics, one name": request("/metrics?name[]=chatapp_space_up"),
    "/metrics, many names": request("/metrics?" + repeated("name[]={}&")),
    "/metrics, long Accept": request("/metrics?name[]=x", headers=f"accept: {'a,' * (LONG // 2)}\r\n"),
    "/": request("/"),
    "/, 1,000 of a search": request("/?per_page=1000&q=contoso+emea&state=green&page=2"),
    "/, long search": request("/?q=" + "a+" * 100),
    "/space": request("/space?account=account-0&space=cams-0000000001"),
    "numbers, 1,000": request("/api/v1/phone-numbers?per_page=1000"),
    "numbers, many states": request("/api/v1/phone-numbers?" + "state=red&" * (LONG // 10)),
    "spaces, 1,000": request("/api/v1/spaces?per_page=1000"),
    "spaces, many wrong keys": request("/api/v1/spaces?" + repeated("{}=1&")),
    "spaces, many empty keys": request("/api/v1/spaces?" + repeated("{}=&")),
    "spaces, many wrong states": request("/api/v1/spaces?" + repeated("state={}&")),
    "/-/config": request("/-/config"),
    "/-/ready": request("/-/ready"),
    "404": request("/" + "x" * LONG),
    "many headers": request("/-/healthy", headers=repeated("a:{}\r\n")),
    "long login": request("/-/healthy", headers=f"authorization: Basic {'a' * LONG}\r\n"),
    "body in chunks of a byte": request("/metrics", "POST", "transfer-encoding: chunked\r\n") + b"1\r\nx\r\n" * 40_000,
    "many requests at once": b"GET /-/healthy HTTP/1.1\r\nhost: x\r\n\r\n" * 1000 + request("/-/healthy"),
}
"""What clients can ask for, usual and odd."""


def over_our_collector(config: Path) -> Mapping[str, float]:
    """The median seconds that prometheus_client takes for our rows, by format; nothing else goes on meanwhile."""
    registry = CollectorRegistry()
    registry.register(view_of(config).collector())
    return {kind: median_seconds(partial(encode, registry), 3) for kind, encode in ENCODERS.items()}


def pairs(ours: Served, theirs: Served, kind: str, encoding: str) -> tuple[float, float, int]:
    """The median seconds of ours and of nginx's, and the bytes of ours."""
    clients, seconds, size = (Client(ours.port), Client(theirs.port)), ([0.0] * PAIRS, [0.0] * PAIRS), 0
    for turn in range(PAIRS):
        seconds[0][turn], size = clients[0].get("/metrics", accept=ACCEPT[kind], accept_encoding=encoding)
        seconds[1][turn], _ = clients[1].get(f"/{kind}", accept_encoding=encoding)
    return statistics.median(seconds[0]), statistics.median(seconds[1]), size


def scrapes(table: Table, fleet: Fleet, config: Path, slow: Mapping[str, float]) -> None:
    with exporter(config) as ours:
        for kind, accept in ACCEPT.items():
            request = urllib.request.Request(f"http://127.0.0.1:{ours.port}/metrics", headers={"accept": accept})
            (config.parent / kind).write_bytes(urllib.request.urlopen(request).read())
        with nginx(config.parent) as theirs:
            for kind in ACCEPT:
                for encoding in ("identity", "gzip"):
                    took, nginx_took, size = pairs(ours, theirs, kind, encoding)
                    what = f"{fleet.numbers} numbers, {kind}, {encoding}, {size / 1e6:.1f} MB"
                    table.judged(
                        what,
                        milliseconds(took),
                        f"nginx {milliseconds(nginx_took)}",
                        value=took / nginx_took,
                        limit=2.5,
                    )
                    table.judged(
                        what,
                        milliseconds(took),
                        f"prometheus_client {milliseconds(slow[kind])}",
                        value=took / slow[kind],
                        limit=1 / 40,
                    )
            by_prometheus(table, fleet, config.parent, ours, theirs)


def by_prometheus(table: Table, fleet: Fleet, directory: Path, ours: Served, theirs: Served) -> None:
    """What a real Prometheus says that its scrapes take."""
    seconds = 2 + fleet.numbers // 5_000
    jobs = [
        {"job_name": name, "metrics_path": path, "static_configs": [{"targets": [f"127.0.0.1:{one.port}"]}]}
        for name, path, one in (("exporter", "/metrics", ours), ("nginx", "/openmetrics", theirs))
    ]
    times = {"scrape_interval": f"{seconds}s", "scrape_timeout": f"{seconds}s"}
    (directory / "prometheus.yml").write_text(yaml.safe_dump({"global": times, "scrape_configs": jobs}))
    port = free_port()
    flags = (f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/tsdb")
    with running("prometheus", *flags, f"--web.listen-address=127.0.0.1:{port}", log=directory / "prometheus.log"):
        wait_until(is_serving(f"http://127.0.0.1:{port}/-/ready"), (directory / "prometheus.log").read_text)
        time.sleep(seconds * 16)
        query = f"http://127.0.0.1:{port}/api/v1/query?query=quantile_over_time(0.5,scrape_duration_seconds[1h])"
        results = json.load(urllib.request.urlopen(query))["data"]["result"]
    medians = {one["metric"]["job"]: float(one["value"][1]) for one in results}
    what = f"{fleet.numbers} numbers, scrape_duration_seconds of Prometheus"
    took, nginx_took = medians["exporter"], medians["nginx"]
    table.judged(what, milliseconds(took), f"nginx {milliseconds(nginx_took)}", value=took / nginx_took, limit=1.25)


def held(table: Table, fleet: Fleet, config: Path) -> None:
    """How long anything that a client can ask for keeps the event loop from anything else."""
    with exporter(config, main=(str(BEATS),)) as ours:
        log = config.with_suffix(".log")
        for name, sent in REQUESTS.items():
            ours.process.send_signal(signal.SIGUSR1)
            before = sum(ours.cpu_seconds())
            for _ in range(HELD_TIMES):
                ask(ours.port, sent)
            used = (sum(ours.cpu_seconds()) - before) / HELD_TIMES
            ours.process.send_signal(signal.SIGUSR1)
            time.sleep(0.2)
            cpu, wall = map(float, log.read_text().splitlines()[-1].split())
            what = f"{fleet.numbers} numbers, longest hold of the event loop, {name}"
            cells = what, f"{milliseconds(wall)} by the clock, {milliseconds(used)} of CPU in all", "in ms of CPU"
            if sent:
                table.judged(*cells, value=cpu * 1000, limit=20)
            else:  # the first polls import what they need
                table.row(*cells, f"{cpu * 1000:.3g}", "", "")


def ask(port: int, sent: bytes) -> None:
    """Send these bytes, or none, and take whatever is answered."""
    if not sent:
        time.sleep(0.2)
        return
    with socket.create_connection(("127.0.0.1", port), timeout=60) as one, suppress(ConnectionError):
        one.sendall(sent)
        while one.recv(1024 * 1024):
            pass


def main() -> int:
    table = Table(("scrape", "ours", "beside", "ratio", "limit", "kept"))
    for fleet in SIZES:
        with tempfile.TemporaryDirectory() as directory, serving(fleet, LATENCY) as api:
            config = fleet.write(Path(directory), api.endpoint)
            slow = over_our_collector(config)
            scrapes(table, fleet, config, slow)
            held(table, fleet, config)
    return len(table.missed)


if __name__ == "__main__":
    sys.exit(main())
