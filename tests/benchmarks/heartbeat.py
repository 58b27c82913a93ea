"""Runs the exporter's `serve` with a heartbeat in its event loop. SIGUSR1 prints and resets the longest gap between two
beats: CPU seconds of the event loop's thread, and elapsed seconds."""

import asyncio
import signal
import sys
import time

import exporter.serve
from exporter.cli import main

BEAT_SECONDS = 0.001
longest = [0.0, 0.0]


def print_longest_gap(*_: object) -> None:
    print(*longest, file=sys.stderr, flush=True)
    longest[:] = (0.0, 0.0)


async def beat() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, print_longest_gap)
    while True:
        cpu, wall = time.thread_time(), time.perf_counter()
        await asyncio.sleep(BEAT_SECONDS)
        gap = time.thread_time() - cpu, time.perf_counter() - wall - BEAT_SECONDS
        longest[:] = map(max, longest, gap)


serve = exporter.serve.serve


async def serve_with_heartbeat(*arguments: object, **options: object) -> None:
    heartbeat = asyncio.create_task(beat())
    await serve(*arguments, **options)  # type: ignore[arg-type]
    heartbeat.cancel()


exporter.serve.serve = serve_with_heartbeat
main()
