"""When something is due, by APScheduler: an interval job each. The only module that knows APScheduler."""

import asyncio
import sys
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from exporter.clock import Clock


class Schedule:
    """Calls back when something is due, and every interval after that. Times are the clock's monotonic seconds.

    A late call is made as soon as possible. Several missed times become one call.
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
        """Start to call back, if that has not started; needs a running event loop."""
        if not self._scheduler.running:
            self._scheduler.start()

    def add(self, key: str, *, due: float, interval: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due` and every `interval` seconds after it; replaces an earlier entry of this key."""

        async def call() -> None:  # a coroutine, for APScheduler runs plain functions in a thread
            on_due()

        every = _Every(timedelta(seconds=interval))
        self._scheduler.add_job(call, every, id=key, next_run_time=self._zone.moment(due), replace_existing=True)

    def reschedule(self, key: str, due: float) -> None:
        """Call back at `due` next, earlier or later than planned, then every interval after it."""
        self._scheduler.modify_job(key, next_run_time=self._zone.moment(due))

    def remove(self, key: str) -> None:
        """Do not call back for this key any more."""
        self._scheduler.remove_job(key)

    def pause(self) -> None:
        """Do not call back any more; entries can still be changed."""
        if self._scheduler.running:
            self._scheduler.pause()

    async def stop(self) -> None:
        """Remove everything."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # the shutdown itself waits for the loop's next iteration


class _Scheduler(AsyncIOScheduler):  # type: ignore[misc]  # APScheduler has no types
    """Looks for due jobs once for all changes of one moment: ten thousand looks would hold the event loop."""

    _waking = False

    def wakeup(self) -> None:
        if not self._waking:
            self._waking = True
            asyncio.get_running_loop().call_soon(self._wake_up)

    def _wake_up(self) -> None:
        self._waking = False
        super().wakeup()


class _Every(BaseTrigger):  # type: ignore[misc]  # the same
    """Every interval. APScheduler's own trigger converts times between zones, which `_MonotonicZone` cannot."""

    def __init__(self, interval: timedelta) -> None:
        self._interval = interval

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return (previous or now) + self._interval


class _MonotonicZone(tzinfo):
    """A time zone whose now is the clock's monotonic time. APScheduler calls `datetime.now(zone)`, and its zone is
    the only way in: so a step of the system's clock neither stops nor hurries the schedule, and tests own the time.
    Times of other zones cannot be converted to it: the result would be now."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._epoch = datetime(2000, 1, 1, tzinfo=self)

    def moment(self, monotonic: float) -> datetime:
        """The clock's monotonic seconds as a time of this zone."""
        return self._epoch + timedelta(seconds=monotonic)

    def fromutc(self, _: datetime) -> datetime:
        return self.moment(self._clock.monotonic())

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "monotonic"
