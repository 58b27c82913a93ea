"""What the exporter makes of its budget: a sweep of 3,000 spaces, and thirty accounts in one process on one core.

    python tests/benchmarks/sweep.py [--real]

A sweep cannot take less than spaces / qps * (1 + latency), for a permit comes back a second after its answer. The API
counts arrivals; the sweep ends when it has been asked for every space. `--real` does it at 10 a second: five minutes.
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
from measure import Served, Table, exporter, milliseconds

LATENCY = 0.025
COMPRESSED_QPS = 100.0
SECONDS = 20.0
SETTLING_SECONDS = 20.0
"""Longer than a sweep and an interval: spaces that a state file knows are not all due before."""
THIRTY = Fleet(numbers=5_400, spaces=1_800, accounts=30)


def sweep(table: Table, qps: float) -> None:
    """From the first request to the last space's."""
    fleet = Fleet(numbers=10_000, spaces=3_000)
    main = ("-m", "exporter") if qps <= 10 else (str(Path(__file__).parent / "unbounded.py"), str(qps))
    with tempfile.TemporaryDirectory() as directory, serving(fleet, LATENCY) as api:
        config = fleet.write(Path(directory), api.endpoint, warm=False, interval="1h")
        with exporter(config, main=main, ready=False):
            arrivals: list[tuple[float, str, str]] = []
            while len({space for _, _, space in arrivals}) < fleet.spaces:
                time.sleep(0.5)
                arrivals += api.arrivals()
    moments = [at for at, _, _ in arrivals]
    took, theory = moments[-1] - moments[0], fleet.spaces / qps * (1 + LATENCY)
    what = f"a sweep of 3,000 spaces at {qps:g}/s, {max_per_second(moments)} in the busiest second"
    table.judged(what, f"{took:.1f} s", f"{theory:.1f} s", value=took / theory, limit=1.05)


def thirty(table: Table, *, state_file: bool) -> None:
    """Of the sum of their budgets, what thirty accounts use; the exporter on the first core."""
    with tempfile.TemporaryDirectory() as directory, serving(THIRTY, LATENCY) as api:
        config = THIRTY.write(Path(directory), api.endpoint, warm=state_file, interval="5s")
        with exporter(config) as ours:
            os.sched_setaffinity(ours.process.pid, {0})
            time.sleep(SETTLING_SECONDS)
            used, cpu, worst = measured(api, ours)
    share = used / (THIRTY.accounts * 10)
    what = f"thirty accounts at 10/s {'with' if state_file else 'without'} a state file, {worst} in a busiest second"
    how = f"{used:.1f}/s, {milliseconds(cpu)} of CPU a poll"
    table.judged(what, how, f"{share:.1%} of 300/s", value=0.95 / share, limit=1)


def measured(api: Api, ours: Served) -> tuple[float, float, int]:
    """Polls a second, CPU seconds a poll, and the busiest second of any account."""
    api.arrivals()
    started, cpu = time.monotonic(), sum(ours.cpu_seconds())
    time.sleep(SECONDS)
    arrivals = sorted(api.arrivals(), key=lambda arrival: arrival[1])
    seconds, cpu = time.monotonic() - started, sum(ours.cpu_seconds()) - cpu
    by_account = groupby(arrivals, key=lambda arrival: arrival[1])
    worst = max(max_per_second([at for at, _, _ in group]) for _, group in by_account)
    return len(arrivals) / seconds, cpu / len(arrivals), worst


def main() -> int:
    parser = argparse.ArgumentParser(description="What the exporter makes of its budget.")
    parser.add_argument("--real", action="store_true", help="a sweep at 10 a second too: five minutes")
    real = parser.parse_args().real
    table = Table(("budget", "measured", "beside", "ratio", "limit", "kept"))
    sweep(table, COMPRESSED_QPS)
    if real:
        sweep(table, 10.0)
    thirty(table, state_file=False)
    thirty(table, state_file=True)
    return len(table.missed)


if __name__ == "__main__":
    sys.exit(main())
