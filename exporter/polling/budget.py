"""The budget: never more than `qps` queries per second, as the server sees it.

A limiter that counts sends cannot promise that, because latency bunches requests on the way. This one releases a permit
only when the *answer* has arrived and a hold time has passed. There are ceil(qps) permits, each held for ceil(qps)/qps
seconds, at least one second: 10 permits for 1 s, 2 permits for 1.05 s at 1.9 qps, 1 permit for 2 s at 0.5 qps. A
request reaches the server between its send and its answer, so all arrivals within one second hold a permit at the end
of that second: never more than ceil(qps), and never more than qps on average. Sends are also spaced by 1/qps.

What it cannot bound: a request that timed out counts as answered. A server that hung may still read it from its socket
later, together with other requests that timed out.

`Permits` is the arithmetic, `Rate` is the effect of throttling, `Latency` measures requests, `Budget` waits.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from exporter.clock import Clock

MAX_PAUSE_SECONDS = 60.0
ASSUMED_LATENCY_SECONDS = 0.2
"""Of a request, until one was measured. Between 0.1 and 0.3 s are usual."""
_RECOVERY_SECONDS = 240.0
"""How long the rate takes to rise from zero to the limit, after the end of a pause."""
_LOWEST_SHARE = 1 / 16
_MEAN_SECONDS = 600.0
"""The time over which the mean rate is taken."""
_MEASURED_REQUESTS = 100
_MAX_UNANSWERED = 3


def reached_qps(qps: float, latency: float) -> float:
    """Queries per second that a budget of `qps` reaches when a request takes `latency` seconds on average."""
    permits = math.ceil(qps)
    return permits / (permits / qps + latency)


class Permits:
    """When the next request may be sent. Every method takes the time and none waits; `qps` may change between calls."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._answered: deque[float] = deque()
        self._last_slot = -math.inf
        self._rested = -math.inf

    def delay(self, now: float, qps: float) -> float:
        """Seconds until a request may be sent; 0 for now, infinity while only an answer can free a permit."""
        size = math.ceil(qps)
        hold = size / qps
        next_slot = max(self._last_slot + 1 / qps, self._rested + hold)
        while self._answered and self._answered[0] + hold <= now:
            self._answered.popleft()
        excess = self._in_flight + len(self._answered) - size
        if excess < 0:
            return max(0.0, next_slot - now)
        if excess >= len(self._answered):
            return math.inf
        return max(self._answered[excess] + hold, next_slot) - now

    def hold_off(self, now: float) -> None:
        """Release no permit before one hold time has passed: another process may have sent requests until now."""
        self._rested = now

    def take(self, now: float, qps: float) -> None:
        """A request is sent. If it is a little late for its slot, the next slot is not later."""
        self._in_flight += 1
        slot = self._last_slot + 1 / qps
        self._last_slot = slot if now - slot < 0.5 / qps else now

    def answered(self, now: float) -> None:
        """Its answer arrived, or the exporter stopped waiting for it: the permit is released after its hold time."""
        self._in_flight -= 1
        self._answered.append(now)


class Rate:
    """The limit after throttling, in queries per second: halved when the API throttles, then rising slowly."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._share = 1.0
        """Of the limit, at the time of the last throttled request."""
        self._lowered_at = -math.inf
        self._paused_until = -math.inf
        self._lowered = deque([(-math.inf, -math.inf, 1.0)])
        """When the rate was lowered, from when it rises, and its share then; as far back as the mean needs."""

    def current(self, now: float) -> float:
        """Between a sixteenth of the limit and the limit."""
        risen = max(0.0, now - max(self._lowered_at, self._paused_until)) / _RECOVERY_SECONDS
        return self.limit * min(1.0, self._share + risen)

    def mean(self, now: float) -> float:
        """The mean of the last ten minutes, with pauses as 0."""
        start, total = now - _MEAN_SECONDS, 0.0
        ends = [*(at for at, _, _ in list(self._lowered)[1:]), now]
        for (at, rises_from, share), end in zip(self._lowered, ends, strict=True):
            origin = max(rises_from, start - _RECOVERY_SECONDS)  # it has reached 1 by then
            if end > start:
                total += _sum_of_shares(share, end - origin) - _sum_of_shares(share, max(at, start) - origin)
        return self.limit * total / _MEAN_SECONDS

    def is_lowered(self, now: float) -> bool:
        """Whether throttling still lowers the rate."""
        return self.current(now) < self.limit

    def pause_left(self, now: float) -> float:
        """Seconds for which nothing may be sent."""
        return max(0.0, self._paused_until - now)

    def throttled(self, now: float, *, sent_at: float, wait_seconds: float) -> None:
        """The API throttled a request: pause, for a minute at most, and halve the rate. Requests that were in flight
        when the rate was lowered do not lower it again."""
        if sent_at > self._lowered_at:
            self._share = max(self.current(now) / self.limit / 2, _LOWEST_SHARE)
            self._lowered_at = now
            self._lowered.append((now, now, self._share))
            while self._lowered[1][0] < now - _MEAN_SECONDS:
                self._lowered.popleft()
        self._paused_until = max(self._paused_until, now + min(wait_seconds, MAX_PAUSE_SECONDS))
        self._lowered[-1] = (self._lowered_at, max(self._lowered_at, self._paused_until), self._share)


def _sum_of_shares(share: float, seconds: float) -> float:
    """The integral of a share that rises to 1, over these seconds."""
    if seconds <= 0:
        return 0.0
    rising = min(seconds, _RECOVERY_SECONDS * (1 - share))
    return share * rising + rising**2 / _RECOVERY_SECONDS / 2 + seconds - rising


class Latency:
    """Mean duration of the latest requests.

    A request without an answer counts too, because it holds a permit. Of several in a row only the first three count,
    and none before the first answer: they are an outage, and must not lengthen the interval by which it is noticed.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_MEASURED_REQUESTS)
        self._unanswered = _MAX_UNANSWERED

    @property
    def mean(self) -> float:
        """In seconds."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else ASSUMED_LATENCY_SECONDS

    def add(self, seconds: float, *, answered: bool) -> None:
        """A request ended after these seconds."""
        self._unanswered = 0 if answered else self._unanswered + 1
        if self._unanswered <= _MAX_UNANSWERED:
            self._seconds.append(seconds)


class Budget:
    """The permits of one account, in the order of the requests for them."""

    def __init__(self, qps: float, clock: Clock) -> None:
        self.latency = Latency()
        self._rate = Rate(qps)
        self._permits = Permits()
        self._clock = clock
        self._order = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """How many requests can be in flight at once."""
        return math.ceil(self._rate.limit)

    def set_limit(self, qps: float) -> None:
        """Change the configured queries per second; earlier requests still count."""
        self._rate.limit = qps
        self._changed.set()

    def hold_off(self) -> None:
        """Send nothing until the requests that another process sent no longer count."""
        self._permits.hold_off(self._clock.monotonic())

    @property
    def is_throttled(self) -> bool:
        """Whether throttling still lowers the rate."""
        return self._rate.is_lowered(self._clock.monotonic())

    def current_qps(self) -> float:
        """The limit after throttling."""
        return self._rate.current(self._clock.monotonic())

    def sustained_qps(self) -> float:
        """The limit after throttling or, if that is lower, its mean of the last ten minutes with pauses as 0."""
        now = self._clock.monotonic()
        return min(self._rate.current(now), self._rate.mean(now))

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
            self._changed.set()

    def throttled(self, *, sent_at: float, wait_seconds: float) -> None:
        """The API throttled a request that was sent at `sent_at`: pause for `wait_seconds`, at most 60."""
        self._rate.throttled(self._clock.monotonic(), sent_at=sent_at, wait_seconds=wait_seconds)

    async def _wait(self) -> None:
        while (delay := self._delay()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if delay == math.inf else delay):
                    await self._changed.wait()

    def _delay(self) -> float:
        now = self._clock.monotonic()
        return max(self._rate.pause_left(now), self._permits.delay(now, self._rate.current(now)))
