"""When something is due, by APScheduler. The only module that knows it."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.interval import IntervalTrigger

from exporter.clock import Clock

_EPOCH = datetime(2000, 1, 1, tzinfo=UTC)


class Schedule:
    """Calls back when something is due, and every interval again from then on. Times are the clock's monotonic seconds.

    What is due is never dropped: a blocked event loop only delays it, and several times that passed become one call.
    """

    def __init__(self, clock: Clock) -> None:
        self._scheduler = AsyncIOScheduler(
            timezone=_MonotonicZone(clock), job_defaults={"misfire_grace_time": None, "coalesce": True}
        )

    def start(self) -> None:
        """Begin calling back; needs a running event loop."""
        self._scheduler.start()

    def add(self, key: str, *, due: float, interval: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due` and every `interval` seconds after it."""

        async def call() -> None:  # as a coroutine, for plain functions would run in a thread
            on_due()

        trigger = IntervalTrigger(seconds=interval, start_date=_moment(due), timezone=UTC)
        self._scheduler.add_job(call, trigger, id=key, next_run_time=_moment(due))

    def postpone(self, key: str, due: float) -> None:
        """Call back at `due` next, then every interval after it."""
        self._scheduler.modify_job(key, next_run_time=_moment(due))

    async def stop(self) -> None:
        """Call back no more."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # the shutdown itself waits for the loop's next turn


class _MonotonicZone(tzinfo):
    """UTC whose now is the clock's monotonic time: APScheduler asks `datetime.now(zone)`, and its zone is the one seam
    that it offers. So no step of the system's clock can stop or hurry the schedule, and tests own the time."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock

    def fromutc(self, _: datetime) -> datetime:
        return _moment(self._clock.monotonic())

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "monotonic"


def _moment(monotonic: float) -> datetime:
    return _EPOCH + timedelta(seconds=monotonic)
