"""The exporter's `serve` with a heartbeat in its event loop. SIGUSR1 prints the longest gap between two beats since the
last one, in seconds: what the loop's thread used of the CPU meanwhile, and by the clock on the wall."""

import asyncio
import signal
import sys
import time

import exporter.serve
from exporter.cli import main

BEAT_SECONDS = 0.001
longest = [0.0, 0.0]


def tell(*_: object) -> None:
    print(*longest, file=sys.stderr, flush=True)
    longest[:] = (0.0, 0.0)


async def beat() -> None:
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGUSR1, tell)
    while True:
        cpu, wall = time.thread_time(), time.perf_counter()
        await asyncio.sleep(BEAT_SECONDS)
        gap = time.thread_time() - cpu, time.perf_counter() - wall - BEAT_SECONDS
        longest[:] = map(max, longest, gap)


serve = exporter.serve.serve


async def serve_with_a_heartbeat(*arguments: object, **options: object) -> None:
    """The same, and the heart beats as long."""
    heart = asyncio.create_task(beat())
    await serve(*arguments, **options)  # type: ignore[arg-type]
    heart.cancel()


exporter.serve.serve = serve_with_a_heartbeat
main()
