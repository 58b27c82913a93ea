"""Schedules callbacks with APScheduler, one interval job for each key. No other module uses APScheduler."""

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from exporter.clock import Clock


class Schedule:
    """Calls `on_due` of each entry when it is due, and then every interval. Times are monotonic seconds of the clock.

    A late callback is called as soon as possible. Several missed times result in one callback.
    """

    def __init__(self, clock: Clock) -> None:
        self._zone = _MonotonicZone(clock)
        self._scheduler = _Scheduler(
            timezone=self._zone,
            job_defaults={"misfire_grace_time": None, "coalesce": True, "max_instances": sys.maxsize},
        )

    def __len__(self) -> int:
        return len(self._scheduler.get_jobs())

    def start(self) -> None:
        """Start the scheduler if it is not running. Requires a running event loop."""
        if not self._scheduler.running:
            self._scheduler.start()

    def add(self, key: str, *, due: float, interval: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due`, and then every `interval` seconds. Replaces an existing entry of this key."""

        async def call() -> None:  # a coroutine, because APScheduler runs functions in a thread
            on_due()

        trigger = _IntervalTrigger(timedelta(seconds=interval))
        self._scheduler.add_job(call, trigger, id=key, next_run_time=self._zone.to_datetime(due), replace_existing=True)

    def reschedule(self, key: str, due: float) -> None:
        """Move the next callback to `due`. The following callbacks are one interval apart."""
        self._scheduler.modify_job(key, next_run_time=self._zone.to_datetime(due))

    def remove(self, key: str) -> None:
        """Remove the entry of this key."""
        self._scheduler.remove_job(key)

    def pause(self) -> None:
        """Stop all callbacks. Entries can still be changed."""
        if self._scheduler.running:
            self._scheduler.pause()

    async def stop(self) -> None:
        """Shut down the scheduler."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # the shutdown runs in the next iteration of the event loop


class _Scheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """Wakes up once for all changes in one iteration of the event loop. 10,000 wake-ups would block the loop."""

    _wakeup_pending = False

    def wakeup(self) -> None:
        if not self._wakeup_pending:
            self._wakeup_pending = True
            asyncio.get_running_loop().call_soon(self._wake_up_once)

    def _wake_up_once(self) -> None:
        self._wakeup_pending = False
        super().wakeup()


class _IntervalTrigger(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """Fires at each interval. APScheduler's `IntervalTrigger` converts time zones, and `_MonotonicZone` cannot."""

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return (previous or now) + self._interval


class _MonotonicZone(tzinfo):
    """A time zone in which the current time is the clock's monotonic time.

    APScheduler calls `datetime.now(zone)` and has no other hook for a clock. With this zone, a change of the system
    clock does not affect the schedule, and tests control the time. Times of other zones cannot be converted: the result
    would be the current time.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = datetime(2000, 1, 1, tzinfo=self)

    def to_datetime(self, monotonic: float) -> datetime:
        """Return monotonic seconds as a time of this zone."""
        return self._epoch + timedelta(seconds=monotonic)

    def fromutc(self, _: datetime) -> datetime:
        return self.to_datetime(self._clock.monotonic())

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "monotonic"
