"""How cost grows with the fleet: scrape, poll, memory and start at 100, 1,000, 10,000 and 50,000 numbers.

    python tests/benchmarks/growth.py

*collect* is the part of a scrape that comes before sending: what is too old is looked for, and the kept texts are
listed. Nothing changes meanwhile. Each column must grow no faster than the numbers do, from 1,000 to 10,000 and to
50,000.
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
from poll import cpu_of_a_poll
from shown import view_of

SIZES = (Fleet(100, 30), Fleet(1_000, 300), Fleet(10_000, 3_000), Fleet(50_000, 10_000))
SCRAPES = 20
SLACK = 1.15
COLUMNS = (
    "collect",
    "scrape",
    "CPU of a scrape",
    "scrape, gzip",
    "poll",
    "memory above empty",
    "start to first scrape",
)


def empty_bytes() -> int:
    """What an exporter with one number holds."""
    return round(served(Fleet(1, 1))["memory above empty"])


def served(fleet: Fleet, empty: int = 0) -> Mapping[str, float]:
    """What the real program costs with this fleet, in seconds and bytes."""
    with tempfile.TemporaryDirectory() as directory, serving(fleet) as api:
        config = fleet.write(Path(directory), api.endpoint, interval="1h")
        started = time.perf_counter()
        with exporter(config, ready=False) as ours:
            while not is_listening(ours.port):
                time.sleep(0.002)
            client = Client(ours.port)
            client.get("/metrics", accept_encoding="gzip")
            first = time.perf_counter() - started
            packed = statistics.median(client.get("/metrics", accept_encoding="gzip")[0] for _ in range(SCRAPES))
            before = sum(ours.cpu_seconds())
            plain = statistics.median(client.get("/metrics", accept_encoding="identity")[0] for _ in range(SCRAPES))
            cpu = (sum(ours.cpu_seconds()) - before) / SCRAPES
            memory = ours.resident_bytes() - empty
        view = view_of(config)
        collect = median_seconds(lambda: list(view.exposition(openmetrics=True)), SCRAPES)
        polled = cpu_of_a_poll(fleet, api.endpoint)
    return dict(zip(COLUMNS, (collect, plain, cpu, packed, polled, memory, first), strict=True))


def main() -> int:
    table = Table(("numbers", *COLUMNS))
    empty, rows = empty_bytes(), []
    for fleet in SIZES:
        row = served(fleet, empty)
        cells = (megabytes(value) if "memory" in name else milliseconds(value) for name, value in row.items())
        table.row(f"{fleet.numbers:,} in {fleet.spaces:,} spaces", *cells)
        rows.append((fleet.numbers, row))
    growth = Table(("growth", "from 1,000 to 10,000", "to 50,000", "worst, by the numbers", "limit", "kept"))
    _, (few, small), (many, middle), (most, large) = rows
    for name in COLUMNS:
        steps = (middle[name] / small[name], large[name] / middle[name])
        worst = max(steps[0] * few / many, steps[1] * many / most)
        growth.judged(name, *(f"{step:.2f} times" for step in steps), value=worst, limit=SLACK)
    return len(growth.missed)


if __name__ == "__main__":
    sys.exit(main())
