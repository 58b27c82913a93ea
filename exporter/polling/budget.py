"""Limits the requests of an account to `qps` per second, counted when they arrive at the server.

A limiter that counts requests when they are sent cannot guarantee this, because requests that were sent evenly can
arrive in bursts. Here a permit is released only after the response has arrived and a hold time has passed:

| qps | permits: ceil(qps) | hold time: ceil(qps)/qps |
|---|---|---|
| 10 | 10 | 1 s |
| 1.9 | 2 | 1.05 s |
| 0.5 | 1 | 2 s |

Proof: A request arrives at the server between its send and its response. It keeps its permit for at least one second
after the response. So all requests that arrive within one second still have their permits at the end of that second.
Therefore at most ceil(qps) requests arrive in any second. On average, at most qps requests arrive per second.

On average, sends are spaced by at least 1/qps. The minimum between two sends is half of that.

Limitation: a request that timed out counts as answered. A server that hung may read several of these requests later, in
a burst.

`Permits` calculates when a request may be sent, `Rate` the current rate after throttling, `Latency` the mean duration
of requests. `Budget` waits.
"""

import asyncio
import math
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress

from exporter.clock import Clock

MAX_PAUSE_SECONDS = 60.0
DEFAULT_LATENCY_SECONDS = 0.2
"""Latency of a request before the first measurement. Typical values are 0.1 to 0.3 s."""
_RECOVERY_SECONDS = 240.0
"""Time in which the rate would rise from zero to the limit."""
_MIN_SHARE = 1 / 16
"""Minimum rate after a reduction, as a share of the limit."""
_MEAN_WINDOW_SECONDS = 600.0
"""The window of the mean rate."""
_MAX_MEASURED_REQUESTS = 100
_MAX_UNANSWERED = 3
"""Maximum consecutive requests without a response that count as latency."""


def possible_qps(qps: float, latency: float) -> float:
    """Return the queries per second that a budget of `qps` allows with a mean latency of `latency` seconds."""
    permits = math.ceil(qps)
    return permits / (permits / qps + latency)


class Permits:
    """Calculates when the next request may be sent. No method waits. `qps` may change between calls."""

    def __init__(self) -> None:
        self._in_flight = 0
        self._ended: deque[float] = deque()
        self._last_slot = -math.inf
        self._held_off_at = -math.inf

    def delay(self, now: float, qps: float) -> float:
        """Return the seconds until the next request may be sent; infinity if a request in flight must end first."""
        size = math.ceil(qps)
        hold = size / qps
        next_slot = max(self._last_slot + 1 / qps, self._held_off_at + hold)
        while self._ended and self._ended[0] + hold <= now:
            self._ended.popleft()
        excess = self._in_flight + len(self._ended) - size  # permits to release first, minus 1
        if excess < 0:
            return max(0.0, next_slot - now)
        if excess >= len(self._ended):
            return math.inf
        return max(self._ended[excess] + hold, next_slot) - now

    def hold_off(self, now: float) -> None:
        """Send nothing for one hold time, because another process may have sent requests until now."""
        self._held_off_at = now

    def start_request(self, now: float, qps: float) -> None:
        """Record a request that is sent now. If it is late by less than half of 1/qps, the next slot does not move."""
        self._in_flight += 1
        slot = self._last_slot + 1 / qps
        self._last_slot = slot if now - slot < 0.5 / qps else now

    def end_request(self, now: float) -> None:
        """Record the end of a request (a response or an error). Its permit is released after the hold time."""
        self._in_flight -= 1
        self._ended.append(now)


class Rate:
    """The current rate in queries per second. It is halved when the API throttles a request, and rises to the limit
    within 4 minutes after the pause."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self._share = 1.0
        """The rate immediately after the last reduction, as a share of the limit."""
        self._lowered_at = -math.inf
        self._paused_until = -math.inf
        self._lowered = deque([(-math.inf, -math.inf, 1.0)])
        """The reductions in the window of `mean` and the last one before it: the time, the time when the rate starts to
        rise, and the share."""

    def current(self, now: float) -> float:
        """Return the current rate, at most the limit."""
        risen = max(0.0, now - max(self._lowered_at, self._paused_until)) / _RECOVERY_SECONDS
        return self.limit * min(1.0, self._share + risen)

    def mean(self, now: float) -> float:
        """Return the mean rate of the last 10 minutes; the rate is 0 in a pause."""
        window_start, total = now - _MEAN_WINDOW_SECONDS, 0.0
        ends = [*(lowered_at for lowered_at, _, _ in list(self._lowered)[1:]), now]
        for (lowered_at, rises_at, share), end in zip(self._lowered, ends, strict=True):
            origin = max(rises_at, window_start - _RECOVERY_SECONDS)  # finite; the share is 1 at the window start
            if end > window_start:
                start = max(lowered_at, window_start)
                total += _share_integral(share, end - origin) - _share_integral(share, start - origin)
        return self.limit * total / _MEAN_WINDOW_SECONDS

    def is_lowered(self, now: float) -> bool:
        """Return whether the rate is below the limit because of throttling."""
        return self.current(now) < self.limit

    def pause_left(self, now: float) -> float:
        """Return the remaining seconds of the pause."""
        return max(0.0, self._paused_until - now)

    def on_throttled(self, now: float, *, sent_at: float, wait_seconds: float) -> None:
        """Pause for `wait_seconds` (at most 60) and halve the rate, because the API throttled a request. Requests that
        were in flight at the last reduction do not reduce the rate again."""
        if sent_at > self._lowered_at:
            self._share = max(self.current(now) / self.limit / 2, _MIN_SHARE)
            self._lowered_at = now
            self._lowered.append((now, now, self._share))
            while self._lowered[1][0] < now - _MEAN_WINDOW_SECONDS:
                self._lowered.popleft()
        self._paused_until = max(self._paused_until, now + min(wait_seconds, MAX_PAUSE_SECONDS))
        self._lowered[-1] = (self._lowered_at, max(self._lowered_at, self._paused_until), self._share)


def _share_integral(share: float, seconds: float) -> float:
    """Return the integral over `seconds` of a share that rises to 1; 0 in a pause (negative `seconds`)."""
    if seconds <= 0:
        return 0.0
    rising = min(seconds, _RECOVERY_SECONDS * (1 - share))
    return share * rising + rising**2 / _RECOVERY_SECONDS / 2 + seconds - rising


class Latency:
    """Mean duration of the last 100 requests.

    The first three consecutive requests without a response count, because each uses a permit. Further ones do not,
    because they are an outage, and an outage must not increase the effective interval: alerts wait for a multiple of
    it. Before the first response, no request counts.
    """

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_MAX_MEASURED_REQUESTS)
        self._unanswered = _MAX_UNANSWERED

    @property
    def mean(self) -> float:
        """The mean latency in seconds."""
        return sum(self._seconds) / len(self._seconds) if self._seconds else DEFAULT_LATENCY_SECONDS

    def add(self, seconds: float, *, answered: bool) -> None:
        """Record a request that took `seconds`. `answered`: it got a response."""
        self._unanswered = 0 if answered else self._unanswered + 1
        if self._unanswered <= _MAX_UNANSWERED:
            self._seconds.append(seconds)


class Budget:
    """The permits of one rate limit. Requests get them in the order in which they start to wait."""

    def __init__(self, qps: float, clock: Clock) -> None:
        self.latency = Latency()
        self._rate = Rate(qps)
        self._permits = Permits()
        self._clock = clock
        self._queue_lock = asyncio.Lock()
        self._changed = asyncio.Event()

    @property
    def concurrency(self) -> int:
        """The maximum number of requests in flight."""
        return math.ceil(self._rate.limit)

    def set_limit(self, qps: float) -> None:
        """Change the configured queries per second. Requests from before the change still count."""
        self._rate.limit = qps
        self._changed.set()

    def hold_off(self) -> None:
        """Send nothing for one hold time, because another process may have sent requests until now."""
        self._permits.hold_off(self._clock.monotonic())

    @property
    def is_throttled(self) -> bool:
        """Whether the rate is below the limit because of throttling."""
        return self._rate.is_lowered(self._clock.monotonic())

    def current_qps(self) -> float:
        """Return the current rate: the limit, or less after throttling."""
        return self._rate.current(self._clock.monotonic())

    def sustained_qps(self) -> float:
        """Return the current rate or the mean rate of the last 10 minutes: the lower of the two."""
        now = self._clock.monotonic()
        return min(self._rate.current(now), self._rate.mean(now))

    @asynccontextmanager
    async def permit(self, check: Callable[[], None] = lambda: None) -> AsyncIterator[None]:
        """Wait until a request may be sent, and use a permit until the request ends. `check` is called after the wait;
        if it raises an exception, no permit is used."""
        async with self._queue_lock:
            await self._wait()
            check()
            now = self._clock.monotonic()
            self._permits.start_request(now, self._rate.current(now))
        try:
            yield
        finally:
            self._permits.end_request(self._clock.monotonic())
            self._changed.set()

    def on_throttled(self, *, sent_at: float, wait_seconds: float) -> None:
        """Pause and halve the rate (see `Rate.on_throttled`): a request that was sent at `sent_at` was throttled."""
        self._rate.on_throttled(self._clock.monotonic(), sent_at=sent_at, wait_seconds=wait_seconds)

    async def _wait(self) -> None:
        while (delay := self._delay()) > 0:
            self._changed.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(None if delay == math.inf else delay):
                    await self._changed.wait()

    def _delay(self) -> float:
        now = self._clock.monotonic()
        return max(self._rate.pause_left(now), self._permits.delay(now, self._rate.current(now)))
