"""Measures the memory of the exporter with 50,000 phone numbers, and its growth in an hour of changes.

    python tests/benchmarks/memory.py

The memory above an exporter with one space is compared with the size of the exposition. The hour is simulated at a
higher rate: 36,000 polls (one hour at 10 per second), 10 % of the responses with another rating, and a scrape for every
150 polls (one scrape every 15 seconds).
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from api import Api, serving
from fleet import Fleet
from measure import Client, Server, Table, exporter, megabytes

FLEET = Fleet(50_000, 10_000)
HOUR_OF_POLLS = 36_000
POLLS_PER_SCRAPE = 150
FAST_QPS = 400.0
CHANGED_SHARE = 0.1


def resident(fleet: Fleet) -> tuple[int, int]:
    """Return the resident memory after a few scrapes, and the size of a scrape."""
    with tempfile.TemporaryDirectory() as directory, serving(fleet) as api, ExitStack() as stack:
        server = stack.enter_context(exporter(fleet.write(Path(directory), api.endpoint, interval="1h")))
        client = Client(server.port)
        sizes = [client.get("/metrics", accept_encoding=encoding)[1] for encoding in ("gzip", "identity") * 3]
        return server.resident_bytes(), sizes[-1]


def hour(table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory, serving(FLEET, changing=CHANGED_SHARE) as api:
        config = FLEET.write(Path(directory), api.endpoint)
        with exporter(config, main=(str(Path(__file__).parent / "custom_qps.py"), str(FAST_QPS))) as server:
            polls = wait_for_polls(api, server, FLEET.spaces)  # after these polls, each space has new objects
            before = server.resident_bytes()
            polls += wait_for_polls(api, server, HOUR_OF_POLLS)
            after = server.resident_bytes()
    name = f"50,000 numbers, an hour of changes ({polls} polls)"
    table.row_with_limit(name, megabytes(after), megabytes(before), value=after / before, limit=1.05)


def wait_for_polls(api: Api, server: Server, count: int) -> int:
    """Scrape the exporter until the API has received at least `count` polls. Return the number of polls."""
    polls = polls_at_scrape = 0
    while polls < count:
        time.sleep(0.1)
        polls += len(api.arrivals())
        if polls - polls_at_scrape >= POLLS_PER_SCRAPE:
            polls_at_scrape = polls
            Client(server.port).get("/metrics", accept_encoding="gzip")
    return polls


def main() -> int:
    table = Table(("memory", "measured", "compared with", "ratio", "limit", "within limit"))
    empty, _ = resident(Fleet(1, 1))
    full, exposed = resident(FLEET)
    name = f"50,000 numbers, above an empty exporter ({megabytes(empty)})"
    table.row_with_limit(
        name, megabytes(full - empty), f"{megabytes(exposed)} exposed", value=(full - empty) / exposed, limit=2
    )
    hour(table)
    return len(table.exceeded)


if __name__ == "__main__":
    sys.exit(main())
