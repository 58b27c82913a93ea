"""When something is due, by APScheduler. The only module that knows it."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta, tzinfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from exporter.clock import Clock


class Schedule:
    """Calls back when something is due, and every interval again from then on. Times are the clock's monotonic seconds.

    What is due is never dropped: a blocked event loop only delays it, and several times that passed become one call.
    """

    def __init__(self, clock: Clock) -> None:
        self._zone = _MonotonicZone(clock)
        self._scheduler = AsyncIOScheduler(
            timezone=self._zone, job_defaults={"misfire_grace_time": None, "coalesce": True}
        )

    def start(self) -> None:
        """Begin calling back; needs a running event loop."""
        self._scheduler.start()

    def add(self, key: str, *, due: float, interval: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due` and every `interval` seconds after it; what was said of this key before is void."""

        async def call() -> None:  # as a coroutine, for plain functions would run in a thread
            on_due()

        self._scheduler.add_job(
            call, _Every(interval), id=key, next_run_time=self._zone.moment(due), replace_existing=True
        )

    def postpone(self, key: str, due: float) -> None:
        """Call back at `due` next, then every interval after it."""
        self._scheduler.modify_job(key, next_run_time=self._zone.moment(due))

    def remove(self, key: str) -> None:
        """Call back no more for this key."""
        self._scheduler.remove_job(key)

    def pause(self) -> None:
        """Call back no more; what is under way may still postpone itself."""
        if self._scheduler.running:
            self._scheduler.pause()

    async def stop(self) -> None:
        """Forget everything."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # the shutdown itself waits for the loop's next turn


class _Every(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """An interval after the last time. APScheduler's own would convert the times to another zone."""

    def __init__(self, seconds: float) -> None:
        self._interval = timedelta(seconds=seconds)

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return (previous or now) + self._interval


class _MonotonicZone(tzinfo):
    """A zone whose now is the clock's monotonic time: APScheduler asks `datetime.now(zone)`, and its zone is the one
    seam that it offers. So no step of the system's clock can stop or hurry the schedule, and tests own the time.
    Its moments are never converted from another zone, for that would give now.
    """

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
