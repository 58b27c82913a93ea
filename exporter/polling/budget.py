"""The budget: never more than `qps` arrivals in any second, as the server sees it.

A limiter that counts sends cannot promise that, for latency bunches them on the way. This one returns a permit one
second after the *answer* arrived: a request reaches the server between its send and its answer, so whatever arrives
within one second holds a permit at that second's end, and there are only floor(qps) of them. Below one query a second,
a single permit is held for 1/qps seconds. Sends are also spaced by 1/qps, so nothing bursts.

What it cannot bound: a request that timed out counts as answered, and a server that hung may still take it from its
socket later, together with all others that it had left there.

`Permits` is the arithmetic, `Rate` what throttling does to it, `Budget` the waiting.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from exporter.clock import Clock

MAX_PAUSE_SECONDS = 60.0
_RECOVERY_SECONDS = 240.0
"""How long the rate takes to climb from nothing back to the limit, from the end of a pause on."""
_LOWEST_SHARE = 1 / 16


class Permits:
    """When the next request may be sent. Every method takes the time and none waits; `qps` may change between calls."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._answered: deque[float] = deque()
        self._next_slot = -math.inf

    def delay(self, now: float, qps: float) -> float:
        """Seconds until a request may be sent; 0 for now, infinity while only an answer can free a permit."""
        size, hold = max(1, math.floor(qps)), max(1.0, 1 / qps)
        while self._answered and self._answered[0] + hold <= now:
            self._answered.popleft()
        excess = self._in_flight + len(self._answered) - size
        if excess < 0:
            return max(0.0, self._next_slot - now)
        if excess >= len(self._answered):
            return math.inf
        return max(self._answered[excess] + hold, self._next_slot) - now

    def take(self, now: float, qps: float) -> None:
        """A request is sent. One that was a little late for its slot makes the next one no later."""
        self._in_flight += 1
        gap = 1 / qps
        self._next_slot = (self._next_slot if now - self._next_slot < gap / 2 else now) + gap

    def answered(self, now: float) -> None:
        """Its answer arrived, or we stopped waiting for it: the permit comes back after its hold."""
        self._in_flight -= 1
        self._answered.append(now)


class Rate:
    """What the limit is now, in queries a second: halved when the API says "too fast", then climbing back slowly."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._lowered_to = limit
        self._lowered_at = -math.inf
        self._paused_until = -math.inf

    def current(self, now: float) -> float:
        """Between a sixteenth of the limit and the limit."""
        climbed = max(0.0, now - max(self._lowered_at, self._paused_until)) / _RECOVERY_SECONDS * self.limit
        return min(self.limit, self._lowered_to + climbed)

    def pause_left(self, now: float) -> float:
        """Seconds for which nothing may be sent."""
        return max(0.0, self._paused_until - now)

    def pause(self, now: float, seconds: float) -> None:
        """Nothing may be sent for so long."""
        self._paused_until = max(self._paused_until, now + seconds)

    def throttled(self, now: float, *, sent_at: float, wait_seconds: float) -> None:
        """An answer said "too fast": a pause, of a minute at most, and half the rate. Requests that were under way when
        the rate was lowered lower it no further."""
        if sent_at > self._lowered_at:
            self._lowered_to = max(self.current(now) / 2, self.limit * _LOWEST_SHARE)
            self._lowered_at = now
        self.pause(now, min(wait_seconds, MAX_PAUSE_SECONDS))


class Budget:
    """One account's permits, handed out first come first served."""

    def __init__(self, qps: float, clock: Clock) -> None:
        self._rate = Rate(qps)
        self._permits = Permits()
        self._clock = clock
        self._order = asyncio.Lock()
        self._answer = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """How many requests can be in flight at once."""
        return max(1, math.floor(self._rate.limit))

    def set_limit(self, qps: float) -> None:
        """Change the configured queries per second; earlier requests still count."""
        self._rate.limit = qps

    def pause(self, seconds: float) -> None:
        """Send nothing for `seconds`: until the requests that another process sent no longer count."""
        self._rate.pause(self._clock.monotonic(), seconds)

    def current_qps(self) -> float:
        """What the limit is now, after throttling."""
        return self._rate.current(self._clock.monotonic())

    @asynccontextmanager
    async def permit(self, before: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Wait until a request may be sent, and hold the permit while it is in flight. `before` is called when the
        wait is over; if it raises an exception, no permit is used."""
        async with self._order:
            await self._wait()
            before()
            now = self._clock.monotonic()
            self._permits.take(now, self._rate.current(now))
        try:
            yield
        finally:
            self._permits.answered(self._clock.monotonic())
            self._answer.set()

    def throttled(self, *, sent_at: float, wait_seconds: float) -> None:
        """An answer to a request sent at `sent_at` said "too fast": pause for `wait_seconds`, at most 60."""
        self._rate.throttled(self._clock.monotonic(), sent_at=sent_at, wait_seconds=wait_seconds)

    async def _wait(self) -> None:
        while (delay := self._delay()) > 0:
            self._answer.clear()
            if delay == math.inf:
                await self._answer.wait()
            else:
                await asyncio.sleep(delay)

    def _delay(self) -> float:
        now = self._clock.monotonic()
        return max(self._rate.pause_left(now), self._permits.delay(now, self._rate.current(now)))
