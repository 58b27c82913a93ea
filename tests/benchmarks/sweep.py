"""Measures how much of its budget the exporter uses: a sweep of 3,000 spaces, and 30 accounts on one core.

    python tests/benchmarks/sweep.py [--real]

The minimum duration of a sweep is spaces / qps * (1 + latency), because a permit is released one second after the
response. The sweep ends when the API has received a request for each space. With `--real`, a sweep at 10 queries per
second is measured too; it takes five minutes.
"""

import argparse
import os
import sys
import tempfile
import time
from itertools import groupby
from pathlib import Path

from api import Api, serving
from fleet import Fleet
from hostile import max_per_second
from measure import Server, Table, exporter, milliseconds

LATENCY = 0.025
FAST_QPS = 100.0
SECONDS = 20.0
SETTLING_SECONDS = 20.0
"""Longer than a sweep and an interval, because spaces in a state file are due at different times."""
THIRTY_ACCOUNTS = Fleet(numbers=5_400, spaces=1_800, accounts=30)


def sweep(table: Table, qps: float) -> None:
    """Measure the time from the first request until a request for each space has arrived."""
    fleet = Fleet(numbers=10_000, spaces=3_000)
    main = ("-m", "exporter") if qps <= 10 else (str(Path(__file__).parent / "custom_qps.py"), str(qps))
    with tempfile.TemporaryDirectory() as directory, serving(fleet, LATENCY) as api:
        config = fleet.write(Path(directory), api.endpoint, with_state_file=False, interval="1h")
        with exporter(config, main=main, wait_ready=False):
            arrivals: list[tuple[float, str, str]] = []
            while len({space for _, _, space in arrivals}) < fleet.spaces:
                time.sleep(0.5)
                arrivals += api.arrivals()
    times = [at for at, _, _ in arrivals]
    seconds, minimum = times[-1] - times[0], fleet.spaces / qps * (1 + LATENCY)
    name = f"sweep of 3,000 spaces at {qps:g}/s, {max_per_second(times)} in the busiest second"
    table.row_with_limit(name, f"{seconds:.1f} s", f"{minimum:.1f} s", value=seconds / minimum, limit=1.05)


def thirty_accounts(table: Table, *, with_state_file: bool) -> None:
    """Measure the used share of the budgets of 30 accounts. The exporter runs on the first core only."""
    fleet = THIRTY_ACCOUNTS
    with tempfile.TemporaryDirectory() as directory, serving(fleet, LATENCY) as api:
        config = fleet.write(Path(directory), api.endpoint, with_state_file=with_state_file, interval="5s")
        with exporter(config) as server:
            os.sched_setaffinity(server.process.pid, {0})
            time.sleep(SETTLING_SECONDS)
            used, cpu, worst = measure_polls(api, server)
    share = used / (fleet.accounts * 10)
    suffix = f"{'with' if with_state_file else 'without'} a state file, {worst} in the busiest second of an account"
    result = f"{used:.1f}/s, {milliseconds(cpu)} of CPU per poll"
    table.row_with_limit(f"30 accounts at 10/s {suffix}", result, f"{share:.1%} of 300/s", value=0.95 / share, limit=1)


def measure_polls(api: Api, server: Server) -> tuple[float, float, int]:
    """Return polls per second, CPU seconds per poll, and the maximum number of polls of an account in a second."""
    api.arrivals()
    started, cpu = time.monotonic(), sum(server.cpu_seconds())
    time.sleep(SECONDS)
    arrivals = sorted(api.arrivals(), key=lambda arrival: arrival[1])
    seconds, cpu = time.monotonic() - started, sum(server.cpu_seconds()) - cpu
    by_account = groupby(arrivals, key=lambda arrival: arrival[1])
    worst = max(max_per_second([at for at, _, _ in group]) for _, group in by_account)
    return len(arrivals) / seconds, cpu / len(arrivals), worst


def main() -> int:
    parser = argparse.ArgumentParser(description="Measure how much of its budget the exporter uses.")
    parser.add_argument(
        "--real", action="store_true", help="also measure a sweep at 10 queries per second (five minutes)"
    )
    real = parser.parse_args().real
    table = Table(("budget", "measured", "compared with", "ratio", "limit", "within limit"))
    sweep(table, FAST_QPS)
    if real:
        sweep(table, 10.0)
    thirty_accounts(table, with_state_file=False)
    thirty_accounts(table, with_state_file=True)
    return len(table.exceeded)


if __name__ == "__main__":
    sys.exit(main())
