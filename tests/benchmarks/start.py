"""What a start costs: the command line, and a start with a state file of 50,000 numbers.

    python tests/benchmarks/start.py

Each beside the least that it can take, in processes of their own that take turns. Beside a start with a state file is a
program that opens it and decodes all its rows, and does nothing else. The configuration of the 10,000 spaces is a JSON
file.
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from configured import load
from fleet import Fleet
from measure import Client, Table, exporter, is_listening, milliseconds

TURNS = 15
STATE_TURNS = 5
FLEET = Fleet(50_000, 10_000)
DECODE = """
import pathlib, sys
from exporter.clock import SystemClock
from exporter.state.state_file import StateFile
known = StateFile(pathlib.Path(sys.argv[1]), SystemClock()).open({"account-0": sys.argv[2]})
sys.exit(len(known) != int(sys.argv[3]))
"""


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run((sys.executable, *command), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def command_line(table: Table) -> None:
    ours, click = [], []
    for _ in range(TURNS):
        ours.append(seconds_of("-m", "exporter", "--version"))
        click.append(seconds_of("-c", "import click"))
    took, least = median(ours), median(click)
    table.judged("--version", milliseconds(took), f"import click {milliseconds(least)}", value=took / least, limit=2)


def state(table: Table, directory: Path) -> None:
    path = FLEET.write(directory, "http://127.0.0.1:9", interval="1h")
    (identity,) = load(path, {}).identities.values()
    ours, rows = [], []
    for _ in range(STATE_TURNS):
        started = time.perf_counter()
        with exporter(path, ready=False) as one:
            while not is_listening(one.port):
                time.sleep(0.005)
            Client(one.port).get("/metrics", accept_encoding="gzip")
            ours.append(time.perf_counter() - started)
        rows.append(seconds_of("-c", DECODE, str(directory / "state.db"), identity, str(FLEET.spaces)))
    took, least = median(ours), median(rows)
    what = "50,000 numbers in a state file, until the first scrape is complete"
    table.judged(what, milliseconds(took), f"rows {milliseconds(least)}", value=took / least, limit=3)


def main() -> int:
    table = Table(("start", "ours", "beside", "ratio", "limit", "kept"))
    command_line(table)
    with tempfile.TemporaryDirectory() as directory:
        state(table, Path(directory))
    return len(table.missed)


if __name__ == "__main__":
    sys.exit(main())
