"""What the exporter holds in memory with 50,000 numbers, and whether that grows over an hour of changes.

    python tests/benchmarks/memory.py

Beside the size of what it exposes, above an exporter with one space. The hour is compressed: as many polls as one at
10 a second has, one answer in ten with another rating, and a scrape for every 150 polls, as every 15 seconds.
"""

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

from api import Api, serving
from fleet import Fleet
from measure import Client, Served, Table, exporter, megabytes

FLEET = Fleet(50_000, 10_000)
HOUR_OF_POLLS = 36_000
POLLS_A_SCRAPE = 150
FASTER = 400.0
CHANGING = 0.1


def resident(fleet: Fleet) -> tuple[int, int]:
    """Bytes in memory after a few scrapes, and the bytes of one."""
    with tempfile.TemporaryDirectory() as directory, serving(fleet) as api, ExitStack() as stack:
        ours = stack.enter_context(exporter(fleet.write(Path(directory), api.endpoint, interval="1h")))
        client = Client(ours.port)
        sizes = [client.get("/metrics", accept_encoding=encoding)[1] for encoding in ("gzip", "identity") * 3]
        return ours.resident_bytes(), sizes[-1]


def hour(table: Table) -> None:
    with tempfile.TemporaryDirectory() as directory, serving(FLEET, changing=CHANGING) as api:
        config = FLEET.write(Path(directory), api.endpoint)
        with exporter(config, main=(str(Path(__file__).parent / "unbounded.py"), str(FASTER))) as ours:
            polls = poll(api, ours, FLEET.spaces)  # each space has been polled, and its numbers are new objects
            before = ours.resident_bytes()
            polls += poll(api, ours, HOUR_OF_POLLS)
            after = ours.resident_bytes()
    what = f"50,000 numbers, an hour of changes ({polls} polls)"
    table.judged(what, megabytes(after), megabytes(before), value=after / before, limit=1.05)


def poll(api: Api, ours: Served, least: int) -> int:
    """Until the API has been asked so often; scraped meanwhile. How often it was asked."""
    asked = scraped = 0
    while asked < least:
        time.sleep(0.1)
        asked += len(api.arrivals())
        if asked - scraped >= POLLS_A_SCRAPE:
            scraped = asked
            Client(ours.port).get("/metrics", accept_encoding="gzip")
    return asked


def main() -> int:
    table = Table(("memory", "measured", "beside", "ratio", "limit", "kept"))
    empty, _ = resident(Fleet(1, 1))
    full, exposed = resident(FLEET)
    what = f"50,000 numbers, above an empty exporter of {megabytes(empty)}"
    table.judged(
        what, megabytes(full - empty), f"{megabytes(exposed)} exposed", value=(full - empty) / exposed, limit=2
    )
    hour(table)
    return len(table.missed)


if __name__ == "__main__":
    sys.exit(main())
