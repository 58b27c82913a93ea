"""Measures scrape, poll, memory and start with 100, 1,000, 10,000 and 50,000 phone numbers.

    python tests/benchmarks/growth.py

*collect* is the part of a scrape before sending: it removes stale values and lists the rendered lines. No value changes
during the measurement. From 1,000 to 10,000 and to 50,000 phone numbers, no column may grow faster than the number of
phone numbers, with a tolerance of 15 %.
"""

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

from api import serving
from fleet import Fleet
from measure import Client, Table, exporter, is_listening, median_seconds, megabytes, milliseconds
from poll import cpu_per_poll
from stored_view import view_of

SIZES = (Fleet(100, 30), Fleet(1_000, 300), Fleet(10_000, 3_000), Fleet(50_000, 10_000))
SCRAPES = 20
MAX_GROWTH = 1.15
COLUMNS = (
    "collect",
    "scrape",
    "CPU per scrape",
    "compressed scrape",
    "CPU per poll",
    "memory above an empty exporter",
    "start to first scrape",
)


def empty_bytes() -> int:
    """Return the memory of an exporter with one phone number."""
    return round(measured(Fleet(1, 1))["memory above an empty exporter"])


def measured(fleet: Fleet, empty: int = 0) -> Mapping[str, float]:
    """Measure the exporter with this fleet. Return COLUMNS in seconds and bytes."""
    with tempfile.TemporaryDirectory() as directory, serving(fleet) as api:
        config = fleet.write(Path(directory), api.endpoint, interval="1h")
        started = time.perf_counter()
        with exporter(config, wait_ready=False) as server:
            while not is_listening(server.port):
                time.sleep(0.002)
            client = Client(server.port)
            client.get("/metrics", accept_encoding="gzip")
            first_scrape = time.perf_counter() - started
            compressed = statistics.median(client.get("/metrics", accept_encoding="gzip")[0] for _ in range(SCRAPES))
            before = sum(server.cpu_seconds())
            plain = statistics.median(client.get("/metrics", accept_encoding="identity")[0] for _ in range(SCRAPES))
            cpu = (sum(server.cpu_seconds()) - before) / SCRAPES
            memory = server.resident_bytes() - empty
        view = view_of(config)
        collect = median_seconds(lambda: list(view.exposition(openmetrics=True)), SCRAPES)
        poll_cpu = cpu_per_poll(fleet, api.endpoint)
    return dict(zip(COLUMNS, (collect, plain, cpu, compressed, poll_cpu, memory, first_scrape), strict=True))


def main() -> int:
    table = Table(("numbers", *COLUMNS))
    empty, rows = empty_bytes(), []
    for fleet in SIZES:
        row = measured(fleet, empty)
        cells = (megabytes(value) if "memory" in name else milliseconds(value) for name, value in row.items())
        table.row(f"{fleet.numbers:,} in {fleet.spaces:,} spaces", *cells)
        rows.append((fleet.numbers, row))
    growth = Table(("growth", "from 1,000 to 10,000", "to 50,000", "maximum per number", "limit", "within limit"))
    _, (few, small), (many, middle), (maximum, large) = rows
    for name in COLUMNS:
        steps = (middle[name] / small[name], large[name] / middle[name])
        worst = max(steps[0] * few / many, steps[1] * many / maximum)
        growth.row_with_limit(name, *(f"{step:.2f} times" for step in steps), value=worst, limit=MAX_GROWTH)
    return len(growth.exceeded)


if __name__ == "__main__":
    sys.exit(main())
