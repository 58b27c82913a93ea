"""The time, as an argument: everything that asks for the time asks a `Clock`."""

import time
from typing import NamedTuple, Protocol


class Clock(Protocol):
    """Two readings: one that people and Prometheus understand, one that never jumps."""

    def now(self) -> float:
        """Seconds since the Unix epoch; may jump when the system's clock is set."""

    def monotonic(self) -> float:
        """Seconds since some moment; only differences mean something. The event loop's own time."""


class Now(NamedTuple):
    """Both readings of a clock, in seconds."""

    unix: float
    monotonic: float

    @classmethod
    def of(cls, clock: Clock) -> "Now":
        """The clock's readings now."""
        return cls(clock.now(), clock.monotonic())


class SystemClock:
    """The machine's clock."""

    def now(self) -> float:
        return time.time()

    def monotonic(self) -> float:
        return time.monotonic()
