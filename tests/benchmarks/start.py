"""Measures the start: the command line alone, and a start with 50,000 phone numbers in a state file.

    python tests/benchmarks/start.py

Each is compared with a minimal program, in alternating processes: `import click` for the command line, and a program
that only reads and decodes the state file. The configuration of the 10,000 spaces is a JSON file.
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

COMMAND_RUNS = 15
STATE_FILE_RUNS = 5
FLEET = Fleet(50_000, 10_000)
DECODE = """
import pathlib, sys
from exporter.clock import SystemClock
from exporter.state.state_file import StateFile
records = StateFile(pathlib.Path(sys.argv[1]), SystemClock()).open({"account-0": sys.argv[2]})
sys.exit(len(records) != int(sys.argv[3]))
"""


def seconds_of(*command: str) -> float:
    started = time.perf_counter()
    subprocess.run((sys.executable, *command), check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def command_line(table: Table) -> None:
    exporter_runs, click_runs = [], []
    for _ in range(COMMAND_RUNS):
        exporter_runs.append(seconds_of("-m", "exporter", "--version"))
        click_runs.append(seconds_of("-c", "import click"))
    seconds, minimum = median(exporter_runs), median(click_runs)
    compared = f"import click {milliseconds(minimum)}"
    table.row_with_limit("--version", milliseconds(seconds), compared, value=seconds / minimum, limit=2)


def state_file(table: Table, directory: Path) -> None:
    path = FLEET.write(directory, "http://127.0.0.1:9", interval="1h")
    (identity,) = load(path, {}).identities.values()
    exporter_runs, decode_runs = [], []
    for _ in range(STATE_FILE_RUNS):
        started = time.perf_counter()
        with exporter(path, wait_ready=False) as server:
            while not is_listening(server.port):
                time.sleep(0.005)
            Client(server.port).get("/metrics", accept_encoding="gzip")
            exporter_runs.append(time.perf_counter() - started)
        decode_runs.append(seconds_of("-c", DECODE, str(directory / "state.db"), identity, str(FLEET.spaces)))
    seconds, minimum = median(exporter_runs), median(decode_runs)
    name, compared = (
        "50,000 numbers in a state file, until the end of the first scrape",
        f"decoding {milliseconds(minimum)}",
    )
    table.row_with_limit(name, milliseconds(seconds), compared, value=seconds / minimum, limit=3)


def main() -> int:
    table = Table(("start", "exporter", "compared with", "ratio", "limit", "within limit"))
    command_line(table)
    with tempfile.TemporaryDirectory() as directory:
        state_file(table, Path(directory))
    return len(table.exceeded)


if __name__ == "__main__":
    sys.exit(main())
