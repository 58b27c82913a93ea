"""When something is due, by APScheduler. The only module that knows it."""

import asyncio
import sys
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from heapq import heapify, heappop, heappush
from itertools import count

from apscheduler.schedulers.asyncio import AsyncIOScheduler
from apscheduler.triggers.base import BaseTrigger

from exporter.clock import Clock

_IDLE = timedelta(hours=1)
_JOB = "what is due first"
_FEW = 64
"""Void entries that are left where they are, however few others there are."""


@dataclass(slots=True)
class _Entry:
    """Something that is due at `due`, or nothing any more where that is None."""

    interval: timedelta
    on_due: Callable[[], None]
    due: datetime | None = None


class Schedule:
    """Calls back when something is due, and every interval again from then on. Times are the clock's monotonic seconds.

    What is due is never dropped: a blocked event loop only delays it, and several times that passed become one call.

    APScheduler has a single job, for what is due first. A job for each of ten thousand spaces took 17 MB, a third of a
    second at a start and a tenth of every poll.
    """

    def __init__(self, clock: Clock) -> None:
        self._entries: dict[str, _Entry] = {}
        self._queue: list[tuple[datetime, int, _Entry]] = []
        """A heap. Of an entry that was postponed or removed, what stood here before is void."""
        self._order = count()
        self._zone = _MonotonicZone(clock)
        self._scheduler = AsyncIOScheduler(
            timezone=self._zone, job_defaults={"misfire_grace_time": None, "coalesce": True}
        )
        self._wakes_at = self._zone.now() + _IDLE
        self._scheduler.add_job(
            self._call_back,
            _Idle(),
            id=_JOB,
            next_run_time=self._wakes_at,
            max_instances=sys.maxsize,  # a run that says when the next one is still counts as running then
        )

    def start(self) -> None:
        """Begin calling back; needs a running event loop."""
        self._scheduler.start()

    def add(self, key: str, *, due: float, interval: float, on_due: Callable[[], None]) -> None:
        """Call `on_due` at `due` and every `interval` seconds after it; what was said of this key before is void."""
        if key in self._entries:
            self.remove(key)
        self._entries[key] = _Entry(timedelta(seconds=interval), on_due)
        self.postpone(key, due)

    def postpone(self, key: str, due: float) -> None:
        """Call back at `due` next, then every interval after it."""
        moment = self._zone.moment(due)
        self._put(self._entries[key], moment)
        if moment < self._wakes_at:
            self._wake_at(moment)

    def remove(self, key: str) -> None:
        """Call back no more for this key."""
        self._entries.pop(key).due = None

    def pause(self) -> None:
        """Call back no more; what is under way may still postpone itself."""
        if self._scheduler.running:
            self._scheduler.pause()

    async def stop(self) -> None:
        """Forget everything."""
        if self._scheduler.running:
            self._scheduler.shutdown(wait=False)
        await asyncio.sleep(0)  # the shutdown itself waits for the loop's next turn

    def _put(self, entry: _Entry, due: datetime) -> None:
        entry.due = due
        heappush(self._queue, (due, next(self._order), entry))
        if len(self._queue) > 2 * len(self._entries) + _FEW:
            # without what is void, which would stay until it had been due
            self._queue = [one for one in self._queue if one[0] == one[2].due]
            heapify(self._queue)

    async def _call_back(self) -> None:  # as a coroutine, for plain functions would run in a thread
        now = self._zone.now()
        while self._queue and self._queue[0][0] <= now:
            due, _, entry = heappop(self._queue)
            if due == entry.due:
                self._put(entry, now + entry.interval)
                entry.on_due()
        self._wake_at(self._queue[0][0] if self._queue else now + _IDLE)

    def _wake_at(self, moment: datetime) -> None:
        self._wakes_at = moment
        self._scheduler.modify_job(_JOB, next_run_time=moment)


class _Idle(BaseTrigger):  # type: ignore[misc]  # APScheduler has no types
    """So long after the last time that the job's own word comes first."""

    def get_next_fire_time(self, previous: datetime | None, now: datetime) -> datetime:
        return (previous or now) + _IDLE


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

    def now(self) -> datetime:
        """The clock's monotonic time, to the microsecond."""
        return self.moment(self._clock.monotonic())

    def fromutc(self, _: datetime) -> datetime:
        return self.now()

    def utcoffset(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def dst(self, _: datetime | None) -> timedelta:
        return timedelta(0)

    def tzname(self, _: datetime | None) -> str:
        return "monotonic"
