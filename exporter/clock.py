"""The clock of the exporter. Polls and stored values use a `Clock`, so that tests can replace it. Timeouts use the
event loop's clock."""

import time
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """Wall-clock time for output and monotonic time for intervals."""

    def now(self) -> float:
        """Return the Unix time in seconds. It can jump when the system clock is set."""

    def monotonic(self) -> float:
        """Return the event loop's time in seconds. Only differences between two values have a meaning."""


class Now(NamedTuple):
    """The Unix time and the monotonic time of one moment, in seconds."""

    unix: float
    monotonic: float

    @classmethod
    def of(cls, clock: Clock) -> "Now":
        """Read the clock."""
        return cls(clock.now(), clock.monotonic())


class SystemClock:
    """The system clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
